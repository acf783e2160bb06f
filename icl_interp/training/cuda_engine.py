"""The CUDA engine: one-layer models on Gaussian prompts, a run a block, as many runs at once as there are.

Runs of one shape go through one launch, whatever else differs between them: seeds, lengths, batches, noises, rates,
numbers of steps.  Several GPUs share a population evenly.  How a step works is said in `gpu`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from icl_interp.config import ModelConfig
from icl_interp.records import TrainConfig
from icl_interp.tasks import Prompt
from icl_interp.training.engine import flattened, optimizer_settings, starting_weights, unflattened
from icl_interp.training.gaussian import gaussian, tile
from icl_interp.training.gpu import step as kernel
from icl_interp.training.gpu.device import SIMULATED, grid
from icl_interp.training.gpu.shapes import Shape, shape_for, shape_of
from icl_interp.weights import Weights

STATE = ("weights", "first", "second", "losses", "powers", "now")  # what is a run's own, and changes


class CudaEngine:
    """Trains a population, each run as it would be alone.

    Raises:
        ConfigError: a model whose gradient finds no room on a multiprocessor.
    """

    def __init__(self, configs: Sequence[TrainConfig], device: torch.device):
        shapes: dict[Shape, list[int]] = defaultdict(list)
        for run, config in enumerate(configs):
            shapes[shape_for(config)].append(run)
        places = _places(device)
        self._groups = [
            _Group(shape, [configs[run] for run in part], part, place)
            for shape, runs in shapes.items()
            for part, place in zip(_divided(runs, len(places)), places, strict=True)
            if part
        ]
        self._count = len(configs)

    @staticmethod
    def grad(model: ModelConfig, weights: Weights, prompt: Prompt) -> tuple[float, Weights]:
        """Loss and gradient at `prompt`, computed as `advance` computes them."""
        shape = shape_of(model, len(prompt), given=True)
        d, N = model.dim, model.n_outputs
        flat = flattened(weights)[None]
        arrays = {
            **_blank(flat),
            "lengths": np.array([prompt.length], np.int32),
            "batches": np.array([len(prompt)], np.int32),
            "tiles": np.array([prompt.length], np.int32),
            "scales": np.array([model.activation_scale / model.score_scale], np.float32),
            "keys": np.zeros((1, 2), np.uint32),
            "root": np.zeros((1, d, d), np.float32),
            "mean": np.zeros((1, d), np.float32),
            "signal": np.zeros((1, N, d), np.float32),
            "noise": np.zeros((1, 2), np.float32),
            "given_z": prompt.demonstrations.cpu().float().contiguous().numpy(),
            "given_query": torch.cat([prompt.x_q, prompt.y_q], dim=-1).cpu().float().numpy(),
            "settings": np.zeros((1, 5)),
            "ends": np.ones(1, np.int64),
        }
        held = {name: grid.to_device(array) for name, array in arrays.items()}
        _launch(shape, 1, 1, held)
        return float(held["losses"].copy_to_host()[0]), unflattened(held["grads"].copy_to_host()[0], model)

    def advance(self, steps: int) -> None:
        """Have optimiser steps taken, each on fresh prompts; reading waits for them.  A run that has taken its config's
        `steps` stands still.
        """
        for group in self._groups:
            group.launch(steps)

    def total_losses(self) -> Float[np.ndarray, "runs"]:
        """Each run's loss summed over its steps so far, each before its update: float64, added one by one."""
        found = np.empty(self._count)
        for group in self._groups:
            found[group.runs] = group.read("losses")
        return found

    def weights(self) -> list[Weights]:
        """Copies of the current weights, on the CPU."""
        found: list[Weights] = [{}] * self._count
        for group in self._groups:
            for run, model, flat in zip(group.runs, group.models, group.read("weights"), strict=True):
                found[run] = unflattened(flat, model)
        return found

    def state(self) -> dict[str, Tensor]:
        """All that `restore` needs to go on bit for bit, as copies on the CPU."""
        found = {}
        for group in self._groups:
            for name in STATE:
                found |= {
                    f"{run}.{name}": torch.from_numpy(row)
                    for run, row in zip(group.runs, group.rows(name), strict=True)
                }
        return found

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Go on from `state`, which an engine of the same configs and device gave."""
        for group in self._groups:
            for name in STATE:
                group.write(name, [state[f"{run}.{name}"].numpy() for run in group.runs])


class _Group:
    """Runs of one shape on one GPU."""

    def __init__(self, shape: Shape, configs: Sequence[TrainConfig], runs: Sequence[int], place: int):
        self.runs, self.models, self._shape, self._place = list(runs), [c.model for c in configs], shape, place
        laws = [gaussian(config) for config in configs]
        flat = np.stack([flattened(starting_weights(config)) for config in configs])
        arrays = {
            **_blank(flat),
            "lengths": np.array([c.task.length for c in configs], np.int32),
            "batches": np.array([c.batch_size for c in configs], np.int32),
            "tiles": np.array([tile(c.task.length, shape.model) for c in configs], np.int32),
            "scales": np.array([c.model.activation_scale / c.model.score_scale for c in configs], np.float32),
            "keys": np.stack([law.key for law in laws]),
            "root": np.stack([law.root for law in laws]),
            "mean": np.stack([law.mean for law in laws]),
            "signal": np.stack([law.signal for law in laws]),
            "noise": np.array([[law.noise, law.query_noise] for law in laws], np.float32),
            "given_z": np.zeros((1, 1, 1), np.float32),
            "given_query": np.zeros((1, 1), np.float32),
            "settings": np.array([optimizer_settings(config) for config in configs]),
            "ends": np.array([config.steps for config in configs], np.int64),
        }
        with self._here():
            self._held = {name: grid.to_device(array) for name, array in arrays.items()}

    def launch(self, steps: int) -> None:
        with self._here():
            _launch(self._shape, len(self.runs), steps, self._held)

    def read(self, name: str) -> np.ndarray:
        with self._here():
            return self._held[name].copy_to_host()

    def rows(self, name: str) -> list[np.ndarray]:
        """Each run's own copy."""
        return [np.array(row) for row in self.read(name)]

    def write(self, name: str, rows: Sequence[np.ndarray]) -> None:
        with self._here():
            self._held[name].copy_to_device(np.ascontiguousarray(np.stack(rows)))

    def _here(self) -> AbstractContextManager[Any]:
        return nullcontext() if SIMULATED else grid.gpus[self._place]


def _places(device: torch.device) -> list[int]:
    """The GPUs that share a population: the one that was named, or all."""
    if device.index is not None or SIMULATED:
        return [device.index or 0]
    return list(range(len(grid.gpus)))


def _divided(runs: Sequence[int], count: int) -> list[Sequence[int]]:
    return [runs[i * len(runs) // count : (i + 1) * len(runs) // count] for i in range(count)]


def _blank(flat: np.ndarray) -> dict[str, np.ndarray]:
    """What training changes, as it is before the first step."""
    runs = len(flat)
    zeros = {name: np.zeros_like(flat) for name in ("grads", "first", "second")}
    return {
        "weights": flat,
        **zeros,
        "losses": np.zeros(runs),
        "powers": np.ones((runs, 2)),
        "now": np.zeros(runs, np.int64),
    }


def _launch(shape: Shape, runs: int, steps: int, held: Mapping[str, Any]) -> None:
    names = ("now", "ends", "lengths", "batches", "tiles", "scales", "keys", "root", "mean", "signal", "noise")
    names += ("given_z", "given_query", "settings", "powers", "weights", "grads", "first", "second", "losses")
    run: Any = kernel.make(shape)
    run[runs, shape.threads](steps, *(held[name] for name in names))
