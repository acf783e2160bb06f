"""What is only drawn may be small: no more points than a screen shows, no more digits than can be seen.

A result is a part of every report, and a page has room for little more than two megabytes.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import ArrayLike

DIGITS = 4
POINTS = 80


def rounded(values: ArrayLike, digits: int = DIGITS) -> Float[np.ndarray, "*shape"]:
    """`values` to so many significant digits."""
    return np.vectorize(lambda value: float(f"{value:.{digits}g}"), otypes=[float])(values)


def levelled(values: Float[np.ndarray, "*shape"], digits: int = DIGITS) -> Float[np.ndarray, "*shape"]:
    """`values` to as many decimals as the largest has significant digits, what is seen where they share a scale."""
    largest = np.abs(values).max(initial=0.0)
    if not 0 < largest < np.inf:
        return values + 0.0
    return values.round(digits - 1 - int(np.floor(np.log10(largest)))) + 0.0  # no −0


def thinned(steps: Int[np.ndarray, "steps"], most: int = POINTS) -> Int[np.ndarray, "kept"]:
    """Which of ascending `steps` to show: `most` at most, even in log(1 + step), the first and the last among them."""
    if len(steps) <= most:
        return np.arange(len(steps))
    logs = np.log1p(steps)
    return np.unique(np.searchsorted(logs, np.linspace(logs[0], logs[-1], most)).clip(max=len(steps) - 1))
