"""Which heads does a deeper model use?  All of its first layer, and one in each later layer?  (arXiv 2408.04532.)

There a trained model preprocesses, with all heads of its first layer, and then optimises, with one head a layer.  So
each head is taken away by itself (`head_ablations`), and what that adds to the mean squared error is its importance.
How many heads a layer uses is the exponential of the entropy of their shares p_h ∝ max(importance, 0): H where all are
alike, 1 where one does everything, 0 where none is worth anything.  Then heads are taken away together: of the later
layers all but the dominant one ("pruned"), or of every layer ("one head a layer").  What that loses is measured as part
of what the model explains, E y² − risk, on prompts other than those that told which heads are dominant.

Heads are looked at one at a time: two that stand in for each other look less important than they are together.
Cost: 4,096 prompts at first, about H·(n_layers − 1) passes of the whole model on each.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from icl_interp.probing import (
    DECISIVE,
    Block,
    Context,
    Estimate,
    Heatmap,
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
    rounded,
)
from icl_interp.pruning import Model, heads_in_use, kept_errors
from icl_interp.tasks import Task
from icl_interp_probes.head_ablations import KINDS, Ablations
from icl_interp_probes.shown import Intervals, extreme

SOURCE = "arXiv 2408.04532, section 3"
PROMPTS = 4_096  # or a sixteenth of what other measurements take where that is more
FEWEST = 1_000
MATTERS = 1e-3  # a layer where no head is worth so much of what the model explains uses none
NOISE = (0.0, 0.25, 1.0, 4.0)  # times the task's σ²
MODELS = ("all heads", "pruned", "one head a layer")

FIRST = Threshold(
    "of as many heads as there are coordinates to preprocess 0.94 to 0.99 are used, of twice as many 0.48, of four "
    "that leave a descent to one 0.25; trained models of 8 heads half as wide as d have 0.61 to 0.71",
    low=0.75,
)
LATER = Threshold(
    "one head that makes the step is 1.00, also with all weights 5 % off; two that share its coordinates 3 to 1 are "
    "1.8, and evenly 2; trained models of 8 heads half as wide as d have 4.2 to 6.8",
    high=1.5,
)
AS_GOOD = Threshold(
    "where one head makes the step nothing is lost, with all weights 5 % off less than 1e-7; where two share its "
    "coordinates 3 to 1 it is 31 %, and evenly 52 %; of trained models of 8 heads half as wide as d 16 to 19 %",
    high=0.05,
)
WORSE = Threshold(
    "with one of the heads that preprocess, 4 to 16, 67 to 97 % is lost, without preprocessing nothing; of trained "
    "models of 8 heads half as wide as d 43 to 48 %",
    low=0.1,
)


@dataclass(frozen=True, eq=False)
class HeadUtilization:
    """What heads are worth, one at a time and together.

    Args:
        changes: (3, layers, heads), the squared error without a head minus that with it, by `KINDS` of ablation.
        effective: (3, layers), exp of the entropy of the heads' shares; 0 where no head matters.
        explained: E y² − risk.
        dominant: the head of each layer with the largest change by zero ablation.
        noise_vars: σ² of the prompts that heads are kept on, ascending; None where the task has no such number.
        own: which of them is the task's.
        risks: (levels, 3), mean squared errors of `MODELS`.
        lost: (levels, 2), by pruning and by keeping one head a layer: the risk that adds over what all heads explain.
        prompts: for each number but those by mean and resample ablation.
        beside: for those.
        seed: of the prompts.
    """

    changes: Intervals
    effective: Intervals
    explained: Estimate
    dominant: tuple[int, ...]
    noise_vars: tuple[float | None, ...]
    own: int
    risks: Intervals
    lost: Intervals
    prompts: int
    beside: int
    seed: int

    @property
    def n_layers(self) -> int:
        """Layers of the model."""
        return self.changes.value.shape[1]

    @property
    def n_heads(self) -> int:
        """Heads in each of them."""
        return self.changes.value.shape[2]


@probe(
    name="head_utilization",
    title="Which heads does each layer use: all of the first, and one of each later one?",
    needs=Need.WEIGHTS | Need.TASK | Need.DEEP,
    cost="half a minute",
)
class HeadUtilizationProbe:
    """Takes each head of each layer away, by zero, by its mean over prompts and by its output on another prompt, and
    measures what that adds to the mean squared error; from the shares of a layer's heads in that it tells how many
    heads the layer uses.  Then keeps the dominant head alone, of each later layer or of every one, and measures what is
    lost, over levels of noise.
    """

    def run(self, context: Context) -> HeadUtilization:
        """Ablate each head on some prompts; keep the dominant ones on others."""
        n, model = min(context.budget, max(PROMPTS, context.budget // 16)), Model(context.weights, context.config)
        beside = max(n // 4, min(n, FEWEST))
        zero, *others = (Ablations.of(context, model, kind, beside if kind != "zero" else n) for kind in KINDS)
        with np.errstate(over="ignore", invalid="ignore"):  # not finite is an answer here
            explained, dominant = mean_of(zero.explained), zero.changes.mean(-1).argmax(-1).tolist()
            changes, floor = [kind.changes for kind in (zero, *others)], MATTERS * explained.value
            return HeadUtilization(
                changes=Intervals.of([[[mean_of(head) for head in layer] for layer in kind] for kind in changes]),
                effective=Intervals.of(
                    [[heads_in_use(layer, floor, context.seed) for layer in kind] for kind in changes]
                ),
                explained=explained,
                dominant=tuple(dominant),
                **_kept_alone(context, model, dominant, n),
                prompts=n,
                beside=beside,
                seed=context.seed,
            )

    def blocks(self, result: HeadUtilization) -> list[Block]:
        """A map of heads; how many each layer uses; what the pruned model loses; each head's worth."""
        curves = [_curves(result)] if len(result.noise_vars) > 1 else []
        return [_map(result), _layers(result), _pruning(result), *curves, _heads(result), Text(_read(result))]

    def judge(self, result: HeadUtilization) -> list[Verdict]:
        """Are all heads of the first layer used, and one of each later one?  Can the others go, and the first's?"""
        return [_judge(result, *claim) for claim in _CLAIMS]


# --- What is left of the model, and on which prompts ------------------------------------------------------------------


def _kept_alone(context: Context, model: Model, dominant: Sequence[int], n: int) -> dict[str, Any]:
    """Risks of `MODELS` over levels of noise, and what is lost; between levels prompts differ in the noise alone."""
    levels, risks, lost = _levels(context.task), [], []
    for _, task in levels:
        squares, errors = kept_errors(model, context.chunks("pruning", n, task=task), dominant)
        risks.append([mean_of(each) for each in errors])
        lost.append([_lost_part(each - errors[0], squares - errors[0]) for each in errors[1:]])
    return {
        "noise_vars": tuple(noise_var for noise_var, _ in levels),
        "own": [task is None for _, task in levels].index(True),
        "risks": Intervals.of(risks),
        "lost": Intervals.of(lost),
    }


def _lost_part(added: Float[np.ndarray, "prompts"], explained: Float[np.ndarray, "prompts"]) -> Estimate:
    """What is added to the risk, of what was explained; NaN where nothing was."""
    return ratio_of(added, explained) if explained.mean() > 0 else Estimate(np.nan, -np.inf, np.inf, "prompts")


def _levels(task: Task) -> list[tuple[float | None, Task | None]]:
    """σ² and the task that has it, None for the task as it is: the least first."""
    own = getattr(task, "noise_var", None)
    if own is None or not dataclasses.is_dataclass(task) or isinstance(task, type):
        return [(None, None)]
    own = float(own)
    unit = own or getattr(task, "signal_var", 1.0) / 4  # of a task without noise: so that there is some
    return [
        (noise_var, None if noise_var == own else dataclasses.replace(task, noise_var=noise_var))
        for noise_var in sorted(factor * unit for factor in NOISE)
    ]


# --- What is concluded ------------------------------------------------------------------------------------------------

_Conclusion = tuple[Estimate, str] | str  # the number and its meaning; or why none applies


def _judge(
    result: HeadUtilization, claim: str, threshold: Threshold, conclude: Callable[[HeadUtilization], _Conclusion]
) -> Verdict:
    explained = result.explained
    if result.n_heads == 1:
        return not_applicable(claim, SOURCE, "The claim is about several heads; each layer of this model has one.")
    if result.n_layers == 1 and conclude in (_later, _pruned):
        return not_applicable(claim, SOURCE, "The claim is about later layers; this model has one layer.")
    if explained.stretched(DECISIVE).high <= 0:
        nothing = f"The model explains nothing: its risk is not below E y², E y² − risk is {explained}."
        return not_applicable(claim, SOURCE, f"{nothing} So nothing is lost with a head.")
    conclusion = conclude(result)
    if isinstance(conclusion, str):
        return not_applicable(claim, SOURCE, conclusion)
    if result.prompts < FEWEST:
        few = f"{result.prompts:,} prompts are too few to tell: it takes {FEWEST:,}."
        return Verdict(claim, SOURCE, "inconclusive", few)
    if not explained.stretched(DECISIVE).low > 0:
        unsure = f"It is not sure that the model explains anything: E y² − risk is {explained}."
        return Verdict(claim, SOURCE, "inconclusive", unsure, explained)
    estimate, sentence = conclusion
    return judge(claim, SOURCE, estimate, threshold, sentence)


def _first(result: HeadUtilization) -> _Conclusion:
    used, heads = result.effective.at(0, 0), result.n_heads
    sentence = f"The first layer uses {used.value:.3g} of its {heads} heads (effective number, zero ablation)."
    return used.map(lambda number: number / heads), sentence


def _later(result: HeadUtilization) -> _Conclusion:
    used = {layer: result.effective.at(0, layer) for layer in range(1, result.n_layers)}
    used = {layer: number for layer, number in used.items() if number.high > 0}
    if not used:
        return "No head of a later layer is worth anything to the risk."
    most = max(used, key=lambda layer: used[layer].value)
    sentence = f"Of the later layers L{most} uses most heads: {used[most].value:.3g} (effective number, zero ablation)."
    return extreme(max, list(used.values())), sentence


def _pruned(result: HeadUtilization) -> _Conclusion:
    return _lost(result, 1, f"all heads of the first layer and {_dominant(result, 1)}")


def _single(result: HeadUtilization) -> _Conclusion:
    return _lost(result, 2, _dominant(result, 0))


def _lost(result: HeadUtilization, model: int, which: str) -> _Conclusion:
    own, lost = result.own, result.lost.at(result.own, model - 1)
    full, kept = (f"{result.risks.value[own, each]:.4g}" for each in (0, model))
    part = f"{lost.value:.2%} of what the model explains"
    return lost, f"With {which} alone the risk is {kept} instead of {full}: {part} is lost."


def _dominant(result: HeadUtilization, first: int) -> str:
    return ", ".join(f"L{layer}H{head}" for layer, head in enumerate(result.dominant) if layer >= first)


_CLAIMS = (
    ("first_layer_uses_all_heads", FIRST, _first),
    ("later_layers_use_one_head", LATER, _later),
    ("pruned_as_good", AS_GOOD, _pruned),
    ("single_head_worse", WORSE, _single),
)


# --- How it is shown --------------------------------------------------------------------------------------------------


def _map(result: HeadUtilization) -> Heatmap:
    worth = np.maximum(result.changes.value[0], 0.0)
    used = result.effective.value[0] > 0
    shown = np.full(worth.shape, np.nan)
    shown[used] = rounded(worth[used] / worth[used].max(1, keepdims=True))
    return Heatmap(
        shown[None],
        ("what its loss costs",),
        alt="Importance of each head by zero ablation, layer by layer, relative to the most important head of its "
        "layer; layers in which no head matters are left out.",
        title="Importance of each head, in units of its layer's dominant one",
        row_labels=tuple(f"L{layer}" for layer in range(result.n_layers)),
        column_labels=tuple(f"H{head}" for head in range(result.n_heads)),
        first_screen=True,
    )


def _layers(result: HeadUtilization) -> Table:
    rows = []
    for layer, head in enumerate(result.dominant):
        used = (result.effective.at(kind, layer) for kind in range(len(KINDS)))
        rows.append((f"L{layer}", *used, f"L{layer}H{head}", result.changes.at(0, layer, head)))
    return Table(
        ("layer", *(f"effective number, {kind}" for kind in KINDS), "dominant head", "risk without it − risk"),
        tuple(rows),
        alt="Effective number of heads of each layer by three kinds of ablation, its dominant head and that head's "
        "worth.",
        title=f"How many of its {result.n_heads} heads each layer uses",
    )


def _pruning(result: HeadUtilization) -> Table:
    rows = [
        (
            "the task's" if noise_var is None else f"{noise_var:g}" + " (the task's)" * (level == result.own),
            *(result.risks.at(level, model) for model in range(len(MODELS))),
            *(_or_none(result.lost.at(level, model)) for model in range(len(MODELS) - 1)),
        )
        for level, noise_var in enumerate(result.noise_vars)
    ]
    return Table(
        ("σ²", *(f"risk, {model}" for model in MODELS), *(f"lost, {model}" for model in MODELS[1:])),
        tuple(rows),
        alt="Risk of the model with all heads, pruned, and with one head a layer, by the variance of the noise, and "
        "the part of what the model explains that is lost.",
        title="Risk with some of the heads only, and what is lost",
    )


def _or_none(estimate: Estimate) -> Estimate | None:
    return None if np.isnan(estimate.value) else estimate


def _curves(result: HeadUtilization) -> Lines:
    value, low, high = (rounded(part.T) for part in (result.risks.value, result.risks.low, result.risks.high))
    return Lines(
        np.array(result.noise_vars, dtype=float),
        value,
        MODELS,
        alt="Risk against the variance of the noise, of the model with all heads, pruned, and with one head a layer.",
        title="Risk of the whole model and of what is left of it, over levels of noise",
        x_label="σ²",
        y_label="risk",
        low=low,
        high=high,
    )


def _heads(result: HeadUtilization) -> Table:
    places = np.ndindex(result.n_layers, result.n_heads)
    return Table(
        ("head", *(f"{kind} ablation" for kind in KINDS)),
        tuple((f"L{at[0]}H{at[1]}", *(result.changes.at(kind, *at) for kind in range(len(KINDS)))) for at in places),
        alt="Change in risk when a head's output is replaced by zero, by its mean over prompts, and by its output on "
        "another prompt.",
        title="What each head is worth: risk without it − risk",
    )


def _read(result: HeadUtilization) -> str:
    idle = [f"L{layer}" for layer, number in enumerate(result.effective.high[0]) if number == 0]
    none = f" No head of {', '.join(idle)} is worth {MATTERS:.1%} of that: such a layer uses none." if idle else ""
    return (
        f"{result.prompts:,} prompts for each number, {result.beside:,} for those by mean and resample ablation, seed "
        f"{result.seed}; those that heads are kept on are others than "
        f"those that told which are dominant. The model explains E y² − risk = {result.explained}.{none} The effective "
        "number of heads is exp(−Σ p log p) of their shares p in what removing them one at a time costs. Heads that "
        "stand in for each other look less important than they are together."
    )
