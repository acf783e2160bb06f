"""Cells to rows, on all cores: batches that are trained together and analyzed one by one, on joblib's backends.

joblib's own pool gives up when one of its workers dies.  What had not come back is then tried again; if that ends so
once more, cell by cell, each in a pool of its own, so that the one at fault is found and recorded.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from joblib import Parallel, delayed

from icl_interp.analysis import analyze
from icl_interp.errors import NoCheckpointError
from icl_interp.records import Run
from icl_interp.serialization import to_data
from icl_interp.sweeps.grid import Cell
from icl_interp.sweeps.places import Place
from icl_interp.sweeps.rows import Row, failed, row_of
from icl_interp.sweeps.threads import one_thread
from icl_interp.training.engines import COMPILED, EngineName, choose
from icl_interp.training.population import Population

T = TypeVar("T")
TOGETHER = 16  # runs of a batch: what a killed sweep may have to do again
DIED = "the process that worked on it died"


@dataclass(frozen=True)
class Work:
    """What is done with every cell.

    Args:
        engine, device: that train.
        probes, budget, seed: of the analysis.
        keep: the folder that runs are kept in; None if they are not.
        reports: whether a kept run has its report beside it.
    """

    engine: EngineName
    device: str
    probes: tuple[str, ...] | None
    budget: int | None
    seed: int
    keep: str | None
    reports: bool = False

    def rows(self, cells: Sequence[Cell]) -> list[Row]:
        """Of cells that are trained together, on one core; a cell that fails costs no other.

        Raises:
            KeyboardInterrupt: Ctrl-C ended the training.
        """
        with one_thread():
            try:
                runs = self._runs(cells)
            except Exception as error:
                if len(cells) > 1:
                    return [row for cell in cells for row in self.rows([cell])]
                return [failed(cells[0], _said(error))]
            return [self._row(cell, run) for cell, run in zip(cells, runs, strict=True)]

    def _runs(self, cells: Sequence[Cell]) -> list[Run | str]:
        """Each cell's run, or why there is none."""
        found: dict[str, Run | str] = {c.key: run for c in cells if (run := self._kept(c)) is not None}
        if missing := [cell for cell in cells if cell.key not in found]:
            population = Population([cell.config for cell in missing], self.engine, self.device)
            population.train(None, progress=False)
            if not population.finished:
                raise KeyboardInterrupt
            for i, cell in enumerate(missing):
                found[cell.key] = population.failures[i] if i in population.failures else population.run(i)
        return [found[cell.key] for cell in cells]

    def _row(self, cell: Cell, run: Run | str) -> Row:
        if isinstance(run, str):
            return failed(cell, run)
        try:
            place = Path(self.keep) / cell.key if self.keep is not None else None
            if place is not None and run.origin == "memory":
                run.save(place, overwrite=True)
            analysis = analyze(run, probes=self.probes, seed=self.seed, budget=self.budget)
            if place is not None and self.reports:
                analysis.to_html(place / "report.html")
            return row_of(cell, analysis)
        except Exception as error:
            return failed(cell, _said(error))

    def _kept(self, cell: Cell) -> Run | None:
        """The run, if it is there already: its row alone was lost."""
        if self.keep is None:
            return None
        try:
            run = Run.load(Path(self.keep) / cell.key)
        except NoCheckpointError:
            return None
        same = run.step == cell.config.steps and to_data(run.training) == to_data(cell.config)
        return run if same else None


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


def batches(cells: Sequence[Cell], engine: EngineName, device: str, workers: int) -> list[list[Cell]]:
    """Cells that train as one population: those of compiled engines that have the same sizes, others by themselves.

    The torch engine rounds otherwise in another company, and a row must not depend on that.
    """
    groups: dict[object, list[Cell]] = defaultdict(list)
    for cell in cells:
        config = cell.config
        alone = _engine(cell, engine, device) not in COMPILED
        groups[cell.key if alone else (config.steps, config.batch_size, repr(config.task), repr(config.model))].append(
            cell
        )
    most = max(1, min(TOGETHER, -(-len(cells) // (2 * workers))))
    return [list(part) for group in groups.values() for part in _parts(group, most)]


def _engine(cell: Cell, engine: EngineName, device: str) -> str:
    try:
        return choose(cell.config, engine, device)[0]
    except Exception:  # it cannot be trained: its own row will say so
        return "none"


def _parts(group: Sequence[T], most: int) -> Iterator[tuple[T, ...]]:
    rest = iter(group)
    while part := tuple(itertools.islice(rest, most)):
        yield part


def run_all(todo: Sequence[Sequence[Cell]], work: Work, done: Callable[[list[Row]], None], place: Place) -> None:
    """`done` with the rows of every batch, as they come."""
    waiting = {index: list(batch) for index, batch in enumerate(todo)}
    for _ in range(2):
        try:
            for index, rows in _scattered(waiting, work, place):
                done(rows)
                del waiting[index]
            return
        except place.deaths:
            continue
    for cell in [cell for batch in waiting.values() for cell in batch]:
        try:
            for _, rows in _scattered({0: [cell]}, work, place.apart()):
                done(rows)
        except place.deaths:
            done([failed(cell, DIED)])


def _scattered(waiting: dict[int, list[Cell]], work: Work, place: Place) -> Iterator[tuple[int, list[Row]]]:
    """In waves where the backend gives nothing back before all of it is done."""
    with place:
        for wave in _parts(list(waiting.items()), place.wave):
            parallel: Any = Parallel(return_as=place.returns, batch_size=1)  # pyright: ignore[reportArgumentType]
            yield from parallel(delayed(_numbered)(index, work, batch) for index, batch in wave)


def _numbered(index: int, work: Work, cells: list[Cell]) -> tuple[int, list[Row]]:
    return index, work.rows(cells)
