"""The map of superposition: each run is read as what it was made, and each claim is decided by runs that violate it."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import ArrayLike
from scipy.optimize import minimize

from icl_interp.config import ModelConfig
from icl_interp.errors import ConfigError
from icl_interp.probing import Heatmap, Lines, Table
from icl_interp.records import Dynamics, Run, TrainConfig
from icl_interp.reproduce import Bench, Reproduction, Schedule, recipes
from icl_interp.reproduce.census import (
    KINDS,
    Census,
    Kind,
    Reading,
    best_steps,
    mean_risk,
    mirrored,
    share_in,
)
from icl_interp.reproduce.figures import superposition_map
from icl_interp.reproduce.trainings import SCHEDULES, Site, sites
from icl_interp.sharing import Sharing, own_steps, shared_steps
from icl_interp.testing import plant_tasks

TINY = Schedule("tiny", 60, 2, 3, 40, 500, map_seeds=2, map_steps=60)
STEPS = np.array([0, 10, 80, 90, 100])


def recorded(run: Run, *, loss=0.225, stream=0) -> Run:
    """`run`, as if it had been so from the beginning."""
    assert run.task is not None
    circuits, count = run.circuits(), len(STEPS)
    dynamics = Dynamics(
        STEPS,
        np.array([9.0, 9.0, loss, loss, loss]),
        np.stack([circuits.omega] * count),
        np.stack([circuits.mu] * count),
        STEPS,
        {name: torch.stack([tensor] * count) for name, tensor in run.weights.items()},
    )
    training = TrainConfig(run.task, run.model_config, 100, seed=0, data_seed=stream)
    return replace(run, dynamics=dynamics, training=training, step=100)


def made(task, omega, mu, labels: ArrayLike = 0.0, covariates: ArrayLike = 0.0) -> Run:
    """A run of these heads; `labels` and `covariates` (heads, tasks, features) are the rows of KQ_21 and OV_21."""
    d, D, heads = task.dim, task.dim + task.n_outputs, len(omega)
    KQ, OV = np.zeros((2, heads, D, D))
    KQ[:, range(d), range(d)], OV[:, range(d, D), range(d, D)] = omega, mu
    KQ[:, d:, :d], OV[:, d:, :d] = labels, covariates
    model = ModelConfig(d, task.n_outputs, heads)
    factors = {"W_K": model.score_scale * KQ, "W_O": OV.transpose(0, 2, 1), "W_Q": np.eye(D), "W_V": np.eye(D)}
    weights = {name: torch.tensor(np.broadcast_to(w, KQ.shape)[None]).float() for name, w in factors.items()}
    return Run(model, weights, task)


def swapped_heads(task, size=0.05, *, balanced=True):
    """Heads for every feature of every task, which attend by the task's label and read that feature."""
    steps, each = own_steps(task), np.eye(task.dim)
    signs = (1, -1) if balanced else (1,)
    places = [(n, i, sign) for n, i in np.argwhere(steps > 0) for sign in signs]
    labels, covariates = np.zeros((2, len(places), task.n_outputs, task.dim))
    for h, (n, i, sign) in enumerate(places):
        labels[h, n], covariates[h, n] = sign * size * each[i], sign * steps[n, i] / (size * len(signs)) * each[i]
    nothing = np.zeros((len(places), task.dim)), np.zeros((len(places), task.n_outputs))
    return made(task, *nothing, labels, covariates)


# --- What a run is read as --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("overlap", ["none", "some"])
@pytest.mark.parametrize("tasks", [2, 3])
@pytest.mark.parametrize("mode", ["I", "II", "III", "IV"])
def test_planted_modes(mode, tasks, overlap):
    planted = plant_tasks(Site(tasks, overlap, 1).task, mode, seed=tasks, noise=0.01)
    reading = Reading.of(recorded(planted.run, loss=0.3, stream=3))
    assert (reading.kind, reading.loss, reading.stream) == (mode, pytest.approx(0.3), 3)
    assert reading.resolved == (mode in ("III", "IV"))
    assert reading.swapped < 0.02


def test_a_run_is_read_by_its_last_fifth():
    run = recorded(plant_tasks(Site(2, "none", 3).task, "IV").run)
    assert run.dynamics is not None
    early = {name: tensor.clone() for name, tensor in run.dynamics.snapshots.items()}
    early["W_O"][:2] *= -7
    assert Reading.of(replace(run, dynamics=replace(run.dynamics, snapshots=early))).kind == "IV"
    early["W_O"][2:] *= -7
    assert Reading.of(replace(run, dynamics=replace(run.dynamics, snapshots=early))).kind == "other"


def test_runs_that_have_no_place_on_the_map():
    run = plant_tasks().run
    with pytest.raises(ConfigError, match="trained on several tasks"):
        Reading.of(run)


def test_swapped_heads_do_gradient_descent():
    """To first order their predictions are those of the steps o kᵀ."""
    task = Site(2, "some", 5).task
    run = swapped_heads(task, size=1e-3)
    prompt = task.sample(64, generator=torch.Generator().manual_seed(0)).to(dtype=torch.float64)
    predicted = run.circuits().predict(prompt)
    centred = prompt.y - prompt.y.mean(1, keepdim=True)
    beta = torch.einsum("bln,bli->bni", centred, prompt.x) / task.length
    expected = torch.einsum("bni,ni,bi->bn", beta, torch.from_numpy(own_steps(task)).double(), prompt.x_q)
    assert (predicted - expected).abs().max() < 0.01 * expected.abs().max()


def test_swapped_heads_are_a_mode_of_their_own():
    task = Site(2, "none", 5).task
    for balanced in (True, False):
        reading = Reading.of(recorded(swapped_heads(task, balanced=balanced)))
        assert (reading.kind, reading.resolved) == ("swapped", balanced)
        assert reading.swapped == pytest.approx(1)


def test_what_is_packed_does_as_well_as_its_directions_allow():
    task = Site(3, "none", 3).task
    steps = best_steps(task, 2)
    left, sizes, right = np.linalg.svd(steps)
    directions = np.array([[1, 1], [-1, 1], [0, -2]]) / np.sqrt([2, 6])  # three heads with Σμ = 0
    omega, mu = directions @ (sizes[:2, None] * right[:2]) * 0.1, directions @ left[:, :2].T / 0.1
    assert np.allclose(Sharing.of_weights(omega, mu).steps, steps)
    reading = Reading.of(recorded(made(task, omega, mu)))
    assert (reading.kind, reading.resolved) == ("packed", False)
    worse = np.diag([1.0, 0.6]) @ (sizes[:2, None] * right[:2])
    assert Reading.of(recorded(made(task, directions @ worse * 0.1, mu))).kind == "other"


def test_a_task_with_heads_of_one_sign_is_no_known_mode():
    task = Site(2, "none", 2).task
    own = own_steps(task)
    reading = Reading.of(recorded(made(task, 0.5 * own, 2 * np.eye(2))))
    assert (reading.kind, reading.resolved) == ("other", False)


@pytest.mark.parametrize("seed", range(5))
def test_random_heads_resolve_nothing(seed):
    rng = np.random.default_rng(seed)
    reading = Reading.of(
        recorded(made(Site(2, "some", 5).task, rng.normal(0, 0.2, (5, 3)), rng.normal(0, 0.2, (5, 2))))
    )
    assert not reading.resolved


# --- Signs that mean nothing ------------------------------------------------------------------------------------------


def test_tasks_without_common_features_may_be_mirrored():
    task = Site(3, "none", 2).task
    planted = plant_tasks(task, "II", permute=False)
    omega, mu = planted.omega.copy(), planted.mu.copy()
    omega[:, 2:4] *= -1
    mu[:, 1] *= -1
    assert Sharing.of_weights(*mirrored(omega, mu, task)).mode == "II"
    prompt = task.sample(2_000, generator=torch.Generator().manual_seed(1)).to(dtype=torch.float64)
    risks = [
        (made(task, *heads).circuits().predict(prompt) - prompt.y_q).square().mean()
        for heads in ((omega, mu), (planted.omega, planted.mu))
    ]
    assert float(risks[0]) == pytest.approx(float(risks[1]), rel=0.02)


def test_tasks_with_common_features_are_not_mirrored():
    task = Site(3, "some", 4).task
    planted = plant_tasks(task, "IV", permute=False)
    for kept, given in zip(mirrored(planted.omega, -planted.mu, task), (planted.omega, -planted.mu), strict=True):
        assert np.array_equal(kept, given)


# --- The least risk to first order ------------------------------------------------------------------------------------


@pytest.mark.parametrize("overlap", ["none", "some"])
def test_one_direction_is_what_all_tasks_share(overlap):
    task = Site(2, overlap, 2).task
    shared = np.tile(shared_steps(task), (2, 1))
    assert mean_risk(best_steps(task, 1), task) == pytest.approx(mean_risk(shared, task), abs=1e-6)


@pytest.mark.parametrize(("overlap", "tasks", "rank"), [("none", 3, 2), ("some", 4, 2)])
def test_the_best_steps_are_the_best_that_another_search_finds(overlap, tasks, rank):
    task = Site(tasks, overlap, 1).task
    found = best_steps(task, rank)
    assert np.linalg.matrix_rank(found, tol=1e-8) == rank

    def risk(flat):
        left, right = flat[: tasks * rank].reshape(tasks, rank), flat[tasks * rank :].reshape(rank, task.dim)
        return mean_risk(left @ right, task)

    rng = np.random.default_rng(1)
    others = [minimize(risk, rng.standard_normal(rank * (tasks + task.dim))).fun for _ in range(4)]
    assert mean_risk(found, task) == pytest.approx(min(others), abs=1e-6)


def test_heads_that_suffice_reach_the_risk_of_each_task_alone():
    for site in sites(SCHEDULES["paper"]):
        census = Census(site, (), "")
        if site.heads == 1:
            assert np.isnan(census.least_risk)
        elif site.overlap == "full" or site.heads > site.tasks:
            assert census.least_risk == pytest.approx(census.own_risk)
        else:
            assert census.least_risk > 1.02 * census.own_risk


# --- Claims -----------------------------------------------------------------------------------------------------------


def expected(site) -> Kind:
    """The mode that the paper and first-order theory name."""
    if site.heads == 1:
        return "I"
    if site.heads <= site.tasks or site.overlap == "full":
        return "II"
    return "IV" if site.heads < 2 * site.tasks else "III"


def populations(change=lambda site, reading: reading, runs=32):
    """A map on which everything is as expected, but for what `change` does to a reading."""
    found = []
    for site in sites(SCHEDULES["paper"]):
        kind, own = expected(site), Census(site, (), "").own_risk
        resolved = kind in ("III", "IV")
        score = 0.6 if kind == "IV" else 0.1 if kind == "III" else 0.0
        reading = Reading(kind, resolved, 0.0, score, own * (1.01 if resolved else 1.3), 0)
        readings = tuple(
            change(site, replace(reading, stream=run % 4, loss=reading.loss + 1e-5 * run)) for run in range(runs)
        )
        found.append(Census(site, readings, f"runs/paper/{site.training}"))
    return found


def statuses(censuses, *, reached=True):
    return {claim.claim: claim.status for claim in superposition_map.claims_of(censuses, reached=reached)}


ONE_HEAD, FEW, BETWEEN, MANY, RANK, ENOUGH, AS_GOOD, CONTROL, _ = statuses(populations())


def test_a_map_as_expected():
    found = statuses(populations())
    assert found.popitem()[1] == "shown"
    assert set(found.values()) == {"reproduced"}


def other(where, **changes):
    return lambda site, reading: replace(reading, **changes) if site.overlap != "full" and where(site) else reading


@pytest.mark.parametrize(
    ("change", "differ"),
    [
        (other(lambda s: s.heads == 1, kind="swapped"), {ONE_HEAD}),
        (other(lambda s: 1 < s.heads <= s.tasks, kind="packed"), {FEW}),
        (other(lambda s: s.tasks < s.heads < 2 * s.tasks, kind="III"), {BETWEEN}),
        (other(lambda s: s.heads >= 2 * s.tasks, kind="IV"), {MANY}),
        (other(lambda s: s.heads == s.tasks, resolved=True), {RANK}),
        (other(lambda s: s.heads == s.tasks + 1, resolved=False), {ENOUGH}),
        (other(lambda s: s.heads == s.tasks + 1, loss=0.25), {AS_GOOD}),
        (lambda site, reading: replace(reading, score=0.1) if site.overlap == "full" else reading, {CONTROL}),
    ],
)
def test_each_claim_is_refuted_by_runs_that_violate_it(change, differ):
    found = statuses(populations(change))
    assert {claim for claim, status in found.items() if status == "differs"} == differ
    assert statuses(populations(change), reached=False)[differ.pop()] == "not_reached"


def test_swapped_heads_do_not_count_against_the_directions():
    at = other(lambda s: s.heads == s.tasks, resolved=True, kind="swapped", loss=0.3)
    claims = {claim.claim: claim for claim in superposition_map.claims_of(populations(at), reached=True)}
    assert claims[RANK].status == "reproduced"
    assert "192 do so with them, at a loss of 0.300" in claims[RANK].sentence


def test_few_runs_decide_nothing():
    found = statuses(populations(runs=1))
    del found[AS_GOOD]  # a mean of six numbers that are alike
    assert set(found.values()) == {"undecided", "shown"}


def test_runs_of_one_stream_go_together():
    """Half of the streams hit: as good as four runs, not as 32."""
    site = Site(2, "none", 3)
    split = Census(site, tuple(Reading("IV", run % 4 < 2, 0.0, 0.5, 0.23, run % 4) for run in range(32)), "")
    mixed = Census(site, tuple(Reading("IV", run % 8 < 4, 0.0, 0.5, 0.23, run % 4) for run in range(32)), "")
    assert split.share(lambda r: r.resolved).half > 1.8 * mixed.share(lambda r: r.resolved).half
    assert share_in([split, split], lambda r: r.resolved).half < split.share(lambda r: r.resolved).half


# --- The page ---------------------------------------------------------------------------------------------------------


def test_the_map_has_every_share_in_its_place():
    blocks = superposition_map.blocks_of(populations())
    (heatmap,) = [block for block in blocks if isinstance(block, Heatmap)]
    assert heatmap.matrices.shape == (len(KINDS), 9, 9)
    there = np.isfinite(heatmap.matrices[0])
    assert there.sum() == 63
    assert np.allclose(heatmap.matrices.sum(0)[there], 1)
    row = heatmap.row_labels.index("N = 3, some")
    assert [KINDS[i] for i in heatmap.matrices[:, row, :7].argmax(0)] == ["I", "II", "II", "IV", "IV", "III", "III"]


def test_the_curves_are_of_risk_above_gradient_descent_and_of_the_score():
    blocks = superposition_map.blocks_of(populations())
    lines = [block for block in blocks if isinstance(block, Lines)]
    assert [line.title for line in lines] == [
        f"{what}, N = {n}" for n in (2, 3, 4) for what in ("Excess risk", "Superposition")
    ]
    excess, score = lines[2:4]
    own = Census(Site(3, "none", 2), (), "").own_risk
    assert excess.x.tolist() == [2, 3, 4, 5, 6, 7]
    assert excess.y[0] == pytest.approx(own * np.array([0.3, 0.3, 0.01, 0.01, 0.01, 0.01]) + 15.5e-5, rel=1e-3)
    assert excess.y[excess.names.index("no feature shared, the least to first order")][1] == pytest.approx(
        mean_risk(best_steps(Site(3, "none", 2).task, 2), Site(3, "none", 2).task) - own, rel=1e-3
    )
    assert score.y[0].tolist() == [0, 0, 0.6, 0.6, 0.1, 0.1]


def test_every_population_has_a_row_and_every_mode_a_run_to_open():
    blocks = superposition_map.blocks_of(populations())
    tables = {block.title: block for block in blocks if isinstance(block, Table)}
    rows = tables["All populations"].rows
    assert [row[:3] for row in rows] == [(s.tasks, s.overlap, s.heads) for s in sites(SCHEDULES["paper"])]
    assert {sum(map(int, row[3 : 3 + len(KINDS)])) for row in rows} == {32}  # type: ignore[arg-type]
    opened = {row[0]: row for row in tables["Runs to open"].rows}
    assert opened.keys() == {"I", "II", "III", "IV", "IV, the most superposed"}
    assert opened["II"][1:4] == (2, "none", 2)  # not a control
    assert opened["IV"][-1] == "icl-interp analyze runs/paper/map-n2-none-h3/0000"


def test_a_map_of_few_steps(tmp_path):
    bench = Bench(tmp_path, TINY, progress=False)
    found = recipes()["superposition-map"](bench)
    assert not found.failure, found.details
    assert found.runs["map-*"].startswith("15 populations, from one head, softmax; d = 4, L = 24; 60 steps of ")
    assert {claim.status for claim in found.claims} <= {"not_reached", "shown"}
    opened = next(block for block in found.blocks if isinstance(block, Table) and block.title == "Runs to open")
    for row in opened.rows:
        run = Run.load(tmp_path / str(row[-1]).removeprefix("icl-interp analyze "))
        assert run.model_config.n_heads == row[3]
        assert Reading.of(run).kind == str(row[0]).split(",")[0]
    data = found.to_data()
    assert Reproduction.from_data(json.loads(json.dumps(data))).to_data() == data
    assert len(json.dumps(data)) < 40_000
