"""Reproductions as one HTML page (see `page`): every claim of the paper beside our number, then our figures."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version
from typing import TYPE_CHECKING

from icl_interp_reports.page import drawn, filled
from icl_interp_reports.words import label, outcomes

if TYPE_CHECKING:
    from icl_interp.reproduce.results import Reproduction


def gallery_html(reproductions: Sequence[Reproduction]) -> str:
    """One self-contained page, in the order given; the same reproductions give the same text."""
    blocks = {f"f{i}-{j}": block for i, each in enumerate(reproductions) for j, block in enumerate(each.blocks)}
    return filled(
        "gallery.html",
        drawn(blocks),
        version=version("icl-interp"),
        reproductions=reproductions,
        counts=outcomes(reproductions),
        tallies=[outcomes([each]) for each in reproductions],
        schedules=", ".join(dict.fromkeys(label(each.schedule) for each in reproductions)),
        left_out={},
    )
