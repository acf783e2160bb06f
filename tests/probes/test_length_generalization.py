from __future__ import annotations

import numpy as np
import pytest
import torch

import icl_interp as icl
from icl_interp import theory
from icl_interp.config import ModelConfig
from icl_interp.probing import Lines
from icl_interp.records import Run
from icl_interp.serialization import dumps, to_data
from icl_interp.tasks import LinearRegression, MultiTaskRegression, kms
from icl_interp.testing import check_probe, plant
from icl_interp.weights import initial_weights
from icl_interp_probes.length_generalization import (
    FEWEST,
    LINEAR,
    OWN_STEP,
    LengthGeneralization,
    LengthGeneralizationProbe,
    extreme,
    magnitude,
    rounded,
)
from icl_interp_probes.shown import around

TASK = LinearRegression(dim=5, length=40, noise_var=0.1)
FALLS, AS_GD = CLAIMS = ("risk_falls_with_length", "generalizes_as_debiased_gd")


def analyzed(run: Run, budget: int = 1000) -> tuple[LengthGeneralization, dict[str, str]]:
    result = icl.analyze(run, budget=budget, probes=["length_generalization"])
    return result.get(LengthGeneralization), dict(zip(result.verdicts.claim, result.verdicts.status, strict=True))


def ideal(task: LinearRegression, omega: list[float], mu: list[float], activation: str) -> Run:
    """A run of heads with KQ_11 = ω·I and OV_22 = μ under another activation."""
    config = ModelConfig(task.dim, n_heads=len(omega), activation=activation)
    weights = {name: torch.eye(config.d_model).repeat(1, len(omega), 1, 1) for name in ("W_Q", "W_K", "W_V", "W_O")}
    weights["W_K"][..., -1] = 0
    weights["W_K"] *= config.score_scale * torch.tensor(omega)[:, None, None]
    weights["W_O"] *= torch.tensor(mu)[:, None, None]
    return Run(config, weights, task=task)


def test_contract() -> None:
    check_probe(LengthGeneralizationProbe)


def test_risks_are_the_closed_forms_at_every_length() -> None:
    found, statuses = analyzed(plant(TASK, roles=("positive", "negative"), gamma=0.1).run, budget=4000)
    assert statuses == dict.fromkeys(CLAIMS, "holds")
    assert found.lengths == (10, 15, 20, 30, 40, 50, 60, 80, 100)
    sizes, step = {"dim": 5, "noise_var": 0.1}, theory.gd_optimal_step(dim=5, length=40, noise_var=0.1)
    for i, L in enumerate(found.lengths):
        a = step / 40
        for name, risk in {
            "GD": theory.gd_risk(step, length=L, **sizes),
            "debiased GD": theory.debiased_gd_risk(theory.optimal_step(length=40, **sizes), length=L, **sizes),
            "debiased GD, re-tuned": theory.debiased_gd_risk(theory.optimal_step(length=L, **sizes), length=L, **sizes),
            LINEAR: 1.1 - 2 * a * L + a**2 * (L**2 + 6.5 * L),
        }.items():
            row = found.names.index(name)
            assert abs(found.risk[row, i] - risk) < 2.1 * found.risk_half[row, i], (name, L)


def test_what_linear_attention_would_do_turns_up_after_the_training_length() -> None:
    found, _ = analyzed(plant(TASK, roles=("positive", "negative")).run)
    risk = found.risk[found.names.index(LINEAR)]
    assert found.lengths[int(risk.argmin())] in (40, 50)
    assert risk[-1] > 1.5


def test_a_linear_attention_model_fails_both() -> None:
    """The same risks as its comparison, GD with a step that does not rescale: 1.72 at L = 100."""
    run = ideal(TASK, [0.02, 0.01], [0.7167, 0.7167], "linear")
    found, statuses = analyzed(run)
    assert statuses == dict.fromkeys(CLAIMS, "fails")
    np.testing.assert_allclose(found.risk[0], found.risk[found.names.index(LINEAR)], rtol=5e-3)
    assert found.change.low > 1


def test_heads_of_the_same_sign_get_better_but_not_as_debiased_gd_does() -> None:
    found, statuses = analyzed(plant(TASK, omega=[0.518, 0.518], mu=[0.75, 0.75]).run)
    assert statuses == {FALLS: "holds", AS_GD: "fails"}
    assert found.ratio.max() > 1.4


def test_one_head_says_nothing_of_several() -> None:
    found, statuses = analyzed(plant(TASK, omega=[0.518], mu=[1.5]).run)
    assert statuses == {FALLS: "holds", AS_GD: "not_applicable"}
    np.testing.assert_allclose(found.risk[0], found.risk[found.names.index("best single head")], rtol=0.02)


def test_the_own_step_is_measured() -> None:
    """A model of half the optimal step is held against debiased GD of half the optimal step."""
    found, statuses = analyzed(plant(TASK, omega=[0.05, -0.05], mu=[4.4, -4.4]).run)
    assert found.eta.low - 0.003 < 0.44 < found.eta.high + 0.003
    assert statuses[AS_GD] == "holds"
    assert (found.risk[0] > 1.3 * found.risk[found.names.index("debiased GD")])[4:].all()


def test_untrained_models_have_nothing_to_generalise() -> None:
    """Their risk falls with the length, too: what they pick up averages out."""
    for seed in range(2):
        config = ModelConfig(5, n_heads=4)
        run = Run(config, initial_weights(config, torch.Generator().manual_seed(seed)), task=TASK)
        found, statuses = analyzed(run)
        assert statuses == dict.fromkeys(CLAIMS, "not_applicable")
        assert found.learned.low > 0.9


@pytest.mark.parametrize("budget", [1, 2, 8, 50, FEWEST - 1])
def test_too_few_prompts_are_inconclusive(budget: int) -> None:
    for run in (plant(TASK, roles=("positive", "negative")).run, ideal(TASK, [0.02, 0.01], [0.7, 0.7], "linear")):
        _, statuses = analyzed(run, budget=budget)
        assert statuses == dict.fromkeys(CLAIMS, "inconclusive")


def test_lengths_are_paired() -> None:
    """Shorter prompts are the beginnings of longer ones, which makes differences between lengths more precise."""
    found, _ = analyzed(plant(TASK, roles=("positive", "negative")).run)
    at = found.lengths.index(40)
    assert found.change.value == pytest.approx(found.risk[0, -1] - found.risk[0, at], abs=1e-5)
    assert found.change.half < 0.8 * np.hypot(found.risk_half[0, -1], found.risk_half[0, at])


@pytest.mark.parametrize(
    "task", [LinearRegression(5, 40, 0.1, covariance=kms(0.5)), TASK.shifted(0.3)], ids=["kms", "shifted"]
)
def test_other_covariates_have_predictors_of_their_own(task: LinearRegression) -> None:
    found, _ = analyzed(plant(task, omega=[0.1, -0.1], mu=[5.0, -5.0]).run)
    at, row = found.lengths.index(40), found.names.index
    for better, worse in (("ridge", "debiased GD"), ("debiased GD", "best single head")):
        assert found.risk[row(better), at] < found.risk[row(worse), at]
    retuned, debiased = found.risk[row("debiased GD, re-tuned")], found.risk[row("debiased GD")]
    assert retuned[at] == debiased[at]
    assert retuned[0] < 0.95 * debiased[0]


def test_several_responses_are_measured_but_not_held_against_debiased_gd() -> None:
    task = MultiTaskRegression(4, [{0, 1}, {2, 3}], length=24)
    config = ModelConfig(4, 2, n_heads=4)
    run = Run(config, initial_weights(config, torch.Generator().manual_seed(0)), task=task)
    found, statuses = analyzed(run)
    assert statuses == dict.fromkeys(CLAIMS, "not_applicable")
    assert (found.lengths[0], found.lengths[-1]) == (6, 60)


def test_lengths_without_predictions_are_left_out_and_said() -> None:
    """1 + Cx is safe at the training length only: with five demonstrations its denominator comes near zero."""
    run = ideal(LinearRegression(5, 20, 0.1), [0.4, -0.4], [1.1, -1.1], "affine")
    result = icl.analyze(run, budget=2000, probes=["length_generalization"])
    found = result.get(LengthGeneralization)
    assert np.isnan(found.risk[0, 0])
    assert not np.isnan(found.risk[0, found.lengths.index(20)])
    sentences = dict(zip(result.verdicts.claim, result.verdicts.sentence, strict=True))
    assert f"At L = {found.lengths[0]} the model has no predictions" in sentences[AS_GD]
    statuses = dict(zip(result.verdicts.claim, result.verdicts.status, strict=True))
    assert statuses[AS_GD] != "holds"
    assert "Risk at each length" in result.to_markdown()


def test_a_single_demonstration_is_a_length_too() -> None:
    found, _ = analyzed(plant(LinearRegression(2, 1, 0.1), omega=[0.2, -0.2], mu=[2.0, -2.0]).run)
    assert found.lengths == (1, 2)


def test_what_a_report_carries_is_small_and_true() -> None:
    result = icl.analyze(plant(TASK, roles=("positive", "negative")).run, budget=500, probes=["length_generalization"])
    outcome, found = result["length_generalization"], result.get(LengthGeneralization)
    assert len(dumps(to_data(outcome.value))) + len(dumps([to_data(block) for block in outcome.blocks])) < 14_000
    lines = next(block for block in outcome.blocks if isinstance(block, Lines))
    np.testing.assert_allclose(lines.y, found.risk, rtol=1e-3)
    assert lines.names[1] == OWN_STEP


def test_the_extreme_of_several_estimates_holds_if_all_do() -> None:
    some = [around(1.0, 0.5, "prompts"), around(1.2, 0.1, "prompts"), around(-0.3, 0.4, "prompts")]
    largest, least = extreme(max, some), extreme(min, some)
    assert (largest.value, largest.low, largest.high) == pytest.approx((1.2, 1.1, 1.5))
    assert (least.value, least.low, least.high) == pytest.approx((-0.3, -0.7, 0.1))


def test_magnitudes_and_digits() -> None:
    across, below = magnitude(around(-0.1, 0.3, "prompts")), magnitude(around(-1.0, 0.25, "prompts"))
    assert (across.value, across.low, across.high) == pytest.approx((0.1, 0.0, 0.4))
    assert (below.value, below.low, below.high) == pytest.approx((1.0, 0.75, 1.25))
    assert rounded([123.456, np.inf, np.nan], 4)[0] == 123.5
    assert np.isinf(rounded([np.inf])[0])
