"""What a study counted: verdicts by family, the spread of their numbers, coverage of intervals, errors of estimates."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from jaxtyping import Float
from numpy.typing import ArrayLike

from icl_interp.config import check_choice
from icl_interp.errors import ConfigError
from icl_interp.estimates import share_of
from icl_interp.probing import Threshold

# What a family says of a claim: true of all its models, false of all of them, or nothing.
Truth = Literal["holds", "violates", "unsaid"]
# At which share of models a `Spread` says the number: close together where few models lie, as thresholds do.
LEVELS = (0.0, 0.004, 0.01, *(round(0.025 * i, 3) for i in range(1, 40)), 0.99, 0.996, 1.0)


@dataclass(frozen=True)
class Rate:
    """What became of one claim on the models of one family: counts of verdicts.

    Args:
        family: its name.
        claim: "probe.claim".
        truth: of the claim, for every model of the family.
        models: how many were judged or should have been.
        holds, fails, inconclusive: verdicts of that status.
        not_applicable: the rest, probes that were skipped or failed among them.

    Raises:
        ConfigError: an unknown truth, or counts that do not add up to `models`.
    """

    family: str
    claim: str
    truth: Truth
    models: int
    holds: int
    fails: int
    inconclusive: int
    not_applicable: int

    def __post_init__(self) -> None:
        check_choice("truth", self.truth, get_args(Truth))
        counts = (self.holds, self.fails, self.inconclusive, self.not_applicable)
        if min(counts) < 0 or sum(counts) != self.models:
            raise ConfigError(f"verdicts of {self.claim!r} in {self.family!r}: {counts} are not {self.models} models")

    @property
    def judged(self) -> int:
        """How many models the claim applied to."""
        return self.models - self.not_applicable


@dataclass(frozen=True)
class Spread:
    """The number of one claim over the models of one family.

    Args:
        claim: "probe.claim".
        family: its name.
        truth: of the claim, for every model of the family.
        models: how many had a number.
        quantiles: the number at each of `LEVELS`, one that a model had; ±infinity may be among them.

    Raises:
        ConfigError: an unknown truth, another number of quantiles, or quantiles that fall.
    """

    claim: str
    family: str
    truth: Truth
    models: int
    quantiles: tuple[float, ...]

    def __post_init__(self) -> None:
        check_choice("truth", self.truth, get_args(Truth))
        falls = any(not a <= b for a, b in zip(self.quantiles, self.quantiles[1:], strict=False))
        if len(self.quantiles) != len(LEVELS) or falls:
            raise ConfigError(f"{self.claim!r} in {self.family!r}: expected {len(LEVELS)} quantiles that never fall")

    def quantile(self, level: float) -> float:
        """The number at one of `LEVELS`."""
        return self.quantiles[LEVELS.index(level)]

    def cumulative(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Finite numbers, rising, and the share of models at or below each; infinities shift the shares only."""
        at = [i for i, number in enumerate(self.quantiles) if math.isfinite(number)]
        return tuple(self.quantiles[i] for i in at), tuple(LEVELS[i] for i in at)

    def share(self, low: ArrayLike, high: ArrayLike) -> Float[np.ndarray, "*ends"]:
        """The share of models whose number lies in low … high, ends included; one for each pair of ends."""
        return np.maximum(self._up_to(high, "right") - self._up_to(low, "left"), 0.0)

    def _up_to(self, x: ArrayLike, side: Literal["left", "right"]) -> Float[np.ndarray, "*x"]:
        """The share of models below x, and with "right" of those at x too; straight lines between quantiles."""
        q, levels = np.array(self.quantiles), np.array(LEVELS)
        i = np.searchsorted(q, x, side)
        after = np.clip(i, 1, len(q) - 1)
        with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
            part = (x - q[after - 1]) / (q[after] - q[after - 1])
        part = np.where(np.isfinite(part), part, 0.0)  # nothing is between a number and infinity
        within = levels[after - 1] + (levels[after] - levels[after - 1]) * part
        return np.where(i == 0, 0.0, np.where(i == len(q), 1.0, within))


def spread_of(claim: str, family: str, truth: Truth, numbers: Sequence[float]) -> Spread:
    """The spread of the numbers of a family's models; NaN, a number that is not there, is left out.

    Raises:
        ConfigError: no number is left.
    """
    values = np.asarray(numbers, float)
    values = values[~np.isnan(values)]
    if not len(values):
        raise ConfigError(f"no model of {family!r} has a number for {claim!r}")
    quantiles = np.quantile(values, LEVELS, method="inverted_cdf")  # numbers of models: between infinities is nothing
    return Spread(claim, family, truth, len(values), tuple(float(f"{q:.5g}") for q in quantiles))


@dataclass(frozen=True)
class Coverage:
    """How often the 95 % interval of an estimate held the truth.

    Args:
        estimate: its path in the results: "kernel_fit.eta".
        covers: what its interval says it covers.
        prompts: that it was drawn from; 0 where nothing was sampled.
        held, of: in so many of so many models.
        models: of which family, or which models.

    Raises:
        ConfigError: `held` is not in 0 … `of`.
    """

    estimate: str
    covers: str
    prompts: int
    held: int
    of: int
    models: str

    def __post_init__(self) -> None:
        if not 0 <= self.held <= self.of:
            raise ConfigError(f"the interval of {self.estimate!r} cannot have held {self.held} of {self.of} times")

    @property
    def share(self) -> float:
        """held / of; NaN of none."""
        return self.held / self.of if self.of else math.nan

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval of the true share, after Clopper and Pearson."""
        share = share_of(self.held, self.of)
        return share.low, share.high


@dataclass(frozen=True)
class Error:
    """The error of an estimate, estimate − truth, against the size of a perturbation or the number of prompts.

    Args:
        estimate: its path in the results: "kernel_fit.eta".
        against: "size", of the perturbation, or "prompts".
        family: its name.
        at: the centres of the bins.
        rms: the root of the mean square, in each bin, in units of the estimate.
        bias: the mean, in each bin.
        models: how many in each bin.

    Raises:
        ConfigError: an unknown `against`, or lengths that differ.
    """

    estimate: str
    against: Literal["size", "prompts"]
    family: str
    at: tuple[float, ...]
    rms: tuple[float, ...]
    bias: tuple[float, ...]
    models: tuple[int, ...]

    def __post_init__(self) -> None:
        check_choice("against", self.against, ("size", "prompts"))
        if len({len(self.at), len(self.rms), len(self.bias), len(self.models)}) != 1:
            raise ConfigError(f"errors of {self.estimate!r}: at, rms, bias and models must be equally long")


@dataclass(frozen=True)
class FamilyTold:
    """A family as the study met it.

    Args:
        name, title: of the family.
        trained: whether its models have to be trained.
        models: how many were judged.
        holds, violates: claims that are true, and false, of all of them.
        raised: probes that raised an error, and on how many models.
    """

    name: str
    title: str
    trained: bool
    models: int
    holds: tuple[str, ...]
    violates: tuple[str, ...]
    raised: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True)
class Found:
    """How many of the models of which a claim is true, perturbed by so much, it held on."""

    claim: str
    size: float
    found: int
    of: int


@dataclass(frozen=True)
class ThresholdTold:
    """Where the number of a claim has to lie; ±infinity where it need not."""

    claim: str
    low: float
    high: float
    reason: str

    @property
    def two_sided(self) -> bool:
        """Whether both ends are finite."""
        return math.isfinite(self.low) and math.isfinite(self.high)

    @property
    def centre(self) -> float:
        """Halfway between its ends, if there are two."""
        return (self.low + self.high) / 2

    def moved(self, to: Float[np.ndarray, "*to"]) -> tuple[ArrayLike, ArrayLike]:
        """Low and high with its one end at `to`, or both ends that far from the centre."""
        if self.two_sided:
            return self.centre - to, self.centre + to
        return (-math.inf, to) if math.isinf(self.low) else (to, math.inf)

    def __str__(self) -> str:
        return str(Threshold(self.reason, self.low, self.high))


@dataclass(frozen=True)
class Study:
    """What a calibration study counted.

    Args:
        draw: "choosing", the models that thresholds were chosen on, or "reporting", models drawn anew.
        budget: prompts of the first look and of the last.
        families: all that were drawn.
        rates: one a family and claim.
        spreads: one a family and claim with a number.
        coverage: one an estimate, number of prompts and set of models.
        errors: one an estimate, family and `against`.
        thresholds: one a claim with a number.
        found: one a claim and size of the perturbation.
        exceptions: what is not as it should be, and its cause.

    Raises:
        ConfigError: an unknown draw.
    """

    draw: Literal["choosing", "reporting"]
    budget: tuple[int, int]
    families: tuple[FamilyTold, ...]
    rates: tuple[Rate, ...]
    spreads: tuple[Spread, ...] = ()
    coverage: tuple[Coverage, ...] = ()
    errors: tuple[Error, ...] = ()
    thresholds: tuple[ThresholdTold, ...] = ()
    found: tuple[Found, ...] = ()
    exceptions: tuple[tuple[str, str], ...] = ()

    def __post_init__(self) -> None:
        check_choice("draw", self.draw, ("choosing", "reporting"))


def tradeoff(
    threshold: ThresholdTold, true: Sequence[Spread], false: Spread
) -> tuple[Float[np.ndarray, "points"], Float[np.ndarray, "points"]]:
    """What another threshold would do: the shares of violating models that pass, and of true ones that are found.

    A threshold with one end moves that end; one with two keeps its centre and moves both ends alike.  Shares are of
    numbers, without their intervals.

    Args:
        threshold: where it lies now.
        true: spreads of families of which the claim is true; each weighs as many models as it has.
        false: the spread of a family that violates it.

    Returns:
        x, the share of `false` that passes, and y, the share of `true` that is found, both rising.
    """
    values = np.array([q for spread in (*true, false) for q in spread.quantiles])
    steps = np.unique(np.abs(values - threshold.centre) if threshold.two_sided else values)
    if math.isinf(threshold.high):  # looser is lower
        steps = steps[::-1]
    low, high = threshold.moved(steps)
    x, y = (np.concatenate([[0.0], share, [1.0]]) for share in (false.share(low, high), found(true, low, high)))
    return np.maximum.accumulate(x), np.maximum.accumulate(y)


def found(true: Sequence[Spread], low: ArrayLike, high: ArrayLike) -> Float[np.ndarray, "*ends"]:
    """The share of the models of several families whose number lies in low … high."""
    shares = np.array([spread.share(low, high) for spread in true])
    return np.average(shares, axis=0, weights=[spread.models for spread in true])
