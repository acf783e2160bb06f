"""What holds of the CUDA engine, on a GPU and in numba-cuda's simulator alike; `test_cuda_engine` runs it there.

Sizes are tiny: the simulator takes a Python thread for each of a block's.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import oracles
import pytest
import torch

import icl_interp as icl
from icl_interp.config import ModelConfig
from icl_interp.errors import ConfigError
from icl_interp.records import TrainConfig
from icl_interp.tasks import LinearRegression, MultiTaskRegression, kms
from icl_interp.training import engines
from icl_interp.training.compiled.attention import KINDS
from icl_interp.training.cuda_engine import CudaEngine
from icl_interp.training.gaussian import Drawn, gaussian, tile
from icl_interp.training.gpu import prompts, shapes
from icl_interp.training.gpu.device import SIMULATED, f4, grid, kernel
from icl_interp.training.numba_engine import NumbaEngine
from icl_interp.weights import Weights, initial_weights

CPU, GPU = torch.device("cpu"), torch.device("cuda")
TASKS = [
    LinearRegression(3, 7, 0.1),
    LinearRegression(2, 9, covariance=kms(0.5), mean=1.0, signal_var=2.0, query_noise=False),
    LinearRegression(3, 5, covariance=[[2, 0.5, 0], [0.5, 1, 0.3], [0, 0.3, 0.5]], mean=(1, 0, -1)),
    MultiTaskRegression(3, [(0, 1), (1, 2)], 5),
    MultiTaskRegression(3, [(0, 1), (1, 2)], 35, shared_signal=True),  # longer than a tile, of an odd number of columns
]
OPTIMIZERS: list[dict[str, Any]] = [
    {"optimizer": "adam", "lr": 1e-2},
    {"optimizer": "adam", "weight_decay": 0.1, "betas": (0.8, 0.95)},
    {"optimizer": "adamw", "weight_decay": 0.1},
    {"optimizer": "sgd", "lr": 0.05},
    {"optimizer": "sgd", "lr": 0.05, "momentum": 0.9, "weight_decay": 0.01},
]


def config(task: Any = TASKS[0], heads: int = 2, **changes: Any) -> TrainConfig:
    return TrainConfig(task, ModelConfig(task.dim, task.n_outputs, heads), **{"batch_size": 35, "steps": 4, **changes})


def distance(a: Weights, b: Weights) -> float:
    return max(float((a[name] - b[name]).abs().max()) for name in a)


# --- Prompts ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", TASKS)
def test_prompts_are_those_of_the_numba_engine(task: Any) -> None:
    """Whose tests are of independence, moments and tails; between the two is nothing but rounding."""
    asked = config(task, batch_size=20)
    law, shape = gaussian(asked), shapes.shape_for(asked)
    query, demonstration = prompts.make(shape)
    model, outputs, dim, length = shape.model, shape.outputs, shape.dim, task.length
    per_tile, key = tile(length, model), law.key

    @kernel()
    def draw(step, key, root, mean, signal, noise, z, at_query):
        b = grid.threadIdx.x
        row, beta = grid.local.array(model, f4), grid.local.array((outputs, dim), f4)
        s0, s1, s2, s3 = prompts.start(key, step, b)
        s0, s1, s2, s3 = query(s0, s1, s2, s3, row, beta, noise[1], root, mean, signal)
        for k in range(model):
            at_query[b, k] = row[k]
        spare, full = f4(0), False
        for t in range(length):
            if t % per_tile == 0:
                full = False
            s0, s1, s2, s3, spare, full = demonstration(s0, s1, s2, s3, spare, full, row, beta, noise[0], root, mean)
            for k in range(model):
                z[b, t, k] = row[k]

    z, at_query = np.zeros((20, length, model), np.float32), np.zeros((20, model), np.float32)
    drawn = Drawn(asked)
    for step in range(2):
        noise = np.array([law.noise, law.query_noise], np.float32)
        draw[1, 20](step, key, law.root, law.mean, law.signal, noise, z, at_query)
        wanted = drawn.prompt()
        np.testing.assert_allclose(z, wanted.demonstrations.numpy(), atol=5e-5 if not SIMULATED else 5e-6)
        np.testing.assert_allclose(at_query[:, :dim], wanted.x_q.numpy(), atol=5e-5 if not SIMULATED else 5e-6)
        np.testing.assert_allclose(at_query[:, dim:], wanted.y_q.numpy(), atol=5e-5 if not SIMULATED else 5e-6)


# --- The gradient -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("outputs", [1, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_gradient_is_exact_to_a_millionth(kind: str, outputs: int) -> None:
    model = ModelConfig(2, outputs, 2, d_head=3, activation=kind, activation_scale=1.0 if kind == "softmax" else 0.5)
    weights = initial_weights(model, torch.Generator().manual_seed(0))
    prompt = oracles.gaussian_prompts(2, 5, outputs, 40, 0)
    loss, grads = CudaEngine.grad(model, weights, prompt)
    wanted_loss, wanted = oracles.autograd(weights, model, prompt)
    assert loss == pytest.approx(wanted_loss, rel=1e-6)
    assert oracles.distance(grads, wanted) < 1e-6
    assert not grads["W_Q"][:, :, 2:].any()
    assert not grads["W_O"][..., :2].any()


@pytest.mark.parametrize(
    ("dim", "outputs", "heads", "d_head", "batch"),
    [
        (1, 1, 1, 1, 1),
        (6, 2, 1, 4, 33),  # more to be added up than threads, and more prompts
        (2, 3, 3, 2, 70),  # three times as many prompts as threads, the last time not all
    ],
)
def test_gradient_of_any_shape(monkeypatch: Any, dim: int, outputs: int, heads: int, d_head: int, batch: int) -> None:
    monkeypatch.setattr(shapes, "THREADS", 32)
    model = ModelConfig(dim, outputs, heads, d_head=d_head)
    weights = initial_weights(model, torch.Generator().manual_seed(1))
    prompt = oracles.gaussian_prompts(dim, 4, outputs, batch, 1)
    loss, grads = CudaEngine.grad(model, weights, prompt)
    wanted_loss, wanted = oracles.autograd(weights, model, prompt)
    assert loss == pytest.approx(wanted_loss, rel=1e-5)
    assert oracles.distance(grads, wanted) < 3e-6


def test_rising_scores_are_not_lost() -> None:
    """Each demonstration scores far above all before it: the reference is raised again and again."""
    model = ModelConfig(1)
    weights = {name: torch.ones(1, 2, 2, 2) for name in ("W_Q", "W_K", "W_V", "W_O")}
    prompt = oracles.gaussian_prompts(1, 12, 1, 8, 0)
    prompt.x[:] = torch.linspace(-300, 300, 12)[None, :, None]
    prompt.x_q[:] = torch.linspace(-2, 2, 8)[:, None]
    loss, grads = CudaEngine.grad(model, weights, prompt)
    wanted_loss, wanted = oracles.autograd(weights, model, prompt)
    assert loss == pytest.approx(wanted_loss, rel=1e-5)
    assert oracles.distance(grads, wanted) < 1e-4


# --- Whole steps ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("task", "how"), list(zip(TASKS, OPTIMIZERS, strict=True)))
def test_steps_are_those_of_the_numba_engine(task: Any, how: dict[str, Any]) -> None:
    asked = [config(task, seed=seed, steps=4 - seed, **how) for seed in (0, 1)]
    ours, theirs = CudaEngine(asked, GPU), NumbaEngine(asked, CPU)
    ours.advance(1)
    ours.advance(3)
    theirs.advance(4)
    for a, b in zip(ours.weights(), theirs.weights(), strict=True):
        assert distance(a, b) < 1e-6
    np.testing.assert_allclose(ours.total_losses(), theirs.total_losses(), rtol=1e-6)


def test_a_run_does_not_depend_on_its_company() -> None:
    mixed = [
        config(heads=1),
        config(seed=1, lr=0.1),
        config(TASKS[1], seed=2, optimizer="sgd"),
        dataclasses.replace(config(seed=3), task=LinearRegression(3, 9, 0.4), batch_size=33),
    ]
    together = CudaEngine(mixed, GPU)
    together.advance(3)
    for i, each in enumerate(mixed):
        alone = CudaEngine([each], GPU)
        alone.advance(3)
        assert distance(together.weights()[i], alone.weights()[0]) == 0
        assert together.total_losses()[i] == alone.total_losses()[0]


def test_what_is_cut_short_goes_on_bit_for_bit() -> None:
    asked = [config(seed=seed) for seed in (0, 1)]
    whole, begun, resumed = (CudaEngine(asked, GPU) for _ in range(3))
    whole.advance(4)
    begun.advance(2)
    resumed.restore(begun.state())
    resumed.advance(2)
    for a, b in zip(whole.weights(), resumed.weights(), strict=True):
        assert distance(a, b) == 0
    assert (whole.total_losses() == resumed.total_losses()).all()


# --- As users have it -------------------------------------------------------------------------------------------------


@pytest.fixture
def there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "gpus", lambda: 1)


@pytest.mark.usefixtures("there")
def test_training(tmp_path: Any) -> None:
    how: dict[str, Any] = {"steps": 12, "batch_size": 8, "n_records": 12, "progress": False}
    run = icl.train(TASKS[0], engine="cuda", out=tmp_path / "run", **how)
    other = icl.train(TASKS[0], engine="numba", **how)
    assert run.versions["engine"] == "cuda"
    assert "numba-cuda" in run.versions
    assert run.dynamics is not None
    assert other.dynamics is not None
    np.testing.assert_allclose(run.dynamics.loss, other.dynamics.loss, rtol=1e-5)
    assert icl.Run.load(tmp_path / "run").step == 12


@pytest.mark.usefixtures("there")
@pytest.mark.filterwarnings("ignore:invalid value")  # the simulator's
def test_a_run_that_diverges_takes_no_other_with_it() -> None:
    asked = [config(optimizer="sgd", lr=lr, steps=12, n_records=12) for lr in (1e-3, 1e9)]
    with pytest.warns(RuntimeWarning, match="run 1 of 2 ended early"):
        runs = icl.train_many(asked, engine="cuda", progress=False)
    assert (runs[0].step, runs[1].step < 12) == (12, True)


@pytest.mark.usefixtures("there")
def test_a_model_that_finds_no_room_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"engine 'cuda' cannot train this: its gradient takes [0-9,]+ of the 49,152"):
        icl.train(LinearRegression(100, 20), engine="cuda", steps=1)
