"""What several tasks in one layer cost one another, measured on prompts (arXiv 2503.12734, section 5.4).

The model answers the same prompts as predictors that know the supports, among them 2N heads that are dedicated to one
task each, with ω = ±γ on its features.  And one task's labels at a time are exchanged for those of another prompt: what
that changes in the prediction of another task came through KQ_21 or off OV_22's diagonal.  No probe is declared here.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float

from icl_interp.circuits import Circuits
from icl_interp.estimators import Predictor, bayes, gradient_descent
from icl_interp.probing import Context, Estimate, mean_of, ratio_of, rounded
from icl_interp.sharing import MATTERS, own_steps, step_risks
from icl_interp.task_risks import dedicated_heads, dedicated_risks
from icl_interp.tasks import MultiTaskRegression, Prompt
from icl_interp_probes.shown import KEPT
from icl_interp_probes.task_steps import shortened

PROMPTS, TUNING_PROMPTS = 16_384, 4_096
MODEL, DEDICATED, DEBIASED, BAYES = "model", "dedicated heads", "debiased GD", "Bayes"


@dataclass(frozen=True, eq=False)
class Costs:
    """What was measured on prompts.

    Args:
        names: the model, then the predictors beside it.
        gamma: of the dedicated heads; None where there are none.
        risk: mean squared error of each task, a row a predictor.
        ratio: the model's risk over the predictor's, both summed over tasks.
        interference: [n, m] is the change of ŷ_n when the labels of task m are another prompt's, rms over rms of ŷ_n.
        exact: debiased GD's risks in closed form; empty where supports are not known.
        prompts: for each number.
        seed: of the prompts.
    """

    names: tuple[str, ...]
    gamma: float | None
    risk: tuple[tuple[Estimate, ...], ...]
    ratio: tuple[Estimate, ...]
    interference: tuple[tuple[Estimate, ...], ...]
    exact: tuple[float, ...]
    prompts: int
    seed: int

    @classmethod
    def of(cls, context: Context, omega: Float[np.ndarray, "heads features"] | None) -> Costs:
        """Measured on prompts; without ω there are no dedicated heads.  Needs FORWARD and TASK."""
        known = context.task if isinstance(context.task, MultiTaskRegression) else None
        gamma = None if known is None or omega is None else _gamma(omega, known)
        answers = _Answers.collect(context, {} if known is None else _predictors(context, known, gamma))
        return cls(
            names=tuple(answers.errors),
            gamma=None if gamma is None else rounded(gamma, KEPT).item(),
            risk=tuple(tuple(shortened(mean_of(each)) for each in error.T) for error in answers.errors.values()),
            ratio=tuple(
                shortened(ratio_of(answers.errors[MODEL].sum(1), error.sum(1))) for error in answers.errors.values()
            ),
            interference=tuple(
                tuple(_rms(changes, own) for changes in by_labels.T)
                for by_labels, own in zip(np.moveaxis(answers.changes, 1, 0), answers.squares.T, strict=True)
            ),
            exact=() if known is None else tuple(rounded(step_risks(known, own_steps(known)), KEPT).tolist()),
            prompts=len(answers.squares),
            seed=context.seed,
        )

    @property
    def of_dedicated_heads(self) -> Estimate | None:
        """The model's risk over theirs, if there are any."""
        return self.ratio[self.names.index(DEDICATED)] if DEDICATED in self.names else None


@dataclass(frozen=True, eq=False)
class _Answers:
    """Squares, prompt by prompt: of the predictions, of their changes by the labels exchanged, of everyone's errors."""

    squares: Float[np.ndarray, "prompts tasks"]
    changes: Float[np.ndarray, "prompts tasks tasks"]
    errors: dict[str, Float[np.ndarray, "prompts tasks"]]

    @classmethod
    def collect(cls, context: Context, predictors: dict[str, Predictor]) -> _Answers:
        n, tasks = min(context.budget, max(PROMPTS, context.budget // 2)), range(context.config.n_outputs)
        squares, changes, errors = [], [], {name: [] for name in (MODEL, *predictors)}
        for prompt, other in zip(context.chunks("tasks", n), context.chunks("other labels", n), strict=True):
            prediction = context.predict(prompt)
            exchanged = torch.stack([context.predict(_exchanged(prompt, other, m)) for m in tasks], -1)
            squares.append(prediction.square())
            changes.append((exchanged - prediction[..., None]).square())
            for name, parts in errors.items():
                answer = prediction if name == MODEL else predictors[name](prompt)
                parts.append((answer - prompt.y_q).square())
        return cls(_joined(squares), _joined(changes), {name: _joined(parts) for name, parts in errors.items()})


def _joined(parts: list[torch.Tensor]) -> np.ndarray:
    return torch.cat(parts).cpu().numpy()


def _rms(squares: Float[np.ndarray, "prompts"], of: Float[np.ndarray, "prompts"]) -> Estimate:
    """Root mean square, relative to that of others."""
    return shortened(ratio_of(squares, of).map(lambda ratio: float(np.sqrt(max(ratio, 0.0)))))


def _gamma(omega: Float[np.ndarray, "heads features"], task: MultiTaskRegression) -> float:
    """Root mean square of ω over the entries that do something: of size, on features that some task uses.

    Heads that look at other features only have rounding there; of them it is over all features.
    """
    size = np.abs(omega)
    used = size[:, (task.signal_scales > 0).any(1)]
    size = used if used.max() > MATTERS * size.max() else size
    return float(np.sqrt((size[size > MATTERS * size.max()] ** 2).mean()))


def _predictors(context: Context, task: MultiTaskRegression, gamma: float | None) -> dict[str, Predictor]:
    """Those that know the supports."""
    predictors: dict[str, Predictor] = {DEBIASED: gradient_descent(task, debiased=True), BAYES: bayes(task)}
    return predictors if gamma is None else {DEDICATED: _dedicated(context, task, gamma).predict, **predictors}


def _dedicated(context: Context, task: MultiTaskRegression, gamma: float) -> Circuits:
    """Two heads a task, with the μ that is best at γ on prompts of their own."""
    omega, _ = dedicated_heads(task, gamma)
    prompts = min(context.budget, TUNING_PROMPTS)
    mu, _ = dedicated_risks(task, gamma, context.chunks("dedicated heads", prompts))
    d, D = task.dim, task.dim + task.n_outputs
    KQ, OV = np.zeros((2, 1, len(omega), D, D))
    KQ[0, :, range(d), range(d)] = omega.T
    OV[0, :, range(d, D), range(d, D)] = mu.T
    return Circuits(KQ, OV, d, task.n_outputs)


def _exchanged(prompt: Prompt, other: Prompt, task: int) -> Prompt:
    """The labels of one task are another prompt's."""
    y = prompt.y.clone()
    y[..., task] = other.y[..., task]
    return replace(prompt, y=y)
