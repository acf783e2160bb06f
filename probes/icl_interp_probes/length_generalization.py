"""Does the model go on getting better with prompts longer than those of the training?  (arXiv 2503.12734, Figure 8.)

Softmax attention divides by the number of demonstrations itself, so what it learned at the training length is a step of
gradient descent at any length.  Linear attention learned the division too, at one length: its step grows with L, and
its risk turns up (Figure 8; for isotropic covariates R(L') = 1 + σ² − 2aL' + a²(L'² + (d(1 + σ²) + 1)L') with a = η/L).

All predictors answer the same prompts, and shorter prompts are the beginnings of longer ones, so that differences
between predictors and between lengths are paired.  Ridge and re-tuned GD know each length; all others are those of the
training length.  Cost: eight predictors on 8,192 prompts at nine lengths, a few seconds.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from icl_interp.errors import NumericsError
from icl_interp.estimators import (
    GradientDescent,
    Predictor,
    best_kernel,
    best_ridge,
    best_step,
    gradient_descent,
)
from icl_interp.probing import (
    Block,
    Cell,
    Context,
    Estimate,
    Lines,
    Need,
    NotApplicable,
    Table,
    Text,
    Threshold,
    Verdict,
    decide,
    judge,
    mean_of,
    not_applicable,
    probe,
    ratio_of,
    rounded,
    slope_of,
)
from icl_interp.tasks import LinearRegression, MultiTaskRegression, Prompt, Task
from icl_interp_probes.shown import KEPT, around, extreme, magnitude

FALLING, AS_GD = "arXiv 2503.12734, Figure 8", "arXiv 2503.12734, Figures 4 and 11"
FRACTIONS = (0.25, 0.375, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0, 2.5)  # of the training length
PROMPTS = 8_192
FEWEST = 200  # of so many prompts a 95 % interval covers the change of risk 93 % of the time, of a hundred 91 %

LEARNS = Threshold(
    "predicting zero is 1; two heads are at 0.22, one head at 0.37, untrained models above 0.97", high=0.9
)
FALLS = Threshold(
    "the paired difference of risks has to be negative beyond its error; the curves of planted and "
    "linear_attention lie on either side",
    high=0.0,
)
AS_DEBIASED_GD = Threshold(
    "at the worst length trained models are 1 to 2 % off, heads of the same sign 64 %; read between the curves of"
    " planted and same_sign",
    high=0.08,
)
MODEL, OWN_STEP = "model", "debiased GD with the model's η"
ONE_HEAD, LINEAR, RIDGE = "best single head", "linear attention", "ridge"
NAMES = (OWN_STEP, "debiased GD", "GD", "debiased GD, re-tuned", ONE_HEAD, LINEAR, RIDGE)
LANDMARKS = (ONE_HEAD, LINEAR, RIDGE)  # beside the model in the table; the picture has all


@dataclass(frozen=True, eq=False)
class LengthGeneralization:
    """Risk over lengths.

    Args:
        names: the model, then the predictors, in the order of the axis `predictors`.
        lengths: numbers of demonstrations; `trained` is the training length.
        risk, risk_half: mean squared error with its 95 % half-width; NaN where the model has no predictions.
        ratio, ratio_half: of the model's risk to that of debiased GD with the model's own η.
        change: the model's risk at the longest minus at the training length.
        learned: the model's risk at the training length relative to that of predicting zero.
        eta: the model's own η, the slope of its predictions on the direction of debiased GD at the training length.
        n_heads, n_outputs: of the model.
        prompts: for each number.
        seed: of the prompts.
    """

    names: tuple[str, ...]
    lengths: tuple[int, ...]
    trained: int
    risk: Float[np.ndarray, "predictors lengths"]
    risk_half: Float[np.ndarray, "predictors lengths"]
    ratio: Float[np.ndarray, "lengths"]
    ratio_half: Float[np.ndarray, "lengths"]
    change: Estimate
    learned: Estimate
    eta: Estimate
    n_heads: int
    n_outputs: int
    prompts: int
    seed: int


@probe(
    name="length_generalization",
    title="Does the model go on getting better with longer prompts than it was trained on?",
    needs=Need.FORWARD | Need.TASK | Need.ONE_LAYER,
    cost="a few seconds",
)
class LengthGeneralizationProbe:
    """Measures the model's mean squared error on prompts from a quarter to two and a half times as long as those of the
    training, beside predictors that learned at the training length as it did (gradient descent, debiased GD, one
    softmax head, linear attention) and predictors that know each length (re-tuned GD, ridge).
    """

    def run(self, context: Context) -> LengthGeneralization:
        """Tune at the training length, then measure every length on the same prompts."""
        task = context.task
        lengths = tuple(sorted({max(round(fraction * task.length), 1) for fraction in FRACTIONS}))
        prompts = context.holdable(min(context.budget, max(PROMPTS, context.budget // 4)))
        tuning = context.sample("tuning", prompts, length=lengths[-1])
        try:
            eta = _own_step(context, tuning.beginning(task.length))
            predictors = _predictors(context, tuning, eta.value, lengths)
            zero, errors = _squared_errors(context, predictors, lengths, prompts)
        except NumericsError as error:
            raise NotApplicable(f"the model has no predictions on prompts like the training's: {error}") from error
        names = (MODEL, *NAMES)
        at, own = lengths.index(task.length), names.index(OWN_STEP)
        risks = [[mean_of(row) for row in rows] for rows in errors]
        ratios = [ratio_of(model, gd) for model, gd in zip(errors[0], errors[own], strict=True)]
        return LengthGeneralization(
            names=names,
            lengths=lengths,
            trained=task.length,
            risk=rounded([[e.value for e in row] for row in risks], KEPT),
            risk_half=rounded([[e.half for e in row] for row in risks], KEPT),
            ratio=rounded([e.value for e in ratios], KEPT),
            ratio_half=rounded([e.half for e in ratios], KEPT),
            change=mean_of(errors[0, -1] - errors[0, at]),
            learned=ratio_of(errors[0, at], zero),
            eta=eta,
            n_heads=context.config.n_heads,
            n_outputs=context.config.n_outputs,
            prompts=prompts,
            seed=context.seed,
        )

    def blocks(self, result: LengthGeneralization) -> list[Block]:
        """Risk against length; how far the model is from debiased GD at each; how it was measured."""
        least = result.lengths[int(np.nan_to_num(result.risk[0], nan=np.inf).argmin())]
        return [
            Lines(
                np.array(result.lengths, dtype=float),
                rounded(result.risk),
                result.names,
                alt="Risk against the number of demonstrations, for the model and the predictors; all but ridge and "
                "re-tuned GD are those of the training length.",
                title=f"Risk against length, trained at L = {result.trained}",
                x_label="demonstrations",
                y_label="risk",
                low=rounded(result.risk - result.risk_half),
                high=rounded(result.risk + result.risk_half),
            ),
            Table(
                ("L", "model", f"model / {OWN_STEP}", *LANDMARKS),
                tuple(self._rows(result)),
                alt="Risk by number of demonstrations: the model, its ratio to debiased GD, and other predictors.",
                title="Risk at each length",
            ),
            Text(
                f"The model's risk is least at L = {least} of these lengths. Its own η is {result.eta}, the slope of "
                "its predictions on debiased GD's direction at the training length. The other predictors are at their "
                "best for the task at the training length, ridge and re-tuned GD at each length; linear attention is "
                f"GD whose step grows with the length. {result.prompts:,} prompts, seed {result.seed}; shorter prompts "
                "are the beginnings of longer ones."
            ),
        ]

    def judge(self, result: LengthGeneralization) -> list[Verdict]:
        """Does the risk go on falling, and as that of debiased GD does?"""
        return [_falls(result), _as_debiased_gd(result)]

    @staticmethod
    def _rows(result: LengthGeneralization) -> list[tuple[Cell, ...]]:
        ratios = (around(*ratio, "prompts") for ratio in zip(result.ratio, result.ratio_half, strict=True))
        model = (around(*risk, "prompts") for risk in zip(result.risk[0], result.risk_half[0], strict=True))
        others = rounded([result.risk[result.names.index(name)] for name in LANDMARKS]).T.tolist()
        return [(*row, *values) for *row, values in zip(result.lengths, model, ratios, others, strict=True)]


def _falls(result: LengthGeneralization) -> Verdict:
    claim, longest = "risk_falls_with_length", result.lengths[-1]
    trained = result.lengths.index(result.trained)
    there = {name: float(risk) for name, risk in zip(result.names, result.risk[:, -1], strict=True)}
    sentence = (
        f"From L = {result.trained}, the training length, to {longest} the risk goes from "
        f"{result.risk[0, trained]:.4g} to {there[MODEL]:.4g}; linear attention's would go to {there[LINEAR]:.4g}, "
        f"ridge's to {there[RIDGE]:.4g}."
    )
    return _unless_unlearned(result, judge(claim, FALLING, result.change, FALLS, sentence))


def _as_debiased_gd(result: LengthGeneralization) -> Verdict:
    claim = "generalizes_as_debiased_gd"
    if result.n_outputs > 1 or result.n_heads == 1:
        what = f"one response; this model has {result.n_outputs}" if result.n_outputs > 1 else ""
        return not_applicable(claim, AS_GD, f"the claim is about {what or 'several heads; this model has one'}")
    ratios = zip(result.lengths, result.ratio, result.ratio_half, strict=True)
    off = {length: magnitude(around(ratio - 1, half, "prompts")) for length, ratio, half in ratios if ratio == ratio}
    if not off:
        return not_applicable(claim, AS_GD, "the model's predictions are not finite")
    worst = max(off, key=lambda length: off[length].value)
    lost = ", ".join(str(length) for length in result.lengths if length not in off)
    sentence = (
        f"The model's risk is furthest from that of debiased GD with its own η = {result.eta.value:.4g} at L = "
        f"{worst}: {result.ratio[result.lengths.index(worst)]:.4g} times as large."
    )
    if lost:
        sentence += f" At L = {lost} the model has no predictions for some prompts."
    return _unless_unlearned(result, judge(claim, AS_GD, extreme(max, list(off.values())), AS_DEBIASED_GD, sentence))


def _unless_unlearned(result: LengthGeneralization, verdict: Verdict) -> Verdict:
    """The verdict, where there is something that could generalise, and prompts enough to tell.

    The risk of what ignores its prompts falls with their length too, for the noise that it picks up averages out.
    """
    if result.prompts < FEWEST:
        reason = f"{result.prompts} prompts are too few to tell: it takes {FEWEST}."
        return replace(verdict, status="inconclusive", sentence=reason)
    learned = decide(LEARNS, result.learned)
    if learned == "holds":
        return verdict
    reason = f"at the training length the model's risk is {result.learned.value:.3g} times that of predicting zero"
    if learned == "inconclusive":
        return replace(
            verdict, status="inconclusive", sentence=f"It is not sure that there is anything to tell: {reason}."
        )
    return not_applicable(verdict.claim, verdict.source, f"there is nothing that could generalise: {reason}")


def _own_step(context: Context, prompt: Prompt) -> Estimate:
    """Slope of the model's predictions on the direction of debiased GD."""
    parts = (context.predict(prompt), GradientDescent(context.shape, debiased=True)(prompt))
    prediction, direction = (part.cpu().numpy().ravel() for part in parts)
    return slope_of(prediction, direction)


def _predictors(context: Context, tuning: Prompt, eta: float, lengths: tuple[int, ...]) -> list[tuple[Predictor, ...]]:
    """What is compared with at each length, in the order of `NAMES`."""
    task, L = context.task, context.task.length
    at_training = tuning.beginning(L)
    vanilla, debiased = (_descent(task, tuning, L, debiased=flag) for flag in (False, True))
    own = GradientDescent(context.shape, debiased=True).times(eta if np.isfinite(eta) else 0.0)
    head, ridge = best_kernel(at_training, scaled=True, task=task), best_ridge(task, at_training)
    return [
        (
            own,
            debiased,
            vanilla,
            _descent(task, tuning, length, debiased=True),
            head,
            vanilla.times(length / L),  # Σ y x, where GD has the mean: at L it is GD
            ridge,
        )
        for length in lengths
    ]


def _descent(task: Task, tuning: Prompt, length: int, *, debiased: bool) -> GradientDescent:
    """One step that is optimal at this length: in closed form where there is one, else on prompts."""
    if isinstance(task, MultiTaskRegression) or (isinstance(task, LinearRegression) and task.centred):
        return gradient_descent(task, debiased=debiased, length=length)
    return best_step(GradientDescent(1.0, debiased), tuning.beginning(length))


def _squared_errors(
    context: Context, predictors: list[tuple[Predictor, ...]], lengths: tuple[int, ...], prompts: int
) -> tuple[Float[np.ndarray, "prompts"], Float[np.ndarray, "predictors lengths prompts"]]:
    """Of predicting zero; and of the model and the predictors at each length."""
    chunks: list[np.ndarray] = []
    zero: list[np.ndarray] = []
    for drawn in context.chunks("lengths", prompts, length=lengths[-1]):
        rows: list[list[np.ndarray]] = []
        for length, known in zip(lengths, predictors, strict=True):
            prompt = drawn.beginning(length)
            predictions = [_predicted(context, prompt), *(predict(prompt) for predict in known)]
            rows.append([(p - prompt.y_q).square().mean(-1).cpu().numpy() for p in predictions])
        chunks.append(np.array(rows).swapaxes(0, 1))
        zero.append(drawn.y_q.square().mean(-1).cpu().numpy())
    return np.concatenate(zero), np.concatenate(chunks, axis=-1)


def _predicted(context: Context, prompt: Prompt) -> Float[Tensor, "batch outputs"]:
    """The model's predictions; NaN at a length, other than the training's, where it has none for some prompts."""
    try:
        return context.predict(prompt)
    except NumericsError:
        if prompt.length == context.task.length:
            raise
        return torch.full_like(prompt.y_q, torch.nan)
