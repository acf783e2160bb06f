"""What several probes show alike: heads, coordinates, and numbers with a half-width.  No probe is declared here."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from icl_interp.probing import Context, Estimate, Need, rounded

KEPT = 6  # digits of a result, more than a verdict needs: it is a part of every report
UNKNOWN = "?"  # every head's role where the task is not known


@dataclass(frozen=True, eq=False)
class Intervals:
    """Estimates over prompts: values and ends of their 95 % intervals; NaN and ±∞ where not defined."""

    value: Float[np.ndarray, "*shape"]
    low: Float[np.ndarray, "*shape"]
    high: Float[np.ndarray, "*shape"]

    @classmethod
    def of(cls, estimates: Sequence[Any]) -> Intervals:
        """Of estimates, in lists of lists."""
        whole = np.array(estimates, dtype=object)
        ends = (rounded([getattr(each, end) for each in whole.flat], KEPT) for end in ("value", "low", "high"))
        return cls(*(numbers.reshape(whole.shape) for numbers in ends))

    def at(self, *index: int) -> Estimate:
        """One of them."""
        return Estimate(*(float(part[index]) for part in (self.value, self.low, self.high)), covers="prompts")

    def row(self, row: int) -> tuple[Estimate, ...]:
        """All of a row of a table."""
        return tuple(self.at(row, column) for column in range(self.value.shape[1]))


def roles_of(context: Context) -> tuple[str, ...]:
    """Each head's role, or `UNKNOWN`.  Uses FORWARD and TASK."""
    known = context.offers(Need.FORWARD | Need.TASK)
    return context.heads.roles if known else (UNKNOWN,) * context.config.n_heads


def head_names(roles: Sequence[str]) -> tuple[str, ...]:
    """Heads as they are called in pictures: "head 0 (positive)"."""
    return tuple(f"head {h} ({role})" for h, role in enumerate(roles))


def coordinates(dim: int, outputs: int) -> tuple[str, ...]:
    """Names of a circuit's rows or columns: "x0" … "y0" …"""
    return tuple(f"x{i}" for i in range(dim)) + tuple(f"y{i}" for i in range(outputs))


def around(value: float, half: float, covers: str) -> Estimate:
    """The estimate value ± half; of what is not finite nothing can be told."""
    low, high = (value - half, value + half) if math.isfinite(value) else (-math.inf, math.inf)
    return Estimate(float(value), float(low), float(high), covers)


def extreme(pick: Callable[[Iterable[float]], float], estimates: Sequence[Estimate]) -> Estimate:
    """The least (`min`) or the greatest (`max`) of several: within a bound if all are, beyond it if any is."""
    ends = (pick(getattr(e, end) for e in estimates) for end in ("value", "low", "high"))
    return Estimate(*ends, covers="prompts")


def furthest(ratios: Sequence[Estimate]) -> tuple[int, Estimate]:
    """Which of several ratios is furthest from 1, and its estimate: the interval holds those of all that may be it.

    The one that was read as furthest is so in part by chance: its own interval is too sure.
    """
    worst = max(range(len(ratios)), key=lambda i: abs(math.log(ratios[i].value)))
    low, high = ratios[worst].low, ratios[worst].high
    least = max(low, 1 / high, 1.0)  # as near to 1 as it may be, on either side
    rivals = [ratios[worst], *(e for e in ratios if e.low <= 1 / least or e.high >= least)]
    ends = min(e.low for e in rivals), max(e.high for e in rivals)
    return worst, Estimate(ratios[worst].value, *ends, covers=ratios[worst].covers)


def joined(estimate: Estimate, other: Estimate) -> Estimate:
    """The estimate, of a number that also varies as another one does for reasons of its own: errors add in squares."""
    below = math.hypot(estimate.value - estimate.low, other.value - other.low)
    above = math.hypot(estimate.high - estimate.value, other.high - other.value)
    return Estimate(estimate.value, estimate.value - below, estimate.value + above, estimate.covers)


def magnitude(estimate: Estimate) -> Estimate:
    """The estimate of an absolute value."""
    ends = abs(estimate.low), abs(estimate.high)
    low = 0.0 if estimate.low <= 0 <= estimate.high else min(ends)
    return Estimate(abs(estimate.value), low, max(ends), estimate.covers)
