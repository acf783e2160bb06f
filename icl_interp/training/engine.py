"""What a training engine is, so that another can come without touching its callers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Protocol

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from icl_interp.config import ModelConfig
from icl_interp.records import TrainConfig
from icl_interp.tasks import Prompt
from icl_interp.training.seeds import init_seed
from icl_interp.weights import Weights, initial_weights, weight_shapes

# Below so many multiply-adds a step is small.  A GPU would only wait for its kernels to start: about 40 of them, some
# 10 µs each.  A second thread gains torch 0 to 7 % where it is free, and costs a factor of six where it is not.
SMALL_STEP = 10_000_000


class Engine(Protocol):
    """A population in training: the weights, optimiser state and stream of prompts of each of its runs.

    A run's numbers depend on its own config alone: not on the runs beside it, on the number of threads, nor on how its
    steps are divided over calls of `advance`.
    """

    def advance(self, steps: int) -> None:
        """Take optimiser steps, each on fresh prompts.  A run that has taken its config's `steps` stands still.

        It may return while a GPU still computes; whatever is asked next waits for that.
        """
        ...

    def total_losses(self) -> Float[np.ndarray, "runs"]:
        """Each run's loss summed over its steps so far, each before its update: float64, added one by one."""
        ...

    def weights(self) -> list[Weights]:
        """Copies of the current weights, on the CPU."""
        ...

    def state(self) -> dict[str, Tensor]:
        """All that `restore` needs to go on bit for bit, as copies on the CPU."""
        ...

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Go on from `state`, which an engine of the same configs and device gave."""
        ...


class EngineType(Protocol):
    """A class of engines."""

    def __call__(self, configs: Sequence[TrainConfig], device: torch.device) -> Engine:
        """An engine at the start of these configs."""
        ...

    def grad(self, model: ModelConfig, weights: Weights, prompt: Prompt) -> tuple[float, Weights]:
        """Loss and gradient at `prompt`, computed as `advance` computes them."""
        ...


def starting_weights(config: TrainConfig) -> Weights:
    """What a run starts from: drawn on the CPU, the same for every engine and device."""
    return initial_weights(config.model, torch.Generator().manual_seed(init_seed(config.seed)))


def flattened(weights: Weights) -> Float[np.ndarray, "parameters"]:
    """The weights of one layer in a row, as compiled engines hold them: float32, W_Q of all heads, W_K, W_V, W_O."""
    return torch.cat([weight[0].flatten() for weight in weights.values()]).float().numpy()


def unflattened(flat: Float[np.ndarray, "parameters"], model: ModelConfig) -> Weights:
    """The inverse of `flattened`; the tensors share the row's memory."""
    names, shapes, sizes = _layout(model)
    parts = torch.from_numpy(flat).split(sizes)
    return {name: part.view(shape) for name, shape, part in zip(names, shapes, parts, strict=True)}


@cache
def _layout(model: ModelConfig) -> tuple[tuple[str, ...], tuple[tuple[int, ...], ...], list[int]]:
    """Names, shapes and sizes of the tensors: a population asks for them a hundred thousand times."""
    shapes = weight_shapes(model)
    return tuple(shapes), tuple(shapes.values()), [math.prod(shape) for shape in shapes.values()]


def optimizer_settings(config: TrainConfig) -> tuple[float, ...]:
    """lr, weight decay, β₁, β₂ and momentum: what may differ between runs that take their steps together."""
    return config.lr, config.weight_decay, *config.betas, config.momentum
