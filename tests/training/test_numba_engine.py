"""The compiled engine against autograd of the plain module, and what it promises of populations."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import oracles
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from icl_interp.config import ModelConfig
from icl_interp.records import TrainConfig
from icl_interp.tasks import LinearRegression, MultiTaskRegression, kms
from icl_interp.training import numba_engine
from icl_interp.training.numba_engine import NumbaEngine
from icl_interp.training.seeds import init_seed
from icl_interp.weights import Weights, initial_weights

CPU = torch.device("cpu")
TASK = LinearRegression(dim=3, length=13, noise_var=0.1)


def config(**changes: Any) -> TrainConfig:
    return dataclasses.replace(TrainConfig(TASK, ModelConfig(3, n_heads=2), batch_size=70), **changes)


def engine(*configs: TrainConfig) -> NumbaEngine:
    return NumbaEngine(configs, CPU)


def same(a: Weights, b: Weights) -> bool:
    return all(torch.equal(a[name], b[name]) for name in a)


# --- The gradient -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_heads", [1, 2, 4, 8])
@pytest.mark.parametrize("covariance", [None, kms(0.5)])
def test_gradient_is_exact_to_a_millionth(n_heads: int, covariance: Any) -> None:
    task = LinearRegression(dim=5, length=40, noise_var=0.1, covariance=covariance)
    model = ModelConfig(5, n_heads=n_heads)
    for seed, scale in enumerate((1.0, 3.0)):
        weights = {k: scale * v for k, v in initial_weights(model, torch.Generator().manual_seed(seed)).items()}
        prompt = task.sample(256, generator=torch.Generator().manual_seed(seed))
        loss, grads = NumbaEngine.grad(model, weights, prompt)
        wanted_loss, wanted = oracles.autograd(weights, model, prompt)
        assert loss == pytest.approx(wanted_loss, rel=1e-6)
        assert oracles.distance(grads, wanted) < 1e-6


@settings(max_examples=60)
@given(
    dim=st.integers(1, 9),
    length=st.integers(1, 40),
    outputs=st.integers(1, 4),
    n_heads=st.integers(1, 4),
    d_head=st.integers(1, 8),
    batch=st.integers(1, 140),
    seed=st.integers(0, 2**20),
)
def test_gradient_for_any_shape(
    dim: int, length: int, outputs: int, n_heads: int, d_head: int, batch: int, seed: int
) -> None:
    model = ModelConfig(dim, outputs, n_heads, d_head=d_head)
    weights = initial_weights(model, torch.Generator().manual_seed(seed))
    prompt = oracles.gaussian_prompts(dim, length, outputs, batch, seed)
    loss, grads = NumbaEngine.grad(model, weights, prompt)
    wanted_loss, wanted = oracles.autograd(weights, model, prompt)
    assert loss == pytest.approx(wanted_loss, rel=1e-5)
    assert oracles.distance(grads, wanted) < 3e-6  # of one prompt and one demonstration, where terms may cancel
    assert not grads["W_Q"][:, :, dim:].any()  # the query's response is zero
    assert not grads["W_O"][..., :dim].any()  # covariates are not read after the last layer


def test_large_problems() -> None:
    for dim, length, n_heads, batch in ((100, 50, 2, 64), (5, 3000, 2, 1), (2, 40, 64, 64)):
        model = ModelConfig(dim, n_heads=n_heads)
        weights = initial_weights(model, torch.Generator().manual_seed(0))
        prompt = LinearRegression(dim, length).sample(batch, generator=torch.Generator().manual_seed(0))
        _, grads = NumbaEngine.grad(model, weights, prompt)
        assert oracles.distance(grads, oracles.autograd(weights, model, prompt)[1]) < 1e-6


@pytest.mark.parametrize("scale", [10.0, 100.0, 1e4])
def test_softmax_is_safe_at_any_scale_of_the_weights(scale: float) -> None:
    """Scores grow with the square: at 1e4 attention is an arg max, and what is left of KQ's gradient is rounding."""
    model = ModelConfig(5, n_heads=2)
    weights = initial_weights(model, torch.Generator().manual_seed(0))
    weights = {name: weight * (scale if name in ("W_Q", "W_K") else 1) for name, weight in weights.items()}
    prompt = LinearRegression(5, 40).sample(256, generator=torch.Generator().manual_seed(1))
    loss, grads = NumbaEngine.grad(model, weights, prompt)
    wanted_loss, wanted = oracles.autograd(weights, model, prompt)
    assert loss == pytest.approx(wanted_loss, rel=1e-5)
    values = {name: grads[name] for name in ("W_V", "W_O")}
    assert oracles.distance(values, {name: wanted[name] for name in values}) < 1e-4
    assert all(torch.isfinite(grad).all() for grad in grads.values())


def test_rising_scores_are_not_lost() -> None:
    """Each demonstration scores far above all before it: the reference is raised in every tile."""
    model = ModelConfig(1)
    weights = {name: torch.ones(shape) for name, shape in {"W_Q": (1, 2, 2, 2), "W_K": (1, 2, 2, 2)}.items()}
    weights |= {"W_V": torch.ones(1, 2, 2, 2), "W_O": torch.ones(1, 2, 2, 2)}
    prompt = oracles.gaussian_prompts(1, 300, 1, 64, 0)
    prompt.x[:] = torch.linspace(-300, 300, 300)[None, :, None]
    prompt.x_q[:] = torch.linspace(-2, 2, 64)[:, None]
    loss, grads = NumbaEngine.grad(model, weights, prompt)
    wanted_loss, wanted = oracles.autograd(weights, model, prompt)
    assert loss == pytest.approx(wanted_loss, rel=1e-5)
    assert oracles.distance(grads, wanted) < 1e-4


# --- Whole steps ------------------------------------------------------------------------------------------------------

TASKS = [
    TASK,
    LinearRegression(3, 13, covariance=kms(0.5), mean=1.0, signal_var=2.0),
    LinearRegression(3, 40, covariance=[[2, 0.5, 0], [0.5, 1, 0.3], [0, 0.3, 0.5]], mean=(1, 0, -1), query_noise=False),
    MultiTaskRegression(3, [(0, 1), (1, 2)], 15),
    MultiTaskRegression(3, [(0, 1, 2), (1,), (0, 2)], 9, noise_var=0.3, signal_var=2.0, query_noise=False),
    MultiTaskRegression(3, [(0, 1), (1, 2)], 15, shared_signal=True),
]
OPTIMIZERS = [
    ("adam", {"lr": 1e-2}),
    ("adam", {"weight_decay": 0.1, "betas": (0.8, 0.95)}),
    ("adamw", {"weight_decay": 0.1}),
    ("sgd", {"lr": 0.05}),
    ("sgd", {"lr": 0.05, "momentum": 0.9, "weight_decay": 0.01}),
]


def trained_by_torch(config: TrainConfig, steps: int) -> Weights:
    """The same steps in float64: prompts by plain numpy, gradient by autograd, torch's optimiser."""
    weights = initial_weights(config.model, torch.Generator().manual_seed(init_seed(config.seed)))
    parameters = {name: torch.nn.Parameter(weight.double()) for name, weight in weights.items()}
    kind = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[config.optimizer]
    options = {"momentum": config.momentum} if config.optimizer == "sgd" else {"betas": config.betas}
    optimizer = kind(list(parameters.values()), lr=config.lr, weight_decay=config.weight_decay, **options)
    for step in range(steps):
        prompt = oracles.compiled_prompts(config, step)
        _, grads = oracles.autograd({k: v.detach() for k, v in parameters.items()}, config.model, prompt)
        for name, parameter in parameters.items():
            parameter.grad = grads[name]
        optimizer.step()
    return {name: parameter.detach() for name, parameter in parameters.items()}


@pytest.mark.parametrize(
    ("task", "steps"),
    list(zip(TASKS, (300, 80, 80, 80, 80, 80), strict=True)),
    ids=["plain", "coloured", "general", "two", "three", "shared"],
)
def test_many_adam_steps(task: LinearRegression | MultiTaskRegression, steps: int) -> None:
    c = config(task=task, model=ModelConfig(3, task.n_outputs, n_heads=2))
    trained = engine(c)
    trained.advance(steps)
    assert oracles.distance(trained.weights()[0], trained_by_torch(c, steps)) < 1e-5


@pytest.mark.parametrize(("optimizer", "options"), OPTIMIZERS)
def test_every_optimizer_is_torchs(optimizer: Any, options: dict[str, Any]) -> None:
    c = config(optimizer=optimizer, **options)
    trained = engine(c)
    trained.advance(50)
    assert oracles.distance(trained.weights()[0], trained_by_torch(c, 50)) < 1e-5


# --- Populations ------------------------------------------------------------------------------------------------------

POPULATION = [
    config(),
    config(seed=1),
    config(seed=2, data_seed=0),
    config(seed=3, data_seed=0, lr=1e-2),
    config(seed=4, data_seed=0, model=ModelConfig(3, n_heads=3)),
    config(seed=5, optimizer="sgd", momentum=0.9),
    config(seed=6, data_seed=0, steps=20),
    config(seed=7, data_seed=0, batch_size=33),
    config(seed=8, task=LinearRegression(3, 7)),
]


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_a_run_does_not_depend_on_the_others_nor_on_threads(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    together = engine(*POPULATION, *(config(seed=seed, data_seed=0) for seed in range(10, 90)))
    together.advance(40)
    for i, alone in enumerate(map(engine, POPULATION)):
        alone.advance(40)
        assert same(together.weights()[i], alone.weights()[0]), POPULATION[i]
        assert together.total_losses()[i] == alone.total_losses()[0]


def test_steps_divided_over_threads_are_the_same_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    alone = engine(config(batch_size=330))
    alone.advance(10)
    monkeypatch.setattr(numba_engine, "LONG_STEP", 0)
    for threads in (2, 3, 9):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        divided = engine(config(batch_size=330))
        divided.advance(10)
        assert same(alone.weights()[0], divided.weights()[0])
        assert alone.total_losses() == divided.total_losses()


def test_calls_of_advance_may_be_divided_anyhow() -> None:
    whole, parts = engine(*POPULATION), engine(*POPULATION)
    whole.advance(40)
    for steps in (1, 7, 0, 32):
        parts.advance(steps)
    assert all(map(same, whole.weights(), parts.weights()))
    np.testing.assert_array_equal(whole.total_losses(), parts.total_losses())


def test_a_run_stands_still_after_its_last_step() -> None:
    short = engine(config(steps=20))
    short.advance(15)
    before = short.weights()[0]
    short.advance(15)
    after, total = short.weights()[0], short.total_losses()
    short.advance(15)
    assert not same(before, after)
    assert same(after, short.weights()[0])
    assert short.total_losses() == total


def test_state_goes_on_bit_for_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    whole, first, second = engine(*POPULATION), engine(*POPULATION), engine(*POPULATION)
    whole.advance(40)
    first.advance(25)
    state = first.state()
    first.advance(3)  # the state is a copy
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    second.restore(state)
    second.advance(15)
    assert all(map(same, whole.weights(), second.weights()))
    np.testing.assert_array_equal(whole.total_losses(), second.total_losses())


def test_a_run_that_diverges_leaves_the_others_alone() -> None:
    good, bad = config(data_seed=0), config(seed=1, data_seed=0, optimizer="sgd", lr=1e8)
    good = dataclasses.replace(good, optimizer="sgd", lr=0.1)
    together, alone = engine(bad, good, bad), engine(good)
    together.advance(100)
    alone.advance(100)
    assert not np.isfinite(together.total_losses()[[0, 2]]).any()
    assert same(together.weights()[1], alone.weights()[0])


def test_weights_are_copies() -> None:
    trained = engine(config())
    before = trained.weights()[0]
    kept = {name: weight.clone() for name, weight in before.items()}
    trained.advance(5)
    assert same(before, kept)
    assert not same(before, trained.weights()[0])
