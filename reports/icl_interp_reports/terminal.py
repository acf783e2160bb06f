"""What a terminal shows: the verdict table, one claim a paragraph; runs and circuits in a line, or with their heads."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from icl_interp.probing import Cell, Outcome, Table, Verdict
from icl_interp_reports.population import counted, runs_in_words
from icl_interp_reports.prompts import prompt_numbers, prompt_sizes, prompt_table
from icl_interp_reports.reliability import beside, families, sampled
from icl_interp_reports.words import (
    OUTCOMES,
    assumptions,
    brief,
    called,
    clean,
    head_rows,
    headline,
    number,
    outcomes,
    run_facts,
    settings,
    size,
    told,
)

if TYPE_CHECKING:
    from icl_interp.analysis import Analysis
    from icl_interp.circuits import Circuits
    from icl_interp.records import Run, Runs
    from icl_interp.reproduce.results import Reproduction
    from icl_interp.tasks import Prompt

WIDTH = 110


def to_text(analysis: Analysis) -> str:
    """Provenance, then every claim with its status, number, sentence and reliability, then what was not measured."""
    lines = [headline(analysis), *settings(analysis), ""]
    for outcome in analysis:
        lines += [*_outcome(outcome, analysis.provenance.budget), ""]
    if named := families(analysis):
        lines.append("Models of known truth that are named above")
        for name, title in named.items():
            lines += _wrapped(f"{name}: {title}", "  ")
        lines.append("")
    return "\n".join(lines)


def _outcome(outcome: Outcome, budget: int) -> Iterator[str]:
    yield brief(outcome.title)
    if outcome.reason or outcome.status != "done":
        yield f"  {outcome.status.replace('_', ' ')}: {brief(outcome.reason)}"
    if said := sampled(outcome, budget):
        yield f"  {said}"
    for verdict in outcome.verdicts:
        status = verdict.status.replace("_", " ")
        yield f"  {status:<15}{brief(verdict.claim):<25} {number(verdict)}".rstrip()
        yield from _wrapped(verdict.sentence, " " * 17)
        yield from _wrapped(beside(outcome, verdict), " " * 17)


def analysis_in_a_line(analysis: Analysis) -> str:
    """What it is about, and how many claims hold."""
    said = _counted(verdict for outcome in analysis for verdict in outcome.verdicts)
    return f"<Analysis of {brief(analysis.provenance.origin)}: {said or 'no claims'}; print() it for all of them>"


def outcome_in_a_line(outcome: Outcome) -> str:
    """How many claims hold; or why there are none."""
    said = brief(outcome.reason) or _counted(outcome.verdicts) or outcome.status
    return f"<Outcome of {brief(outcome.probe)}: {said}>"


def run_in_a_line(run: Run) -> str:
    """Model, loss and origin."""
    facts = run_facts(run)
    loss = f"; loss {run.dynamics.loss[-1]:.4g}" if run.dynamics is not None else ""
    return f"<Run of {facts['model']}{loss}; {facts['origin']}>"


def run_text(run: Run) -> str:
    """All that is known of a run, and each head's ω and μ."""
    return "\n".join([*told(run_facts(run), assumptions(run)), "", *_heads(run.circuits())])


def runs_in_a_line(runs: Runs) -> str:
    """How many, and where; no folder is opened."""
    return f"Runs({counted(runs)})"


def runs_text(runs: Runs) -> str:
    """What the first runs share, and a row for each."""
    facts, table = runs_in_words(runs)
    return "\n".join([*told(facts), "", *aligned(table)]).strip()


def prompt_in_a_line(prompt: Prompt) -> str:
    """Sizes and kind of numbers, none of which are read."""
    return f"<Prompt of {len(prompt):,}: {prompt_sizes(prompt)}; {prompt_numbers(prompt)}>"


def prompt_text(prompt: Prompt) -> str:
    """Sizes, and the range of each of the four tensors."""
    return "\n".join([prompt_in_a_line(prompt)[1:-1], *aligned(prompt_table(prompt))])


def circuits_in_a_line(circuits: Circuits) -> str:
    """Sizes."""
    return f"<Circuits of {size(circuits.n_layers, circuits.n_heads)}, d = {circuits.dim}, N = {circuits.n_outputs}>"


def circuits_text(circuits: Circuits) -> str:
    """Sizes, and each head's ω and μ."""
    return "\n".join([circuits_in_a_line(circuits)[1:-1], *_heads(circuits)])


def reproduction_in_a_line(reproduction: Reproduction) -> str:
    """How many of the paper's claims came out how."""
    said = ", ".join(f"{count} {OUTCOMES[status]}" for status, count in outcomes([reproduction]).items())
    return f"<Reproduction of {called(reproduction.name)}: {said or 'no claims'}; print() it for all of them>"


def reproduction_text(reproduction: Reproduction) -> str:
    """Its title, and a line a claim: the verdict, what the paper says, its number and ours."""
    lines = [f"{called(reproduction.name)}: {brief(reproduction.title)}"]
    if reproduction.failure:
        lines.append(f"  failed: {brief(reproduction.failure)}")
    for claim in reproduction.claims:
        numbers = [f"paper {brief(claim.paper)}"] if claim.paper else []
        numbers += [f"ours {str(claim.ours).removesuffix(' exact')}"] if claim.ours is not None else []
        more = f": {clean(claim.sentence)}" if claim.status in ("differs", "does_not_hold") else ""
        beside = f" ({'; '.join(numbers)})" if numbers else ""
        lines.append(f"  {OUTCOMES[claim.status]}: {clean(claim.claim)}{beside}{more}")
    return "\n".join(lines)


def aligned(table: Table) -> list[str]:
    """Columns as wide as what is in them: numbers to the right, words to the left."""
    if not table.rows:
        return []
    columns = []
    for name, *cells in zip(table.columns, *table.rows, strict=True):
        said, wide = [name, *map(_said, cells)], max(map(len, [name, *map(_said, cells)]))
        right = any(isinstance(cell, int | float) for cell in cells)
        columns.append([text.rjust(wide) if right else text.ljust(wide) for text in said])
    return ["  ".join(line).rstrip() for line in zip(*columns, strict=True)]


def _said(cell: Cell) -> str:
    if cell is None:
        return ""
    return f"{cell:.4g}" if isinstance(cell, float) else clean(str(cell))


def _wrapped(text: str, indent: str) -> list[str]:
    return textwrap.wrap(clean(text), WIDTH, initial_indent=indent, subsequent_indent=indent)


def _counted(verdicts: Iterable[Verdict]) -> str:
    counts = Counter(verdict.status.replace("_", " ") for verdict in verdicts)
    return ", ".join(f"{count} {status}" for status, count in counts.items())


def _heads(circuits: Circuits) -> list[str]:
    columns, rows = head_rows(circuits)
    lines = [columns, *([f"{cell:.4g}" for cell in row] for row in rows)]
    return ["".join(f"{cell:>12}" if i > 1 else f"{cell:<6}" for i, cell in enumerate(line)).rstrip() for line in lines]
