"""Words that every kind of report shares."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from icl_interp.probing import Verdict

if TYPE_CHECKING:
    from icl_interp.analysis import Analysis, Provenance
    from icl_interp.circuits import Circuits
    from icl_interp.config import ModelConfig
    from icl_interp.records import Run
    from icl_interp.reproduce.results import Reproduction

# What became of a claim of the paper, in words: what a reader has to know first stands first.
OUTCOMES = {
    "differs": "differs",
    "does_not_hold": "the paper's own statement does not hold",
    "undecided": "undecided",
    "not_reached": "needs the paper's schedule",
    "reproduced": "reproduced",
    "shown": "shown",
    "failed": "failed",
}
LONGEST = 500  # characters of what a file or a plugin named; prose is never cut
MOST_ASSUMED = 20  # sentences


def headline(analysis: Analysis) -> str:
    """Which checkpoint this is about."""
    return f"icl-interp: {brief(analysis.provenance.origin)}"


def settings(analysis: Analysis) -> list[str]:
    """Model, task, sampling and what was assumed, a line each."""
    return told(facts(analysis), assumptions(analysis.provenance))


def told(said: dict[str, str], assumed: Sequence[str] = ()) -> list[str]:
    """Facts, then assumptions, a line each."""
    return [*(f"{name}: {words}" for name, words in said.items()), *(f"assumed: {sentence}" for sentence in assumed)]


def facts(analysis: Analysis) -> dict[str, str]:
    """Format, model, task and sampling, in words."""
    p = analysis.provenance
    task = (
        {"task": f"not known: {_missing(p.model)}"}
        if p.task is None
        else {f"task ({brief(p.task_from)})": described(p.task)}
    )
    return {
        **_recognised(p),
        "model": _model(p.model, p.step, p.training_seed),
        **task,
        "sampling": f"up to {p.budget:,} prompts a measurement, seed {p.analysis_seed}",
    }


def run_facts(run: Run) -> dict[str, str]:
    """Format, model, task, training and origin, in words."""
    said = {
        **_recognised(run),
        "model": _model(run.model_config, run.step, run.seed),
        "task": described(run.task) if run.task is not None else f"not known: {_missing(run.model_config)}",
    }
    if run.training is not None:
        t = run.training
        said["training"] = f"{t.steps:,} steps of {t.batch_size:,} prompts, {t.optimizer}, lr {t.lr:g}"
    if run.dynamics is not None:
        said["loss"] = f"{run.dynamics.loss[-1]:.4g} at the end; {len(run.dynamics.steps):,} records"
    said["origin"] = brief(run.origin)
    if run.versions:
        said["versions"] = brief(", ".join(f"{name} {version}" for name, version in run.versions.items()))
    return said


def assumptions(opened: Provenance | Run) -> list[str]:
    """What the checkpoint did not say and was assumed, a sentence each."""
    more = len(opened.assumed) - MOST_ASSUMED
    return [*map(brief, opened.assumed[:MOST_ASSUMED]), *([f"and {more:,} things more"] if more > 0 else [])]


def _recognised(opened: Provenance | Run) -> dict[str, str]:
    return {"recognised as": brief(opened.format)} if opened.format else {}


def _missing(model: ModelConfig) -> str:
    """What a checkpoint without a task lacks, and how to give it."""
    options = "--length and --noise-var" if model.n_outputs == 1 else "--length, --noise-var and --supports"
    return f"L and σ² did not come with the checkpoint; pass task= to analyze(), or {options} on the command line"


def described(task: object) -> str:
    """A task in a line; a user's own may have any repr, or one that tells no more than where it lies in memory."""
    try:
        return re.sub(r" at 0x[0-9a-f]+", "", brief(repr(task)))
    except Exception:
        return f"a {type(task).__name__}"


def size(n_layers: int, n_heads: int) -> str:
    """Layers and heads."""
    layers = "one layer" if n_layers == 1 else f"{n_layers} layers"
    return f"{layers}, {'one head' if n_heads == 1 else f'{n_heads} heads'}"


def coordinates(dim: int, n_outputs: int) -> tuple[str, ...]:
    """Names of the residual stream's coordinates: "x0", "x1", … "y0", …"""
    return (*(f"x{i}" for i in range(dim)), *(f"y{n}" for n in range(n_outputs)))


def head_rows(circuits: Circuits) -> tuple[tuple[str, ...], tuple[tuple[int | float, ...], ...]]:
    """Columns and rows of a table with each head's ω and μ."""
    outputs = ("μ",) if circuits.n_outputs == 1 else tuple(f"μ_{n}" for n in range(circuits.n_outputs))
    rows = tuple(
        (layer, head, float(circuits.omega[layer, head]), *map(float, circuits.mu[layer, head]))
        for layer in range(circuits.n_layers)
        for head in range(circuits.n_heads)
    )
    return ("layer", "head", "ω", *outputs), rows


def _model(config: ModelConfig, step: int | None, seed: int | None) -> str:
    known = ", ".join(f"{word} {value:,}" for word, value in (("step", step), ("seed", seed)) if value is not None)
    sizes = f"{size(config.n_layers, config.n_heads)}, d = {config.dim}, N = {config.n_outputs}"
    return f"{sizes}; {known}" if known else sizes


def number(verdict: Verdict) -> str:
    """Value, interval and threshold."""
    if verdict.estimate is None:
        return ""
    return str(verdict.estimate) + (f", wanted {verdict.threshold}" if verdict.threshold else "")


def called(name: str) -> str:
    """A figure as people call it: "Figure 4" for "figure-4"."""
    kind, _, number = name.partition("-")
    return label(f"{kind.capitalize()} {number}" if number[:1].isdecimal() else name.replace("-", " ").capitalize())


def outcomes(reproductions: Sequence[Reproduction]) -> dict[str, int]:
    """How many claims came out how, figures that failed among them; in the order of `OUTCOMES`."""
    found = Counter(claim.status for each in reproductions for claim in each.claims)
    counts = {**found, "failed": sum(bool(each.failure) for each in reproductions)}
    return {status: counts[status] for status in OUTCOMES if counts.get(status)}


def brief(text: str) -> str:
    """One printable line, cut where it runs on."""
    line = clean(text)
    return line if len(line) <= LONGEST else f"{line[:LONGEST]} … ({len(line) - LONGEST:,} more characters)"


def label(text: str, longest: int = 80) -> str:
    """One printable line, as short as a heading or the name of a curve has to be."""
    line = clean(text)
    return line if len(line) <= longest else f"{line[: longest - 1]}…"


def clean(text: str) -> str:
    """One printable line: what comes from a checkpoint must not steer a terminal."""
    line = " ".join(text.split())
    if line.isprintable():
        return line
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in line)
