"""The closed forms against published numbers, finite differences, their own minima, and simulation.

A tolerance is half a unit in the last printed digit, four standard errors, or rounding; anything else says why.
"""

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from scipy.special import roots_genlaguerre

from icl_interp import theory

MAIN = {"dim": 5, "length": 40, "noise_var": 0.1}
USES = np.array([[1, 1, 1, 1, 0, 0], [0, 0, 1, 1, 1, 1]], dtype=bool)

gammas = st.floats(0.01, 0.6)
SETTINGS = st.fixed_dictionaries(
    {
        "dim": st.integers(1, 12),
        "length": st.integers(2, 400),
        "noise_var": st.floats(0.0, 4.0),
        "signal_var": st.floats(0.1, 5.0),
    }
)
properties = settings(max_examples=40, deadline=None, derandomize=True)


def printed(value, digits):
    """`value` as a table prints it, to so many decimals."""
    return pytest.approx(value, abs=0.5000001 * 10.0**-digits)


def pair(gamma, mu):
    return np.array([gamma, -gamma]), np.array([mu, -mu])


# --- Simulation ------------------------------------------------------------------------------------------------------


def prompts(n, *, dim, length, noise_var, seed, signal_var=1.0, covariance=None):
    rng = np.random.default_rng(seed)
    root = np.eye(dim) if covariance is None else np.linalg.cholesky(covariance).T
    x = rng.standard_normal((n, length, dim)) @ root
    query = rng.standard_normal((n, dim)) @ root
    beta = rng.standard_normal((n, dim)) * np.sqrt(signal_var / dim)
    labels = np.einsum("nld,nd->nl", x, beta) + np.sqrt(noise_var) * rng.standard_normal((n, length))
    target = np.einsum("nd,nd->n", query, beta)
    return x, labels, query, target, target + np.sqrt(noise_var) * rng.standard_normal(n)


def gradient_step(x, labels, query, preconditioner, *, centred):
    x = x - x.mean(axis=1, keepdims=True) if centred else x
    return np.einsum("nl,nld,de,ne->n", labels / x.shape[1], x, preconditioner, query, optimize=True)


def attention(scores, labels, omega):
    weights = np.exp(omega * scores)
    return (weights * labels).sum(axis=1) / weights.sum(axis=1)


def assert_mean(samples, expected):
    error = samples.std(ddof=1) / np.sqrt(len(samples))
    assert abs(samples.mean() - expected) < 4 * error, f"{samples.mean():.5f} ± {error:.5f}, expected {expected:.5f}"
    assert error < 0.1 * abs(expected), "too few samples for the comparison to mean anything"


@pytest.mark.parametrize("signal_var", [1.0, 4.0])
@pytest.mark.parametrize("query_noise", [True, False])
def test_isotropic_risks_are_exact(signal_var, query_noise):
    # A short prompt, so that the terms of order 1/L, which tell the two predictors apart, are many standard errors.
    setting = {"dim": 3, "length": 8, "noise_var": 0.5, "signal_var": signal_var}
    x, labels, query, clean, noisy = prompts(40_000, seed=1, **setting)
    target = noisy if query_noise else clean
    for step in (0.4, 0.9):
        for centred, risk in ((False, theory.gd_risk), (True, theory.debiased_gd_risk)):
            prediction = gradient_step(x, labels, query, step * np.eye(3), centred=centred)
            assert_mean((prediction - target) ** 2, risk(step, query_noise=query_noise, **setting))


@pytest.mark.parametrize(("signal_var", "query_noise"), [(1.0, True), (2.5, False)])
def test_preconditioned_risk_is_exact_for_any_matrix(signal_var, query_noise):
    covariance = theory.kms_covariance(3, 0.6)
    setting = {"length": 8, "noise_var": 0.5, "signal_var": signal_var}
    x, labels, query, clean, noisy = prompts(40_000, dim=3, seed=2, covariance=covariance, **setting)
    target = noisy if query_noise else clean
    lopsided = np.array([[0.5, 0.4, 0.0], [-0.3, 0.3, 0.2], [0.1, 0.0, 0.7]])
    assert not np.allclose(lopsided @ covariance, covariance @ lopsided)
    for preconditioner in (theory.debiased_preconditioner(covariance, **setting), lopsided):
        expected = theory.preconditioned_debiased_gd_risk(
            preconditioner, covariance, query_noise=query_noise, **setting
        )
        assert_mean((gradient_step(x, labels, query, preconditioner, centred=True) - target) ** 2, expected)


def test_gd_preconditioner_beats_its_rivals_on_shared_prompts():
    covariance, setting = theory.kms_covariance(3, 0.6), {"length": 8, "noise_var": 0.5}
    x, labels, query, _, target = prompts(40_000, dim=3, seed=3, covariance=covariance, **setting)

    def losses(preconditioner):
        return (gradient_step(x, labels, query, preconditioner, centred=False) - target) ** 2

    best = theory.gd_preconditioner(covariance, **setting)
    for rival in (theory.debiased_preconditioner(covariance, **setting), 0.9 * best, 1.1 * best):
        gain = losses(rival) - losses(best)
        assert gain.mean() > 4 * gain.std() / np.sqrt(len(gain))


def test_approximate_loss_misses_the_risk_by_its_bias():
    # At this gamma the next terms are below 1e-4, a tenth of the standard error.
    omega, mu = pair(0.02, theory.manifold_mu(0.02, **MAIN))
    x, labels, query, _, target = prompts(20_000, seed=4, **MAIN)
    scores = np.einsum("nld,nd->nl", x, query)
    prediction = sum(m * attention(scores, labels, w) for w, m in zip(omega, mu, strict=True))
    bias = theory.approximate_loss_bias(theory.effective_step(omega, mu), **MAIN)
    assert_mean((prediction - target) ** 2, theory.approximate_loss(omega, mu, **MAIN) + bias)


@pytest.fixture(scope="module")
def long_prompts():
    setting = {"dim": 5, "length": 2000, "noise_var": 0.1}
    x, labels, query, clean, _ = prompts(3000, seed=5, **setting)
    return setting, np.einsum("nld,nd->nl", x, query), x, labels, query, clean


def test_gap_to_debiased_gd_falls_as_gamma_squared(long_prompts):
    setting, scores, x, labels, query, _ = long_prompts
    step, steps = 0.88, np.array([0.01, 0.02, 0.04])
    debiased = gradient_step(x, labels, query, step * np.eye(5), centred=True)
    squares = []
    for gamma in steps:
        two_heads = step / (2 * gamma) * (attention(scores, labels, gamma) - attention(scores, labels, -gamma))
        squares.append((two_heads - debiased) ** 2)
    rms = np.sqrt(np.mean(squares, axis=1))
    slope = np.polyfit(np.log(steps), np.log(rms), 1)[0]
    assert slope == pytest.approx(2, abs=0.05)  # the next order, gamma^4, tilts it by about (0.04)^2 d
    assert_mean(squares[0], theory.gd_gap_rms(step, steps[0], **setting) ** 2)
    assert theory.gd_gap_rms(-step, 0.02, **setting) == pytest.approx(4 * theory.gd_gap_rms(step, 0.01, **setting))


def test_long_prompt_limits(long_prompts):
    setting, scores, _, labels, _, clean = long_prompts
    length, kept = setting["length"], {"dim": 5, "noise_var": 0.1}
    gamma, (single, omega) = 0.2, theory.single_head_constant(**kept)
    weights = [np.exp(w * scores) / np.exp(w * scores).sum(axis=1, keepdims=True) for w in (gamma, -gamma, omega)]
    positive, negative, alone = weights
    two_heads = ((positive - negative) * labels).sum(axis=1) / (2 * gamma)
    one_head = (alone * labels).sum(axis=1) / omega
    assert_mean(length * (two_heads - clean) ** 2, theory.multi_head_constant(gamma, **kept))
    assert_mean(length * (one_head - clean) ** 2, single)
    sizes = {"dim": 5, "length": length}
    assert_mean((positive * positive).sum(axis=1), theory.attention_overlap(gamma, gamma, **sizes))
    assert_mean((positive * negative).sum(axis=1), theory.attention_overlap(gamma, -gamma, **sizes))


def test_multi_head_constant_is_the_variance_of_the_limit():
    # L times the variance of a ratio of sums, by quadrature over a score s ~ N(0, q) and q = |query|^2: no sampling
    # error, so chi-squares of dim and dim + 2 degrees of freedom can be told apart.
    gamma, dim, noise_var = 0.35, 5, 0.1
    nodes, weights = np.polynomial.hermite_e.hermegauss(80)
    halves, chances = roots_genlaguerre(60, dim / 2 - 1)
    total = 0.0
    for q, chance in zip(2 * halves, chances / chances.sum(), strict=True):
        s, tilt = np.sqrt(q) * nodes, np.exp(-(gamma**2) * q / 2)
        plus, minus = tilt * np.exp(gamma * s), tilt * np.exp(-gamma * s)
        along = (plus * (s - gamma * q) - minus * (s + gamma * q)) ** 2 / (dim * q)
        across = (1 - 1 / dim + noise_var) * (plus - minus) ** 2
        total += chance * np.average(along + across, weights=weights) / (4 * gamma**2)
    assert theory.multi_head_constant(gamma, dim=dim, noise_var=noise_var) == pytest.approx(total, rel=1e-6)


def test_proportional_limits_are_approached():
    # The mean over a Wishart spectrum fluctuates by a few parts in dim about its limit.
    dim, length, noise_var = 400, 1000, 0.3
    x = np.random.default_rng(6).standard_normal((dim, length))
    spectrum = np.linalg.eigvalsh(x @ x.T / length)
    ratio, penalty = dim / length, dim / length * noise_var
    stieltjes = theory.marchenko_pastur_stieltjes(ratio, penalty)
    assert np.mean(1 / (spectrum + penalty)) == pytest.approx(stieltjes, rel=5 / dim)
    step = theory.optimal_step(dim=dim, length=length, noise_var=noise_var)
    finite = theory.debiased_gd_risk(step, dim=dim, length=length, noise_var=noise_var)
    assert theory.gd_risk_asymptotic(ratio, noise_var=noise_var) == pytest.approx(finite, abs=2 / length)


@pytest.mark.parametrize(("signal_var", "query_noise"), [(1.0, True), (2.5, False)])
def test_risks_of_steps_on_several_tasks_are_exact(signal_var, query_noise):
    setting = {"length": 6, "noise_var": 0.5, "signal_var": signal_var}
    uses = np.array([[1, 1, 0], [0, 1, 1], [1, 0, 0], [1, 1, 1]], dtype=bool)
    rng = np.random.default_rng(8)
    steps = rng.normal(0.4, 0.3, size=uses.shape)  # off the supports too
    risks = theory.task_gd_risks(steps, uses, query_noise=query_noise, **setting)
    x, query = rng.standard_normal((40_000, 6, 3)), rng.standard_normal((40_000, 3))
    centred = x - x.mean(axis=1, keepdims=True)
    for task, step, risk in zip(uses, steps, risks, strict=True):
        beta = rng.standard_normal((40_000, 3)) * np.sqrt(signal_var / task.sum()) * task
        labels = np.einsum("nld,nd->nl", x, beta) + np.sqrt(0.5) * rng.standard_normal((40_000, 6))
        target = np.einsum("nd,nd->n", query, beta) + query_noise * np.sqrt(0.5) * rng.standard_normal(40_000)
        prediction = np.einsum("nl,nld,nd->n", labels / 6, centred, step * query)
        assert_mean((prediction - target) ** 2, risk)


# --- Published numbers -----------------------------------------------------------------------------------------------


def test_main_setting():
    omega, mu = pair(0.1267, 3.5006)
    assert theory.approximate_loss(omega, mu, **MAIN) == printed(0.2211, 4)
    assert theory.effective_step(omega, mu) == printed(0.8871, 3)  # the table's ω has four digits
    assert theory.optimal_step(**MAIN) == printed(0.8791, 4)
    assert theory.manifold_step(0.13, **MAIN) == printed(0.8790, 4)
    assert theory.gd_optimal_step(**MAIN) == printed(0.8602, 4)
    assert theory.gd_risk(0.8602, **MAIN) == printed(0.23978, 5)
    assert theory.debiased_gd_risk(0.8791, **MAIN) == printed(0.24286, 5)
    assert theory.approximate_loss_bias(0.8791, **MAIN) == printed(0.0220, 4)
    assert theory.single_head_optimum(**MAIN) == (printed(0.4472, 4), printed(1.628, 3))
    assert theory.manifold_loss(1e-4, **MAIN) == printed(0.2209, 4)


def test_constants_of_long_prompts():
    constant, omega = theory.single_head_constant(dim=5, noise_var=0.1)
    assert (constant, omega) == (printed(20.80, 2), printed(0.352, 3))
    assert theory.multi_head_constant(1e-3, dim=5, noise_var=0.1) == pytest.approx(6.5, abs=1e-3)
    for dim, ratio in ((2, 3.73), (5, 3.20), (10, 2.97), (20, 2.85), (50, 2.77)):
        constant, _ = theory.single_head_constant(dim=dim, noise_var=0.1)
        assert constant / theory.multi_head_constant(1e-4, dim=dim, noise_var=0.1) == printed(ratio, 2)
    # As γ → 0 the two heads are debiased GD, whose risk is known at every length.
    long = {"dim": 5, "length": 10**6, "noise_var": 0.1}
    excess = theory.debiased_gd_risk(theory.optimal_step(**long), query_noise=False, **long)
    assert 10**6 * excess == pytest.approx(6.5, abs=1e-3)


def test_asymptotic_risks():
    setting = {"noise_var": 3.0}
    gd, bayes = theory.gd_risk_asymptotic(0.2, **setting), theory.bayes_risk_asymptotic(0.2, **setting)
    assert (gd, bayes, gd / bayes) == (printed(3.4444, 4), printed(3.4051, 4), printed(1.0115, 4))
    assert theory.bayes_risk_asymptotic(0.125, noise_var=0.1) == printed(0.1141, 4)
    assert theory.bayes_risk_asymptotic(2.5, noise_var=0.0) == pytest.approx(1 - 1 / 2.5)
    assert theory.bayes_risk_asymptotic(0.5, noise_var=0.0) == pytest.approx(0)


@properties
@given(st.integers(1, 40), st.integers(1, 40), st.floats(0.1, 5.0))
def test_least_squares_misses_what_the_covariates_do_not_span(dim, length, signal_var):
    risk = theory.ridgeless_excess_risk(dim, length, signal_var=signal_var)
    x = np.random.default_rng(9).standard_normal((length, dim))
    left_out = np.eye(dim) - np.linalg.pinv(x) @ x  # its trace is the mean over directions of β, whatever x is
    assert risk == pytest.approx(signal_var * np.trace(left_out) / dim, abs=1e-9)
    assert risk == pytest.approx(theory.bayes_risk_asymptotic(dim / length, noise_var=0, signal_var=signal_var))


@pytest.mark.parametrize(
    ("omega", "mu", "slope", "step"),
    [
        (0.1267, 3.5006, 1.0, 0.8871),
        (0.1504, 3.3362, 1.0, 1.0035),
        (0.3677, 2.3963, 0.5, 0.8810),
        (0.2411, 2.2819, 0.8, 0.8802),
        (0.1979, 2.2221, 1.0, 0.8794),
        (0.2882, 1.7561, 1.0, 1.0122),
        (0.1810, 1.7487, 1.6, 1.0128),
        (0.1452, 1.7448, 2.0, 1.0132),
    ],
)
def test_effective_steps_of_table_1(omega, mu, slope, step):
    rounding = 2 * slope * (omega + mu) * 0.5e-4 + 0.5e-4
    assert theory.effective_step(*pair(omega, mu), slope=slope) == pytest.approx(step, abs=rounding)


def test_superposition_of_table_2():
    omega = np.array([[-0.0316, -0.0689, -0.0893], [0.0779, 0.0, 0.0870], [-0.0837, 0.0927, 0.0152]])
    mu = np.array([[-3.9911, -7.0742], [6.9204, 2.3371], [-2.8739, 4.7399]])
    steps = theory.group_steps(omega, mu)
    np.testing.assert_allclose(steps, [[0.906, 0.009, 0.915], [0.009, 0.927, 0.907]], atol=5e-4)
    np.testing.assert_allclose(mu.sum(axis=0), [0.055, 0.003], atol=5e-4)
    # Columns {1, 2}, {5, 6}, {3, 4}; a trained run keeps within 2 % of the theory.
    ideal = theory.superposition_steps(USES, length=48, noise_var=0.1)
    np.testing.assert_allclose(steps, ideal[:, [0, 4, 2]], atol=0.02)
    np.testing.assert_allclose(ideal[0], [0.916, 0.916, 0.916, 0.916, 0, 0], atol=5e-4)


def test_two_tasks_on_one_pair_of_heads():
    steps = theory.shared_steps(USES, length=48, noise_var=0.1)
    np.testing.assert_allclose(steps, [0.8451, 0.8451, 0.9160, 0.9160, 0.8451, 0.8451], atol=5e-5)
    assert steps[2] / steps[0] == printed(1.084, 3)
    alone = theory.shared_steps(USES[:1], length=48, noise_var=0.1)
    np.testing.assert_allclose(alone[:4], theory.superposition_steps(USES[:1], length=48, noise_var=0.1)[0, :4])


@pytest.mark.parametrize("gamma", [0.05, 0.3])
def test_task_losses_of_one_task_are_the_approximate_loss(gamma):
    omega, mu = np.array([gamma, -gamma, 0.1]), np.array([1.3, -1.1, 0.4])
    setting = {"length": 40, "noise_var": 0.1, "signal_var": 2.0, "query_noise": False}
    uses, heads = np.ones((1, 5), dtype=bool), omega[:, None] * np.ones(5)
    (loss,) = theory.task_approximate_loss(heads, mu[:, None], uses, **setting)
    assert loss == pytest.approx(theory.approximate_loss(omega, mu, dim=5, **setting), rel=1e-12)
    (risk,) = theory.task_gd_risks(0.7 * uses, uses, **setting)
    assert risk == pytest.approx(theory.debiased_gd_risk(0.7, dim=5, **setting), rel=1e-12)


def test_task_losses_of_one_shared_head():
    # The optimum for two tasks on one head: 0.381 on features of one task, 0.457 on those of both, 0.366 a task.
    setting = {"length": 48, "noise_var": 0.1}
    both = USES.all(axis=0)

    def losses(state):
        alone, shared, mu = state
        return theory.task_approximate_loss(np.where(both, shared, alone)[None], np.full((1, 2), mu), USES, **setting)

    found = minimize(lambda state: losses(state).sum(), (0.3, 0.4, 1.5), tol=1e-12)
    assert found.x == pytest.approx([0.381, 0.457, 1.750], abs=5.1e-4)
    np.testing.assert_allclose(losses(found.x), 0.366, atol=5e-4)


def test_preconditioners_of_the_kms_covariance():
    covariance, inverse = theory.kms_covariance(5, 0.5), theory.kms_inverse(5, 0.5)
    setting = {"length": 40, "noise_var": 0.1}
    gd, debiased = (
        theory.gd_preconditioner(covariance, **setting),
        theory.debiased_preconditioner(covariance, **setting),
    )

    def risk(preconditioner):
        return theory.preconditioned_debiased_gd_risk(preconditioner, covariance, **setting)

    def best_multiple(preconditioner):
        nothing, once, twice = (risk(scale * preconditioner) for scale in (0.0, 1.0, 2.0))
        curvature = twice - 2 * once + nothing
        return nothing - (4 * once - 3 * nothing - twice) ** 2 / (8 * curvature)

    assert risk(debiased) == printed(0.23677, 5)
    assert risk(gd) == printed(0.23718, 5)
    assert best_multiple(inverse) == printed(0.24286, 5)
    assert best_multiple(np.eye(5)) == printed(0.3760, 4)
    assert gd[0, 2] == printed(-0.034, 3)
    assert inverse[0, 2] == 0


def test_two_head_flow():
    times = np.array([*np.arange(0.0, 12.005, 0.01), 1e4, 1e6])
    omega, mu = theory.two_head_flow(times, **MAIN)
    peak = omega.argmax()
    assert (omega[peak], times[peak]) == (printed(0.576, 3), printed(7.69, 2))
    assert mu[peak] == printed(0.631, 3)
    assert (omega[0], mu[0]) == (1e-3, 1e-3)
    assert omega[300] == pytest.approx(1e-3 * np.exp(3), rel=1e-3)  # phase I: growth at rate 1, ω and μ together
    assert (omega[-2], omega[-1]) == (printed(0.1394, 4), printed(0.0646, 4))
    assert 2 * omega[-1] * mu[-1] == pytest.approx(theory.optimal_step(**MAIN), rel=1e-4)
    assert theory.late_time_omega(1e4, **MAIN) == printed(0.1392, 4)
    assert theory.late_time_omega(1e6, **MAIN) == pytest.approx(omega[-1], rel=1e-3)
    assert np.log(omega[-1] / omega[-2]) / np.log(100) == pytest.approx(-1 / 6, abs=2e-3)  # and not -1/2


def test_louder_signal_is_faster_flow():
    times = np.array([2.0, 8.0])
    loud = theory.two_head_flow(times / 4, dim=5, length=40, noise_var=0.4, signal_var=4.0)
    np.testing.assert_allclose(loud, theory.two_head_flow(times, **MAIN), rtol=1e-6)


# --- Properties ------------------------------------------------------------------------------------------------------


@properties
@given(SETTINGS, st.integers(0, 10**6))
def test_gradients_are_those_of_the_loss(setting, seed):
    heads = np.random.default_rng(seed).normal(scale=0.3, size=(2, 3))
    gradients = np.stack(theory.approximate_loss_gradients(*heads, **setting))
    nudge = 1e-5
    for index in np.ndindex(heads.shape):
        bump = np.zeros_like(heads)
        bump[index] = nudge
        rise = theory.approximate_loss(*(heads + bump), **setting) - theory.approximate_loss(*(heads - bump), **setting)
        assert gradients[index] == pytest.approx(rise / (2 * nudge), rel=1e-5, abs=1e-6)


@properties
@given(SETTINGS, gammas, st.floats(0.2, 3.0))
def test_flow_descends_half_the_approximate_loss(setting, gamma, mu):
    d_omega, d_mu = theory.approximate_loss_gradients(*pair(gamma, mu), **setting)
    velocity = theory.two_head_flow_velocity(gamma, mu, **setting)
    assert velocity == pytest.approx((-d_omega[0] / 2, -d_mu[0] / 2), rel=1e-9, abs=1e-9)


@properties
@given(SETTINGS, gammas)
def test_manifold_minimises_the_approximate_loss_at_its_gamma(setting, gamma):
    mu = theory.manifold_mu(gamma, **setting)
    omega, best = pair(gamma, mu)
    loss = theory.approximate_loss(omega, best, **setting)
    assert loss == pytest.approx(theory.manifold_loss(gamma, **setting), rel=1e-9)
    assert theory.effective_step(omega, best) == pytest.approx(theory.manifold_step(gamma, **setting))
    np.testing.assert_allclose(theory.optimal_mu_given_omega(omega, **setting), best, rtol=1e-6)
    for scale in (0.99, 1.01):
        assert theory.approximate_loss(omega, scale * best, **setting) > loss


@properties
@given(SETTINGS, gammas)
def test_heads_of_one_sign_share_mu(setting, gamma):
    mu = theory.optimal_mu_given_omega(np.array([gamma, gamma, -gamma]), **setting)
    half = theory.manifold_mu(gamma, **setting) / 2
    np.testing.assert_allclose(mu, [half, half, -2 * half], rtol=1e-5)


@properties
@given(SETTINGS)
def test_single_head_optimum_is_stationary_and_below_its_neighbours(setting):
    omega, mu = theory.single_head_optimum(**setting)
    heads = np.array([omega]), np.array([mu])
    scale = setting["signal_var"] * setting["dim"]
    np.testing.assert_allclose(theory.approximate_loss_gradients(*heads, **setting), 0, atol=1e-12 * scale)
    loss = theory.approximate_loss(*heads, **setting)
    for other in (0.9 * omega, 1.1 * omega):
        rival = np.array([other])
        assert theory.approximate_loss(rival, theory.optimal_mu_given_omega(rival, **setting), **setting) > loss


@properties
@given(SETTINGS, gammas)
def test_manifold_loss_increases_and_its_step_falls_from_the_optimal_step(setting, gamma):
    assert theory.manifold_loss(gamma, **setting) < theory.manifold_loss(1.1 * gamma, **setting)
    best = theory.optimal_step(**setting)
    assert 0 < theory.manifold_step(gamma, **setting) <= best < 1
    assert theory.manifold_step(1e-4, **setting) == pytest.approx(best, rel=1e-9)


@properties
@given(SETTINGS, st.booleans())
def test_optimal_steps_are_minimisers(setting, query_noise):
    for risk, best in ((theory.gd_risk, theory.gd_optimal_step), (theory.debiased_gd_risk, theory.optimal_step)):
        step = best(**setting)
        assert 0 < step <= 1
        low, at, high = (risk(scale * step, query_noise=query_noise, **setting) for scale in (0.9, 1.0, 1.1))
        assert at < low
        assert low == pytest.approx(high, rel=1e-9)  # a parabola is even about its minimum, and nothing else is


@properties
@given(SETTINGS, st.floats(0.0, 2.0))
def test_risks_scale_with_signal_and_shed_the_query_noise(setting, step):
    signal_var, noise_var = setting["signal_var"], setting["noise_var"]
    unit = {**setting, "signal_var": 1.0, "noise_var": noise_var / signal_var}
    for risk in (theory.gd_risk, theory.debiased_gd_risk):
        assert risk(step, **setting) == pytest.approx(signal_var * risk(step, **unit))
        assert risk(step, query_noise=False, **setting) == pytest.approx(risk(step, **setting) - noise_var)
    gap, unit_gap = theory.gd_gap_rms(step, 0.1, **setting), theory.gd_gap_rms(step, 0.1, **unit)
    assert gap**2 == pytest.approx(signal_var * unit_gap**2)
    assert theory.late_time_omega(7.0, **setting) == pytest.approx(theory.late_time_omega(7 * signal_var, **unit))
    matrix = np.eye(setting["dim"])
    others = {name: value for name, value in setting.items() if name != "dim"}
    endless, unit_endless = ({n: v for n, v in s.items() if n != "length"} for s in (setting, unit))
    constant = theory.multi_head_constant(0.3, **endless)
    assert constant == pytest.approx(signal_var * theory.multi_head_constant(0.3, **unit_endless))
    isotropic = theory.preconditioned_debiased_gd_risk(step * matrix, matrix, **others)
    assert isotropic == pytest.approx(theory.debiased_gd_risk(step, **setting))
    bias = theory.debiased_gd_risk(step, **setting) - theory.approximate_loss_bias(step, **setting)
    if step > 0.1:
        assert theory.approximate_loss(*pair(1e-4, step / 2e-4), **setting) == pytest.approx(bias, rel=1e-6)


@properties
@given(st.floats(0.05, 5.0), st.floats(0.01, 4.0), st.floats(0.1, 5.0))
def test_bayes_is_best_and_agrees_with_marchenko_pastur(ratio, noise_var, signal_var):
    setting = {"noise_var": noise_var, "signal_var": signal_var}
    bayes, gd = theory.bayes_risk_asymptotic(ratio, **setting), theory.gd_risk_asymptotic(ratio, **setting)
    noise = noise_var / signal_var
    assert bayes == pytest.approx(noise_var * (1 + ratio * theory.marchenko_pastur_stieltjes(ratio, ratio * noise)))
    assert noise_var < bayes < gd <= bayes * (1 + ratio * (1 + 1 / noise))


@properties
@given(st.integers(2, 6), st.floats(-0.9, 0.9), st.integers(2, 200), st.floats(0.0, 2.0), st.integers(0, 10**6))
def test_debiased_preconditioner_is_the_minimiser(dim, rho, length, noise_var, seed):
    covariance, setting = theory.kms_covariance(dim, rho), {"length": length, "noise_var": noise_var}
    best = theory.debiased_preconditioner(covariance, **setting)
    change = np.random.default_rng(seed).normal(size=(dim, dim))
    low, at, high = (
        theory.preconditioned_debiased_gd_risk(best + scale * change, covariance, **setting) for scale in (-0.1, 0, 0.1)
    )
    assert at < low
    assert low == pytest.approx(high, rel=1e-7)


TASKS = st.fixed_dictionaries(
    {"length": st.integers(2, 200), "noise_var": st.floats(0.0, 3.0), "signal_var": st.floats(0.1, 5.0)}
)


def several_tasks(seed):
    rng = np.random.default_rng(seed)
    uses = rng.random((3, 5)) < 0.5
    uses[np.arange(3), rng.integers(5, size=3)] = True
    return uses, rng


@properties
@given(TASKS, st.integers(0, 10**6))
def test_steps_of_several_tasks_are_minimisers(setting, seed):
    uses, rng = several_tasks(seed)
    own, shared = theory.superposition_steps(uses, **setting), theory.shared_steps(uses, **setting)
    change = rng.normal(size=uses.shape)
    candidates = [own - 0.1 * change, own, own + 0.1 * change]
    low, at, high = (theory.task_gd_risks(steps, uses, **setting) for steps in candidates)
    assert (at < low).all()
    np.testing.assert_allclose(low, high, rtol=1e-9)
    # One preconditioner for all: a parabola again, about its minimum.
    low, at, high = (
        theory.task_gd_risks(np.tile(shared + scale * change[0], (3, 1)), uses, **setting).sum()
        for scale in (-0.1, 0.0, 0.1)
    )
    assert at < low
    assert low == pytest.approx(high, rel=1e-9)


@properties
@given(TASKS, st.integers(0, 10**6))
def test_task_losses_split_into_tasks_and_pairs_of_heads(setting, seed):
    uses, rng = several_tasks(seed)
    omega, mu = rng.normal(0, 0.3, (4, 5)), rng.normal(0, 2, (4, 3))
    losses = theory.task_approximate_loss(omega, mu, uses, **setting)
    noise = setting["noise_var"] / setting["signal_var"]
    for n, used in enumerate(uses):
        expected = 1 + noise
        for h in range(4):
            expected -= 2 * mu[h, n] * omega[h, used].mean()
            for k in range(4):
                covary = (omega[h] * omega[k])[used].mean()
                covary += (1 + noise) / setting["length"] * np.exp(omega[h] @ omega[k])
                expected += mu[h, n] * mu[k, n] * covary
        assert losses[n] == pytest.approx(setting["signal_var"] * expected, rel=1e-9)
    silent = theory.task_approximate_loss(omega, mu, uses, query_noise=False, **setting)
    np.testing.assert_allclose(losses - silent, setting["noise_var"], rtol=1e-9, atol=1e-9)


@properties
@given(TASKS)
def test_dedicated_pairs_tend_to_the_superposition_steps(setting):
    # On pairs of small γ the loss is least at superposition_steps, and is 1 + σ² − η_n there.
    gamma = 1e-4
    steps = theory.superposition_steps(USES, **setting)
    omega = gamma * np.concatenate([USES, -1.0 * USES])
    half = np.diag(steps.max(axis=1)) / (2 * gamma)
    at, *around = (
        theory.task_approximate_loss(omega, scale * np.concatenate([half, -half]), USES, **setting)
        for scale in (1.0, 0.9, 1.1)
    )
    expected = setting["signal_var"] * (1 - steps.max(axis=1)) + setting["noise_var"]
    np.testing.assert_allclose(at, expected, rtol=1e-5)
    assert all((losses > at).all() for losses in around)


@properties
@given(st.integers(1, 12), st.floats(-0.95, 0.95))
def test_kms_inverse_is_the_inverse(dim, rho):
    product = theory.kms_covariance(dim, rho) @ theory.kms_inverse(dim, rho)
    np.testing.assert_allclose(product, np.eye(dim), atol=1e-12)


def test_preconditioners_tend_to_the_inverse_covariance():
    covariance = theory.kms_covariance(4, 0.5)
    for preconditioner in (theory.gd_preconditioner, theory.debiased_preconditioner):
        long = preconditioner(covariance, length=10**9, noise_var=0.1, signal_var=2.0)
        np.testing.assert_allclose(long, theory.kms_inverse(4, 0.5), atol=1e-7)
    isotropic = theory.gd_preconditioner(np.eye(5), length=40, noise_var=0.1)
    np.testing.assert_allclose(isotropic, theory.gd_optimal_step(**MAIN) * np.eye(5), rtol=1e-12)


@pytest.mark.parametrize("noise_var", [0.0, 0.1, 2.0])
@pytest.mark.parametrize("dim", [1, 5, 30])
def test_single_head_constant_is_a_minimum(dim, noise_var):
    constant, omega = theory.single_head_constant(dim=dim, noise_var=noise_var, signal_var=2.0)

    def at(square):
        moment = (1 - 2 * square) ** (-dim / 2)
        return (2 + noise_var) * moment / square + 2 * moment / (1 - 2 * square)

    squares = np.linspace(1e-3, 0.499, 20_000)
    values = at(squares)
    assert constant == pytest.approx(values.min(), rel=1e-5)
    assert omega**2 == pytest.approx(squares[values.argmin()], abs=squares[1] - squares[0])


def test_overlap_forms_agree_in_high_dimension():
    sizes = {"dim": 10_000, "length": 7}
    exact = theory.attention_overlap(0.01, -0.01, **sizes)
    assert theory.attention_overlap_approximate(0.01, -0.01, **sizes) == pytest.approx(exact, rel=1e-3)
    assert theory.attention_overlap(0.0, 0.3, **sizes) == 1 / 7


# --- Messages --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dim": 0}, "dim must be an integer of at least 1; got 0"),
        ({"dim": 2.5}, r"dim must be an integer of at least 1; got 2\.5"),
        ({"length": -3}, "length must be an integer of at least 1; got -3"),
        ({"noise_var": -0.1}, r"noise_var must be finite and at least 0; got -0\.1"),
        ({"noise_var": float("nan")}, "noise_var must be finite and at least 0; got nan"),
        ({"noise_var": "0.1"}, "noise_var must be finite and at least 0; got '0.1'"),
        ({"signal_var": 0}, "signal_var must be finite and above 0; got 0"),
        ({"gamma": 0.0}, r"gamma must be finite and above 0; got 0\.0"),
        ({"gamma": float("inf")}, "gamma must be finite and above 0; got inf"),
    ],
)
def test_numbers_out_of_range_are_named(change, message):
    for formula in (theory.manifold_step, theory.manifold_mu, theory.manifold_loss):
        with pytest.raises(ValueError, match=message):
            formula(**{"gamma": 0.1, **MAIN, **change})


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: theory.gd_risk(float("nan"), **MAIN), "step must be finite; got nan"),
        (lambda: theory.kms_covariance(3, 1.0), r"rho must be between -1 and 1, both excluded; got 1\.0"),
        (lambda: theory.effective_step(np.ones(2), np.ones(3)), r"one row for each head; got shapes \(2,\), \(3,\)"),
        (lambda: theory.group_steps(np.ones((2, 3)), np.ones((3, 2))), r"got shapes \(2, 3\), \(3, 2\)"),
        (lambda: theory.multi_head_constant(0.8, dim=5, noise_var=0.1), "omega_product must be below 1/2.*; got 0.64"),
        (lambda: theory.gd_preconditioner(np.ones((2, 3)), length=4, noise_var=0.1), "covariance must be a symmetric"),
        (lambda: theory.gd_preconditioner(-np.eye(2), length=4, noise_var=0.1), "covariance .* positive definite"),
        (
            lambda: theory.preconditioned_debiased_gd_risk(np.eye(2), np.eye(3), length=4, noise_var=0.1),
            r"preconditioner must be \(3, 3\) as covariance; got \(2, 2\)",
        ),
        (lambda: theory.superposition_steps(USES[:, :0], length=4, noise_var=0.1), "a True in every row"),
        (
            lambda: theory.task_gd_risks(np.ones((2, 3)), USES, length=4, noise_var=0.1),
            r"one step for each entry of uses, \(2, 6\); got \(2, 3\)",
        ),
        (
            lambda: theory.task_gd_risks(np.full((2, 6), np.nan), USES, length=4, noise_var=0.1),
            "steps must be finite",
        ),
        (
            lambda: theory.task_approximate_loss(np.ones((3, 6)), np.ones((2, 2)), USES, length=4, noise_var=0.1),
            r"one row for each head; got shapes \(3, 6\), \(2, 2\)",
        ),
        (
            lambda: theory.task_approximate_loss(np.ones((3, 6)), np.ones((3, 1)), USES, length=4, noise_var=0.1),
            r"one step for each entry of uses, \(2, 6\); got \(1, 6\)",
        ),
        (lambda: theory.two_head_flow(np.array([2.0, 1.0]), **MAIN), r"times must be ascending.*; got array\(\[2"),
        (lambda: theory.two_head_flow(np.array([]), **MAIN), "times must be ascending"),
        (lambda: theory.ridgeless_excess_risk(16, 0), "length must be an integer of at least 1; got 0"),
        (lambda: theory.ridgeless_excess_risk(0, length=3), "dim must be an integer of at least 1; got 0"),
        (lambda: theory.bayes_risk_asymptotic(0.0, noise_var=0.1), r"ratio must be finite and above 0; got 0\.0"),
    ],
)
def test_arguments_that_do_not_fit_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_importing_the_formulas_imports_neither_torch_nor_scipy():
    code = "import sys, icl_interp.theory; print({'torch', 'scipy'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"
