"""`analyze()`: run the probes on a checkpoint and collect what they found, concluded, and could not say."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import TypedDict, TypeVar, overload

import pandas as pd
import torch

from icl_interp.calibration import how_reliable
from icl_interp.circuits import Circuits
from icl_interp.config import ModelConfig
from icl_interp.devices import named_device
from icl_interp.errors import ConfigError
from icl_interp.formats import Given, load_run
from icl_interp.formats.files import write_file
from icl_interp.probing import AnyProbe, Context, Outcome, Probe, Verdict, broken, discover, fitting, run_probe
from icl_interp.records import Run
from icl_interp.serialization import Json, dumps, to_data
from icl_interp.tasks import Task, UnavailableTask, check_task

R = TypeVar("R")
Checkpoint = str | Path | Run | torch.nn.Module | Mapping[str, object]
SCHEMA_VERSION = 1


class ProbeData(TypedDict):
    """What `Analysis.to_data` says of one probe: an `Outcome` without its blocks."""

    title: str
    status: str
    source: str
    reason: str
    looks: list[int]
    verdicts: list[dict[str, Json]]
    result: dict[str, Json] | None


class AnalysisData(TypedDict):
    """What `Analysis.to_data` returns: provenance, circuits, and each probe by name."""

    schema_version: int
    provenance: dict[str, Json]
    circuits: dict[str, Json]
    probes: dict[str, ProbeData]


@dataclass(frozen=True)
class Provenance:
    """Where the checkpoint came from, under what it was read, and what was assumed.

    `origin` is a path if `on_disk`, else words.
    """

    origin: str
    on_disk: bool
    model: ModelConfig
    task: Task | None
    task_from: str
    step: int | None
    training_seed: int | None
    analysis_seed: int
    budget: int
    versions: dict[str, str]
    format: str = ""
    assumed: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Analysis:
    """Everything the probes left behind: `result["kernel_fit"]`, `result.verdicts`, `result.circuits`.

    What a probe found is `result["kernel_fit"].value`, or, with a type that checkers know, `result.get(KernelFit)`.
    """

    provenance: Provenance
    circuits: Circuits
    outcomes: tuple[Outcome, ...]

    def __getitem__(self, probe: str) -> Outcome:
        """The outcome of a probe by name.

        Raises:
            KeyError: no such probe was run; the message names those that were.
        """
        for outcome in self.outcomes:
            if outcome.probe == probe:
                return outcome
        raise KeyError(f"no probe {probe!r} was run; there are {', '.join(o.probe for o in self.outcomes)}")

    def __iter__(self) -> Iterator[Outcome]:
        return iter(self.outcomes)

    def get(self, kind: type[R]) -> R:
        """The finding of type `kind`.

        Raises:
            KeyError: no probe found one; the message says what became of them.
        """
        for outcome in self.outcomes:
            if isinstance(outcome.value, kind):
                return outcome.value
        states = ", ".join(f"{o.probe}: {o.status}" for o in self.outcomes)
        raise KeyError(f"no {kind.__name__} was found ({states})")

    @cached_property
    def verdicts(self) -> pd.DataFrame:
        """One row a claim, with these columns.

        probe, claim, source, status; value, low, high: NaN without a number; threshold: text, missing where there is
        none; sentence; prompts: of the look that the verdict is from, NaN where nothing is drawn; reliability: how
        often such a verdict is right, by the calibration study.
        """
        numbers = ["value", "low", "high", "threshold"]
        columns = ["probe", "claim", "source", "status", *numbers, "sentence", "prompts", "reliability"]
        return pd.DataFrame([_row(o, v) for o in self.outcomes for v in o.verdicts], columns=columns)

    def to_data(self) -> AnalysisData:
        """The whole analysis as JSON-ready data; the same input gives the same data."""
        return {
            "schema_version": SCHEMA_VERSION,
            "provenance": to_data(self.provenance),
            "circuits": to_data(self.circuits),
            "probes": {
                outcome.probe: {
                    "title": outcome.title,
                    "status": outcome.status,
                    "source": outcome.source,
                    "reason": outcome.reason,
                    "looks": list(outcome.looks),
                    "verdicts": to_data(outcome.verdicts, tuple[Verdict, ...]),
                    "result": to_data(outcome.value),
                }
                for outcome in self.outcomes
            },
        }

    @overload
    def to_json(self, path: None = None) -> str: ...
    @overload
    def to_json(self, path: str | Path) -> None: ...
    def to_json(self, path: str | Path | None = None) -> str | None:
        """The analysis as strict JSON text; given a `path`, it is written there, not returned.

        Raises:
            SaveError: `path` could not be written.
        """
        # A path may hold bytes that are no UTF-8, which Python keeps as lone surrogates; JSON can spell those.
        text = dumps(self.to_data()).encode(errors="backslashreplace").decode() + "\n"
        return _written(text, path)

    @overload
    def to_html(self, path: None = None) -> str: ...
    @overload
    def to_html(self, path: str | Path) -> None: ...
    def to_html(self, path: str | Path | None = None) -> str | None:
        """The analysis as one offline HTML page (2.2 MB at most); given a `path`, it is written there, not returned.

        Raises:
            SaveError: `path` could not be written.
        """
        from icl_interp_reports import to_html

        return _written(to_html(self), path)

    @overload
    def to_markdown(self, path: None = None) -> str: ...
    @overload
    def to_markdown(self, path: str | Path) -> None: ...
    def to_markdown(self, path: str | Path | None = None) -> str | None:
        """The analysis as Markdown text; given a `path`, it is written there, not returned.

        Raises:
            SaveError: `path` could not be written.
        """
        from icl_interp_reports import to_markdown

        return _written(to_markdown(self), path)

    def __repr__(self) -> str:
        from icl_interp_reports import analysis_in_a_line

        return analysis_in_a_line(self)

    def __str__(self) -> str:
        from icl_interp_reports import to_text

        return to_text(self)

    def _repr_html_(self) -> str:
        from icl_interp_reports import analysis_in_notebook

        return analysis_in_notebook(self)


def analyze(
    checkpoint: Checkpoint,
    task: Task | None = None,
    *,
    probes: str | Sequence[str | AnyProbe | type[AnyProbe]] | None = None,
    seed: int = 0,
    budget: int | None = None,
    device: str | torch.device = "auto",
) -> Analysis:
    """What a checkpoint learned, by every probe that applies to it.

    Args:
        checkpoint: a path to a run's folder or to a file of another make; a `Run`; a module or a dict of tensors.
        task: the distribution to read it under; None means the one it was trained on.
        probes: names, or probes and classes declared with `@probe`; None means all that are installed, but for those
            about several responses where the model has one.
        seed: of all prompts that the probes draw: the same seed gives the same analysis.
        budget: prompts that one measurement may draw, 131,072 unless given.  A probe begins with 32,768 (or the budget,
            if that is less), and looks again with up to four times as many for as long as one of its claims is open;
            what is still open with the whole budget is inconclusive.
        device: where forward passes run; "auto" is the CPU, since a few ten thousand prompts gain nothing on a GPU.

    Raises:
        CheckpointError: a checkpoint that cannot be opened.
        ConfigError: an unknown probe, a task that does not fit the model, a seed or budget out of range, a device that
            is not there.
    """
    run = _open(checkpoint, task)
    place = named_device("cpu" if device == "auto" else device)
    chosen, failed = _choose(probes, run.model_config)
    known = task if task is not None else run.task
    if known is not None:
        check_task(known)
    if known is not None and (known.dim, known.n_outputs) != (run.model_config.dim, run.model_config.n_outputs):
        raise ConfigError(
            f"the task has dim={known.dim} and n_outputs={known.n_outputs}, the model was made for "
            f"dim={run.model_config.dim} and n_outputs={run.model_config.n_outputs}"
        )
    context = Context(run, task, seed=seed, budget=budget, device=place)
    outcomes = [run_probe(probe, context) for probe in chosen]
    outcomes += [broken(name, error) for name, error in failed.items()]
    provenance = Provenance(
        origin=run.origin,
        on_disk=_on_disk(run.origin),
        model=run.model_config,
        task=known,
        task_from=_task_from(run, task),
        step=run.step,
        training_seed=run.seed,
        analysis_seed=seed,
        budget=context.budget,
        versions={"icl-interp": version("icl-interp"), "torch": torch.__version__},
        format=run.format,
        assumed=run.assumed,
    )
    return Analysis(provenance, run.circuits(), tuple(outcomes))


def _written(text: str, path: str | Path | None) -> str | None:
    if path is None:
        return text
    write_file(path, text)
    return None


def _open(checkpoint: Checkpoint, task: Task | None) -> Run:
    if isinstance(checkpoint, Run):
        return checkpoint
    return load_run(checkpoint, Given() if task is None else Given(dim=task.dim, n_outputs=task.n_outputs))


def _on_disk(origin: str) -> bool:
    try:
        return Path(origin).exists()
    except (OSError, ValueError):  # words that no path can have
        return False


def _choose(
    probes: str | Sequence[str | AnyProbe | type[AnyProbe]] | None,
    model: ModelConfig,
) -> tuple[list[Probe[object]], dict[str, BaseException]]:
    known, failed = discover()
    if probes is None:
        return fitting(model), failed
    chosen: dict[str, Probe[object]] = {}
    for asked in [probes] if isinstance(probes, str) else probes:
        if isinstance(asked, str):
            if asked not in known:
                lost = "".join(f"; {name} could not be loaded: {error}" for name, error in failed.items())
                raise ConfigError(f"no probe {asked!r}; there are {', '.join(known)}{lost}")
            probe = known[asked]
        else:
            probe = asked() if isinstance(asked, type) else asked
        if not isinstance(probe, Probe):
            raise ConfigError(f"a probe is a name or a class declared with @probe(...), got {asked!r}")
        chosen[probe.name] = probe
    return list(chosen.values()), {}


def _task_from(run: Run, task: Task | None) -> str:
    if task is not None:
        return "given"
    if run.task is None:
        return "unknown"
    return "unavailable: a user's own" if isinstance(run.task, UnavailableTask) else "the run's own"


def _row(outcome: Outcome, verdict: Verdict) -> dict[str, object]:
    estimate = verdict.estimate
    return {
        "probe": _valid(outcome.probe),
        "claim": _valid(verdict.claim),
        "source": _valid(verdict.source),
        "status": verdict.status,
        "value": estimate.value if estimate else math.nan,
        "low": estimate.low if estimate else math.nan,
        "high": estimate.high if estimate else math.nan,
        "threshold": str(verdict.threshold) if verdict.threshold else None,
        "sentence": _valid(verdict.sentence),
        "prompts": float(outcome.prompts or math.nan),
        "reliability": how_reliable(outcome.probe, verdict.claim, verdict.status),
    }


def _valid(text: str) -> str:
    """Text that a DataFrame takes: it refuses half a surrogate pair, which a name on disk may hold."""
    return text.encode(errors="replace").decode()
