"""Members that have to be trained: many at once, and each once if there is a folder to keep them in."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from icl_interp.errors import NoCheckpointError, TrainingError
from icl_interp.records import Run, TrainConfig
from icl_interp.serialization import to_data
from icl_interp.training import train_many

CHUNK = 60  # runs that are trained at once: what an interruption may lose
SEEDS = 10_000_000  # of members; the k-th attempt at a member trains with its seed plus k times as much


def trained_members(
    seeds: Sequence[int],
    config: Callable[[int], TrainConfig],
    folder: Path | None,
    wanted: Callable[[Run], bool] = lambda run: True,
) -> Iterator[Run]:
    """One run for each seed, in their order: the first attempt that is wanted.

    Each run has prompts and initial weights of its own, so that members are an independent sample.

    Args:
        seeds: of the members, below `SEEDS`.
        config: what to train, by the seed of the training.
        folder: keeps each run by the seed of its member; what is there and was trained in another way is replaced.
        wanted: what a member has to be; attempts go on until there is one.

    Raises:
        TrainingError: a run was interrupted, or its loss stopped being finite.
        SaveError: a run could not be written.
    """
    for start in range(0, len(seeds), CHUNK):
        part = seeds[start : start + CHUNK]
        found = {seed: run for seed in part if (run := _kept(seed, config, folder)) is not None}
        attempt = 0
        while rest := [seed for seed in part if seed not in found]:
            for seed, run in zip(rest, _trained([config(seed + attempt * SEEDS) for seed in rest]), strict=True):
                if wanted(run):
                    found[seed] = run
                    _keep(seed, run, folder)
            attempt += 1
        yield from (found[seed] for seed in part)


def _trained(configs: Sequence[TrainConfig]) -> list[Run]:
    runs = list(train_many(configs))
    short = [run for run, config in zip(runs, configs, strict=True) if run.step != config.steps]
    if short:
        raise TrainingError(
            f"{len(short)} of {len(runs)} trainings ended early, interrupted or because their loss stopped being "
            f"finite; the first, of seed {short[0].seed}, at step {short[0].step:,}",
            short[0],
        )
    return runs


def _kept(seed: int, config: Callable[[int], TrainConfig], folder: Path | None) -> Run | None:
    """The member that is there already, if it was trained as it would be now."""
    if folder is None:
        return None
    try:
        run = Run.load(_place(seed, folder))
    except NoCheckpointError:
        return None
    if run.training is None or run.training.seed % SEEDS != seed:
        return None
    return run if to_data(run.training) == to_data(config(run.training.seed)) else None


def _keep(seed: int, run: Run, folder: Path | None) -> None:
    if folder is not None:
        run.save(_place(seed, folder), overwrite=True)


def _place(seed: int, folder: Path) -> Path:
    return folder / f"{seed:07d}"
