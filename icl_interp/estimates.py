"""Numbers with their errors: every interval is a 95 % one, and says what it covers.

What cannot be told (too few samples, numbers that are not finite) gets an infinite interval, never a narrow one.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy import stats

from icl_interp.errors import ConfigError

LEVEL = 0.95


@dataclass(frozen=True)
class Estimate:
    """A value with its 95 % interval; `covers` says over what the value would vary.

    Raises:
        ConfigError: an interval whose ends are the wrong way round.
    """

    value: float
    low: float
    high: float
    covers: str = ""

    def __post_init__(self) -> None:
        if self.low > self.high:
            raise ConfigError(f"an interval needs low ≤ high, got [{self.low}, {self.high}]")

    @property
    def half(self) -> float:
        """Half the width of the interval."""
        return (self.high - self.low) / 2

    def map(self, function: Callable[[float], float]) -> Estimate:
        """The estimate of a monotone `function` of the value."""
        low, high = sorted((function(self.low), function(self.high)))
        return Estimate(function(self.value), low, high, self.covers)

    def written(self) -> tuple[str, str]:
        """Value and interval as text, with as many digits as the interval warrants: two of its half-width."""
        form, size = ".4g", max(abs(self.low), abs(self.high))
        if 0 < self.half < math.inf:
            last = math.floor(math.log10(self.half)) - 1  # the last digit's power of ten
            if 1e-4 < size < 1e6 and last >= -6:
                form = f"z.{max(-last, 0)}f"
            else:
                form = f".{min(max(math.floor(math.log10(size)) - last + 1, 2), 6)}g"
        interval = "exact" if self.covers == "exact" else f"[{self.low:{form}}, {self.high:{form}}]"
        return f"{self.value:{form}}", interval

    def __str__(self) -> str:
        return " ".join(self.written())


def exact(value: float) -> Estimate:
    """A number without sampling error, such as a norm of a weight matrix."""
    return Estimate(float(value), float(value), float(value), "exact")


def mean_of(samples: Float[np.ndarray, "samples"], covers: str = "prompts") -> Estimate:
    """The mean of independent samples with its t-interval; NaN without any."""
    n = len(samples)
    with np.errstate(over="ignore", invalid="ignore"):  # not finite is an answer here
        value = float(samples.mean()) if n else np.nan
        error = float(samples.std(ddof=1) / np.sqrt(n)) if n > 1 else np.inf
    return _t_interval(value, error, n, covers)


def slope_of(y: Float[np.ndarray, "samples"], x: Float[np.ndarray, "samples"], covers: str = "prompts") -> Estimate:
    """Least-squares slope of y on x through the origin; the error is robust to heteroscedasticity (HC1).

    NaN where x is zero throughout.
    """
    n = len(x)
    with np.errstate(over="ignore", invalid="ignore"):
        energy = float(x @ x)
        if energy == 0 or not np.isfinite(energy):
            return _t_interval(np.nan, np.inf, n, covers)
        value = float(x @ y) / energy
        error = float(np.sqrt(np.sum((x * (y - value * x)) ** 2) * n / (n - 1))) / energy if n > 1 else np.inf
    return _t_interval(value, error, n, covers)


def ratio_of(
    top: Float[np.ndarray, "samples"], bottom: Float[np.ndarray, "samples"], covers: str = "prompts"
) -> Estimate:
    """mean(top)/mean(bottom) over paired samples, by the delta method; NaN where the bottom's mean is zero."""
    n = len(bottom)
    with np.errstate(over="ignore", invalid="ignore"):
        base = float(bottom.mean()) if n else 0.0
        if base == 0 or not np.isfinite(base):
            return _t_interval(np.nan, np.inf, n, covers)
        value = float(top.mean()) / base
        error = float((top - value * bottom).std(ddof=1) / np.sqrt(n) / abs(base)) if n > 1 else np.inf
    return _t_interval(value, error, n, covers)


def propagate(
    function: Callable[..., float],
    *inputs: tuple[Float[np.ndarray, "..."], Float[np.ndarray, "..."]],
    seed: int = 0,
    draws: int = 1000,
) -> Estimate:
    """`function` of uncertain arrays, each given as (values, half-widths of its 95 % intervals), by simulation.

    The value is the function of the values; the interval holds the middle 95 % of normal draws, and the value.
    """
    rng = np.random.default_rng(seed)
    value = float(function(*(values for values, _ in inputs)))
    unknown = Estimate(value, -np.inf, np.inf, "measurement")
    if not all(np.isfinite(half).all() for _, half in inputs):
        return unknown
    z = stats.norm.ppf((1 + LEVEL) / 2)
    sampled = [function(*(v + half / z * rng.standard_normal(v.shape) for v, half in inputs)) for _ in range(draws)]
    if not np.isfinite([value, *sampled]).all():
        return unknown
    low, high = np.quantile(sampled, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Estimate(value, min(float(low), value), max(float(high), value), "measurement")


def _t_interval(value: float, error: float, n: int, covers: str) -> Estimate:
    """value ± t·error with n − 1 degrees of freedom."""
    if not (np.isfinite(value) and np.isfinite(error)):
        return Estimate(value, -np.inf, np.inf, covers)
    half = float(stats.t.ppf((1 + LEVEL) / 2, n - 1)) * error
    return Estimate(value, value - half, value + half, covers)
