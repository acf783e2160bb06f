"""A sweep as one HTML page (see `page`): how often each claim holds, and the rows themselves, for the reader to ask.

The page carries the rows, and its script (`sweep.js`) groups, filters and draws them.  What was found travels as
float32 of four digits, a byte of each number after the other, which gzip halves: ten thousand rows of a hundred columns
fit into 5 MB.  Beneath that stand tables that need no script.
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Mapping, Sequence
from importlib.metadata import version

import numpy as np

from icl_interp.probing import Cell, Table
from icl_interp.sweeps.summary import STATUSES, STUDENT, Column, Summary, held
from icl_interp_reports.figures import DASHES, PALETTE
from icl_interp_reports.page import filled
from icl_interp_reports.plotlyjs import carried
from icl_interp_reports.words import brief, clean, label

LIMIT = 2_300_000  # bytes of rows, compressed: base85, plotly.js, words and tables beside them stay below 5 MB
MANY = 12  # values of a parameter that a table has columns for
SHOWN = 6  # of a parameter's values in the heading
MANTISSA = 12  # bits of a number's 23 that travel: 4 digits


def sweep_html(summary: Summary, name: str, reports: Mapping[str, str] | None = None) -> str:
    """One self-contained page; the same rows give the same text.

    Args:
        summary: the rows.
        name: of the sweep.
        reports: by cell, where a run has a report of its own, relative to the page.
    """
    kept, left_out = _kept(summary.columns)
    return filled(
        "sweep.html",
        {},
        first="sweep.js",
        version=version("icl-interp"),
        name=label(name),
        runs=len(summary.cells),
        varied=[(label(column.name), _values_in_words(column)) for column in summary.of_kind("parameter")],
        claims=_claims(summary),
        parameters=[_by_parameter(summary, column) for column in summary.varied if len(_distinct(column)) <= MANY],
        common={label(n): "none" if v is None or v != v else brief(str(v)) for n, v in summary.common.items()},
        failures=list(summary.failures.items()),
        most_failures=20,
        left_out=left_out,
        rows=carried(_packed(summary, kept, reports or {})),
    )


def _claims(summary: Summary) -> Table:
    claims = summary.of_kind("claim")
    rows = tuple((label(c.name), held(c.values), *(int((c.values == s).sum()) for s in STATUSES)) for c in claims)
    columns = ("claim", "holds, of runs it applies to", "holds", "fails", "inconclusive", "not applicable")
    return Table(columns, rows, "How often each claim holds, over all runs.")


def _by_parameter(summary: Summary, column: Column) -> Table:
    """A claim a row, a value of the parameter a column."""
    values = _distinct(column)
    rows: list[tuple[Cell, ...]] = []
    for claim in summary.of_kind("claim"):
        rows.append((label(claim.name), *(held(claim.values[column.values == value]) for value in values)))
    header = ("claim", *(f"{label(column.name)} {_written(value)}" for value in values))
    title = f"By {label(column.name)}"
    return Table(header, tuple(rows), "The share of runs in which a claim holds, of those it applies to.", title)


def _values_in_words(column: Column) -> str:
    values = [_written(value) for value in _distinct(column)]
    if len(values) <= SHOWN:
        return ", ".join(values)
    return f"{', '.join(values[:3])} … {values[-1]} ({len(values):,} values)"


def _distinct(column: Column) -> list[float | str]:
    values = column.values[~np.isnan(column.values)] if column.numeric else column.values
    return sorted(set(values.tolist()))


def _written(value: float | str) -> str:
    return label(value, 40) or "none" if isinstance(value, str) else f"{value:.6g}"


# --- What the page carries -------------------------------------------------------------------------------------------


def _kept(columns: Sequence[Column]) -> tuple[list[Column], list[str]]:
    """The columns that there is room for, from the first on; and the names of the others."""
    kept, left_out, room = [], [], LIMIT
    for column in columns:
        room -= len(zlib.compress(_bytes(column)))
        kept.append(column) if room >= 0 else left_out.append(label(column.name))
    return kept, left_out


def _packed(summary: Summary, columns: Sequence[Column], reports: Mapping[str, str]) -> bytes:
    """A header in JSON, and its length before it; then each column's bytes."""
    cells = Column("cell", "word", np.array(summary.cells, dtype=object))
    errors = Column("error", "word", np.array([brief(error) for error in summary.errors], dtype=object))
    all_columns = [cells, *columns, *([errors] if summary.failures else [])]
    header = {
        "runs": len(summary.cells),
        "columns": [{"name": c.name, "kind": c.kind, "words": None if c.numeric else _words(c)} for c in all_columns],
        "reports": dict(reports),
        "student": STUDENT,
        "palette": PALETTE,
        "dashes": DASHES,
    }
    said = json.dumps(header, allow_nan=False, separators=(",", ":")).encode()
    return b"".join([struct.pack("<I", len(said)), said, *(_bytes(column) for column in all_columns)])


def _bytes(column: Column) -> bytes:
    """Numbers: the first byte of each, then the second of each, and so on; words: their places among the distinct."""
    if not column.numeric:
        places = {word: place for place, word in enumerate(_words(column))}
        return np.array([places[clean(word)] for word in column.values], dtype="<u4").view(np.uint8).tobytes()
    with np.errstate(over="ignore"):
        bits = column.values.astype("<f4").view("<u4")
    if column.kind == "number":
        rounded = (bits + np.uint32(1 << (22 - MANTISSA))) >> (23 - MANTISSA) << (23 - MANTISSA)
        as_it_is = ~np.isfinite(bits.view("<f4")) | (column.values == np.round(column.values))
        bits = np.where(as_it_is, bits, rounded).astype("<u4")
    return np.ascontiguousarray(bits.view(np.uint8).reshape(-1, 4).T).tobytes()


def _words(column: Column) -> list[str]:
    """The distinct words, the missing one first."""
    return ["", *sorted({clean(word) for word in column.values} - {""})]
