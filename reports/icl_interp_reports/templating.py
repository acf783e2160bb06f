"""The template engine, and the filters that make a block's content text: escaped, printable, cut where it runs on."""

from __future__ import annotations

import math
import re
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING

from icl_interp.calibration import in_percent
from icl_interp.probing import Cell, Estimate, Frames, Heatmap
from icl_interp_reports.formulas import mathml
from icl_interp_reports.numbers import numbers
from icl_interp_reports.reliability import beside, families, family, sampled
from icl_interp_reports.svg import heatmap_svg
from icl_interp_reports.words import OUTCOMES, brief, called, clean, label

if TYPE_CHECKING:
    from jinja2 import Environment

TABLE_ROWS = 300
PROSE = 5_000  # characters of a paragraph
ROLES = ("positive", "negative", "dummy", "mean", "mixed", "unstructured")
SYMBOLS = {
    "holds": "✓",
    "fails": "✗",
    "inconclusive": "?",
    "not_applicable": "–",
    "done": "✓",
    "skipped": "–",
    "failed": "✗",
    "broken": "✗",
    "reproduced": "✓",
    "differs": "✗",
    "does_not_hold": "≠",
    "undecided": "?",
    "not_reached": "…",
    "shown": "·",
}


@cache
def asset(name: str) -> str:
    """The text of a file among the templates."""
    return (files("icl_interp_reports") / "templates" / name).read_text(encoding="utf-8")


@cache
def environment() -> Environment:
    """The templates, with everything escaped that no filter has marked as markup of our own."""
    from jinja2 import Environment, FunctionLoader, StrictUndefined
    from markupsafe import Markup

    made = Environment(
        loader=FunctionLoader(asset), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    made.filters |= {"brief": brief, "label": label, "prose": _prose, "indented": _indented}
    made.filters |= {"number": _number, "in_brief": in_brief}
    made.filters |= {"mathml": lambda tex: Markup(formula) if (formula := mathml(tex)) else None}
    made.filters |= {"svg": lambda block: Markup(heatmap_svg(still(block)))}
    made.filters |= {"numbers": numbers, "kind": lambda block: type(block).__name__.lower()}
    made.filters |= {"called": called, "anchor": _anchor}
    made.filters |= {"percent": lambda share: "" if math.isnan(share) else in_percent(share)}
    made.filters |= {"beside": beside, "family": family, "families": families, "sampled": sampled}
    made.globals |= {"OUTCOMES": OUTCOMES, "ROLES": ROLES, "SYMBOLS": SYMBOLS, "TABLE_ROWS": TABLE_ROWS}
    made.tests |= {"estimate": lambda cell: isinstance(cell, Estimate), "a_number": _is_number}
    return made


def still(block: Heatmap | Frames) -> Heatmap:
    """A heat map as it is without a slider."""
    return block if isinstance(block, Heatmap) else block.at(len(block.moments) - 1)


def _prose(text: str) -> str:
    line = clean(text)
    return line if len(line) <= PROSE else f"{line[:PROSE]} … ({len(line) - PROSE:,} more characters)"


def _indented(line: str) -> str:
    stripped = line.lstrip(" ")
    return " " * (len(line) - len(stripped)) + brief(stripped)


def _number(value: float) -> str:
    return _typeset(f"{value:,}" if isinstance(value, int) else f"{value:.4g}")


def in_brief(estimate: Estimate) -> tuple[str, str]:
    """Value and interval as a table has room for: ± where the interval is as wide on both sides."""
    value, interval = estimate.written()
    aside = abs(estimate.value - (estimate.low + estimate.high) / 2)
    if interval != "exact" and math.isfinite(estimate.half) and aside <= 0.05 * estimate.half:
        half = f"{estimate.half:.{len(value.partition('.')[2])}f}"
        interval = f"± {half if float(half) and 'e' not in value else f'{estimate.half:.2g}'}"
    return _typeset(value), _typeset(interval)


def _typeset(number: str) -> str:
    return number.replace("inf", "∞").replace("-", "−")


def _anchor(name: str) -> str:
    """A name as the id of an element."""
    return f"made-{re.sub(r'[^a-zA-Z0-9.-]', '-', label(name))}"


def _is_number(cell: Cell) -> bool:
    return isinstance(cell, int | float | Estimate) and not isinstance(cell, bool)
