"""How tasks share heads: groups, modes and superposition, from weights and from effects."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import icl_interp as icl
from icl_interp.config import ModelConfig
from icl_interp.records import Run
from icl_interp.sharing import (
    MODES,
    Mode,
    Sharing,
    expected_groups,
    expected_mode,
    own_steps,
    same_supports,
    shared_steps,
    shares,
    swapped_steps,
    uses_of,
)
from icl_interp.sharing_effects import BATCHES, Effects
from icl_interp.tasks import LinearRegression, MultiTaskRegression
from icl_interp.testing import PlantedTasks, plant_tasks

PAPER = MultiTaskRegression(6, [(0, 1, 2, 3), (2, 3, 4, 5)], length=48, noise_var=0.1)
TASKS = {
    "paper": PAPER,
    "three apart": MultiTaskRegression(6, [(0, 1), (2, 3), (4, 5)], 24, 0.1),
    "four that overlap": MultiTaskRegression(5, [(0, 1), (1, 2), (2, 3), (3, 4)], 24, 0.1),
    "of two sizes": MultiTaskRegression(4, [(0, 1, 2), (3,)], 20, 0.2),
}
# Table 2 of arXiv 2503.12734: a head's ω on (S1 only, S2 only, both) and its μ for both tasks.
TABLE_2 = np.array(
    [
        [-0.0316, -0.0689, -0.0893, -3.9911, -7.0742],
        [0.0779, 0.0000, 0.0870, 6.9204, 2.3371],
        [-0.0837, 0.0927, 0.0152, -2.8739, 4.7399],
    ]
)


def of_weights(planted: PlantedTasks) -> Sharing:
    circuits = planted.run.circuits()
    task = planted.run.task
    return Sharing.of_weights(circuits.diagonal[0], circuits.mu[0], same_supports(uses_of(task)))


def prompts(task: MultiTaskRegression, n: int, seed: int = 0):
    return task.sample(n, generator=torch.Generator().manual_seed(seed)).to(dtype=torch.float64)


# --- Numbers that are known -------------------------------------------------------------------------------------------


def test_the_papers_table_is_superposition():
    omega = TABLE_2[:, [0, 0, 2, 2, 1, 1]]  # features 0, 1: task 1 only; 2, 3: both; 4, 5: task 2 only
    found = Sharing.of_weights(omega, TABLE_2[:, 3:])
    assert found.mode == "IV"
    assert found.groups == ((0, 1), (2, 3), (4, 5))
    np.testing.assert_allclose(found.steps[:, [0, 4, 2]], [[0.906, 0.009, 0.915], [0.009, 0.927, 0.907]], atol=6e-4)
    np.testing.assert_allclose(found.imbalance, [0.0554 / 13.785, 0.0028 / 14.151], atol=1e-4)
    assert found.uses.tolist() == [[True] * 4 + [False] * 2, [False] * 2 + [True] * 4]
    assert 0.6 < found.score < 0.7
    assert found.margins()["IV"] > 0.8
    assert max(found.margins()[mode] for mode in ("I", "II", "III")) < -0.8


def test_steps_of_theory():
    np.testing.assert_allclose(own_steps(PAPER), 0.9160 * PAPER.uses, atol=5e-5)
    shared = shared_steps(PAPER)
    np.testing.assert_allclose(shared[2:4] / shared[[0, 5]], 1.084, atol=5e-4)
    assert expected_groups(PAPER, "I") == expected_groups(PAPER, "II") == ((0, 1, 4, 5), (2, 3))
    assert expected_groups(PAPER, "III") == expected_groups(PAPER, "IV") == ((0, 1), (2, 3), (4, 5))


def test_the_mode_that_so_many_heads_should_have():
    assert [expected_mode(2, heads) for heads in (1, 2, 3, 4, 9)] == ["I", "II", "IV", "III", "III"]
    assert [expected_mode(4, heads) for heads in range(1, 9)] == ["I", *3 * ["II"], *3 * ["IV"], "III"]
    assert [expected_mode(1, heads) for heads in (1, 2, 3)] == ["I", "II", "II"]  # nothing to tell apart


def test_only_supports_that_are_known():
    assert uses_of(None) is None
    assert uses_of(LinearRegression(3, 9)) is None
    assert same_supports(None) is None
    same = same_supports(MultiTaskRegression(3, [(0, 1), (1,), (1, 0)], 9).uses)
    assert same.tolist() == [[True, False, True], [False, True, False], [True, False, True]]


# --- Planted truths ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
def test_planted_modes_are_found(mode: Mode):
    """300 models a mode, with noise, heads, features and tasks in any order: mode, groups and superposition."""
    right = groups = superposed = 0
    for seed in range(300):
        task = list(TASKS.values())[seed % len(TASKS)]
        fewest = {"I": 1, "II": 2, "III": 2 * task.n_outputs, "IV": task.n_outputs + 1}[mode]
        heads = fewest + (seed // 4) % (2 if mode != "IV" or task.n_outputs > 2 else 1)
        planted = plant_tasks(task, mode, n_heads=heads, noise=0.01, seed=seed)
        found = of_weights(planted)
        right += found.mode == mode
        groups += set(found.groups) == set(planted.groups)
        superposed += found.mode == "IV"
    assert right >= 297
    assert groups == 300
    assert superposed >= 297 if mode == "IV" else superposed == 0


@pytest.mark.parametrize("mode", MODES)
def test_planted_heads_make_the_steps_of_theory(mode: Mode):
    planted = plant_tasks(PAPER, mode, permute=False, inert_noise=3.0)
    assert planted.run.task == PAPER
    found = of_weights(planted)
    if mode in ("III", "IV"):
        np.testing.assert_allclose(found.steps, own_steps(PAPER), atol=1e-5)
        np.testing.assert_allclose(found.imbalance, 0, atol=1e-6)
    else:
        np.testing.assert_allclose(found.steps[0], found.steps[1], rtol=1e-5)
        np.testing.assert_allclose(found.steps[0, 2] / found.steps[0, 0], 1.084, atol=5e-4)
    assert found.score == pytest.approx(0, abs=1e-5) or mode == "IV"


def test_what_cannot_be_planted():
    from icl_interp.errors import ConfigError

    for arguments, message in (
        ({"mode": "V"}, r"modes to plant are 'I', 'II', 'III', 'IV', got 'V'"),
        ({"mode": "III", "n_heads": 3}, "mode III of 2 tasks takes 4 heads, got 3"),
        ({"mode": "IV", "n_heads": 2}, "mode IV of 2 tasks takes 3 heads, got 2"),
        ({"mode": "IV", "task": MultiTaskRegression(2, [(0,), (0,)], 9)}, "mode IV tells tasks apart"),
        ({"mode": "III", "task": MultiTaskRegression(2, [(0,)], 9)}, "mode III tells tasks apart"),
    ):
        with pytest.raises(ConfigError, match=message):
            plant_tasks(**arguments)


# --- What makes a mode ------------------------------------------------------------------------------------------------


def sharing(steps, imbalance=0.0, work=None) -> Sharing:
    steps = np.array(steps, float)
    work = np.ones((2, len(steps))) / 2 if work is None else np.array(work, float)
    return Sharing(steps, np.broadcast_to(imbalance, len(steps)).astype(float), work)


OWN = [[0.9, 0.9, 0.0], [0.0, 0.9, 0.9]]
APART = [[0.5, 0.0], [0.5, 0.0], [0.0, 0.5], [0.0, 0.5]]


@pytest.mark.parametrize(
    ("case", "mode"),
    [
        (sharing([[0.4, 0.5], [0.4, 0.5]], imbalance=1.0), "I"),
        (sharing([[0.4, 0.5], [0.8, 1.0]], imbalance=1.0), "I"),  # alike up to a factor
        (sharing([[0.8, 0.9], [0.8, 0.9]]), "II"),
        (sharing([[0.8, 0.9], [0.8, 0.9]], imbalance=[0.0, 0.5]), "other"),  # one task is balanced, the other is not
        (sharing(OWN, work=APART), "III"),
        (sharing(OWN), "IV"),
        (sharing(OWN, imbalance=[0.4, 0.0]), "other"),
        (sharing([[0.9, 0.9, 0.4], [0.0, 0.9, 0.9]]), "other"),  # half a step on a feature of the other's
        (sharing([[0.9, 0.9, 0.0], [0.0, 0.9, 0.9], [0.0, 0.9, 0.9]]), "other"),  # two of three are told apart
        (sharing([[0.0, 0.0], [0.9, 0.9]]), "other"),  # a task that is not solved
        (sharing([[-0.9, -0.9], [0.9, 0.9]]), "other"),
        (sharing([[np.nan, 0.9], [0.9, 0.9]]), "other"),
    ],
)
def test_modes(case: Sharing, mode: Mode):
    assert case.mode == mode
    inside = [name for name, margin in case.margins().items() if margin > 0]
    assert inside == ([mode] if mode != "other" else [])


def test_equal_supports_need_not_be_told_apart():
    steps = np.array([[0.9, 0.9, 0.0], [0.0, 0.9, 0.9], [0.0, 0.9, 0.9]])
    same = np.array([[True, False, False], [False, True, True], [False, True, True]])
    work = shares(np.array([[1.0, 0, 0], [1, 0, 0], [0, 1, 1], [0, 1, 1]]))
    found = Sharing(steps, np.zeros(3), work, same)
    assert found.mode == "III"
    assert found.solvers == ((0,), (1, 2))
    assert found.score == 0
    assert dataclasses.replace(found, same=None).mode == "other"


def test_the_score_of_superposition():
    assert sharing(OWN, work=APART).score == 0
    assert sharing(OWN).score == pytest.approx(1)
    assert sharing(OWN, work=[[0.5, 0], [0, 0.5], [0.5, 0.5]]).score == pytest.approx(0.5)
    assert sharing([[0.8, 0.9], [0.8, 0.9]]).score == 0  # shared, but nothing is told apart


def test_who_serves_whom():
    found = sharing(OWN, work=[[0.5, 0.02], [0.47, 0.3], [0.01, 0.62], [0.02, 0.06]])
    assert found.serves.tolist() == [[True, False], [True, True], [False, True], [False, False]]
    np.testing.assert_allclose(found.second, [0.04, 0.3 / 0.47, 0.01 / 0.62, np.nan])
    assert found.shared == pytest.approx(0.3 / 0.47)


matrices = st.integers(0, 2**32 - 1).map(lambda seed: np.random.default_rng(seed))


@given(matrices, st.integers(1, 5), st.integers(1, 4), st.integers(1, 6))
def test_orders_and_scales_change_nothing(rng: np.random.Generator, heads: int, tasks: int, features: int):
    omega, mu = rng.standard_normal((heads, features)), rng.standard_normal((heads, tasks))
    found = Sharing.of_weights(omega, mu)
    h, n, i = (rng.permutation(size) for size in (heads, tasks, features))
    scale = rng.uniform(0.1, 10)
    other = Sharing.of_weights(scale * omega[h][:, i], mu[h][:, n] / scale)
    assert other.mode == found.mode
    assert other.score == pytest.approx(found.score, abs=1e-9)
    assert other.shared == pytest.approx(found.shared, abs=1e-9)
    for mode, margin in found.margins().items():
        assert other.margins()[mode] == pytest.approx(margin, abs=1e-9)
    back = {frozenset(int(i[feature]) for feature in group) for group in other.groups}
    assert back == {frozenset(group) for group in found.groups}
    assert sorted(feature for group in found.groups for feature in group) == list(range(features))
    assert 0 <= found.score <= 1 + 1e-9
    assert sum(margin > 0 for margin in found.margins().values()) <= 1


# --- Effects ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
def test_effects_tell_the_mode_too(mode: Mode):
    planted = plant_tasks(None, mode, seed=3)
    task = planted.run.task
    assert isinstance(task, MultiTaskRegression)
    effects = Effects.measure(planted.run.circuits(), [prompts(task, 1500, seed) for seed in range(2)])
    found, weights = effects.sharing(), of_weights(planted)
    assert found.mode == mode
    if mode in ("III", "IV"):  # the levels of the others are finer than so few prompts tell
        assert found.groups == weights.groups
    inside = effects.estimate(lambda each: each.margins()[mode])
    assert inside.low > 0
    if mode != "I":  # a narrow kernel is no step of gradient descent
        np.testing.assert_allclose(found.steps, weights.steps, atol=0.05)
    np.testing.assert_allclose(found.work, weights.work, atol=0.06)
    np.testing.assert_allclose(found.imbalance, weights.imbalance, atol=1e-5)


def test_rises_are_those_of_ablation():
    from icl_interp.interventions import zero_ablation

    planted = plant_tasks(PAPER, "IV", noise=0.05, seed=1, permute=False)
    prompt = prompts(PAPER, 400)
    effects = Effects.measure(planted.run.circuits(), [prompt[:150], prompt[150:]])
    model = planted.run.model().double()
    for head, rises in enumerate(effects.rises):
        with zero_ablation(model, [head]):
            without = model.predict(prompt) - prompt.y_q
        rise = (without.square() - (model.predict(prompt) - prompt.y_q).square()).mean(0)
        np.testing.assert_allclose([each.value for each in rises], rise.detach().numpy(), rtol=1e-4)
        assert all(each.low < each.value < each.high for each in rises)


def test_few_prompts_tell_little():
    planted = plant_tasks(PAPER, "III", permute=False)
    effects = Effects.measure(planted.run.circuits(), [prompts(PAPER, 1)])
    assert effects.prompts.sum() == 1
    assert np.isinf(effects.rises[0][0].half)
    assert np.isinf(effects.estimate(lambda each: each.margins()["III"]).half)
    few = Effects.measure(planted.run.circuits(), [prompts(PAPER, 11 * BATCHES)])  # fewer than two for each slope
    assert np.isinf(few.estimate(lambda each: each.margins()["III"]).half)


def test_one_predictor_may_be_used_with_either_sign():
    """Tasks of disjoint supports cannot tell a predictor from its mirror image on the features of the other."""
    found = sharing([[0.8, 0.8, -0.8, -0.8], [-0.8, -0.8, 0.8, 0.8]])
    assert found.mode == "II"
    assert found.groups == ((0, 1, 2, 3),)


# --- Swapped heads ----------------------------------------------------------------------------------------------------


def with_swapped_heads(gain: float) -> Run:
    """Heads of their own for each task, but that x1 is read for task 0 by two heads that attend by its labels.

    KQ_21 = ±k on x1 and OV_21 = ±o there: they add y_0ℓ x_1ℓ · 2ko x_1q to first order, and o = 0 on average.
    """
    planted = plant_tasks(PAPER, "III", permute=False, seed=1)
    KQ, OV = np.zeros((2, 6, 8, 8))
    KQ[:4, :6, :6] = planted.omega[:, None] * np.eye(6)
    KQ[:2, 1, 1] = 0
    OV[:4, [6, 7], [6, 7]] = planted.mu
    for head, sign in ((4, 1), (5, -1)):
        KQ[head, 6, 1] = 0.07 * sign
        OV[head, 6, 1] = gain / (2 * 0.07) * sign
    config = ModelConfig(6, 2, n_heads=6)
    same = np.broadcast_to(np.eye(8), KQ.shape)
    factors = {"W_Q": same, "W_K": config.score_scale * KQ, "W_V": same, "W_O": OV.swapaxes(1, 2)}
    return Run(config, {k: torch.tensor(v[None], dtype=torch.float32) for k, v in factors.items()}, task=PAPER)


def test_swapped_heads_make_steps_but_no_mode():
    eta = own_steps(PAPER).max()
    circuits = with_swapped_heads(eta).circuits()
    swapped = swapped_steps(circuits)
    np.testing.assert_allclose(swapped, np.eye(2, 6, k=1) * np.array([[eta], [0]]), atol=1e-6)
    found = Sharing.of_weights(circuits.diagonal[0], circuits.mu[0], swapped=swapped)
    np.testing.assert_allclose(found.steps, own_steps(PAPER), atol=1e-5)  # all of them are made
    np.testing.assert_allclose(found.swapped_part, [0.25, 0], atol=1e-6)
    assert found.mode == "other"
    unseen = Sharing.of_weights(circuits.diagonal[0], circuits.mu[0])
    assert unseen.steps[0, 1] == pytest.approx(0, abs=1e-6)
    few = Sharing.of_weights(circuits.diagonal[0], circuits.mu[0], swapped=swapped / 20)
    assert few.swapped_part.max() < 0.1
    effects = Effects.measure(circuits, [prompts(PAPER, 4000)]).sharing()
    assert effects.mode == "other"
    np.testing.assert_allclose(effects.swapped_part, found.swapped_part, atol=0.02)
    np.testing.assert_allclose(effects.steps, own_steps(PAPER), atol=0.06)  # and are seen in what the model predicts


def test_a_report_says_so_of_swapped_heads():
    result = icl.analyze(with_swapped_heads(own_steps(PAPER).max()), budget=1500, probes=["task_allocation"])
    assert set(result.verdicts.status) == {"not_applicable"}
    assert "attend by labels and read covariates, by KQ_21 and OV_21, make 25% of the steps of y0" in " ".join(
        str(result).split()
    )
