"""What is concluded: a claim, its number, and whether the number decides it.

A report decides many claims at once, some of them at several numbers of prompts.  Were each decided by its own 95 %
interval, a report with several numbers near their thresholds would hardly be right throughout.  So each is decided at
the level 0.05 / (`CLAIMS` · `LOOKS`), two-sided (Bonferroni: it holds however claims and looks depend on each other),
and with 95 % no verdict of a report is wrong by sampling.  The intervals that are shown stay those of 95 %; to decide,
they are stretched about their values by `DECISIVE` = 1.84, from 1.96 standard errors to 3.60.

That is so of normal estimates.  Intervals from few batch means are t-intervals, whose tails are heavier: stretched as
much, they miss the truth in 0.70 % of all cases with 4 degrees of freedom (five batches, of late iterates or of
prompts) and in 0.34 % with 7, where normal ones do in 0.03 %.  For claims that rest on so few batches the promise is
that much weaker.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

from scipy import stats

from icl_interp.config import check_choice
from icl_interp.errors import ConfigError
from icl_interp.estimates import LEVEL, Estimate

CLAIMS = 40  # of one model by all built-in probes: 35 at most are decided by sampling, a user's probes may add some
LOOKS = 4  # at most, each with more prompts than the one before
DECISIVE = float(stats.norm.isf((1 - LEVEL) / (2 * CLAIMS * LOOKS)) / stats.norm.isf((1 - LEVEL) / 2))
Status = Literal["holds", "fails", "inconclusive", "not_applicable"]


@dataclass(frozen=True)
class Threshold:
    """Where a number has to lie for its claim to hold, and why there: each is named once, with its reason.

    Raises:
        ConfigError: no reason, no bound, or `low` above `high`.
    """

    reason: str
    low: float = -math.inf
    high: float = math.inf

    def __post_init__(self) -> None:
        if not self.reason.strip():
            raise ConfigError("a threshold needs a reason: why there?")
        if not self.low <= self.high or not (math.isfinite(self.low) or math.isfinite(self.high)):
            raise ConfigError(f"a threshold needs a low ≤ high, one of them finite, got {self.low} and {self.high}")

    def judge(self, estimate: Estimate) -> Status:
        """`holds` if the whole interval lies inside, `fails` if all of it lies outside, else `inconclusive`.

        This is one claim by itself; for one of a report's many see `decide`.
        """
        if math.isnan(estimate.value):
            return "inconclusive"
        if self.low <= estimate.low and estimate.high <= self.high:
            return "holds"
        if estimate.high < self.low or estimate.low > self.high:
            return "fails"
        return "inconclusive"

    def __str__(self) -> str:
        if math.isinf(self.low):
            return f"≤ {self.high:g}"
        return f"≥ {self.low:g}" if math.isinf(self.high) else f"{self.low:g} … {self.high:g}"


@dataclass(frozen=True)
class Verdict:
    """One claim about this checkpoint.

    Args:
        claim: a short snake_case name, unique within its probe.
        source: paper and equation or observation.
        status: `holds`, `fails`, `inconclusive` (the interval, `DECISIVE` times as wide, straddles the threshold) or
            `not_applicable`.
        sentence: what was found, for a reader who sees nothing else.
        estimate: the number and its 95 % interval, if there is one.
        threshold: where it had to lie.

    Raises:
        ConfigError: an unknown status, or an empty claim, source or sentence.
    """

    claim: str
    source: str
    status: Status
    sentence: str
    estimate: Estimate | None = None
    threshold: Threshold | None = None

    def __post_init__(self) -> None:
        check_choice("status", self.status, get_args(Status))
        for name in ("claim", "source", "sentence"):
            if not getattr(self, name).strip():
                raise ConfigError(f"a verdict needs a {name}: {self}")


def decide(threshold: Threshold, estimate: Estimate) -> Status:
    """What the number decides as one of a report's many: `threshold.judge` of an interval `DECISIVE` times as wide."""
    return threshold.judge(estimate.stretched(DECISIVE))


def judge(claim: str, source: str, estimate: Estimate, threshold: Threshold, sentence: str) -> Verdict:
    """The verdict that the number decides."""
    return Verdict(claim, source, decide(threshold, estimate), sentence, estimate, threshold)


def not_applicable(claim: str, source: str, reason: str) -> Verdict:
    """A claim that says nothing about this checkpoint, and why."""
    return Verdict(claim, source, "not_applicable", reason)
