"""What became of a probe: every one leaves an outcome, also the broken and the skipped.

A probe that draws prompts looks with few of them first, and again with more for as long as one of its claims is left
open for want of them and the budget lasts.  The last look alone counts, and for all of the probe's claims, so that what
is shown and what is concluded are of the same prompts.  `verdicts` says what keeps several looks honest.
"""

from __future__ import annotations

import inspect
import sys
import traceback
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, is_dataclass, replace
from pathlib import Path
from types import UnionType
from typing import Literal, TypeVar, cast

from icl_interp.config import check_count
from icl_interp.errors import NumericsError
from icl_interp.probing.blocks import Block
from icl_interp.probing.context import FIRST, Context, Need, NotApplicable
from icl_interp.probing.registry import AnyProbe, Probe, is_probe_file
from icl_interp.probing.verdicts import LOOKS, Verdict
from icl_interp.serialization import dumps, to_data

T = TypeVar("T")
OutcomeStatus = Literal["done", "skipped", "not_applicable", "failed", "broken"]

STEP = 4  # times as many prompts, at most, in the next look: half the interval
# What intervals cover that more prompts do not narrow: a record is as long as it is.
NOT_OF_PROMPTS = ("exact", "training time", "time between records", "noise of iterates")

_OFFERS = {
    Need.WEIGHTS: "the model's weights",
    Need.FORWARD: "a model that can run",
    Need.TASK: "the task (pass task=, or --length and --noise-var on the command line)",
    Need.DYNAMICS: "the record of the training",
    Need.ONE_LAYER: "one layer of heads on a prompt's own columns: this model has more",
    Need.DEEP: "several layers, or more than heads: this model has one layer of heads on a prompt's own columns",
    Need.SEVERAL_RESPONSES: "several responses: this model has one",
}


@dataclass(frozen=True, eq=False)
class Outcome:
    """One probe's outcome.

    `status` is `done`, `skipped` (a need was not met), `not_applicable` (the probe said so), `failed` (it raised), or
    `broken` (it could not be loaded); `reason` says why, `details` holds a failure's traceback.  `value` is what the
    probe found; its type is the probe's own, so type checkers see an `object`: `Analysis.get` is typed.  `about` is the
    first paragraph of the probe's docstring, `source` the module or file it came from, `looked_at` what it declared.
    `looks` are the prompts of each look, none where nothing is drawn; value, blocks and verdicts are those of the last.
    Where a further look failed, the outcome is `done` with what the look before it found, `reason` says what failed.
    """

    probe: str
    title: str
    status: OutcomeStatus
    value: object = None
    blocks: tuple[Block, ...] = ()
    verdicts: tuple[Verdict, ...] = ()
    reason: str = ""
    details: str = ""
    about: str = ""
    source: str = ""
    looked_at: Need = Need.NONE
    looks: tuple[int, ...] = ()

    @property
    def prompts(self) -> int:
        """Those of the last look, whose finding this is; 0 where nothing is drawn."""
        return self.looks[-1] if self.looks else 0

    @property
    def undecided(self) -> tuple[str, ...]:
        """The claims that the last look left inconclusive."""
        return tuple(verdict.claim for verdict in self.verdicts if verdict.status == "inconclusive")

    def __repr__(self) -> str:
        from icl_interp_reports import outcome_in_a_line

        return outcome_in_a_line(self)

    def _repr_html_(self) -> str:
        from icl_interp_reports import outcome_in_notebook

        return outcome_in_notebook(self)


def run_probe(
    probe: AnyProbe, context: Context, *, first: int | None = None, claims: Collection[str] | None = None
) -> Outcome:
    """Run one probe until its prompts decide its claims or the context's budget ends.

    Whatever it does, an outcome comes back (but for Ctrl-C).  If a further look fails, for want of memory perhaps, what
    the look before it found stays, with the failure as the outcome's `reason` and `details`.

    Args:
        probe: declared with `@probe`.
        context: of the whole budget.
        first: prompts of the first look; None means 32,768.
        claims: those for whose sake it looks again; None means all of them.

    Raises:
        ConfigError: a first look without prompts.
    """
    first = FIRST if first is None else first
    check_count("first", first)
    looks = planned_looks(first, context.budget)
    return _run(cast("Probe[object]", probe), context, looks, claims)  # `blocks`, `judge` take what `run` returned


def planned_looks(first: int, budget: int) -> tuple[int, ...]:
    """Prompts of each look that may be needed: from the first to the budget, evenly in their logarithm.

    As few looks as keep each within `STEP` times the one before, but no more than `LOOKS`; one of a smaller budget.
    """
    further = 0
    while first * STEP**further < budget and further < LOOKS - 1:
        further += 1
    return (*(round(first * (budget / first) ** (look / further)) for look in range(further)), budget)


def _run(probe: Probe[object], context: Context, looks: Sequence[int], claims: Collection[str] | None) -> Outcome:
    blank = Outcome(
        probe.name,
        probe.title,
        "skipped",
        about=_first_paragraph(type(probe).__doc__),
        source=_source(type(probe)),
        looked_at=probe.needs | probe.uses,
    )
    missing = [words for need, words in _OFFERS.items() if need in probe.needs and need not in context.available]
    if missing:
        return replace(blank, reason=f"needs {' and '.join(missing)}")
    if Need.TASK not in blank.looked_at & context.available:
        return _look(probe, context, blank)
    outcome = blank
    for prompts in looks:
        latest = _look(probe, context.at(prompts), blank)
        if latest.status == "failed" and outcome.looks:
            reason = f"a further look, with {prompts:,} prompts, failed: {latest.reason}"
            return replace(outcome, reason=reason, details=latest.details)
        outcome = replace(latest, looks=(*outcome.looks, prompts))
        if not any(_wants_prompts(v) for v in outcome.verdicts if claims is None or v.claim in claims):
            break
    return outcome


def _wants_prompts(verdict: Verdict) -> bool:
    """Whether more prompts may decide it."""
    covers = verdict.estimate.covers if verdict.estimate else ""
    return verdict.status == "inconclusive" and covers not in NOT_OF_PROMPTS


def _look(probe: Probe[object], context: Context, blank: Outcome) -> Outcome:
    """What one run of the probe found, or how it ended."""
    try:
        value = probe.run(context.restricted(probe.needs | probe.uses))
        _check_result(value)
        blocks = _sequence(probe.blocks(value), Block, "blocks() must return Blocks")
        verdicts = _sequence(probe.judge(value), Verdict, "judge() must return Verdicts")
        return replace(blank, status="done", value=value, blocks=blocks, verdicts=verdicts)
    except (NotApplicable, NumericsError) as reason:  # nor does a claim apply to predictions that are not defined
        return replace(blank, status="not_applicable", reason=str(reason))
    except (Exception, SystemExit) as error:
        return replace(blank, status="failed", **_went_wrong(error))


def broken(name: str, error: BaseException) -> Outcome:
    """The outcome of a plugin that could not be loaded."""
    wrong = _went_wrong(error)
    return Outcome(name, name, "broken", reason=f"could not be loaded: {wrong['reason']}", details=wrong["details"])


def _went_wrong(error: BaseException) -> dict[str, str]:
    return {"reason": f"{type(error).__name__}: {error}", "details": "".join(traceback.format_exception(error))}


def _first_paragraph(docstring: str | None) -> str:
    return " ".join(inspect.cleandoc(docstring or "").partition("\n\n")[0].split())


def _source(kind: type) -> str:
    """The probe's module, or its file's name where it was loaded from a file by path."""
    file = getattr(sys.modules.get(kind.__module__), "__file__", None)
    return Path(file).name if file and is_probe_file(kind.__module__) else kind.__module__


def _check_result(value: object) -> None:
    if not is_dataclass(value) or isinstance(value, type) or not value.__dataclass_params__.frozen:  # type: ignore[attr-defined]
        raise TypeError(f"run() must return a frozen dataclass, got {type(value).__name__}")
    try:
        dumps(to_data(value))
    except (TypeError, ValueError, RecursionError) as error:
        raise TypeError(f"{type(value).__name__}, what run() returned, does not go to JSON: {error}") from error


def _sequence(values: Sequence[T], kind: type | UnionType, promise: str) -> tuple[T, ...]:
    if not isinstance(values, Iterable):
        raise TypeError(f"{promise}, got {type(values).__name__}")
    values = tuple(values)
    for value in values:
        if not isinstance(value, kind):
            raise TypeError(f"{promise}, got a {type(value).__name__} among them")
    return values
