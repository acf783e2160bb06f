"""What figures of deeper models read off them: errors prompt by prompt, beside those of known algorithms.

Queries carry no noise, so that squared errors are the excess over it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial

import numpy as np
from jaxtyping import Float
from torch import Tensor

from icl_interp import passes
from icl_interp.estimators import Predictor, best_rate, best_ridge
from icl_interp.probing import Estimate
from icl_interp.pruning import Model
from icl_interp.records import Run
from icl_interp.reproduce.bench import Bench
from icl_interp.reproduce.lengths import squared_errors
from icl_interp.tasks import Prompt, SparseRegression

RIDGE, PLAIN, PREPROCESSED = "ridge", "GD on x", "GD on x̃"
TUNING = 1_024  # prompts that rates are chosen on

Errors = dict[str, Float[np.ndarray, "prompts"]]


def model_of(run: Run, task: SparseRegression) -> Model:
    """Its last weights in float64, predictions clipped as for `excesses`."""
    return Model({name: weight.double() for name, weight in run.weights.items()}, run.model_config, _energy(task))


def predictor(run: Run) -> Callable[[Prompt], Float[Tensor, "batch outputs"]]:
    """What the run predicts."""
    weights = {name: weight.double() for name, weight in run.weights.items()}
    return lambda prompt: passes.predict(weights, run.model_config, prompt.z)


def noiseless(task: SparseRegression) -> SparseRegression:
    """The task with a query that carries no noise."""
    return dataclasses.replace(task, query_noise=False)


def excesses(
    bench: Bench, label: str, task: SparseRegression, predictors: Mapping[str, Predictor], n: int | None = None
) -> Errors:
    """(ŷ − wᵀx_q)² of every predictor on the same prompts, ŷ clipped to `passes.bounds`.

    Linear attention is a polynomial of high degree: without a bound one prompt in 100,000 decides its risk.
    """
    clipped = {name: partial(_clipped, predict, _energy(task)) for name, predict in predictors.items()}
    errors = squared_errors(clipped, bench.prompts(label, noiseless(task), n), [task.length])
    return {name: rows[0] for name, rows in errors.items()}


def _clipped(predict: Predictor, energy: float, prompt: Prompt) -> Float[Tensor, "batch outputs"]:
    most = passes.bounds(prompt, energy)
    return predict(prompt).clamp(-most, most)


def _energy(task: SparseRegression) -> float:
    """E y²."""
    return task.signal_var + task.noise_var


def descents(bench: Bench, task: SparseRegression, steps: Sequence[int]) -> dict[str, Predictor]:
    """Gradient descent on x and on x̃ after so many steps, each at its best rate relative to 1/λ_max of its prompt."""
    (tuning,) = bench.prompts("sparse, tuning", noiseless(task), TUNING)
    return {
        named(name, count): best_rate(count, tuning, preprocessed=name == PREPROCESSED)
        for name in (PLAIN, PREPROCESSED)
        for count in steps
    }


def ridge(bench: Bench, task: SparseRegression) -> Predictor:
    """The best there is, λ = dσ²."""
    return best_ridge(task, next(bench.prompts("sparse, tuning", task, 1)))


def named(name: str, steps: int) -> str:
    """Gradient descent of so many steps, as tables call it."""
    return f"{name}, {steps} step{'s' * (steps > 1)}"


def greatest(estimates: Iterable[Estimate], sign: int = 1) -> Estimate:
    """The one of largest value, or of least if `sign` is −1."""
    return max(estimates, key=lambda estimate: sign * estimate.value)


def mean_over(runs: Iterable[Float[np.ndarray, "prompts"]]) -> Float[np.ndarray, "prompts"]:
    """Of several seeds, prompt by prompt."""
    return np.mean(list(runs), 0)
