"""Analyses side by side, as an HTML page (see `page`) and for a terminal."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING

from icl_interp.probing import Block, Cell, Estimate, Table, Verdict
from icl_interp_reports.page import drawn, filled
from icl_interp_reports.plots import Axis, Dot, axis_around, plot_svg
from icl_interp_reports.terminal import aligned
from icl_interp_reports.words import brief, facts, label

if TYPE_CHECKING:
    from icl_interp.comparison import Comparison

COLOURS = 7  # of dots, in the style sheet
ROOM = 0.6  # of the distance between two runs, for the dots of one


@dataclass(frozen=True)
class _Pictured:
    """One column of a table of all runs, drawn on one scale."""

    name: str
    svg: str


def comparison_html(comparison: Comparison) -> str:
    """One self-contained page; the same comparison gives the same text."""
    blocks: dict[str, Block] = {f"f{i}": block for i, (_, block) in enumerate(comparison.blocks)}
    cards: dict[str, list[tuple[str, Block, list[_Pictured], list[tuple[str, str]]]]] = {}
    for (probe, block), id in zip(comparison.blocks, blocks, strict=True):
        pictured = list(_pictured(comparison, block)) if isinstance(block, Table) else []
        legend = _legend(block) if isinstance(block, Table) and pictured else []
        cards.setdefault(probe, []).append((id, block, pictured, legend))
    return filled(
        "compare.html",
        drawn(blocks),
        version=version("icl-interp"),
        names=[label(name) for name in comparison.names],
        runs=_runs(comparison),
        cautions=comparison.cautions,
        changed=comparison.changed,
        alike=[claim for claim in comparison.claims if not claim.changed],
        cards=cards,
        left_out={},
    )


def comparison_text(comparison: Comparison) -> str:
    """Which claims changed, then the tables."""
    lines = [*map(brief, comparison.cautions)]
    lines += [f"{len(comparison.changed)} of {len(comparison.claims)} claims differ", ""]
    rows = tuple((f"{c.probe}.{c.claim}", *(_in_brief(v) for v in c.verdicts)) for c in comparison.changed)
    lines += aligned(Table(("claim", *comparison.names), rows, "What differs."))
    for _, block in comparison.blocks:
        if isinstance(block, Table):
            lines += ["", brief(block.title), *aligned(block)]
    return "\n".join(lines)


def _in_brief(verdict: Verdict | None) -> str:
    if verdict is None:
        return "—"
    return f"{verdict.status.replace('_', ' ')} {verdict.estimate.written()[0] if verdict.estimate else ''}".strip()


def _runs(comparison: Comparison) -> Table:
    said = [facts(analysis) for analysis in comparison.analyses]
    names = list(dict.fromkeys(name for each in said for name in each))
    rows = tuple(
        (i + 1, name, *(each.get(fact) for fact in names))
        for i, (name, each) in enumerate(zip(comparison.names, said, strict=True))
    )
    return Table(("number", "run", *names), rows, "The runs that are compared.")


# --- Tables as pictures ----------------------------------------------------------------------------------------------


def _pictured(comparison: Comparison, table: Table) -> Iterator[_Pictured]:
    """Each column of numbers, runs along the x axis: a dot and its interval for each of a run's rows."""
    places = {name: i + 1 for i, name in enumerate(comparison.names)}
    keys = _keys(table)
    across = Axis("run", 0.5, len(places) + 0.5, whole=True)
    for column, name in enumerate(table.columns[2:], start=2):
        there = [(row, row[column]) for row in table.rows if _finite(row[column])]
        if not there:
            continue
        ends = [end for _, cell in there for end in _ends(cell)]
        dots = [
            Dot(
                places[str(row[0])] + ROOM * ((keys.index(row[1]) + 0.5) / len(keys) - 0.5),
                _ends(cell)[0],
                f"c{keys.index(row[1]) % COLOURS}",
                f"{row[0]}, {table.columns[1]} {row[1]}: {cell}",
                *_ends(cell)[1:],
            )
            for row, cell in there
        ]
        alt = f"{name} of every run, in the order of the runs."
        yield _Pictured(label(name), plot_svg(alt, across, axis_around(name, ends, log=False), dots=dots))


def _keys(table: Table) -> list[Cell]:
    """What tells a run's rows apart: heads, or predictors."""
    return list(dict.fromkeys(row[1] for row in table.rows))


def _legend(table: Table) -> list[tuple[str, str]]:
    return [
        (f"c{i % COLOURS}", f"{table.columns[1]} {key}" if isinstance(key, int) else str(key))
        for i, key in enumerate(_keys(table))
    ]


def _finite(cell: Cell) -> bool:
    return isinstance(cell, float | Estimate) and all(abs(end) < 1e300 for end in _ends(cell))


def _ends(cell: Cell) -> tuple[float, ...]:
    """The value, and the ends of its interval if it has one."""
    if isinstance(cell, Estimate):
        return cell.value, cell.low, cell.high
    return (float(cell),) if isinstance(cell, float) else ()
