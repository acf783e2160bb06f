"""The contract of a probe, as a check its author runs: `check_probe(MyProbe)`."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import torch

from icl_interp.config import ModelConfig
from icl_interp.probing import Context, Need, Outcome, Probe, run_probe
from icl_interp.records import Run
from icl_interp.serialization import dumps, from_data, to_data
from icl_interp.tasks import LinearRegression
from icl_interp.testing.planting import plant
from icl_interp.training import train
from icl_interp.weights import initial_weights

BUDGET = 2_000


class ProbeContractError(AssertionError):
    """A probe breaks its contract; the message says how."""


def check_probe(probe: Probe[Any] | type, *runs: Run, budget: int = BUDGET) -> None:
    """Check a probe against its contract on planted, trained, untrained and one-head models, and on `runs`.

    It must end in a result or in `NotApplicable`; be deterministic under a seed and leave global random states and the
    model alone; return a frozen dataclass that goes to JSON and back, and blocks and verdicts that depend on nothing
    else; name each claim once, with a sentence; look only at what it declares; and do without what it merely `uses`.

    Raises:
        ProbeContractError: at the first breach.
    """
    subject: Probe[Any] = probe() if isinstance(probe, type) else probe
    _require(isinstance(subject, Probe), f"{probe!r} is not a probe: declare it with @probe(...)")
    task = LinearRegression(dim=3, length=12, noise_var=0.1)
    untrained = Run(ModelConfig(3), initial_weights(ModelConfig(3), torch.Generator().manual_seed(0)), task=task)
    models = [
        plant(task, roles=("positive", "negative", "dummy", "mean")).run,
        plant(task, omega=[0.4], mu=[1.4]).run,
        train(task, steps=60, n_records=40, progress=False),
        untrained,
        *runs,
    ]
    finished = [outcome for run in models for outcome in [_check_on(subject, run, budget)] if outcome.status == "done"]
    _require(bool(finished), f"{subject.name} reached a result on none of {len(models)} models")


def _check_on(probe: Probe[Any], run: Run, budget: int) -> Outcome:
    before = {name: weight.clone() for name, weight in run.weights.items()}
    torch_state, numpy_state = torch.random.get_rng_state(), np.random.get_state()[1].copy()  # type: ignore[union-attr]
    outcome = run_probe(probe, Context(run, budget=budget, seed=1))

    _require(outcome.status != "failed", f"{probe.name} failed on {run.origin}: {outcome.reason}\n{outcome.details}")
    _require(
        all(torch.equal(before[name], weight) for name, weight in run.weights.items()),
        f"{probe.name} changed the model",
    )
    untouched = torch.equal(torch_state, torch.random.get_rng_state())
    untouched &= bool((numpy_state == np.random.get_state()[1]).all())  # type: ignore[index]
    _require(untouched, f"{probe.name} drew from a global random generator; draw from the context")
    if outcome.status == "done":
        _check_result(probe, outcome)
        again = run_probe(probe, Context(run, budget=budget, seed=1))
        _require(_text(again) == _text(outcome), f"{probe.name} is not deterministic under a seed")
    _check_needs(probe, run, budget)
    return outcome


def _check_result(probe: Probe[Any], outcome: Outcome) -> None:
    kind = type(outcome.value)
    data = json.loads(dumps(to_data(outcome.value)))
    back = from_data(kind, data)
    _require(dumps(to_data(back)) == dumps(data), f"{probe.name}: {kind.__name__} does not survive JSON")
    rebuilt = Outcome(probe.name, probe.title, "done", back, tuple(probe.blocks(back)), tuple(probe.judge(back)))
    _require(
        _text(rebuilt) == _text(outcome), f"{probe.name}: blocks() or judge() depend on more than the result's fields"
    )
    claims = [verdict.claim for verdict in outcome.verdicts]
    _require(len(claims) == len(set(claims)), f"{probe.name} names a claim twice: {claims}")
    for verdict in outcome.verdicts:
        _require(
            bool(verdict.sentence.strip() and verdict.source.strip()), f"{verdict.claim} lacks a sentence or source"
        )
    for block in outcome.blocks:
        _require(bool(block.alt.strip()), f"{probe.name}: a {type(block).__name__} without an alt text")


def _check_needs(probe: Probe[Any], run: Run, budget: int) -> None:
    """Without what it needs a probe is skipped; without what it merely uses it still ends well."""
    bare = Run(run.model_config, run.weights)
    outcome = run_probe(probe, Context(bare, budget=budget))
    if probe.needs & (Need.TASK | Need.DYNAMICS):
        _require(outcome.status == "skipped", f"{probe.name} ran without what it needs: {outcome.status}")
    else:
        _require(
            outcome.status in ("done", "not_applicable"),
            f"{probe.name} fails where nothing but the weights is known: {outcome.reason}",
        )


def _text(outcome: Outcome) -> str:
    return dumps([to_data(outcome.value), [to_data(b) for b in outcome.blocks], [to_data(v) for v in outcome.verdicts]])


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ProbeContractError(message)
