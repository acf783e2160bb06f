"""Analyses side by side: which verdicts changed, and what probes show first, in one table and on one scale.

What a probe puts on a report's first screen (roles, ω, μ, risks, circuits) is what is compared.  Tables of one kind are
stacked, heat maps stand side by side; so a new probe is compared as soon as it shows something there.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd

from icl_interp.analysis import Analysis, Checkpoint, analyze
from icl_interp.analysis_files import is_report, load_analysis
from icl_interp.errors import ConfigError
from icl_interp.formats.files import write_file
from icl_interp.probing import Cell, Heatmap, Table, Verdict

FEWEST, MOST = 2, 12
RUN = "run"  # the column that says which of the compared a row is of


@dataclass(frozen=True)
class Compared:
    """One claim, judged of each run; None where a run's analysis does not judge it."""

    probe: str
    claim: str
    verdicts: tuple[Verdict | None, ...]

    @property
    def changed(self) -> bool:
        """Whether the runs differ in it."""
        return len({verdict.status if verdict else None for verdict in self.verdicts}) > 1


@dataclass(frozen=True, eq=False)
class Comparison:
    """Two to a dozen analyses, each under a name of its own."""

    names: tuple[str, ...]
    analyses: tuple[Analysis, ...]

    @cached_property
    def claims(self) -> tuple[Compared, ...]:
        """Every claim that any of them judges, those that changed first."""
        found: dict[tuple[str, str], list[Verdict | None]] = {}
        for index, analysis in enumerate(self.analyses):
            for outcome in analysis:
                for verdict in outcome.verdicts:
                    row = found.setdefault((outcome.probe, verdict.claim), [None] * len(self.analyses))
                    row[index] = verdict
        claims = [Compared(probe, claim, tuple(verdicts)) for (probe, claim), verdicts in found.items()]
        return tuple(sorted(claims, key=lambda claim: not claim.changed))

    @property
    def changed(self) -> tuple[Compared, ...]:
        """The claims in which the runs differ."""
        return tuple(claim for claim in self.claims if claim.changed)

    @property
    def verdicts(self) -> pd.DataFrame:
        """A row a claim and run: probe, claim, run, status, value, low, high (NaN without a number)."""
        columns = ["probe", "claim", "run", "status", "value", "low", "high"]
        rows = [
            (claim.probe, claim.claim, name, verdict.status, *_numbers(verdict))
            for claim in self.claims
            for name, verdict in zip(self.names, claim.verdicts, strict=True)
            if verdict is not None
        ]
        return pd.DataFrame(rows, columns=columns)

    @cached_property
    def blocks(self) -> tuple[tuple[str, Table | Heatmap], ...]:
        """By probe, what their reports show first: a table of all runs' rows, heat maps of all runs on one scale."""
        probes = list(dict.fromkeys(outcome.probe for analysis in self.analyses for outcome in analysis))
        return tuple((probe, block) for probe in probes for block in self._of(probe))

    def _of(self, probe: str) -> Iterator[Table | Heatmap]:
        shown = [_first_screen(analysis, probe) for analysis in self.analyses]
        for kind in (Table, Heatmap):
            each = [[block for block in blocks if isinstance(block, kind)] for blocks in shown]
            for place in range(max(map(len, each))):
                there = {
                    name: blocks[place] for name, blocks in zip(self.names, each, strict=True) if place < len(blocks)
                }
                yield from _stacked(there) if kind is Table else _side_by_side(there)  # type: ignore[arg-type]

    @property
    def cautions(self) -> tuple[str, ...]:
        """Why numbers of two runs may differ for another reason than the runs, a sentence each."""
        sentences = {
            "task": "The runs are read under different tasks, so their risks are not of the same prompts.",
            "analysis_seed": "The analyses draw with different seeds, so their prompts differ.",
            "budget": "The analyses had different budgets of prompts.",
            "versions": "The analyses were made by different versions.",
        }
        values = {part: {repr(getattr(a.provenance, part)) for a in self.analyses} for part in sentences}
        return tuple(sentences[part] for part, different in values.items() if len(different) > 1)

    def to_html(self, path: str | Path | None = None) -> str | None:
        """The comparison as one offline HTML page; given a `path`, it is written there, not returned.

        Raises:
            SaveError: `path` could not be written.
        """
        from icl_interp_reports import comparison_html

        page = comparison_html(self)
        if path is None:
            return page
        write_file(path, page)
        return None

    def __repr__(self) -> str:
        return f"<Comparison of {', '.join(self.names)}: {len(self.changed)} of {len(self.claims)} claims differ>"

    def __str__(self) -> str:
        from icl_interp_reports import comparison_text

        return comparison_text(self)


def compare(
    *checkpoints: Checkpoint | Analysis,
    names: Sequence[str] | None = None,
    probes: str | Sequence[str] | None = None,
    seed: int = 0,
    budget: int | None = None,
) -> Comparison:
    """Analyses of two to a dozen runs, side by side.

    Args:
        checkpoints: whatever `analyze` takes, which is then analyzed, all on the same prompts; analyses; or reports
            (report.json, report.html), which are read.
        names: what to call them; None means their folders' names.
        probes, seed, budget: as for `analyze`.

    Raises:
        CheckpointError: a checkpoint that cannot be opened, or a report that cannot be read.
        ConfigError: fewer than two or more than twelve, names that are not as many or not distinct; what `analyze`
            refuses.
    """
    if not FEWEST <= len(checkpoints) <= MOST:
        raise ConfigError(f"{FEWEST} to {MOST} runs or reports can be compared, got {len(checkpoints)}")

    def analysis(checkpoint: Checkpoint | Analysis) -> Analysis:
        if isinstance(checkpoint, Analysis):
            return checkpoint
        if isinstance(checkpoint, str | Path) and is_report(checkpoint):
            return load_analysis(checkpoint)
        return analyze(checkpoint, probes=probes, seed=seed, budget=budget)

    if names is not None and not len(set(names)) == len(names) == len(checkpoints):
        raise ConfigError(f"names must be distinct, one for each of {len(checkpoints)} runs, got {list(names)!r}")
    analyses = tuple(analysis(checkpoint) for checkpoint in checkpoints)
    return Comparison(tuple(names or _names([a.provenance.origin for a in analyses])), analyses)


def _names(origins: Sequence[str]) -> tuple[str, ...]:
    """The last part of each origin where those differ, else the origins, numbered where two are called the same."""
    last = [Path(origin).name or origin for origin in origins]
    names = last if len(set(last)) == len(last) else list(origins)
    counts, seen = Counter(names), Counter[str]()
    for index, name in enumerate(names):
        seen[name] += 1
        names[index] = f"{name} ({seen[name]})" if counts[name] > 1 else name
    return tuple(names)


def _numbers(verdict: Verdict) -> tuple[float, float, float]:
    estimate = verdict.estimate
    return (estimate.value, estimate.low, estimate.high) if estimate else (np.nan, np.nan, np.nan)


def _first_screen(analysis: Analysis, probe: str) -> list[Table | Heatmap]:
    blocks = [block for outcome in analysis if outcome.probe == probe for block in outcome.blocks]
    return [block for block in blocks if isinstance(block, Table | Heatmap) and block.first_screen]


def _stacked(tables: dict[str, Table]) -> Iterator[Table]:
    """One table of all their rows, under all their columns."""
    columns = tuple(dict.fromkeys(column for table in tables.values() for column in table.columns))
    rows: list[tuple[Cell, ...]] = []
    for name, table in tables.items():
        for row in table.rows:
            cells = dict(zip(table.columns, row, strict=True))
            rows.append((name, *(cells.get(column) for column in columns)))
    if rows:
        yield Table((RUN, *columns), tuple(rows), _alt(tables), _title(tables))


def _side_by_side(heatmaps: dict[str, Heatmap]) -> Iterator[Heatmap]:
    """One row of all their panels for each shape that they have."""
    shapes: dict[tuple[object, ...], dict[str, Heatmap]] = {}
    for name, block in heatmaps.items():
        shapes.setdefault((*block.matrices.shape[1:], block.row_labels, block.column_labels), {})[name] = block
    for alike in shapes.values():
        first = next(iter(alike.values()))
        panels = tuple(f"{name}: {panel}" for name, block in alike.items() for panel in block.panels)
        matrices = np.concatenate([block.matrices for block in alike.values()])
        yield replace(first, matrices=matrices, panels=panels, alt=_alt(alike), title=_title(alike))


def _title(blocks: dict[str, Table] | dict[str, Heatmap]) -> str:
    return " · ".join(dict.fromkeys(block.title for block in blocks.values()))


def _alt(blocks: dict[str, Table] | dict[str, Heatmap]) -> str:
    return f"Of {len(blocks)} runs: {next(iter(blocks.values())).alt}"
