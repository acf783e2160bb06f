from __future__ import annotations

import itertools

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from icl_interp.config import ModelConfig
from icl_interp.training.recording import Recorder, record_steps
from icl_interp.weights import Weights, initial_weights


@given(st.integers(1, 10**6), st.integers(2, 500))
def test_steps_rise_from_zero_to_the_end(steps: int, n_records: int) -> None:
    planned = record_steps(steps, n_records)
    assert planned[0] == 0
    assert planned[-1] == steps
    assert all(a < b for a, b in itertools.pairwise(planned))
    assert len(planned) <= n_records + 3


def test_the_first_thousand_and_the_last_hundred_thousand_steps_can_be_read() -> None:
    planned = np.array(record_steps(500_000, 300))
    assert ((planned > 0) & (planned <= 1000)).sum() >= 30
    assert (planned > 400_000).sum() >= 40


CONFIG = ModelConfig(2)
WEIGHTS = initial_weights(CONFIG, torch.Generator().manual_seed(0))
BYTES = sum(weight.nbytes for weight in WEIGHTS.values())


def at(step: int) -> Weights:
    return {name: weight + step for name, weight in WEIGHTS.items()}


def test_snapshots_are_thinned_to_their_budget_and_keep_the_end() -> None:
    recorder = Recorder(CONFIG, list(range(20)), budget=5 * BYTES)
    for step in range(20):
        recorder.record(step, float(step), at(step))
        assert recorder.nbytes <= 6 * BYTES
    dynamics = recorder.join([recorder.part()])
    assert list(dynamics.steps) == list(range(20))
    assert dynamics.omega.shape == (20, 1, 2)
    assert dynamics.mu.shape == (20, 1, 2, 1)
    assert len(dynamics.snapshot_steps) == 5
    assert (dynamics.snapshot_steps[0], dynamics.snapshot_steps[-1]) == (0, 19)
    torch.testing.assert_close(dynamics.weights(19)["W_Q"], at(19)["W_Q"])


def test_an_early_end_still_ends_with_its_last_weights() -> None:
    recorder = Recorder(CONFIG, [0, 10, 20])
    recorder.record(0, 1.0, at(0))
    recorder.record(7, 0.5, at(7))
    dynamics = recorder.join([recorder.part()])
    assert list(dynamics.snapshot_steps) == [0, 7]


@given(st.sets(st.integers(0, 29)), st.integers(2, 40), st.integers(1, 30))
def test_parts_join_to_the_whole(cuts: set[int], affordable: int, records: int) -> None:
    """Wherever records are stored away, and wherever they end, the dynamics are the same."""
    whole, parted = (Recorder(CONFIG, list(range(30)), budget=affordable * BYTES) for _ in range(2))
    parts = []
    for step in range(records):
        for recorder in (whole, parted):
            recorder.record(step, float(step), at(step))
        if step in cuts:
            parts.append(parted.part())
            parted.clear()
            assert parted.part() == {}
    parts = [part for part in (*parts, parted.part()) if part]
    a, b = whole.join([whole.part()]), parted.join(parts)
    for name in ("steps", "loss", "omega", "mu", "snapshot_steps"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name))
    assert all(torch.equal(a.snapshots[name], b.snapshots[name]) for name in a.snapshots)
