"""The true surface against loops, closed forms and plain sampling; the approximate one in other units."""

from __future__ import annotations

import dataclasses
import re

import numpy as np
import pytest
import torch
from scipy.special import softmax

from icl_interp import theory
from icl_interp.errors import ConfigError
from icl_interp.estimates import mean_of
from icl_interp.estimators import GradientDescent, KernelRegressor, bayes
from icl_interp.surfaces import ApproximateSurface, pattern_moments, predictor_risk, unit_sizes
from icl_interp.tasks import LinearRegression, MultiTaskRegression, Prompt, kms

MAIN = LinearRegression(dim=5, length=40, noise_var=0.1)
SIZES = {"dim": 5, "length": 40, "noise_var": 0.1}
GENERAL = LinearRegression(3, 7, 0.3, covariance=kms(0.5), mean=(0.4, -0.2, 1.0), signal_var=2.0)


def prompts(task: LinearRegression, n: int, seed: int = 0) -> Prompt:
    return task.sample(n, generator=torch.Generator().manual_seed(seed)).to(dtype=torch.float64)


def pair(value: float) -> np.ndarray:
    return np.array([value, -value])


@pytest.mark.parametrize("query_noise", [True, False])
def test_moments_are_what_a_loop_over_prompts_finds(query_noise: bool) -> None:
    """Three prompts are too few to regress on controls, so the averages are plain ones."""
    task = dataclasses.replace(GENERAL, query_noise=query_noise)
    shape = np.array([[1.0, 0.3, 0.0], [0.3, 0.8, 0.1], [0.0, 0.1, 1.2]])
    prompt, omega, mu = prompts(task, 3), np.array([0.4, -0.7, 0.1]), np.array([1.1, -0.6, 0.3, 0.8])
    moments = pattern_moments(omega, prompt, task, shape=shape, debiased_step=True)
    risks, overlaps = [], []
    for x, x_q in zip(prompt.x.numpy(), prompt.x_q.numpy(), strict=True):
        scores = x @ shape @ x_q
        p = np.array([*(softmax(w * scores) for w in omega), (scores - scores.mean()) / len(x)])
        w = mu @ p
        # ŷ = wᵀ(Xβ + ε) and y_q = x_qᵀβ + ε_q
        risks.append(2.0 / 3 * np.sum((x_q - x.T @ w) ** 2) + 0.3 * (w @ w + query_noise))
        overlaps.append(p[0] @ p[1])
    assert moments.heads == 4
    assert moments.risk(mu).value == pytest.approx(np.mean(risks), rel=1e-12)
    assert moments.overlap(1, 0).value == moments.overlap(0, 1).value == pytest.approx(np.mean(overlaps), rel=1e-12)
    assert moments.risk(mu).half == np.inf


def test_a_debiased_step_has_its_exact_risk_without_error() -> None:
    """It is its own control variate."""
    sizes = {"length": 40, "noise_var": 0.1}
    for task in (MAIN, dataclasses.replace(MAIN, covariance=kms(0.5), query_noise=False)):
        moments = pattern_moments(np.array([0.1]), prompts(task, 50), task, debiased_step=True)
        for eta in (0.3, 0.88):
            exact = theory.preconditioned_debiased_gd_risk(
                eta * np.eye(5), task.sigma, **sizes, query_noise=task.query_noise
            )
            risk = moments.risk(np.array([0.0, eta]))
            assert risk.value == pytest.approx(exact, abs=1e-6)  # covariates are drawn in float32
            assert risk.half < 1e-6


def test_labels_are_integrated_out_under_any_covariance_and_mean() -> None:
    """Against squared errors on sampled labels, and many times as many prompts."""
    omega, mu = np.array([0.3, -0.2]), np.array([1.2, -0.9])
    sampled = prompts(GENERAL, 100_000, seed=1)
    prediction = KernelRegressor(0.3, 1.2)(sampled) + KernelRegressor(-0.2, -0.9)(sampled)
    step = GradientDescent(0.6, debiased=True)(sampled)
    moments = pattern_moments(omega, prompts(GENERAL, 10_000), GENERAL, debiased_step=True)
    for weights, answer in (([*mu, 0.0], prediction), ([0.0, 0.0, 0.6], step), ([*mu, -0.6], prediction - step)):
        plain = mean_of((answer - sampled.y_q).square().numpy().ravel())
        risk = moments.risk(np.array(weights))
        assert abs(risk.value - plain.value) < 2 * np.hypot(risk.half, plain.half)
        square, plain = moments.mean_square(np.array(weights)), mean_of(answer.square().numpy().ravel())
        assert abs(square.value - plain.value) < 2 * np.hypot(square.half, plain.half)


@pytest.mark.parametrize(
    ("omega", "mu", "risk"),
    [
        ((0.05, -0.05), None, 0.24283),
        ((0.127, -0.127), None, 0.24298),
        ((0.3, -0.3), None, 0.2486),
        ((0.518,), 1.5, 0.4048),
    ],
)
def test_known_risks_of_the_main_setting(omega: tuple[float, ...], mu: float | None, risk: float) -> None:
    mu = theory.manifold_mu(omega[0], **SIZES) if mu is None else mu
    found = pattern_moments(np.array(omega), prompts(MAIN, 16_000), MAIN).risk(mu * np.sign(omega))
    assert abs(found.value - risk) < 2 * found.half + 1e-4
    assert found.half < 0.01 * risk


def test_controls_take_most_of_the_error_off() -> None:
    mu = theory.manifold_mu(0.05, **SIZES)
    sampled = prompts(MAIN, 4_000)
    plain = mean_of(
        (KernelRegressor(0.05, mu)(sampled) + KernelRegressor(-0.05, -mu)(sampled) - sampled.y_q)[:, 0].square().numpy()
    )
    assert pattern_moments(pair(0.05), sampled, MAIN).risk(pair(mu)).half < 0.02 * plain.half


def test_intervals_cover() -> None:
    """Of the risk and of a paired difference, at a γ where controls do not do everything."""
    mu, other = pair(theory.manifold_mu(0.2, **SIZES)), pair(2.0)
    many = pattern_moments(pair(0.2), prompts(MAIN, 100_000, seed=999), MAIN)
    truths = many.risk(mu).value, many.risk_difference(mu, other).value
    hits = np.zeros(2)
    for seed in range(200):
        moments = pattern_moments(pair(0.2), prompts(MAIN, 300, seed), MAIN)
        estimates = moments.risk(mu), moments.risk_difference(mu, other)
        hits += [e.low <= truth <= e.high for e, truth in zip(estimates, truths, strict=True)]
    assert ((hits / 200 > 0.87) & (hits / 200 < 0.99)).all()


def test_many_mu_at_once_and_the_best_of_them() -> None:
    moments = pattern_moments(pair(0.3), prompts(MAIN, 2_000), MAIN)
    grid = np.linspace(0, 3, 7)[:, None] * pair(1.0)
    np.testing.assert_allclose(moments.risks(grid), [moments.risk(mu).value for mu in grid], rtol=1e-12)
    best = moments.best_mu()
    around = best + 0.05 * np.array([[1, 0], [-1, 0], [0, 1], [0, -1], [1, 1]])
    assert (moments.risks(around) > moments.risks(best)).all()
    assert moments.risk_difference(around[0], best).value == pytest.approx(
        moments.risk(around[0]).value - moments.risk(best).value, abs=1e-12
    )
    assert moments.risk_difference(best, best).half == 0
    shared = pattern_moments(np.array([0.3, 0.3, -0.3]), prompts(MAIN, 2_000), MAIN).best_mu()
    np.testing.assert_allclose(shared, [best[0] / 2, best[0] / 2, best[1]], rtol=1e-6)


def test_attention_overlaps_as_theory_says_of_long_prompts() -> None:
    even = pattern_moments(np.array([0.0]), prompts(MAIN, 300), MAIN).overlap(0, 0)
    assert even.value == pytest.approx(1 / 40)
    assert even.half < 1e-9
    task = dataclasses.replace(MAIN, length=1_500)
    moments = pattern_moments(pair(0.2), prompts(task, 1_500), task)
    for heads, product in (((0, 0), 0.04), ((0, 1), -0.04), ((1, -1), 0.04)):
        found, limit = moments.overlap(*heads), theory.attention_overlap(product, 1.0, dim=5, length=1_500)
        assert abs(found.value - limit) < 2 * found.half + 1e-3 * limit
        assert found.half < 0.02 * limit


def test_any_predictor_has_its_risk_whatever_it_is_held_against() -> None:
    chunks = [prompts(MAIN, 8_000, seed) for seed in range(2)]
    for omega, mu in ((pair(0.13), pair(3.3)), (np.array([0.0]), np.array([0.0]))):
        ridge = predictor_risk(bayes(MAIN), omega, mu, iter(chunks), MAIN)
        assert abs(ridge.value - 0.1145) < 2 * ridge.half
        assert ridge.half < 0.003


def test_a_predictor_that_is_nearly_the_pattern_is_known_much_better() -> None:
    prompt, mu = prompts(MAIN, 4_000), theory.manifold_mu(0.13, **SIZES)

    def nearly(prompt: Prompt) -> torch.Tensor:
        heads = KernelRegressor(0.13, mu), KernelRegressor(-0.13, -mu)
        return 1.02 * (heads[0](prompt) + heads[1](prompt))

    found = predictor_risk(nearly, pair(0.13), pair(mu), prompt, MAIN)
    plain = mean_of((nearly(prompt) - prompt.y_q)[:, 0].square().numpy())
    exact = pattern_moments(pair(0.13), prompt, MAIN).risk(pair(1.02 * mu))
    assert found.half < 0.15 * plain.half
    assert abs(found.value - exact.value) < 2 * found.half
    shifted = predictor_risk(lambda p: nearly(p) + 0.1, pair(0.13), pair(mu), prompt, MAIN)
    assert shifted.value - found.value == pytest.approx(0.01, abs=2 * shifted.half)


def test_other_units_change_nothing() -> None:
    """Covariates twice as large, ω and the signal a quarter: the same problem."""
    scaled = dataclasses.replace(MAIN, covariance=4 * np.eye(5), signal_var=0.25)
    unit, other = ApproximateSurface(MAIN), ApproximateSurface(scaled)
    omega, mu = np.array([0.13, -0.1]), np.array([3.0, -3.2])
    assert unit_sizes(scaled) == (4.0, {**SIZES, "signal_var": 1.0})
    assert other.loss(omega / 4, mu) == pytest.approx(unit.loss(omega, mu))
    assert other.floor(0.13 / 4) == pytest.approx(unit.floor(0.13)) == pytest.approx(theory.manifold_mu(0.13, **SIZES))
    assert other.bias(0.9 / 4) == pytest.approx(unit.bias(0.9))
    assert other.overlap(0.3 / 4, -0.2 / 4) == pytest.approx(unit.overlap(0.3, -0.2))
    risks = [pattern_moments(w, prompts(t, 500), t).risk(mu) for w, t in ((omega, MAIN), (omega / 4, scaled))]
    assert risks[0].value == pytest.approx(risks[1].value, rel=1e-5)


def test_the_approximate_surface_is_theorys() -> None:
    surface = ApproximateSurface(dataclasses.replace(MAIN, query_noise=False))
    floor = surface.floor(0.2)
    assert surface.pair_loss(0.2, floor) == pytest.approx(theory.manifold_loss(0.2, **SIZES, query_noise=False))
    assert surface.pair_loss(0.2, floor) < min(surface.pair_loss(0.2, floor + 0.1), surface.pair_loss(0.2, floor - 0.1))
    assert surface.overlap(0.2, -0.2) == pytest.approx((np.exp(-0.2), 1.08**-2.5))
    assert surface.overlap(0.8, 0.8) == (pytest.approx(np.exp(3.2)), np.inf)
    assert surface.loss(pair(20.0), pair(1.0)) == np.inf
    unit = ApproximateSurface(MAIN)
    # Figure 6 (c): the bias is what the two surfaces differ by where γ is small.
    moments = pattern_moments(pair(0.005), prompts(MAIN, 4_000), MAIN)
    for eta in (0.4, 0.88, 2.0):
        gap = moments.risk(pair(eta / 0.01)).value - unit.pair_loss(0.005, eta / 0.01)
        assert gap == pytest.approx(unit.bias(eta), abs=5e-5)


def test_what_does_not_fit_is_refused() -> None:
    prompt = prompts(MAIN, 20)
    moments = pattern_moments(pair(0.1), prompt, MAIN)
    other = MultiTaskRegression(6, ((0, 1), (1, 2)), 12)
    spoilt = dataclasses.replace(prompt, x=prompt.x * torch.nan)
    refusals = [
        (
            lambda: pattern_moments(pair(0.1), prompt, other),  # type: ignore[arg-type]
            "labels can be integrated out for LinearRegression only",
        ),
        (lambda: pattern_moments(np.array([np.nan]), prompt, MAIN), "omega must have one finite number for each head"),
        (lambda: pattern_moments(np.zeros((1, 2)), prompt, MAIN), "omega must have one finite number for each head"),
        (lambda: pattern_moments(pair(0.1), [], MAIN), "averages over prompts, got none"),
        (lambda: pattern_moments(pair(0.1), spoilt, MAIN), "covariates that are NaN or infinite"),
        (lambda: moments.risk(np.ones(3)), "one finite number for each of 2 heads"),
        (lambda: moments.risks(np.full((4, 2), np.inf)), "one finite number for each of 2 heads"),
        (lambda: predictor_risk(bayes(MAIN), pair(0.1), np.ones(1), prompt, MAIN), "each of 2 heads"),
        (lambda: ApproximateSurface(dataclasses.replace(MAIN, mean=1.0)), "isotropic, centred covariates, got Linear"),
        (lambda: unit_sizes(dataclasses.replace(MAIN, covariance=kms(0.2))), "isotropic, centred covariates"),
    ]
    for refused, words in refusals:
        with pytest.raises(ConfigError, match=re.escape(words)):
            refused()


def test_a_predictor_that_is_not_finite_has_an_unknown_risk() -> None:
    risk = predictor_risk(lambda p: p.y_q * torch.nan, pair(0.1), pair(1.0), prompts(MAIN, 20), MAIN)
    assert np.isnan(risk.value)
    assert risk.half == np.inf
