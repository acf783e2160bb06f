"""Many runs in words: what differs between the first of them and what came out; the others' folders stay closed."""

from __future__ import annotations

from collections.abc import Mapping
from numbers import Integral, Real
from typing import TYPE_CHECKING

from icl_interp.errors import CheckpointError
from icl_interp.probing import Cell, Table
from icl_interp.records import RESULTS, differing, summary
from icl_interp_reports.words import brief, described

if TYPE_CHECKING:
    from icl_interp.records import Runs

SHOWN = 20  # runs that are opened
NUMBERS = 8  # of a tuple


def runs_in_words(runs: Runs) -> tuple[dict[str, str], Table]:
    """How many there are, where, and what the first ones share; and a row for each of those, as in `to_frame`.

    A run that cannot be opened has a row that says why.
    """
    opened: dict[int, dict[str, object]] = {}
    lost: dict[int, str] = {}
    for index in range(min(len(runs), SHOWN)):
        try:
            opened[index] = summary(runs[index])
        except CheckpointError as error:
            lost[index] = brief(str(error))
    apart = differing(list(opened.values()))
    return _facts(runs, opened, apart), _table(opened, lost, (*apart, *RESULTS))


def counted(runs: Runs) -> str:
    """How many there are, and the folder they are in."""
    where = f", in {brief(str(runs.folder))}" if runs.folder is not None else ""
    return f"{len(runs):,} run{'' if len(runs) == 1 else 's'}{where}"


def _facts(runs: Runs, opened: Mapping[int, Mapping[str, object]], apart: list[str]) -> dict[str, str]:
    shown = f"; the first {SHOWN} are shown, to_frame() has all" if len(runs) > SHOWN else ""
    said = {"population": f"{counted(runs)}{shown}"}
    for first in list(opened.values())[:1]:
        alike = {name: value for name, value in first.items() if name not in (*apart, *RESULTS)}
        if "task" in alike:
            said["task"] = described(alike.pop("task"))
        said["alike"] = ", ".join(f"{name} {_cell(value)}" for name, value in alike.items() if value is not None)
    return {name: words for name, words in said.items() if words}


def _table(opened: Mapping[int, Mapping[str, object]], lost: Mapping[int, str], names: tuple[str, ...]) -> Table:
    trouble = ("trouble",) if lost else ()
    rows = [(i, *(_cell(row.get(name)) for name in names), *(None for _ in trouble)) for i, row in opened.items()]
    rows += [(i, *(None for _ in names), reason) for i, reason in lost.items()]
    return Table(
        ("run", *names, *trouble), tuple(sorted(rows, key=lambda row: row[0])), alt="What came out of each run."
    )


def _cell(value: object) -> Cell:
    """What a table takes: plain numbers, and everything else in words."""
    if value is None or isinstance(value, bool | str):
        return brief(value) if isinstance(value, str) else value
    if isinstance(value, Integral):
        return int(value)
    if isinstance(value, Real):
        return float(value)
    if isinstance(value, tuple):
        more = f" … ({len(value):,} in all)" if len(value) > NUMBERS else ""
        return ", ".join(f"{number:.3g}" for number in value[:NUMBERS]) + more
    return described(value)
