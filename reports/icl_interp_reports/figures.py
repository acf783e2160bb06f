"""How a block becomes a plotly figure: one function a kind of block, plain data out.

A figure is `data` and `layout` as plotly.js takes them, but for three things that the page adds when it draws, because
they depend on the reader's screen: colours (the template, light or dark), sizes, and how the panels of a heat map are
arranged.  `panels` says how many there are; `frames` holds the other moments of a heat map with a slider.

Numbers travel as float32 in base64, which is 5 bytes a number instead of 20.  What is not finite is not drawn.
"""

from __future__ import annotations

import base64
import html
from functools import singledispatch
from typing import Any

import numpy as np

from icl_interp.probing import Bars, Block, Frames, Heatmap, Lines, Scatter, Surface
from icl_interp_reports.words import label

Figure = dict[str, object]
# Every colour has a contrast of 3 or more with white and with the dark page; dashes help where colours do not.
PALETTE = ("#0072b2", "#d55e00", "#00936b", "#b8609a", "#7a6fd0", "#9a7400", "#7b838c")
DASHES = ("solid", "dash", "dot", "dashdot")
CURVE_POINTS = 1_000  # more than a screen has pixels for
NAMED_POINTS = 20
LABELS = 12  # along an axis


def figure(block: Block) -> Figure | None:
    """The figure of a block; None for words, tables, and pictures without a finite number in them."""
    values = next((getattr(block, name) for name in ("matrices", "z", "y", "values") if hasattr(block, name)), None)
    return _figure(block) if values is not None and np.isfinite(_single(values)).any() else None


@singledispatch
def _figure(block: Block) -> Figure:
    raise NotImplementedError(f"no figure for a {type(block).__name__}")


@_figure.register
def _(block: Heatmap) -> Figure:
    return _heatmaps(block, _reach(block.matrices))


@_figure.register
def _(block: Frames) -> Figure:
    last = len(block.moments) - 1
    drawn = _heatmaps(block.at(last), _reach(block.matrices))
    return {**drawn, "frames": {"moments": block.moments.tolist(), "z": numbers(block.matrices)}}


@_figure.register
def _(block: Lines) -> Figure:
    at = _telling(np.concatenate([ys for ys in (block.y, block.low, block.high) if ys is not None]))
    x, traces = numbers(block.x[at]), []
    for i, name in enumerate(block.names):
        colour = PALETTE[i % len(PALETTE)]
        if block.low is not None and block.high is not None:
            edge = {"type": "scatter", "x": x, "mode": "lines", "line": {"width": 0}, "hoverinfo": "skip"}
            edge |= {"showlegend": False, "legendgroup": str(i)}
            band = {"fill": "tonexty", "fillcolor": f"{colour}33"}
            traces += [{**edge, "y": numbers(block.low[i, at])}, {**edge, **band, "y": numbers(block.high[i, at])}]
        line = {"color": colour, "dash": DASHES[i % len(DASHES)], "width": 2}
        mode = "lines+markers" if len(at) <= NAMED_POINTS else "lines"
        traces.append({"type": "scatter", "x": x, "y": numbers(block.y[i, at]), "mode": mode, "line": line})
        traces[-1] |= {"name": plain(name), "legendgroup": str(i), "hovertemplate": "%{y:.4g}"}
    layout = _axes(block.x_label, block.y_label)
    layout |= {"hovermode": "x unified", "showlegend": len(block.names) > 1}
    if block.log_x:
        layout["xaxis"] |= {"type": "log", "dtick": 1}
    if len(at) <= LABELS:
        layout["xaxis"]["tickvals"] = x
    return {"data": traces, "layout": layout}


@_figure.register
def _(block: Scatter) -> Figure:
    at = thinned(len(block.x), CURVE_POINTS)
    trace: dict[str, Any] = {"type": "scatter", "x": numbers(block.x[at]), "y": numbers(block.y[at]), "mode": "markers"}
    trace |= {"marker": {"color": PALETTE[0], "size": 8}, "hovertemplate": "(%{x:.4g}, %{y:.4g})<extra></extra>"}
    if block.names:
        trace["text"] = [plain(block.names[i]) for i in at]
        trace["hovertemplate"] = "(%{x:.4g}, %{y:.4g})<extra>%{text}</extra>"
    if block.names and len(at) <= NAMED_POINTS:
        trace |= {"mode": "markers+text", "textposition": "top center", "cliponaxis": False}
    return {"data": [trace], "layout": _axes(block.x_label, block.y_label)}


@_figure.register
def _(block: Bars) -> Figure:
    trace: dict[str, Any] = {"type": "bar", "x": list(range(len(block.names))), "y": numbers(block.values)}
    trace |= {"marker": {"color": PALETTE[0]}, "hovertemplate": "%{x}: %{y:.4g}<extra></extra>"}
    if block.low is not None and block.high is not None:
        values, low, high = (part.astype(float) for part in (block.values, block.low, block.high))
        up, down = high - values, values - low  # of unsigned whole numbers and of truth values there are no differences
        trace["error_y"] = {"array": numbers(up), "arrayminus": numbers(down), "symmetric": False}
    layout = _axes("", block.y_label)
    layout["xaxis"] |= _ticks(block.names, len(block.names))
    return {"data": [trace], "layout": layout}


@_figure.register
def _(block: Surface) -> Figure:
    # A map with contours rather than three dimensions: it can be read off, printed, and drawn without WebGL.
    trace = {"type": "contour", "x": numbers(block.x), "y": numbers(block.y), "z": numbers(block.z)}
    trace |= {"colorscale": "Cividis", "contours": {"coloring": "heatmap"}, "line": {"width": 0.5}}
    trace |= {"hovertemplate": "(%{x:.4g}, %{y:.4g}): %{z:.4g}<extra></extra>", "colorbar": {"thickness": 12}}
    return {"data": [trace], "layout": _axes(block.x_label, block.y_label)}


def numbers(values: np.ndarray) -> dict[str, str]:
    """An array as plotly.js reads it: little-endian float32 in base64; NaN for what is not finite."""
    single = _single(values)
    packed = {"dtype": "f4", "bdata": base64.b64encode(single.tobytes()).decode()}
    return packed if single.ndim == 1 else {**packed, "shape": ", ".join(map(str, single.shape))}


def _single(values: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):
        single = np.asarray(values).astype("<f4")
    return np.where(np.isfinite(single), single, np.float32(np.nan))


def plain(text: str, longest: int = 60) -> str:
    """Text that plotly.js shows as it is: it would read tags and entities."""
    return html.escape(label(text, longest), quote=False)


def thinned(count: int, most: int) -> np.ndarray:
    """`count` indices, or `most` of them at even distances, the first and the last among them."""
    return np.arange(count) if count <= most else np.linspace(0, count - 1, most).round().astype(int)


def _telling(curves: np.ndarray) -> np.ndarray:
    """The points of long curves that show all their peaks: both ends, and each curve's extremes in every stretch."""
    count = curves.shape[1]
    if count <= CURVE_POINTS:
        return np.arange(count)
    stretches = np.array_split(np.arange(count), max(CURVE_POINTS // (2 * len(curves)), 1))
    low, high = np.where(np.isnan(curves), np.inf, curves), np.where(np.isnan(curves), -np.inf, curves)
    peaks = [at[extreme] for at in stretches for extreme in (low[:, at].argmin(1), high[:, at].argmax(1))]
    return np.unique(np.concatenate([[0, count - 1], *peaks]))


def _heatmaps(block: Heatmap, reach: float) -> Figure:
    layout: dict[str, Any] = {"coloraxis": {"cmin": -reach, "cmax": reach}, "annotations": []}
    traces = []
    for i, name in enumerate(block.panels):
        axis = "" if i == 0 else str(i + 1)
        traces.append({"type": "heatmap", "z": numbers(block.matrices[i]), "coloraxis": "coloraxis"})
        traces[-1] |= {"xaxis": f"x{axis}", "yaxis": f"y{axis}", "name": plain(name)}
        traces[-1]["hovertemplate"] = "row %{y}, column %{x}: %{z:.4g}<extra>%{fullData.name}</extra>"
        layout[f"xaxis{axis}"] = {"anchor": f"y{axis}", **_ticks(block.column_labels, block.matrices.shape[2])}
        layout[f"yaxis{axis}"] = {"anchor": f"x{axis}", **_ticks(block.row_labels, block.matrices.shape[1])}
        layout[f"yaxis{axis}"] |= {"autorange": "reversed"}
        title = {"text": plain(name), "xref": f"x{axis} domain", "yref": f"y{axis} domain", "x": 0, "y": 1}
        layout["annotations"].append({**title, "xanchor": "left", "yanchor": "bottom", "showarrow": False})
    return {"data": traces, "layout": layout, "panels": list(block.matrices.shape)}


def _reach(values: np.ndarray) -> float:
    """The end of a colour scale that is symmetric about zero."""
    single = np.abs(_single(values))
    return float(single[~np.isnan(single)].max(initial=0.0)) or 1.0


def _axes(x: str, y: str) -> dict[str, Any]:
    return {"xaxis": {"title": {"text": plain(x)}}, "yaxis": {"title": {"text": plain(y)}}}


def _ticks(labels: tuple[str, ...], count: int) -> dict[str, Any]:
    """Names at positions, so that two of the same name stay two; every so many where they are many."""
    at = thinned(count, LABELS)
    return {"tickvals": at.tolist(), "ticktext": [plain(labels[i], 14) if labels else str(i) for i in at]}
