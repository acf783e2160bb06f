"""Prompts without any law, and what a predictor is held against: numbers prompt by prompt, or a risk."""

from __future__ import annotations

import math

import numpy as np
import torch

from icl_interp.tasks import Prompt


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


def assert_better(better, worse, prompt):
    """Of less squared error on the same prompts, by more than four standard errors."""
    difference = losses(worse, prompt) - losses(better, prompt)
    assert difference.mean() > 4 * difference.std(ddof=1) / math.sqrt(len(prompt)), (better, worse)
