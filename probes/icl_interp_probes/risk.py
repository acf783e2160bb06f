"""How well does the model predict, and which algorithm is it?  (arXiv 2503.12734, Observation 3, (4.10)–(4.11).)

The model and the classical predictors answer the *same* prompts, so that differences of risk carry paired errors.
Every predictor is tuned once, at the training length, as the model was; ridge needs no tuning where it is the Bayes
predictor.  Of several responses, each of some of the features (section 5.4), GD and ridge read each response's own
features; risks are means over the responses.

Risk alone cannot tell algorithms apart: vanilla and debiased GD differ by 1.3 % in it.  So the model is also compared
as a *function*: the distance to a predictor g is the least rms of (f − c·g) over c, relative to the rms of f, on
training-like prompts and on prompts whose covariates have a mean, where vanilla GD goes astray and debiased GD does
not.  Cost: six predictors on the budget's prompts at each length, a few seconds.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float

from icl_interp.estimators import (
    GradientDescent,
    KernelRegressor,
    Predictor,
    SupportRidge,
    best_kernel,
    best_ridge,
    best_step,
    gradient_descent,
)
from icl_interp.probing import (
    DECISIVE,
    Block,
    Context,
    Estimate,
    Lines,
    Need,
    Table,
    Text,
    Threshold,
    Verdict,
    judge,
    mean_of,
    not_applicable,
    probe,
    ratio_of,
)
from icl_interp.tasks import LinearRegression, MultiTaskRegression, Prompt, Task
from icl_interp_probes.shown import around

PAPER = "arXiv 2503.12734"
LENGTHS = (10, 20, 40, 60, 100)
TUNING_PROMPTS = 16_384
SHIFT = 1.0  # length of the mean that shifted covariates get, in units of the root mean square of one coordinate

BELOW_ONE_HEAD = Threshold(
    "the paired difference of risks has to be negative beyond its error; the curves of planted and same_sign lie "
    "on either side",
    high=0.0,
)
RISK_RATIO = Threshold(
    "trained multi-head models end 0.2 to 1.5 % above debiased GD, one head 65 % above; read between the curves "
    "of planted and almost_gd",
    low=0.95,
    high=1.05,
)
DISTANCE = Threshold(
    "trained models are 0.03 to 0.10 from debiased GD, one head 0.8, an untrained model nearly 1; read between "
    "the curves of planted and almost_gd",
    high=0.15,
)
MODEL, DEBIASED, ONE_HEAD = "model", "debiased GD", "one positive head"


@dataclass(frozen=True, eq=False)
class Risk:
    """Risks over lengths, and distances as functions.

    Args:
        names: the model, then the predictors, in the order of every axis `predictors`.
        described: each predictor with its parameters.
        lengths: numbers of demonstrations; `trained` is the training length.
        risk: mean squared error with its 95 % half-width over prompts.
        excess: the model's risk minus each predictor's on the same prompts, with its half-width.
        ratio: the model's risk over debiased GD's at the training length.
        distance: of the model to each predictor, on training-like prompts.
        distance_shifted: the same on shifted covariates; empty for tasks without a mean to shift.
        scale: the factor c that each predictor needs to come closest.
        margin: (f − c·g)² of each other predictor minus debiased GD's, relative to f², the lower of the two sets.
        several_heads: whether claims about several heads apply.
        n_outputs: N, responses.
        prompts: for each number.
    """

    names: tuple[str, ...]
    described: tuple[str, ...]
    lengths: tuple[int, ...]
    trained: int
    risk: Float[np.ndarray, "predictors lengths"]
    risk_half: Float[np.ndarray, "predictors lengths"]
    excess: Float[np.ndarray, "predictors lengths"]
    excess_half: Float[np.ndarray, "predictors lengths"]
    ratio: Estimate
    distance: tuple[Estimate, ...]
    distance_shifted: tuple[Estimate, ...]
    scale: Float[np.ndarray, "predictors"]
    margin: tuple[Estimate, ...]
    several_heads: bool
    n_outputs: int
    prompts: int


@probe(
    name="risk",
    title="How does the model compare with classical predictors, and which of them is it?",
    needs=Need.FORWARD | Need.TASK | Need.ONE_LAYER,
    cost="about ten seconds",
)
class RiskProbe:
    """Compares the model's mean squared error with that of classical predictors on the same sampled prompts, at several
    numbers of demonstrations, and measures how far the model is from each of them as a function.  Every predictor is at
    its best for the task at the training length.
    """

    def run(self, context: Context) -> Risk:
        """Tune, then measure everything on fresh prompts."""
        task = context.task
        predictors = _predictors(task, context.sample("tuning", context.holdable(min(context.budget, TUNING_PROMPTS))))
        lengths = tuple(sorted({*LENGTHS, task.length}))
        errors = [_squared_errors(context, predictors, length) for length in lengths]  # each (predictors, prompts)
        at_training = errors[lengths.index(task.length)]
        measured = [[mean_of(row) for row in rows] for rows in errors]
        differences = [[mean_of(rows[0] - row) for row in rows] for rows in errors]

        sets = [_Distances.measure(context, predictors, context.chunks("distance"))]
        if isinstance(task, LinearRegression):
            sets.append(_Distances.measure(context, predictors, context.chunks("shifted", task=_shifted(task))))
        reference = list(predictors).index(DEBIASED)
        margins = [
            min((s.margin(other, reference) for s in sets), key=lambda margin: margin.low)
            for other in range(len(predictors))
        ]
        return Risk(
            names=(MODEL, *predictors),
            described=tuple(_describe(p) for p in predictors.values()),
            lengths=lengths,
            trained=task.length,
            risk=_values(measured),
            risk_half=_halves(measured),
            excess=_values(differences),
            excess_half=_halves(differences),
            ratio=ratio_of(at_training[0], at_training[1 + reference]),
            distance=sets[0].all(),
            distance_shifted=sets[1].all() if len(sets) > 1 else (),
            scale=sets[0].scale,
            margin=tuple(margins),
            several_heads=context.config.n_heads > 1,
            n_outputs=context.config.n_outputs,
            prompts=context.budget,
        )

    def blocks(self, result: Risk) -> list[Block]:
        """Risk and distance at the training length; risk at every length; what else tells the predictors apart."""
        at = result.lengths.index(result.trained)
        risks = [
            [around(r, h, "prompts") for r, h in zip(*row, strict=True)]
            for row in zip(result.risk, result.risk_half, strict=True)
        ]
        excess = [around(e, h, "prompts") for e, h in zip(result.excess[:, at], result.excess_half[:, at], strict=True)]
        summary = {
            "predictor": result.names,
            "risk": [row[at] for row in risks],
            "model's risk − its risk": [None, *excess[1:]],
            "distance": [None, *result.distance],
        }
        details = {"predictor": result.names[1:], "parameters": result.described, "scale": map(float, result.scale)}
        if result.distance_shifted:
            details["distance, shifted x"] = result.distance_shifted
        return [
            Table(
                tuple(summary),
                tuple(zip(*summary.values(), strict=True)),
                alt="Risk of the model and the classical predictors, and the model's paired difference and distance.",
                title=f"Risk at L = {result.trained}",
                first_screen=True,
            ),
            Lines(
                np.array(result.lengths, dtype=float),
                result.risk,
                result.names,
                alt="Risk against the number of demonstrations, for the model and the classical predictors.",
                title="Risk against length",
                x_label="demonstrations",
                y_label="risk",
                low=result.risk - result.risk_half,
                high=result.risk + result.risk_half,
            ),
            Table(
                ("predictor", *(f"L = {length}" for length in result.lengths)),
                tuple((name, *row) for name, row in zip(result.names, risks, strict=True)),
                alt="Risk by predictor and number of demonstrations.",
                title="Risk at each length",
            ),
            Table(
                tuple(details),
                tuple(zip(*details.values(), strict=True)),
                alt="Each predictor's parameters, the factor that brings it closest, and its distance on shifted x.",
                title="Predictors",
            ),
            Text(
                f"{result.prompts:,} prompts a number, the same for all predictors; differences are paired. Distance: "
                "least rms of (model − c·predictor) over c, relative to the model's rms; scale is that c."
                + (f" Risks are means over {result.n_outputs} responses." if result.n_outputs > 1 else "")
            ),
        ]

    def judge(self, result: Risk) -> list[Verdict]:
        """Below one head; as good as debiased GD; and closest to it."""
        source = f"{PAPER}, Observation 3"
        if result.n_outputs > 1 or not result.several_heads:
            what = f"one response; this model has {result.n_outputs}" if result.n_outputs > 1 else ""
            reason = f"the claim is about {what or 'several heads; this model has one'}"
            return [
                not_applicable(claim, source, reason)
                for claim in ("below_one_head_optimum", "risk_of_debiased_gd", "function_of_debiased_gd")
            ]
        at, one = result.lengths.index(result.trained), result.names.index(ONE_HEAD)
        below = around(result.excess[one, at], result.excess_half[one, at], "prompts")
        risks = f"risk {result.risk[0, at]:.4f}, the best single head's {result.risk[one, at]:.4f}"
        return [
            judge("below_one_head_optimum", source, below, BELOW_ONE_HEAD, f"At L = {result.trained}: {risks}."),
            judge(
                "risk_of_debiased_gd",
                source,
                result.ratio,
                RISK_RATIO,
                f"The model's risk is {result.ratio.value:.4f} times debiased GD's on the same prompts.",
            ),
            self._algorithm(result, source),
        ]

    def _algorithm(self, result: Risk, source: str) -> Verdict:
        names = result.names[1:]
        reference = names.index(DEBIASED)
        sets = [s for s in (result.distance, result.distance_shifted) if s]
        worst = max((s[reference] for s in sets), key=lambda e: e.value)
        nearest = [names[int(np.argmin([e.value for e in s]))] for s in sets]
        where = ("training-like prompts", "shifted covariates")
        found = "; ".join(f"on {w} {n} is nearest" for w, n in zip(where, nearest, strict=False))
        sentence = f"The model is {worst.value:.3f} of its rms from debiased GD at worst; {found}."
        verdict = judge("function_of_debiased_gd", source, worst, DISTANCE, sentence)
        margins = (m.stretched(DECISIVE) for i, m in enumerate(result.margin) if i != reference)
        closer = min(margins, key=lambda margin: margin.low)
        if verdict.status != "holds" or closer.low > 0:
            return verdict
        # Near it, but another predictor is nearer, or as near as can be told.
        return replace(verdict, status="fails" if closer.high < 0 else "inconclusive")


@dataclass(frozen=True, eq=False)
class _Distances:
    """Predictions of the model and, scaled to come closest, of each predictor."""

    model: Float[np.ndarray, "numbers"]
    missed: Float[np.ndarray, "predictors numbers"]
    scale: Float[np.ndarray, "predictors"]

    @classmethod
    def measure(cls, context: Context, predictors: dict[str, Predictor], prompts: Iterable[Prompt]) -> _Distances:
        chunks = [[context.predict(p), *(predict(p) for predict in predictors.values())] for p in prompts]
        f, *g = np.concatenate([np.stack([v.cpu().numpy().ravel() for v in c]) for c in chunks], axis=1)
        g = np.array(g)
        energy = (g**2).sum(1)
        # Never below zero: to go a predictor's way backwards is not to be like it.
        scale = np.maximum(np.divide(g @ f, energy, out=np.zeros_like(energy), where=energy > 0), 0.0)
        return cls(f, (f - scale[:, None] * g) ** 2, scale)

    def all(self) -> tuple[Estimate, ...]:
        return tuple(self._relative(missed).map(lambda v: float(np.sqrt(max(v, 0.0)))) for missed in self.missed)

    def margin(self, other: int, reference: int) -> Estimate:
        return self._relative(self.missed[other] - self.missed[reference])

    def _relative(self, energy: np.ndarray) -> Estimate:
        if not self.model.any():
            return Estimate(np.nan, -np.inf, np.inf, "prompts")
        return ratio_of(energy, self.model**2)


def _predictors(task: Task, tuning: Prompt) -> dict[str, Predictor]:
    """The classical predictors, at their best for `task` at its own length."""
    if isinstance(task, MultiTaskRegression) or (isinstance(task, LinearRegression) and task.centred):
        vanilla, debiased = (gradient_descent(task, debiased=flag) for flag in (False, True))
    else:  # no closed form: tune the step on prompts
        vanilla, debiased = (best_step(GradientDescent(1.0, flag), tuning) for flag in (False, True))
    head = best_kernel(tuning, scaled=True, task=task)
    return {
        "GD": vanilla,
        DEBIASED: debiased,
        "ridge": best_ridge(task, tuning),
        "kernel": best_kernel(tuning, scaled=False, task=task),
        ONE_HEAD: head,
        # The mirror image has the same risk and is another function: it counts the mean label the other way round.
        "one negative head": KernelRegressor(-head.omega, -head.mu),
    }


def _shifted(task: LinearRegression) -> LinearRegression:
    size = SHIFT * np.sqrt(np.trace(task.sigma) / task.dim) / np.sqrt(task.dim)
    return task.shifted(task.mean_vector + size)


def _squared_errors(context: Context, predictors: dict[str, Predictor], length: int) -> np.ndarray:
    chunks = []
    for prompt in context.chunks(f"risk at {length}", length=length):
        predictions = [context.predict(prompt), *(predict(prompt) for predict in predictors.values())]
        chunks.append(np.stack([(p - prompt.y_q).square().mean(-1).cpu().numpy() for p in predictions]))
    return np.concatenate(chunks, axis=1)


def _describe(predictor: object) -> str:
    if isinstance(predictor, SupportRidge):
        learned = "from all responses jointly" if predictor.task.shared_signal else "on each support"
        return f"Bayes {learned}, penalty {_joined(predictor.penalties)}"
    if isinstance(predictor, GradientDescent):
        gamma = np.asarray(predictor.preconditioner)
        if gamma.ndim == 3:  # one for each response, the same step on all its features
            return f"step {_joined(gamma.max((1, 2)))} on each support"
        diagonal = gamma if gamma.ndim == 0 else gamma[0, 0]
        scalar = gamma.ndim == 0 or np.allclose(gamma, diagonal * np.eye(len(gamma)))
        return (
            f"step {float(diagonal):.4g}"
            if scalar
            else f"preconditioner with mean diagonal {np.diag(gamma).mean():.4g}"
        )
    fields = vars(predictor)
    return ", ".join(f"{name} {value:.4g}" for name, value in fields.items())


def _joined(numbers: Iterable[float]) -> str:
    """Each number once, in order."""
    return ", ".join(dict.fromkeys(f"{number:.4g}" for number in numbers))


def _values(by_length: list[list[Estimate]]) -> np.ndarray:
    return np.array([[e.value for e in row] for row in by_length]).T


def _halves(by_length: list[list[Estimate]]) -> np.ndarray:
    return np.array([[e.half for e in row] for row in by_length]).T
