from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from icl_interp.config import ModelConfig
from icl_interp.training import recording
from icl_interp.training.recording import Recorder, record_steps
from icl_interp.weights import initial_weights


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


def recorded(n_records: int) -> Recorder:
    config = ModelConfig(2)
    weights = initial_weights(config, torch.Generator().manual_seed(0))
    recorder = Recorder(config, list(range(n_records)))
    for step in range(n_records):
        recorder.record(step, float(step), {k: v + step for k, v in weights.items()})
    return recorder


def test_snapshots_are_thinned_to_their_memory_and_keep_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    config = ModelConfig(2)
    weights = initial_weights(config, torch.Generator().manual_seed(0))
    monkeypatch.setattr(recording, "SNAPSHOT_BYTES", 5 * sum(w.nbytes for w in weights.values()))
    dynamics = recorded(20).dynamics({k: v + 19 for k, v in weights.items()})
    assert list(dynamics.steps) == list(range(20))
    assert dynamics.omega.shape == (20, 1, 2)
    assert dynamics.mu.shape == (20, 1, 2, 1)
    assert len(dynamics.snapshot_steps) == 5
    assert (dynamics.snapshot_steps[0], dynamics.snapshot_steps[-1]) == (0, 19)
    torch.testing.assert_close(dynamics.weights(19)["W_Q"], weights["W_Q"] + 19)


def test_an_early_end_still_ends_with_its_last_weights() -> None:
    config = ModelConfig(2)
    weights = initial_weights(config, torch.Generator().manual_seed(0))
    recorder = Recorder(config, [0, 10, 20])
    recorder.record(0, 1.0, weights)
    recorder.record(7, 0.5, {k: v + 7 for k, v in weights.items()})
    dynamics = recorder.dynamics({k: v + 7 for k, v in weights.items()})
    assert list(dynamics.snapshot_steps) == [0, 7]
