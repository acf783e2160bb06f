"""What a number decides, and when it decides nothing."""

import math
import pkgutil
from dataclasses import replace
from importlib import import_module

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy import stats

import icl_interp_probes
from icl_interp.errors import ConfigError
from icl_interp.estimates import Estimate, exact, mean_of
from icl_interp.probing import Threshold, Verdict, decide, judge, not_applicable
from icl_interp.probing.verdicts import CLAIMS, DECISIVE, LOOKS

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


# --- Several claims at once -------------------------------------------------------------------------------------------


@given(estimates(), thresholds())
def test_a_claim_is_decided_by_the_stretched_interval(estimate, threshold):
    status = decide(threshold, estimate)
    assert judge("c", "s", estimate, threshold, "It is.").status == status
    assert judge("c", "s", estimate, threshold, "It is.").estimate == estimate  # what is shown is that of 95 %
    assert status in (threshold.judge(estimate), "inconclusive")


@given(estimates(), st.floats(1.5, 10))
def test_stretching_widens_each_side_by_itself(estimate, factor):
    wide = estimate.stretched(factor)
    assert (wide.value, wide.covers) == (estimate.value, estimate.covers)
    assert wide.low <= estimate.low <= estimate.high <= wide.high
    for end in ("low", "high"):
        before, after = (abs(getattr(e, end) - estimate.value) for e in (estimate, wide))
        assert after == pytest.approx(factor * before) or not math.isfinite(before)


@given(wide, thresholds())
def test_an_exact_number_is_decided_as_before(value, threshold):
    assert exact(value).stretched(DECISIVE) == exact(value)
    assert decide(threshold, exact(value)) == threshold.judge(exact(value))


def test_what_is_not_known_stays_so():
    for low, high in ((-math.inf, math.inf), (0.5, math.inf), (-math.inf, 1.5), (math.nan, math.nan)):
        wide = Estimate(1.0, low, high).stretched(2.0)
        assert wide.low == (0.0 if low == 0.5 else low) or math.isnan(low)
        assert wide.high == (2.0 if high == 1.5 else high) or math.isnan(high)
    assert decide(Threshold("reason", high=9.0), Estimate(math.nan, 1.0, 2.0)) == "inconclusive"
    infinite = Estimate(*(np.float64(math.inf),) * 3)  # numpy's numbers warn where Python's do not
    assert infinite.stretched(2.0) == infinite


def test_the_constant_is_bonferronis():
    assert 2 * stats.norm.sf(DECISIVE * 1.959964) * CLAIMS * LOOKS == pytest.approx(0.05, rel=1e-5)
    assert pytest.approx(1.839, abs=5e-4) == DECISIVE


@pytest.mark.parametrize(("batches", "missed"), [(5, 0.0070), (8, 0.0034), (math.inf, 0.0003)])
def test_few_batches_leave_as_much_as_is_said(batches, missed):
    t = stats.t(batches - 1)
    assert 2 * t.sf(DECISIVE * t.ppf(0.975)) == pytest.approx(missed, abs=5e-5)


def at_its_limit(sampler, count):
    """Normal means of which each is at its threshold, in truth: `fails` is wrong."""
    return [Estimate(x, x - 1.959964, x + 1.959964, "prompts") for x in sampler.standard_normal(count).tolist()]


def test_at_its_limit_a_claim_is_wrong_as_often_as_the_level_says():
    n, level = 20_000, 0.05 / (2 * CLAIMS * LOOKS)  # to one side: the other is right
    wrong = [decide(Threshold("reason", high=0.0), e) for e in at_its_limit(np.random.default_rng(0), n)].count("fails")
    low, high = stats.binom.ppf([0.001, 0.999], n, level)
    assert low <= wrong <= high


def test_a_report_whose_claims_are_all_at_their_limits_is_right_throughout_with_95_percent():
    """Each look holds the prompts of the looks before, as those of a probe do."""
    rng, reports, per_look = np.random.default_rng(1), 100, (1, 3, 12, 48)  # new prompts, in those of the first look
    threshold, wrong = Threshold("reason", high=0.0), {decide: 0, Threshold.judge: 0}
    sums = (rng.standard_normal((reports, CLAIMS, LOOKS)) * np.sqrt(per_look)).cumsum(-1)
    means = sums / np.cumsum(per_look)
    halves = 1.959964 / np.sqrt(np.cumsum(per_look))
    for report in means:
        numbers = [Estimate(x, x - h, x + h) for claim in report.tolist() for x, h in zip(claim, halves, strict=True)]
        for rule in wrong:
            wrong[rule] += any(rule(threshold, number) == "fails" for number in numbers)
    assert wrong[decide] <= stats.binom.ppf(0.999, reports, 0.05)
    assert wrong[Threshold.judge] > reports / 2  # what one interval of 95 % a claim would be


def test_a_mean_of_few_batches_is_wrong_more_often_than_a_normal_one():
    n = 3_000
    batches = np.random.default_rng(2).standard_normal((n, 5))
    wrong = [decide(Threshold("reason", high=0.0), mean_of(each)) for each in batches].count("fails")
    low, high = stats.binom.ppf([0.001, 0.999], n, 0.0070 / 2)
    assert low <= wrong <= high


def built_in_thresholds():
    for module in pkgutil.iter_modules(icl_interp_probes.__path__, "icl_interp_probes."):
        for name, value in vars(import_module(module.name)).items():
            if isinstance(value, Threshold):
                yield pytest.param(value, id=f"{module.name.rsplit('.')[-1]}.{name}")


@pytest.mark.parametrize("threshold", list(built_in_thresholds()))
def test_every_built_in_threshold_says_why_it_lies_there(threshold):
    assert len(threshold.reason.split()) >= 5
