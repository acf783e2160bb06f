from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from icl_interp import theory
from icl_interp.manifold import Groups, manifold_mu, one_head_formula, optimal_step
from icl_interp.tasks import LinearRegression, kms

MAIN = LinearRegression(dim=5, length=40, noise_var=0.1)
PAIR = Groups(np.array([True, False]), np.array([False, True]))


def test_the_published_pair_lies_on_the_manifold() -> None:
    """ω = ±0.1267, μ = ±3.5006 (Table 1 of the paper): final iterates, so within a few per cent."""
    mu_of = manifold_mu(MAIN)
    assert mu_of is not None
    omega, mu = np.array([0.1267, -0.1267]), np.array([3.5006, -3.5006])
    assert mu_of(0.1267) == pytest.approx(3.46, abs=0.02)
    assert PAIR.distance(omega, mu, mu_of) == pytest.approx(abs(3.5006 / mu_of(0.1267) - 1))
    assert PAIR.step(omega, mu) == pytest.approx(0.8871, abs=1e-4)
    assert PAIR.imbalance(omega, mu) == 0
    assert optimal_step(MAIN) == pytest.approx(0.8791, abs=1e-4)


@given(st.floats(0.02, 0.4), st.floats(-0.5, 0.5))
def test_distance_measures_what_is_wrong_with_the_sums(gamma: float, excess: float) -> None:
    mu_of = manifold_mu(MAIN)
    assert mu_of is not None
    mu = mu_of(gamma) * (1 + excess)
    assert PAIR.distance(np.array([gamma, -gamma]), np.array([mu, -mu]), mu_of) == pytest.approx(abs(excess), abs=1e-9)


def test_distance_sees_wrong_signs_dummies_and_uneven_heads() -> None:
    mu_of = manifold_mu(MAIN)
    assert mu_of is not None
    mu = mu_of(0.1)
    same = Groups(np.array([True, True]), np.array([False, False]))
    assert same.distance(np.array([0.1, 0.1]), np.array([mu / 2, mu / 2]), mu_of) == pytest.approx(math.sqrt(0.5))
    three = Groups(np.array([True, False, False]), np.array([False, True, False]))
    with_rest = three.distance(np.array([0.1, -0.1, 0.0]), np.array([mu, -mu, 0.3 * mu]), mu_of)
    assert with_rest == pytest.approx(0.3)
    uneven = PAIR.spread(np.array([0.11, -0.09]), np.array([1.0, -1.0]))
    assert uneven == pytest.approx(0.1)


def test_gamma_weighs_heads_by_what_they_carry() -> None:
    groups = Groups(np.array([True, True]), np.array([False, False]))
    omega, mu = np.array([0.1, 0.5]), np.array([9.0, 1.0])
    assert groups.gamma(omega, mu) == pytest.approx(0.14)
    assert groups.gamma(omega, mu) * np.abs(mu).sum() == pytest.approx(groups.step(omega, mu))
    nobody = Groups(np.zeros(2, bool), np.zeros(2, bool))
    assert math.isnan(nobody.gamma(omega, mu))
    assert math.isnan(nobody.spread(omega, mu))
    assert math.isnan(nobody.imbalance(omega, np.zeros(2)))


@given(st.floats(0.2, 5.0))
def test_scaling_covariates_scales_gamma_only(variance: float) -> None:
    """x = √v·u with β scaled to keep the signal: ω·v plays ω's part, μ is the same."""
    scaled = LinearRegression(5, 40, 0.1, covariance=(variance * np.eye(5)).tolist(), signal_var=1 / variance)
    mu_of, unit = manifold_mu(scaled), manifold_mu(MAIN)
    assert mu_of is not None
    assert unit is not None
    assert mu_of(0.2 / variance) == pytest.approx(unit(0.2))
    omega, mu = one_head_formula(scaled) or (0, 0)
    assert omega * variance == pytest.approx(1 / math.sqrt(5))
    assert mu == pytest.approx(1.62769, abs=1e-5)


def test_closed_forms_are_not_offered_where_they_do_not_hold() -> None:
    for task in (MAIN.shifted(1.0), LinearRegression(5, 40, covariance=kms(0.5)), None):
        assert manifold_mu(task) is None
        assert one_head_formula(task) is None
    assert optimal_step(MAIN.shifted(1.0)) is None
    tilted = LinearRegression(5, 40, 0.1, covariance=kms(0.5))
    gamma = theory.debiased_preconditioner(tilted.sigma, length=40, noise_var=0.1)
    assert optimal_step(tilted) == pytest.approx(np.trace(gamma) / 5)


def test_many_iterates_at_once_are_each_of_them() -> None:
    mu_of, rng = manifold_mu(MAIN), np.random.default_rng(0)
    assert mu_of is not None
    groups = Groups(np.array([True, False, False]), np.array([False, True, False]))
    omega, mu = 0.1 * rng.standard_normal((2, 4, 3)), rng.standard_normal((2, 4, 3))
    quantities = (groups.gamma, groups.spread, groups.imbalance, groups.step, groups.positive_sum, groups.negative_sum)
    against = [lambda w, m, q=q: q(w, m, mu_of) for q in (groups.target, groups.distance)]
    for quantity in (*quantities, *against):
        one_by_one = [[quantity(*pair) for pair in zip(*rows, strict=True)] for rows in zip(omega, mu, strict=True)]
        np.testing.assert_allclose(quantity(omega, mu), one_by_one, rtol=1e-12)
        assert isinstance(one_by_one[0][0], float)
