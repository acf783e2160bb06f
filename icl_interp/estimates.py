"""Numbers with their errors: every interval is a 95 % one, and says what it covers.

What cannot be told (too few samples, numbers that are not finite) gets an infinite interval, never a narrow one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy import special, stats

from icl_interp.errors import ConfigError

LEVEL = 0.95
ENOUGH = 50  # samples, to tell their skewness from
_TAILS = (1 - LEVEL) / 2, (1 + LEVEL) / 2
_Z = float(stats.norm.ppf(_TAILS[1]))


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

    def stretched(self, factor: float) -> Estimate:
        """The same value in an interval `factor` times as wide, each side by itself; no width and infinity stay so."""
        value, low, high = float(self.value), float(self.low), float(self.high)  # numpy's would warn of ∞ − ∞
        below, above = value - low, high - value
        low = value - factor * below if 0 < below < math.inf else low
        high = value + factor * above if 0 < above < math.inf else high
        return Estimate(value, low, high, self.covers)

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
    """The mean of independent samples with its interval; NaN without any."""
    with np.errstate(over="ignore", invalid="ignore"):  # not finite is an answer here
        return _interval(float(samples.mean()) if len(samples) else np.nan, samples, covers)


def slope_of(y: Float[np.ndarray, "samples"], x: Float[np.ndarray, "samples"], covers: str = "prompts") -> Estimate:
    """Least-squares slope of y on x through the origin; the error is robust to heteroscedasticity (HC1).

    NaN where x is zero throughout.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        energy = float(x @ x)
        if energy == 0 or not np.isfinite(energy):
            return Estimate(np.nan, -np.inf, np.inf, covers)
        value = float(x @ y) / energy
        return _interval(value, x * (y - value * x) / energy * len(x), covers)


def ratio_of(
    top: Float[np.ndarray, "samples"], bottom: Float[np.ndarray, "samples"], covers: str = "prompts"
) -> Estimate:
    """mean(top)/mean(bottom) over paired samples, by the delta method; NaN where the bottom's mean is zero."""
    with np.errstate(over="ignore", invalid="ignore"):
        base = float(bottom.mean()) if len(bottom) else 0.0
        if base == 0 or not np.isfinite(base):
            return Estimate(np.nan, -np.inf, np.inf, covers)
        value = float(top.mean()) / base
        return _interval(value, (top - value * bottom) / base, covers)


def share_of(hits: int | float, of: int | float, covers: str = "prompts") -> Estimate:
    """The share of independent cases that are hits, hits/of, with its interval after Clopper and Pearson (1934).

    Counts need not be whole, where cases are worth less than their number.
    """
    if of <= 0:
        return Estimate(np.nan, -np.inf, np.inf, covers)
    low = float(stats.beta.ppf(_TAILS[0], hits, of - hits + 1)) if hits > 0 else 0.0
    high = float(stats.beta.ppf(_TAILS[1], hits + 1, of - hits)) if hits < of else 1.0
    return Estimate(hits / of, low, high, covers)


def propagate(
    function: Callable[..., float | Float[np.ndarray, "draws"]],
    *inputs: tuple[Float[np.ndarray, "..."], Float[np.ndarray, "..."]],
    seed: int = 0,
    draws: int = 1000,
    batched: bool = False,
    size: bool = False,
    covers: str = "measurement",
) -> Estimate:
    """`function` of uncertain arrays, each given as (values, half-widths of its 95 % intervals), by simulation.

    The value is the function of the values; the interval holds the middle 95 % of normal draws, and the value.  Where
    the function has an edge, as the least of several numbers has, draws are mostly on one side of the value, and the
    truth is as likely on the other: so the interval also holds the mirror image of the draws.

    Args:
        function: of the arrays.
        inputs: values and half-widths of each array.
        seed, draws: of the simulation.
        batched: `function` takes all draws in one go, as a leading axis of its arrays, and gives a number for each.
        size: `function` is a norm, an absolute value, or near to one.  Noise mostly adds to such a number, and where it
            is small next to noise, more noise adds more: what is zero would lie below nearly all draws.  So the
            interval holds the sizes that could well have been read as the value (`_of_size`).
        covers: what the half-widths cover.
    """
    value = float(function(*(values for values, _ in inputs)))
    unknown = Estimate(value, -np.inf, np.inf, covers)
    if not all(np.isfinite(half).all() for _, half in inputs):
        return unknown
    drawn = _normal_draws(inputs, np.random.default_rng(seed), draws)
    sampled = np.asarray(function(*drawn) if batched else [function(*each) for each in zip(*drawn, strict=True)])
    if not (np.isfinite(value) and np.isfinite(sampled).all()):
        return unknown
    if size:
        low, high = _of_size(value, sampled)
    else:
        drawn_low, drawn_high = map(float, np.quantile(sampled, _TAILS))
        low, high = min(drawn_low, 2 * value - drawn_high), max(drawn_high, 2 * value - drawn_low)
    return Estimate(value, min(low, value), max(high, value), covers)


def _of_size(read: float, sampled: Float[np.ndarray, "draws"]) -> tuple[float, float]:
    """The sizes s ≥ 0 that are read as `read` or less, and as `read` or more, in at least 2.5 % of all cases each.

    Squares of what is read of s are taken for σ²·χ²(k, s²/σ²), noncentral, of k directions in which there is noise of
    variance σ²: both from the first two moments of draws about `read`.  Of s = 0 only the lower end can miss.
    """
    squares = sampled**2
    noise, spread = float(squares.mean()) - read**2, float(squares.var())
    if spread == 0:
        return read, read
    noise = max(noise, spread / (4 * read**2 + 2 * spread**0.5))  # one direction at least, if draws are few
    variance = spread / (2 * noise + 4 * read**2)
    shift, directions = read**2 / variance, noise / variance
    if shift > 1e4:  # nothing is left of the noise but what is along the size; and `chndtrinc` is slow there
        return read - _Z * variance**0.5, read + _Z * variance**0.5
    low, high = (
        (max(float(special.chndtrinc(shift, directions, p)), 0.0) if stats.chi2.cdf(shift, directions) > p else 0.0)
        for p in reversed(_TAILS)
    )
    return (variance * low) ** 0.5, (variance * high) ** 0.5


def _normal_draws(
    inputs: Sequence[tuple[np.ndarray, np.ndarray]], rng: np.random.Generator, draws: int
) -> list[np.ndarray]:
    """Each array's draws, the first axis; one draw of all arrays after the other, so that fewer draws begin alike."""
    normal = rng.standard_normal((draws, sum(values.size for values, _ in inputs)))
    ends = np.cumsum([values.size for values, _ in inputs])
    parts = np.split(normal, ends[:-1], axis=1)
    return [
        values + half / _Z * part.reshape(draws, *values.shape)
        for (values, half), part in zip(inputs, parts, strict=True)
    ]


def _interval(value: float, parts: Float[np.ndarray, "samples"], covers: str) -> Estimate:
    """Of a number that errs as the mean of `parts` does: value ± t·s/√n, and as much further as skewness asks for.

    Squared errors and their like have heavy tails, which makes two things of the t-interval wrong.  The variance is
    less certain than n − 1 degrees of freedom say: by the kurtosis κ they are 2n/(κ − 1) (Satterthwaite).  And the mean
    and its variance err together, so that one end misses more often than the other: Hall's transformation (1992) sets
    that right to the next order in 1/√n.  The interval holds both.
    """
    n, unknown = len(parts), Estimate(value, -np.inf, np.inf, covers)
    if n < 2:
        return unknown
    deviations = parts - parts.mean()
    spread = float(np.sqrt((deviations**2).sum() / (n - 1)))
    if not (np.isfinite(value) and np.isfinite(spread)):
        return unknown
    if spread == 0:
        return Estimate(value, value, value, covers)
    deviations = deviations / spread
    squares = deviations**2
    t = _t(min(2 * n / max(float(squares @ squares) / n - 1, 1e-9), n - 1.0))
    skewness = float(squares @ deviations) / n if n >= ENOUGH else 0.0
    error = spread / n**0.5
    ends = (-t, t, *(-_unskewed(end, skewness, n) for end in (t, -t)))
    return Estimate(value, value + error * min(ends), value + error * max(ends), covers)


def _unskewed(x: float, skewness: float, n: int) -> float:
    """Hall's g⁻¹(x): where a studentised mean of skewed samples is as often as a normal variable is at x."""
    if abs(skewness) < 1e-6:
        return x
    cube = 1 + skewness * (x / n**0.5 - skewness / (6 * n))
    return 3 * n**0.5 / skewness * (float(np.cbrt(cube)) - 1)


def _t(freedom: float) -> float:
    """Student's t at the upper tail."""
    return float(special.stdtrit(freedom, _TAILS[1]))
