"""The analysis as one HTML page (see `page`).  How the file stays small is told in reports/README.md."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from icl_interp.probing import Block, Frames, Heatmap, Need, Outcome, Status, Table, Verdict
from icl_interp_reports.numbers import numbers
from icl_interp_reports.page import drawn, filled, script_json
from icl_interp_reports.svg import heatmap_svg
from icl_interp_reports.templating import environment, still
from icl_interp_reports.words import LONGEST, assumptions, brief, described, facts

if TYPE_CHECKING:
    from icl_interp.analysis import Analysis, Provenance

LIMIT = 2_200_000  # bytes
SMALLEST = 200  # bytes that are worth a note in their place
BOOK = 50_000  # bytes
OURS = "a run of icl-interp"  # a format that says all there is to say
_LOOKS_AT = {
    Need.WEIGHTS: "the weights",
    Need.FORWARD: "predictions",
    Need.TASK: "prompts of the task",
    Need.DYNAMICS: "the record of the training",
}
_PROMPTS = {
    "the run's own": "From the distribution that the model was trained on, as the run recorded it.",
    "given": "From the distribution that was given, whatever the model was trained on.",
    "unknown": "None: what needs prompts was skipped.",
    "unavailable: a user's own": "None, and what needs prompts was skipped: a user's own task is not in the file; pass "
    "it again as task=.",
}


def to_html(analysis: Analysis) -> str:
    """One self-contained page of at most 2.2 MB; the same analysis gives the same text.

    What would make it larger is left out, the largest part first, with a note in its place.
    """
    page = _Page(analysis)
    text = page.render()
    while (excess := len(text.encode()) - LIMIT) > 0 and page.drop(excess):
        text = page.render()
    return text


@dataclass
class _Page:
    """What the template is filled with.  Figures, static pictures, tables and results are what can be left out.

    `left_out` holds their sizes: "f0-1" is the figure of card 0's block 1, "f0-1-still" and "f0-1-table" what is
    beneath it, all else stands in `results`.
    """

    analysis: Analysis
    blocks: dict[str, Block] = field(init=False)
    figures: dict[str, str] = field(init=False)
    results: dict[str, Any] = field(init=False)
    left_out: dict[str, int] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        self.blocks = {f"f{i}-{j}": block for i, o in enumerate(self.analysis) for j, block in enumerate(o.blocks)}
        self.figures = drawn(self.blocks)
        self.results = {**self.analysis.to_data()}

    def drop(self, excess: int) -> bool:
        """Leave out the largest parts until `excess` bytes are gone; False if there is nothing left to leave out.

        Words in the results, such as claims and provenance, go when nothing else is left, unless they fill a book.
        """
        results = self._results()
        parts = {**self.figures, **dict(self._beneath())}
        parts |= {name: script_json(holder[key]) for name, (holder, key) in results.items()}
        sizes = {name: len(text.encode()) for name, text in parts.items()}
        words = {name for name, (_, key) in results.items() if key not in ("circuits", "result") and sizes[name] < BOOK}
        large = {name for name, size in sizes.items() if size >= SMALLEST}
        for name in sorted(large - words or large, key=lambda name: (-sizes[name], name)):
            if excess <= 0:
                break
            self.left_out[name] = sizes[name]
            self.figures.pop(name, None)
            if name in results:
                holder, key = results[name]
                holder[key] = {"left_out": f"{sizes[name]:,} bytes: the page would be too large; `to_json` has them"}
            excess -= sizes[name]
        return bool(large)

    def _beneath(self) -> Iterator[tuple[str, str]]:
        """Static pictures and tables that are in the page, as markup."""
        written: Any = environment().get_template("blocks.html").module
        for name, block in self.blocks.items():
            if isinstance(block, Heatmap | Frames) and f"{name}-still" not in self.left_out:
                yield f"{name}-still", heatmap_svg(still(block))
            table = block if isinstance(block, Table) else numbers(block)
            if table is not None and f"{name}-table" not in self.left_out:
                yield f"{name}-table", written.table(table)

    def _first_screen(self) -> Iterator[Table | Heatmap]:
        for name, block in self.blocks.items():
            part = f"{name}-{'table' if isinstance(block, Table) else 'still'}"
            if isinstance(block, Table | Heatmap) and block.first_screen and part not in self.left_out:
                yield block

    def _results(self) -> dict[str, tuple[dict[str, Any], str]]:
        """What can be left out of the results, by the dictionary that holds it and its key there."""
        holders = {"provenance": self.results["provenance"], "results": self.results}
        holders |= {f"probe {name}": probe for name, probe in self.results["probes"].items()}
        found = {f"{where}: {key}": (holder, key) for where, holder in holders.items() for key in holder}
        return {name: at for name, at in found.items() if name not in ("results: provenance", "results: probes")}

    def render(self) -> str:
        p = self.analysis.provenance
        return filled(
            "report.html",
            self.figures,
            version=p.versions["icl-interp"],
            analysis=self.analysis,
            provenance=p,
            facts=facts(self.analysis),
            assumed=assumptions(p),
            prompts=_PROMPTS.get(p.task_from, f"Task: {p.task_from}."),
            cards=list(_cards(self.analysis)),
            tally=_tally(v for o in self.analysis for v in o.verdicts),
            summary=sorted(self._first_screen(), key=lambda block: isinstance(block, Heatmap)),
            left_out=self.left_out,
            results=script_json(self.results),
        )


@dataclass(frozen=True)
class _Card:
    """An outcome and what the page says around it."""

    id: str
    outcome: Outcome
    tally: dict[Status, int]
    looked_at: str
    prompts: bool
    snippet: str


def _cards(analysis: Analysis) -> Iterator[_Card]:
    taken: set[str] = set()
    for i, outcome in enumerate(analysis):
        named = re.fullmatch(r"[a-z][a-z0-9_]{,60}", outcome.probe) and outcome.probe not in taken
        taken.add(outcome.probe)
        looked_at = [words for need, words in _LOOKS_AT.items() if need in outcome.looked_at]
        yield _Card(
            id=f"probe-{outcome.probe}" if named else f"probe-{i}",
            outcome=outcome,
            tally=_tally(outcome.verdicts),
            looked_at=", ".join(looked_at),
            prompts=Need.TASK in outcome.looked_at,
            snippet=_snippet(analysis, outcome),
        )


def _tally(verdicts: Iterable[Verdict]) -> dict[Status, int]:
    counts = Counter(verdict.status for verdict in verdicts)
    return {status: counts[status] for status in ("holds", "fails", "inconclusive", "not_applicable") if counts[status]}


def _snippet(analysis: Analysis, outcome: Outcome) -> str:
    """The lines of Python that give the outcome again."""
    if outcome.status == "broken":
        return ""
    p = analysis.provenance
    imports, before = ["import icl_interp as icl"], []
    if outcome.source.endswith(".py"):
        imports.append("from icl_interp.probes import load_file")
        before.append(f"load_file({outcome.source!r})")
    elif re.fullmatch(r"[a-z][\w.]*", outcome.source, re.ASCII) and not outcome.source.startswith("icl_interp_probes."):
        imports.append(f"import {outcome.source}  # declares the probe")
    before.append(f"checkpoint = {_opened(p)}")
    task = ""
    if p.task_from == "given":
        task, said = ", task", described(p.task)
        kind = said.partition("(")[0]
        written = kind in ("LinearRegression", "MultiTaskRegression", "SparseRegression") and len(said) <= LONGEST
        before.append(f"task = {said}" if written else f"task = ...  # {said}")
        if written:
            imports.append(f"from icl_interp.tasks import {kind}{', kms' if 'kms(' in said else ''}")
    call = f"icl.analyze(checkpoint{task}, probes=[{outcome.probe!r}], seed={p.analysis_seed}, budget={p.budget})"
    after = [f"result = {call}", f"result[{outcome.probe!r}].value  # what was measured", "result.verdicts"]
    return "\n".join([*imports, "", *before, *after])


def _opened(p: Provenance) -> str:
    """The path, or how a file of another make is opened: with the sizes that it may not say."""
    if not p.on_disk:
        return f"...  # {brief(p.origin)}"
    if p.format in ("", OURS):
        return repr(p.origin)
    sizes = {name: getattr(p.model, name) for name in ("dim", "n_outputs", "n_heads", "attn_scale", "mask")}
    plain = {"attn_scale": None, "mask": "demonstrations"}  # what is there without a word
    told = [f"{name}={value!r}" for name, value in sizes.items() if name not in plain or value != plain[name]]
    return f"icl.Run.load({p.origin!r}, {', '.join(told)})"
