"""How often heads take one sign: the share, its interval, and what is concluded."""

from __future__ import annotations

import json

import numpy as np
import pytest

from icl_interp.reproduce import Bench, Schedule
from icl_interp.reproduce.figures import basin
from icl_interp.reproduce.recipes import recipes
from icl_interp.reproduce.results import Reproduction

OWN = np.arange(256)  # each run with a stream of its own


def hits(number, of=256):
    return np.arange(of) < number


def test_the_interval_of_independent_runs_is_clopper_and_pearsons():
    share = basin.share_of(hits(45), OWN)  # by an independent program: 13.1 % to 22.8 %
    assert share.value == 45 / 256
    assert (share.low, share.high) == (pytest.approx(0.1312, abs=5e-4), pytest.approx(0.2280, abs=5e-4))


@pytest.mark.parametrize(("number", "low", "high"), [(0, 0, 0.0143), (256, 0.9857, 1)])
def test_the_interval_where_none_or_all_are_hits(number, low, high):
    share = basin.share_of(hits(number), OWN)
    assert (share.low, share.high) == (pytest.approx(low, abs=1e-4), pytest.approx(high, abs=1e-4))


def test_runs_that_go_together_count_once():
    streams = np.repeat(np.arange(32), 8)
    together = basin.share_of(np.repeat(hits(8, 32), 8), streams)
    once = basin.share_of(hits(8, 32), np.arange(32))
    assert together.value == once.value
    assert together.half == pytest.approx(once.half, rel=0.05)
    apart = basin.share_of(np.tile(hits(2, 8), 32), streams)  # every stream has as many: no more than independent
    assert apart.half == pytest.approx(basin.share_of(hits(64), OWN).half)


def test_the_interval_covers_where_streams_differ():
    rng = np.random.default_rng(0)
    streams = np.repeat(np.arange(32), 8)
    covered = []
    for _ in range(500):
        rate = rng.beta(1, 3, 32)  # of each stream; 1/4 in the mean
        share = basin.share_of(rng.random(256) < rate[streams], streams)
        covered.append(share.low <= 0.25 <= share.high)
    assert np.mean(covered) > 0.92


def test_heads_that_do_not_work_have_no_say():
    omega = np.array([[0.2, -0.2], [0.2, 0.3], [0.4, -0.2], [-0.2, -0.1]])
    mu = np.array([[2.0, -2.0], [1.0, 1.0], [1.0, -0.01], [-1.0, -1.0]])
    assert basin.of_one_sign(omega, mu).tolist() == [False, True, True, True]


def population(number, steps=20_000):
    one_sign = np.column_stack([hits(number), hits(number)])
    losses = np.where(one_sign[:, -1], 0.40, 0.243) + 1e-3 * np.sin(OWN)
    return basin.Population(np.array([0, steps]), one_sign, losses, OWN % 32)


def test_seeds_of_one_sign_refute_that_heads_always_come_to_be_opposite():
    assert basin.sign_claim(population(45), reached=True).status == "does_not_hold"
    assert basin.sign_claim(population(1), reached=True).status == "does_not_hold"


def test_too_short_a_training_or_none_of_them_refutes_nothing():
    assert basin.sign_claim(population(45), reached=False).status == "not_reached"
    assert basin.sign_claim(population(0), reached=True).status == "undecided"  # 256 seeds cannot say "always"


def test_gradient_flow_on_the_approximate_loss_has_the_basin_too():
    share = basin.flow_share()
    assert 0.25 < share.low < share.value < share.high < 0.75


def test_a_population_of_few_steps(tmp_path):
    few = Schedule("few", steps=100, seeds=1, basin_seeds=6, basin_steps=200, prompts=2_000)
    bench = Bench(tmp_path, few, progress=False)
    found = recipes()["same-sign"](bench)
    assert found.claims[0].status == "not_reached"
    runs = bench.runs("same-sign")
    own = basin.Population.of(runs)
    ends = [run.dynamics for run in runs if run.dynamics]
    assert own.one_sign[:, -1].tolist() == [bool(d.omega[-1, 0].prod() > 0) for d in ends]
    assert own.late_loss[2] == pytest.approx(ends[2].loss[ends[2].steps >= 160].mean())
    assert own.streams.tolist() == list(range(6))
    data = found.to_data()
    assert Reproduction.from_data(json.loads(json.dumps(data))).to_data() == data
