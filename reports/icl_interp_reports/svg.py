"""Small matrices and curves as inline SVG: no script, no style sheet, no ids, and at home on any background.

A cell's hue is its sign, its opacity |v| over the largest |v| of all panels: zero is the page's own colour, light or
dark.  NaN is hatched, so that it is not read as zero.
"""

from __future__ import annotations

from html import escape
from math import ceil

import numpy as np

from icl_interp.probing import Heatmap
from icl_interp_reports.words import brief, label

POSITIVE, NEGATIVE = "#d95f02", "#2c7fb8"  # told apart by colour-blind readers, clear on white and on near-black
MOST_CELLS = 1_600
CELL, PANEL = 16, 220  # the most that one cell, and all of a panel's cells together, may measure
LABEL, NAME = 12, 28  # characters that are drawn; aria-label holds the whole name
LETTER = 5.6  # the width of a label's character


def heatmap_svg(block: Heatmap) -> str:
    """The panels side by side, wrapping, and a legend; "" if there is nothing to draw, or too much."""
    values = np.asarray(block.matrices, dtype=float)
    if not 0 < values.size <= MOST_CELLS:
        return ""
    scale = _largest(values)
    with np.errstate(over="ignore"):
        shades = np.clip(values / (scale or 1.0), -1, 1)
    panels = [_panel(block, i, panel) for i, panel in enumerate(shades)]
    legend = _legend(scale, inert=bool(np.isnan(values).any()))
    return f'<div role="group" aria-label="{escape(brief(block.alt))}">{" ".join([*panels, legend])}</div>'


def _largest(values: np.ndarray) -> float:
    """The largest finite |v|; 0 if there is none."""
    magnitudes = np.abs(np.asarray(values, dtype=float))
    return float(magnitudes[np.isfinite(magnitudes)].max(initial=0.0))


def curve_svg(y: np.ndarray, name: str, width: int = 240, height: int = 48) -> str:
    """A curve through equally spaced points, large ones at the top; "" unless there are two and all are finite."""
    y = np.asarray(y, dtype=float)
    if len(y) < 2 or not np.isfinite(y).all():
        return ""
    y = y / (_largest(y) or 1.0)
    across = np.linspace(2, width - 2, len(y))
    down = height - 2 - (height - 4) * (y - y.min()) / (np.ptp(y) or 1.0)
    points = " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(across, down, strict=True))
    return _svg(
        name, width, height, f'<polyline points="{points}" fill="none" stroke="{NEGATIVE}" stroke-width="1.5"/>'
    )


def _panel(block: Heatmap, index: int, shades: np.ndarray) -> str:
    (rows, columns), name = shades.shape, label(block.panels[index], NAME)
    high, wide = min(CELL, PANEL / rows), min(CELL, PANEL / columns)
    beside = [label(text, LABEL) for text in block.row_labels]
    above = [label(text, LABEL) for text in block.column_labels]
    left, top = _width(*beside) + 5, 30 if above else 17
    down = [_label(left - 3, top + (i + 0.5) * high + 3, beside[i]) for i in _some(len(beside), ceil(11 / high))]
    every = ceil((_width(*above) + 4) / wide)
    across = [_label(left + (i + 0.5) * wide, top - 4, above[i]) for i in _some(len(above), every)]
    parts = [_label(left, 10, name), _anchored("end", down), _anchored("middle", across)]
    parts.append(_cells(shades, left, top, wide, high))
    title = f"{block.title} {block.panels[index]}, {_range(block.matrices[index])}"
    return _svg(title, left + max(columns * wide, _width(name)) + 8, top + rows * high + 2, "".join(parts))


def _some(count: int, every: int) -> list[int]:
    """The labels there is room for, the first and the last of them surely (the last may mean another thing)."""
    return [*range(0, count - every, every), count - 1] if count > every else list(range(min(count, 1)))


def _cells(shades: np.ndarray, left: float, top: float, wide: float, high: float) -> str:
    """A unit square for each number, scaled to its size; a stroke through what is NaN, and a frame around all."""
    rows, columns = shades.shape
    groups = [_squares(shades, POSITIVE), _squares(-shades, NEGATIVE)]
    hatch = "".join(f"M{c} {r + 1}l1-1" for r, c in np.argwhere(np.isnan(shades)))
    groups += [_strokes(hatch, 0.35)] if hatch else []
    frame = _strokes(f"M0 0h{columns}v{rows}h-{columns}z", 0.5)
    return (
        f'<g transform="translate({left:.4g} {top:g}) scale({wide:.4g} {high:.4g})" shape-rendering="crispEdges">'
        f"{''.join(groups)}{frame}</g>"
    )


def _squares(shades: np.ndarray, hue: str) -> str:
    """The cells above zero, one path for all that look the same: a square takes 11 bytes in it."""
    percent = np.round(100 * np.nan_to_num(shades)).astype(int)
    paths = []
    for level in np.unique(percent[percent > 0]):
        squares = "".join(f"M{c} {r}h1v1h-1z" for r, c in np.argwhere(percent == level))
        opacity = "" if level == 100 else f' fill-opacity=".{level:02d}"'
        paths.append(f'<path d="{squares}"{opacity}/>')
    return f'<g fill="{hue}">{"".join(paths)}</g>' if paths else ""


def _strokes(path: str, opacity: float) -> str:
    style = f'fill="none" stroke="currentColor" stroke-opacity="{opacity:g}" vector-effect="non-scaling-stroke"'
    return f'<path d="{path}" {style}/>'


def _legend(scale: float, inert: bool) -> str:
    """From −scale through 0 to +scale, and what a hatch means."""
    shades = np.linspace(-1, 1, 9) if scale else np.zeros(9)
    marks = ((0, f"−{scale:.3g}"), (4, "0"), (8, f"+{scale:.3g}"))
    parts = [_anchored("middle", [_label(30 + (i + 0.5) * 12, 10, said) for i, said in marks if scale or i == 4])]
    parts.append(_cells(shades[None], 30, 14, 12, 12))
    if inert:
        parts += [_cells(np.full((1, 1), np.nan), 160, 14, 12, 12), _label(177, 23, "left out")]
    return _svg(
        f"colours: opacity |v| / {scale:.3g}, orange positive, blue negative", 225 if inert else 170, 30, "".join(parts)
    )


def _svg(name: str, width: float, height: float, content: str) -> str:
    return (
        f'<svg role="img" aria-label="{escape(brief(name))}" width="{ceil(width)}" height="{ceil(height)}" '
        f'font-family="sans-serif" font-size="10" fill="currentColor">{content}</svg>'
    )


def _label(x: float, y: float, text: str) -> str:
    return f'<text x="{x:.4g}" y="{y:.4g}">{escape(text)}</text>' if text else ""


def _anchored(anchor: str, labels: list[str]) -> str:
    return f'<g text-anchor="{anchor}">{"".join(labels)}</g>' if labels else ""


def _width(*labels: str) -> float:
    return LETTER * max(map(len, labels), default=0)


def _range(matrix: np.ndarray) -> str:
    """What a reader who cannot see the panel is told of it."""
    shown = matrix[~np.isnan(matrix)]
    return f"{shown.min():.3g} to {shown.max():.3g}" if shown.size else "nothing to show"
