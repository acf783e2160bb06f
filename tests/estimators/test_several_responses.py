"""Several responses, each of some of the features: against scikit-learn, conditioning by hand, and closed forms.

Risks are compared within four standard errors, at fixed seeds.
"""

import dataclasses
import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from predicting import assert_predicts, each, prompts, seeded
from sklearn.linear_model import Ridge as SkRidge

from icl_interp import theory
from icl_interp.errors import ConfigError
from icl_interp.estimators import (
    GradientDescent,
    Ridge,
    SupportRidge,
    bayes,
    best_kernel,
    best_ridge,
    best_step,
    gradient_descent,
)
from icl_interp.tasks import LinearRegression, MultiTaskRegression, Prompt

MAIN = LinearRegression(dim=5, length=40, noise_var=0.1)
GAMMA = np.array([[1.0, 0.5, 0.0], [-0.3, 0.8, 0.2], [0.1, 0.0, 1.2]])  # not symmetric: rows and columns must not swap
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
