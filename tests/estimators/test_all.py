"""What holds of every estimator."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from predicting import prompts, seeded

from icl_interp.errors import ConfigError
from icl_interp.estimators import (
    GradientDescent,
    GradientSteps,
    KernelRegressor,
    Lasso,
    NewtonSteps,
    OrthogonalMatchingPursuit,
    Ridge,
    SparseBayes,
    best_kernel,
    best_lasso,
    best_rate,
    best_ridge,
    best_step,
    preprocess,
)
from icl_interp.tasks import LinearRegression, Prompt, SparseRegression, UnavailableTask

MAIN = LinearRegression(dim=5, length=40, noise_var=0.1)
FOREIGN = UnavailableTask(5, 40, 1, "not a linear regression")
GAMMA = np.array([[1.0, 0.5, 0.0], [-0.3, 0.8, 0.2], [0.1, 0.0, 1.2]])  # not symmetric: rows and columns must not swap
LINEAR = [  # in the labels, and each response for itself
    GradientDescent(GAMMA),
    GradientDescent(0.5, True),
    KernelRegressor(0.7),
    Ridge(0.5),
    Ridge(0.0),
    GradientSteps(7, 1.2),
    GradientSteps(7, 0.1, relative=False),
    NewtonSteps(5),
    NewtonSteps(5, 0.5),
]
SPARSE = SparseRegression(3, 2, 6)
ALL = [
    *LINEAR,
    GradientSteps(7, 1.2, preprocessed=True),
    GradientSteps(7, 0.1, preprocessed=True, relative=False),
    Lasso(0.1),
    OrthogonalMatchingPursuit(2),
    SparseBayes(SPARSE),
]
FROM_ZERO = [estimator for estimator in ALL if not isinstance(estimator, KernelRegressor)]


@given(st.permutations(range(6)))
@settings(max_examples=6)
def test_the_order_of_demonstrations_does_not_matter(order):
    prompt = prompts(batch=3, outputs=1)
    shuffled = Prompt(prompt.x[:, order], prompt.y[:, order], prompt.x_q, prompt.y_q)
    for estimator in ALL:
        rtol = 1e-3 if isinstance(estimator, Lasso) else 1e-7  # coordinate descent stops at a tolerance
        torch.testing.assert_close(estimator(shuffled), estimator(prompt), rtol=rtol, atol=rtol)


@pytest.mark.parametrize("order", [[1, 2, 0], [2, 1, 0]])
def test_the_order_of_covariates_does_not_matter_where_all_are_treated_alike(order):
    prompt = prompts(outputs=1)
    shuffled = Prompt(prompt.x[..., order], prompt.y, prompt.x_q[:, order], prompt.y_q)
    for estimator in [e for e in ALL if e is not LINEAR[0]]:
        rtol = 1e-3 if isinstance(estimator, Lasso) else 1e-7
        torch.testing.assert_close(estimator(shuffled), estimator(prompt), rtol=rtol, atol=rtol)


def test_what_is_invariant_to_shifts():
    prompt = prompts()
    shifted = Prompt(prompt.x + 3.0, prompt.y, prompt.x_q, prompt.y_q)
    torch.testing.assert_close(KernelRegressor(0.7)(shifted), KernelRegressor(0.7)(prompt))
    torch.testing.assert_close(GradientDescent(0.7, True)(shifted), GradientDescent(0.7, True)(prompt))
    assert not torch.allclose(GradientDescent(0.7)(shifted), GradientDescent(0.7)(prompt))


@pytest.mark.parametrize("estimator", LINEAR)
def test_what_is_linear_in_the_labels(estimator):
    prompt, other = prompts(), prompts(seed=1)
    total = Prompt(prompt.x, 2 * prompt.y - 3 * other.y, prompt.x_q, prompt.y_q)
    expected = 2 * estimator(prompt) - 3 * estimator(Prompt(prompt.x, other.y, prompt.x_q, prompt.y_q))
    torch.testing.assert_close(estimator(total), expected)


@pytest.mark.parametrize(
    ("estimator", "rescaled"),
    [
        (GradientSteps(7, 1.2, preprocessed=True), GradientSteps(7, 1.2, preprocessed=True)),
        (Lasso(0.1), Lasso(0.2)),
        (OrthogonalMatchingPursuit(2), OrthogonalMatchingPursuit(2)),
        (SparseBayes(SPARSE), SparseBayes(replace(SPARSE, noise_var=4 * SPARSE.noise_var, signal_var=4.0))),
    ],
)
def test_units_of_the_labels_do_not_matter_where_it_is_not_linear(estimator, rescaled):
    prompt = prompts(outputs=1)
    doubled = Prompt(prompt.x, 2 * prompt.y, prompt.x_q, prompt.y_q)
    torch.testing.assert_close(rescaled(doubled), 2 * estimator(prompt))


@pytest.mark.parametrize("estimator", ALL)
def test_answers_come_in_the_prompts_dtype(estimator):
    prompt = prompts(outputs=1)
    single = estimator(prompt.to(dtype=torch.float32))
    assert (single.shape, single.dtype) == ((7, 1), torch.float32)
    torch.testing.assert_close(single.double(), estimator(prompt), rtol=1e-4, atol=1e-4)
    assert estimator(prompt[:0]).shape == (0, 1)


@pytest.mark.parametrize("estimator", ALL)
@pytest.mark.parametrize("where", ["x", "y", "x_q"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_prompt_that_is_not_finite_spoils_its_own_prediction_only(estimator, where, value):
    prompt = prompts(outputs=1)
    clean = estimator(prompt)
    getattr(prompt, where)[2, 1] = value
    spoilt = estimator(prompt)
    others = [i for i in range(len(prompt)) if i != 2]
    torch.testing.assert_close(spoilt[others], clean[others])
    if not isinstance(estimator, KernelRegressor) or math.isnan(value):  # a score of −∞ is a weight of zero
        assert not spoilt[2].isfinite().any()


@pytest.mark.parametrize("estimator", FROM_ZERO)
def test_of_nothing_nothing_is_predicted(estimator):
    prompt = prompts(outputs=1)
    for x, y in ((0 * prompt.x, prompt.y), (prompt.x, 0 * prompt.y), (0 * prompt.x, 0 * prompt.y)):
        assert (estimator(Prompt(x, y, prompt.x_q, prompt.y_q)) == 0).all()
    one = prompt.x * (torch.arange(7) == 3)[:, None, None]  # all others are nothing beside it
    mixed = estimator(Prompt(one, prompt.y, prompt.x_q, prompt.y_q))
    assert (mixed[torch.arange(7) != 3] == 0).all()
    torch.testing.assert_close(mixed[3], estimator(prompt)[3])


@pytest.mark.parametrize(
    ("call", "what"),
    [
        (preprocess, "preprocessing"),
        (GradientSteps(2, 1.0, preprocessed=True), "preprocessing"),
        (GradientSteps(2, 1.0, preprocessed=True).path, "preprocessing"),
        (lambda prompt: best_rate(2, prompt, preprocessed=True), "preprocessing"),
        (SparseBayes(SPARSE), "the Bayes predictor of sparse regression"),
    ],
)
def test_what_is_defined_for_one_response_refuses_several(call, what):
    with pytest.raises(ConfigError, match=f"^{what} is defined for one response, these prompts have 2$"):
        call(prompts())


@pytest.mark.parametrize(
    "estimator", [GradientSteps(7, 1.2), NewtonSteps(5, 0.5), Lasso(0.1), OrthogonalMatchingPursuit(2)]
)
def test_each_of_several_responses_is_predicted_from_its_own_labels(estimator):
    prompt = prompts()
    alone = [estimator(Prompt(prompt.x, prompt.y[..., [n]], prompt.x_q, prompt.y_q[:, [n]])) for n in (0, 1)]
    torch.testing.assert_close(estimator(prompt), torch.cat(alone, 1))


@pytest.mark.parametrize("name", ["x", "y", "x_q", "y_q"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize(
    "fit",
    [
        lambda prompt: best_kernel(prompt, scaled=True, task=MAIN),
        lambda prompt: best_kernel(prompt, scaled=False),
        lambda prompt: best_step(GradientDescent(1.0), prompt),
        lambda prompt: best_ridge(FOREIGN, prompt),
        lambda prompt: best_ridge(SparseRegression(5, 2), prompt),
        lambda prompt: best_rate(3, prompt),
        best_lasso,
    ],
)
def test_nothing_is_fitted_to_what_is_not_finite(fit, name, value):
    prompt = MAIN.sample(4, generator=seeded())
    getattr(prompt, name)[1, 0] = value
    with pytest.raises(ConfigError, match=rf"prompts that are not finite: \d entries of {name} are NaN or infinite"):
        fit(prompt)
