"""A study's counts, the phrase that stands beside a verdict, and what another threshold would do."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from icl_interp import calibration
from icl_interp.calibration import (
    LEVELS,
    Coverage,
    Error,
    FamilyTold,
    Found,
    Nearest,
    Rate,
    Spread,
    Study,
    ThresholdTold,
    found,
    how_reliable,
    in_percent,
    nearest,
    reliability,
    spread_of,
    study_from,
    study_text,
    tradeoff,
)
from icl_interp.errors import CheckpointError, ConfigError

# --- Counts -----------------------------------------------------------------------------------------------------------


def rate(family, truth, holds, fails, inconclusive=0, not_applicable=0, claim="fit.small"):
    models = holds + fails + inconclusive + not_applicable
    return Rate(family, claim, truth, models, holds, fails, inconclusive, not_applicable)


def study(*rates, **parts):
    names = dict.fromkeys(each.family for each in rates)
    families = tuple(FamilyTold(name, f"What {name} is.", False, 10, (), ()) for name in names)
    return Study("reporting", (32_768, 131_072), families, rates, **parts)


def full():
    numbers = [0.5, 1.0, math.inf, -math.inf, 2.0]
    return study(
        rate("planted", "holds", 9, 0, 1),
        rate("wrong", "violates", 1, 9),
        spreads=(spread_of("fit.small", "planted", "holds", numbers),),
        coverage=(Coverage("fit.eta", "fresh prompts", 8_192, 95, 100, "planted"),),
        errors=(Error("fit.eta", "size", "planted", (0.1, 0.2), (0.01, 0.02), (-0.01, 0.0), (50, 50)),),
        thresholds=(ThresholdTold("fit.small", -math.inf, 1.5, "because"),),
        found=(Found("fit.small", 0.1, 4, 5),),
        exceptions=(("what", "why"),),
    )


def test_a_study_comes_back_from_its_file_and_has_a_line_for_each_record():
    text = study_text(full())
    assert study_from(text) == full()
    assert '"Infinity"' in text
    assert json.loads(text)["draw"] == "reporting"
    changed = replace(full(), rates=(*full().rates, rate("other", "violates", 0, 3)))
    assert len(set(study_text(changed).splitlines()) - set(text.splitlines())) == 2  # the last record gains a comma
    assert study_from(study_text(study())) == study()


@pytest.mark.parametrize("text", ["", "[]", "{}", study_text(full()).replace('"truth"', '"false"'), '{"draw": NaN}'])
def test_a_damaged_file_is_refused(text):
    with pytest.raises(CheckpointError, match="not a Study"):
        study_from(text)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Rate("f", "p.c", "holds", 3, 1, 1, 0, 0),
        lambda: Rate("f", "p.c", "holds", 3, 4, -1, 0, 0),
        lambda: Rate("f", "p.c", "perhaps", 3, 1, 1, 1, 0),
        lambda: Spread("p.c", "f", "holds", 3, (1.0, 2.0)),
        lambda: Spread("p.c", "f", "holds", 3, tuple(-level for level in LEVELS)),
        lambda: Spread("p.c", "f", "holds", 3, (math.nan,) * len(LEVELS)),
        lambda: spread_of("p.c", "f", "holds", [math.nan]),
        lambda: Coverage("p.e", "prompts", 1, 4, 3, "f"),
        lambda: Error("p.e", "size", "f", (1.0,), (), (1.0,), (1,)),
        lambda: Error("p.e", "hope", "f", (), (), (), ()),
        lambda: replace(study(), draw="third"),
    ],
)
def test_what_does_not_add_up_is_refused(make):
    with pytest.raises(ConfigError):
        make()


def test_models_that_a_claim_does_not_apply_to_are_not_judged():
    assert rate("f", "holds", 3, 2, 1, 4).judged == 6


@pytest.mark.parametrize(("held", "of"), [(0, 20), (20, 20), (1, 3), (1_890, 2_000)])
def test_the_interval_of_a_coverage_is_clopper_and_pearsons(held, of):
    row = Coverage("e", "prompts", 1, held, of, "f")
    expected = stats.binomtest(held, of).proportion_ci(method="exact")
    assert row.interval == pytest.approx((expected.low, expected.high))
    assert row.share == held / of


# --- Shares and thresholds --------------------------------------------------------------------------------------------

NORMAL = stats.norm.ppf((np.arange(2_000) + 0.5) / 2_000)


def test_a_spread_says_which_share_lies_where():
    spread = spread_of("p.c", "f", "holds", NORMAL)
    assert spread.models == 2_000
    for low, high in ((-1, 1), (-math.inf, 0.3), (2, math.inf), (-math.inf, math.inf), (0.5, 0.25), (9, 10)):
        expected = max(stats.norm.cdf(high) - stats.norm.cdf(low), 0)
        assert spread.share(low, high) == pytest.approx(expected, abs=0.004)
    assert spread.share(np.array([-1.0, 0.0]), np.array([1.0, 9.0])) == pytest.approx([0.683, 0.5], abs=0.004)


def test_numbers_at_the_threshold_count_and_so_do_infinite_ones():
    constant = spread_of("p.c", "f", "holds", [2.0] * 7)
    assert [constant.share(*ends) for ends in ((2, 2), (2, 3), (1, 2), (2.1, 3), (1, 1.9))] == [1, 1, 1, 0, 0]
    # Half of them finite; NaN is no number.
    halves = spread_of("p.c", "f", "holds", [*np.linspace(0, 1, 100), *[math.inf] * 100, math.nan])
    assert halves.models == 200
    assert halves.share(-math.inf, 10) == pytest.approx(0.5, abs=0.03)
    assert halves.share(10, math.inf) == pytest.approx(0.5, abs=0.03)
    x, y = halves.cumulative()
    assert max(x) == 1
    assert y[-1] == pytest.approx(0.5, abs=0.03)


@pytest.mark.parametrize(
    ("threshold", "true", "false"),
    [
        (ThresholdTold("p.c", -math.inf, 1.5, "r"), NORMAL, NORMAL + 3),
        (ThresholdTold("p.c", 1.5, math.inf, "r"), NORMAL + 3, NORMAL),
    ],
)
def test_another_threshold_trades_one_share_for_the_other(threshold, true, false):
    true, false = spread_of("p.c", "t", "holds", true), spread_of("p.c", "f", "violates", false)
    x, y = tradeoff(threshold, [true], false)
    assert (x[0], y[0], x[-1], y[-1]) == (0, 0, 1, 1)
    assert (np.diff(x) >= 0).all()
    assert (np.diff(y) >= 0).all()
    # Two normals three apart: y = Φ(Φ⁻¹(x) + 3).
    inner = (x > 0.01) & (x < 0.99)
    assert y[inner] == pytest.approx(stats.norm.cdf(stats.norm.ppf(x[inner]) + 3), abs=0.03)
    passing, right = (s.share(threshold.low, threshold.high) for s in (false, true))
    assert np.interp(passing, x, y) == pytest.approx(right, abs=0.02)


def test_a_threshold_with_two_ends_moves_about_its_centre():
    threshold = ThresholdTold("p.c", 0.9, 1.1, "r")
    true, false = (spread_of("p.c", "f", "holds", 1 + width * NORMAL) for width in (0.05, 0.5))
    x, y = tradeoff(threshold, [true], false)
    widths = stats.norm.ppf((1 + x[(x > 0.01) & (x < 0.3)]) / 2) * 0.5
    assert y[(x > 0.01) & (x < 0.3)] == pytest.approx(2 * stats.norm.cdf(widths / 0.05) - 1, abs=0.03)


def test_families_of_which_a_claim_is_true_weigh_as_many_models_as_they_have():
    one = spread_of("p.c", "a", "holds", [1.0] * 30)
    two = spread_of("p.c", "b", "holds", [5.0] * 10)
    assert found([one, two], 0, 2) == pytest.approx(0.75)


# --- The phrase beside a verdict --------------------------------------------------------------------------------------


def told(status, *rates):
    return reliability("fit.small", study(*rates)).told(status)


def test_of_families_that_pass_the_worst_is_named():
    few, many = rate("few", "violates", 2, 998), rate("many", "violates", 3, 997)
    assert told("holds", few, many) == "3 of 1,000 models that violate it pass (many)"
    trained = rate("trained", "violates", 1, 99, 0, 200)  # one in a hundred of those it applies to
    assert told("holds", few, many, trained) == "1 of 100 models that violate it pass (trained)"
    assert told("holds", rate("a", "violates", 1, 9), rate("b", "violates", 2, 18)).startswith("2 of 20 ")


def test_where_none_passes_all_families_count():
    rates = rate("a", "violates", 0, 1_000), rate("b", "violates", 0, 2_200, 90, 10), rate("p", "holds", 1, 0)
    assert told("holds", *rates) == "none of 3,290 models that violate it pass"


def test_where_a_claim_is_true_and_fails():
    rates = rate("planted", "holds", 990, 2, 8), rate("trained", "holds", 300, 0), rate("wrong", "violates", 9, 1)
    assert told("fails", *rates) == "2 of 1,000 models of which it is true fail (planted)"
    assert told("fails", *rates[1:]) == "none of 300 models of which it is true fail"
    assert told("inconclusive", *rates) == "0.62 % of models of which it is true stay open"
    assert told("inconclusive", *rates[1:]) == "none of 300 models of which it is true stay open"
    assert told("not_applicable", *rates) == ""


def test_what_no_family_says_is_not_made_up():
    assert told("holds", rate("planted", "holds", 10, 0)) == "no models that violate it were tried"
    for status in ("fails", "inconclusive"):
        assert told(status, rate("wrong", "violates", 0, 10)) == "no models of which it is true were tried"
    silent = (
        rate("other", "unsaid", 5, 5),
        rate("never", "violates", 0, 0, 0, 7),
        rate("p", "holds", 1, 0, claim="fit.x"),
    )
    assert reliability("fit.small", study(*silent)) is None


def test_the_worst_of_each_kind():
    known = reliability(
        "fit.small",
        study(
            rate("planted", "holds", 90, 0, 10),
            rate("trained", "holds", 95, 5),
            rate("a", "violates", 0, 50),
            rate("b", "violates", 0, 60),
        ),
    )
    assert (known.missed.family, known.failing.family, known.passing.family) == ("planted", "trained", "b")
    assert known.open == 0.05
    assert known.titles["trained"] == "What trained is."
    assert known.named("fails") == "trained"
    assert known.named("holds") is None


def test_the_phrase_of_the_shipped_study(monkeypatch):
    monkeypatch.setattr("icl_interp.calibration.shipped.study", full)
    assert how_reliable("fit", "small", "holds") == "1 of 10 models that violate it pass (wrong)"
    assert how_reliable("fit", "small", "not_applicable") == ""
    assert how_reliable("mine", "small", "holds") == "not calibrated"
    assert how_reliable("mine", "small", "not_applicable") == ""
    monkeypatch.setattr("icl_interp.calibration.shipped.study", lambda: None)
    assert how_reliable("fit", "small", "holds") == "not calibrated"


def test_the_shipped_study_is_one_and_survives_text():
    shipped = calibration.study()
    assert shipped is not None
    assert shipped.rates
    assert study_from(study_text(shipped)) == shipped


@pytest.mark.parametrize(
    ("share", "text"),
    [(0.0, "0 %"), (0.00123, "0.12 %"), (0.034, "3.4 %"), (0.345, "34.5 %"), (0.995, "99.5 %"), (1.0, "100 %")],
)
def test_percentages(share, text):
    assert in_percent(share) == text


# --- What thresholds are read from -----------------------------------------------------------------------------------


def of_study(*spreads):
    return Study("choosing", (1, 2), (), (), spreads=spreads)


def test_the_number_nearest_to_a_threshold_is_told_but_for_few_models():
    numbers = np.linspace(0.0, 1.0, 1_001)
    study = of_study(
        spread_of("p.c", "near", "holds", numbers),
        spread_of("p.c", "far", "holds", numbers / 2),
        spread_of("p.c", "wrong", "violates", numbers + 3),
        spread_of("p.other", "nearer", "violates", numbers + 2),
    )
    high = ThresholdTold("p.c", -math.inf, 2.0, "half-way")
    assert nearest(study, high, "holds") == Nearest(0.99, "near")
    assert nearest(study, high, "violates") == Nearest(3.004, "wrong")
    assert nearest(study, ThresholdTold("p.none", 0.0, 1.0, "?"), "holds") is None


def test_of_a_threshold_with_two_ends_the_nearer_counts():
    sides = np.concatenate([np.linspace(-3, -2, 500), np.linspace(4, 5, 500)])
    study = of_study(
        spread_of("p.c", "inside", "holds", np.linspace(0.0, 0.5, 1_001)),
        spread_of("p.c", "outside", "violates", sides),
    )
    both = ThresholdTold("p.c", -1.0, 1.0, "both ends")
    assert nearest(study, both, "holds").family == "inside"
    assert nearest(study, both, "holds").number == pytest.approx(0.495, abs=0.001)
    assert nearest(study, both, "violates").number == pytest.approx(-2, abs=0.03)
