"""From rows to a study: what was said of members whose truth is known, counted."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from typing import Literal, TypeVar

import numpy as np

from icl_interp.calibration import Coverage, Error, FamilyTold, Found, Rate, Spread, Study, Truth, spread_of
from icl_interp.estimates import LEVEL
from icl_interp.testing.drawing import FAILED, Measured, Row
from icl_interp.testing.known import Family

T = TypeVar("T")
K = TypeVar("K", bound=Hashable)
SIZES = tuple(float(f"{edge:.3g}") for edge in np.geomspace(1e-3, 1, 13))  # edges of bins of perturbation sizes
PASS, PASS_TRAINED = 0.004, 0.0  # most of a family's members that may pass a claim which they violate
FOUND = 0.99  # least of the members of which a claim is true that it has to hold on
MANY, COVERED_WITHIN = 2_000, 0.02
ROUNDING = 2e-6  # of weights in float32: what is known so well has no error to speak of
ENOUGH = 10  # members in a bin, for what is said of it to mean anything


def told(family: Family, rows: Sequence[Row]) -> FamilyTold:
    """The family as the study met it."""
    raised = Counter(claim.partition(".")[0] for row in rows for claim in row.claims if _is_failure(claim))
    most_first = tuple(raised.most_common())
    return FamilyTold(family.name, family.title, family.trained, len(rows), family.holds, family.violates, most_first)


def rates(family: Family, rows: Sequence[Row]) -> Iterator[Rate]:
    """What became of each claim; a member on which a probe said nothing of it counts as not applicable."""
    for claim in _claims(family, rows):
        counts = Counter(row.claims[claim].status for row in rows if claim in row.claims)
        decided = {status: counts[status] for status in ("holds", "fails", "inconclusive")}
        rest = len(rows) - sum(decided.values())
        yield Rate(family.name, claim, truth(family, claim), len(rows), **decided, not_applicable=rest)


def spreads(family: Family, rows: Sequence[Row]) -> Iterator[Spread]:
    """The numbers of each claim."""
    for claim in _claims(family, rows):
        values = [row.claims[claim].value for row in rows if claim in row.claims]
        if not np.isnan(values).all():
            yield spread_of(claim, family.name, truth(family, claim), values)


def found(family: Family, rows: Sequence[Row]) -> Iterator[Found]:
    """How many of the members of which a claim is true it held on, by the size of their perturbation."""
    for upper, members in _by_size(rows):
        for claim in (claim for claim in family.claims if claim in family.holds):
            holds = sum(claim in row.claims and row.claims[claim].status == "holds" for row in members)
            yield Found(claim, upper, holds, len(members))


def coverage(family: Family, rows: Sequence[Row]) -> Iterator[Coverage]:
    """How often the intervals of estimates whose truth is known held it; not those as narrow as rounding."""
    numbers = [number for row in rows for number in _of(row)]
    intervals = [(path, m) for path, m in numbers if ROUNDING * max(abs(m.truth), 1) < m.high - m.low < np.inf]
    for (path, covers, prompts), group in _grouped(intervals, lambda item: (item[0], item[1].covers, item[1].prompts)):
        held = [m.low <= m.truth <= m.high for _, m in group]
        yield Coverage(path, covers, prompts, sum(held), len(held), family.name)


def errors(family: Family, rows: Sequence[Row]) -> Iterator[Error]:
    """Of every estimate whose truth is known, against the size of the perturbation and the number of prompts."""
    measured = [(path, row.size, m.prompts, m.value - m.truth) for row in rows for path, m in _of(row)]
    measured += [(f"{what}, share wrong", row.size, n, share) for row in rows for what, n, share in _wrong(row)]
    finite = [item for item in measured if np.isfinite(item[3])]
    for path, group in _grouped(finite, lambda item: item[0]):
        by_size = [(_upper(size), miss) for _, size, _, miss in group if size > 0]
        by_prompts = [(float(prompts), miss) for _, _, prompts, miss in group if prompts]
        both: tuple[tuple[Literal["size", "prompts"], list[tuple[float, float]]], ...]
        both = ("size", by_size), ("prompts", by_prompts)
        for against, pairs in both:
            bins = [(at, np.array([miss for _, miss in near])) for at, near in _grouped(pairs, lambda pair: pair[0])]
            bins = [(at, misses) for at, misses in bins if len(misses) >= ENOUGH]
            if bins:
                rms = tuple(float(f"{np.sqrt((misses**2).mean()):.4g}") for _, misses in bins)
                bias = tuple(float(f"{misses.mean():.4g}") for _, misses in bins)
                at, counts = tuple(at for at, _ in bins), tuple(len(misses) for _, misses in bins)
                yield Error(path, against, family.name, at, rms, bias, counts)


def exceptions(study: Study) -> Iterator[tuple[str, str]]:
    """What is not as it should be: a key for it, and what it is in words."""
    for family in study.families:
        for probe, times in family.raised:
            yield f"{probe} raises on {family.name}", f"{probe} raises on {times} of {family.models} {family.name}"
    trained = {family.name for family in study.families if family.trained}
    for rate in study.rates:
        most = PASS_TRAINED if rate.family in trained else PASS
        said = f"{rate.claim} holds on {rate.holds} of {rate.models} {rate.family}"
        if rate.truth == "violates" and rate.holds > most * rate.models:
            yield f"{rate.claim} passes {rate.family}", said
        if rate.truth == "holds" and rate.holds < FOUND * rate.models:
            yield f"{rate.claim} misses {rate.family}", said
    for row in study.coverage:
        if not covers_as_it_should(row):
            share = f"{row.held} of {row.of} ({row.held / row.of:.1%})"
            where = f"{row.estimate} at {row.prompts:,} prompts" if row.prompts else row.estimate
            yield (
                f"{row.estimate} covers {row.models}",
                f"the interval of {where} holds the truth in {share}, {row.models}",
            )


def covers_as_it_should(row: Coverage) -> bool:
    """Within 93 to 97 % where there are 2,000 and more, else within three standard errors of 95 %."""
    slack = COVERED_WITHIN if row.of >= MANY else 3 * math.sqrt(LEVEL * (1 - LEVEL) / row.of)
    return abs(row.held / row.of - LEVEL) <= slack


def truth(family: Family, claim: str) -> Truth:
    """What the family says of a claim; nothing of those for whose sake its members were not looked at."""
    if claim not in family.claims:
        return "unsaid"
    return "holds" if claim in family.holds else "violates"


def _claims(family: Family, rows: Sequence[Row]) -> list[str]:
    said = dict.fromkeys(claim for row in rows for claim in row.claims if not _is_failure(claim))
    return list(dict.fromkeys([*family.claims, *said]))


def _is_failure(claim: str) -> bool:
    return claim.partition(".")[2] == FAILED


def _of(row: Row) -> Iterator[tuple[str, Measured]]:
    """Its estimates, those of single heads and entries under one name."""
    for path, measured in row.numbers.items():
        yield re.sub(r"\.\d+", "", path), measured


def _wrong(row: Row) -> Iterator[tuple[str, int, float]]:
    """Which share of its roles is wrong, and whether its mode is; with the prompts that they were found on."""
    if row.roles is not None:
        prompts = max(
            (said.prompts for claim, said in row.claims.items() if claim.startswith("head_roles.")), default=0
        )
        yield "head_roles.roles", prompts, float(np.mean([a != b for a, b in zip(*row.roles, strict=True)]))
    if row.mode is not None:
        allocated = [said.prompts for claim, said in row.claims.items() if claim.startswith("task_allocation.")]
        yield "task_allocation.mode", max(allocated, default=0), float(row.mode[0] != row.mode[1])


def _upper(size: float) -> float:
    """The upper edge of the bin that a size is in."""
    return next((edge for edge in SIZES if size <= edge * (1 + 1e-9)), SIZES[-1])


def _by_size(rows: Sequence[Row]) -> Iterator[tuple[float, list[Row]]]:
    return _grouped(rows, lambda row: _upper(row.size))


def _grouped(items: Iterable[T], key: Callable[[T], K]) -> Iterator[tuple[K, list[T]]]:
    groups: dict[K, list[T]] = {}
    for item in items:
        groups.setdefault(key(item), []).append(item)
    return iter(sorted(groups.items()))  # pyright: ignore[reportArgumentType] - keys are numbers, words or tuples of them
