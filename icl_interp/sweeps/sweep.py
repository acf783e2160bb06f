"""`sweep()`: the whole of it, and what is there afterwards."""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pandas as pd
from joblib import cpu_count
from tqdm import tqdm

from icl_interp.config import check_count
from icl_interp.errors import CheckpointError, ConfigError
from icl_interp.formats.files import write_file
from icl_interp.probing import discover
from icl_interp.records import Run
from icl_interp.serialization import dumps
from icl_interp.sweeps.dataset import Dataset
from icl_interp.sweeps.grid import MAIN, Cell, Grid, cells
from icl_interp.sweeps.places import Backend, Place
from icl_interp.sweeps.rows import Row
from icl_interp.sweeps.running import Work, batches, run_all
from icl_interp.sweeps.summary import Summary
from icl_interp.tasks import Task
from icl_interp.training.engines import EngineName

BUDGET = 1_536  # prompts that one measurement may draw: all probes of a run of eight heads take 0.8 core-seconds then
SETTINGS = "sweep.json"
COUNTED = ("holds", "fails", "inconclusive")


@dataclass(frozen=True)
class Sweep:
    """A sweep in a folder, finished or not."""

    folder: Path

    @classmethod
    def load(cls, folder: str | Path) -> Sweep:
        """One that was begun.

        Raises:
            CheckpointError: no sweep is there.
        """
        if not (Path(folder) / SETTINGS).is_file():
            raise CheckpointError(f"no sweep in {folder}: it has no {SETTINGS}")
        return cls(Path(folder))

    def to_pandas(self) -> pd.DataFrame:
        """One row a run: its parameters, every verdict and every scalar that probes found.

        Raises:
            CheckpointError: a file that cannot be read.
        """
        return Dataset(self.folder).frame()

    def run(self, cell: str) -> Run:
        """The run of a row, if runs were kept; `cell` is that column.

        Raises:
            CheckpointError: it was not kept.
        """
        return Run.load(self.folder / "runs" / cell)

    def to_html(self, path: str | Path | None = None) -> Path:
        """Write the summary page: how often claims hold, figures over any parameters, all runs to sort and to filter.

        Args:
            path: of the page, below 5 MB; None means `sweep.html` in the sweep's folder.

        Raises:
            CheckpointError: rows that cannot be read.
            SaveError: the disk refused.
        """
        from icl_interp_reports import sweep_html

        page = Path(path) if path is not None else self.folder / "sweep.html"
        runs = os.path.relpath(self.folder / "runs", page.parent)
        reports = {file.parent.name: file.name for file in self.folder.glob("runs/*/report.html")}
        links = {cell: quote(f"{runs}/{cell}/{name}".replace(os.sep, "/")) for cell, name in sorted(reports.items())}
        return write_file(page, sweep_html(Summary.of(self.to_pandas()), self.folder.resolve().name, links))

    def __repr__(self) -> str:
        rows = self.to_pandas()
        wrong = sum(rows["error"].notna()) if "error" in rows else 0
        return f"Sweep({str(self.folder)!r}, {len(rows):,} runs" + (f", {wrong:,} of them failed)" if wrong else ")")


def sweep(
    grid: Grid,
    seeds: int | Sequence[int] = 1,
    *,
    out: str | Path,
    task: Task = MAIN,
    probes: str | Sequence[str] | None = None,
    budget: int = BUDGET,
    analysis_seed: int = 0,
    engine: EngineName = "auto",
    device: str = "cpu",
    keep: bool = False,
    reports: bool = False,
    retry: bool = False,
    workers: int | None = None,
    backend: Backend = "loky",
    scheduler: str | None = None,
    progress: bool | None = None,
) -> Sweep:
    """Train and analyze every combination of a grid with every seed, on all cores; what is done is not done again.

    A row does not depend on the number of processes, on what else is in the sweep, or on the order.

    Args:
        grid: by name, a list of values or one for all: fields of the task, of `ModelConfig` or of `TrainConfig`; or
            "task", tasks.
        seeds: so many from 0 on, or these.
        out: the folder; a sweep that was begun there goes on, and may have grown.
        task: whose fields the grid varies; the default is the paper's main setting.
        probes: names of those that look at every run; None means all that fit it.
        budget: prompts that one measurement may draw.
        analysis_seed: of those prompts.
        engine, device: that train, as for `train`.
        keep: whether the runs themselves are kept, in the folder `runs`.
        reports: whether each kept run gets a report of its own, 2 MB in its folder; the summary page has a link to it.
        retry: whether runs that failed are tried again.
        workers: processes; None means one for each core that this process may use.
        backend: "loky", processes on this machine; "dask" or "ray", a cluster's (`icl-interp[dask]`, `[ray]`).
        scheduler: the cluster's address; None starts one on this machine.
        progress: show a bar; None means only when the output is a terminal.

    Raises:
        ConfigError: a name that is no parameter, a combination that cannot be, an unknown probe, reports without runs;
            a folder of a sweep that is analyzed otherwise, or that is being written to.
        SaveError: the disk refused; done rows are kept.
    """
    asked = cells(grid, seeds, task)
    check_count("workers", workers := cpu_count() if workers is None else workers)
    place = Place(backend, workers, scheduler)
    if reports and not keep:
        raise ConfigError("a report stands beside its run: reports=True needs keep=True")
    folder, named = Path(out), _probes(probes)
    runs = str(folder.resolve() / "runs") if keep else None
    work = Work(engine, device, named, budget, analysis_seed, runs, reports)
    data = Dataset(folder)
    with data.alone():
        _agree(folder, work)
        data.join()
        done = data.done(failed=not retry)
        todo = [cell for cell in asked if cell.key not in done]
        _run(todo, work, data, place, workers, progress)
        data.join()
    return Sweep(folder)


def _run(todo: list[Cell], work: Work, data: Dataset, place: Place, workers: int, progress: bool | None) -> None:
    hidden = not (sys.stderr.isatty() if progress is None else progress)
    # Runs come a batch at a time: the time left is told from the mean over all of them.
    with tqdm(total=len(todo), unit=" runs", smoothing=0, disable=hidden) as bar:
        counts: Counter[str] = Counter()

        def keep(rows: list[Row]) -> None:
            data.add(rows)
            counts.update(word for row in rows for word in _outcomes(row))
            bar.update(len(rows))
            bar.set_postfix(counts, refresh=False)

        run_all(batches(todo, work.engine, work.device, workers), work, keep, place)


def _outcomes(row: Row) -> Iterator[str]:
    """What the bar counts: verdicts, and runs of which there is nothing."""
    yield from (str(value) for name, value in row.items() if name.endswith(".status") and value in COUNTED)
    if row["error"] is not None:
        yield "failed"


def _probes(asked: str | Sequence[str] | None) -> tuple[str, ...] | None:
    if asked is None:
        return None
    names = (asked,) if isinstance(asked, str) else tuple(asked)
    known, _ = discover()
    if unknown := [name for name in names if name not in known]:
        raise ConfigError(f"no probe {', '.join(map(repr, unknown))}; there are {', '.join(known)}")
    return names


def _agree(folder: Path, work: Work) -> None:
    """Hold this sweep against the one that was begun in the folder: rows of one table are made in one way."""
    own: dict[str, Any] = {
        "probes": None if work.probes is None else list(work.probes),
        "budget": work.budget,
        "analysis_seed": work.seed,
        "engine": work.engine,
        "version": version("icl-interp"),
    }
    path = folder / SETTINGS
    if not path.exists():
        write_file(path, dumps(own) + "\n")
        return
    try:
        begun = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    differ = [name for name in own if begun.get(name) != own[name]]
    if differ:
        said = "; ".join(f"{name} was {begun.get(name)!r} and is {own[name]!r}" for name in differ)
        raise ConfigError(f"the sweep in {folder} was begun in another way: {said}")
