"""The numbers behind a picture, as a table: for readers without scripts or sight, for printing and for searching."""

from __future__ import annotations

from functools import singledispatch

import numpy as np

from icl_interp.probing import Bars, Block, Cell, Estimate, Frames, Heatmap, Lines, Scatter, Surface, Table
from icl_interp_reports.figures import thinned
from icl_interp_reports.words import label

ROWS = 24  # a long curve is shown at so many of its points
COLUMNS = 60


@singledispatch
def numbers(block: Block) -> Table | None:
    """The table of a picture; None for blocks that are words or tables themselves."""
    return None


@numbers.register
def _(block: Heatmap) -> Table:
    return _matrices(block, "The matrices")


@numbers.register
def _(block: Frames) -> Table:
    last = len(block.moments) - 1
    return _matrices(block.at(last), f"The matrices at {block.name} {block.moments[last]:,}")


def _matrices(block: Heatmap, what: str) -> Table:
    shape = block.matrices.shape[1:]
    rows, columns = (thinned(n, COLUMNS) for n in shape)
    cells = tuple(
        (label(panel), _label(block.row_labels, r), *(_number(matrix[r, c]) for c in columns))
        for panel, matrix in zip(block.panels, block.matrices, strict=True)
        for r in rows
    )
    header = ("panel", "row", *(_label(block.column_labels, c) for c in columns))
    if max(shape) > COLUMNS:
        what += f", {len(rows)} of {shape[0]:,} rows and {len(columns)} of {shape[1]:,} columns"
    return Table(header, cells, f"{what}, empty where inert.")


@numbers.register
def _(block: Lines) -> Table:
    at = thinned(len(block.x), ROWS)
    curves = range(len(block.names))
    rows = tuple((_number(block.x[i]), *(_banded(block, curve, i) for curve in curves)) for i in at)
    return Table((block.x_label or "x", *block.names), rows, f"The curves at {len(at):,} of {len(block.x):,} points.")


@numbers.register
def _(block: Scatter) -> Table:
    at = thinned(len(block.x), ROWS)
    rows = tuple((_label(block.names, i), _number(block.x[i]), _number(block.y[i])) for i in at)
    header = ("point", block.x_label or "x", block.y_label or "y")
    return Table(header, rows, f"{len(at):,} of {len(block.x):,} points.")


@numbers.register
def _(block: Bars) -> Table:
    rows = tuple((label(name), _banded(block, i)) for i, name in enumerate(block.names))
    return Table(("name", block.y_label or "value"), rows, "The bars.")


@numbers.register
def _(block: Surface) -> Table:
    across, down = thinned(len(block.x), 12), thinned(len(block.y), 12)
    rows = tuple((_number(block.y[r]), *(_number(block.z[r, c]) for c in across)) for r in down)
    corner = f"{block.y_label or 'y'} ↓, {block.x_label or 'x'} →"
    header = (corner, *(f"{float(block.x[c]):.4g}" for c in across))
    return Table(header, rows, f"The surface at {len(rows) * len(across):,} of {block.z.size:,} points.")


def _banded(block: Lines | Bars, *at: int) -> Cell:
    values = block.y if isinstance(block, Lines) else block.values
    if block.low is None or block.high is None or not block.low[at] <= block.high[at]:
        return _number(values[at])
    return Estimate(float(values[at]), float(block.low[at]), float(block.high[at]))


def _number(value: np.ndarray | float) -> float | None:
    return None if np.isnan(value) else float(value)


def _label(labels: tuple[str, ...], index: int) -> str:
    return label(labels[index]) if labels else str(index)
