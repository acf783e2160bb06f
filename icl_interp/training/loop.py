"""Training, one run or many: what users call."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import torch

from icl_interp.config import Mask, ModelConfig, check_positive
from icl_interp.errors import ConfigError, NoCheckpointError, SaveError, TrainingError
from icl_interp.formats import load_run, save_runs
from icl_interp.formats.native import check_target
from icl_interp.records import Optimizer, Run, Runs, Schedule, TrainConfig
from icl_interp.tasks import Task, check_task
from icl_interp.training.engines import EngineName
from icl_interp.training.journal import Journal
from icl_interp.training.population import Population

Opened = TypeVar("Opened", Run, Runs)


def train(
    task: Task,
    *,
    n_heads: int = 2,
    n_layers: int = 1,
    d_head: int | None = None,
    mask: Mask = "demonstrations",
    attn_scale: float | None = None,
    activation: str = "softmax",
    activation_scale: float = 1.0,
    scratch: int = 0,
    read_in: int | None = None,
    read_out: bool = False,
    layer_norm: bool = False,
    steps: int = 20_000,
    batch_size: int = 256,
    lr: float = 1e-3,
    optimizer: Optimizer = "adam",
    weight_decay: float = 0.0,
    betas: tuple[float, float] = (0.9, 0.999),
    momentum: float = 0.0,
    seed: int = 0,
    n_records: int = 300,
    data_seed: int | None = None,
    schedule: Schedule = "constant",
    warmup: int = 0,
    clip: float | None = None,
    engine: EngineName = "auto",
    device: str | torch.device = "auto",
    out: str | Path | None = None,
    overwrite: bool = False,
    resume: bool = False,
    save_every: float = 30.0,
    progress: bool | None = None,
) -> Run:
    """Train a model on fresh prompts of `task`; see `ModelConfig` and `TrainConfig` for what shapes it.

    The same seed gives the same run on one engine, device and version, not across them.  Ctrl-C ends the training
    within a moment and returns (and saves) what was trained; a second Ctrl-C stops at once.

    Args:
        task: where prompts come from.
        n_heads, n_layers, d_head, mask, attn_scale, activation, activation_scale, scratch, read_in, read_out,
            layer_norm: see `ModelConfig`.
        steps, batch_size, lr, optimizer, weight_decay, betas, momentum, seed, n_records, data_seed, schedule, warmup,
            clip: see `TrainConfig`.
        engine: "numba" for one layer of heads on a prompt's columns and linear regressions, of one response or several,
            at a constant rate, on the CPU; "cuda" for the same on GPUs (`icl-interp[cuda]`); "torch" for everything;
            "auto" takes the fastest that can.
        device: "auto" takes a GPU where there is one and a step is large enough to gain from it.
        out: folder to save the run in.
        overwrite: whether a run that is already there may be replaced, or a training that was cut short forgotten.
        resume: go on with a training into `out` that was cut short, from where its state was last saved, and end where
            it would have ended.  Where there is none, begin; where it is finished, open it.
        save_every: seconds between two saves of the state, if there is `out`.
        progress: show a progress bar; None means only when the output is a terminal.

    Raises:
        ConfigError: a parameter out of range, a device that is not there, an engine that cannot train this; a state to
            resume from that is another training's.
        SaveError: `out` cannot be written; asked before training too.  Carries the run.
        TrainingError: the loss stopped being finite.  Carries the run up to the last good record.
    """
    check_task(task)
    model = ModelConfig(
        dim=task.dim,
        n_outputs=task.n_outputs,
        n_heads=n_heads,
        n_layers=n_layers,
        d_head=d_head,
        mask=mask,
        attn_scale=attn_scale,
        activation=activation,
        activation_scale=activation_scale,
        scratch=scratch,
        read_in=read_in,
        read_out=read_out,
        layer_norm=layer_norm,
    )
    config = TrainConfig(
        task=task,
        model=model,
        steps=steps,
        batch_size=batch_size,
        lr=lr,
        optimizer=optimizer,
        weight_decay=weight_decay,
        betas=betas,
        momentum=momentum,
        seed=seed,
        n_records=n_records,
        data_seed=data_seed,
        schedule=schedule,
        warmup=warmup,
        clip=clip,
    )
    population = Population([config], engine, device)
    place = _Place(out, overwrite, resume)
    if (found := place.finished(load_run, lambda run: population.made([run]))) is not None:
        return found
    population.train(place.journal(population, save_every), progress)
    run = population.run(0)
    if population.failures:
        place.leave(population)
        raise TrainingError(population.failures[0], run)
    if out is not None:
        run.save(out, overwrite=overwrite or resume)
        place.leave(population)
    return run


def train_many(
    configs: Sequence[TrainConfig],
    *,
    engine: EngineName = "auto",
    device: str | torch.device = "auto",
    out: str | Path | None = None,
    overwrite: bool = False,
    resume: bool = False,
    save_every: float = 30.0,
    progress: bool | None = None,
) -> Runs:
    """Train a population in one program: seeds, numbers of heads, learning rates, tasks side by side.

    Each run is the one that `train` would give: its numbers depend neither on the others nor on the number of threads.
    Configs with the same `data_seed`, task and batch_size share their prompts.  A population is then trained about
    twice as fast, but its runs are no independent sample: all of them are lucky on the same prompts, so an error
    bar taken over shared runs leaves out the spread that comes from data.  It is right for what differs between runs
    on the same data (initialisation, heads, learning rate: paired, and less noisy for it) and too small for all else.

    Ctrl-C ends all of them within a moment.  A run whose loss stops being finite ends at its last good record, with a
    warning; the others go on.  Weight snapshots of a population take at most a gigabyte, shared among its runs; with
    `out` they go to disk as training goes, and the `Runs` that are returned open each run when asked for it.

    Args:
        configs: what to train.
        engine, device, overwrite, resume, save_every, progress: as for `train`.
        out: folder to save the runs in.

    Raises:
        ConfigError: no configs, or what `train` would refuse in one of them.
        SaveError: `out` cannot be written; asked before training too.
    """
    configs = list(configs)
    if not configs or not all(isinstance(config, TrainConfig) for config in configs):
        raise ConfigError(f"configs must be a sequence of at least one TrainConfig, got {configs!r}"[:300])
    population = Population(configs, engine, device)
    place = _Place(out, overwrite, resume)
    if (found := place.finished(Runs.load, population.made)) is not None:
        return found
    population.train(place.journal(population, save_every), progress)
    for run, failure in sorted(population.failures.items()):
        warnings.warn(f"run {run} of {len(configs)} ended early: {failure}", RuntimeWarning, stacklevel=2)
    if out is None:
        return Runs([population.run(i) for i in range(len(configs))])
    try:
        save_runs((population.run(i) for i in range(len(configs))), out, overwrite=overwrite or resume)
    except SaveError as error:
        raise SaveError(str(error), Runs([population.run(i) for i in range(len(configs))])) from error
    place.leave(population)
    return Runs.load(out)


class _Place:
    """Where a training's result and, until then, its state go.  Nothing there is lost unless `overwrite` says so."""

    def __init__(self, out: str | Path | None, overwrite: bool, resume: bool):
        if resume and out is None:
            raise ConfigError("resume=True needs out, the folder that the training was to end in")
        self._out, self._overwrite, self._resume = None if out is None else Path(out), overwrite, resume
        self._journal: Journal | None = None

    def finished(self, load: Callable[[Path], Opened], is_wanted: Callable[[Opened], bool]) -> Opened | None:
        """What `resume` finds there if it is what the training was to become."""
        if not self._resume or self._out is None:
            return None
        try:
            found = load(self._out)
        except NoCheckpointError:
            return None
        if not is_wanted(found):
            return None
        Journal(self._out, {}, 1).remove()  # what is left of it, if the training was killed between its last two acts
        return found

    def journal(self, population: Population, save_every: float) -> Journal | None:
        """Where the state of `population` is kept; what is there is restored, refused or removed."""
        check_positive("save_every", save_every)
        if self._out is None:
            return None
        self._journal = Journal(self._out, population.described(), save_every)
        if self._resume and self._journal.exists():
            population.restore(self._journal)
            return self._journal
        if self._journal.exists() and not self._overwrite:
            raise SaveError(
                f"a training into {self._out} was cut short; its state is in {self._journal.folder}: resume it, or "
                "overwrite it"
            )
        check_target(self._out, overwrite=self._overwrite)
        self._journal.remove()
        return self._journal

    def leave(self, population: Population) -> None:
        """The result is saved; the state is needed no longer, unless there is something left to do."""
        if self._journal is not None and population.finished:
            self._journal.remove()
