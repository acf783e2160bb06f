"""One step and one head, prompt by prompt and against the closed forms of their risks.

Risks are compared within four standard errors, at fixed seeds.
"""

import dataclasses
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from predicting import assert_predicts, assert_risk, each, losses, prompts, seeded
from scipy.special import softmax

from icl_interp import theory
from icl_interp.errors import ConfigError
from icl_interp.estimators import (
    GradientDescent,
    KernelRegressor,
    best_kernel,
    best_step,
    gradient_descent,
)
from icl_interp.tasks import LinearRegression, Prompt, UnavailableTask

MAIN = LinearRegression(dim=5, length=40, noise_var=0.1)
FOREIGN = UnavailableTask(5, 40, 1, "not a linear regression")
GAMMA = np.array([[1.0, 0.5, 0.0], [-0.3, 0.8, 0.2], [0.1, 0.0, 1.2]])  # not symmetric: rows and columns must not swap


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
