"""The contract of a probe, as a check its author runs: `check_probe(MyProbe)`."""

from __future__ import annotations

import copy
import json
from typing import Any, cast

import numpy as np
import torch

from icl_interp.config import ModelConfig
from icl_interp.errors import CheckpointError
from icl_interp.probing import AnyProbe, Context, Need, Outcome, Probe, run_probe
from icl_interp.records import Run
from icl_interp.serialization import dumps, from_data, to_data
from icl_interp.tasks import LinearRegression
from icl_interp.testing.planting import plant
from icl_interp.training import train
from icl_interp.weights import initial_weights

BUDGET = 2_000


class ProbeContractError(AssertionError):
    """A probe breaks its contract; the message says how."""


def check_probe(probe: AnyProbe | type[AnyProbe], *runs: Run, budget: int = BUDGET) -> None:
    """Check a probe against its contract on planted, trained, untrained, one-head and deep models, and on `runs`.

    It must end in a result or in `NotApplicable`; be deterministic under a seed and leave global random states and the
    run alone; return a frozen dataclass that goes to JSON and back, and blocks (each with its alt text) and verdicts
    (each claim once) that depend on nothing else; look only at what it declares; and do without what it merely `uses`.

    Raises:
        ProbeContractError: at the first breach.
    """
    subject = cast("Probe[object]", probe() if isinstance(probe, type) else probe)
    _require(isinstance(subject, Probe), f"{probe!r} is not a probe: declare it with @probe(...)")
    task = LinearRegression(dim=3, length=12, noise_var=0.1)
    models = [
        plant(task, roles=("positive", "negative", "dummy", "mean")).run,
        plant(task, omega=[0.4], mu=[1.4]).run,
        train(task, steps=60, n_records=40, progress=False),
        _untrained(task, n_layers=1),
        _untrained(task, n_layers=2),
        _untrained(task, n_layers=2, scratch=3, read_out=True, layer_norm=True),
        *runs,
    ]
    finished = [outcome for run in models for outcome in [_check_on(subject, run, budget)] if outcome.status == "done"]
    _require(bool(finished), f"{subject.name} reached a result on none of {len(models)} models")


def _untrained(task: LinearRegression, **of_model: Any) -> Run:
    config = ModelConfig(task.dim, **of_model)
    weights = initial_weights(config, torch.Generator().manual_seed(0))
    with_more = f" with {', '.join(config.extras)}" if config.extras else ""
    return Run(config, weights, task=task, origin=f"{config.n_layers} untrained layers{with_more}")


def _check_on(probe: Probe[object], run: Run, budget: int) -> Outcome:
    fresh = copy.deepcopy(probe)
    before, random_states = _numbers(run), _random_states()
    outcome = run_probe(probe, Context(run, budget=budget, seed=1))

    _require(outcome.status != "failed", f"{probe.name} failed on {run.origin}: {outcome.reason}\n{outcome.details}")
    _require(_numbers(run) == before, f"{probe.name} changed the run: its weights or its dynamics")
    _require(
        _random_states() == random_states, f"{probe.name} drew from a global random generator; draw from the context"
    )
    if outcome.status == "done":
        _check_result(fresh, outcome)
        again = run_probe(probe, Context(run, budget=budget, seed=1))
        _require(_text(again) == _text(outcome), f"{probe.name} is not deterministic under a seed")
    _check_needs(probe, run, budget)
    return outcome


def _check_result(fresh: Probe[object], outcome: Outcome) -> None:
    """`fresh` is the probe as it was before the run: whatever `run` left in it is not there."""
    name, kind = fresh.name, type(outcome.value)
    data = dumps(to_data(outcome.value))
    try:
        back = from_data(kind, json.loads(data))
    except CheckpointError as error:
        raise ProbeContractError(f"{name}: {kind.__name__} does not come back from JSON: {error}") from error
    _require(dumps(to_data(back)) == data, f"{name}: {kind.__name__} comes back from JSON as something else")
    more = f"{name}: blocks() or judge() depend on more than what the result's fields and their types say"
    try:
        rebuilt = Outcome(name, fresh.title, "done", back, tuple(fresh.blocks(back)), tuple(fresh.judge(back)))
    except Exception as error:
        raise ProbeContractError(f"{more}: {type(error).__name__}: {error}") from error
    _require(_text(rebuilt) == _text(outcome), more)
    claims = [verdict.claim for verdict in outcome.verdicts]
    _require(len(claims) == len(set(claims)), f"{name} names a claim twice: {claims}")


def _check_needs(probe: Probe[object], run: Run, budget: int) -> None:
    """Without what it merely uses a probe still ends well."""
    task = run.task if Need.TASK in probe.needs else None
    dynamics = run.dynamics if Need.DYNAMICS in probe.needs else None
    outcome = run_probe(probe, Context(Run(run.model_config, run.weights, task, dynamics=dynamics), budget=budget))
    _require(
        outcome.status != "failed",
        f"{probe.name} fails on {run.origin} with nothing but what it needs: {outcome.reason}\n{outcome.details}",
    )


def _numbers(run: Run) -> dict[str, bytes]:
    arrays: dict[str, object] = dict(run.weights)
    if run.dynamics is not None:
        arrays |= {f"dynamics.{name}": value for name, value in vars(run.dynamics).items() if name != "snapshots"}
        arrays |= {f"snapshots.{name}": value for name, value in run.dynamics.snapshots.items()}
    return {name: torch.as_tensor(array).detach().cpu().numpy().tobytes() for name, array in arrays.items()}


def _random_states() -> bytes:
    # Not Python's own `random`: run-time type checkers draw from it.
    _, keys, *position = np.random.get_state()
    return torch.random.get_rng_state().numpy().tobytes() + np.asarray(keys).tobytes() + repr(position).encode()


def _text(outcome: Outcome) -> str:
    return dumps([to_data(outcome.value), [to_data(b) for b in outcome.blocks], [to_data(v) for v in outcome.verdicts]])


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ProbeContractError(message)
