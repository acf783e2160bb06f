"""What a number decides, and when it decides nothing."""

import math
import pkgutil
from dataclasses import replace
from importlib import import_module

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

import icl_interp_probes
from icl_interp.errors import ConfigError
from icl_interp.estimates import Estimate
from icl_interp.probing import Threshold, Verdict, judge, not_applicable

finite = st.floats(-1e6, 1e6)
wide = st.floats(allow_nan=False)
VERDICT = Verdict("claim", "source", "holds", "A sentence.")


@st.composite
def estimates(draw):
    low, value, high = sorted(draw(st.tuples(wide, wide, wide)))
    return Estimate(value, low, high)


@st.composite
def thresholds(draw):
    low, high = sorted(draw(st.tuples(wide, wide)))
    assume(math.isfinite(low) or math.isfinite(high))
    return Threshold("reason", low, high)


@given(estimates(), thresholds())
def test_the_whole_interval_decides(estimate, threshold):
    inside = threshold.low <= estimate.low and estimate.high <= threshold.high
    outside = estimate.high < threshold.low or estimate.low > threshold.high
    expected = "holds" if inside else "fails" if outside else "inconclusive"
    assert threshold.judge(estimate) == expected


@given(thresholds(), wide)
def test_an_interval_without_ends_decides_nothing(threshold, value):
    assert threshold.judge(Estimate(value, -math.inf, math.inf)) == "inconclusive"


@given(thresholds(), wide, wide)
def test_nan_decides_nothing(threshold, low, high):
    low, high = sorted((low, high))
    assert threshold.judge(Estimate(math.nan, low, high)) == "inconclusive"
    assert threshold.judge(Estimate(low, math.nan, math.nan)) == "inconclusive"


@given(estimates(), thresholds(), st.floats(0, 1e3))
def test_a_wider_interval_never_decides_more(estimate, threshold, more):
    wider = replace(estimate, low=estimate.low - more, high=estimate.high + more)
    assert threshold.judge(wider) in (threshold.judge(estimate), "inconclusive")


@pytest.mark.parametrize(
    ("interval", "status"),
    [((1.0, 2.0), "holds"), ((2.0, 2.1), "inconclusive"), ((2.1, 3.0), "fails"), ((0.5, 0.9), "fails")],
)
def test_ends_belong_to_the_threshold(interval, status):
    assert Threshold("reason", 1.0, 2.0).judge(Estimate(sum(interval) / 2, *interval)) == status


def test_a_threshold_reads_as_an_inequality():
    assert str(Threshold("reason", high=0.2)) == "≤ 0.2"
    assert str(Threshold("reason", low=-1.0)) == "≥ -1"
    assert str(Threshold("reason", 0.97, 1.03)) == "0.97 … 1.03"


@pytest.mark.parametrize("reason", ["", "  \n"])
def test_a_threshold_without_a_reason_is_refused(reason):
    with pytest.raises(ConfigError, match="a threshold needs a reason"):
        Threshold(reason, low=0.0)


@pytest.mark.parametrize(
    "bounds", [{}, {"low": 2.0, "high": 1.0}, {"low": math.nan}, {"high": math.nan}, {"low": math.inf}]
)
def test_a_threshold_that_bounds_nothing_is_refused(bounds):
    """Without a bound everything would hold, even what is not known at all."""
    with pytest.raises(ConfigError, match="needs a low ≤ high, one of them finite, got"):
        Threshold("reason", **bounds)


def test_an_unknown_status_is_refused():
    with pytest.raises(ConfigError, match=r"status must be one of 'holds', 'fails', .* got 'maybe'"):
        Verdict("claim", "source", "maybe", "A sentence.")


@pytest.mark.parametrize("part", ["claim", "source", "sentence"])
def test_a_verdict_without_its_words_is_refused(part):
    with pytest.raises(ConfigError, match=f"a verdict needs a {part}"):
        replace(VERDICT, **{part: " "})


def test_judge_keeps_what_it_judged_by():
    estimate, threshold = Estimate(1.0, 0.9, 1.1, "prompts"), Threshold("reason", high=2.0)
    assert judge("c", "s", estimate, threshold, "It is one.") == Verdict(
        "c", "s", "holds", "It is one.", estimate, threshold
    )
    assert not_applicable("c", "s", "One head.") == Verdict("c", "s", "not_applicable", "One head.")


def built_in_thresholds():
    for module in pkgutil.iter_modules(icl_interp_probes.__path__, "icl_interp_probes."):
        for name, value in vars(import_module(module.name)).items():
            if isinstance(value, Threshold):
                yield pytest.param(value, id=f"{module.name.rsplit('.')[-1]}.{name}")


@pytest.mark.parametrize("threshold", list(built_in_thresholds()))
def test_every_built_in_threshold_says_why_it_lies_there(threshold):
    assert len(threshold.reason.split()) >= 5
