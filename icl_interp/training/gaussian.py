"""Prompts of linear regressions, of one response or several, by compiled code on the CPU."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from icl_interp.records import TrainConfig
from icl_interp.tasks import LinearRegression, MultiTaskRegression, Prompt
from icl_interp.training.compiled import prompts as compiled
from icl_interp.training.compiled.attention import GROUP
from icl_interp.training.compiled.compiler import LANES, aligned
from icl_interp.training.seeds import data_seed

TILE_ROWS = 96  # of a tile of demonstrations: 24 kB, half of a first-level cache


class Drawn:
    """The prompts that the numba engine draws for the same seed."""

    def __init__(self, config: TrainConfig):
        task, batch = config.task, config.batch_size
        model = task.dim + task.n_outputs
        self._shapes = (batch, task.length, model), (batch, task.dim), (batch, task.n_outputs)
        self._source, self._tile, self._step = gaussian(config), tile(task.length, model), 0
        self._scratch = (
            aligned(np.zeros(4 * LANES, np.uint32)),
            aligned(np.zeros((task.n_outputs * task.dim + model + 1) * LANES, np.float32)),
            aligned(np.zeros(self._tile * model * LANES, np.float32)),
        )

    def fill(self, z: Tensor, x_q: Tensor, y_q: Tensor) -> None:
        """Write the next batch."""
        compiled.draw(self._step, self._source, *self._scratch, self._tile, z.numpy(), x_q.numpy(), y_q.numpy())
        self._step += 1

    def prompt(self) -> Prompt:
        """The next batch."""
        (z, x_q, y_q), d = map(torch.empty, self._shapes), self._shapes[1][1]
        self.fill(z, x_q, y_q)
        return Prompt(z[..., :d], z[..., d:], x_q, y_q)

    def state(self) -> Tensor:
        """How many batches were drawn."""
        return torch.tensor(self._step)

    def restore(self, state: Tensor) -> None:
        """Go on from there."""
        self._step = int(state)


def tile(length: int, d_model: int) -> int:
    """Demonstrations that are drawn at a time; which random number goes where depends on it."""
    return max(GROUP, min(TILE_ROWS // d_model, length + GROUP - 1) // GROUP * GROUP)


def gaussian(config: TrainConfig) -> compiled.Source:
    """The law of a config's prompts, and its key."""
    task, seed = config.task, data_seed(config.prompt_seed)
    assert isinstance(task, LinearRegression | MultiTaskRegression)
    d, noise = task.dim, np.float32(task.noise_var**0.5)
    root, mean, signal, shared = np.eye(d), np.zeros(d), np.full((1, d), (task.signal_var / d) ** 0.5), False
    if isinstance(task, MultiTaskRegression):
        signal, shared = task.signal_scales.T, task.shared_signal
    else:
        root, mean = np.linalg.cholesky(task.sigma), task.mean_vector
    return compiled.Source(
        key=np.array([seed & 0xFFFFFFFF, seed >> 32], np.uint32),
        root=root.astype(np.float32),
        mean=mean.astype(np.float32),
        signal=np.ascontiguousarray(signal, np.float32),
        shared=shared,
        noise=noise,
        query_noise=noise if task.query_noise else np.float32(0),
        plain=isinstance(task, MultiTaskRegression) or (task.covariance is None and task.centred),
        given=False,
        given_z=aligned(np.zeros((0, 0), np.float32)),
        given_query=aligned(np.zeros((0, 0), np.float32)),
    )
