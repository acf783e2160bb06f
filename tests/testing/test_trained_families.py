from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from icl_interp import theory
from icl_interp.config import ModelConfig
from icl_interp.errors import ConfigError, TrainingError
from icl_interp.estimators import GradientDescent, gradient_descent
from icl_interp.manifold import optimal_step
from icl_interp.records import Run, TrainConfig
from icl_interp.testing import Known, known_families
from icl_interp.testing.families import trained, trained_elsewhere, trained_members, trained_shuffled
from icl_interp.testing.families.trained import MAIN, TWO_TASKS
from icl_interp.testing.families.trained_shuffled import ShuffledLabels

FAMILIES = {
    "trained": trained.trained,
    "trained_same_sign": trained.same_sign,
    "trained_tasks": trained.tasks,
    "trained_elsewhere": trained_elsewhere.elsewhere,
    "trained_correlated": trained_elsewhere.correlated,
    "trained_shuffled": trained_shuffled.shuffled,
    "trained_tasks_shuffled": trained_shuffled.tasks_shuffled,
}
each_family = pytest.mark.parametrize("name", FAMILIES)


@pytest.fixture(autouse=True)
def a_few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (trained, trained_elsewhere, trained_shuffled):
        monkeypatch.setattr(module, "STEPS", 3)


def refuse(*_: object, **__: object) -> None:
    raise AssertionError("what is there was trained again")


def same(a: Run, b: Run) -> bool:
    return all(torch.equal(a.weights[name], b.weights[name]) for name in a.weights)


def members(name: str, seeds: range | list[int], folder: Path | None = None) -> list[Known]:
    return list(FAMILIES[name](seeds, folder))


# --- Every family -----------------------------------------------------------------------------------------------------


@each_family
def test_members_are_decided_by_their_seeds_alone(name: str) -> None:
    assert known_families()[name].members is FAMILIES[name]
    several = members(name, [3, 0, 7])
    (one,) = members(name, [0])
    assert same(several[1].run, one.run)
    assert not same(several[0].run, several[2].run)
    assert [known.run.seed % trained_members.SEEDS for known in several if known.run.seed is not None] == [3, 0, 7]
    assert all(known.run.step == 3 for known in several)


@each_family
def test_members_are_trained_once_and_found_again(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fresh = members(name, range(2), tmp_path)
    monkeypatch.setattr(trained_members, "train_many", refuse)
    found = members(name, [1, 0], tmp_path)
    assert [same(a.run, b.run) for a, b in zip(fresh, found[::-1], strict=True)] == [True, True]
    assert all(a.task == b.task for a, b in zip(fresh, found, strict=True))
    with pytest.raises(AssertionError, match="again"):
        members(name, [0, 2], tmp_path)


@each_family
def test_records_are_enough_for_late_means_and_small(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a training long enough that no two records fall on one step."""
    for module in (trained, trained_elsewhere, trained_shuffled):
        monkeypatch.setattr(module, "STEPS", 100)
    (known,) = members(name, [2])
    record = known.run.dynamics
    assert record is not None
    assert len(record.late_steps()) >= 10
    assert sum(weights.nbytes for weights in record.snapshots.values()) < 300_000


# --- How members are trained and kept ---------------------------------------------------------------------------------


def config(steps: int = 2, lr: float = 1e-3) -> Callable[[int], TrainConfig]:
    return lambda seed: TrainConfig(MAIN, ModelConfig(MAIN.dim), steps, 8, lr=lr, seed=seed, n_records=2)


def test_a_member_is_the_first_attempt_that_is_wanted(tmp_path: Path) -> None:
    def wanted(run: Run) -> bool:
        return run.circuits().omega[0, 0] > 0.02

    seeds = list(range(12))
    found = list(trained_members.trained_members(seeds, config(), tmp_path, wanted))
    attempts = [divmod(run.seed or 0, trained_members.SEEDS) for run in found]
    assert [seed for _, seed in attempts] == seeds
    assert len({attempt for attempt, _ in attempts}) > 2
    for run, (attempt, seed) in zip(found, attempts, strict=True):
        earlier = [config()(seed + k * trained_members.SEEDS) for k in range(attempt)]
        assert wanted(run)
        assert not any(wanted(run) for run in (trained_members.train_many(earlier) if earlier else ()))
    again = trained_members.trained_members(seeds, config(), tmp_path, wanted)
    assert all(same(a, b) for a, b in zip(found, again, strict=True))


def test_what_was_trained_in_another_way_is_replaced(tmp_path: Path) -> None:
    for steps in (2, 4, 4):
        (run,) = trained_members.trained_members([5], config(steps), tmp_path)
        assert run.step == steps
    assert Run.load(tmp_path / "0000005").step == 4


def test_chunks_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = list(trained_members.trained_members(range(5), config(), None))
    monkeypatch.setattr(trained_members, "CHUNK", 2)
    parts = trained_members.trained_members(range(5), config(), None)
    assert all(same(a, b) for a, b in zip(whole, parts, strict=True))


@pytest.mark.filterwarnings("ignore:run 0 of 1 ended early")
def test_a_training_that_ends_early_is_no_member(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"1 of 1 trainings ended early.* of seed 4, at step 1"):
        list(trained_members.trained_members([4], config(50, lr=1e30), tmp_path))
    assert not list(tmp_path.iterdir())


# --- What families are ------------------------------------------------------------------------------------------------


def test_heads_of_one_sign_have_one_sign() -> None:
    for known in members("trained_same_sign", range(6)):
        circuits = known.run.circuits()
        assert abs(np.sign(circuits.omega).sum()) == abs(np.sign(circuits.mu).sum()) == 2


def test_numbers_of_heads_take_turns() -> None:
    heads = {name: [k.run.model_config.n_heads for k in members(name, range(3))] for name in FAMILIES}
    assert heads["trained"] == [3, 4, 5]
    assert heads["trained_shuffled"] == [2, 3, 4]
    assert heads["trained_tasks"] == heads["trained_tasks_shuffled"] == [3, 4, 3]


def test_models_of_elsewhere_are_read_where_another_step_is_best() -> None:
    """By theory: η* there over η* here, and what that step costs here, over the noise, relative to the best."""
    star, best = optimal_step(MAIN), gradient_descent(MAIN, debiased=True)
    assert star is not None
    ratios, costs = [], []
    for known in members("trained_elsewhere", range(5)):
        assert known.task == MAIN
        assert known.run.training is not None
        task = known.run.training.task
        assert task in trained_elsewhere.ELSEWHERE
        step = optimal_step(task)
        assert step is not None
        ratios.append(step / star)
        costs.append(_excess(step * np.eye(MAIN.dim)) / _excess(np.asarray(best.preconditioner)) - 1)
    assert np.round(ratios, 2).tolist() == [0.79, 0.73, 0.25, 3.87, 0.83]
    assert min(costs) > 0.045


def test_correlated_models_have_a_preconditioner_that_is_not_diagonal() -> None:
    known = members("trained_correlated", [0])[0]
    assert known.task == MAIN
    gamma = np.asarray(gradient_descent(trained_elsewhere.CORRELATED, debiased=True).preconditioner)
    off = np.linalg.norm(gamma - np.diag(np.diag(gamma)))
    assert off > 0.5 * abs(np.trace(gamma)) / MAIN.dim**0.5
    assert _excess(gamma) > 10 * _excess(np.asarray(gradient_descent(MAIN, debiased=True).preconditioner))
    explained = np.trace(gamma) ** 2 / MAIN.dim / (gamma**2).sum()  # of βᵀΓx_q, by the nearest βᵀ(ωI)x_q
    assert explained < 0.8


def _excess(gamma: np.ndarray) -> float:
    """Of debiased GD in the main setting, above the noise; exact."""
    risk = theory.preconditioned_debiased_gd_risk(gamma, np.eye(MAIN.dim), length=40, noise_var=0.1, query_noise=False)
    return float(risk)


# --- Shuffled labels --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", [MAIN, TWO_TASKS])
def test_labels_change_places_within_their_prompts(task: trained_shuffled.LinearRegression) -> None:
    plain, shuffled = (
        each.sample(50, length=12, generator=torch.Generator().manual_seed(1)) for each in (task, ShuffledLabels(task))
    )
    for part in ("x", "x_q", "y_q"):
        assert torch.equal(getattr(plain, part), getattr(shuffled, part))
    order = [
        [plain.y[b].tolist().index(label) for label in shuffled.y[b].tolist()]  # all outputs of a label together
        for b in range(50)
    ]
    assert all(sorted(places) == list(range(12)) for places in order)
    assert len({tuple(places) for places in order}) == 50
    at_place = np.array(order).mean(0)
    assert np.abs(at_place - 5.5).max() < 3 * (143 / 12 / 50) ** 0.5 + 0.5


def test_shuffled_labels_say_nothing_of_the_covariates() -> None:
    gd = GradientDescent(1.0, debiased=True)
    slopes = []
    for task in (MAIN, ShuffledLabels(MAIN)):
        prompt = task.sample(20_000, generator=torch.Generator().manual_seed(0))
        slopes.append((gd(prompt) * prompt.y_q).mean().item())
    assert slopes[0] == pytest.approx(39 / 40, abs=0.05)
    assert slopes[1] == pytest.approx(0.0, abs=0.02)


def test_shuffled_labels_are_a_task() -> None:
    task = ShuffledLabels(TWO_TASKS)
    assert (task.dim, task.length, task.n_outputs) == (6, 48, 2)
    first, second = (task.sample(4, generator=torch.Generator().manual_seed(seed)).y for seed in (0, 0))
    assert torch.equal(first, second)
    assert task.sample(4).y.shape == (4, 48, 2)
    with pytest.raises(ConfigError, match="batch"):
        task.sample(0)
