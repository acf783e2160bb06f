"""What a threshold is read from: how near to it the numbers come, of models of which a claim is true, and false."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from icl_interp.calibration.counts import LEVELS, Spread, Study, ThresholdTold, Truth

TRUE_WITHIN, FALSE_WITHIN = 0.01, 0.004  # of a family's models, on either side: what lies beyond is left out


@dataclass(frozen=True)
class Nearest:
    """A number of one family: the one that comes nearest to a threshold's other side, but for few models' numbers."""

    number: float
    family: str


def nearest(study: Study, threshold: ThresholdTold, truth: Truth) -> Nearest | None:
    """Of the families of which the claim is true, or false, the number that comes nearest to being judged wrongly.

    But for 1 % of a family's models at either end where it is true, and 0.4 % where it is false.  None without any.
    """
    within = TRUE_WITHIN if truth == "holds" else FALSE_WITHIN
    levels = np.array(LEVELS)
    kept = (within <= levels) & (levels <= 1 - within)
    sign = 1 if truth == "holds" else -1
    found = [
        (*_closest(spread, threshold, kept, sign), spread.family)
        for spread in study.spreads
        if spread.claim == threshold.claim and spread.truth == truth
    ]
    return Nearest(*min(found)[1:]) if found else None


def _closest(spread: Spread, threshold: ThresholdTold, kept: np.ndarray, sign: int) -> tuple[float, float]:
    """How far inside the threshold the number is that is least so (with the other sign: outside), and that number."""
    numbers = np.array(spread.quantiles)[kept]
    with np.errstate(invalid="ignore"):
        inside = np.minimum(numbers - threshold.low, threshold.high - numbers)
    slack = sign * np.nan_to_num(inside, nan=0.0)
    return float(slack.min()), float(numbers[slack.argmin()])
