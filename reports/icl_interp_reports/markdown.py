"""The analysis as Markdown: verdicts first, then what each probe measured, as tables; pictures by their alt text."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from icl_interp.probing import Block, Outcome, Table, Text
from icl_interp_reports.reliability import beside, families, sampled
from icl_interp_reports.words import OUTCOMES, brief, called, clean, headline, number, settings

if TYPE_CHECKING:
    from icl_interp.analysis import Analysis
    from icl_interp.reproduce.results import Reproduction


def to_markdown(analysis: Analysis) -> str:
    """A document that reads the same on a forge and in a terminal; the same analysis gives the same text."""
    parts = [f"# {escape(headline(analysis))}", "\n".join(f"- {escape(line)}" for line in settings(analysis))]
    parts += ["## Verdicts", _verdicts(analysis)]
    if named := families(analysis):
        items = [f"- {escape(name)}: {escape(title)}" for name, title in named.items()]
        parts += ["Models of known truth that are named in the table:", "\n".join(items)]
    for outcome in analysis:
        parts += [f"## {escape(brief(outcome.title))}", *_outcome(outcome, analysis.provenance.budget)]
    return "\n\n".join(parts) + "\n"


def gallery_markdown(reproductions: Sequence[Reproduction]) -> str:
    """Every claim of the paper beside what came out here, then a part for each figure."""
    columns = ("figure", "the paper says", "paper", "ours, 95 % interval", "verdict")
    rows = [
        (called(each.name), c.claim, c.paper, str(c.ours or ""), OUTCOMES[c.status])
        for each in reproductions
        for c in each.claims
    ]
    parts = ["# Figures and tables of arXiv 2503.12734 and 2408.04532, done again", table(columns, rows)]
    for each in reproductions:
        parts += [f"## {escape(called(each.name))}: {escape(brief(each.title))}", *_reproduction(each)]
    return "\n\n".join(parts) + "\n"


def _reproduction(reproduction: Reproduction) -> Iterable[str]:
    yield escape(f"In the paper: {brief(reproduction.source)}.")
    if reproduction.failure:
        yield f"*failed*: {escape(brief(reproduction.failure))}"
    for claim in reproduction.claims:
        yield f"*{escape(OUTCOMES[claim.status])}*: {escape(claim.claim)}. {escape(claim.sentence)}"
    for block in reproduction.blocks:
        yield _block(block)
    trained = "; ".join(f"{name}: {words}" for name, words in reproduction.runs.items())
    yield escape(f"Trained for it: {trained or 'nothing'}. Made by: {reproduction.command}")


def _verdicts(analysis: Analysis) -> str:
    rows = [
        (v.status.replace("_", " "), v.claim, number(v), v.sentence, beside(o, v), v.source)
        for o in analysis
        for v in o.verdicts
    ]
    return table(("status", "claim", "value, 95 % interval", "what was found", "how reliable", "source"), rows)


def _outcome(outcome: Outcome, budget: int) -> Iterable[str]:
    if outcome.reason or outcome.status != "done":
        yield f"*{outcome.status.replace('_', ' ')}*: {escape(brief(outcome.reason))}"
    if said := sampled(outcome, budget):
        yield escape(f"{said[:1].upper()}{said[1:]}.")
    for block in outcome.blocks:
        yield _block(block)


def _block(block: Block) -> str:
    if isinstance(block, Table):
        title = f"**{escape(block.title)}**\n\n" if block.title else ""
        return title + table(block.columns, block.rows)
    if isinstance(block, Text):
        return escape(block.text)
    return f"*{type(block).__name__}: {escape(block.alt)}*"


def table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Columns and rows; cells are escaped, floats have four digits."""
    lines = [_row(columns), _row(["---"] * len(columns)), *(_row([_cell(cell) for cell in row]) for row in rows)]
    return "\n".join(lines)


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell if cell == "---" else escape(cell) for cell in cells) + " |"


def _cell(cell: object) -> str:
    if cell is None:
        return ""
    return f"{cell:.4g}" if isinstance(cell, float) else str(cell)


def escape(text: str) -> str:
    """Text that Markdown shows as it is: no markup, no HTML, no line breaks."""
    line = re.sub(r"([\\`*_\[\]<>|#~&$])", r"\\\1", clean(text))
    line = re.sub(r"^([-+=])(?=[-+= ]|$)", r"\\\1", line)  # else a list, a rule or a heading's underline
    return re.sub(r"^(\d+)([.)])(?= |$)", r"\1\\\2", line)
