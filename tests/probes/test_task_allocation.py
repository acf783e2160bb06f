from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch

import icl_interp as icl
from icl_interp.config import ModelConfig
from icl_interp.probing import Table, Text
from icl_interp.records import Run
from icl_interp.sharing import MODES, Mode
from icl_interp.tasks import MultiTaskRegression
from icl_interp.testing import check_probe, plant_tasks
from icl_interp.testing.planting import hidden_weights
from icl_interp.weights import initial_weights
from icl_interp_probes.task_allocation import TaskAllocation, TaskAllocationProbe

PAPER = MultiTaskRegression(6, [(0, 1, 2, 3), (2, 3, 4, 5)], length=48, noise_var=0.1)
FOUR = MultiTaskRegression(5, [(0, 1), (1, 2), (2, 3), (3, 4)], length=24, noise_var=0.1)
MODE, ABLATED, GROUPS = CLAIMS = ("mode_of_so_many_heads", "mode_under_ablation", "groups_are_supports")
BUDGET = 2_000


def analyzed(run: Run, budget: int = BUDGET) -> tuple[TaskAllocation, dict[str, str]]:
    result = icl.analyze(run, budget=budget, probes=["task_allocation"])
    return result.get(TaskAllocation), dict(zip(result.verdicts.claim, result.verdicts.status, strict=True))


def built(task: MultiTaskRegression, omega: np.ndarray, mu: np.ndarray) -> Run:
    """A run of these diagonals."""
    config = ModelConfig(task.dim, task.n_outputs, n_heads=len(omega))
    rng = np.random.default_rng(0)
    return Run(config, hidden_weights(config, omega[:, None] * np.eye(task.dim), mu, 1.0, 0.0, rng), task=task)


def sentence(run: Run, claim: str) -> str:
    verdicts = icl.analyze(run, budget=BUDGET, probes=["task_allocation"]).verdicts
    return verdicts.sentence[verdicts.claim == claim].item()


def test_contract() -> None:
    check_probe(TaskAllocationProbe, plant_tasks(noise=0.01).run)


@pytest.mark.parametrize("task", [PAPER, FOUR], ids=["two tasks", "four"])
@pytest.mark.parametrize("mode", MODES)
def test_planted_modes_are_found_and_confirmed(task: MultiTaskRegression, mode: Mode) -> None:
    planted = plant_tasks(task, mode, noise=0.01, seed=5)
    found, statuses = analyzed(planted.run, 4 * BUDGET)
    assert statuses == dict.fromkeys(CLAIMS, "holds")
    assert found.mode == found.mode_under_ablation == found.expected == mode
    assert set(found.groups) == set(planted.groups)
    assert found.misplaced is not None
    assert found.misplaced.value == 0
    np.testing.assert_allclose(found.work_under_ablation, found.work, atol=0.12)
    assert found.iterate == "the checkpoint itself"


def test_trained_heads_of_their_own() -> None:
    """Thirty thousand steps suffice; the numbers are those of the mean iterate."""
    task = MultiTaskRegression(2, [(0,), (1,)], length=12, noise_var=0.1)
    found, statuses = analyzed(icl.train(task, n_heads=4, steps=8_000, lr=3e-3, seed=1, progress=False))
    assert statuses == dict.fromkeys(CLAIMS, "holds")
    assert found.mode == "III"
    assert "iterates in the last fifth of training" in found.iterate
    assert found.serves.sum(0).tolist() == [2, 2]
    assert found.serves.sum(1).tolist() == [1, 1, 1, 1]


# --- What each claim fails on -----------------------------------------------------------------------------------------


def test_more_heads_than_a_mode_takes_and_still_that_mode() -> None:
    run = plant_tasks(PAPER, "II", n_heads=4, seed=1).run
    found, statuses = analyzed(run)
    assert statuses == {MODE: "fails", ABLATED: "holds", GROUPS: "holds"}
    assert (found.mode, found.expected) == ("II", "III")
    assert sentence(run, MODE) == (
        "4 heads for 2 tasks: mode II, one preconditioned gradient descent for all tasks; the paper finds mode III "
        "with so many."
    )


def test_heads_of_one_sign_are_one_kernel() -> None:
    found, statuses = analyzed(plant_tasks(PAPER, "I", n_heads=2, seed=2).run)
    assert (found.mode, statuses[MODE]) == ("I", "fails")


def test_features_of_the_other_task_are_misplaced() -> None:
    """The right mode with the wrong features: x1 and x4 have changed places."""
    planted = plant_tasks(PAPER, "III", permute=False, seed=1)
    omega = planted.omega[:, [0, 4, 2, 3, 1, 5]]
    run = built(PAPER, omega, planted.mu)
    found, statuses = analyzed(run)
    assert statuses == {MODE: "holds", ABLATED: "holds", GROUPS: "fails"}
    assert found.groups == ((0, 4), (1, 5), (2, 3))
    assert "{x0, x4}, {x1, x5}, {x2, x3}; 4 of 6 features" in sentence(run, GROUPS)


def test_what_ablation_does_not_confirm() -> None:
    """By the weights, heads of their own; but KQ off its diagonal makes head 0 nearly as useful for the other task."""
    planted = plant_tasks(PAPER, "III", permute=False, seed=1)
    config = planted.run.model_config
    KQ_11 = planted.omega[:, None] * np.eye(6)
    mu = planted.mu.copy()
    mixing = hidden_weights(config, KQ_11, mu, 0.0, 0.0, np.random.default_rng(0))
    OV = (mixing["W_V"].double() @ mixing["W_O"].double()).mT.numpy()[0]
    OV[:, 6, 7] = 0.8 * OV[:, 7, 7]  # what is meant for task 1 goes to task 0 as well
    OV[:, 7, 6] = 0.8 * OV[:, 6, 6]
    weights = dict(mixing)
    weights["W_V"] = torch.eye(8).expand(1, 4, 8, 8).contiguous()
    weights["W_O"] = torch.from_numpy(OV).mT[None].float().contiguous()
    result = icl.analyze(Run(config, weights, task=PAPER), budget=BUDGET, probes=["task_allocation"])
    statuses = dict(zip(result.verdicts.claim, result.verdicts.status, strict=True))
    assert statuses[ABLATED] in ("fails", "not_applicable")
    assert result.get(TaskAllocation).mode == "III"


# --- What cannot be told ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("budget", [1, 8, 50])
def test_too_few_prompts_do_not_decide(budget: int) -> None:
    _, statuses = analyzed(plant_tasks(PAPER, "III", noise=0.05).run, budget=budget)
    assert statuses[ABLATED] in ("inconclusive", "not_applicable")


def test_between_two_modes_nothing_is_concluded() -> None:
    """A head that does a third as much for a second task is at the bound between heads of their own and shared ones."""
    planted = plant_tasks(PAPER, "III", permute=False, seed=1)
    mu = planted.mu.copy()
    mu[:2, 1], mu[0, 1] = 0, mu[2, 1] / 3
    mu[1, 1] = -mu[0, 1]
    omega = planted.omega.copy()
    run = built(PAPER, omega, mu)
    found, statuses = analyzed(run)
    assert abs(found.margin.value) < 0.5
    assert statuses[ABLATED] != "holds" or found.margin_under_ablation.low > 0


@pytest.mark.parametrize("seed", range(8))
def test_an_untrained_model_has_no_mode(seed: int) -> None:
    config = ModelConfig(6, 2, n_heads=1 + seed % 4)
    run = Run(config, initial_weights(config, torch.Generator().manual_seed(seed)), task=PAPER)
    _, statuses = analyzed(run)
    assert set(statuses.values()) == {"not_applicable"}


def test_supports_that_are_not_known() -> None:
    @dataclass(frozen=True)
    class Mine:
        dim: int = 6
        n_outputs: int = 2
        length: int = 48

        def sample(self, batch, *, length=None, generator=None, device=None):
            return PAPER.sample(batch, length=length, generator=generator, device=device)

    run = plant_tasks(PAPER, "III", permute=False).run
    result = icl.analyze(run, task=Mine(), budget=BUDGET, probes=["task_allocation"])
    statuses = dict(zip(result.verdicts.claim, result.verdicts.status, strict=True))
    assert statuses == {MODE: "holds", ABLATED: "holds", GROUPS: "not_applicable"}
    found = result.get(TaskAllocation)
    assert found.supports is None
    assert found.groups == ((0, 1), (2, 3), (4, 5))


def test_deeper_models_are_not_its_business() -> None:
    config = ModelConfig(3, 2, n_heads=2, n_layers=2)
    run = Run(config, initial_weights(config, torch.Generator().manual_seed(0)))
    task = MultiTaskRegression(3, [(0, 1), (2,)], 8)
    outcome = icl.analyze(run, task=task, budget=50, probes=["task_allocation"])["task_allocation"]
    assert outcome.status == "skipped"
    assert outcome.reason == "needs one layer of heads on a prompt's own columns: this model has more"


# --- How it reads -----------------------------------------------------------------------------------------------------


def test_who_serves_whom_at_one_look() -> None:
    planted = plant_tasks(PAPER, "III", permute=False, seed=4)
    found, _ = analyzed(planted.run)
    who, removed, groups, told = TaskAllocationProbe().blocks(found)
    assert isinstance(who, Table)
    assert who.first_screen
    assert who.columns[:3] == ("head", "for y0", "for y1")
    assert who.columns[3:] == ("ω {x0, x1}", "ω {x2, x3}", "ω {x4, x5}", "μ y0", "μ y1")
    signs = ["positive" if planted.omega[h].sum() > 0 else "negative" for h in range(4)]
    for h, row in enumerate(who.rows):
        own = int(h >= 2)
        assert str(row[1 + own]).startswith(signs[h])
        assert row[2 - own] == "—"
    assert isinstance(removed, Table)
    assert removed.columns == ("head", "rise in risk of y0", "rise in risk of y1", "share in y0", "share in y1")
    assert isinstance(groups, Table)
    assert [row[:3] for row in groups.rows] == [
        ("{x0, x1}", "y0", "y0"),
        ("{x2, x3}", "y0, y1", "y0, y1"),
        ("{x4, x5}", "y1", "y1"),
    ]
    assert isinstance(told, Text)
