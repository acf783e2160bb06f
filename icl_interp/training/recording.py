"""When to look at a training, and what to keep of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from icl_interp.circuits import Circuits
from icl_interp.config import ModelConfig
from icl_interp.records import Dynamics
from icl_interp.weights import Weights, weight_shapes

# Weight snapshots of one run, and of a population in memory, may take this much; ω, μ and the loss are always kept.
RUN_BYTES, POPULATION_BYTES = 64 * 2**20, 2**30
_RECORD = ("steps", "loss", "omega", "mu")


def record_steps(steps: int, n_records: int) -> list[int]:
    """About `n_records` steps from 0 to `steps`: a fifth logarithmic up to 1,000, the rest even.

    So the first thousand steps, where the signs are decided, and the last hundred thousand, where ω declines slowly,
    can both be read.
    """
    early = np.geomspace(1, min(1000, steps), max(n_records // 5, 2))
    late = np.linspace(0, steps, n_records - len(early) + 1)
    return sorted({0, steps, *np.rint(early).astype(int).tolist(), *np.rint(late).astype(int).tolist()})


class Recorder:
    """Collects a run's records.  They can be stored elsewhere in parts, and joined in the end."""

    def __init__(self, config: ModelConfig, planned: Sequence[int], budget: int = RUN_BYTES):
        self.planned: frozenset[int] = frozenset(planned)
        self._config = config
        self._keep = _affordable(planned, config, budget)
        self._records: list[tuple[int, float, np.ndarray, np.ndarray]] = []
        self._snapshots: dict[int, Weights] = {}

    def record(self, step: int, loss: float, weights: Weights) -> None:
        """Keep loss, ω and μ at `step`; the weights too if `step` is a snapshot's, or as long as it is the last."""
        for last in [last for last in self._snapshots if last not in self._keep]:
            del self._snapshots[last]
        circuits = Circuits.from_weights(weights, self._config)
        self._records.append((step, loss, circuits.omega, circuits.mu))
        self._snapshots[step] = weights

    @property
    def names(self) -> tuple[str, ...]:
        """The tensors of a part."""
        return (*_RECORD, "snapshot_steps", *weight_shapes(self._config))

    @property
    def nbytes(self) -> int:
        """What is kept in memory."""
        return len(self._snapshots) * _bytes(self._config)

    def part(self) -> dict[str, Tensor]:
        """All that was recorded and not cleared, as tensors; empty if nothing was."""
        if not self._records:
            return {}
        columns = zip(_RECORD, zip(*self._records, strict=True), strict=True)
        part = {name: torch.from_numpy(np.stack([np.asarray(v) for v in values])) for name, values in columns}
        part["snapshot_steps"] = torch.tensor(list(self._snapshots))
        for name in weight_shapes(self._config):
            part[name] = torch.stack([weights[name] for weights in self._snapshots.values()])
        return part

    def clear(self) -> None:
        """Forget what was recorded: it is stored elsewhere."""
        self._records, self._snapshots = [], {}

    def join(self, parts: Sequence[Mapping[str, Tensor]]) -> Dynamics:
        """Parts, in their order, as one; the last record always ends the snapshots."""
        whole = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        last = int(whole["steps"][-1])
        kept = [i for i, step in enumerate(whole["snapshot_steps"].tolist()) if step in self._keep or step == last]
        return Dynamics(
            **{name: whole[name].numpy() for name in _RECORD},
            snapshot_steps=whole["snapshot_steps"][kept].numpy(),
            snapshots={name: whole[name][kept] for name in weight_shapes(self._config)},
        )


def _bytes(config: ModelConfig) -> int:
    return 4 * sum(int(np.prod(shape)) for shape in weight_shapes(config).values())


def _affordable(steps: Sequence[int], config: ModelConfig, budget: int) -> frozenset[int]:
    count = max(2, min(len(steps), budget // _bytes(config)))
    return frozenset(steps[i] for i in np.rint(np.linspace(0, len(steps) - 1, count)).astype(int))
