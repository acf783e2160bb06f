"""Which engine trains which run, and on which device."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from icl_interp.activations import activation
from icl_interp.config import check_choice
from icl_interp.devices import named_device
from icl_interp.errors import ConfigError
from icl_interp.records import TrainConfig
from icl_interp.training.engine import SMALL_STEP, Engine, EngineType
from icl_interp.training.prompts import is_gaussian
from icl_interp.weights import Weights

EngineName = Literal["auto", "cuda", "numba", "torch"]
COMPILED = ("cuda", "numba")  # for one-layer models on Gaussian prompts; a run does not depend on its company at all
# Multiply-adds of a training, 200,000 steps of the paper's: from here on the CUDA engine gains on one core what its
# kernel takes to compile, some five seconds.  Estimated from its instructions, not measured.
LONG_TRAINING = 25_000_000_000


def choose(config: TrainConfig, engine: str, device: str | torch.device) -> tuple[str, torch.device]:
    """Name of the engine and device that train `config`: a matter of this config alone, whatever is trained beside it.

    Raises:
        ConfigError: an unknown engine or device, a device that is not there, an engine that cannot train `config`.
    """
    check_choice("engine", engine, get_args(EngineName))
    unfit = _unfit(config)
    if engine in COMPILED and (obstacle := unfit or _too_large(engine, config) or _misplaced(engine, device)):
        raise ConfigError(f"engine {engine!r} cannot train this: {obstacle}; use 'torch' or 'auto'")
    if engine == "cuda":
        return engine, torch.device("cuda" if device == "auto" else device)
    if engine == "auto" and device in ("auto", "cuda") and not unfit and is_long(config) and _fits_a_gpu(config):
        return "cuda", torch.device("cuda")
    if device != "auto":
        chosen = named_device(device)
    elif engine != "numba" and torch.cuda.is_available() and not is_small(config):
        chosen = torch.device("cuda")
    else:
        chosen = torch.device("cpu")
    if engine == "auto":
        engine = "torch" if chosen.type == "cuda" or unfit else "numba"
    return engine, chosen


def gpus() -> int:
    """How many the CUDA engine could use: none without numba-cuda."""
    try:
        from numba import cuda

        return len(cuda.gpus) if cuda.is_available() else 0
    except Exception:  # neither a driver nor its library need be there
        return 0


def _fits_a_gpu(config: TrainConfig) -> bool:
    return gpus() > 0 and _too_large("cuda", config) is None


def is_small(config: TrainConfig) -> bool:
    """Whether a step is too small for a GPU to gain, where every operation of it is a kernel of its own."""
    return work(config) < SMALL_STEP


def is_long(config: TrainConfig) -> bool:
    """Whether all steps together are worth a kernel that is compiled for them."""
    return config.steps * work(config) >= LONG_TRAINING


def work(config: TrainConfig) -> int:
    """Multiply-adds of a step, but for a factor."""
    model = config.model
    return config.batch_size * config.task.length * model.n_heads * model.d_model * model.n_layers


def build(configs: Sequence[TrainConfig], choices: Sequence[tuple[str, torch.device]]) -> Engine:
    """The engine of a population, each run on its choice."""
    groups: dict[tuple[str, torch.device], list[int]] = defaultdict(list)
    for run, choice in enumerate(choices):
        groups[choice].append(run)
    if len(groups) == 1:
        name, device = choices[0]
        return engine_type(name)(configs, device)
    return _Several(
        {
            tuple(runs): engine_type(name)([configs[run] for run in runs], device)
            for (name, device), runs in groups.items()
        },
        len(configs),
    )


def engine_type(name: str) -> EngineType:
    """The class of engines called `name`."""
    if name == "numba":
        from icl_interp.training.numba_engine import NumbaEngine  # numba takes half a second, and not all need it

        return NumbaEngine
    if name == "cuda":
        from icl_interp.training.cuda_engine import CudaEngine

        return CudaEngine
    from icl_interp.training.torch_engine import TorchEngine

    return TorchEngine


def _unfit(config: TrainConfig) -> str | None:
    """Why no compiled engine can train `config`; None if they can."""
    if config.model.n_layers != 1:
        return f"it trains models of one layer, and n_layers is {config.model.n_layers}"
    if config.model.extras:
        return f"it trains heads on a prompt's own columns, and the model has {', '.join(config.model.extras)}"
    if not config.steady or config.clip is not None:
        return (
            "it takes steps of one size, and of whole gradients: "
            f"schedule={config.schedule!r}, warmup={config.warmup}, clip={config.clip}"
        )
    if not activation(config.model.activation).built_in:
        return f"it has no code for an activation of one's own, and activation is {config.model.activation!r}"
    if not is_gaussian(config):
        return f"it draws the prompts of linear regressions itself, and the task is {config.task!r}"
    return None


def _too_large(engine: str, config: TrainConfig) -> str | None:
    """Why the CUDA engine's kernel has no room for `config`; None if it has."""
    if engine == "numba":
        return None
    from icl_interp.training.gpu.shapes import shape_for

    try:
        shape_for(config)
    except ConfigError as error:
        return str(error)
    return None


def _misplaced(engine: str, device: str | torch.device) -> str | None:
    """Why a compiled engine cannot run on `device`; None if it can."""
    if engine == "numba":
        wrong = device != "auto" and named_device(device).type != "cpu"
        return f"it runs on the CPU, and device is {str(device)!r}" if wrong else None
    there = gpus()
    if not there:
        return "it needs a GPU and numba-cuda (pip install icl-interp[cuda]), and finds none"
    if device == "auto":
        return None
    place = torch.device(device)
    if place.type != "cuda" or (place.index or 0) >= there:
        return f"it runs on one of {there} GPUs, and device is {str(device)!r}"
    return None


class _Several:
    """Several engines as one."""

    def __init__(self, engines: Mapping[tuple[int, ...], Engine], count: int):
        self._engines, self._count = engines, count

    def advance(self, steps: int) -> None:
        for engine in self._engines.values():
            engine.advance(steps)

    def total_losses(self) -> np.ndarray:
        totals = np.empty(self._count)
        for runs, engine in self._engines.items():
            totals[list(runs)] = engine.total_losses()
        return totals

    def weights(self) -> list[Weights]:
        found = {r: w for runs, engine in self._engines.items() for r, w in zip(runs, engine.weights(), strict=True)}
        return [found[run] for run in range(self._count)]

    def state(self) -> dict[str, Tensor]:
        states = enumerate(engine.state() for engine in self._engines.values())
        return {f"{i}.{name}": tensor for i, state in states for name, tensor in state.items()}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        for i, engine in enumerate(self._engines.values()):
            own = f"{i}."
            engine.restore({name.removeprefix(own): t for name, t in state.items() if name.startswith(own)})
