"""The PyTorch engine against torch's own optimisers on autograd of the plain module, and against itself."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import oracles
import pytest
import torch

from icl_interp.config import ModelConfig
from icl_interp.model import ICLTransformer
from icl_interp.records import TrainConfig
from icl_interp.tasks import LinearRegression, Prompt
from icl_interp.training import gradients
from icl_interp.training.seeds import init_seed
from icl_interp.training.torch_engine import TorchEngine
from icl_interp.weights import Weights, initial_weights

CPU = torch.device("cpu")
TASK = LinearRegression(dim=3, length=12, noise_var=0.1)
MODEL = ModelConfig(3, n_heads=2)


class Cubic(oracles.Cubic):
    """One that compares by identity and cannot be hashed."""

    __hash__ = None  # type: ignore[assignment]


def config(seed: int = 0, **options: object) -> TrainConfig:
    filled = {"task": TASK, "model": MODEL, "steps": 1000, "batch_size": 32, "seed": seed, **options}
    return TrainConfig(**filled)  # type: ignore[arg-type]


def trained(configs: Sequence[TrainConfig], steps: int = 10) -> TorchEngine:
    engine = TorchEngine(configs, CPU)
    engine.advance(steps)
    return engine


def same(a: Weights, b: Weights) -> bool:
    return all(torch.equal(a[name], b[name]) for name in a)


def assert_alike(a: Weights, b: Weights, data_seed: int | None) -> None:
    """The same; where prompts are shared, to rounding: by where a run lies in its block (see `gradients`)."""
    if data_seed is None:
        assert same(a, b)
    else:
        assert oracles.distance(a, b) < 1e-5


def assert_same(a: TorchEngine, b: TorchEngine) -> None:
    assert all(same(*pair) for pair in zip(a.weights(), b.weights(), strict=True))
    np.testing.assert_array_equal(a.total_losses(), b.total_losses())


def by_autograd(config: TrainConfig, steps: int) -> tuple[Weights, float]:
    """Torch's optimiser on float64 autograd of the hooked module."""
    weights = initial_weights(config.model, torch.Generator().manual_seed(init_seed(config.seed)))
    model = ICLTransformer.from_weights(config.model, {name: weight.double() for name, weight in weights.items()})
    options = {"lr": config.lr, "weight_decay": config.weight_decay}
    if config.optimizer == "sgd":
        optimizer = torch.optim.SGD(model.parameters(), momentum=config.momentum, **options)
    else:
        kind = torch.optim.AdamW if config.optimizer == "adamw" else torch.optim.Adam
        optimizer = kind(model.parameters(), betas=config.betas, **options)
    total = 0.0
    for step in range(steps):
        prompt = oracles.compiled_prompts(config, step)
        optimizer.zero_grad()
        loss = (model(prompt.z)[:, -1] - prompt.y_q).square().mean()
        loss.backward()
        for group in optimizer.param_groups:
            group["lr"] = config.rate(step)
        if config.clip is not None:
            torch.nn.utils.clip_grad_norm_(model.parameters(), config.clip)
        optimizer.step()
        total += loss.item()
    return model.weights(), total


def test_many_steps_of_adam_are_torchs() -> None:
    run = config()
    wanted, total = by_autograd(run, 150)
    engine = trained([run], 150)
    assert oracles.distance(engine.weights()[0], wanted) < 1e-5
    assert engine.total_losses()[0] == pytest.approx(total, rel=1e-6)


@pytest.mark.parametrize(
    "options",
    [
        {"optimizer": "adam", "weight_decay": 1e-2, "betas": (0.8, 0.99)},
        {"optimizer": "adamw", "weight_decay": 0.1},
        {"optimizer": "sgd"},
        {"optimizer": "sgd", "momentum": 0.9, "weight_decay": 1e-2},
    ],
)
@pytest.mark.parametrize("data_seed", [None, 5])
def test_every_optimizer_is_torchs_with_other_rates_beside_it(
    options: dict[str, object], data_seed: int | None
) -> None:
    runs = [config(seed, lr=lr, data_seed=data_seed, **options) for seed, lr in enumerate((0.01, 0.03, 0.01, 0.02))]
    for run, found in zip(runs, trained(runs, 30).weights(), strict=True):
        assert oracles.distance(found, by_autograd(run, 30)[0]) < 1e-5


SCHEDULE = {"schedule": "cosine", "warmup": 5, "steps": 40}


@pytest.mark.parametrize(
    "options",
    [SCHEDULE, {"clip": 0.2}, {"clip": 0.2, "optimizer": "sgd"} | SCHEDULE, {"optimizer": "adamw"} | SCHEDULE],
)
@pytest.mark.parametrize(
    "model",
    [
        MODEL,
        ModelConfig(3, n_layers=2, scratch=2, read_out=True, activation="linear", activation_scale=1 / 12),
        ModelConfig(3, n_layers=2, d_head=2, read_in=6, read_out=True, layer_norm=True),
    ],
    ids=["one layer", "linear", "softmax"],
)
def test_schedules_and_clipping_are_torchs(model: ModelConfig, options: dict[str, object]) -> None:
    runs = [config(seed, model=model, lr=lr, **options) for seed, lr in enumerate((0.01, 0.03))]
    engine = trained(runs, 40)
    for i, run in enumerate(runs):
        wanted, total = by_autograd(run, 40)
        assert oracles.distance(engine.weights()[i], wanted) < 1e-5
        assert engine.total_losses()[i] == pytest.approx(total, rel=1e-5)


def test_a_schedule_is_what_it_says() -> None:
    run = config(lr=0.5, steps=100, warmup=4, schedule="cosine")
    rates = [run.rate(step) for step in range(100)]
    assert rates[:4] == pytest.approx([0.5 * (step + 1) / 5 for step in range(4)], rel=0.01)
    assert rates[50] == pytest.approx(0.25)
    assert rates[4:] == sorted(rates[4:], reverse=True)
    assert 0 < rates[99] < 1e-3
    assert not run.steady
    assert config().steady
    assert {config(lr=0.5, warmup=9).rate(step) for step in (9, 99, 10**6)} == {0.5}


@pytest.mark.parametrize("n_heads", [1, 2, 3])
@pytest.mark.parametrize("data_seed", [None, 5])
def test_a_run_does_not_depend_on_the_runs_beside_it(n_heads: int, data_seed: int | None) -> None:
    """Bit for bit, but for runs that share their prompts."""
    model = ModelConfig(3, n_heads=n_heads)
    runs = [config(seed, model=model, data_seed=data_seed, lr=1e-3 * (1 + seed % 2)) for seed in range(64)]
    alone = {i: trained([runs[i]]) for i in (0, 1, 6)}
    for size in (2, 7, 64):
        together = trained(runs[:size])
        for i in range(min(size, 7)):
            if i in alone:
                assert_alike(together.weights()[i], alone[i].weights()[0], data_seed)
                assert together.total_losses()[i] == pytest.approx(
                    alone[i].total_losses()[0], rel=0 if data_seed is None else 1e-5
                )


def test_runs_of_every_kind_come_back_in_order() -> None:
    runs = [
        config(3),
        config(1, model=ModelConfig(3, n_heads=4)),
        config(3, optimizer="sgd"),
        config(3, lr=0.1),
        config(0, task=Cubic(), model=ModelConfig(2)),
        config(2, data_seed=3),
        config(4, model=ModelConfig(3, n_layers=2)),
        config(5, batch_size=16),
    ]
    together = trained(runs)
    for i, run in enumerate(runs):
        alone = trained([run])
        assert same(together.weights()[i], alone.weights()[0])
        assert together.total_losses()[i] == alone.total_losses()[0]


def test_prompts_are_shared_by_data_seed_only() -> None:
    draws: list[int] = []

    @dataclasses.dataclass(frozen=True)
    class Counted(LinearRegression):
        def sample(self, batch: int, **options: object) -> Prompt:  # type: ignore[override]
            draws.append(batch)
            return super().sample(batch, **options)  # type: ignore[arg-type]

    task = Counted(3, 12)
    trained([config(seed, task=task, data_seed=7) for seed in range(5)], 2)
    assert len(draws) == 2
    draws.clear()
    trained([config(seed, task=task) for seed in range(5)], 2)
    assert len(draws) == 10


def test_how_steps_are_divided_over_calls_is_irrelevant() -> None:
    runs = [config(seed) for seed in range(3)]
    engine = TorchEngine(runs, CPU)
    for steps in (1, 0, 12, 7):
        engine.advance(steps)
    assert_same(engine, trained(runs, 20))


def test_a_run_that_has_taken_its_steps_stands_still() -> None:
    runs = [config(0, steps=5), config(1, steps=30)]
    engine = trained(runs, 30)
    assert same(engine.weights()[0], trained(runs[:1], 5).weights()[0])
    before = engine.weights(), engine.total_losses()
    engine.advance(3)
    assert all(same(*pair) for pair in zip(engine.weights(), before[0], strict=True))
    np.testing.assert_array_equal(engine.total_losses(), before[1])


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "sgd"])
@pytest.mark.parametrize("steps", [0, 7])
def test_training_goes_on_from_a_state_bit_for_bit(optimizer: str, steps: int) -> None:
    runs = [
        config(seed, optimizer=optimizer, momentum=0.5, lr=0.01 * (1 + seed), data_seed=seed // 2) for seed in range(3)
    ]
    deep = ModelConfig(3, n_layers=2, scratch=1, read_out=True)
    runs += [config(9, model=deep, steps=10, schedule="cosine", warmup=2, clip=1.0, optimizer=optimizer)]
    engine = trained(runs, steps)
    state = engine.state()
    assert all(isinstance(part, torch.Tensor) and part.device == CPU for part in state.values())
    kept = {name: part.clone() for name, part in state.items()}
    engine.advance(8)
    assert all(torch.equal(state[name], part) for name, part in kept.items())
    again = trained(runs, 2)
    again.restore(state)
    again.advance(8)
    assert_same(engine, again)
    assert_same(engine, trained(runs, steps + 8))


@pytest.mark.parametrize("data_seed", [None, 5])
def test_a_run_that_diverges_does_not_touch_the_others(data_seed: int | None) -> None:
    runs = [config(seed, optimizer="sgd", data_seed=data_seed, lr=1e30 if seed == 1 else 0.01) for seed in range(3)]
    engine = trained(runs, 30)
    assert np.isnan(engine.total_losses()[1])
    for i in (0, 2):
        assert_alike(engine.weights()[i], trained([runs[i]], 30).weights()[0], data_seed)


def test_chunks_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = trained([config(batch_size=33)])
    monkeypatch.setattr(gradients, "POSITIONS", 5 * TASK.length)
    cut = trained([config(batch_size=33)])
    assert oracles.distance(cut.weights()[0], whole.weights()[0]) < 1e-6
    np.testing.assert_allclose(cut.total_losses(), whole.total_losses(), rtol=1e-6)


def test_the_global_generator_and_the_callers_threads_are_left_alone() -> None:
    seen: list[int] = []

    class Watched(Cubic):
        def sample(self, batch: int, **options: object) -> Prompt:  # type: ignore[override]
            seen.append(torch.get_num_threads())
            return super().sample(batch, **options)  # type: ignore[arg-type]

    state, threads = torch.random.get_rng_state(), torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        trained([config(task=Watched(), model=ModelConfig(2))], 3)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
    assert set(seen) == {1}  # a small step
    assert torch.equal(state, torch.random.get_rng_state())


def test_weights_are_copies() -> None:
    engine = trained([config()])
    before = engine.weights()[0]
    before["W_Q"].zero_()
    assert engine.weights()[0]["W_Q"].any()
    before = engine.weights()[0]
    engine.advance(1)
    assert not same(before, engine.weights()[0])


@pytest.mark.gpu
@pytest.mark.parametrize("model", [MODEL, ModelConfig(3, n_layers=2)])
@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_a_captured_step_is_the_step(model: ModelConfig, optimizer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    device = torch.device("cuda")
    runs = [config(s, model=model, optimizer=optimizer, data_seed=s // 2 if s < 4 else None) for s in range(8)]
    engine = TorchEngine(runs, device)
    engine.advance(10)
    state = engine.state()
    engine.advance(10)
    again = TorchEngine(runs, device)
    again.advance(6)  # so that there is a graph to restore under
    again.restore(state)
    again.advance(10)
    monkeypatch.setattr("icl_interp.training.torch_engine.WARM_UP", -1)
    eager = TorchEngine(runs, device)
    eager.advance(20)
    for other in (again, eager):
        for found, wanted in zip(other.weights(), engine.weights(), strict=True):
            assert oracles.distance(found, wanted) < 1e-5
        np.testing.assert_allclose(other.total_losses(), engine.total_losses(), rtol=1e-5)


@pytest.mark.gpu
def test_a_task_that_cannot_be_captured_trains_all_the_same() -> None:
    class Waiting(Cubic):
        def sample(self, batch: int, **options: object) -> Prompt:  # type: ignore[override]
            prompt = super().sample(batch, **options)  # type: ignore[arg-type]
            assert prompt.x.abs().max().item() > 0  # waits for the GPU
            return prompt

    runs = [config(task=task, model=ModelConfig(2)) for task in (Cubic(), Waiting())]
    captured, waiting = (TorchEngine([run], torch.device("cuda")) for run in runs)
    captured.advance(20)
    with pytest.warns(RuntimeWarning, match="without a CUDA graph"):
        waiting.advance(20)
    assert oracles.distance(waiting.weights()[0], captured.weights()[0]) < 1e-5
