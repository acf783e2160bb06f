"""Families of other circuits and of several responses: what they say of their members is true by a margin."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from members import (
    FAMILIES,
    MARGIN,
    circuits_of,
    members,
    read_preconditioner,
    regression,
    tasks_of,
)

from icl_interp.circuits import Circuits
from icl_interp.sharing import Sharing, imbalance, own_steps, same_supports
from icl_interp.testing import Family, Known
from icl_interp.testing.families.members import altered
from icl_interp.testing.families.wrong_circuits import ALLOWED, pattern_misses

# --- What is not so, by circuits -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["untrained", "random_same_norms", "off_diagonal", "label_scores", "covariate_outputs", "almost_gd"]
)
def test_circuits_miss_what_the_family_violates_by_a_margin_and_nothing_that_it_keeps(name: str):
    family: Family = FAMILIES[name]
    for known in members(name):
        for claim, miss in pattern_misses(known.run).items():
            if claim in family.violates:
                assert miss >= (1 - 1e-4) * MARGIN * ALLOWED[claim]
            if claim in family.holds:
                assert miss < 0.8 * ALLOWED[claim]


@pytest.mark.parametrize("name", ["almost_gd", "almost_gd_beside"])
def test_what_is_no_step_of_gd_makes_its_share_of_the_predictions(name: str):
    for known in members(name):
        step = read_preconditioner(known)
        beside = step - np.trace(step) / len(step) * np.eye(len(step))
        assert np.sum(beside**2) / np.sum(step**2) == pytest.approx(known.size, rel=0.01)
        assert known.size >= 0.0625


def test_what_labels_add_is_rare_and_then_large():
    for known in members("rarely_other")[:5]:
        task, circuits = regression(known), circuits_of(known)
        plain = altered(known.run, KQ_21=-circuits.KQ_21[0])
        model, ideal = circuits, Circuits.from_weights(plain.weights, plain.model_config)
        prompts = task.sample(4096, generator=torch.Generator().manual_seed(0))
        shares = []
        for outlying in (1.0, 10.0):
            prompts.y[:, : max(round(task.length / 20), 1)] *= outlying
            own, other = model.predict(prompts).double(), ideal.predict(prompts).double()
            shares.append(float((own - other).square().mean() / own.square().mean()))
        assert shares[0] < 0.015 < 0.0625 < shares[1]


# --- Several responses -----------------------------------------------------------------------------------------------


def sharing_of(known: Known) -> Sharing:
    circuits = circuits_of(known)
    return Sharing.of_weights(circuits.diagonal[0], circuits.mu[0], same_supports(tasks_of(known).uses))


@pytest.mark.parametrize("name", [name for name in FAMILIES if "tasks_" in name and name != "tasks_untrained"])
def test_tasks_share_heads_in_their_mode(name: str):
    for known in members(name):
        if known.mode is not None:
            sharing = sharing_of(known)
            assert sharing.mode == known.mode
            assert sharing.margins()[sharing.mode] >= 0.1


@pytest.mark.parametrize("name", ["planted_tasks_dedicated", "planted_tasks_superposed"])
def test_planted_tasks_take_the_steps_of_theory(name: str):
    for known in members(name):
        task, sharing = tasks_of(known), sharing_of(known)
        wanted = own_steps(task)
        assert sharing.steps == pytest.approx(wanted, abs=0.01 * wanted.max())
        assert sharing.imbalance.max() < 0.01
        assert (sharing.shared > MARGIN * 0.33) == (name == "planted_tasks_superposed")


def test_wrong_groups_scale_and_balance_are_wrong_by_a_margin():
    for known in members("tasks_wrong_groups"):
        task, steps = tasks_of(known), sharing_of(known).steps
        relative = steps / own_steps(task).max(1, keepdims=True)
        assert np.abs(relative[~task.uses]).max() > MARGIN * 0.05
        assert np.abs([row[uses].mean() - 1 for row, uses in zip(relative, task.uses, strict=True)]).max() > 0.0375
    for known in members("tasks_wrong_scale"):
        task, steps = tasks_of(known), sharing_of(known).steps
        assert (np.abs(steps.max(1) / own_steps(task).max(1) - 1) > 0.3).all()
    for known in members("tasks_unbalanced"):
        assert imbalance(circuits_of(known).mu[0]).min() > MARGIN * 0.03


def test_interfering_tasks_hear_each_others_labels():
    for known in members("tasks_interfering"):
        task, circuits = tasks_of(known), circuits_of(known)
        draw = torch.Generator().manual_seed(0)
        prompts, others = task.sample(512, generator=draw), task.sample(512, generator=draw)
        before = circuits.predict(prompts)
        changes = []
        for task_heard in range(task.n_outputs):
            kept = prompts.y.clone()
            prompts.y[..., task_heard] = others.y[..., task_heard]
            change = (circuits.predict(prompts) - before).square().mean(0) / before.square().mean(0)
            changes += [float(c) ** 0.5 for n, c in enumerate(change) if n != task_heard]
            prompts.y[:] = kept
        assert max(changes) > MARGIN * 0.05


def test_hidden_sharing_changes_no_prediction():
    for known in members("tasks_hidden_sharing"):
        OV_22 = circuits_of(known).OV_22[0]
        off = OV_22 * (1 - np.eye(2))
        assert np.abs(off).max() > 0.3 * np.abs(OV_22 * np.eye(2)).max()
        assert np.abs(off.sum(0)).max() < 1e-3 * np.abs(off).max()
