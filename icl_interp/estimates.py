"""Numbers with their errors: every interval is a 95 % one, and says what it covers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy import stats

LEVEL = 0.95
TIME_BATCHES = 5  # a training's records are autocorrelated: their means over a few long stretches hardly are


@dataclass(frozen=True)
class Estimate:
    """A value with its 95 % interval; `covers` says over what the value would vary."""

    value: float
    low: float
    high: float
    covers: str = ""

    @property
    def half(self) -> float:
        """Half the width of the interval."""
        return (self.high - self.low) / 2

    def map(self, function: Callable[[float], float]) -> Estimate:
        """The estimate of a monotone `function` of the value."""
        low, high = sorted((function(self.low), function(self.high)))
        return Estimate(function(self.value), low, high, self.covers)

    def __str__(self) -> str:
        return f"{self.value:.4g} [{self.low:.4g}, {self.high:.4g}]"


def exact(value: float) -> Estimate:
    """A number without sampling error, such as a norm of a weight matrix."""
    return Estimate(float(value), float(value), float(value), "exact")


def mean_of(samples: Float[np.ndarray, "samples"], covers: str = "prompts") -> Estimate:
    """The mean of independent samples with its t-interval; with fewer than two samples anything is possible."""
    n = len(samples)
    if n < 2:
        return Estimate(float(samples.mean()) if n else np.nan, -np.inf, np.inf, covers)
    value = float(samples.mean())
    half = float(stats.t.ppf((1 + LEVEL) / 2, n - 1) * samples.std(ddof=1) / np.sqrt(n))
    return Estimate(value, value - half, value + half, covers)


def slope_of(y: Float[np.ndarray, "samples"], x: Float[np.ndarray, "samples"], covers: str = "prompts") -> Estimate:
    """Least-squares slope of y on x through the origin; the error is robust to heteroscedasticity (HC1)."""
    n, energy = len(x), float(x @ x)
    if n < 2 or energy == 0:
        return Estimate(0.0 if energy == 0 else float(x @ y) / energy, -np.inf, np.inf, covers)
    value = float(x @ y) / energy
    error = float(np.sqrt(np.sum((x * (y - value * x)) ** 2) * n / (n - 1))) / energy
    half = float(stats.t.ppf((1 + LEVEL) / 2, n - 1)) * error
    return Estimate(value, value - half, value + half, covers)


def ratio_of(
    top: Float[np.ndarray, "samples"], bottom: Float[np.ndarray, "samples"], covers: str = "prompts"
) -> Estimate:
    """mean(top)/mean(bottom) over paired samples, by the delta method."""
    centre = float(top.mean()) / float(bottom.mean())
    spread = mean_of((top - centre * bottom) / float(bottom.mean()), covers)
    return Estimate(centre, centre + spread.low, centre + spread.high, covers)


def time_mean_of(series: Float[np.ndarray, "records"]) -> Estimate:
    """The mean of a stretch of training, by batch means: what the final iterate scatters around."""
    batches = np.array([part.mean() for part in np.array_split(series, TIME_BATCHES) if len(part)])
    estimate = mean_of(batches, "training time")
    return Estimate(float(series.mean()), estimate.low, estimate.high, estimate.covers)


def propagate(
    function: Callable[..., float],
    *inputs: tuple[Float[np.ndarray, "*shape"], Float[np.ndarray, "*shape"]],
    seed: int = 0,
    draws: int = 1000,
) -> Estimate:
    """`function` of uncertain arrays, each given as (values, half-widths of its 95 % intervals), by simulation.

    The value is the function of the values; the interval holds the middle 95 % of normal draws, and the value.
    """
    rng = np.random.default_rng(seed)
    value = float(function(*(values for values, _ in inputs)))
    if not all(np.isfinite(half).all() for _, half in inputs):
        return Estimate(value, -np.inf, np.inf, "measurement")
    z = stats.norm.ppf((1 + LEVEL) / 2)
    sampled = [function(*(v + half / z * rng.standard_normal(v.shape) for v, half in inputs)) for _ in range(draws)]
    low, high = np.quantile(sampled, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Estimate(value, min(float(low), value), max(float(high), value), "measurement")
