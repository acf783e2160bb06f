"""What was found of a model beside known algorithms, and how it is shown.  No probe is declared here."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from icl_interp.passes import BOUND
from icl_interp.probing import Bars, Block, Cell, Context, Estimate, Heatmap, Lines, Table, Text, levelled
from icl_interp_probes.known_algorithms import BAYES, DEAR, ORDINARY, PLAIN, PREPROCESSED, RIDGE, STEPS
from icl_interp_probes.shown import Intervals

MODEL, ZERO = "model", "predicting zero"
LADDER = (RIDGE, PLAIN, PREPROCESSED, BAYES)  # on the first screen


# Prompts: to choose members on, as in training (or a quarter of the budget where that is more), of each other kind; and
# of those as in training for families that are dear.
TUNING, TRAINING, OTHER, TRAINING_DEAR = 2_048, 8_192, 4_096, 1_024


@dataclass(frozen=True)
class Sizes:
    """How many prompts are used, and how many of them for families that are dear.

    Args:
        tuning, tuning_dear: to choose members on.
        training, training_dear: as in training.
        other, other_dear: of each other kind.
    """

    tuning: int
    tuning_dear: int
    training: int
    training_dear: int
    other: int
    other_dear: int

    @classmethod
    def of(cls, context: Context) -> Sizes:
        """For a budget; a large one is spent on prompts as in training, on which most claims rest.  Needs TASK."""
        budget = context.budget
        tuning, training = context.holdable(min(budget, TUNING)), min(budget, max(TRAINING, budget // 4))
        other = min(-(-training // 2), OTHER)
        return cls(tuning, -(-tuning // 16), training, min(-(-training // 8), TRAINING_DEAR), other, -(-other // 16))

    def of_kind(self, training: bool) -> tuple[int, int]:
        """Of the training's kind, or of another."""
        return (self.training, self.training_dear) if training else (self.other, self.other_dear)


@dataclass(frozen=True, eq=False)
class AlgorithmMatch:
    """How near the model is to which algorithm, and how it does beside them.

    Args:
        kinds, what: of prompts, and what they are; the first kind is the training's.
        trained_length: whether prompts of this kind are as long as the training's.
        undefined: by kind, why the model has no predictions there; empty where it has.
        families: of algorithms, in the order of every axis.
        nearest, best: of each family, the member nearest to the model, and the one that predicts best, in words.
        clipped: the part of the model's predictions that are clipped, being larger than any response, by kind.
        winner: the family that comes nearest on tuning prompts.
        second, rival: on the training's kind the nearest of all others; and of all but GD on x̃.
        nearest_there: the family whose nearest member is nearest to the model, by kind; on the training's the winner.
        distance: to the nearest members over ordinary prompts, a row a kind.
        ratio: distance to GD on x̃ over the least of all other families', on the training's kind.
        excess: excess risk of the model, the best members, and predicting zero, a row a kind.
        difference: the model's minus that of each best member, a row a kind.
        gain: on the training's kind, the difference relative to the excess risk of the best member (one row).
        by_steps: the least distance of GD on x, and on x̃, after each of `STEPS` steps, on tuning prompts.
        exceeds_noise: whether errors are those beyond the noise of the query's label; else they hold it.
        normalised: whether the model's attention weights do not grow with the length.
        left_out: which families are not compared with, and why.
        sizes: numbers of prompts.
        seed: of the prompts.
    """

    kinds: tuple[str, ...]
    what: tuple[str, ...]
    trained_length: tuple[bool, ...]
    undefined: tuple[str, ...]
    families: tuple[str, ...]
    nearest: tuple[str, ...]
    best: tuple[str, ...]
    clipped: Float[np.ndarray, "kinds"]
    winner: int
    second: int
    rival: int
    nearest_there: tuple[int, ...]
    distance: Intervals
    ratio: Estimate
    excess: Intervals
    difference: Intervals
    gain: Intervals
    by_steps: Float[np.ndarray, "2 steps"]
    exceeds_noise: bool
    normalised: bool
    left_out: str
    sizes: Sizes
    seed: int

    def named(self, family: int) -> str:
        """The nearest member of a family, with its parameters."""
        return f"{self.families[family]} ({self.nearest[family]})"

    def missed(self, kind: int, family: int) -> str:
        """The same, and what it misses of the model on prompts of this kind."""
        return f"{self.named(family)} misses {self.distance.value[kind, family]:.3g} of E ŷ²"


def shown(result: AlgorithmMatch) -> list[Block]:
    """The nearest algorithm and risks; distances on all kinds of prompts; risks there; what was looked at."""
    return [
        _summary(result),
        _distances(result),
        _by_kind(result),
        _by_steps(result),
        _bars(result),
        _risks(result),
        _differences(result),
        Text(_told(result)),
    ]


def _summary(result: AlgorithmMatch) -> Table:
    """What a reader wants first."""
    excess = dict(zip((MODEL, *result.families), result.excess.row(0)[:-1], strict=True))
    best = dict(zip(result.families, result.best, strict=True))
    shown = [family for family in LADDER if family in best]
    return Table(
        ("predictor", "which", _excess(result), "distance to the model"),
        (
            (MODEL, None, excess[MODEL], None),
            ("nearest algorithm", result.named(result.winner), None, result.distance.at(0, result.winner)),
            *((f"{family}, at its best", best[family], excess[family], None) for family in shown),
        ),
        alt="The algorithm nearest to the model, and excess risks of the model and of known algorithms at their best.",
        title="Which algorithm the model is closest to, and what it achieves",
        first_screen=True,
    )


def _excess(result: AlgorithmMatch) -> str:
    return "excess risk" if result.exceeds_noise else "risk"


def _distances(result: AlgorithmMatch) -> Heatmap:
    return Heatmap(
        levelled(np.minimum(result.distance.value, 1.0))[None],
        ("distance E(ŷ − a)²/E ŷ²",),
        alt="Distance of the model's predictions to those of each family's nearest member: a row a kind of prompts, a "
        "column a family.",
        title="Distance to each algorithm, by kind of prompts; 1 stands for all that is further than zero is",
        row_labels=result.kinds,
        column_labels=result.families,
    )


def _by_kind(result: AlgorithmMatch) -> Table:
    rows: list[tuple[Cell, ...]] = []
    for kind, (name, what) in enumerate(zip(result.kinds, result.what, strict=True)):
        if result.undefined[kind]:
            rows.append((name, what, "not defined", None, None, None))
            continue
        there = result.nearest_there[kind]
        distances = result.distance.at(kind, there), result.distance.at(kind, result.winner)
        rows.append((name, what, result.named(there), *distances, f"{result.clipped[kind]:.2%}"))
    return Table(
        (
            *("prompts", "what they are", "nearest", "its distance"),
            *(f"distance to {result.families[result.winner]}", "model's predictions clipped"),
        ),
        tuple(rows),
        alt="The algorithm nearest to the model by kind of prompts, and its distance beside that of the algorithm that "
        "is nearest on prompts as in training.",
        title="The nearest algorithm, by kind of prompts",
    )


def _by_steps(result: AlgorithmMatch) -> Lines:
    return Lines(
        np.array(STEPS, dtype=float),
        np.minimum(result.by_steps, 1.0),
        (PLAIN, PREPROCESSED),
        alt="Least distance to gradient descent against its number of steps, on x and on preprocessed x̃.",
        title="Distance to gradient descent of so many steps, at the best rate (tuning prompts)",
        x_label="steps",
        y_label="distance",
        log_x=True,
    )


def _bars(result: AlgorithmMatch) -> Bars:
    excess = result.excess
    return Bars(
        (MODEL, *result.families, ZERO),
        excess.value[0],
        alt="Risk of the model and of each algorithm at its best, on prompts as in training.",
        title=f"{_excess(result).capitalize()} on prompts as in training",
        y_label=_excess(result),
        low=excess.low[0],
        high=excess.high[0],
    )


def _risks(result: AlgorithmMatch) -> Table:
    return _by_kinds(
        result,
        (MODEL, *result.families, ZERO),
        result.excess,
        alt="Excess risk of the model and of each algorithm, tuned to prompts as in training, by kind of prompts.",
        title=f"{_excess(result).capitalize()}, everyone as for the training's prompts",
    )


def _differences(result: AlgorithmMatch) -> Table:
    return _by_kinds(
        result,
        result.families,
        result.difference,
        alt="The model's risk minus that of each algorithm on the same prompts, by kind of prompts.",
        title="The model's risk − an algorithm's, on the same prompts",
    )


def _by_kinds(result: AlgorithmMatch, names: tuple[str, ...], table: Intervals, alt: str, title: str) -> Table:
    rows = tuple((kind, *table.row(i)) for i, kind in enumerate(result.kinds))
    return Table(("prompts", *names), rows, alt=alt, title=title)


def _told(result: AlgorithmMatch) -> str:
    sizes, dear = result.sizes, ", ".join(family for family in result.families if family in DEAR)
    members = "; ".join(f"{f}: {n}" for f, n in zip(result.families, result.nearest, strict=True))
    lost = [
        f"With {kind} the model has no predictions: {why}."
        for kind, why in zip(result.kinds, result.undefined, strict=True)
        if why
    ]
    length = (
        ""
        if result.normalised
        else "This model's attention weights are not normalised, and their scale is that of the training's length: at "
        "other lengths its steps are longer or shorter for that reason alone, which says nothing of its algorithm."
    )
    noise = "" if result.exceeds_noise else "The noise of this task is not known: risks hold it."
    measured = (
        f"Nearest members: {members}. They were chosen on {sizes.tuning:,} prompts of their own ({sizes.tuning_dear:,} "
        f"for {dear}), and so were the best ones. {sizes.training:,} prompts as in training and {sizes.other:,} of "
        f"each other kind, for {dear} {sizes.training_dear:,} and {sizes.other_dear:,} of these; seed {result.seed}. "
        f"All predictions are clipped to {BOUND:g} root mean squares of labels, the prompt's own and all prompts' "
        f"together; distances are over the {ORDINARY:.0%} of prompts with the least λ_max of X̃ᵀX̃/L, risks over all."
    )
    return " ".join(filter(None, (measured, result.left_out, length, noise, *lost)))
