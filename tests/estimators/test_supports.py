"""The Bayes predictor of sparse regression, against all supports gone through in numpy, and against everybody else."""

import math
from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
import torch
from predicting import assert_better, assert_predicts, each, losses, prompts, seeded

from icl_interp.errors import ConfigError
from icl_interp.estimators import (
    OrthogonalMatchingPursuit,
    Ridge,
    SparseBayes,
    bayes,
    best_lasso,
    best_rate,
    best_ridge,
    supports,
)
from icl_interp.tasks import LinearRegression, SparseRegression

TASK = SparseRegression(dim=6, sparsity=2, length=8, noise_var=0.25)


def drawn(task, n, seed=0, length=None):
    return task.sample(n, length=length, generator=seeded(seed)).to(dtype=torch.float64)


def conditioned(task, prompt):
    """E[y_q | labels]: on each support labels and target are one Gaussian vector, whose density weighs the supports."""
    predictions = []
    for X, Y, x_q in each(prompt):
        densities, means = [], []
        for support in map(list, combinations(range(task.dim), task.sparsity)):
            rows = np.concatenate([X, x_q[None]])[:, support] * math.sqrt(task.signal_var / task.sparsity)
            whole = rows @ rows.T
            labels = whole[:-1, :-1] + task.noise_var * np.eye(len(X))
            explained = np.linalg.solve(labels, Y[:, 0])
            densities.append(-(Y[:, 0] @ explained + np.linalg.slogdet(labels)[1]) / 2)
            means.append(whole[-1, :-1] @ explained)
        weights = np.exp(np.array(densities) - max(densities))
        predictions.append([weights @ means / weights.sum()])
    return predictions


@pytest.mark.parametrize("length", [1, 2, 3, 8])
@pytest.mark.parametrize("sparsity", [1, 2, 4, 6])
def test_bayes_is_the_conditional_mean(length, sparsity):
    task = replace(TASK, sparsity=sparsity, signal_var=2.0)
    prompt = drawn(task, 9, length=length)
    assert_predicts(SparseBayes(task), prompt, conditioned(task, prompt))


@pytest.mark.parametrize(("sparsity", "length"), [(2, 1), (2, 2), (4, 1), (4, 3), (4, 4)])
def test_bayes_without_noise_is_the_limit(sparsity, length):
    """With few enough labels for every support to explain them."""
    clean = replace(TASK, sparsity=sparsity, noise_var=0.0)
    prompt = drawn(clean, 30, length=length)
    almost = np.array(conditioned(replace(clean, noise_var=1e-8), prompt))
    np.testing.assert_allclose(bayes(clean)(prompt).numpy(), almost, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("length", [5, 6, 10])
def test_without_noise_one_label_more_than_entries_tells_everything(length):
    clean = SparseRegression(dim=8, sparsity=4, length=length, noise_var=0.0)
    prompt = drawn(clean, 100)
    torch.testing.assert_close(bayes(clean)(prompt), prompt.y_q, rtol=1e-4, atol=1e-5)  # drawn in float32
    assert losses(Ridge(1e-6), prompt).mean() > (0.1 if length < 8 else 0)


def test_little_noise_is_next_to_none():
    prompt = drawn(replace(TASK, noise_var=0.0), 20)
    least = [bayes(replace(TASK, noise_var=noise))(prompt) for noise in (0.0, 1e-30, 1e-12)]
    assert torch.equal(least[0], least[1])
    assert torch.equal(least[0], least[2])
    torch.testing.assert_close(bayes(replace(TASK, noise_var=1e-7))(prompt), least[0], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("length", [1, 4, 20])
def test_at_full_sparsity_it_is_ridge(length):
    dense = LinearRegression(6, length, noise_var=0.5, signal_var=2.0)
    prompt = drawn(dense, 9)
    sparse = SparseRegression(6, 6, length, noise_var=0.5, signal_var=2.0)
    assert bayes(sparse).penalty == pytest.approx(bayes(dense).penalty)
    assert_predicts(bayes(sparse), prompt, bayes(dense)(prompt).numpy())


@pytest.mark.parametrize("chunk", [1, 40, 300])
def test_chunks_do_not_matter(monkeypatch, chunk):
    prompt = drawn(TASK, 13)
    whole = SparseBayes(TASK)(prompt)
    monkeypatch.setattr(supports, "_CHUNK", chunk)
    torch.testing.assert_close(SparseBayes(TASK)(prompt), whole)


def test_bayes_has_the_least_risk_of_all():
    clean = replace(TASK, query_noise=False)  # which is common to all, and only blurs
    prompt, tuning = clean.sample(4_000, generator=seeded()), clean.sample(300, generator=seeded(1))
    wrong = [replace(TASK, sparsity=1), replace(TASK, sparsity=5), replace(TASK, noise_var=1.5)]
    rivals = [best_ridge(TASK, tuning), *(best_rate(k, tuning, preprocessed=k > 1) for k in (1, 3, 10))]
    for rival in (*rivals, *map(SparseBayes, wrong)):
        assert_better(SparseBayes(TASK), rival, prompt)
    for rival in (best_lasso(tuning), OrthogonalMatchingPursuit(2)):
        assert_better(SparseBayes(TASK), rival, prompt[:1_500])


def test_bayes_is_calibrated():
    """What it misses is uncorrelated with anything that can be said of the prompt: here, with three predictions."""
    prompt = drawn(TASK, 30_000)
    missed = prompt.y_q - bayes(TASK)(prompt)
    for said in (bayes(TASK), Ridge(1.5), Ridge(0.1)):
        product = (missed * said(prompt))[:, 0]
        assert abs(product.mean()) < 4 * product.std() / math.sqrt(len(product))


def test_its_limits():
    assert SparseBayes(SparseRegression(32, 4)).penalty == 4 * 0.25
    with pytest.raises(ConfigError, match="8 of 32 covariates have 10,518,300, more than 200,000"):
        bayes(SparseRegression(32, 8))
    with pytest.raises(ConfigError, match="the task has 6 covariates, these prompts have 7"):
        SparseBayes(TASK)(prompts(dim=7, outputs=1))
