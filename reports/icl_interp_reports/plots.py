"""Small plots as inline SVG, for a page with a hundred of them: no script, colours by the page's style sheet.

A curve's class is its name in the style sheet (`holds`, `violates`, `c0` … `c6`); its title shows under a pointer.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np

from icl_interp_reports.words import brief, label

WIDTH, HEIGHT = 285, 195
LEFT, RIGHT, TOP, BOTTOM = 46, 10, 10, 36
TICKS = 5  # along an axis, about


@dataclass(frozen=True)
class Axis:
    """What an axis says, from where to where, and whether in logarithms; `whole` numbers have no ticks between."""

    label: str
    low: float
    high: float
    log: bool = False
    whole: bool = False

    def at(self, values: Sequence[float] | np.ndarray) -> np.ndarray:
        """Where values lie along it: 0 at `low`, 1 at `high`, NaN for what it cannot show."""
        values = np.asarray(values, float)
        if self.log:
            values = np.log10(np.where(values > 0, values, np.nan))
            return (values - math.log10(self.low)) / math.log10(self.high / self.low)
        return (values - self.low) / (self.high - self.low)

    def ticks(self) -> np.ndarray:
        """Round numbers within it; in logarithms powers of ten, or 1, 2, 5 times those where there are not two."""
        if self.log:
            powers = 10.0 ** np.arange(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            within = powers[(powers >= self.low) & (powers <= self.high)]
            if len(within) > 1:
                return within[:: math.ceil(len(within) / TICKS)]
            finer = np.outer(powers, (1, 2, 5)).ravel()
            return finer[(finer >= self.low) & (finer <= self.high)]
        size = 10 ** math.floor(math.log10((self.high - self.low) / TICKS))
        step = next(size * times for times in (1, 2, 5, 10) if (self.high - self.low) / (size * times) <= TICKS)
        step = max(step, 1.0) if self.whole else step
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        return np.arange(first, last + 1) * step


def axis_around(name: str, values: Sequence[float] | np.ndarray, *, log: bool | None = None) -> Axis:
    """An axis that holds all finite values; in logarithms if asked, or if nobody says and they span a factor of 50."""
    values = np.asarray(values, float)
    values = values[np.isfinite(values) & ((values > 0) | (not log))]
    if not len(values):
        return Axis(name, 0.1, 1.0, bool(log))
    low, high = float(values.min()), float(values.max())
    if log or (log is None and low > 0 and high > 50 * low):
        return Axis(name, low / 1.2, high * 1.2, True)
    room = 0.04 * (high - low) or 0.1 * abs(high) or 1.0
    return Axis(name, low - room, high + room)


@dataclass(frozen=True)
class Curve:
    """Points joined by lines; `kind` is a class of the style sheet.  It breaks where a point cannot be shown."""

    x: Sequence[float] | np.ndarray
    y: Sequence[float] | np.ndarray
    kind: str
    name: str


@dataclass(frozen=True)
class Dot:
    """A point, and the interval of its y if there is one."""

    x: float
    y: float
    kind: str
    name: str
    low: float = math.nan
    high: float = math.nan


def plot_svg(
    alt: str,
    x: Axis,
    y: Axis,
    *,
    curves: Sequence[Curve] = (),
    dots: Sequence[Dot] = (),
    upright: Sequence[float] = (),
    band: tuple[float, float] | None = None,
) -> str:
    """Curves and dots over two axes.

    Args:
        alt: what is to be seen, for who cannot see it.
        x, y: the axes; what lies outside is cut off.
        curves, dots: what is drawn.
        upright: where along x lines stand.
        band: between which y the ground is tinted.
    """
    ground = "".join(_upright(x, y, value) for value in upright if np.isfinite(value))
    if band is not None:
        ground = _band(y, *band) + ground
    drawn = "".join(_curve(x, y, curve) for curve in curves) + "".join(_dot(x, y, dot) for dot in dots)
    return (
        f'<svg class="plot" role="img" aria-label="{escape(brief(alt))}" viewBox="0 0 {WIDTH} {HEIGHT}" '
        f'width="{WIDTH}" height="{HEIGHT}">{_frame(x, y)}{ground}{drawn}</svg>'
    )


def _across(axis: Axis, values: Sequence[float] | np.ndarray) -> np.ndarray:
    return LEFT + (WIDTH - LEFT - RIGHT) * np.clip(axis.at(values), 0, 1)


def _down(axis: Axis, values: Sequence[float] | np.ndarray) -> np.ndarray:
    return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * np.clip(axis.at(values), 0, 1)


def _frame(x: Axis, y: Axis) -> str:
    base, end = HEIGHT - BOTTOM, WIDTH - RIGHT
    lines = [f'<path class="axes" d="M{LEFT} {TOP}V{base}H{end}"/>']
    for value, at in zip(x.ticks(), _across(x, x.ticks()), strict=True):
        lines.append(f'<path class="grid" d="M{at:.1f} {TOP}V{base}"/>')
        lines.append(f'<text x="{at:.1f}" y="{base + 13}" text-anchor="middle">{_tick(value)}</text>')
    for value, at in zip(y.ticks(), _down(y, y.ticks()), strict=True):
        lines.append(f'<path class="grid" d="M{LEFT} {at:.1f}H{end}"/>')
        lines.append(f'<text x="{LEFT - 4}" y="{at + 3.5:.1f}" text-anchor="end">{_tick(value)}</text>')
    middle, half = (LEFT + end) / 2, (TOP + base) / 2
    lines.append(f'<text x="{middle:g}" y="{HEIGHT - 5}" text-anchor="middle">{escape(label(x.label, 60))}</text>')
    turned = f'<text transform="translate(9 {half:g}) rotate(-90)" text-anchor="middle">'
    return "".join(lines) + f"{turned}{escape(label(y.label, 40))}</text>"


def _tick(value: float) -> str:
    if abs(value) < 1e-12:  # what rounding leaves of zero
        return "0"
    text = f"{value:,.0f}" if abs(value) >= 1_000 else f"{value:.3g}"
    return text.replace("-", "−")


def _curve(x: Axis, y: Axis, curve: Curve) -> str:
    across, down = _across(x, curve.x), _down(y, curve.y)
    path, pen = "", "M"
    for a, b in zip(across, down, strict=True):
        if np.isnan(a) or np.isnan(b):
            pen = "M"
            continue
        step = f"{pen}{a:.1f} {b:.1f}"
        if not path.endswith(step[1:]):  # two points in one place
            path, pen = path + step, "L"
    path += "h0" if path.count(" ") == 1 else ""  # of one point, a spot
    return f'<path class="curve {curve.kind}" d="{path}">{_title(curve.name)}</path>' if path else ""


def _dot(x: Axis, y: Axis, dot: Dot) -> str:
    (a,), (b,) = _across(x, [dot.x]), _down(y, [dot.y])
    if np.isnan(a) or np.isnan(b):
        return ""
    top, bottom = _down(y, [dot.high, dot.low])
    whisker = "" if np.isnan(top) or np.isnan(bottom) else f'<path d="M{a:.1f} {top:.1f}V{bottom:.1f}"/>'
    circle = f'<circle cx="{a:.1f}" cy="{b:.1f}" r="3"/>'
    return f'<g class="dot {dot.kind}">{whisker}{circle}{_title(dot.name)}</g>'


def _upright(x: Axis, y: Axis, value: float) -> str:
    if not 0 <= x.at([value])[0] <= 1:
        return ""
    (a,) = _across(x, [value])
    return f'<path class="threshold" d="M{a:.1f} {TOP}V{HEIGHT - BOTTOM}"/>'


def _band(y: Axis, low: float, high: float) -> str:
    bottom, top = _down(y, [low, high])
    return f'<rect class="band" x="{LEFT}" y="{top:.1f}" width="{WIDTH - LEFT - RIGHT}" height="{bottom - top:.1f}"/>'


def _title(name: str) -> str:
    return f"<title>{escape(brief(name))}</title>"
