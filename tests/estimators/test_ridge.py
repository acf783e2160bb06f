"""Ridge against scikit-learn's and numpy's, prompt by prompt."""

import math

import numpy as np
import pytest
import torch
from predicting import assert_predicts, each, prompts
from sklearn.kernel_ridge import KernelRidge
from sklearn.linear_model import LinearRegression as LeastSquares
from sklearn.linear_model import Ridge as SkRidge

from icl_interp.errors import ConfigError
from icl_interp.estimators import (
    Ridge,
)
from icl_interp.tasks import Prompt


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


@pytest.mark.parametrize("penalty", [0.0, 1e-12, 1.0])
def test_ridge_of_nothing_predicts_nothing(penalty):
    prompt = prompts()
    zero = Prompt(0 * prompt.x, prompt.y, prompt.x_q, prompt.y_q)
    assert (Ridge(penalty)(zero) == 0).all()


@pytest.mark.parametrize("penalty", [-1e-9, math.nan, math.inf])
def test_penalties_that_cannot_be(penalty):
    with pytest.raises(ConfigError, match=f"penalty must be a finite number ≥ 0, got {penalty!r}"):
        Ridge(penalty)
