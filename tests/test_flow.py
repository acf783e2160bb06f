from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from icl_interp import flow, theory
from icl_interp.manifold import Groups

MAIN: dict[str, Any] = {"dim": 5, "length": 40, "noise_var": 0.1}


def test_two_opposite_heads_follow_b4() -> None:
    path = flow.approximate_loss_flow(np.array([1e-3, -1e-3]), np.array([1e-3, -1e-3]), 4.0, **MAIN)
    omega, mu = theory.two_head_flow(path.times[1:], start=1e-3, **MAIN)
    np.testing.assert_allclose(path.omega[1:], np.stack([omega, -omega], 1), rtol=1e-4)
    np.testing.assert_allclose(path.mu[1:], np.stack([mu, -mu], 1), rtol=1e-4)
    assert path.omega.max() == pytest.approx(0.5763, abs=1e-3)


@pytest.mark.parametrize("until", [0.5, 2.0, 6.0])
def test_it_stops_where_mu_is_as_large_as_asked(until: float) -> None:
    path = flow.approximate_loss_flow(np.array([0.1, -0.05]), np.array([0.2, -0.1]), until, **MAIN)
    assert np.abs(path.mu[-1]).sum() == pytest.approx(until, rel=1e-5)
    assert 0 < path.times[-1] < flow.LONGEST


def test_it_is_reported_where_it_is_asked_for() -> None:
    times, start = np.array([1.0, 7.7, 100.0]), np.array([0.01, -0.01])
    path = flow.approximate_loss_flow(start, start, times=times, **MAIN)
    omega, mu = theory.two_head_flow(times, start=0.01, **MAIN)
    np.testing.assert_array_equal(path.times, times)
    np.testing.assert_allclose(path.omega, np.stack([omega, -omega], 1), rtol=1e-4)
    np.testing.assert_allclose(path.mu, np.stack([mu, -mu], 1), rtol=1e-4)


def test_it_goes_down_half_the_loss() -> None:
    omega, mu, times = np.array([0.3, -0.1, 0.2]), np.array([0.2, 0.4, -0.1]), np.array([1e-3, 2e-3])
    path = flow.approximate_loss_flow(omega, mu, times=times, **MAIN)
    losses = [theory.approximate_loss(w, m, **MAIN) for w, m in zip(path.omega, path.mu, strict=True)]
    gradients = theory.approximate_loss_gradients(path.omega[0], path.mu[0], **MAIN)
    assert np.diff(losses)[0] / 1e-3 == pytest.approx(-sum(float(g @ g) for g in gradients) / 2, rel=0.02)


def test_the_approximate_loss_only_falls() -> None:
    rng = np.random.default_rng(0)
    path = flow.approximate_loss_flow(0.1 * rng.standard_normal(4), 0.1 * rng.standard_normal(4), 5.0, **MAIN)
    losses = [theory.approximate_loss(omega, mu, **MAIN) for omega, mu in zip(path.omega, path.mu, strict=True)]
    assert np.diff(losses).max() < 1e-6
    assert losses[-1] < 0.25


def test_several_heads_come_to_the_solution_manifold() -> None:
    path = flow.approximate_loss_flow(np.array([0.05, -0.1, 0.08]), np.array([0.1, -0.2, 0.05]), 6.0, **MAIN)
    omega, mu = path.omega[-1], path.mu[-1]
    np.testing.assert_allclose(np.abs(omega), np.abs(omega[0]), rtol=1e-3)
    assert mu.sum() == pytest.approx(0, abs=1e-2)
    assert np.abs(mu).sum() / 2 == pytest.approx(theory.manifold_mu(float(np.abs(omega).mean()), **MAIN), rel=1e-2)


def test_heads_of_one_sign_end_where_one_head_does() -> None:
    path = flow.approximate_loss_flow(np.array([-0.05, -0.09]), np.array([-0.06, -0.2]), 6.0, **MAIN)
    omega, mu = theory.single_head_optimum(**MAIN)
    np.testing.assert_allclose(path.omega[-1], -omega, rtol=1e-3)
    assert path.mu[-1].sum() == pytest.approx(-mu, rel=1e-3)
    assert path.times[-1] == flow.LONGEST


def test_covariates_of_another_variance_have_the_single_head_optimum_that_goes_with_them() -> None:
    path = flow.approximate_loss_flow(np.array([0.05]), np.array([0.2]), 50.0, covariate_var=4.0, **MAIN)
    omega, mu = theory.single_head_optimum(signal_var=4.0, **MAIN)
    assert path.omega[-1, 0] == pytest.approx(omega / 4, rel=1e-3)
    assert path.mu[-1, 0] == pytest.approx(mu, rel=1e-3)


def test_covariates_of_another_variance_go_down_the_same_loss() -> None:
    """The velocity is the slope in ω itself, not in v·ω: by differences of the loss."""
    v, omega, mu, small = 2.5, np.array([0.1, -0.07]), np.array([0.3, -0.2]), 1e-6

    def half_loss(omega: np.ndarray) -> float:
        return theory.approximate_loss(v * omega, mu, signal_var=v, **MAIN) / 2

    path = flow.approximate_loss_flow(omega, mu, 5.0, covariate_var=v, **MAIN)
    slope = np.array([half_loss(omega + small * e) - half_loss(omega - small * e) for e in np.eye(2)]) / (2 * small)
    np.testing.assert_allclose((path.omega[1] - omega) / path.times[1], -slope, rtol=1e-2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"omega": np.array([0.1, 0.2, 0.3])}, "one number for each head"),
        ({"mu": np.array([0.1, np.nan])}, "must be finite"),
        ({"until": 0.0}, "until must be above 0; got 0.0"),
        ({"until": np.nan}, "until must be above 0; got nan"),
        ({"covariate_var": -1.0}, "covariate_var must be finite and above 0; got -1.0"),
        ({"dim": 0}, "dim must be an integer of at least 1"),
    ],
)
def test_what_it_refuses(change: dict[str, Any], message: str) -> None:
    given: dict[str, Any] = {"omega": np.array([0.1, -0.1]), "mu": np.array([0.1, -0.1]), "until": 1.0, **MAIN}
    with pytest.raises(ValueError, match=message):
        flow.approximate_loss_flow(**given | change)


@pytest.mark.filterwarnings("ignore:overflow:RuntimeWarning")
def test_a_flow_that_overflows_is_refused() -> None:
    far = np.array([12.0, -12.0])
    with pytest.raises(ValueError, match="omega must be finite"):
        flow.approximate_loss_flow(far, far / 12, dim=5, length=40, noise_var=0.1)


# --- Beside a training ------------------------------------------------------------------------------------------------

PAIR = Groups(np.array([True, False]), np.array([False, True]))


def recorded(sign: float = -1.0, records: int = 400) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A record of two heads, the second's ω and μ being `sign` times the first's: growth at step 100, a decline."""
    steps = np.rint(np.linspace(0, 20_000, records))
    eta = 0.88 / (1 + (100 / np.maximum(steps, 1)) ** 3)
    gamma = 0.3 / (1 + steps / 100) ** 0.2
    signs = np.array([1.0, sign])
    return steps, gamma[:, None] * signs, (eta / gamma / 2)[:, None] * signs


def test_beside_a_training_the_flow_is_at_the_same_sizes_of_mu() -> None:
    steps, omega, mu = recorded()
    beside = flow.flow_beside(steps, omega, mu, PAIR, **MAIN)
    assert beside is not None
    start = np.flatnonzero(steps == beside.step)[0]
    assert (omega * mu).sum(1)[start - 1] < 0.05 * 0.88 <= (omega * mu).sum(1)[start]
    assert beside.mu_sum[[0, -1]] == pytest.approx(mu[[start, -1], 0])
    np.testing.assert_allclose(beside.gamma[0], np.interp(beside.mu_sum, mu[start:, 0], omega[start:, 0]))
    np.testing.assert_allclose(beside.gamma[1], beside.gamma[2], rtol=1e-6)  # of two equal heads they are one flow
    np.testing.assert_allclose(beside.trained, [beside.gamma[0], -beside.gamma[0]])
    assert theory.manifold_mu(beside.gamma[1, -1], **MAIN) == pytest.approx(beside.mu_sum[-1], rel=1e-2)
    assert beside.top[0] == pytest.approx(beside.gamma[1].max(), rel=0.05)


def test_a_flow_that_rests_early_has_no_more_points() -> None:
    """Heads that start with one sign and end with two: the flow stays in its basin, where Σ|μ| is 1.63."""
    steps, omega, mu = recorded()
    early = steps < 300
    for path in (omega, mu):
        path[early] = np.abs(path[early])
    beside = flow.flow_beside(steps, omega, mu, PAIR, **MAIN)
    assert beside is not None
    reached = 2 * beside.mu_sum < 1.6
    assert reached.any()
    assert not reached.all()
    assert np.isfinite(beside.flow[:, reached]).all()
    assert np.isnan(beside.flow[:, 2 * beside.mu_sum > 1.8]).all()
    assert (beside.omega > 0).all()


@pytest.mark.parametrize(
    "change", [lambda w, m: (100 * w, m), lambda w, m: (w, m[::-1]), lambda w, m: (0 * w + w[:1], 0 * m + 1e-9)]
)
def test_there_is_no_flow_from_a_start_it_says_nothing_of(change: Any) -> None:
    steps, omega, mu = recorded()
    changed_omega, changed_mu = change(omega, mu)
    assert flow.flow_beside(steps, changed_omega, changed_mu, PAIR, **MAIN) is None


# --- Phases -----------------------------------------------------------------------------------------------------------


def test_the_phases_of_a_course() -> None:
    steps, omega, mu = recorded()
    course = flow.course_of(steps, omega, mu, PAIR, matched=50)
    assert course is not None
    assert course.grown == pytest.approx(100, abs=51)  # records are fifty steps apart
    assert course.peak == 0
    late = steps >= 16_000
    assert course.overshoot.value == pytest.approx(0.3 / np.exp(np.log(omega[late, 0]).mean()), rel=0.1)
    assert course.valley == pytest.approx(100 * ((course.overshoot.value**0.5) ** 5 - 1), rel=0.2)
    assert course.decay is not None
    assert course.decay.value == pytest.approx(-0.2, abs=0.005)
    assert (course.imbalance.value, course.spread.value) == (pytest.approx(0, abs=1e-12), pytest.approx(0, abs=1e-12))
    assert course.fall.value == 0
    assert course.signs.low == pytest.approx(0, abs=1e-5)
    assert course.signs.high == pytest.approx(flow_share(steps, omega, mu, 1), rel=1e-6)


def flow_share(steps: np.ndarray, omega: np.ndarray, mu: np.ndarray, record: int) -> float:
    eta = (omega * mu).sum(1)
    return float(eta[record] / eta[steps >= 16_000].mean())


@pytest.mark.parametrize(("factor", "expected"), [(1.3, 0.13), (1.0, 0.0)])
def test_imbalance_and_spread_are_means_over_the_course(factor: float, expected: float) -> None:
    steps, omega, mu = recorded()
    mu[:, 0] *= factor
    course = flow.course_of(steps, omega, mu, PAIR, matched=0)
    assert course is not None
    assert course.imbalance.value == pytest.approx((factor - 1) / (factor + 1), abs=1e-9)
    assert course.imbalance.value == pytest.approx(expected, abs=0.01)


def test_a_mean_over_the_course_lies_between_first_and_last_values() -> None:
    """The imbalance is 0.2 up to some time between two records, and then nothing."""
    steps = np.unique(np.geomspace(1, 10_000, 40).astype(int)).astype(float)
    _, omega, mu = recorded(records=len(steps))
    omega, mu = omega[-1] * np.ones((len(steps), 2)), mu[-1] * np.ones((len(steps), 2))
    omega *= (1 / (1 + steps) ** 0.1)[:, None]  # so that the course begins with the record
    mu[steps < 100] *= [1.2, 0.8]
    course = flow.course_of(steps, omega, mu, PAIR, matched=None)
    assert course is not None
    part = (np.log1p(steps) - np.log(2)) / np.log(10_001 / 2)
    assert 0 < course.imbalance.low <= 0.2 * part[steps < 100].max()
    assert 0.2 * part[steps >= 100].min() <= course.imbalance.high < 0.2
    assert course.signs.value == 1


# --- Under the noise of iterates --------------------------------------------------------------------------------------


def scattered(noise: float, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A record as dense early as trainings' are, with a peak of γ, and iterates that forget in 200 steps."""
    steps = np.unique(np.rint(np.concatenate([[0], np.geomspace(20, 20_000, 75), np.linspace(20, 20_000, 75)])))
    time = (steps + 1) / 100
    eta, gamma = 0.88 * time**3 / (1 + time**3), 0.3 * np.sqrt(time) / (1 + time) ** 0.6
    scatter = rng.standard_normal((len(steps), 4))
    for i, kept in enumerate(np.exp(-np.diff(steps) / 200), start=1):
        scatter[i] = kept * scatter[i - 1] + np.sqrt(1 - kept**2) * scatter[i]
    signs, factor = np.array([1.0, -1.0]), 1 + noise * scatter
    return steps, gamma[:, None] * signs * factor[:, :2], (eta / gamma / 2)[:, None] * signs * factor[:, 2:]


def test_what_noise_makes_of_a_course_is_in_its_intervals() -> None:
    """Σ|μ| never falls, and γ overshoots, and Σ|μ| rises from there, by what they do without noise."""
    rng = np.random.default_rng(0)
    courses = [flow.course_of(*scattered(0.01, rng), PAIR, matched=0) for _ in range(80)]
    quiet = flow.course_of(*scattered(0.0, rng), PAIR, matched=0)
    assert quiet is not None
    assert quiet.fall.value == 0
    held = dict.fromkeys(("fall", "rise", "overshoot"), 0)
    for course in courses:
        assert course is not None
        assert course.fall.value > 0  # noise alone makes falls
        for name in held:
            found, truth = getattr(course, name), getattr(quiet, name).value
            held[name] += found.low <= truth <= found.high
    assert min(held.values()) >= 0.88 * len(courses), held


def test_the_mean_of_a_series_of_noise_is_as_uncertain_as_it_is() -> None:
    rng, steps = np.random.default_rng(0), np.rint(np.geomspace(100, 20_000, 60))
    found = [flow._mean_over_course(steps, np.abs(rng.standard_normal(60))) for _ in range(600)]
    held = np.mean([e.low <= (2 / np.pi) ** 0.5 <= e.high for e in found])
    assert 0.92 <= held <= 0.985


@pytest.mark.parametrize("change", [lambda w, m: (-w, m), lambda w, m: (w, 0 * m), lambda w, m: (w * np.nan, m)])
def test_what_is_no_course(change: Any) -> None:
    steps, omega, mu = recorded()
    changed_omega, changed_mu = change(omega, mu)
    assert flow.course_of(steps, changed_omega, changed_mu, PAIR, matched=0) is None
