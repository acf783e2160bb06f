"""What training leaves behind, as data: how it was asked for, what came out, and how it came about."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args, overload

import numpy as np
from jaxtyping import Float, Int

from icl_interp.config import Mask, ModelConfig, check_choice, check_count, check_positive
from icl_interp.errors import CheckpointError, ConfigError
from icl_interp.tasks import Task, check_task
from icl_interp.weights import Weights, check_weights

if TYPE_CHECKING:
    import pandas as pd
    import torch

    from icl_interp.analysis import Analysis
    from icl_interp.circuits import Circuits
    from icl_interp.model import ICLTransformer
    from icl_interp.probing import AnyProbe

Optimizer = Literal["adam", "adamw", "sgd"]
Schedule = Literal["constant", "cosine"]


@dataclass(frozen=True)
class TrainConfig:
    """Everything that decides a run on a given engine and machine.  The defaults are the paper's, but for `steps`.

    Args:
        task: where fresh prompts come from at every step.
        model: sizes of the model; its `dim` and `n_outputs` must be the task's.
        steps: optimiser steps (the paper: 500,000).
        batch_size: prompts a step.
        lr: learning rate.
        optimizer: "adam", "adamw" or "sgd".
        weight_decay: decoupled for "adamw", an L2 term for the others.
        betas: Adam's.
        momentum: SGD's.
        seed: of initialisation and data, as two independent streams.
        n_records: about how many points of the training are kept: a fifth of them logarithmic up to step 1,000, the
            rest even up to the end.
        data_seed: of the data alone; None means `seed`.  Runs with the same data_seed, task and batch_size see the same
            prompts at every step: cheaper to train together, but their differences are then not those of independent
            runs (see `train_many`).
        schedule: what becomes of the learning rate: "constant", or "cosine", half a wave down to zero at the last step.
        warmup: steps over which it first rises, evenly, to `lr`.
        clip: largest norm of a gradient, all weights together; longer ones are shortened.  None means no bound.

    Raises:
        ConfigError: a value out of range, or a model that does not fit the task.
    """

    task: Task
    model: ModelConfig
    steps: int = 20_000
    batch_size: int = 256
    lr: float = 1e-3
    optimizer: Optimizer = "adam"
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    momentum: float = 0.0
    seed: int = 0
    n_records: int = 300
    data_seed: int | None = None
    schedule: Schedule = "constant"
    warmup: int = 0
    clip: float | None = None

    def __post_init__(self) -> None:
        check_task(self.task)
        if not isinstance(self.model, ModelConfig):
            raise ConfigError(f"model must be a ModelConfig, got {self.model!r}")
        for name in ("steps", "batch_size"):
            check_count(name, getattr(self, name))
        check_count("n_records", self.n_records, minimum=2)
        check_count("seed", self.seed, minimum=0)
        if self.data_seed is not None:
            check_count("data_seed", self.data_seed, minimum=0)
        check_positive("lr", self.lr)
        check_choice("schedule", self.schedule, get_args(Schedule))
        check_count("warmup", self.warmup, minimum=0)
        if self.clip is not None:
            check_positive("clip", self.clip)
        check_choice("optimizer", self.optimizer, get_args(Optimizer))
        check_positive("weight_decay", self.weight_decay, zero=True)
        if not isinstance(self.betas, tuple | list) or len(self.betas) != 2:
            raise ConfigError(f"betas must be two numbers, got {self.betas!r}")
        object.__setattr__(self, "betas", tuple(self.betas))
        for name, value in (("betas[0]", self.betas[0]), ("betas[1]", self.betas[1]), ("momentum", self.momentum)):
            check_positive(name, value, zero=True)
            if value >= 1:
                raise ConfigError(f"{name} must be < 1, got {value!r}")
        for name in ("dim", "n_outputs"):
            if getattr(self.model, name) != getattr(self.task, name):
                raise ConfigError(
                    f"model.{name} is {getattr(self.model, name)}, the task's is {getattr(self.task, name)}"
                )

    @property
    def prompt_seed(self) -> int:
        """`data_seed`, with its default filled in."""
        return self.seed if self.data_seed is None else self.data_seed

    @property
    def steady(self) -> bool:
        """Whether the learning rate is the same at every step."""
        return self.schedule == "constant" and self.warmup == 0

    def rate(self, step: int) -> float:
        """The learning rate of a step, counted from 0."""
        rising = min(1.0, (step + 1) / (self.warmup + 1))
        falling = (1 + math.cos(math.pi * step / self.steps)) / 2 if self.schedule == "cosine" else 1.0
        return self.lr * rising * falling


@dataclass(frozen=True, eq=False)
class Dynamics:
    """How a run came about.

    `loss[i]` is the mean over the steps since the record before, each on fresh prompts (so it is a test loss);
    `loss[0]` is the untrained model's.  ω and μ are `Circuits`' at that step.  Weights are kept at `snapshot_steps`, a
    subset of `steps` that ends with the last one.
    """

    steps: Int[np.ndarray, "records"]
    loss: Float[np.ndarray, "records"]
    omega: Float[np.ndarray, "records layers heads"]
    mu: Float[np.ndarray, "records layers heads outputs"]
    snapshot_steps: Int[np.ndarray, "snapshots"]
    snapshots: Weights = field(repr=False)

    def weights(self, step: int) -> Weights:
        """The four weight tensors as they were at a recorded step.

        Raises:
            ConfigError: no snapshot was taken at `step`; the message names the nearest.
        """
        at = np.flatnonzero(self.snapshot_steps == step)
        if not len(at):
            nearest = self.snapshot_steps[np.argsort(np.abs(self.snapshot_steps - step), kind="stable")[:3]]
            raise ConfigError(f"no snapshot at step {step}; the nearest are at {', '.join(map(str, sorted(nearest)))}")
        return {name: tensor[at[0]] for name, tensor in self.snapshots.items()}

    def late_steps(self) -> list[int]:
        """The snapshots of the last fifth of training, over which noisy final iterates are averaged."""
        return [int(step) for step in self.snapshot_steps if step >= 0.8 * self.steps[-1]]


@dataclass(frozen=True, eq=False)
class Run:
    """A model's weights and what is known of how they came to be.

    `task` is None where the data distribution is unknown; `training` and `dynamics` are None for a model of unknown
    origin.  `format` says what it was recognised as when it was opened, `assumed` what its file did not say.

    Raises:
        CheckpointError: weights that are missing, misshapen or not finite; a task of other sizes than the model's.
    """

    model_config: ModelConfig
    weights: Weights
    task: Task | None = None
    training: TrainConfig | None = None
    dynamics: Dynamics | None = None
    step: int | None = None
    seed: int | None = None
    origin: str = "memory"
    versions: dict[str, str] = field(default_factory=dict)
    format: str = ""
    assumed: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_weights(self.weights, self.model_config)
        for name in ("dim", "n_outputs") if self.task is not None else ():
            if getattr(self.task, name) != getattr(self.model_config, name):
                raise CheckpointError(
                    f"the task's {name} is {getattr(self.task, name)}, the model's {getattr(self.model_config, name)}"
                )

    @classmethod
    def load(
        cls,
        path: str | Path,
        *,
        dim: int | None = None,
        n_outputs: int | None = None,
        n_heads: int | None = None,
        attn_scale: float | None = None,
        mask: Mask | None = None,
        activation: str | None = None,
        activation_scale: float | None = None,
    ) -> Run:
        """Open a run's folder, or a checkpoint of another make; the rest is for files that do not say it.

        Raises:
            CheckpointError: not a checkpoint, or a damaged one.
            ConfigError: a size that is not the file's.
        """
        from icl_interp.formats import Given, load_run

        return load_run(path, Given(dim, n_outputs, n_heads, attn_scale, mask, activation, activation_scale))

    def save(self, path: str | Path, *, overwrite: bool = False) -> Path:
        """Write the run as a folder, all or nothing; an older run at `path` is only replaced with `overwrite`.

        Raises:
            SaveError: the folder exists, or could not be written.
        """
        from icl_interp.formats import save_run

        return save_run(self, path, overwrite=overwrite)

    def model(self, step: int | None = None) -> ICLTransformer:
        """The model to hook, as it is or as it was at a recorded `step`."""
        from icl_interp.model import ICLTransformer

        return ICLTransformer.from_weights(self.model_config, self._weights(step))

    def circuits(self, step: int | None = None) -> Circuits:
        """Its KQ and OV circuits, as they are or as they were at a recorded `step`."""
        from icl_interp.circuits import Circuits

        return Circuits.from_weights(self._weights(step), self.model_config)

    def __repr__(self) -> str:
        from icl_interp_reports import run_in_a_line

        return run_in_a_line(self)

    def __str__(self) -> str:
        from icl_interp_reports import run_text

        return run_text(self)

    def _repr_html_(self) -> str:
        from icl_interp_reports import run_in_notebook

        return run_in_notebook(self)

    def _weights(self, step: int | None) -> Weights:
        if step is None or step == self.step:
            return self.weights
        if self.dynamics is None:
            raise ConfigError(f"no weights of step {step}: this run has no record of its training")
        return self.dynamics.weights(step)


class Runs(Sequence[Run]):
    """A population of runs: indexed by number, or by a slice or list of numbers for a part of it.

    Those of a folder are opened one by one, each time they are asked for, so that memory does not grow with their
    number.

    Args:
        runs: runs, or the folders they are in.
    """

    def __init__(self, runs: Sequence[Run | Path]):
        self._runs = tuple(runs)

    @classmethod
    def load(cls, path: str | Path) -> Runs:
        """The population that was saved in a folder.

        Raises:
            CheckpointError: not a population, or an incomplete one.
        """
        from icl_interp.formats import load_runs

        return load_runs(path)

    def save(self, path: str | Path, *, overwrite: bool = False) -> Path:
        """Write all runs as one folder, all or nothing; see `Run.save`.

        Raises:
            SaveError: the folder exists, or could not be written.
        """
        from icl_interp.formats import save_runs

        return save_runs(self, path, overwrite=overwrite)

    def analyze(
        self,
        task: Task | None = None,
        *,
        probes: str | Sequence[str | AnyProbe | type[AnyProbe]] | None = None,
        seed: int = 0,
        budget: int | None = None,
        device: str | torch.device = "auto",
    ) -> list[Analysis]:
        """`icl_interp.analyze` of each run, with the same options."""
        from icl_interp.analysis import analyze

        return [analyze(run, task, probes=probes, seed=seed, budget=budget, device=device) for run in self]

    def to_frame(self) -> pd.DataFrame:
        """One row a run: what it was trained with, as far as runs differ, and what came out.

        Columns after those: `step`, the last; `loss` and `loss_error`, mean and standard error over the records of the
        last fifth of training; `omega` and `mu`, a tuple over heads (and layers), at the last step.
        """
        import pandas as pd

        rows = [summary(run) for run in self]
        return pd.DataFrame(rows, columns=[*differing(rows), *RESULTS])

    def __len__(self) -> int:
        return len(self._runs)

    @overload
    def __getitem__(self, index: int) -> Run: ...
    @overload
    def __getitem__(self, index: slice | Sequence[int]) -> Runs: ...
    def __getitem__(self, index: int | slice | Sequence[int]) -> Run | Runs:
        if isinstance(index, slice):
            return Runs(self._runs[index])
        if isinstance(index, Sequence | np.ndarray):
            return Runs([self._runs[i] for i in np.arange(len(self))[list(index)]])
        run = self._runs[index]
        return Run.load(run) if isinstance(run, Path) else run

    def __iter__(self) -> Iterator[Run]:
        return (self[i] for i in range(len(self)))

    @property
    def folder(self) -> Path | None:
        """The folder in which all of them are; None for runs in memory."""
        places = {run.parent if isinstance(run, Path) else None for run in self._runs}
        return places.pop() if len(places) == 1 else None

    def __repr__(self) -> str:
        from icl_interp_reports import runs_in_a_line

        return runs_in_a_line(self)

    def __str__(self) -> str:
        from icl_interp_reports import runs_text

        return runs_text(self)

    def _repr_html_(self) -> str:
        from icl_interp_reports import runs_in_notebook

        return runs_in_notebook(self)


RESULTS = ("step", "loss", "loss_error", "omega", "mu")


def summary(run: Run) -> dict[str, object]:
    """A run's row in `Runs.to_frame`: all its settings by name, then `RESULTS`."""
    names = ("n_heads", "n_layers", "d_head", "activation", "activation_scale")
    row = {"task": run.task} | {name: getattr(run.model_config, name) for name in names}
    if run.training is not None:
        names = ("lr", "optimizer", "weight_decay", "batch_size", "steps", "seed", "data_seed")
        row |= {name: getattr(run.training, name) for name in names}
    return row | dict(zip(RESULTS, _results(run), strict=True))


def differing(rows: Sequence[Mapping[str, object]]) -> list[str]:
    """The settings in which summaries differ; one that a run lacks counts as None."""
    names = dict.fromkeys(name for row in rows for name in row if name not in RESULTS)
    return [name for name in names if len({_said(row.get(name)) for row in rows}) > 1]


def _said(value: object) -> str:
    try:
        return str(value)
    except Exception:  # a user's own task may have no repr that works
        return f"{type(value).__name__} {id(value)}"


def _results(run: Run) -> tuple[object, ...]:
    circuits = run.circuits()
    late = run.dynamics.loss[run.dynamics.steps >= 0.8 * run.dynamics.steps[-1]] if run.dynamics else np.full(1, np.nan)
    error = late.std(ddof=1) / len(late) ** 0.5 if len(late) > 1 else np.nan
    omega, mu = (tuple(values.ravel().tolist()) for values in (circuits.omega, circuits.mu))
    return run.step, float(late.mean()), float(error), omega, mu


def check_dynamics(dynamics: Dynamics, model: ModelConfig) -> None:
    """Raise unless `dynamics` are in themselves consistent and those of a model of this config.

    Raises:
        CheckpointError: which record or snapshot does not fit.
    """
    for name in ("steps", "snapshot_steps"):
        steps = getattr(dynamics, name)
        fits = steps.ndim == 1 and steps.dtype.kind in "iu" and len(steps) > 0
        if not fits or steps[0] < 0 or (steps[1:] <= steps[:-1]).any():
            raise CheckpointError(f"dynamics: {name} must be ascending whole numbers, got {steps}")
    kept, records = dynamics.snapshot_steps, dynamics.steps
    if not np.isin(kept, records).all() or kept[-1] != records[-1]:
        raise CheckpointError(
            f"dynamics: snapshot_steps must be a part of steps and end with {records[-1]}, got {kept}"
        )
    heads = (len(records), model.n_layers, model.n_heads)
    for name, shape in {"loss": heads[:1], "omega": heads, "mu": (*heads, model.n_outputs)}.items():
        array = getattr(dynamics, name)
        if array.shape != shape or array.dtype.kind != "f":
            raise CheckpointError(f"dynamics: {name} must be floats of shape {shape}, got {array.dtype} {array.shape}")
    if any(tensor.shape[:1] != kept.shape for tensor in dynamics.snapshots.values()):
        raise CheckpointError(f"dynamics: every weight needs {len(kept)} snapshots")
    for i, step in enumerate(kept):
        try:
            check_weights({name: tensor[i] for name, tensor in dynamics.snapshots.items()}, model)
        except CheckpointError as error:
            raise CheckpointError(f"dynamics: at step {step} {error}") from None
