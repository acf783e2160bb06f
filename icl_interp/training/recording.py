"""When to look at a training, and what to keep of it."""

from __future__ import annotations

import numpy as np
import torch

from icl_interp.circuits import Circuits
from icl_interp.config import ModelConfig
from icl_interp.records import Dynamics
from icl_interp.weights import Weights

SNAPSHOT_BYTES = 64 * 2**20  # weight snapshots of one run may take this much memory; ω, μ and the loss are always kept


def record_steps(steps: int, n_records: int) -> list[int]:
    """About `n_records` steps from 0 to `steps`: a fifth logarithmic up to 1,000, the rest even.

    So the first thousand steps, where the signs are decided, and the last hundred thousand, where ω declines slowly,
    can both be read.
    """
    early = np.geomspace(1, min(1000, steps), max(n_records // 5, 2))
    late = np.linspace(0, steps, n_records - len(early) + 1)
    return sorted({0, steps, *np.rint(early).astype(int).tolist(), *np.rint(late).astype(int).tolist()})


class Recorder:
    """Collects records as training goes, and makes `Dynamics` of what there is."""

    def __init__(self, config: ModelConfig, planned: list[int]):
        self._config = config
        self._steps: list[int] = []
        self._losses: list[float] = []
        self._omegas: list[np.ndarray] = []
        self._mus: list[np.ndarray] = []
        self._snapshots: dict[int, Weights] = {}
        self._keep: frozenset[int] | None = None
        self._planned = planned

    def record(self, step: int, loss: float, weights: Weights) -> None:
        """Keep loss, ω and μ at `step`, and the weights too where the memory for snapshots allows."""
        circuits = Circuits.from_weights(weights, self._config)
        self._steps.append(step)
        self._losses.append(loss)
        self._omegas.append(circuits.omega)
        self._mus.append(circuits.mu)
        if self._keep is None:
            self._keep = _affordable(self._planned, sum(w.nbytes for w in weights.values()))
        if step in self._keep:
            self._snapshots[step] = weights

    def dynamics(self, last: Weights) -> Dynamics:
        """Everything recorded so far; `last`, the weights of the last record, always end the snapshots."""
        snapshots = {**self._snapshots, self._steps[-1]: last}
        return Dynamics(
            steps=np.array(self._steps, dtype=np.int64),
            loss=np.array(self._losses),
            omega=np.stack(self._omegas),
            mu=np.stack(self._mus),
            snapshot_steps=np.array(list(snapshots), dtype=np.int64),
            snapshots={name: torch.stack([weights[name] for weights in snapshots.values()]) for name in last},
        )


def _affordable(steps: list[int], bytes_each: int) -> frozenset[int]:
    count = max(2, min(len(steps), SNAPSHOT_BYTES // max(bytes_each, 1)))
    return frozenset(steps[i] for i in np.rint(np.linspace(0, len(steps) - 1, count)).astype(int))
