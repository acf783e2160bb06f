"""Training a run: ask an engine for steps, write down what happens, keep what was trained whatever happens."""

from __future__ import annotations

import math
import platform
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from types import FrameType
from typing import Literal

import torch
from tqdm import tqdm

from icl_interp.config import Activation, Mask, ModelConfig, check_choice
from icl_interp.devices import named_device
from icl_interp.errors import TrainingError
from icl_interp.formats.native import check_target
from icl_interp.records import Optimizer, Run, TrainConfig
from icl_interp.tasks import Task, check_task
from icl_interp.training.engine import Engine
from icl_interp.training.gradients import loss
from icl_interp.training.recording import Recorder, record_steps
from icl_interp.training.seeds import record_seed
from icl_interp.training.torch_engine import TorchEngine
from icl_interp.weights import Weights

CHUNK = 20  # steps between two looks at the loss, the progress bar and Ctrl-C
# Below this many multiply-adds a step is small: a GPU would only wait for its kernels to start (about 40 of them, some
# 10 µs each), and a second CPU thread gains 0 to 7 % where it is free and costs a factor of six where it is not.
SMALL_STEP = 10_000_000


def train(
    task: Task,
    *,
    n_heads: int = 2,
    n_layers: int = 1,
    d_head: int | None = None,
    mask: Mask = "demonstrations",
    attn_scale: float | None = None,
    activation: Activation = "softmax",
    steps: int = 20_000,
    batch_size: int = 256,
    lr: float = 1e-3,
    optimizer: Optimizer = "adam",
    weight_decay: float = 0.0,
    betas: tuple[float, float] = (0.9, 0.999),
    momentum: float = 0.0,
    seed: int = 0,
    n_records: int = 300,
    engine: Literal["auto", "torch"] = "auto",
    device: str | torch.device = "auto",
    out: str | Path | None = None,
    overwrite: bool = False,
    progress: bool | None = None,
) -> Run:
    """Train a model on fresh prompts of `task`; see `ModelConfig` and `TrainConfig` for what shapes it.

    The same seed gives the same run on one engine, device and version of torch, not across them.  Ctrl-C ends the
    training at the next step and returns (and saves) what was trained; a second Ctrl-C stops at once.

    Args:
        task: where prompts come from.
        n_heads, n_layers, d_head, mask, attn_scale, activation: see `ModelConfig`.
        steps, batch_size, lr, optimizer, weight_decay, betas, momentum, seed, n_records: see `TrainConfig`.
        engine: "auto" takes the fastest that supports the task and model.
        device: "auto" takes a GPU where there is one and a step is large enough to gain from it.
        out: folder to save the run in.
        overwrite: whether a run that is already there may be replaced.
        progress: show a progress bar; None means only when the output is a terminal.

    Raises:
        ConfigError: a parameter out of range, or a device that is not there.
        SaveError: `out` cannot be written; asked before training too.  Carries the run.
        TrainingError: the loss stopped being finite.  Carries the run up to the last good record.
    """
    check_task(task)
    model = ModelConfig(task.dim, task.n_outputs, n_heads, n_layers, d_head, mask, attn_scale, activation)
    config = TrainConfig(task, model, steps, batch_size, lr, optimizer, weight_decay, betas, momentum, seed, n_records)
    check_choice("engine", engine, ("auto", "torch"))
    if out is not None:
        check_target(Path(out), overwrite=overwrite)
    chosen = choose_device(device, config)
    run = _train(config, TorchEngine(config, chosen), chosen, progress)
    if out is not None:
        run.save(out, overwrite=overwrite)
    return run


def choose_device(device: str | torch.device, config: TrainConfig) -> torch.device:
    """The device that `device` names; "auto" weighs whether a step is worth a GPU."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() and not _is_small(config) else "cpu")
    return named_device(device)


def _is_small(config: TrainConfig) -> bool:
    model = config.model
    work = config.batch_size * config.task.length * model.n_heads * model.d_model * model.n_layers
    return work < SMALL_STEP


@contextmanager
def _threads(config: TrainConfig) -> Iterator[None]:
    """One CPU thread for small steps; torch's own choice is back afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(1 if _is_small(config) else before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _train(config: TrainConfig, engine: Engine, device: torch.device, progress: bool | None) -> Run:
    planned = record_steps(config.steps, config.n_records)
    recorder = Recorder(config.model, planned)
    weights = engine.weights()
    recorder.record(0, _untrained_loss(weights, config), weights)
    done = 0
    with (
        _Interruption() as interrupted,
        _threads(config),
        tqdm(total=config.steps, unit=" steps", disable=None if progress is None else not progress) as bar,
    ):
        for target in planned[1:]:
            mean, reached = _advance(engine, target - done, bar, interrupted)
            if reached and not math.isfinite(mean):
                run = _as_run(config, weights, recorder, done, device)
                raise TrainingError(
                    f"the loss became {mean} between steps {done} and {done + reached}: try a smaller lr "
                    f"(it was {config.lr})",
                    run,
                )
            if reached:
                done += reached
                weights = engine.weights()
                recorder.record(done, mean, weights)
                bar.set_postfix(loss=f"{mean:.4f}", refresh=False)
            if interrupted:
                break
    return _as_run(config, weights, recorder, done, device)


def _advance(engine: Engine, steps: int, bar: tqdm, interrupted: _Interruption) -> tuple[float, int]:
    """Up to `steps` steps in chunks; the mean loss, and how many were taken before an interruption or a divergence."""
    taken, total = 0, 0.0
    while taken < steps and not interrupted and math.isfinite(total):
        chunk = min(CHUNK, steps - taken)
        total += engine.advance(chunk) * chunk
        taken += chunk
        bar.update(chunk)
    return total / max(taken, 1), taken


def _untrained_loss(weights: Weights, config: TrainConfig) -> float:
    generator = torch.Generator().manual_seed(record_seed(config.seed))
    return loss(weights, config.model, config.task.sample(config.batch_size, generator=generator)).item()


def _as_run(config: TrainConfig, weights: Weights, recorder: Recorder, step: int, device: torch.device) -> Run:
    versions = {name: version(name) for name in ("icl-interp", "torch", "numpy")}
    return Run(
        model_config=config.model,
        weights=weights,
        task=config.task,
        training=config,
        dynamics=recorder.dynamics(weights),
        step=step,
        seed=config.seed,
        versions=versions | {"python": platform.python_version(), "device": device.type, "engine": "torch"},
    )


class _Interruption:
    """True once Ctrl-C was pressed.  A step is never cut in two; the second Ctrl-C is an ordinary one."""

    def __init__(self) -> None:
        self._pressed = False
        self._previous: signal.Handlers | object | None = None
        self._installed = False

    def __bool__(self) -> bool:
        return self._pressed

    def __enter__(self) -> _Interruption:
        # Handlers belong to the main thread; elsewhere (a notebook's executor, a server) Ctrl-C is not ours to take.
        if threading.current_thread() is threading.main_thread():
            self._previous = signal.signal(signal.SIGINT, self._press)
            self._installed = True
        return self

    def _press(self, signum: int, frame: FrameType | None) -> None:
        self._pressed = True
        signal.signal(signal.SIGINT, self._previous)  # type: ignore[arg-type]

    def __exit__(self, *_: object) -> None:
        if self._installed:
            signal.signal(signal.SIGINT, self._previous)  # type: ignore[arg-type]
