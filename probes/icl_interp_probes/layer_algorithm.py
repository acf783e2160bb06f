"""Does a deep model preprocess in its first layer, and then descend?  Read off its residual stream, layer by layer.

arXiv 2408.04532: the first layer weighs covariates by their correlation with the labels, x̃ = r̂ ∘ x with r̂ = Xᵀy/L, and
the later ones are steps of gradient descent on x̃.

Is x̃_q there after a layer?  A linear probe is fitted for it on half of the prompts and judged on the others.  A strong
probe is not a strong model, so two controls are asked for as well (Hewitt and Liang, EMNLP 2019): the x̃_q of other
prompts, which nothing can hold, and products r̂_k x_j of other pairs, which no algorithm here needs.  The second is the
one that bites: the wide stream of an untrained model has all products alike, x̃ with R² = 0.85 (d = 6, 16 heads of 32,
width 128) and other pairs with 0.84.  What counts is selectivity, 1 − (1 − R²)/(1 − R² of the control), the part that
is explained of what the control leaves; where the control explains nothing it is R².

Is the prediction after a layer that of an algorithm?  It is read by the model's own read-out (the logit lens), and by a
linear probe for y_q, and compared with gradient descent on x̃, on x, and with Newton's iterations, of so many steps and
such a rate as come nearest on other prompts: distance is E(p − a)²/E p².  What the probe reads is compared with what
the same probe reads off the algorithm's own stream: (x_q, a), or (x_q, x̃_q, a).

The claims rest on the read-out.  In a model that is the construction it is the algorithm's own prediction, and families
lie far apart: GD on x̃ within 0.001, all that the grid leaves, GD on x 0.4 to 0.6 away.  A probe after the first layer
sums x̃_q, which is a step of GD on x, and scales it as it likes: there GD on x is 0.0007 to 0.02 away.  And in trained
models, where the read-out of an early layer need not mean anything, its risk was that of the probe but for 4 %.

Intervals are over the prompts that judge, given what was fitted.  Cost: 8,192 prompts through the model at first, and a
grid of 6,000 algorithms on 2,048 of them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float

from icl_interp.probing import (
    Block,
    Cell,
    Context,
    Heatmap,
    Lines,
    Need,
    NotApplicable,
    Table,
    Text,
    Threshold,
    Verdict,
    judge,
    not_applicable,
    probe,
    rounded,
)
from icl_interp_probes.known_algorithms import ORDINARY, PREPROCESSED
from icl_interp_probes.layer_readings import FAMILIES, NOTHING, TUNING, Reading, Readings
from icl_interp_probes.layer_streams import CONTROLS, HELD, TARGETS, WEIGHED, Contents, Stream
from icl_interp_probes.shown import coordinates, extreme

SOURCE = "arXiv 2408.04532"
PROMPTS = 8_192  # or a quarter of what other measurements take where that is more
FEWEST, BY_FEATURE = 500, 10  # prompts in either half: for tails, and for a probe of so many features

THERE = Threshold(
    "constructions have 0.999 under noise of 2 % on every weight; half of their heads leave 0.4 to 0.5, one step of GD "
    "on x has 1/d; untrained models have 0.1 at most, and models trained with 8 heads on 16 covariates 0.06",
    low=0.9,
)
FOLLOWS = Threshold(
    "constructions under noise of 2 % on every weight are 0.001 to 0.02 from it, GD on x in two and three steps 0.08 "
    "to 0.22, models trained on 16 covariates 0.2, untrained ones 1.0",
    high=0.05,
)
NEARER = Threshold(
    "half as far as any other; constructions under noise of 2 % have 0.04 at most, untrained models, which are far "
    "from all, 1.0, models trained on 16 covariates 8 to 11",
    high=0.5,
)


@dataclass(frozen=True, eq=False)
class LayerAlgorithm:
    """What is there, and what is predicted, after each layer.

    Args:
        contents: what linear probes find in the stream.
        read_out: what the model's own read-out predicts.
        probed: what a linear probe for y_q predicts.
        stepwise: risk of each of `FAMILIES` if every layer were a step, at the best rate; GD on x̃ begins with the
            second layer.
        width: of the residual stream.
        prompts: that judge; as many others are fitted to.
        seed: of the prompts.
    """

    contents: Contents
    read_out: Reading
    probed: Reading
    stepwise: Float[np.ndarray, "families layers"]
    width: int
    prompts: int
    seed: int

    @property
    def layers(self) -> int:
        """Of the model."""
        return len(self.read_out.risk)

    @property
    def later(self) -> list[int]:
        """Layers after the first, counted from 0, after which anything is predicted."""
        return [layer for layer in range(1, self.layers) if self.read_out.reads[layer]]


@probe(
    name="layer_algorithm",
    title="Does the model preprocess in its first layer, and then descend, layer by layer?",
    needs=Need.WEIGHTS | Need.TASK | Need.DEEP,
    cost="ten seconds",
)
class LayerAlgorithmProbe:
    """Reads the residual stream at the query after every layer.  Linear probes tell whether the covariates are there
    weighed by their correlation with the labels, as preprocessing leaves them.  The model's own read-out, and a probe
    beside it, tell which known algorithm's prediction stands there: gradient descent on the weighed covariates or on
    the plain ones, or Newton's iterations.
    """

    def run(self, context: Context) -> LayerAlgorithm:
        """Fit and tune on half of the prompts, judge on the others."""
        context.single_response()
        config = context.config
        if config.dim == 1:
            raise NotApplicable("with one covariate there is nothing to weigh: x̃ is x but for its scale")
        prompts = context.holdable(min(context.budget, max(PROMPTS, context.budget // 4))) // 2
        prompts = max(1, min(prompts, HELD // ((config.n_layers + 1) * config.d_model)))
        fit, held = (Stream.draw(context, label, prompts) for label in ("fitting", "judging"))
        readings = Readings(fit, held)
        return LayerAlgorithm(
            contents=Contents.of(fit, held, context.rng("other prompts")),
            read_out=readings.by_read_out(),
            probed=readings.by_probe(),
            stepwise=readings.stepwise(),
            width=config.d_model,
            prompts=prompts,
            seed=context.seed,
        )

    def blocks(self, result: LayerAlgorithm) -> list[Block]:
        """What is there; what is predicted, and how well; which algorithm predicts so; how it was measured."""
        return [
            _explained(result.contents),
            _by_coordinate(result.contents),
            _risks(result),
            _distances(result.read_out, "the model's own read-out"),
            _distances(result.probed, "a linear probe for y"),
            _risks_beside(result.read_out),
            Text(_how(result)),
        ]

    def judge(self, result: LayerAlgorithm) -> list[Verdict]:
        """Is x̃ there after layer 1; is what is read afterwards GD on x̃; and is it that rather than another?"""
        enough = max(FEWEST, BY_FEATURE * (result.width + 1))
        return [
            _unless_few(result, _there(result), enough),
            _unless_few(result, _follows(result), FEWEST),
            _unless_few(result, _nearer(result), FEWEST),
        ]


def _unless_few(result: LayerAlgorithm, verdict: Verdict, fewest: int) -> Verdict:
    """The same claim, left open on too few prompts."""
    if result.prompts >= fewest or verdict.status == "not_applicable":
        return verdict
    reason = f"{result.prompts} prompts to fit to are too few to tell: it takes {fewest}."
    return replace(verdict, status="inconclusive", sentence=reason)


def _there(result: LayerAlgorithm) -> Verdict:
    before, after = (
        {
            name: f"{max(each[layer].value, 0.0):.1%}"
            for name, each in zip(TARGETS, result.contents.explained, strict=True)
        }
        for layer in (0, 1)
    )
    sentence = (
        f"After layer 1 a linear probe explains {after[WEIGHED]} of x̃ on prompts that it was not fitted to, before it "
        f"{before[WEIGHED]}; as controls {' and '.join(f'{after[name]} of {name}' for name in CONTROLS)}."
    )
    return judge("preprocessed_after_first_layer", SOURCE, result.contents.selectivity[1], THERE, sentence)


def _follows(result: LayerAlgorithm) -> Verdict:
    claim, reading = "follows_preprocessed_descent", result.read_out
    if (reason := _nothing_later(result)) is not None:
        return not_applicable(claim, SOURCE, reason)
    distances = {layer: reading.distance[layer][0] for layer in result.later}
    worst = max(distances, key=lambda layer: distances[layer].value)
    sentence = (
        f"What is read out of later layers differs most from {PREPROCESSED} after layer {worst + 1}: by "
        f"{distances[worst].value:.2g} of its mean square, from {reading.members[worst][0]}. {_ends_as(reading)}"
    )
    return judge(claim, SOURCE, extreme(max, list(distances.values())), FOLLOWS, sentence)


def _nearer(result: LayerAlgorithm) -> Verdict:
    claim, reading = "nearer_to_preprocessed_than_plain", result.read_out
    if (reason := _nothing_later(result)) is not None:
        return not_applicable(claim, SOURCE, reason)
    ratios = {layer: extreme(max, reading.ratio[layer]) for layer in result.later}
    worst = max(ratios, key=lambda layer: ratios[layer].value)
    rival = 1 + int(np.argmax([ratio.value for ratio in reading.ratio[worst]]))
    own, other = (reading.distance[worst][family].value for family in (0, rival))
    sentence = (
        f"What is read out after layer {worst + 1} is {own:.2g} of its mean square from {PREPROCESSED} and {other:.2g} "
        f"from {FAMILIES[rival]} ({reading.members[worst][rival]}). {_ends_as(reading)}"
    )
    return judge(claim, SOURCE, extreme(max, list(ratios.values())), NEARER, sentence)


def _nothing_later(result: LayerAlgorithm) -> str | None:
    """Why nothing can be asked of later layers, or None."""
    if result.layers == 1:
        return "the claim is about layers after the first; this model has one"
    return None if result.read_out.size[-1] else "the model predicts zero: there is no algorithm to name"


def _ends_as(reading: Reading) -> str:
    family, member = _nearest(reading, -1)
    if family is None:
        return "After the last layer it is near none of the families."
    return f"After the last layer the nearest is {family} ({member})."


def _nearest(reading: Reading, layer: int) -> tuple[str | None, str]:
    """The nearest family after a layer and its member; None where none is as near as the claim asks of GD on x̃."""
    distances = [each.value for each in reading.distance[layer]]
    least = int(np.argmin(distances))
    return FAMILIES[least] if distances[least] <= FOLLOWS.high else None, reading.members[layer][least]


def _explained(contents: Contents) -> Lines:
    value, low, high = (
        rounded([[getattr(each, end) for each in row] for row in contents.explained])
        for end in ("value", "low", "high")
    )
    return Lines(
        np.arange(value.shape[1], dtype=float),
        value,
        TARGETS,
        alt="R² of linear probes on the residual stream at the query, by layer: for x̃, for the correlations r̂ and for "
        "the controls.",
        title="What linear probes find in the residual stream",
        x_label="after layer (0: before the first)",
        y_label="R² on other prompts",
        low=low,
        high=high,
    )


def _by_coordinate(contents: Contents) -> Heatmap:
    layers, dim = contents.coordinates.shape
    return Heatmap(
        contents.coordinates[None],
        ("x̃",),
        alt="R² of a linear probe for each coordinate of x̃, a row for each layer.",
        title="x̃ by coordinate: R² on other prompts",
        row_labels=("before", *(f"after layer {layer}" for layer in range(1, layers))),
        column_labels=coordinates(dim, 0),
    )


def _risks(result: LayerAlgorithm) -> Lines:
    measured = [[each.value for each in reading.risk] for reading in (result.read_out, result.probed)]
    return Lines(
        np.arange(1, result.layers + 1, dtype=float),
        rounded(np.concatenate([measured, result.stepwise])),
        ("read out by the model", "read by a probe", *(f"{family}, a step a layer" for family in FAMILIES)),
        alt="Risk of the prediction after each layer, beside the risks of algorithms that take a step a layer.",
        title="Risk by layer",
        x_label="after layer",
        y_label="risk",
    )


def _distances(reading: Reading, how: str) -> Table:
    return Table(
        ("after layer", "risk", *FAMILIES, "nearest"),
        tuple(_row(reading, layer) for layer in range(len(reading.risk))),
        alt=f"Distance of what is read by {how} after each layer from each family of algorithms, and the nearest one.",
        title=f"Which algorithm is it, by {how}?",
    )


def _row(reading: Reading, layer: int) -> tuple[Cell, ...]:
    if not reading.reads[layer]:
        return layer + 1, reading.risk[layer], *(None for _ in FAMILIES), "nothing is read yet"
    family, member = _nearest(reading, layer)
    nearest = f"{family}: {member}" if family else "none of these"
    return layer + 1, reading.risk[layer], *reading.distance[layer], nearest


def _risks_beside(reading: Reading) -> Table:
    """Of the members that come nearest to the model's read-out."""
    rows: list[tuple[Cell, ...]] = []
    for layer, members in enumerate(reading.members):
        cells: list[Cell] = []
        for member, risk in zip(members, reading.risks[layer], strict=True):
            cells += [member, risk] if reading.reads[layer] else [None, None]
        rows.append((layer + 1, reading.risk[layer], *cells))
    return Table(
        ("after layer", "risk", *(name for family in FAMILIES for name in (f"nearest {family}", "its risk"))),
        tuple(rows),
        alt="After each layer the risk of the model's read-out, and the nearest member of each family with its risk.",
        title="The nearest of each family, and their risks",
    )


def _how(result: LayerAlgorithm) -> str:
    used = result.contents.penalties[:, 0]
    return (
        f"{result.prompts:,} prompts were fitted to, {min(TUNING, result.prompts):,} of them at most chose steps and "
        f"rates, {result.prompts:,} others judge; seed {result.seed}. Ridge penalties for x̃, in units of a feature's "
        f"variance: {', '.join(f'{penalty:g}' for penalty in used)}. Distance is E(p − a)²/E p² over the "
        f"{ORDINARY:.0%} of prompts with the least λ_max of X̃ᵀX̃/L; no family is named beyond {FOLLOWS.high:g}, and "
        f"nothing is read after a layer where E p² is below {NOTHING:.0%} of the last layer's. What the probe reads of "
        "y is compared with what it reads off the algorithm's own stream."
    )
