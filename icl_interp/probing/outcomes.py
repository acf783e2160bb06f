"""What became of a probe: every one leaves an outcome, also the broken and the skipped."""

from __future__ import annotations

import inspect
import sys
import traceback
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, is_dataclass, replace
from pathlib import Path
from types import UnionType
from typing import Literal, TypeVar, cast

from icl_interp.errors import NumericsError
from icl_interp.probing.blocks import Block
from icl_interp.probing.context import Context, Need, NotApplicable
from icl_interp.probing.registry import AnyProbe, Probe, is_probe_file
from icl_interp.probing.verdicts import Verdict
from icl_interp.serialization import dumps, to_data

T = TypeVar("T")
OutcomeStatus = Literal["done", "skipped", "not_applicable", "failed", "broken"]

_OFFERS = {
    Need.WEIGHTS: "the model's weights",
    Need.FORWARD: "a model that can run",
    Need.TASK: "the task (pass task=, or --length and --noise-var on the command line)",
    Need.DYNAMICS: "the record of the training",
    Need.SEVERAL_RESPONSES: "several responses: this model has one",
}


@dataclass(frozen=True, eq=False)
class Outcome:
    """One probe's outcome.

    `status` is `done`, `skipped` (a need was not met), `not_applicable` (the probe said so), `failed` (it raised), or
    `broken` (it could not be loaded); `reason` says why, `details` holds a failure's traceback.  `value` is what the
    probe found; its type is the probe's own, so type checkers see an `object`: `Analysis.get` is typed.  `about` is the
    first paragraph of the probe's docstring, `source` the module or file it came from, `looked_at` what it declared.
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

    def __repr__(self) -> str:
        from icl_interp_reports import outcome_in_a_line

        return outcome_in_a_line(self)

    def _repr_html_(self) -> str:
        from icl_interp_reports import outcome_in_notebook

        return outcome_in_notebook(self)


def run_probe(probe: AnyProbe, context: Context) -> Outcome:
    """Run one probe; whatever it does, an outcome comes back (but for Ctrl-C)."""
    return _run(cast("Probe[object]", probe), context)  # `blocks` and `judge` take what `run` returned


def _run(probe: Probe[object], context: Context) -> Outcome:
    skipped = Outcome(
        probe.name,
        probe.title,
        "skipped",
        about=_first_paragraph(type(probe).__doc__),
        source=_source(type(probe)),
        looked_at=probe.needs | probe.uses,
    )
    missing = [words for need, words in _OFFERS.items() if need in probe.needs and need not in context.available]
    if missing:
        return replace(skipped, reason=f"needs {' and '.join(missing)}")
    try:
        value = probe.run(context.restricted(probe.needs | probe.uses))
        _check_result(value)
        blocks = _sequence(probe.blocks(value), Block, "blocks() must return Blocks")
        verdicts = _sequence(probe.judge(value), Verdict, "judge() must return Verdicts")
        return replace(skipped, status="done", value=value, blocks=blocks, verdicts=verdicts)
    except (NotApplicable, NumericsError) as reason:  # nor does a claim apply to predictions that are not defined
        return replace(skipped, status="not_applicable", reason=str(reason))
    except (Exception, SystemExit) as error:
        return replace(skipped, status="failed", **_went_wrong(error))


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
