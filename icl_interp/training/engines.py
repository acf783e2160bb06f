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

EngineName = Literal["auto", "numba", "torch"]


def choose(config: TrainConfig, engine: str, device: str | torch.device) -> tuple[str, torch.device]:
    """Name of the engine and device that train `config`: a matter of this config alone, whatever is trained beside it.

    Raises:
        ConfigError: an unknown engine or device, a device that is not there, an engine that cannot train `config`.
    """
    check_choice("engine", engine, get_args(EngineName))
    obstacle = _obstacle(config, device)
    if engine == "numba" and obstacle:
        raise ConfigError(f"engine 'numba' cannot train this: {obstacle}; use 'torch' or 'auto'")
    if device != "auto":
        chosen = named_device(device)
    elif engine != "numba" and torch.cuda.is_available() and not is_small(config):
        chosen = torch.device("cuda")
    else:
        chosen = torch.device("cpu")
    if engine == "auto":
        engine = "torch" if chosen.type == "cuda" or obstacle else "numba"
    return engine, chosen


def is_small(config: TrainConfig) -> bool:
    """Whether a step is too small for a GPU to gain."""
    model = config.model
    return config.batch_size * config.task.length * model.n_heads * model.d_model * model.n_layers < SMALL_STEP


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
    from icl_interp.training.torch_engine import TorchEngine

    return TorchEngine


def _obstacle(config: TrainConfig, device: str | torch.device) -> str | None:
    """Why the numba engine cannot train `config` on `device`; None if it can."""
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
    if device != "auto" and named_device(device).type != "cpu":
        return f"it runs on the CPU, and device is {str(device)!r}"
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
