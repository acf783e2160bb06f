"""A calibration study as one HTML page (see `page`): every claim with its two pictures and its counts, then intervals.

A hundred pictures would keep plotly.js busy for long, so these are small SVGs; the page's script has little to do.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version

from icl_interp.calibration import (
    Coverage,
    Error,
    Rate,
    Reliability,
    Spread,
    Study,
    ThresholdTold,
    found,
    reliability,
    tradeoff,
)
from icl_interp.probing import Cell, Table
from icl_interp.probing.verdicts import CLAIMS, LOOKS
from icl_interp_reports.page import filled
from icl_interp_reports.plots import Axis, Curve, Dot, axis_around, plot_svg

COVERED = (0.93, 0.97)  # where the shares of 95 % intervals that hold the truth should lie
TRUTHS = {"holds": "true", "violates": "false", "unsaid": "not said"}
UNSAMPLED = 1_000  # where a logarithmic axis of prompts shows none
COLOURS = 7  # of curves, in the style sheet
SHARES = ("2.5 %", 0.025), ("median", 0.5), ("97.5 %", 0.975)


@dataclass(frozen=True)
class Judged:
    """A claim as the page shows it."""

    probe: str
    claim: str
    threshold: ThresholdTold | None
    known: Reliability | None
    pictures: tuple[tuple[str, str], ...]
    tables: tuple[Table, ...]


@dataclass(frozen=True)
class Measured:
    """An estimate as the page shows it: a picture or two, and the numbers beneath."""

    name: str
    pictures: tuple[tuple[str, str], ...]
    table: Table
    legend: tuple[tuple[str, str], ...] = ()


def calibration_html(study: Study) -> str:
    """One self-contained page; the same study gives the same text."""
    probes: dict[str, list[Judged]] = {}
    for judged in _claims(study):
        probes.setdefault(judged.probe, []).append(judged)
    return filled(
        "calibration.html",
        {},
        version=version("icl-interp"),
        study=study,
        probes=probes,
        coverage=list(_coverage(study)),
        errors=list(_errors(study)),
        decided=(CLAIMS, LOOKS),
        titles={family.name: family.title for family in study.families},
        models=sum(family.models for family in study.families),
    )


def claims_of(study: Study) -> list[str]:
    """All claims that a family says something of or that have a threshold, those of a probe together."""
    said = [rate.claim for rate in study.rates if rate.truth != "unsaid"]
    claims = dict.fromkeys([*said, *(threshold.claim for threshold in study.thresholds)])
    probes = list(dict.fromkeys(claim.partition(".")[0] for claim in claims))
    return sorted(claims, key=lambda claim: probes.index(claim.partition(".")[0]))


def found_by_size(study: Study, claim: str) -> Table | None:
    """A row a size of the perturbation: on how many of the models of which the claim is true it held."""
    sizes: dict[float, tuple[int, int]] = {}
    for each in study.found:
        if each.claim == claim:
            held, of = sizes.get(each.size, (0, 0))
            sizes[each.size] = held + each.found, of + each.of
    rows = tuple((size, held, of) for size, (held, of) in sorted(sizes.items()))
    columns = ("perturbed by up to", "found", "of")
    return Table(columns, rows, f"Where {claim} is true: found, by the size of the perturbation.") if rows else None


def _claims(study: Study) -> Iterator[Judged]:
    thresholds = {threshold.claim: threshold for threshold in study.thresholds}
    for claim in claims_of(study):
        rates = [rate for rate in study.rates if rate.claim == claim]
        spreads = [spread for spread in study.spreads if spread.claim == claim]
        threshold, by_size = thresholds.get(claim), found_by_size(study, claim)
        probe, _, name = claim.partition(".")
        pictures = tuple(_pictures(name, threshold, [spread for spread in spreads if spread.truth != "unsaid"]))
        tables = (_counts(claim, rates, spreads), *([by_size] if by_size else []))
        yield Judged(probe, name, threshold, reliability(claim, study), pictures, tables)


def _counts(claim: str, rates: Sequence[Rate], spreads: Sequence[Spread]) -> Table:
    known = {spread.family: spread for spread in spreads}
    order = sorted(rates, key=lambda rate: list(TRUTHS).index(rate.truth))
    rows = tuple(
        (
            rate.family,
            TRUTHS[rate.truth],
            rate.models,
            rate.holds,
            rate.fails,
            rate.inconclusive,
            rate.not_applicable,
            *(known[rate.family].quantile(level) if rate.family in known else None for _, level in SHARES),
        )
        for rate in order
    )
    columns = ("family", "the claim is", "models", "holds", "fails", "inconclusive", "not applicable")
    return Table((*columns, *(name for name, _ in SHARES)), rows, f"Verdicts on {claim}, and its number, by family.")


def _pictures(name: str, threshold: ThresholdTold | None, spreads: Sequence[Spread]) -> Iterator[tuple[str, str]]:
    true = [spread for spread in spreads if spread.truth == "holds"]
    false = [spread for spread in spreads if spread.truth == "violates"]
    if threshold and true and false:
        yield "Another threshold", _tradeoffs(name, threshold, true, false)
    if spreads:
        yield "Where the numbers lie", _spreads(name, threshold, [*false, *true])


def _tradeoffs(name: str, threshold: ThresholdTold, true: Sequence[Spread], false: Sequence[Spread]) -> str:
    """A curve a family that violates the claim; dots where the threshold lies."""
    curves, dots, now = [], [], (threshold.low, threshold.high)
    for spread in false:
        x, y = tradeoff(threshold, true, spread)
        curves.append(Curve(x, y, "violates", spread.family))
        passing, right = (float(share) for share in (spread.share(*now), found(true, *now)))
        said = f"{spread.family} at {threshold}: {100 * passing:.3g} % pass, {100 * right:.3g} % of true ones are found"
        dots.append(Dot(passing, right, "chosen", said))
    alt = f"As the threshold of {name} moves: share of violating models that pass, against share of true ones found"
    x, y = Axis("share of violating models that pass", 0, 1), Axis("share of true models found", 0, 1)
    return plot_svg(alt, x, y, curves=curves, dots=dots)


def _spreads(name: str, threshold: ThresholdTold | None, spreads: Sequence[Spread]) -> str:
    """A curve a family; upright lines where the threshold lies."""
    ends = (threshold.low, threshold.high) if threshold else ()
    # A few numbers far out would squeeze all the others.
    inner = [spread.quantile(level) for spread in spreads for level in (0.025, 0.5, 0.975)]
    x = axis_around(name.replace("_", " "), [*inner, *ends])
    curves = [
        Curve(*spread.cumulative(), spread.truth, f"{spread.family}: {TRUTHS[spread.truth]}") for spread in spreads
    ]
    alt = f"Share of models at or below each value of {name}, a curve a family"
    return plot_svg(alt, x, Axis("share at or below", 0, 1), curves=curves, upright=ends)


def _coverage(study: Study) -> Iterator[Measured]:
    estimates: dict[str, list[Coverage]] = {}
    for row in study.coverage:
        estimates.setdefault(row.estimate, []).append(row)
    for estimate, rows in estimates.items():
        models = list(dict.fromkeys(row.models for row in rows))
        dots = [
            Dot(_beside(row, models), row.share, _colour(models.index(row.models)), _covered(row), *row.interval)
            for row in rows
        ]
        prompts = axis_around(_prompts(rows), [dot.x for dot in dots], log=True)
        shares = Axis("share that hold the truth", min(0.88, *(dot.low - 0.01 for dot in dots)), 1.0)
        alt = f"How often the 95 % interval of {estimate} holds the truth, by number of prompts; tinted: 93 to 97 %"
        cells: list[tuple[Cell, ...]] = [
            (row.models, row.covers, row.prompts or None, row.held, row.of, row.share, *row.interval) for row in rows
        ]
        columns = ("models", "covers", "prompts", "held", "of", "share", "low", "high")
        picture = plot_svg(alt, prompts, shares, dots=dots, band=COVERED)
        table = Table(columns, tuple(cells), f"Coverage of {estimate}, with 95 % intervals of the share.")
        yield Measured(estimate, (("", picture),), table, _legend(models))


def _prompts(rows: Sequence[Coverage]) -> str:
    return "prompts" if all(row.prompts for row in rows) else f"prompts; at {UNSAMPLED:,} what draws none"


def _beside(row: Coverage, models: Sequence[str]) -> float:
    """Its prompts, moved a little so that points of several families stand side by side."""
    return (row.prompts or UNSAMPLED) * 1.06 ** (models.index(row.models) - (len(models) - 1) / 2)


def _covered(row: Coverage) -> str:
    return f"{row.models}, {row.prompts:,} prompts: {row.held:,} of {row.of:,}"


def _errors(study: Study) -> Iterator[Measured]:
    estimates: dict[str, list[Error]] = {}
    for error in study.errors:
        estimates.setdefault(error.estimate, []).append(error)
    for estimate, errors in estimates.items():
        families = list(dict.fromkeys(error.family for error in errors))
        pictures = []
        for against, words in (("size", "size of the perturbation"), ("prompts", "prompts")):
            if of := [error for error in errors if error.against == against]:
                pictures.append((f"Against {words}", _missed(estimate, of, words, families)))
        rows = tuple(
            (error.family, error.against, *each)
            for error in errors
            for each in zip(error.at, error.rms, error.bias, error.models, strict=True)
        )
        columns = ("family", "against", "at", "rms error", "bias", "models")
        yield Measured(estimate, tuple(pictures), Table(columns, rows, f"Errors of {estimate}."), _legend(families))


def _missed(estimate: str, errors: Sequence[Error], words: str, families: Sequence[str]) -> str:
    curves = []
    for error in errors:
        colour = _colour(families.index(error.family))
        curves.append(Curve(error.at, error.rms, colour, f"{error.family}: rms error"))
        curves.append(Curve(error.at, [abs(bias) for bias in error.bias], f"{colour} bias", f"{error.family}: |bias|"))
    across = axis_around(words, [at for error in errors for at in error.at], log=True)
    high = axis_around("error", [miss for curve in curves for miss in curve.y], log=True)
    return plot_svg(f"Errors of {estimate} against {words}: rms solid, |bias| dashed", across, high, curves=curves)


def _legend(names: Sequence[str]) -> tuple[tuple[str, str], ...]:
    return tuple((_colour(i), name) for i, name in enumerate(names))


def _colour(index: int) -> str:
    return f"c{index % COLOURS}"
