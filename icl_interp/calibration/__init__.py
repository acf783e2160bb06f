"""How often the verdicts are right: what a study on models of known truth counted, and what it says of one claim.

A study draws models of families of which something is known (`icl_interp.testing`), lets every probe judge them, and
counts.  It chooses thresholds on one draw of models and reports on another.  A claim is named "probe.claim".  The study
that was made of this library's own probes is shipped with it: `study()`.
"""

from icl_interp.calibration.counts import (
    LEVELS,
    Coverage,
    Error,
    FamilyTold,
    Found,
    Rate,
    Spread,
    Study,
    ThresholdTold,
    Truth,
    found,
    spread_of,
    tradeoff,
)
from icl_interp.calibration.curves import Nearest, nearest
from icl_interp.calibration.shipped import (
    Reliability,
    how_reliable,
    in_percent,
    reliability,
    study,
    study_from,
    study_text,
)

__all__ = [
    "LEVELS",
    "Coverage",
    "Error",
    "FamilyTold",
    "Found",
    "Nearest",
    "Rate",
    "Reliability",
    "Spread",
    "Study",
    "ThresholdTold",
    "Truth",
    "found",
    "how_reliable",
    "in_percent",
    "nearest",
    "reliability",
    "spread_of",
    "study",
    "study_from",
    "study_text",
    "tradeoff",
]
