"""The numba engine: one-layer models on Gaussian prompts, on the CPU, as fast as it goes.

Runs of one shape that share a stream of prompts form a unit, which a thread trains with one call of the kernel.  Where
there are fewer units than threads and steps are long, each step is divided by blocks of its batch instead.  How a step
works is said in `compiled`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from icl_interp.config import ModelConfig
from icl_interp.records import TrainConfig
from icl_interp.tasks import Prompt
from icl_interp.training.compiled import step as kernel
from icl_interp.training.compiled.attention import GROUP, KINDS, vectors
from icl_interp.training.compiled.compiler import LANES, aligned
from icl_interp.training.compiled.prompts import Source
from icl_interp.training.compiled.step import Folded, Optimizer, Scratch, Sizes
from icl_interp.training.compiled.weights import ADAM, ADAMW, SGD
from icl_interp.training.engine import flattened, optimizer_settings, starting_weights, unflattened
from icl_interp.training.gaussian import gaussian, tile
from icl_interp.weights import Weights

MAX_COLUMNS = 128  # heads of a unit: what is summed for them then stays in a second-level cache
LONG_STEP = 20_000_000  # multiply-adds, half a millisecond: dividing a step gains more than handing over costs
OPTIMIZERS = {"adam": ADAM, "adamw": ADAMW, "sgd": SGD}


class NumbaEngine:
    """Trains a population, each run as it would be alone."""

    def __init__(self, configs: Sequence[TrainConfig], device: torch.device):
        self._threads = torch.get_num_threads()
        self._pool = ThreadPoolExecutor(self._threads)
        self._units = [_Unit(configs, runs) for runs in _units(configs, self._threads)]
        self._count = len(configs)

    @staticmethod
    def grad(model: ModelConfig, weights: Weights, prompt: Prompt) -> tuple[float, Weights]:
        """Loss and gradient at `prompt`, computed as `advance` computes them."""
        sizes = _sizes(model, prompt.length, len(prompt))
        flat = aligned(flattened(weights)[None])
        optimizer = Optimizer(SGD, flat, np.zeros_like(flat), flat, flat, np.zeros((1, 5)))
        folded = _folded(sizes)
        kernel.run(
            0, 1, 0, len(folded.loss), 1, optimizer, folded, _given(prompt, sizes), _scratch(sizes), np.zeros(1), sizes
        )
        return float(folded.loss.sum() / (sizes.batch * sizes.outputs)), unflattened(optimizer.grad[0], model)

    def advance(self, steps: int) -> None:
        """Take optimiser steps, each on fresh prompts.  A run that has taken its config's `steps` stands still."""
        units = [unit for unit in self._units if unit.left]
        if len(units) < self._threads and any(unit.work >= LONG_STEP for unit in units):
            for unit in units:
                unit.advance_together(steps, self._pool, self._threads)
        elif len(units) == 1:
            units[0].advance(steps)
        else:
            list(self._pool.map(lambda unit: unit.advance(steps), units))

    def total_losses(self) -> Float[np.ndarray, "runs"]:
        """Each run's loss summed over its steps so far, each before its update: float64, added one by one."""
        found = np.empty(self._count)
        for unit in self._units:
            found[list(unit.runs)] = unit.losses
        return found

    def weights(self) -> list[Weights]:
        """Copies of the current weights, on the CPU."""
        found: list[Weights] = [{}] * self._count
        for unit in self._units:
            for run, flat in zip(unit.runs, unit.optimizer.weights, strict=True):
                found[run] = unflattened(flat.copy(), unit.model)
        return found

    def state(self) -> dict[str, Tensor]:
        """All that `restore` needs to go on bit for bit, as copies on the CPU."""
        state = {
            f"{run}.{name}": torch.from_numpy(row.copy()) for unit in self._units for run, name, row in unit.rows()
        }
        return state | {f"{run}.step": torch.tensor(unit.step) for unit in self._units for run in unit.runs}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Go on from `state`, which an engine of the same configs and device gave."""
        for unit in self._units:
            for run, name, row in unit.rows():
                row[...] = state[f"{run}.{name}"].numpy()
            unit.step = int(state[f"{unit.runs[0]}.step"])


class _Unit:
    """Runs of one shape on one stream of prompts, in lockstep."""

    def __init__(self, configs: Sequence[TrainConfig], runs: Sequence[int]):
        first = configs[runs[0]]
        self.runs, self.model, self.step, self._steps = runs, first.model, 0, first.steps
        self._sizes = _sizes(first.model, first.task.length, first.batch_size, len(runs))
        self._source, self._folded, self._scratch = gaussian(first), _folded(self._sizes), _scratch(self._sizes)
        start = np.stack([flattened(starting_weights(configs[run])) for run in runs])
        self.optimizer = Optimizer(
            OPTIMIZERS[first.optimizer],
            *(aligned(array) for array in (start, 0 * start, 0 * start, 0 * start)),
            settings=np.array([optimizer_settings(configs[run]) for run in runs]),
        )
        self.losses = np.zeros(len(runs))

    @property
    def left(self) -> int:
        return self._steps - self.step

    @property
    def work(self) -> int:
        """Multiply-adds a step."""
        model, sizes = self.model.d_model, self._sizes
        return sizes.batch * sizes.length * model * (20 + 2 * sizes.vectors * sizes.heads * sizes.runs)

    def rows(self):
        """What a run's state is made of, as (run, name, array to read or write)."""
        for i, run in enumerate(self.runs):
            for name in ("weights", "first", "second"):
                yield run, name, getattr(self.optimizer, name)[i]
            yield run, "loss", self.losses[i : i + 1]

    def advance(self, steps: int) -> None:
        steps = min(steps, self.left)
        self._run(self.step, steps, 0, len(self._folded.loss), 2, self._scratch)
        self.step += steps

    def advance_together(self, steps: int, pool: ThreadPoolExecutor, threads: int) -> None:
        """Each step divided over threads, by blocks.  Their gradients are added in the order of blocks all the same."""
        blocks = len(self._folded.loss)
        edges = np.linspace(0, blocks, min(threads, blocks) + 1).round().astype(int).tolist()
        parts = [(begin, end, 0, _scratch(self._sizes)) for begin, end in pairwise(edges)]
        for _ in range(min(steps, self.left)):
            list(pool.map(lambda part: self._run(self.step, 1, *part), parts))
            self._run(self.step, 1, 0, 0, 2, self._scratch)
            self.step += 1

    def _run(self, step: int, steps: int, begin: int, end: int, finish: int, scratch: Scratch) -> None:
        kernel.run(
            step,
            steps,
            begin,
            end,
            finish,
            self.optimizer,
            self._folded,
            self._source,
            scratch,
            self.losses,
            self._sizes,
        )


def _units(configs: Sequence[TrainConfig], threads: int) -> list[Sequence[int]]:
    """Runs that can be trained by one call; large groups cut so that each thread has its share."""
    groups: dict[object, list[int]] = defaultdict(list)
    for run, c in enumerate(configs):
        groups[c.task, c.model, c.batch_size, c.optimizer, c.steps, c.prompt_seed].append(run)
    units = []
    for runs in groups.values():
        heads = configs[runs[0]].model.n_heads
        size = max(1, min(MAX_COLUMNS // heads, -(-len(runs) // threads)))
        units += [runs[i : i + size] for i in range(0, len(runs), size)]
    return units


def _sizes(model: ModelConfig, length: int, batch: int, runs: int = 1) -> Sizes:
    kind = KINDS[model.activation]
    return Sizes(
        runs,
        model.n_heads,
        model.dim,
        model.n_outputs,
        model.head_width,
        length,
        batch,
        tile(length, model.d_model),
        vectors(kind, model.n_outputs),
        kind,
        model.activation_scale / model.score_scale,
    )


def _folded(sizes: Sizes) -> Folded:
    columns, model, blocks = sizes.runs * sizes.heads, sizes.dim + sizes.outputs, -(-sizes.batch // LANES)
    KQ, OV = (columns, model, sizes.dim), (columns, sizes.outputs, model)
    return Folded(_zeros(*KQ), _zeros(*OV), _zeros(blocks, *KQ), _zeros(blocks, *OV), np.zeros((blocks, sizes.runs)))


def _scratch(sizes: Sizes) -> Scratch:
    columns, model = sizes.runs * sizes.heads, sizes.dim + sizes.outputs
    return Scratch(
        state=aligned(np.zeros(4 * LANES, np.uint32)),
        query=_zeros((sizes.outputs * sizes.dim + model + 1) * LANES),
        z=_zeros(sizes.tile * model * LANES),
        coefs=_zeros(columns * sizes.vectors * model * LANES),
        sums=_zeros(columns * sizes.vectors * model * LANES),
        total=_zeros(columns * LANES),
        reference=_zeros(columns * LANES),
        scores=_zeros((sizes.vectors + 1) * sizes.tile * LANES),
        error=_zeros(sizes.runs * sizes.outputs * LANES),
        spare=_zeros(LANES),
    )


def _given(prompt: Prompt, sizes: Sizes) -> Source:
    """These prompts, with zeros where a block or a group of demonstrations is not full."""
    model, blocks = sizes.dim + sizes.outputs, -(-sizes.batch // LANES)
    z = _zeros(blocks * LANES, -(-sizes.length // GROUP) * GROUP, model)
    z[: sizes.batch, : sizes.length] = prompt.demonstrations.cpu().numpy()
    query = _zeros(blocks * LANES, model)
    query[: sizes.batch] = torch.cat([prompt.x_q, prompt.y_q], dim=-1).cpu().numpy()
    in_rows = [np.moveaxis(array.reshape(blocks, LANES, -1), 1, -1).reshape(blocks, -1) for array in (z, query)]
    d, zero = sizes.dim, np.float32(0)
    return Source(
        np.zeros(2, np.uint32),
        _zeros(d, d),
        _zeros(d),
        _zeros(1, d),
        False,
        zero,
        zero,
        True,
        True,
        *map(aligned, in_rows),
    )


def _zeros(*shape: int) -> np.ndarray:
    return aligned(np.zeros(shape, np.float32))
