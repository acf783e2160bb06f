"""What became of a probe: every one leaves an outcome, also the broken and the skipped."""

from __future__ import annotations

import traceback
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, is_dataclass
from typing import Any, Literal

from icl_interp.probing.blocks import Block
from icl_interp.probing.context import Context, Need, NotApplicable
from icl_interp.probing.registry import Probe
from icl_interp.probing.verdicts import Verdict
from icl_interp.serialization import dumps, to_data

OutcomeStatus = Literal["done", "skipped", "not_applicable", "failed", "broken"]

_OFFERS = {
    Need.WEIGHTS: "the model's weights",
    Need.FORWARD: "a model that can run",
    Need.TASK: "the task (pass task=)",
    Need.DYNAMICS: "the record of the training",
}


@dataclass(frozen=True, eq=False)
class Outcome:
    """One probe's outcome.

    `status` is `done`, `skipped` (a need was not met), `not_applicable` (the probe said so), `failed` (it raised), or
    `broken` (it could not be loaded); `reason` says why, `details` holds a failure's traceback.
    """

    probe: str
    title: str
    status: OutcomeStatus
    value: Any = None
    blocks: tuple[Block, ...] = ()
    verdicts: tuple[Verdict, ...] = ()
    reason: str = ""
    details: str = ""


def run_probe(probe: Probe[Any], context: Context) -> Outcome:
    """Run one probe; whatever it does, an outcome comes back (but for Ctrl-C)."""
    name, title = probe.name, probe.title
    missing = [words for need, words in _OFFERS.items() if need in probe.needs and need not in context.available]
    if missing:
        return Outcome(name, title, "skipped", reason=f"needs {' and '.join(missing)}")
    try:
        value = probe.run(context.restricted(probe.needs | probe.uses))
        _check_result(value)
        blocks = _sequence(probe.blocks(value), Block, "blocks() must return Blocks")
        verdicts = _sequence(probe.judge(value), Verdict, "judge() must return Verdicts")
        return Outcome(name, title, "done", value, blocks, verdicts)
    except NotApplicable as reason:
        return Outcome(name, title, "not_applicable", reason=str(reason))
    except (Exception, SystemExit) as error:
        return _went_wrong(name, title, "failed", "", error)


def broken(name: str, error: BaseException) -> Outcome:
    """The outcome of a plugin that could not be loaded."""
    return _went_wrong(name, name, "broken", "could not be loaded: ", error)


def _went_wrong(name: str, title: str, status: OutcomeStatus, what: str, error: BaseException) -> Outcome:
    reason = f"{what}{type(error).__name__}: {error}"
    return Outcome(name, title, status, reason=reason, details="".join(traceback.format_exception(error)))


def _check_result(value: object) -> None:
    if not is_dataclass(value) or isinstance(value, type) or not value.__dataclass_params__.frozen:  # type: ignore[attr-defined]
        raise TypeError(f"run() must return a frozen dataclass, got {type(value).__name__}")
    try:
        dumps(to_data(value))
    except (TypeError, ValueError, RecursionError) as error:
        raise TypeError(f"{type(value).__name__}, what run() returned, does not go to JSON: {error}") from error


def _sequence(values: Sequence[Any], kind: Any, promise: str) -> tuple[Any, ...]:
    if not isinstance(values, Iterable):
        raise TypeError(f"{promise}, got {type(values).__name__}")
    values = tuple(values)
    for value in values:
        if not isinstance(value, kind):
            raise TypeError(f"{promise}, got a {type(value).__name__} among them")
    return values
