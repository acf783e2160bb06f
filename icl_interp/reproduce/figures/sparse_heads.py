"""Which heads three layers use on sparse regression, and what is left without the others (arXiv 2408.04532, Figure 1).

Heads are taken away by zero ablation.  What a head is worth is the change of the squared error; how many a layer uses
is the exponential of the entropy of its heads' shares in that.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from icl_interp.passes import BOUND
from icl_interp.probing import Estimate, Heatmap, Lines, Table, Text, Threshold, levelled, mean_of, ratio_of
from icl_interp.pruning import Model, ablated_errors, heads_in_use, kept_errors, nothing
from icl_interp.records import Run
from icl_interp.reproduce.bench import Bench
from icl_interp.reproduce.deep_readings import (
    PLAIN,
    PREPROCESSED,
    RIDGE,
    Errors,
    descents,
    excesses,
    greatest,
    mean_over,
    model_of,
    named,
    noiseless,
    predictor,
    ridge,
)
from icl_interp.reproduce.lengths import bands, count
from icl_interp.reproduce.recipes import Made, recipe
from icl_interp.reproduce.results import Claim, compare
from icl_interp.tasks import SparseRegression

ABLATED = 8_192  # prompts that heads are taken away on
STEPS = (1, 2, 3, 20)  # of gradient descent: as many as there are layers, one fewer, and many
NOISES = (0.0, 0.25, 0.5, 1.0)  # σ of the prompts that pruned models are asked
MATTERS = 1e-4  # of E y²: a head worth less is no part of a layer's

LESS = Threshold("the paired difference has to be negative beyond its error", high=0.0)
MORE = Threshold("the paired difference has to be positive beyond its error", low=0.0)
ALL = Threshold("three quarters of the heads, evenly; the construction has all", low=0.75)
ONE = Threshold("halfway to a second head, evenly used; the construction has one", high=1.5)
AS_GOOD = Threshold("a twentieth of what the model explains; of the construction it is nothing", high=0.05)
WORSE = Threshold("a tenth of what the model explains; of the construction two thirds", low=0.1)


@recipe(
    "sparse-heads",
    "What heads are worth: excess risk by their number, and which of them each layer uses",
    "arXiv 2408.04532, Figure 1",
    runs=["sparse-h*"],
)
def sparse_heads(bench: Bench) -> Made:
    """Risks of trained models beside known algorithms; a map of heads of the one with most."""
    task, names = bench.schedule.sparse, {heads: f"sparse-h{heads}" for heads in sorted(bench.schedule.sparse_heads)}
    algorithms = {RIDGE: ridge(bench, task), **descents(bench, task, STEPS)}
    models = {
        _model(heads, seed): predictor(run)
        for heads, name in names.items()
        for seed, run in enumerate(bench.runs(name))
    }
    errors = excesses(bench, "sparse-heads", task, algorithms | models)
    own = {
        heads: mean_over(errors[_model(heads, seed)] for seed in range(len(bench.runs(name))))
        for heads, name in names.items()
    }
    used = [Use.of(bench, run) for run in bench.runs(names[max(names)])]
    return [*_risk_claims(own, errors, bench.schedule.whole_sparse), *_use_claims(used, bench.schedule.whole_sparse)], [
        _risks_drawn(own, {name: errors[name] for name in algorithms}),
        _risk_table(errors),
        _map(used[0]),
        _use_table(used),
        Text(
            f"Predictions are clipped to {BOUND:g} root mean squares of labels, the prompt's own and all prompts'. "
            "Gradient descent has the best rate relative to 1/λ_max of each prompt, which no layer can know: layers "
            "take steps of one size for all prompts. Where several seeds were trained, risks are means over them."
        ),
    ]


@recipe(
    "sparse-pruning",
    "All heads of the first layer and one of each later one, over noise",
    "arXiv 2408.04532, Figure 1 and the appendix on three layers",
    runs=["sparse-h*"],
)
def sparse_pruning(bench: Bench) -> Made:
    """The model with most heads, the same pruned, and the one that was trained with one head a layer."""
    most, task = max(bench.schedule.sparse_heads), bench.schedule.sparse
    run, alone = bench.run(f"sparse-h{most}"), bench.run(f"sparse-h{min(bench.schedule.sparse_heads)}")
    dominant = Use.of(bench, run).dominant
    levels = {noise: dataclasses.replace(noiseless(task), noise_var=noise**2) for noise in NOISES}
    measured = {noise: _pruned(bench, level, model_of(run, level), alone, dominant) for noise, level in levels.items()}
    own = min(NOISES, key=lambda noise: abs(noise**2 - task.noise_var))
    kept = ", ".join(f"L{layer}H{head}" for layer, head in enumerate(dominant) if layer)
    return _pruning_claims(measured, own, most, bench.schedule.whole_sparse), [
        _noises_drawn(measured),
        Text(
            f"Pruned: all {most} heads of the first layer and {kept} of the later ones, those whose ablation costs "
            "most. One head a layer: trained as the others were, with one head in each. Excess risks, on the same "
            "prompts but for their noise."
        ),
    ]


@dataclass(frozen=True, eq=False)
class Use:
    """What each head of a model is worth.

    Args:
        worth: change of the squared error when it is gone, by layer and head.
        heads: effective number in each layer.
        dominant: the head of each layer that is worth most.
    """

    worth: Float[np.ndarray, "layers heads prompts"]
    heads: tuple[Estimate, ...]
    dominant: tuple[int, ...]

    @classmethod
    def of(cls, bench: Bench, run: Run) -> Use:
        """On prompts like the training's."""
        task = bench.schedule.sparse
        model = model_of(run, task)
        parts: list[Tensor] = []
        for piece in model.pieces(bench.prompts("sparse, ablations", noiseless(task), ABLATED)):
            whole, without = ablated_errors(model, piece, nothing(model))
            parts.append(without - whole)
        worth = torch.cat(parts, -1).numpy()
        used = tuple(heads_in_use(layer, MATTERS * task.signal_var) for layer in worth)
        return cls(worth, used, tuple(worth.mean(-1).argmax(-1).tolist()))


# --- Heads ------------------------------------------------------------------------------------------------------------


def _risk_claims(own: dict[int, np.ndarray], errors: Errors, reached: bool) -> list[Claim]:
    most, least = max(own), min(own)
    best = {family: _best(errors, family) for family in (PLAIN, PREPROCESSED)}
    return [
        compare(
            "With more heads there is less excess risk",
            ratio_of(own[most] - own[least], own[least]),
            LESS,
            f"{most} heads a layer: {mean_of(own[most])}; {least}: {mean_of(own[least])}. The number is the relative "
            "difference.",
            reached=reached,
        ),
        _beaten(own[most], errors[RIDGE], "Trained with many heads a model does better than ridge", RIDGE, reached),
        _beaten(own[most], errors[best[PLAIN]], "It does better than gradient descent", best[PLAIN], reached),
        _beaten(
            *(own[most], errors[best[PREPROCESSED]]),
            "It does as well as preprocessed gradient descent that knows each prompt's best rate",
            best[PREPROCESSED],
            reached,
        ),
    ]


def _model(heads: int, seed: int) -> str:
    """A trained model, as tables call it."""
    return f"{heads} head{'s' * (heads > 1)} a layer, seed {seed}"


def _best(errors: Errors, family: str) -> str:
    """The number of steps of a family that has the least risk."""
    return min((named(family, steps) for steps in STEPS), key=lambda name: errors[name].mean())


def _beaten(own: np.ndarray, other: np.ndarray, claim: str, name: str, reached: bool) -> Claim:
    sentence = f"Excess risk {mean_of(own)}, of {name} {mean_of(other)}. The number is the relative difference."
    return compare(claim, ratio_of(own - other, other), LESS, sentence, reached=reached)


def _use_claims(used: list[Use], reached: bool) -> list[Claim]:
    H = used[0].worth.shape[1]
    first = greatest((use.heads[0] for use in used), -1)
    later = greatest(number for use in used for number in use.heads[1:])
    return [
        compare(
            "The first layer uses all of its heads, evenly",
            first.map(lambda number: number / H),
            ALL,
            f"It uses {first.value:.3g} of {H} (effective number; the seed with fewest).",
            reached=reached,
        ),
        compare(
            "Each later layer uses one",
            later,
            ONE,
            f"The one with most uses {later.value:.3g} of {H} (effective number; of all seeds).",
            reached=reached,
        ),
    ]


def _risks_drawn(own: dict[int, np.ndarray], algorithms: Errors) -> Lines:
    """Against the number of heads; algorithms have none, and are level."""
    shown = [RIDGE, *(_best(algorithms, family) for family in (PLAIN, PREPROCESSED))]
    curves = [[mean_of(each) for each in own.values()], *([mean_of(algorithms[name])] * len(own) for name in shown)]
    value, low, high = bands(curves)
    return Lines(
        np.array(list(own), dtype=float),
        value,
        ("trained, three layers", *shown),
        alt="Excess risk of trained models against their number of heads, beside ridge and gradient descent.",
        title="Excess risk by the number of heads",
        x_label="heads in each layer",
        y_label="excess risk",
        log_x=True,
        low=low,
        high=high,
    )


def _risk_table(errors: Errors) -> Table:
    return Table(
        ("predictor", "excess risk"),
        tuple((name, mean_of(each)) for name, each in errors.items()),
        alt="Excess risk of ridge, gradient descent and every trained model.",
        title="Excess risks",
    )


def _map(use: Use) -> Heatmap:
    worth = use.worth.mean(-1).clip(0)
    return Heatmap(
        levelled(worth / np.maximum(worth.max(1, keepdims=True), 1e-300))[None],
        ("importance",),
        alt="A row a layer, a column a head: what its ablation adds to the squared error, the layer's most being 1.",
        title="Importance of heads, seed 0",
        row_labels=tuple(f"layer {layer + 1}" for layer in range(len(worth))),
        column_labels=tuple(f"head {head}" for head in range(worth.shape[1])),
    )


def _use_table(used: list[Use]) -> Table:
    layers = len(used[0].heads)
    return Table(
        ("seed", *(f"layer {layer + 1}" for layer in range(layers))),
        tuple((seed, *use.heads) for seed, use in enumerate(used)),
        alt="Effective number of heads in each layer, by seed.",
        title="How many heads each layer uses",
    )


# --- Pruning ----------------------------------------------------------------------------------------------------------

FULL, PRUNED, ALONE, NOTHING = "all heads", "pruned", "trained with one head a layer", "predicting zero"


def _pruned(bench: Bench, task: SparseRegression, model: Model, alone: Run, dominant: Sequence[int]) -> Errors:
    n, label = count(bench), "sparse-pruning"
    squares, (whole, pruned, _) = kept_errors(model, bench.prompts(label, task, n), dominant)
    own = excesses(bench, label, task, {ALONE: predictor(alone)}, n)
    return {FULL: whole, PRUNED: pruned, **own, NOTHING: squares}


def _pruning_claims(measured: dict[float, Errors], own: float, heads: int, reached: bool) -> list[Claim]:
    at = measured[own]
    lost = {name: ratio_of(at[name] - at[FULL], at[NOTHING] - at[FULL]) for name in (PRUNED, ALONE)}
    gap = [measured[noise][ALONE] - measured[noise][FULL] for noise in (NOISES[0], NOISES[-1])]
    where = f"At σ = {own:g}: excess risk {mean_of(at[FULL])}"
    return [
        compare(
            "Pruned, the model is as good",
            lost[PRUNED],
            AS_GOOD,
            f"{where} with all {heads} heads, {mean_of(at[PRUNED])} pruned. The number is what is lost of what all "
            "explain.",
            reached=reached,
        ),
        compare(
            "A single head a layer is much worse",
            lost[ALONE],
            WORSE,
            f"{where} with {heads} heads, {mean_of(at[ALONE])} trained with one. The number is what is lost, as above.",
            reached=reached,
        ),
        compare(
            "The gap grows with the noise",
            mean_of(gap[1] - gap[0]),
            MORE,
            f"One head a layer minus all: {mean_of(gap[0])} at σ = {NOISES[0]:g}, {mean_of(gap[1])} at "
            f"{NOISES[-1]:g}; the number is the difference on the same prompts.",
            reached=reached,
        ),
    ]


def _noises_drawn(measured: dict[float, Errors]) -> Lines:
    names = (FULL, PRUNED, ALONE)
    value, low, high = bands([[mean_of(errors[name]) for errors in measured.values()] for name in names])
    return Lines(
        np.array(list(measured)),
        value,
        names,
        alt="Excess risk against the noise: of all heads, pruned, and trained with one head a layer.",
        title="Excess risk over noise",
        x_label="σ",
        y_label="excess risk",
        low=low,
        high=high,
    )
