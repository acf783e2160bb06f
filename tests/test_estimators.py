"""Predictors against scikit-learn, numpy and a loop, prompt by prompt; and their risks against the closed forms.

Risks are compared within four standard errors, at fixed seeds.
"""

import dataclasses
import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import softmax
from sklearn.kernel_ridge import KernelRidge
from sklearn.linear_model import LinearRegression as LeastSquares
from sklearn.linear_model import Ridge as SkRidge

from icl_interp import theory
from icl_interp.errors import ConfigError
from icl_interp.estimators import (
    GradientDescent,
    KernelRegressor,
    Ridge,
    SupportRidge,
    bayes,
    best_kernel,
    best_ridge,
    best_step,
    gradient_descent,
)
from icl_interp.tasks import LinearRegression, MultiTaskRegression, Prompt, UnavailableTask, kms

MAIN = LinearRegression(dim=5, length=40, noise_var=0.1)
KMS_TASK = dataclasses.replace(MAIN, covariance=kms(0.5))
FOREIGN = UnavailableTask(5, 40, 1, "not a linear regression")
GAMMA = np.array([[1.0, 0.5, 0.0], [-0.3, 0.8, 0.2], [0.1, 0.0, 1.2]])  # not symmetric: rows and columns must not swap


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def prompts(batch=7, length=6, dim=3, outputs=2, seed=0, dtype=torch.float64):
    """Labels without any law, so that nothing cancels, and more than one response."""

    def draw(*shape):
        return torch.randn(batch, *shape, generator=generator, dtype=dtype)

    generator = seeded(seed)
    return Prompt(draw(length, dim) + 0.5, draw(length, outputs), draw(dim), draw(outputs))


def each(prompt):
    """The prompts one at a time, as numpy arrays (X, Y, x_q)."""
    return zip(prompt.x.numpy(), prompt.y.numpy(), prompt.x_q.numpy(), strict=True)


def assert_predicts(estimator, prompt, expected, rtol=1e-9):
    predicted = estimator(prompt)
    assert predicted.shape == prompt.y_q.shape
    assert predicted.dtype == prompt.x.dtype
    np.testing.assert_allclose(predicted.numpy(), np.array(expected), rtol=rtol, atol=1e-12)


def losses(estimator, prompt):
    return (estimator(prompt) - prompt.y_q).double().square().sum(-1).numpy()


def assert_risk(estimator, task, expected, n=60_000, seed=1):
    sample = losses(estimator, task.sample(n, generator=seeded(seed)))
    error = sample.std(ddof=1) / math.sqrt(n)
    assert abs(sample.mean() - expected) < 4 * error, f"{sample.mean():.5f} ± {error:.5f}, expected {expected:.5f}"
    assert error < 0.02 * expected


# --- Prompt by prompt ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gamma", [0.7, GAMMA])
@pytest.mark.parametrize("debiased", [False, True])
def test_gradient_descent_is_one_step_on_the_squared_loss(gamma, debiased):
    prompt = prompts()
    expected = []
    for X, Y, x_q in each(prompt):
        centre = X.mean(0) if debiased else 0.0
        gradient = sum(np.outer(x - centre, y) for x, y in zip(X, Y, strict=True)) / len(X)  # −∇ of ½ mean (y − βᵀx)²
        expected.append(gradient.T @ (gamma if np.ndim(gamma) else gamma * np.eye(3)) @ x_q)
    assert_predicts(GradientDescent(gamma, debiased), prompt, expected)
    assert_predicts(GradientDescent(gamma, debiased).times(-2.0), prompt, -2 * np.array(expected))


def test_a_step_comes_from_autograd_too():
    prompt, beta = prompts(batch=1), torch.zeros(3, 2, dtype=torch.float64, requires_grad=True)
    loss = (prompt.y[0] - prompt.x[0] @ beta).square().sum() / 2 / prompt.length
    (gradient,) = torch.autograd.grad(loss, beta)
    assert_predicts(GradientDescent(1.0), prompt, -(prompt.x_q @ gradient).numpy())


@given(st.floats(-3, 3), st.floats(-2, 2), st.integers(1, 6))
def test_a_kernel_regressor_weighs_the_labels(omega, mu, length):
    prompt = prompts(length=length)
    expected = [mu * softmax(omega * (X @ x_q)) @ Y for X, Y, x_q in each(prompt)]
    assert_predicts(KernelRegressor(omega, mu), prompt, expected, rtol=1e-7)


def test_large_scores_do_not_overflow():
    prompt = prompts()
    nearest = [Y[np.argmax(X @ x_q)] for X, Y, x_q in each(prompt)]
    assert_predicts(KernelRegressor(1e8), prompt, nearest)


@pytest.mark.parametrize("length", [1, 2, 3, 6])
@pytest.mark.parametrize("penalty", [1e-6, 0.01, 1.0, 50.0])
def test_ridge_is_scikit_learns(length, penalty):
    prompt = prompts(length=length)
    expected = [
        SkRidge(penalty, fit_intercept=False, solver="svd").fit(X, Y).predict(x_q[None])[0]
        for X, Y, x_q in each(prompt)
    ]
    assert_predicts(Ridge(penalty), prompt, expected, rtol=1e-6)


@pytest.mark.parametrize("length", [1, 2, 3, 6])
def test_ridge_without_penalty_is_least_squares_of_least_norm(length):
    prompt = prompts(length=length)
    expected = [LeastSquares(fit_intercept=False).fit(X, Y).predict(x_q[None])[0] for X, Y, x_q in each(prompt)]
    assert_predicts(Ridge(0.0), prompt, expected, rtol=1e-7)
    assert_predicts(Ridge(0.0), prompt, [(np.linalg.pinv(X) @ Y).T @ x_q for X, Y, x_q in each(prompt)], rtol=1e-7)


@pytest.mark.parametrize("length", [3, 5, 40])
@pytest.mark.parametrize("penalty", [1e-9, 1e-5, 1e-3])
def test_small_penalties_survive_single_precision(length, penalty):
    # Solved in float32, λ drowns in the rounding of XᵀX and predictions come out in the thousands.
    prompt = prompts(batch=300, length=length, dim=5, outputs=1, dtype=torch.float32)
    expected = []
    for X, Y, x_q in each(prompt.to(dtype=torch.float64)):
        U, s, Vh = np.linalg.svd(X, full_matrices=False)
        expected.append(Y.T @ U @ np.diag(s / (s**2 + penalty)) @ Vh @ x_q)
    assert_predicts(Ridge(penalty), prompt, expected, rtol=1e-4)


def test_ridge_is_kernel_ridge_with_a_linear_kernel():
    prompt = prompts(length=2, dim=4)
    expected = [KernelRidge(alpha=0.3).fit(X, Y).predict(x_q[None])[0] for X, Y, x_q in each(prompt)]
    assert_predicts(Ridge(0.3), prompt, expected)


@given(st.permutations(range(6)))
def test_the_order_of_demonstrations_does_not_matter(order):
    prompt = prompts()
    shuffled = Prompt(prompt.x[:, order], prompt.y[:, order], prompt.x_q, prompt.y_q)
    for estimator in (GradientDescent(GAMMA, True), GradientDescent(0.5), KernelRegressor(0.7), Ridge(0.5), Ridge(0.0)):
        torch.testing.assert_close(estimator(shuffled), estimator(prompt))


def test_what_each_estimator_is_invariant_to():
    prompt = prompts()
    shifted = Prompt(prompt.x + 3.0, prompt.y, prompt.x_q, prompt.y_q)
    torch.testing.assert_close(KernelRegressor(0.7)(shifted), KernelRegressor(0.7)(prompt))
    torch.testing.assert_close(GradientDescent(0.7, True)(shifted), GradientDescent(0.7, True)(prompt))
    assert not torch.allclose(GradientDescent(0.7)(shifted), GradientDescent(0.7)(prompt))
    for estimator in (GradientDescent(GAMMA), KernelRegressor(0.7), Ridge(0.5), Ridge(0.0)):  # linear in the labels
        doubled = Prompt(prompt.x, 2 * prompt.y, prompt.x_q, prompt.y_q)
        torch.testing.assert_close(estimator(doubled), 2 * estimator(prompt))


@pytest.mark.parametrize("estimator", [GradientDescent(GAMMA), KernelRegressor(0.7), Ridge(0.5), Ridge(0.0)])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_prompt_that_is_not_finite_spoils_its_own_prediction_only(estimator, value):
    prompt = prompts()
    clean = estimator(prompt)
    prompt.x[2, 1, 0] = value
    spoilt = estimator(prompt)
    others = [i for i in range(len(prompt)) if i != 2]
    torch.testing.assert_close(spoilt[others], clean[others])
    if not isinstance(estimator, KernelRegressor) or math.isnan(value):  # a score of −∞ is a weight of zero
        assert not spoilt[2].isfinite().any()


@pytest.mark.parametrize("penalty", [0.0, 1e-12, 1.0])
def test_ridge_of_nothing_predicts_nothing(penalty):
    prompt = prompts()
    zero = Prompt(0 * prompt.x, prompt.y, prompt.x_q, prompt.y_q)
    assert (Ridge(penalty)(zero) == 0).all()


@pytest.mark.parametrize("penalty", [-1e-9, math.nan, math.inf])
def test_penalties_that_cannot_be(penalty):
    with pytest.raises(ConfigError, match=f"penalty must be a finite number ≥ 0, got {penalty!r}"):
        Ridge(penalty)


# --- The best of each ------------------------------------------------------------------------------------------------


def test_in_the_main_setting_gd_is_a_step_size():
    setting = {"dim": 5, "length": 40, "noise_var": 0.1}
    for debiased, step in ((False, theory.gd_optimal_step(**setting)), (True, theory.optimal_step(**setting))):
        np.testing.assert_allclose(
            gradient_descent(MAIN, debiased=debiased).preconditioner, step * np.eye(5), atol=1e-12
        )
    assert theory.optimal_step(**setting) == pytest.approx(0.8791, abs=5e-5)
    shorter = gradient_descent(MAIN, length=10).preconditioner
    np.testing.assert_allclose(shorter, theory.gd_optimal_step(dim=5, length=10, noise_var=0.1) * np.eye(5), atol=1e-12)


def test_the_scale_of_the_signal_is_taken_out():
    scaled = dataclasses.replace(KMS_TASK, signal_var=4.0, noise_var=0.4)
    for debiased in (False, True):
        np.testing.assert_allclose(
            gradient_descent(scaled, debiased=debiased).preconditioner,
            gradient_descent(KMS_TASK, debiased=debiased).preconditioner,
        )
    assert bayes(scaled) == bayes(KMS_TASK) == Ridge(0.5)


@pytest.mark.parametrize("length", [0, -1, True])
def test_lengths_that_cannot_be(length):
    with pytest.raises(ConfigError, match=f"length must be a whole number ≥ 1, got {length!r}"):
        gradient_descent(MAIN, length=length)


SETTINGS = [
    MAIN,
    dataclasses.replace(MAIN, query_noise=False),
    LinearRegression(dim=3, length=8, noise_var=0.5, signal_var=2.0),
]


@pytest.mark.parametrize("task", SETTINGS)
@pytest.mark.parametrize("step", [0.3, None])
def test_risks_of_gradient_descent(task, step):
    setting = {k: getattr(task, k) for k in ("dim", "length", "noise_var", "signal_var")}
    for debiased, risk, best in (
        (False, theory.gd_risk, theory.gd_optimal_step(**setting)),
        (True, theory.debiased_gd_risk, theory.optimal_step(**setting)),
    ):
        estimator = gradient_descent(task, debiased=debiased) if step is None else GradientDescent(step, debiased)
        assert_risk(estimator, task, risk(step or best, **setting, query_noise=task.query_noise))


def test_published_risks_in_the_main_setting():
    assert_risk(gradient_descent(MAIN), MAIN, 0.2398)
    assert_risk(gradient_descent(MAIN, debiased=True), MAIN, 0.24286)
    assert_risk(bayes(MAIN), MAIN, 0.1145)


def test_published_risks_under_correlated_covariates():
    debiased = gradient_descent(KMS_TASK, debiased=True)
    assert_risk(debiased, KMS_TASK, 0.23677)
    exact = theory.preconditioned_debiased_gd_risk(debiased.preconditioner, KMS_TASK.sigma, length=40, noise_var=0.1)
    assert exact == pytest.approx(0.23677, abs=5e-6)
    vanilla = GradientDescent(gradient_descent(KMS_TASK).preconditioner, debiased=True)
    assert_risk(vanilla, KMS_TASK, 0.23718)
    # On shared prompts: the optimum beats its neighbours, and Bayes beats all.
    prompt = KMS_TASK.sample(60_000, generator=seeded(2))
    for worse in (debiased.times(1.1), debiased.times(0.9), GradientDescent(1.0, debiased=True)):
        difference = losses(worse, prompt) - losses(debiased, prompt)
        assert difference.mean() > 4 * difference.std() / math.sqrt(len(prompt))
    difference = losses(debiased, prompt) - losses(bayes(KMS_TASK), prompt)
    assert difference.mean() > 4 * difference.std() / math.sqrt(len(prompt))


def test_bayes_is_the_best_ridge():
    task = LinearRegression(dim=4, length=6, noise_var=0.5, signal_var=2.0, mean=1.0)
    assert bayes(task) == Ridge(1.0)
    prompt = task.sample(60_000, generator=seeded())
    for penalty in (0.5, 2.0):
        difference = losses(Ridge(penalty), prompt) - losses(bayes(task), prompt)
        assert difference.mean() > 4 * difference.std() / math.sqrt(len(prompt))
    assert bayes(dataclasses.replace(task, noise_var=0)) == Ridge(0.0)


def test_the_best_ridge_of_an_unknown_task_is_found_on_its_prompts():
    prompt = MAIN.sample(5_000, generator=seeded())
    assert best_ridge(MAIN, prompt) == bayes(MAIN)
    found = best_ridge(FOREIGN, prompt)
    assert 0.1 < found.penalty < 3  # the risk is flat around 0.5
    assert losses(found, prompt).mean() == pytest.approx(losses(bayes(MAIN), prompt).mean(), rel=0.01)
    scaled = Prompt(100 * prompt.x, prompt.y, 100 * prompt.x_q, prompt.y_q)
    assert best_ridge(FOREIGN, scaled).penalty == pytest.approx(1e4 * found.penalty, rel=1e-3)


def test_the_best_step_is_the_minimum():
    prompt = MAIN.sample(20_000, generator=seeded())
    direction = GradientDescent(np.eye(5))
    best = best_step(direction, prompt)
    assert np.allclose(best.preconditioner, best.preconditioner[0, 0] * np.eye(5))
    setting = {"dim": 5, "length": 40, "noise_var": 0.1}
    assert best.preconditioner[0, 0] == pytest.approx(theory.gd_optimal_step(**setting), rel=0.02)
    for factor in (0.99, 1.01):
        assert losses(best.times(factor), prompt).mean() > losses(best, prompt).mean()
    assert best_step(direction.times(7.0), prompt).preconditioner[0, 0] == pytest.approx(best.preconditioner[0, 0])
    zero = Prompt(0 * prompt.x, prompt.y, prompt.x_q, prompt.y_q)
    assert (best_step(direction, zero).preconditioner == 0).all()


@pytest.mark.parametrize(("task", "n", "within"), [(MAIN, 30_000, (0.01, 0.03)), (None, 60_000, (0.02, 0.06))])
def test_the_best_kernel_in_the_main_setting(task, n, within):
    found = best_kernel(MAIN.sample(n, generator=seeded(3)), scaled=True, task=task)
    assert found.omega == pytest.approx(0.518, abs=within[0])
    assert found.mu == pytest.approx(1.50, abs=within[1])


def kernel_risks(prompt, omegas, scaled):
    """By brute force: the least squared error at each ω."""
    risks = []
    for omega in omegas:
        k = KernelRegressor(omega)(prompt).double()
        y = prompt.y_q.double()
        mu = (k * y).mean() / k.square().mean() if scaled else 1.0
        risks.append((mu * k - y).square().mean().item())
    return np.array(risks)


@pytest.mark.parametrize("scaled", [True, False])
@pytest.mark.parametrize(
    "task",
    [
        MAIN,
        LinearRegression(1, 5, noise_var=0.0),
        LinearRegression(2, 3, noise_var=5.0),
        LinearRegression(20, 10),
        LinearRegression(2, 40, mean=30.0),
        LinearRegression(3, 20, mean=3.0),
        LinearRegression(3, 20, covariance=np.diag([100.0, 1.0, 0.01])),
    ],
)
def test_the_best_kernel_is_the_minimum_of_a_grid(task, scaled):
    prompt = task.sample(2_000, generator=seeded(4)).to(dtype=torch.float64)
    found = best_kernel(prompt, scaled=scaled)
    spread = torch.einsum("bld,bd->bl", prompt.x, prompt.x_q).std(1).mean().item()
    grid = kernel_risks(prompt, np.linspace(0, 10 / spread, 100), scaled)
    assert losses(found, prompt).mean() <= grid.min() * (1 + 1e-6) + 1e-9
    if not scaled:
        assert found.mu == 1.0


def test_integrating_labels_out_changes_the_precision_and_not_the_answer():
    noisy = LinearRegression(dim=3, length=8, noise_var=2.0, signal_var=3.0, mean=0.5)
    fits = np.array(
        [
            [dataclasses.astuple(best_kernel(prompt, scaled=True, task=task)) for task in (noisy, FOREIGN)]
            for prompt in (noisy.sample(8_000, generator=seeded(i)) for i in range(12))
        ]
    )
    (with_task, without), spread = fits.mean(0), fits.std(0, ddof=1)
    assert (np.abs(with_task - without) < 4 * np.hypot(*spread) / math.sqrt(12)).all()
    assert (spread[0] < 0.7 * spread[1]).all()


def test_units_of_the_covariates_do_not_matter():
    prompt = MAIN.sample(2_000, generator=seeded()).to(dtype=torch.float64)
    found = best_kernel(prompt, scaled=True)
    for factor in (1e-3, 1e3):
        other = best_kernel(Prompt(factor * prompt.x, prompt.y, factor * prompt.x_q, prompt.y_q), scaled=True)
        assert other.omega * factor**2 == pytest.approx(found.omega, rel=1e-3)
        assert other.mu == pytest.approx(found.mu, rel=1e-3)


def test_with_one_demonstration_there_is_nothing_to_weigh():
    prompt = LinearRegression(3, 1).sample(500, generator=seeded())
    assert best_kernel(prompt, scaled=False) == KernelRegressor(0.0, 1.0)
    found = best_kernel(prompt, scaled=True)
    y, y_q = prompt.y[:, 0], prompt.y_q
    assert found.omega == 0.0
    assert found.mu == pytest.approx(((y * y_q).sum() / y.square().sum()).item(), rel=1e-5)


def test_nothing_is_fitted_to_zeros():
    prompt = MAIN.sample(4, generator=seeded())
    for x, x_q in ((0 * prompt.x, prompt.x_q), (prompt.x, 0 * prompt.x_q)):
        with pytest.raises(ConfigError, match="covariates that are all zero"):
            best_kernel(Prompt(x, prompt.y, x_q, prompt.y_q), scaled=True)


@pytest.mark.parametrize("name", ["x", "y", "x_q", "y_q"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize(
    "fit",
    [
        lambda prompt: best_kernel(prompt, scaled=True, task=MAIN),
        lambda prompt: best_kernel(prompt, scaled=False),
        lambda prompt: best_step(GradientDescent(1.0), prompt),
        lambda prompt: best_ridge(FOREIGN, prompt),
    ],
)
def test_nothing_is_fitted_to_what_is_not_finite(fit, name, value):
    prompt = MAIN.sample(4, generator=seeded())
    getattr(prompt, name)[1, 0] = value
    with pytest.raises(ConfigError, match=rf"prompts that are not finite: \d entries of {name} are NaN or infinite"):
        fit(prompt)


# --- Several responses, each of some of the features ------------------------------------------------------------------

SUPPORTS = ((0, 1, 2), (2, 3), (1,))  # of different sizes; feature 4 is in none
SEVERAL = MultiTaskRegression(5, SUPPORTS, 9, noise_var=0.3, signal_var=2.0)
SHARED = dataclasses.replace(SEVERAL, shared_signal=True)
USES = np.array([[i in support for i in range(5)] for support in SUPPORTS])


def labelled(task, n, length=None, seed=0):
    return task.sample(n, length=length, generator=seeded(seed)).to(dtype=torch.float64)


def conditioned(task, prompt):
    """E[y_q | labels] by conditioning one Gaussian vector, labels and targets of all responses together."""
    scales = np.sqrt(task.signal_var / USES.sum(1, keepdims=True)) * USES
    predictions = []
    for X, Y, x_q in each(prompt):
        rows = np.concatenate([X, x_q[None]])

        def covariance(n, m, rows=rows):
            independent = 0.0 if n != m and not task.shared_signal else 1.0
            return independent * (rows * scales[n]) @ (rows * scales[m]).T

        whole = np.block([[covariance(n, m) for m in range(3)] for n in range(3)])
        asked = np.arange(1, 4) * len(rows) - 1
        seen = np.setdiff1d(np.arange(len(whole)), asked)
        labels = whole[np.ix_(seen, seen)] + task.noise_var * np.eye(len(seen))
        predictions.append(whole[np.ix_(asked, seen)] @ np.linalg.solve(labels, Y.T.ravel()))
    return predictions


def test_a_preconditioner_for_each_response():
    prompt, gammas = prompts(), np.stack([GAMMA, GAMMA.T @ GAMMA])
    for debiased in (False, True):
        alone = [GradientDescent(gamma, debiased)(prompt)[:, n] for n, gamma in enumerate(gammas)]
        assert_predicts(GradientDescent(gammas, debiased), prompt, torch.stack(alone, -1).numpy())
    assert_predicts(GradientDescent(gammas).times(3.0), prompt, 3 * GradientDescent(gammas)(prompt).numpy())
    for wrong in (gammas[:1], np.tile(gammas[:1], (3, 1, 1))):
        with pytest.raises(ConfigError, match=f"{len(wrong)} preconditioners are for as many responses.* have 2"):
            GradientDescent(wrong)(prompt)


@pytest.mark.parametrize("length", [None, 4])
def test_gd_on_each_support_takes_its_best_step(length):
    setting = {"length": length or 9, "noise_var": 0.3, "signal_var": 2.0}
    vanilla, debiased = (gradient_descent(SEVERAL, debiased=flag, length=length) for flag in (False, True))
    ideal = theory.superposition_steps(USES, **setting)
    np.testing.assert_allclose(debiased.preconditioner, [np.diag(steps) for steps in ideal], atol=1e-12)
    steps = [theory.gd_optimal_step(dim=len(support), **setting) for support in SUPPORTS]
    expected = [step * np.diag(used) for step, used in zip(steps, USES, strict=True)]
    np.testing.assert_allclose(vanilla.preconditioner, expected, atol=1e-12)
    # Features off a support are not read at all.
    prompt = labelled(SEVERAL, 20)
    other = dataclasses.replace(prompt, x_q=prompt.x_q + 9 * torch.tensor([1.0, 0, 0, 1, 1], dtype=torch.float64))
    for estimator in (vanilla, debiased):
        torch.testing.assert_close(estimator(other)[:, 2], estimator(prompt)[:, 2])


@pytest.mark.parametrize("task", [SEVERAL, SHARED])
def test_gd_on_each_support_has_its_exact_risk(task):
    """Whether the signal is shared or not: each response is predicted from its own labels."""
    prompt = labelled(task, 40_000)
    estimator = gradient_descent(task, debiased=True)
    steps = np.diagonal(estimator.preconditioner, axis1=1, axis2=2)
    exact = theory.task_gd_risks(steps, USES, length=9, noise_var=0.3, signal_var=2.0)
    squared = (estimator(prompt) - prompt.y_q).square().numpy()
    error = squared.std(0, ddof=1) / math.sqrt(len(squared))
    assert (np.abs(squared.mean(0) - exact) < 4 * error).all()
    assert (error < 0.02 * exact).all()


@pytest.mark.parametrize("length", [1, 2, 9])
def test_bayes_of_independent_signals_is_scikit_learns_ridge_on_each_support(length):
    prompt = labelled(SEVERAL, 7, length)
    expected = [
        [
            SkRidge(len(own) * 0.15, fit_intercept=False, solver="svd")
            .fit(X[:, own], Y[:, n])
            .predict(x_q[None, own])[0]
            for n, own in enumerate(map(list, SUPPORTS))
        ]
        for X, Y, x_q in each(prompt)
    ]
    assert_predicts(bayes(SEVERAL), prompt, expected)
    assert bayes(SEVERAL).penalties == pytest.approx((0.45, 0.3, 0.15))


@pytest.mark.parametrize("length", [1, 2, 9])
@pytest.mark.parametrize("task", [SEVERAL, SHARED])
def test_bayes_of_several_responses_is_the_conditional_mean(task, length):
    prompt = labelled(task, 7, length)
    assert_predicts(bayes(task), prompt, conditioned(task, prompt))


@pytest.mark.parametrize("length", [1, 2, 9])
@pytest.mark.parametrize("task", [SEVERAL, SHARED])
def test_bayes_without_noise_is_the_limit(task, length):
    clean = dataclasses.replace(task, noise_var=0.0)
    prompt = labelled(clean, 7, length)
    almost = conditioned(dataclasses.replace(task, noise_var=1e-9), prompt)
    assert_predicts(bayes(clean), prompt, almost, rtol=1e-4)
    if length == 9:  # more labels than unknowns
        torch.testing.assert_close(bayes(clean)(prompt), prompt.y_q, rtol=1e-5, atol=1e-5)  # drawn in float32


def test_a_shared_signal_is_known_from_all_responses():
    """Joint prediction beats one by one, which beats every other predictor, each response for itself."""
    prompt = labelled(SHARED, 20_000)
    ranked = [
        bayes(SHARED),
        bayes(SEVERAL),
        gradient_descent(SEVERAL, debiased=True),
        GradientDescent(0.5, debiased=True),
    ]
    squared = [(estimator(prompt) - prompt.y_q).square().numpy() for estimator in ranked]
    for better, worse in pairwise(squared):
        difference = worse - better
        assert (difference.mean(0) > 4 * difference.std(0) / math.sqrt(len(difference))).all()


def test_bayes_beats_every_other_predictor_of_independent_signals():
    prompt = labelled(SEVERAL, 20_000)
    tuned = [best_kernel(prompt, scaled=True), best_step(GradientDescent(1.0), prompt), gradient_descent(SEVERAL)]
    best = (bayes(SEVERAL)(prompt) - prompt.y_q).square().numpy()
    for rival in (*tuned, bayes(SHARED), Ridge(0.5), Ridge(0.0)):
        difference = (rival(prompt) - prompt.y_q).square().numpy().mean(1) - best.mean(1)
        assert difference.mean() > 4 * difference.std() / math.sqrt(len(difference))


@pytest.mark.parametrize("task", [SEVERAL, SHARED])
def test_predictors_of_several_responses_do_not_depend_on_units(task):
    prompt = labelled(task, 7)
    doubled = dataclasses.replace(prompt, y=2 * prompt.y)
    larger = dataclasses.replace(task, signal_var=8.0, noise_var=1.2)
    for make in (bayes, gradient_descent):
        torch.testing.assert_close(make(larger)(doubled), 2 * make(task)(prompt))
    order = [2, 0, 1]
    permuted = dataclasses.replace(task, supports=[SUPPORTS[n] for n in order])
    swapped = Prompt(prompt.x, prompt.y[..., order], prompt.x_q, prompt.y_q[..., order])
    torch.testing.assert_close(bayes(permuted)(swapped), bayes(task)(prompt)[:, order])


def test_one_response_of_all_features_is_the_one_task_that_is_known():
    one, known = MultiTaskRegression(5, [range(5)], 40, noise_var=0.1), MAIN
    prompt = labelled(known, 7)
    for task in (one, dataclasses.replace(one, shared_signal=True)):
        torch.testing.assert_close(bayes(task)(prompt), bayes(known)(prompt))
        for flag in (False, True):
            torch.testing.assert_close(
                gradient_descent(task, debiased=flag)(prompt), gradient_descent(known, debiased=flag)(prompt)
            )


@pytest.mark.parametrize("task", [SEVERAL, SHARED])
def test_what_bayes_of_several_responses_does_with_odd_prompts(task):
    prompt = labelled(task, 7)
    clean = bayes(task)(prompt)
    assert bayes(task)(prompt.to(dtype=torch.float32)).dtype == torch.float32
    prompt.x[2, 1, 1] = torch.nan
    spoilt = bayes(task)(prompt)
    torch.testing.assert_close(spoilt[[0, 1, 3]], clean[[0, 1, 3]])
    assert not spoilt[2, 0].isfinite()
    assert best_ridge(task, labelled(task, 3)) == bayes(task) == SupportRidge(task)
    with pytest.raises(ConfigError, match="the task has 3 responses, these prompts have 2"):
        bayes(task)(prompts(dim=5))
