"""The Lasso and orthogonal matching pursuit: against scikit-learn's own classes, optimality conditions, and by hand.

Warnings are errors here, so that every test also says that prompts like its own bring none about.
"""

import math

import numpy as np
import pytest
import torch
from predicting import assert_better, assert_predicts, each, losses, prompts, seeded
from sklearn.linear_model import Lasso as SkLasso
from sklearn.linear_model import OrthogonalMatchingPursuit as SkPursuit

from icl_interp.errors import ConfigError
from icl_interp.estimators import PENALTIES, Lasso, OrthogonalMatchingPursuit, Ridge, best_lasso
from icl_interp.tasks import Prompt, SparseRegression

TASK = SparseRegression(dim=8, sparsity=2, length=10, noise_var=0.1)


def drawn(task, n, seed=0):
    return task.sample(n, generator=seeded(seed)).to(dtype=torch.float64)


# --- The Lasso -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [1, 2, 3, 6])
@pytest.mark.parametrize("penalty", [0.01, 0.1, 1.0])
def test_the_lasso_is_scikit_learns(length, penalty):
    prompt = prompts(length=length)
    expected = []
    for X, Y, x_q in each(prompt):
        models = [SkLasso(penalty, fit_intercept=False, tol=1e-12, max_iter=10**6).fit(X, Y[:, n]) for n in (0, 1)]
        expected.append([model.predict(x_q[None])[0] for model in models])
    predicted = Lasso(penalty)(prompt).numpy()
    np.testing.assert_allclose(predicted, expected, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("penalty", [0.01, 0.05, 0.3])
def test_the_lasso_meets_its_conditions(penalty):
    """x_jᵀ(y − Xw)/L is λ·sign(w_j) where w_j ≠ 0 and within ±λ elsewhere; and some w_j are zero."""
    prompt = drawn(TASK, 50)
    w = Lasso(penalty).coefficients(prompt.x, prompt.y)
    slope = (prompt.x.mT @ (prompt.y - prompt.x @ w)) / prompt.length
    assert (slope.abs() <= penalty * 1.05 + 1e-3).all()
    on = w.abs() > 0.05
    torch.testing.assert_close(slope[on], penalty * w[on].sign(), rtol=0.05, atol=1e-3)
    assert 0.05 < (w == 0).double().mean() < 0.98


def test_a_large_penalty_leaves_nothing_and_a_small_one_all():
    prompt = drawn(SparseRegression(3, 3, 12, noise_var=0.1), 20)
    largest = (prompt.x.mT @ prompt.y).abs().max().item() / prompt.length
    assert (Lasso(1.01 * largest)(prompt) == 0).all()
    torch.testing.assert_close(Lasso(1e-7)(prompt), Ridge(0.0)(prompt), rtol=0.02, atol=0.02)


@pytest.mark.parametrize("length", [4, 10, 16, 40])
@pytest.mark.parametrize("noise_var", [0.0, 0.25])
def test_ordinary_prompts_bring_no_warnings_about(length, noise_var):
    """At the least penalty of the grid, where coordinate descent takes longest."""
    prompt = SparseRegression(length=length, noise_var=noise_var).sample(30, generator=seeded(length))
    assert Lasso(float(PENALTIES[-1]))(prompt).isfinite().all()
    for sparsity in (1, 4, 16):
        assert OrthogonalMatchingPursuit(sparsity)(prompt).isfinite().all()


def test_the_best_lasso_is_the_best_of_the_grid():
    prompt = TASK.sample(40, generator=seeded())
    found = best_lasso(prompt)
    unit = prompt.x.square().mean().sqrt().item() * prompt.y.square().mean().sqrt().item()
    risks = [losses(Lasso(float(penalty) * unit), prompt).mean() for penalty in PENALTIES]
    assert found.penalty == pytest.approx(PENALTIES[np.argmin(risks)] * unit, rel=1e-5)
    assert PENALTIES[0] > PENALTIES[np.argmin(risks)] > PENALTIES[-1]
    assert losses(found, prompt).mean() == pytest.approx(min(risks), rel=1e-3)
    scaled = Prompt(3 * prompt.x, 5 * prompt.y, 3 * prompt.x_q, 5 * prompt.y_q)
    assert best_lasso(scaled).penalty == pytest.approx(15 * found.penalty, rel=1e-5)


def test_the_best_lasso_beats_the_best_ridge_where_signals_are_sparse():
    tuning, prompt = TASK.sample(100, generator=seeded()), TASK.sample(1_000, generator=seeded(1))
    assert_better(best_lasso(tuning), Ridge(8 * 0.1), prompt)


def test_no_penalty_is_fitted_to_zeros():
    prompt = prompts()
    for x, y in ((0 * prompt.x, prompt.y), (prompt.x, 0 * prompt.y)):
        with pytest.raises(ConfigError, match="penalty cannot be fitted to covariates or labels that are all zero"):
            best_lasso(Prompt(x, y, prompt.x_q, prompt.y_q))


@pytest.mark.parametrize("penalty", [0.0, -1e-9, math.nan, math.inf])
def test_penalties_that_cannot_be(penalty):
    with pytest.raises(ConfigError, match=f"penalty must be a finite number > 0, got {penalty!r}"):
        Lasso(penalty)


# --- Orthogonal matching pursuit -------------------------------------------------------------------------------------


def pursued(X, y, sparsity):
    """By hand: the covariate that explains most of what is left, then least squares on all that were taken."""
    taken, left = [], y
    for _ in range(sparsity):
        scores = np.abs(X.T @ left) / np.linalg.norm(X, axis=0)
        scores[taken] = -1
        taken.append(int(np.argmax(scores)))
        w = np.zeros(X.shape[1])
        w[taken] = np.linalg.lstsq(X[:, taken], y)[0]
        left = y - X @ w
    return w


@pytest.mark.parametrize("sparsity", [1, 2, 5])
def test_orthogonal_matching_pursuit_by_hand_and_by_scikit_learn(sparsity):
    prompt = prompts(length=7, dim=6)
    by_hand, by_class = [], []
    for X, Y, x_q in each(prompt):
        by_hand.append([pursued(X, y, sparsity) @ x_q for y in Y.T])
        lengths = np.linalg.norm(X, axis=0)
        models = [SkPursuit(n_nonzero_coefs=sparsity, fit_intercept=False).fit(X / lengths, y) for y in Y.T]
        by_class.append([model.predict((x_q / lengths)[None])[0] for model in models])
    assert_predicts(OrthogonalMatchingPursuit(sparsity), prompt, by_hand)
    assert_predicts(OrthogonalMatchingPursuit(sparsity), prompt, by_class)


@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
def test_without_noise_the_support_is_found_whatever_the_units(scale):
    prompt = drawn(SparseRegression(8, 2, 20, noise_var=0.0), 40)
    scaled = Prompt(prompt.x, scale * prompt.y, prompt.x_q, scale * prompt.y_q)
    for sparsity in (2, 3, 8):  # more than there are is no harm: nothing is left to explain
        found = OrthogonalMatchingPursuit(sparsity)(scaled)
        torch.testing.assert_close(found, scaled.y_q, rtol=1e-4, atol=1e-5 * scale)


def test_with_fewer_demonstrations_than_covariates_asked_for_it_takes_as_many():
    prompt = prompts(length=2, dim=6, outputs=1)
    w = OrthogonalMatchingPursuit(5).coefficients(prompt.x, prompt.y)
    assert ((w != 0).sum(1) == 2).all()
    torch.testing.assert_close(prompt.x @ w, prompt.y)


def test_a_covariate_that_is_always_zero_is_not_taken():
    prompt = prompts(dim=4, outputs=1)
    prompt.x[..., 1] = 0
    w = OrthogonalMatchingPursuit(3).coefficients(prompt.x, prompt.y)
    assert (w[:, 1] == 0).all()
    assert ((w != 0).sum(1) == 3).all()


@pytest.mark.parametrize("sparsity", [0, -1, True])
def test_sparsities_that_cannot_be(sparsity):
    with pytest.raises(ConfigError, match=f"sparsity must be a whole number ≥ 1, got {sparsity!r}"):
        OrthogonalMatchingPursuit(sparsity)


def test_no_more_covariates_than_there_are():
    with pytest.raises(ConfigError, match="sparsity 4 needs as many covariates, these prompts have 3"):
        OrthogonalMatchingPursuit(4)(prompts())
