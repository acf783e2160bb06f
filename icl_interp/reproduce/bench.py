"""Where figures are made: trainings on demand, each once and kept, and prompts to measure on."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator
from pathlib import Path

import torch

from icl_interp.config import check_choice
from icl_interp.errors import ConfigError, TrainingError
from icl_interp.records import Run, Runs, TrainConfig
from icl_interp.reproduce.trainings import SCHEDULES, Schedule, ScheduleName, described, trainings
from icl_interp.tasks import Prompt, Task
from icl_interp.training import train_many
from icl_interp.training.journal import Journal

CHUNK = 4_096  # prompts that are looked at in turn


class Bench:
    """Runs by name, trained when they are first asked for and opened after that, also by another process later.

    An interrupted training goes on where it was saved.

    Args:
        folder: keeps the runs, in a folder for each schedule.
        schedule: "quick", "paper" or one of your own.
        progress: show progress bars; None means only when the output is a terminal.

    Raises:
        ConfigError: an unknown schedule.
    """

    def __init__(
        self, folder: str | Path, schedule: ScheduleName | Schedule = "quick", *, progress: bool | None = None
    ):
        if not isinstance(schedule, Schedule):
            check_choice("schedule", schedule, tuple(SCHEDULES))
            schedule = SCHEDULES[schedule]
        self.schedule: Schedule = schedule
        self._folder = Path(folder) / "runs" / schedule.name
        self._trainings = trainings(schedule)
        self._progress = progress
        self._opened: dict[str, Runs] = {}

    def run(self, name: str) -> Run:
        """The training called `name`; of a population the first.  Raises as `runs`."""
        return self.runs(name)[0]

    def runs(self, name: str) -> Runs:
        """The training or the population called `name`, trained if it has not been.

        Raises:
            ConfigError: no such training; the message lists those there are.
            KeyboardInterrupt: Ctrl-C ended the training, which is saved and goes on when asked for again.
            TrainingError: a run's loss stopped being finite.
        """
        if name not in self._opened:
            configs, place = self._configs(name), self._folder / name
            if not place.exists() and (sys.stderr.isatty() if self._progress is None else self._progress):
                print(f"training {name}: {described(configs)}", file=sys.stderr, flush=True)
            runs = train_many(configs, out=place, resume=True, progress=self._progress)
            _check_whole(name, runs, configs, place)
            self._opened[name] = runs
        return self._opened[name]

    def described(self, name: str) -> str:
        """What the training called `name` is, in words.  Raises ConfigError as `runs`."""
        return described(self._configs(name))

    def prompts(self, label: str, task: Task, n: int | None = None, *, length: int | None = None) -> Iterator[Prompt]:
        """`n` prompts (float64) in pieces, the same for the same label; None means the schedule's number."""
        n = self.schedule.prompts if n is None else n
        seed = int.from_bytes(hashlib.sha256(label.encode()).digest()[:8], "big") >> 1
        generator = torch.Generator().manual_seed(seed)
        for start in range(0, n, CHUNK):
            yield task.sample(min(CHUNK, n - start), length=length, generator=generator).to(dtype=torch.float64)

    def _configs(self, name: str) -> tuple[TrainConfig, ...]:
        if name not in self._trainings:
            raise ConfigError(f"no training {name!r}; there are {', '.join(self._trainings)}")
        return self._trainings[name]


def _check_whole(name: str, runs: Runs, configs: tuple[TrainConfig, ...], place: Path) -> None:
    """Raise unless every run took its last step."""
    reached = [run.step or 0 for run in runs]
    short = [i for i, config in enumerate(configs) if reached[i] < config.steps]
    if short and Journal(place, {}, 1).exists():  # there is a state to go on from
        raise KeyboardInterrupt(f"the training {name} was interrupted after {max(reached):,} steps; it is saved")
    if short:
        raise TrainingError(
            f"the training {name} cannot be used: {len(short)} of {len(configs)} runs ended early, when their loss "
            f"stopped being finite; the first is run {short[0]}, at step {reached[short[0]]:,}"
        )
