"""The Bayes predictor and the best ridge: which they are, and that nothing is better.

Risks are compared within four standard errors, at fixed seeds.
"""

import dataclasses
import math

import numpy as np
import pytest
from predicting import assert_better, assert_risk, losses, seeded

from icl_interp import theory
from icl_interp.estimators import (
    GradientDescent,
    Ridge,
    SparseBayes,
    bayes,
    best_ridge,
    best_step,
    gradient_descent,
)
from icl_interp.tasks import LinearRegression, Prompt, SparseRegression, UnavailableTask, kms

MAIN = LinearRegression(dim=5, length=40, noise_var=0.1)
KMS_TASK = dataclasses.replace(MAIN, covariance=kms(0.5))
FOREIGN = UnavailableTask(5, 40, 1, "not a linear regression")


def test_the_scale_of_the_signal_is_taken_out():
    scaled = dataclasses.replace(KMS_TASK, signal_var=4.0, noise_var=0.4)
    for debiased in (False, True):
        np.testing.assert_allclose(
            gradient_descent(scaled, debiased=debiased).preconditioner,
            gradient_descent(KMS_TASK, debiased=debiased).preconditioner,
        )
    assert bayes(scaled) == bayes(KMS_TASK) == Ridge(0.5)


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


# --- Sparse signals: those of dense ones in second moments ------------------------------------------------------------

SPARSE = SparseRegression(dim=6, sparsity=2, length=8, noise_var=0.5, signal_var=2.0)
DENSE = LinearRegression(dim=6, length=8, noise_var=0.5, signal_var=2.0)


def test_of_sparse_signals_bayes_goes_through_the_supports_and_the_best_ridge_does_not():
    prompt = SPARSE.sample(40_000, generator=seeded())
    assert bayes(SPARSE) == SparseBayes(SPARSE)
    assert best_ridge(SPARSE, prompt) == Ridge(1.5) == bayes(DENSE)
    for penalty in (0.8, 2.6):
        assert_better(Ridge(1.5), Ridge(penalty), prompt)
    assert_better(bayes(SPARSE), Ridge(1.5), prompt[:5_000])


def test_the_best_ridge_takes_sparse_signals_of_any_size():
    """Where there are too many supports for Bayes."""
    task = SparseRegression(dim=40, sparsity=20, length=8)
    assert best_ridge(task, task.sample(4, generator=seeded())) == Ridge(40 * 0.25)


@pytest.mark.parametrize("debiased", [False, True])
@pytest.mark.parametrize("length", [None, 5])
def test_the_best_step_on_sparse_signals_is_that_on_dense_ones(debiased, length):
    sparse, dense = (gradient_descent(task, debiased=debiased, length=length) for task in (SPARSE, DENSE))
    np.testing.assert_array_equal(sparse.preconditioner, dense.preconditioner)
    found = best_step(sparse, SPARSE.sample(40_000, length=length, generator=seeded()))
    np.testing.assert_allclose(found.preconditioner, sparse.preconditioner, rtol=0.04)


def test_the_risk_of_a_step_on_sparse_signals_is_that_on_dense_ones():
    setting = {"dim": 6, "length": 8, "noise_var": 0.5, "signal_var": 2.0}
    assert_risk(gradient_descent(SPARSE), SPARSE, theory.gd_risk(theory.gd_optimal_step(**setting), **setting))


@pytest.mark.parametrize("length", [1, 5, 9])
def test_least_squares_without_noise_misses_what_the_covariates_do_not_span(length):
    task = SparseRegression(dim=10, sparsity=3, length=length, noise_var=0.0, signal_var=2.0)
    assert_risk(Ridge(0.0), task, theory.ridgeless_excess_risk(10, length, signal_var=2.0), n=40_000)
