"""Intervals cover what they claim to, and admit it where nothing can be told."""

import inspect
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from icl_interp import estimates
from icl_interp.errors import ConfigError
from icl_interp.estimates import Estimate, exact, mean_of, propagate, ratio_of, slope_of

REPEATS = 1200
# 95 %, give or take: the standard error of a coverage over 1,200 repeats is 0.6 %.
NOMINAL = (0.93, 0.97)
numbers = st.floats(-1e6, 1e6)
anything = st.floats(allow_nan=True, allow_infinity=True)
ROOT = Path(__file__).parents[1]


def coverage(draw, truth, repeats=REPEATS):
    rng = np.random.default_rng(0)
    found = [draw(rng) for _ in range(repeats)]
    return np.mean([e.low <= truth <= e.high for e in found])


def knows_nothing(estimate):
    return (estimate.low, estimate.high) == (-math.inf, math.inf)


# --- Coverage ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [2, 5, 100])
def test_mean_covers_a_normal_mean_however_few_the_samples(n):
    low, high = NOMINAL
    assert low <= coverage(lambda rng: mean_of(rng.normal(3.0, 2.0, n)), 3.0) <= high


def test_mean_covers_the_mean_of_skewed_samples_once_there_are_enough():
    low, high = NOMINAL
    assert low - 0.01 <= coverage(lambda rng: mean_of(rng.exponential(1.0, 300)), 1.0) <= high


@pytest.mark.parametrize("n", [100, 2000])
def test_mean_covers_the_mean_of_heavy_tails(n):
    """Fourth powers, such as squares of squared errors: the plain t-interval holds 3 in 88 % of cases at n = 100."""
    low, high = NOMINAL
    assert low <= coverage(lambda rng: mean_of(rng.normal(size=n) ** 4), 3.0) <= high + 0.005


def test_ends_miss_alike_where_samples_are_skewed():
    rng = np.random.default_rng(1)
    found = [mean_of(rng.exponential(1.0, 300) ** 2) for _ in range(2 * REPEATS)]
    above, below = np.mean([e.low > 2.0 for e in found]), np.mean([e.high < 2.0 for e in found])
    assert below < 0.045  # 7 % of the plain t-interval's
    assert above < 0.025


def heteroscedastic(rng, n=200):
    x = rng.normal(size=n)
    return 0.7 * x + np.abs(x) ** 2 * rng.normal(size=n), x


def test_slope_covers_where_noise_grows_with_x():
    def robust(rng):
        return slope_of(*heteroscedastic(rng))

    def naive(rng):
        y, x = heteroscedastic(rng)
        slope = x @ y / (x @ x)
        half = 1.97 * math.sqrt(np.mean((y - slope * x) ** 2) / (x @ x))
        return Estimate(slope, slope - half, slope + half)

    assert coverage(robust, 0.7) >= NOMINAL[0]
    assert coverage(naive, 0.7) < 0.75  # so the case does need the robust error


def test_slope_covers_under_even_noise():
    def draw(rng):
        x = rng.normal(size=60)
        return slope_of(-1.5 * x + rng.normal(size=60), x)

    low, high = NOMINAL
    assert low - 0.01 <= coverage(draw, -1.5) <= high


@pytest.mark.parametrize("sign", [1, -1])
def test_ratio_covers_paired_samples(sign):
    def draw(rng):
        shared = rng.exponential(1.0, 400)
        return ratio_of(shared + 0.3 * rng.exponential(1.0, 400), sign * (shared + rng.exponential(1.0, 400)))

    low, high = NOMINAL
    assert low - 0.01 <= coverage(draw, sign * 0.65) <= high


def test_a_paired_ratio_is_tighter_than_an_unpaired_one():
    rng = np.random.default_rng(0)
    shared = rng.exponential(1.0, 1000)
    paired = ratio_of(shared * 1.01, shared)
    assert paired.half < 1e-12
    assert ratio_of(rng.permutation(shared) * 1.01, shared).half > 0.01


def test_propagate_covers_a_function_of_noisy_measurements():
    truth = np.array([2.0, 3.0])
    error = np.array([0.1, 0.2])

    def draw(rng):
        measured = truth + error * rng.normal(size=2)
        return propagate(lambda a: float(a[0] * a[1]), (measured, 1.96 * error), draws=400)

    low, high = NOMINAL
    assert low - 0.01 <= coverage(draw, 6.0, repeats=600) <= high


@pytest.mark.parametrize("directions", [1, 5])
@pytest.mark.parametrize("size", [0.0, 1.0, 5.0, 300.0])
def test_propagate_covers_a_norm_whatever_noise_adds_to_it(directions, size):
    truth = np.zeros(directions)
    truth[0] = size
    half = np.full(directions, 1.96)

    def draw(rng):
        measured = truth + rng.normal(size=directions)
        return propagate(lambda a: np.linalg.norm(a, axis=-1), (measured, half), batched=True, size=True)

    low, high = (0.96, 0.99) if size == 0 else NOMINAL  # of zero only one end can miss
    assert low - 0.01 <= coverage(draw, size, repeats=800) <= high + 0.01


def test_a_norm_without_noise_is_itself():
    assert propagate(lambda a: float(np.abs(a)), (np.array(2.0), np.array(0.0)), size=True).half == 0.0
    assert propagate(lambda a: float(np.abs(a)), (np.array(0.0), np.array(0.0)), size=True).half == 0.0


@pytest.mark.parametrize("apart", [0.0, 0.5, 3.0])
def test_propagate_covers_the_least_of_several_numbers(apart):
    truth = np.array([0.0, apart, apart])

    def draw(rng):
        return propagate(lambda a: a.min(-1), (truth + rng.normal(size=3), np.full(3, 1.96)), batched=True)

    assert coverage(draw, 0.0, repeats=800) >= NOMINAL[0]


def test_propagate_is_exact_for_a_sum():
    estimate = propagate(
        lambda a, b: float(a + b), (np.array(1.0), np.array(0.3)), (np.array(2.0), np.array(0.4)), draws=20_000
    )
    assert estimate.value == 3.0
    assert estimate.half == pytest.approx(0.5, rel=0.03)


# --- Where nothing can be told ----------------------------------------------------------------------------------------


def test_no_samples():
    empty = np.array([])
    for estimate in (mean_of(empty), slope_of(empty, empty), ratio_of(empty, empty)):
        assert math.isnan(estimate.value)
        assert knows_nothing(estimate)


def test_one_sample_has_a_value_and_no_interval():
    one, two = np.array([1.0]), np.array([2.0])
    for estimate, value in ((mean_of(two), 2.0), (slope_of(two, one), 2.0), (ratio_of(two, one), 2.0)):
        assert estimate.value == value
        assert knows_nothing(estimate)


def test_a_regressor_or_a_bottom_of_zeros_has_no_slope_and_no_ratio():
    zeros, ones = np.zeros(5), np.ones(5)
    for estimate in (slope_of(ones, zeros), ratio_of(ones, zeros), ratio_of(ones, np.array([1.0, -1, 1, -1, 0]))):
        assert math.isnan(estimate.value)
        assert knows_nothing(estimate)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 1e300])
def test_samples_that_are_not_finite_or_overflow_are_no_evidence(bad):
    samples, ones = np.array([1.0, 2.0, bad]), np.ones(3)
    for estimate in (
        mean_of(samples),
        slope_of(samples, samples),
        slope_of(samples, ones),
        ratio_of(samples, ones),
        ratio_of(ones, samples),
    ):
        assert knows_nothing(estimate) or (bad == 1e300 and math.isfinite(estimate.half))


def test_propagate_of_an_unknown_width_or_into_nan_is_no_evidence():
    for half in (math.inf, math.nan):
        assert knows_nothing(propagate(float, (np.array(1.0), np.array(half))))
    sometimes = propagate(lambda a: float(np.sqrt(a)) if a > 0 else math.nan, (np.array(0.5), np.array(1.0)))
    assert sometimes.value == math.sqrt(0.5)
    assert knows_nothing(sometimes)


def test_propagate_is_deterministic_and_seeded():
    inputs = (np.array([1.0, 2.0]), np.array([0.1, 0.1]))
    first, again, other = (propagate(np.prod, inputs, seed=seed, draws=50) for seed in (0, 0, 1))
    assert first == again
    assert first != other


def test_propagate_holds_the_value_of_a_quantity_that_noise_only_raises():
    """|a| at a = 0: every draw lies above."""
    as_size = propagate(lambda a: float(np.abs(a)), (np.array(0.0), np.array(1.0)), size=True)
    assert as_size.low == as_size.value == 0.0
    plain = propagate(lambda a: float(np.abs(a)), (np.array(0.0), np.array(1.0)))
    assert plain.low < plain.value == 0.0 < plain.high


def test_batched_draws_are_the_same_draws():
    inputs = (np.array([1.0, 2.0]), np.array([0.1, 0.3])), (np.array([[3.0], [1.0]]), np.full((2, 1), 0.2))
    one = propagate(lambda a, b: float(a.sum() * b.max()), *inputs, draws=50)
    assert propagate(lambda a, b: a.sum(-1) * b.max((-1, -2)), *inputs, draws=50, batched=True) == one
    assert propagate(lambda a, b: a.sum(-1), *inputs, draws=50, batched=True, covers="time").covers == "time"


@given(st.lists(anything, max_size=6), st.lists(anything, max_size=6))
def test_no_input_warns_raises_or_gives_half_an_interval(a, b):
    n = min(len(a), len(b))
    top, bottom = np.array(a[:n], dtype=float), np.array(b[:n], dtype=float)
    for estimate in (mean_of(top), slope_of(top, bottom), ratio_of(top, bottom)):
        ends = (estimate.low, estimate.high)
        assert knows_nothing(estimate) or (all(map(math.isfinite, ends)) and ends[0] <= estimate.value <= ends[1])


@given(st.lists(numbers, min_size=2, max_size=20), st.floats(-10, 10))
def test_mean_shifts_with_its_samples(samples, shift):
    samples = np.array(samples)
    a, b = mean_of(samples), mean_of(samples + shift)
    assert b.value == pytest.approx(a.value + shift, abs=1e-6)
    assert b.half == pytest.approx(a.half, rel=1e-6, abs=1e-6)


@given(st.lists(numbers, min_size=2, max_size=20))
def test_on_a_constant_slope_and_ratio_are_the_mean(samples):
    samples = np.array(samples)
    mean, ones = mean_of(samples), np.ones(len(samples))
    for estimate in (slope_of(samples, ones), ratio_of(samples, ones)):
        assert estimate.value == pytest.approx(mean.value, abs=1e-6)
        assert estimate.half == pytest.approx(mean.half, rel=1e-6, abs=1e-6)


# --- Estimate ---------------------------------------------------------------------------------------------------------


@given(numbers, st.floats(0, 1e3), st.floats(0, 1e3))
def test_map_turns_the_interval_round_under_a_falling_function(value, below, above):
    estimate = Estimate(value, value - below, value + above, "prompts")
    risen, fallen = estimate.map(lambda v: 2 * v), estimate.map(lambda v: -v)
    assert risen == Estimate(2 * value, 2 * estimate.low, 2 * estimate.high, "prompts")
    assert fallen == Estimate(-value, -estimate.high, -estimate.low, "prompts")
    assert risen.half == pytest.approx(2 * estimate.half)


def test_text_half_and_exact():
    estimate = Estimate(1.23456, 1.0, 1.5, "prompts")
    assert str(estimate) == "1.23 [1.00, 1.50]"
    assert estimate.half == 0.25
    assert exact(np.float64(2)) == Estimate(2.0, 2.0, 2.0, "exact")
    assert exact(2.0).half == 0.0
    assert str(mean_of(np.array([1.0]))) == "1 [-inf, inf]"


@pytest.mark.parametrize(
    ("estimate", "value", "interval"),
    [
        (Estimate(0.88056, 0.87881, 0.88231), "0.8806", "[0.8788, 0.8823]"),
        (Estimate(0.0015884, 0.0, 0.0053251), "0.0016", "[0.0000, 0.0053]"),
        (Estimate(-0.00001, -0.001, 0.001), "0.0000", "[-0.0010, 0.0010]"),  # no minus before a zero
        (Estimate(1234.56, 1134.0, 1335.0), "1235", "[1134, 1335]"),
        (Estimate(2.7226, 2.7226 - 3e-8, 2.7226 + 3e-8), "2.7226", "[2.7226, 2.7226]"),
        (Estimate(-3.7e-7, -1.03e-6, 2.9e-7), "-3.7e-07", "[-1.03e-06, 2.9e-07]"),
        (Estimate(3.2e12, 3.1e12, 3.3e12), "3.2e+12", "[3.1e+12, 3.3e+12]"),
        (exact(0.0391712), "0.03917", "exact"),
        (Estimate(0.5, 0.5, 0.5, "prompts"), "0.5", "[0.5, 0.5]"),
        (Estimate(math.nan, -math.inf, math.inf), "nan", "[-inf, inf]"),
    ],
)
def test_as_many_digits_as_the_interval_warrants(estimate, value, interval):
    assert estimate.written() == (value, interval)


@given(st.floats(-1e9, 1e9), st.floats(1e-9, 1e6))
def test_what_is_written_is_the_number_up_to_a_tenth_of_its_error(value, half):
    estimate = Estimate(value, value - half, value + half, "prompts")
    written, interval = estimate.written()
    low, high = map(float, interval.strip("[]").split(", "))
    coarse = max(0.1 * half, 1e-3 * abs(value))  # four digits where the interval warrants more than can be shown
    assert (float(written), low, high) == pytest.approx((value, estimate.low, estimate.high), abs=coarse)
    assert max(map(len, (written, *interval.split(", ")))) <= 15


def test_an_interval_the_wrong_way_round_is_refused():
    with pytest.raises(ConfigError, match=r"low ≤ high, got \[2.0, 1.0\]"):
        Estimate(1.5, 2.0, 1.0)
    Estimate(math.nan, math.nan, math.nan)  # a NaN is not in the wrong order


def test_nothing_here_is_unused():
    """Every function of the module serves outside it."""
    used = "".join(
        path.read_text()
        for folder in ("icl_interp", "probes")
        for path in (ROOT / folder).rglob("*.py")
        if path.name not in ("estimates.py", "__init__.py")
    )
    public = [n for n, f in vars(estimates).items() if inspect.isfunction(f) and f.__module__ == estimates.__name__]
    assert not [name for name in public if not name.startswith("_") and f"{name}(" not in used]
