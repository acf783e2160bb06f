"""Which learning rate do ω and μ make under another activation?  (arXiv 2503.12734, section 5.2, Figures 9–11.)

With weights f(C s_ℓ)/Σ f(C s), heads of small scores make, to first order, one step of debiased GD of η = C′ Σ ωμ with
C′ = C·f′(0)/f(0) (5.2).  Held against that: the slope of the predictions on debiased GD's direction, and the risk next
to that of debiased GD at this η on the same prompts (Figure 11).  Linear attention makes a step of plain GD, C′ = L·C.

Beyond first order heads gain C·E f′(Cs)/E f(Cs), by Stein's lemma over the demonstrations of one query.  That is C′ at
every query for eˣ and for 1 + Cx; for (1 + Cx)² and 1 + tanh(Cx) it shrinks with ‖x_q‖.  Models trained with those make
good use of it: their η of about 1.01 is η* = 0.88 as a function, and their risk is below debiased GD's at any step: the
curves of Figure 11 do not overlap.  1 + Cx and 1 + tanh(Cx) are safe while denominators stay away from zero.

ω and μ are those of the checkpoint's weights, because what they are held against is the same checkpoint.  Cost: one
pass over the budget's prompts at each length.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from icl_interp.activations import NEAR_ZERO, activation
from icl_interp.circuits import Circuits
from icl_interp.errors import NumericsError
from icl_interp.estimators import GradientDescent
from icl_interp.manifold import optimal_step
from icl_interp.probing import (
    Block,
    Cell,
    Context,
    Equation,
    Estimate,
    Lines,
    Need,
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
    share_of,
    slope_of,
)
from icl_interp.roles import along
from icl_interp.tasks import Prompt
from icl_interp_probes.kernel_fit import PAPER
from icl_interp_probes.shown import around

RATE = r"\eta = C' \sum_h \omega_h \mu_h, \qquad C' = C\, f'(0) / f(0) \ \text{ or, without normalisation, } \ L\, C"
RATE_IN_WORDS = "η is C′ times the sum of ω times μ; C′ is C f′(0)/f(0), for linear attention L times C."
FRACTIONS = (0.25, 0.5, 1.0, 1.5, 2.5)  # lengths, of the training's: 10, 20, 40, 60, 100 in the main setting
FEWEST = 1_000  # prompts to conclude anything from: squared errors have heavy tails
RARE = 1 / 2_000  # of prompts; so few can be told from none on half of the default first look's
TOO_SMALL = 0.1  # a denominator; a head's weights are ten times there what they are on average
LEVELS = (0.0, RARE, 0.001, 0.01, 0.5)  # at which denominators are shown

AS_SLOPE = Threshold(
    "trained models with eˣ and 1 + Cx, and linear ones, are within 0.7 % of the formula; those with (1 + Cx)² "
    "and 1 + tanh x are 12 to 13 % below it; read between the curves of planted_activation and "
    "shrinking_activation",
    0.95,
    1.05,
)
AS_RISK = Threshold(
    "trained models with eˣ and 1 + Cx, and linear ones, are 0.1 to 0.4 % above GD; those with (1 + Cx)² and 1 + "
    "tanh x are 7 to 10 % below; read between the curves of planted_activation and shrinking_activation",
    0.97,
    1.03,
)
SAFE = Threshold(
    "trained models stay above 0.56 on all of 32,768 prompts: five times what is too small; read between the "
    "curves of planted_activation and unsafe_denominators",
    high=RARE,
)


@dataclass(frozen=True, eq=False)
class ActivationRate:
    """η under the model's activation, by (5.2) and as a function; risks at that η; denominators.

    Args:
        activation, formula, scale: f by name, in mathematics, and its C.
        normalised: whether weights are divided by their sum; linear attention's are not.
        slope: C′.
        omega, mu: of each head, from the weights.
        why_not: why η does not describe this model; empty where it does.
        eta: C′ Σ ωμ.
        eta_function: slope of the predictions on the direction of GD, debiased if `normalised`.
        eta_gain: what that slope should be with each prompt's own gain, C Σ ωμ·mean f′/mean f, in place of C′ Σ ωμ.
        eta_star: the step that is best for debiased GD; None where it has no closed form, or the model is not debiased.
        names: the model, then GD of several steps, in the order of the axis `predictors`.
        lengths: numbers of demonstrations; `trained` is the training's.
        risk, risk_half: mean squared error and its 95 % half-width over prompts.
        ratio: the model's risk over that of GD at η, at each length.
        denominators: of each head, mean f(Cs)/f(0) at `LEVELS`; empty without normalisation.
        unsafe: the share of prompts with a denominator below 0.1, of any head; None without normalisation.
        undefined: prompts of the training length without a prediction, which every other number leaves out.
        prompts: for each number.
    """

    activation: str
    formula: str
    scale: float
    normalised: bool
    slope: float
    omega: Float[np.ndarray, "heads"]
    mu: Float[np.ndarray, "heads"]
    why_not: str
    eta: float
    eta_function: Estimate
    eta_gain: Estimate
    eta_star: float | None
    names: tuple[str, ...]
    lengths: tuple[int, ...]
    trained: int
    risk: Float[np.ndarray, "predictors lengths"]
    risk_half: Float[np.ndarray, "predictors lengths"]
    ratio: tuple[Estimate, ...]
    denominators: Float[np.ndarray, "heads levels"]
    unsafe: Estimate | None
    undefined: int
    prompts: int


@probe(
    name="activation",
    title="Which learning rate do ω and μ make under this activation, and are its denominators safe?",
    needs=Need.WEIGHTS | Need.FORWARD | Need.TASK | Need.ONE_LAYER,
    cost="about ten seconds",
)
class ActivationProbe:
    """Computes the effective learning rate that ω and μ make to first order under the model's activation, and compares
    it with the slope of the predictions on the direction of gradient descent, and the model's risk with that of
    gradient descent at this rate; measures how small the denominators of the attention weights get.
    """

    def run(self, context: Context) -> ActivationRate:
        """η, then the slope and the denominators on one set of prompts, then risks at each length."""
        context.single_response()
        circuits, task = context.circuits, context.task
        f = activation(circuits.activation)
        slope = circuits.slope * (1 if f.normalised else task.length)
        omega = np.diagonal(along(context.shape, circuits.KQ_11[0]), axis1=-2, axis2=-1).mean(-1)
        mu = circuits.mu[0, :, 0]
        eta, star = slope * float(omega @ mu), optimal_step(task) if f.normalised else None
        direction = GradientDescent(context.shape, debiased=f.normalised)
        seen = _Seen.measure(context, circuits, direction, omega * mu)
        function = slope_of(seen.prediction, seen.direction)
        steps = {"η of ω and μ": eta, "η as a function": function.value} | ({} if star is None else {"η*": star})
        lengths = tuple(sorted({max(round(fraction * task.length), 1) for fraction in FRACTIONS}))
        errors = [_squared_errors(context, circuits, [direction.times(s) for s in steps.values()], n) for n in lengths]
        risks = [[mean_of(row) for row in rows] for rows in errors]
        return ActivationRate(
            activation=f.name,
            formula=f.formula,
            scale=circuits.activation_scale,
            normalised=f.normalised,
            slope=slope,
            omega=omega,
            mu=mu,
            why_not=_why_not(context, f.normalised),
            eta=eta,
            eta_function=function,
            eta_gain=ratio_of(seen.gain * seen.direction**2, seen.direction**2),
            eta_star=star,
            names=("model", *(f"{'debiased ' * f.normalised}GD, {name}" for name in steps)),
            lengths=lengths,
            trained=task.length,
            risk=np.array([[e.value for e in row] for row in risks]).T,
            risk_half=np.array([[e.half for e in row] for row in risks]).T,
            ratio=tuple(ratio_of(rows[0], rows[1]) for rows in errors),
            denominators=np.quantile(seen.denominators, LEVELS, axis=0).T.round(5)
            if f.normalised
            else np.empty((0, 5)),
            unsafe=_unsafe(seen.denominators.min(1)) if f.normalised else None,
            undefined=seen.undefined,
            prompts=context.budget,
        )

    def blocks(self, result: ActivationRate) -> list[Block]:
        """Table 1's numbers; risk against length beside GD's; denominators."""
        blocks: list[Block] = [Equation(RATE, RATE_IN_WORDS), _rates(result), _risks(result), _risk_table(result)]
        if result.normalised:
            blocks.append(_denominators(result))
        note = f" On {result.undefined:,} of them the model has no prediction; they are left out." * bool(
            result.undefined
        )
        blocks.append(
            Text(
                f"f(x) = {result.formula}, C = {result.scale:g}. {result.prompts:,} prompts a number, the same for all "
                f"predictors; ω and μ are those of the checkpoint's weights.{note}"
            )
        )
        return blocks

    def judge(self, result: ActivationRate) -> list[Verdict]:
        """η as (5.2) says; risk as GD's at that η; denominators away from zero."""
        return [
            self._judge(result, "effective_rate_as_slope", f"{PAPER}, (5.2) and Table 1", _rate),
            self._judge(result, "risk_as_gd_at_that_rate", f"{PAPER}, Figure 11", _risk),
            _safe(result),
        ]

    def _judge(
        self, result: ActivationRate, claim: str, source: str, conclude: Callable[[ActivationRate], _Conclusion]
    ) -> Verdict:
        if result.prompts < FEWEST:
            few = f"{result.prompts} prompts are too few to tell; {FEWEST:,} are wanted."
            return Verdict(claim, source, "inconclusive", few)
        if result.why_not:
            return not_applicable(claim, source, result.why_not)
        return judge(claim, source, *conclude(result))


_Conclusion = tuple[Estimate, Threshold, str]


def _rate(result: ActivationRate) -> _Conclusion:
    ratio = result.eta_function.map(lambda value: value / result.eta)
    sentence = (
        f"As a function the step is {result.eta_function}; to first order ω and μ make it {result.eta:.4f}, a ratio of "
        f"{ratio.value:.4f}."
    )
    if decide(AS_SLOPE, ratio) == "fails":
        sentence += f" With the gain of each prompt, which shrinks or grows with ‖x_q‖, it would be {result.eta_gain}."
    return ratio, AS_SLOPE, sentence


def _risk(result: ActivationRate) -> _Conclusion:
    at = result.lengths.index(result.trained)
    ratio, kind = result.ratio[at], "debiased GD" if result.normalised else "GD"
    better = ": the model is better" if ratio.high < AS_RISK.low else ""
    if better and result.risk[0, at] < result.risk[1:, at].min():
        better += f", also than {kind} at the other steps"
    sentence = (
        f"At L = {result.trained} the model's risk is {result.risk[0, at]:.4f}, that of {kind} with η = "
        f"{result.eta:.4f} is {result.risk[1, at]:.4f}, a ratio of {ratio.value:.4f}{better}."
    )
    return ratio, AS_RISK, sentence


def _safe(result: ActivationRate) -> Verdict:
    claim, source = "denominators_safe", f"{PAPER}, section 5.2"
    if result.unsafe is None:
        return not_applicable(claim, source, "linear attention is not normalised: it has no denominator")
    if result.activation == "softmax":
        return not_applicable(claim, source, "eˣ is positive, and softmax does not see what all scores have in common")
    smallest, count = float(result.denominators[:, 0].min()), round(result.unsafe.value * result.prompts)
    sentence = (
        f"The smallest denominator on {result.prompts:,} prompts is {smallest:.3f} of that at scores of zero; "
        f"{count:,} have one below {TOO_SMALL:g}."
    )
    if smallest <= 0:  # no estimate is needed: denominators are continuous, and between this one and 1 lies zero
        sentence = f"A denominator of {smallest:.3f} was met on {result.prompts:,} prompts: they pass through zero."
        return Verdict(claim, source, "fails", sentence, result.unsafe, SAFE)
    return judge(claim, source, result.unsafe, SAFE, sentence)


# --- What is shown ----------------------------------------------------------------------------------------------------


def _rates(result: ActivationRate) -> Table:
    rows: list[tuple[str, Cell]] = [
        ("C′", result.slope),
        *((f"ω of head {h}", float(value)) for h, value in enumerate(result.omega)),
        *((f"μ of head {h}", float(value)) for h, value in enumerate(result.mu)),
        ("η = C′ Σ ωμ", result.eta),
        ("η as a function: slope of the predictions", result.eta_function),
        ("what that should be with each prompt's own gain", result.eta_gain),
    ]
    if result.eta_star is not None:
        rows.append(("η*, the best step of debiased GD", result.eta_star))
    return Table(
        ("quantity", "value"),
        tuple(rows),
        alt="The effective learning rate, by formula and as a function.",
        title="Rate",
    )


def _risks(result: ActivationRate) -> Lines:
    return Lines(
        np.array(result.lengths, dtype=float),
        result.risk.round(5),
        result.names,
        alt="Risk against the number of demonstrations: the model and gradient descent with several steps.",
        title="Risk against length",
        x_label="demonstrations",
        y_label="risk",
    )


def _risk_table(result: ActivationRate) -> Table:
    rows: list[tuple[Cell, ...]] = [
        (name, *(around(r, h, "prompts") for r, h in zip(risks, halves, strict=True)))
        for name, risks, halves in zip(result.names, result.risk, result.risk_half, strict=True)
    ]
    return Table(
        ("predictor", *(f"L = {length}" for length in result.lengths)),
        (*rows, ("ratio of the first two, paired", *result.ratio)),
        alt="Risk by predictor and number of demonstrations, and the model's relative to that of GD at its own rate.",
        title="Risk at each length",
    )


def _denominators(result: ActivationRate) -> Table:
    return Table(
        ("head", "smallest", "1 prompt in 2,000", "1 in 1,000", "1 in 100", "median"),
        tuple((h, *map(float, row)) for h, row in enumerate(result.denominators)),
        alt="How small each head's denominator gets over prompts, relative to its value at scores of zero.",
        title="Denominators, mean f(Cs)/f(0): what so many prompts fall below",
    )


# --- Measurements -----------------------------------------------------------------------------------------------------


def _why_not(context: Context, normalised: bool) -> str:
    """Why η does not speak of this model: it is about heads that attend along G, in opposite pairs if normalised."""
    try:
        heads = context.heads
    except NumericsError:
        return "the model has no prediction on some prompts: a denominator is next to zero"
    if not heads.structured:
        return "ω and μ do not describe this model: its heads are unstructured"
    if normalised and not (heads.are("positive").any() and heads.are("negative").any()):
        return "heads of one sign are kernel regressors, far from a step of gradient descent"
    return ""


@dataclass(frozen=True, eq=False)
class _Seen:
    """Per prompt of the training length that has a prediction; denominators of all prompts."""

    prediction: Float[np.ndarray, "batch"]
    direction: Float[np.ndarray, "batch"]
    gain: Float[np.ndarray, "batch"]
    denominators: Float[np.ndarray, "prompts heads"]
    undefined: int

    @classmethod
    def measure(cls, context: Context, circuits: Circuits, direction: GradientDescent, product: np.ndarray) -> _Seen:
        f, parts, denominators, prompts = activation(circuits.activation), [], [], 0
        for prompt in context.chunks("slope"):
            prompts += len(prompt)
            if f.normalised:
                denominators.append(circuits.denominators(prompt).cpu().numpy())
            prompt = _defined(circuits, prompt)
            gain = torch.from_numpy(product).to(prompt.x) * _gains(circuits, prompt)
            parts.append(
                torch.stack([context.predict(prompt)[:, 0], direction(prompt)[:, 0], gain.sum(1)]).cpu().numpy()
            )
        prediction, along_gd, gain = np.concatenate(parts, axis=1)
        smallest = np.concatenate(denominators) if f.normalised else np.empty((prompts, 0))
        return cls(prediction, along_gd, gain, smallest, prompts - len(gain))


def _gains(circuits: Circuits, prompt: Prompt) -> Float[Tensor, "batch heads"]:
    """C·mean f′(Cs)/mean f(Cs) of each head over a prompt's demonstrations; L·C for linear attention."""
    f, C = activation(circuits.activation), circuits.activation_scale
    KQ = torch.from_numpy(circuits.KQ[0, :, :, : circuits.dim]).to(prompt.x)
    scores = C * torch.einsum("blk,hkq,bq->bhl", prompt.demonstrations, KQ, prompt.x_q)
    slopes = C * f.derivative(scores)
    return slopes.mean(-1) / f.function(scores).mean(-1) if f.normalised else slopes.sum(-1)


def _defined(circuits: Circuits, prompt: Prompt) -> Prompt:
    """The prompts at which no denominator is next to zero."""
    if not activation(circuits.activation).normalised:
        return prompt
    kept = (circuits.denominators(prompt).abs() > 1.001 * NEAR_ZERO).all(1)
    return Prompt(*(part[kept] for part in (prompt.x, prompt.y, prompt.x_q, prompt.y_q)))


def _squared_errors(
    context: Context, circuits: Circuits, predictors: list[GradientDescent], length: int
) -> Float[np.ndarray, "predictors prompts"]:
    """Of the model and of each predictor, on the same prompts."""
    errors = []
    for drawn in context.chunks(f"risk at {length}", length=length):
        prompt = _defined(circuits, drawn)
        predictions = [context.predict(prompt), *(predict(prompt) for predict in predictors)]
        errors.append(torch.stack([(p - prompt.y_q).square().mean(-1) for p in predictions]).cpu().numpy())
    return np.concatenate(errors, axis=1)


def _unsafe(denominators: Float[np.ndarray, "prompts"]) -> Estimate:
    """The share of prompts with one that is too small."""
    return share_of(float((denominators < TOO_SMALL).sum()), len(denominators))
