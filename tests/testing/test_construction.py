"""Gradient descent as a transformer predicts what gradient descent predicts."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from icl_interp import LinearRegression, SparseRegression, passes
from icl_interp.errors import ConfigError
from icl_interp.estimators import GradientSteps
from icl_interp.testing import construct_descent

TASK = SparseRegression(5, 3, length=30, noise_var=0.1)


def predictions(run, prompt):
    return passes.predict({name: w.double() for name, w in run.weights.items()}, run.model_config, prompt.z)


def prompts(task, n=200, seed=1):
    return task.sample(n, generator=torch.Generator().manual_seed(seed)).to(dtype=torch.float64)


@settings(max_examples=30, deadline=None)
@given(
    task=st.sampled_from([TASK, SparseRegression(1, 1, 6), LinearRegression(4, 24, 0.1)]),
    steps=st.integers(1, 3),
    preprocessed=st.booleans(),
    idle=st.integers(0, 3),
    wider=st.sampled_from([None, 0, 5]),
    seed=st.integers(0, 99),
)
def test_it_is_exact(task, steps, preprocessed, idle, wider, seed):
    n_heads = (task.dim if preprocessed else 1) + idle
    width = None if wider is None else (2 if preprocessed else 1) * task.dim + 1 + wider
    how = {"steps": steps, "preprocessed": preprocessed}
    run = construct_descent(task, **how, rate=0.02, n_heads=n_heads, width=width, seed=seed)
    prompt = prompts(task)
    expected = GradientSteps(**how, rate=0.02, relative=False)(prompt)
    apart = (predictions(run, prompt) - expected).abs().max()
    assert apart < 1e-6 * expected.abs().max()  # of weights in float32
    assert run.model_config.n_layers == steps + preprocessed


@pytest.mark.parametrize("preprocessed", [True, False])
def test_the_models_own_rate_makes_it_explain_something(preprocessed):
    prompt = prompts(TASK, 4_000)
    y = predictions(construct_descent(TASK, preprocessed=preprocessed), prompt)
    assert (y - prompt.y_q).square().mean() < 0.85 * prompt.y_q.square().mean()


def test_the_hooked_model_is_the_same():
    run = construct_descent(TASK, width=20)
    model = run.model().double()
    torch.testing.assert_close(model.predict(prompts(TASK)), predictions(run, prompts(TASK)), rtol=1e-9, atol=1e-9)


def test_seeds_move_heads_and_directions_not_predictions():
    first, second = (construct_descent(TASK, width=20, seed=seed) for seed in (0, 1))
    assert not torch.equal(first.weights["W_Q"], second.weights["W_Q"])
    torch.testing.assert_close(
        predictions(first, prompts(TASK)), predictions(second, prompts(TASK)), rtol=1e-5, atol=1e-5
    )


def test_a_perturbation_has_the_size_that_it_says():
    exact, noisy = (construct_descent(TASK, perturbation=size).weights for size in (0.0, 0.1))
    for name, weight in exact.items():
        size = (noisy[name] - weight).square().mean().sqrt() / weight.square().mean().sqrt()
        assert size == pytest.approx(0.1, rel=0.5)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"n_heads": 4}, "n_heads must be a whole number ≥ 5, got 4"),
        ({"steps": 0}, "steps must be a whole number ≥ 1, got 0"),
        ({"rate": -1.0}, "rate must be a finite number > 0, got -1.0"),
        ({"width": 10}, "width must be at least 11, which the stream takes, got 10"),
        ({"perturbation": -0.1}, "perturbation must be a finite number ≥ 0, got -0.1"),
    ],
)
def test_what_cannot_be(options, complaint):
    with pytest.raises(ConfigError, match=complaint):
        construct_descent(TASK, **options)
