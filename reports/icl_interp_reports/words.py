"""Words that every kind of report shares."""

from __future__ import annotations

from typing import TYPE_CHECKING

from icl_interp.probing import Verdict

if TYPE_CHECKING:
    from icl_interp.analysis import Analysis

LONGEST = 500  # characters of what a file or a plugin named; prose is never cut


def headline(analysis: Analysis) -> str:
    """Which checkpoint this is about."""
    return f"icl-interp: {brief(analysis.provenance.origin)}"


def settings(analysis: Analysis) -> list[str]:
    """Model, task and sampling, a line each."""
    p = analysis.provenance
    trained = ", ".join(
        f"{word} {value:,}" for word, value in (("step", p.step), ("seed", p.training_seed)) if value is not None
    )
    m = p.model
    layers = "one layer" if m.n_layers == 1 else f"{m.n_layers} layers"
    heads = "one head" if m.n_heads == 1 else f"{m.n_heads} heads"
    return [
        f"model: {layers}, {heads}, d = {m.dim}, N = {m.n_outputs}" + (f"; {trained}" if trained else ""),
        f"task ({brief(p.task_from)}): {brief(repr(p.task))}",
        f"sampling: {p.budget:,} prompts a measurement, seed {p.analysis_seed}",
    ]


def number(verdict: Verdict) -> str:
    """Value, interval and threshold."""
    if verdict.estimate is None:
        return ""
    e = verdict.estimate
    interval = "exact" if e.covers == "exact" else f"[{e.low:.4g}, {e.high:.4g}]"
    return f"{e.value:.4g} {interval}" + (f", wanted {verdict.threshold}" if verdict.threshold else "")


def brief(text: str) -> str:
    """One printable line, cut where it runs on."""
    line = clean(text)
    return line if len(line) <= LONGEST else f"{line[:LONGEST]} … ({len(line) - LONGEST:,} more characters)"


def clean(text: str) -> str:
    """One printable line: what comes from a checkpoint must not steer a terminal."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in " ".join(text.split()))
