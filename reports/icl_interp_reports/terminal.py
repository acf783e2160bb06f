"""The verdict table as plain text, one claim a paragraph, for a terminal."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING

from icl_interp_reports.words import brief, clean, headline, number, settings

if TYPE_CHECKING:
    from icl_interp.analysis import Analysis

WIDTH = 110


def to_text(analysis: Analysis) -> str:
    """Provenance, then every claim with its status, number and sentence, then what was not measured."""
    lines = [headline(analysis), *settings(analysis), ""]
    for outcome in analysis:
        lines.append(brief(outcome.title))
        if outcome.status != "done":
            lines.append(f"  {outcome.status.replace('_', ' ')}: {brief(outcome.reason)}")
        for verdict in outcome.verdicts:
            status = verdict.status.replace("_", " ")
            lines.append(f"  {status:<15}{brief(verdict.claim):<25} {number(verdict)}".rstrip())
            lines += textwrap.wrap(clean(verdict.sentence), WIDTH, initial_indent=" " * 17, subsequent_indent=" " * 17)
        lines.append("")
    return "\n".join(lines)
