"""Claims on (ω, μ) of late iterates: what noise adds to a distance is in its interval, as it is to a plain number."""

from __future__ import annotations

import numpy as np
import pytest

from icl_interp.manifold import Groups
from icl_interp_probes.iterates import Iterates

PAIR = Groups(np.array([True, False, True]), np.array([False, True, False]))
MU = np.array([1.5, -3.0, 1.5])


def coverage(omega: np.ndarray, *, batched: bool, repeats: int = 300) -> dict[str, float]:
    """How often the intervals of γ and of the spread of |ω| hold those of ω, of 40 iterates that scatter about it."""
    rng, held = np.random.default_rng(0), {"gamma": 0, "spread": 0}
    for _ in range(repeats):
        late = omega + 0.002 * rng.standard_normal((40, 3)), MU + 0.02 * rng.standard_normal((40, 3))
        iterates = Iterates(*late, "late iterates", draws=400)
        for name, estimate in (
            ("gamma", iterates.estimate(PAIR.gamma, batched=batched)),
            ("spread", iterates.estimate(PAIR.spread, batched=batched, size=True)),
        ):
            assert estimate.covers == "training time"
            held[name] += estimate.low <= getattr(PAIR, name)(omega, MU) <= estimate.high
    return {name: count / repeats for name, count in held.items()}


@pytest.mark.parametrize("apart", [0.0, 0.01, 0.1])
def test_intervals_over_training_time_hold_what_iterates_scatter_about(apart: float) -> None:
    held = coverage(0.13 * np.array([1, -1 - apart, 1 + apart]), batched=True)
    assert 0.92 <= held["gamma"] <= 0.98
    assert held["spread"] >= 0.92


def test_one_quantity_at_a_time_is_the_same() -> None:
    omega = 0.13 * np.array([1.0, -1.1, 1.0])
    assert coverage(omega, batched=False, repeats=5) == coverage(omega, batched=True, repeats=5)
