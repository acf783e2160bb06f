"""What the data set holds of a run: its parameters, every verdict and every scalar of every finding; no timing."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator

import numpy as np

from icl_interp.analysis import Analysis
from icl_interp.probing import Estimate
from icl_interp.sweeps.grid import Cell

Row = dict[str, object]


def failed(cell: Cell, error: str) -> Row:
    """Of a run of which there is nothing but why."""
    return {"cell": cell.key, **cell.parameters, "error": error}


def row_of(cell: Cell, analysis: Analysis) -> Row:
    """Columns are "probe.claim.status", ".value", ".low", ".high", and "probe.field" for what probes found.

    Of a finding there are numbers, words and flags, estimates with their ends, and lists of words; what is an array is
    left to the run itself.
    """
    row: Row = {"cell": cell.key, **cell.parameters, "error": None}
    for outcome in analysis:
        row[f"{outcome.probe}.status"] = outcome.status
        row[f"{outcome.probe}.prompts"] = outcome.prompts
        for verdict in outcome.verdicts:
            name = f"{outcome.probe}.{verdict.claim}"
            row[f"{name}.status"] = verdict.status
            if verdict.estimate is not None:
                row |= _ends(name, verdict.estimate)
        row |= dict(_scalars(outcome.probe, outcome.value))
    return row


def _scalars(name: str, value: object) -> Iterator[tuple[str, object]]:
    """What a finding has that fits a cell of a table."""
    if isinstance(value, Estimate):
        yield from _ends(name, value).items()
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for field in dataclasses.fields(value):
            yield from _scalars(f"{name}.{field.name}", getattr(value, field.name))
    elif isinstance(value, tuple) and value and all(isinstance(each, str) for each in value):
        yield name, ",".join(value)
    elif isinstance(value, bool | str):
        yield name, value
    elif isinstance(value, int | float | np.number):
        yield name, float(value)


def _ends(name: str, estimate: Estimate) -> Row:
    ends = (("value", estimate.value), ("low", estimate.low), ("high", estimate.high))
    return {f"{name}.{end}": float(number) if not math.isnan(number) else None for end, number in ends}
