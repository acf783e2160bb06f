"""What is best for a task: the Bayes predictor, and the best ridge."""

from __future__ import annotations

from typing import overload

import numpy as np

from icl_interp.estimators.fitting import best_of, check_finite
from icl_interp.estimators.ridge import Ridge, SupportRidge
from icl_interp.estimators.supports import SparseBayes
from icl_interp.tasks import LinearRegression, MultiTaskRegression, Prompt, SparseRegression, Task


@overload
def bayes(task: LinearRegression) -> Ridge: ...
@overload
def bayes(task: MultiTaskRegression) -> SupportRidge: ...
@overload
def bayes(task: SparseRegression) -> SparseBayes: ...
def bayes(task: LinearRegression | MultiTaskRegression | SparseRegression) -> Ridge | SupportRidge | SparseBayes:
    """The Bayes predictor of a linear-regression task: ridge with λ = d·σ²/E‖β‖², whatever Σ and the mean are.

    Of several responses: `SupportRidge`.  Of sparse signals: `SparseBayes`.

    Raises:
        ConfigError: a sparse signal with too many supports to go through.
    """
    if isinstance(task, MultiTaskRegression):
        return SupportRidge(task)
    if isinstance(task, SparseRegression):
        return SparseBayes(task)
    return _ridge(task)


def best_ridge(task: Task, prompt: Prompt) -> Ridge | SupportRidge:
    """The ridge of least risk where it is known; else that of least squared error on `prompt` over a logarithmic grid.

    Of linear regression with one response or several it is `bayes(task)`.  Of sparse signals it is the ridge of dense
    ones, the best of all predictors that are linear in the labels: for these the second moment of w decides, here
    (signal_var/d)·I.

    Raises:
        ConfigError: prompts that are not finite.
    """
    check_finite(prompt)
    if isinstance(task, LinearRegression | MultiTaskRegression):
        return bayes(task)
    if isinstance(task, SparseRegression):
        return _ridge(task)
    grid = np.geomspace(1e-4, 1e4, 33) * prompt.x.square().mean().item()
    return best_of([Ridge(float(penalty)) for penalty in grid], prompt)


def _ridge(task: LinearRegression | SparseRegression) -> Ridge:
    return Ridge(task.dim * task.noise_var / task.signal_var)
