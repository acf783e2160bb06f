"""What probes say of the members of a family, a row a member: what a study of verdicts is made of.

    rows = examine(known_families()["untrained"], range(20))

Members are read as a user would, with sampling that goes on until claims are decided, but from fewer prompts on: what
is decided at the first look of `FIRST` prompts is what costs time, and more looks are more chances to be wrong, so a
study with more of them is no kinder than the default.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from icl_interp.calibration import ThresholdTold
from icl_interp.probing import AnyProbe, Context, Estimate, Outcome, Probe, discover, fitting, run_probe
from icl_interp.probing.outcomes import STEP
from icl_interp.testing.known import Family, Known

FIRST, BUDGET = 1_024, 65_536  # prompts of the first look, and of the last
FAILED = "failed"  # stands for the claims of a probe that raised


@dataclass(frozen=True)
class Said:
    """What was said of one claim: status, number and interval (NaN without one), and the prompts of the last look."""

    status: str
    value: float = math.nan
    low: float = math.nan
    high: float = math.nan
    prompts: int = 0


@dataclass(frozen=True)
class Measured:
    """An estimate beside its truth; `low` and `high` are NaN where it has no interval."""

    truth: float
    value: float
    low: float
    high: float
    covers: str
    prompts: int


@dataclass(frozen=True)
class Row:
    """What the probes said of one member.

    Args:
        seed, size: of the member.
        claims: by "probe.claim".
        numbers: by the path that `Known.numbers` gives.
        roles, mode: the truth and what was found, where the truth is known.
    """

    seed: int
    size: float
    claims: dict[str, Said]
    numbers: dict[str, Measured] = field(default_factory=dict)
    roles: tuple[tuple[str, ...], tuple[str, ...]] | None = None
    mode: tuple[str, str] | None = None


def examine(
    family: Family,
    seeds: Sequence[int],
    *,
    probes: Sequence[AnyProbe] | None = None,
    first: int = FIRST,
    budget: int = BUDGET,
    folder: Path | None = None,
) -> Iterator[Row]:
    """A row for each of the family's members.

    Only claims of which the family says something are worth a further look.  Members of a family that says nothing get
    one look each, of half as many prompts as `first`, twice or eight times as many in turn: of them errors are wanted.

    Args:
        family: of checkpoints of which something is known.
        seeds: of the members; each also decides the prompts that its member is looked at on.
        probes: None means those that the family puts to the test, or all of them if it says nothing.
        first, budget: prompts of the first look, and of the last.
        folder: where trained members are kept.
    """
    for seed, known in zip(seeds, family.members(seeds, folder), strict=True):
        chosen = applicable(family, known) if probes is None else probes
        once = first // 2 * STEP ** (seed % 3)
        looks = (first, budget) if family.claims else (once, once)
        yield look_at(known, seed, chosen, *looks, claims=family.claims)


def applicable(family: Family, member: Known) -> list[AnyProbe]:
    """The installed probes that the family puts to the test, or all that apply if it says nothing of any claim."""
    known, _ = discover()
    if family.probes:
        finds = (["head_roles"] if member.roles else []) + (["task_allocation"] if member.mode else [])
        return [known[name] for name in dict.fromkeys([*family.probes, *finds])]
    return [*fitting(member.run.model_config)]


def look_at(
    known: Known,
    seed: int,
    probes: Sequence[AnyProbe],
    first: int = FIRST,
    budget: int = BUDGET,
    claims: Collection[str] | None = None,
) -> Row:
    """What `probes` say of one checkpoint; they look again for the sake of `claims`."""
    context = Context(known.run, known.task, seed=_entropy(seed), budget=budget)
    waited_for = None if claims is None else {claim.partition(".")[2] for claim in claims}
    outcomes = {
        p.name: run_probe(p, context, first=first, claims=waited_for) for p in cast("Sequence[Probe[object]]", probes)
    }
    said = {f"{name}.{claim}": of_it for name, outcome in outcomes.items() for claim, of_it in _said(outcome).items()}
    roles = _at(outcomes.get("head_roles"), "heads.roles")
    mode = _at(outcomes.get("task_allocation"), "mode")
    return Row(
        seed,
        known.size,
        said,
        {path: number for path, truth in known.numbers.items() if (number := _number(outcomes, path, truth))},
        (known.roles, tuple(roles)) if known.roles and roles else None,
        (known.mode, mode) if known.mode and mode else None,
    )


def thresholds(family: Family, seed: int) -> dict[str, ThresholdTold]:
    """Where the numbers of the claims have to lie, by "probe.claim", as the verdicts on one member say."""
    (known,) = family.members([seed], None)
    context = Context(known.run, known.task, budget=FIRST * STEP)  # with fewer prompts some claims have no number
    told: dict[str, ThresholdTold] = {}
    for probe in applicable(family, known):
        outcome = run_probe(probe, context)
        for verdict in outcome.verdicts:
            if limit := verdict.threshold:
                claim = f"{outcome.probe}.{verdict.claim}"
                told[claim] = ThresholdTold(claim, limit.low, limit.high, limit.reason)
    return told


def _said(outcome: Outcome) -> dict[str, Said]:
    """By claim; a probe that failed says so of a claim of its own name."""
    if outcome.status in ("failed", "broken"):
        return {FAILED: Said("failed")}
    return {
        verdict.claim: Said(verdict.status, e.value, e.low, e.high, outcome.prompts)
        if (e := verdict.estimate)
        else Said(verdict.status, prompts=outcome.prompts)
        for verdict in outcome.verdicts
    }


def _number(outcomes: dict[str, Outcome], path: str, truth: float) -> Measured | None:
    """The estimate at a dotted path of a probe's result; None if the probe has no result, or nothing there."""
    probe, _, rest = path.partition(".")
    outcome = outcomes.get(probe)
    found = _at(outcome, rest)
    if outcome is None or found is None:
        return None
    if isinstance(found, Estimate):
        return Measured(truth, found.value, found.low, found.high, found.covers, outcome.prompts)
    name, _, index = rest.partition(".")
    half = _at(outcome, f"{name}_half{'.' * bool(index)}{index}")
    half = math.nan if half is None else float(half)
    return Measured(truth, float(found), found - half, found + half, "", outcome.prompts)


def _at(outcome: Outcome | None, path: str) -> Any:
    """What lies at a dotted path of a result, such as "omega.0"; None if nothing does."""
    value: Any = outcome.value if outcome else None
    for step in path.split("."):
        try:
            value = value[int(step)] if step.isdigit() else getattr(value, step)
        except (IndexError, TypeError, AttributeError):
            return None
    return value


def _entropy(seed: int) -> int:
    """Of the prompts: not the member's own seed, with which its weights were drawn."""
    return zlib.crc32(f"prompts of {seed}".encode())
