"""What can be reproduced: one function a figure, table or theorem, declared with `@recipe`."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from fnmatch import filter as matching
from importlib import import_module
from pkgutil import iter_modules

from icl_interp.errors import ConfigError
from icl_interp.probing import Block
from icl_interp.reproduce.bench import Bench
from icl_interp.reproduce.results import Claim, Reproduction
from icl_interp.reproduce.trainings import SCHEDULES, Schedule, trainings

Made = tuple[Sequence[Claim], Sequence[Block]]
ALL = "all"
_known: dict[str, Recipe] = {}


@dataclass(frozen=True)
class Recipe:
    """How one figure is made.

    Args:
        name: on the command line.
        title: what it shows.
        source: where the paper has it.
        runs: names of the trainings that `make` asks the bench for; "map-*" means all whose names begin like that, of
            which there may be more on one schedule than on another.
        make: the claims and the blocks, from a bench.
    """

    name: str
    title: str
    source: str
    runs: tuple[str, ...]
    make: Callable[[Bench], Made]

    def __call__(self, bench: Bench) -> Reproduction:
        """Make it; trainings that are missing come first, and their time does not count.

        What goes wrong becomes a `Reproduction` that says so, and nothing else is kept from being made.
        """
        found = Reproduction(
            name=self.name,
            title=self.title,
            source=self.source,
            claims=(),
            blocks=(),
            runs={name: self._described(name, bench) for name in self.runs},
            schedule=bench.schedule.name,
            command=self._command(bench.schedule),
            seconds=0.0,
        )
        try:
            for name in self.trained(bench.schedule):
                bench.runs(name)
            begin = time.perf_counter()
            claims, blocks = self.make(bench)
        except Exception as error:
            failure = f"{type(error).__name__}: {error}"
            return replace(found, failure=failure, details="".join(traceback.format_exception(error)))
        return replace(found, claims=tuple(claims), blocks=tuple(blocks), seconds=time.perf_counter() - begin)

    def trained(self, schedule: Schedule) -> list[str]:
        """`runs`, each name written out."""
        return [name for each in self.runs for name in _written_out(each, schedule)]

    def _described(self, name: str, bench: Bench) -> str:
        names = _written_out(name, bench.schedule)
        if len(names) == 1:
            return bench.described(names[0])
        return f"{len(names)} populations, from {bench.described(names[0])} … to {bench.described(names[-1])}"

    def _command(self, schedule: Schedule) -> str:
        if schedule in SCHEDULES.values():
            return f"icl-interp reproduce {self.name} --schedule {schedule.name}"
        return f"list(reproduce([{self.name!r}], Bench(folder, {schedule!r})))"


def recipe(
    name: str, title: str, source: str, *, runs: Sequence[str] = ()
) -> Callable[[Callable[[Bench], Made]], Callable[[Bench], Made]]:
    """Declare a function of a bench as the maker of a figure; see `Recipe` for the arguments."""

    def declare(make: Callable[[Bench], Made]) -> Callable[[Bench], Made]:
        _known[name] = Recipe(name, title, source, tuple(runs), make)
        return make

    return declare


def recipes() -> dict[str, Recipe]:
    """All of them by name: figures by number, then tables, then the rest."""
    from icl_interp.reproduce import figures

    for module in iter_modules(figures.__path__):
        import_module(f"{figures.__name__}.{module.name}")
    return dict(sorted(_known.items(), key=lambda item: place_of(item[0])))


def reproduce(names: Sequence[str], bench: Bench) -> Iterator[Reproduction]:
    """Make the named ones in the order of the paper, "all" for every one; each is given as soon as it is there.

    One that cannot be made is given too, with its `failure`; the others go on.  Ctrl-C is a KeyboardInterrupt.

    Raises:
        ConfigError: a name that is not known; the message lists those that are.
    """
    known = recipes()
    unknown = [name for name in names if name not in known and name != ALL]
    if unknown or not names:
        raise ConfigError(
            f"nothing called {', '.join(unknown) or '(no name)'} can be reproduced: name some of {', '.join(known)}, "
            f"or {ALL}"
        )
    wanted = [each for name, each in known.items() if name in names or ALL in names]
    return (each(bench) for each in wanted)


def _written_out(name: str, schedule: Schedule) -> list[str]:
    """The trainings that a name stands for: itself, unless it has a star."""
    return matching(trainings(schedule), name) if "*" in name else [name]


def place_of(name: str) -> tuple[int, int, str]:
    """What names are sorted by."""
    kind, _, number = name.partition("-")
    rank = {"figure": 0, "table": 1}.get(kind, 2)
    return rank, int(number) if rank < 2 and number.isdecimal() else 0, name
