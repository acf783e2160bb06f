"""Gradient descent and Newton's iterations against loops in numpy, least squares, and each other."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from predicting import assert_better, assert_predicts, each, losses, prompts, seeded

from icl_interp.errors import ConfigError
from icl_interp.estimators import RATES, GradientDescent, GradientSteps, NewtonSteps, Ridge, best_rate, preprocess
from icl_interp.tasks import LinearRegression, Prompt, SparseRegression

LENGTHS = [1, 2, 3, 6]  # of prompts with three covariates
TASK = SparseRegression(dim=6, sparsity=2, length=9, noise_var=0.3)


def in_sample_loss(estimator, prompt):
    """Mean squared error on the labels themselves, of each prompt."""
    missed = prompt.y - prompt.x @ estimator.coefficients(prompt.x, prompt.y)
    return missed.square().mean((1, 2))


# --- Preprocessing ---------------------------------------------------------------------------------------------------


def test_preprocessing_weighs_covariates_by_their_correlation_with_the_labels():
    prompt = prompts(outputs=1)
    found = preprocess(prompt)
    for i, (X, Y, x_q) in enumerate(each(prompt)):
        r = [np.mean([x[j] * y[0] for x, y in zip(X, Y, strict=True)]) for j in range(3)]
        np.testing.assert_allclose(found.x[i].numpy(), X * r)
        np.testing.assert_allclose(found.x_q[i].numpy(), x_q * r)
    assert found.y is prompt.y
    assert found.y_q is prompt.y_q
    assert preprocess(prompt.to(dtype=torch.float32)).x.dtype == torch.float32


# --- Gradient descent ------------------------------------------------------------------------------------------------


def descended(X, y, rate, steps, relative):
    """Autograd, step after step, on the mean of squares that is descended."""
    X, y = torch.tensor(X), torch.tensor(y)
    v = torch.zeros(X.shape[1], 1, dtype=torch.float64, requires_grad=True)
    size = rate / (np.linalg.norm(X.numpy(), 2) ** 2 / len(X)) if relative else rate
    for _ in range(steps):
        (gradient,) = torch.autograd.grad((X @ v - y).square().sum() / (2 * len(X)), v)
        v = (v - size * gradient).detach().requires_grad_()
    return v.detach().numpy()[:, 0]


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("relative", [True, False])
@pytest.mark.parametrize("preprocessed", [False, True])
def test_gradient_steps_are_those_of_autograd(length, relative, preprocessed):
    prompt = prompts(length=length, outputs=1)
    expected = []
    for X, Y, x_q in each(prompt):
        weights = X.T @ Y[:, 0] / length if preprocessed else np.ones(3)
        expected.append([descended(X * weights, Y, 0.3, 5, relative) @ (weights * x_q)])
    assert_predicts(GradientSteps(5, 0.3, preprocessed, relative), prompt, expected)


def test_one_step_is_gradient_descent():
    prompt = prompts()
    expected = GradientDescent(0.4)(prompt).numpy()
    assert_predicts(GradientSteps(1, 0.4, relative=False), prompt, expected)
    largest = np.array([[np.linalg.eigvalsh(X.T @ X / len(X))[-1]] for X, _, _ in each(prompt)])
    assert_predicts(GradientSteps(1, 0.4), prompt, expected / largest)


def test_preprocessed_steps_are_steps_of_each_coordinates_own_size():
    """ŵ = r̂ ∘ v moves by η r̂_j² along the gradient; and that is gradient descent on the preprocessed prompt."""
    prompt, estimator = prompts(outputs=1), GradientSteps(6, 0.2, preprocessed=True, relative=False)
    expected = []
    for X, Y, x_q in each(prompt):
        r, w = X.T @ Y[:, 0] / len(X), np.zeros(3)
        for _ in range(6):
            w = w + 0.2 * r**2 * (X.T @ (Y[:, 0] - X @ w)) / len(X)
        expected.append([w @ x_q])
    assert_predicts(estimator, prompt, expected)
    for relative in (True, False):
        ours = GradientSteps(6, 0.2, preprocessed=True, relative=relative)
        assert_predicts(ours, prompt, GradientSteps(6, 0.2, relative=relative)(preprocess(prompt)).numpy())


@pytest.mark.parametrize("length", [1, 2, 6])  # at L = d some prompts take long
def test_many_steps_are_least_squares(length):
    prompt = prompts(length=length)
    torch.testing.assert_close(GradientSteps(2_000, 1.9)(prompt), Ridge(0.0)(prompt), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("length", "same"), [(2, False), (6, True)])
def test_many_preprocessed_steps_are_least_squares_in_another_norm(length, same):
    prompt = prompts(length=length, outputs=1)
    end, close = GradientSteps(30_000, 1.9, preprocessed=True)(prompt), {"rtol": 1e-3, "atol": 1e-3}
    torch.testing.assert_close(end, Ridge(0.0)(preprocess(prompt)), **close)
    assert torch.allclose(end, Ridge(0.0)(prompt), **close) == same


def test_relative_rates_below_two_descend_and_above_two_diverge():
    prompt = prompts(batch=50, outputs=1)
    for preprocessed in (False, True):
        losses = [in_sample_loss(GradientSteps(k, 1.99, preprocessed), prompt) for k in (1, 2, 5, 20, 100)]
        assert all((after <= before + 1e-12).all() for before, after in pairwise(losses))
        assert (in_sample_loss(GradientSteps(2_000, 2.1, preprocessed), prompt) > 1e6).all()


def test_one_step_size_for_all_prompts_diverges_on_some_once_they_are_preprocessed():
    prompt = SparseRegression().sample(500, generator=seeded()).to(dtype=torch.float64)
    largest = torch.linalg.eigvalsh(preprocess(prompt).x.mT @ preprocess(prompt).x / prompt.length)[:, -1]
    shared = GradientSteps(200, 1 / largest.median().item(), preprocessed=True, relative=False)(prompt)
    diverged = shared.abs()[:, 0] > 1e6
    assert 0.05 < diverged.double().mean() < 0.5
    assert (largest[diverged] > 2 * largest.median()).all()
    assert (GradientSteps(200, 1.0, preprocessed=True)(prompt).abs() < 20).all()


@given(st.integers(1, 12), st.booleans())
@settings(max_examples=10)
def test_a_path_is_the_predictions_after_each_step(steps, preprocessed):
    prompt = prompts(outputs=1).to(dtype=torch.float32)
    for make in (lambda k: GradientSteps(k, 1.3, preprocessed), lambda k: NewtonSteps(k, 0.2)):
        path = make(steps).path(prompt)
        assert (path.shape, path.dtype) == ((steps, 7, 1), torch.float32)
        for k in range(1, steps + 1):
            torch.testing.assert_close(path[k - 1], make(k)(prompt))


def test_coefficients_are_those_of_the_covariates_as_they_are():
    prompt = prompts(outputs=1)
    for estimator in (GradientSteps(4, 0.9), GradientSteps(4, 0.9, preprocessed=True), NewtonSteps(4)):
        w = estimator.coefficients(prompt.x, prompt.y)
        assert w.dtype == torch.float64
        assert_predicts(estimator, prompt, (w[..., 0] * prompt.x_q).sum(-1, keepdim=True).numpy())


@pytest.mark.parametrize("scale", [1e-60, 1e-3, 1e3, 1e60])
def test_units_do_not_matter(scale):
    prompt = prompts(outputs=1)
    scaled = Prompt(scale * prompt.x, prompt.y, scale * prompt.x_q, prompt.y_q)
    for estimator in (GradientSteps(4, 0.9), GradientSteps(4, 0.9, preprocessed=True), NewtonSteps(4)):
        torch.testing.assert_close(estimator(scaled), estimator(prompt))


# --- Newton's iterations ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("penalty", [0.0, 0.7])
@pytest.mark.parametrize("steps", [1, 2, 7])
def test_newton_steps_are_those_of_matrices(length, penalty, steps):
    prompt = prompts(length=length)
    expected = []
    for X, Y, x_q in each(prompt):
        A = X.T @ X + penalty * np.eye(3)
        M = A / np.linalg.norm(A @ A, 2)
        for _ in range(steps):
            M = 2 * M - M @ A @ M
        expected.append(x_q @ M @ X.T @ Y)
    assert_predicts(NewtonSteps(steps, penalty), prompt, expected)


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("penalty", [0.0, 1e-3, 0.7])
@pytest.mark.parametrize("steps", [40, 400])
def test_many_newton_steps_are_ridge_and_stay_there(length, penalty, steps):
    prompt = prompts(batch=50, length=length)
    torch.testing.assert_close(NewtonSteps(steps, penalty)(prompt), Ridge(penalty)(prompt), rtol=1e-6, atol=1e-6)


def test_matrices_that_are_iterated_as_such_drift_away_where_they_are_singular():
    """Why it is eigenvalues that are iterated: rounding errors off the range of A double with every step."""
    prompt = prompts(batch=40, length=2)
    X = prompt.x
    A = X.mT @ X
    M = A / torch.linalg.matrix_norm(A @ A, 2)[:, None, None]
    missed = {}
    for k in range(1, 111):
        M = 2 * M - M @ A @ M
        answer = torch.einsum("bd,bde,bef->bf", prompt.x_q, M, X.mT @ prompt.y)
        missed[k] = (answer - Ridge(0.0)(prompt)).abs().max().item()
    assert missed[40] < 1e-9
    assert missed[110] > 0.1
    torch.testing.assert_close(NewtonSteps(110)(prompt), Ridge(0.0)(prompt))


def test_newton_is_faster_than_gradient_descent():
    prompt = LinearRegression(5, 20, noise_var=0.1).sample(200, generator=seeded()).to(dtype=torch.float64)
    end = Ridge(0.0)(prompt)

    def steps_to(path):
        """How many steps it takes until nine in ten predictions are the last one, to six digits."""
        missed = (path - end).abs().squeeze(-1).quantile(0.9, dim=1)
        return int((missed > 1e-6).sum()) + 1

    newton, descent = steps_to(NewtonSteps(30).path(prompt)), steps_to(GradientSteps(600, 1.0).path(prompt))
    assert newton <= 10
    assert 60 < descent < 600


@pytest.mark.parametrize("steps", [1, 3, 6])
def test_what_newton_leaves_is_what_gradient_descent_on_the_squared_spectrum_leaves(steps):
    """(1 − a²)^(2ᵏ) of each eigenvalue a ≤ 1 after k steps: 2ᵏ steps of gradient descent for A², at rate 1."""
    prompt = prompts(batch=3, length=6, outputs=1)
    for i, (X, Y, _) in enumerate(each(prompt)):
        values, vectors = np.linalg.eigh(X.T @ X)
        left = (1 - (values / values[-1]) ** 2) ** (2**steps)
        expected = vectors @ ((1 - left) / values * (vectors.T @ X.T @ Y[:, 0]))
        found = NewtonSteps(steps).coefficients(prompt.x, prompt.y)[i, :, 0].numpy()
        np.testing.assert_allclose(found, expected, rtol=1e-9)


# --- The best rate ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("preprocessed", [False, True])
@pytest.mark.parametrize("steps", [1, 4])
def test_the_best_rate_is_the_best_of_the_grid(steps, preprocessed):
    prompt = TASK.sample(1_000, generator=seeded())
    found = best_rate(steps, prompt, preprocessed=preprocessed)
    assert (found.steps, found.preprocessed, found.relative) == (steps, preprocessed, True)
    risks = [losses(GradientSteps(steps, float(rate), preprocessed), prompt).mean() for rate in RATES]
    assert found.rate == RATES[np.argmin(risks)]


def test_the_grid_of_rates_converges_and_is_fine_enough():
    assert 0 < RATES[0] < 0.1
    assert 1.9 < RATES[-1] < 2
    assert (np.diff(RATES) > 0).all()
    assert (np.diff(RATES) < np.minimum(0.2, 0.25 * RATES[:-1])).all()
    # Half a step of the grid away from the best rate of a single step, the risk is higher by a part in two hundred.
    prompt = TASK.sample(2_000, generator=seeded())
    best = losses(best_rate(1, prompt), prompt).mean()
    finest = min(losses(GradientSteps(1, float(rate)), prompt).mean() for rate in np.linspace(0.05, 1.95, 40))
    assert finest <= best <= 1.005 * finest


def test_preprocessing_pays_where_signals_are_sparse_and_not_where_they_are_dense():
    sparse = SparseRegression(dim=16, sparsity=4, length=20)
    dense = SparseRegression(dim=16, sparsity=16, length=40, noise_var=0.01)
    for task, wins in ((sparse, True), (dense, False)):
        tuning, prompt = (task.sample(n, generator=seeded(n)) for n in (200, 4_000))
        raw, weighed = (best_rate(5, tuning, preprocessed=flag) for flag in (False, True))
        assert_better(*((weighed, raw) if wins else (raw, weighed)), prompt)


# --- What cannot be --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [0, -1, True])
def test_steps_that_cannot_be(steps):
    for make in (lambda: GradientSteps(steps, 1.0), lambda: NewtonSteps(steps), lambda: best_rate(steps, prompts())):
        with pytest.raises(ConfigError, match=f"steps must be a whole number ≥ 1, got {steps!r}"):
            make()


@pytest.mark.parametrize("rate", [0.0, -0.1, math.nan, math.inf])
def test_rates_that_cannot_be(rate):
    with pytest.raises(ConfigError, match=f"rate must be a finite number > 0, got {rate!r}"):
        GradientSteps(1, rate)


@pytest.mark.parametrize("penalty", [-1e-9, math.nan, math.inf])
def test_penalties_that_cannot_be(penalty):
    with pytest.raises(ConfigError, match=f"penalty must be a finite number ≥ 0, got {penalty!r}"):
        NewtonSteps(1, penalty)
