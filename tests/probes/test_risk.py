from __future__ import annotations

import numpy as np
import pytest
import torch

import icl_interp as icl
from icl_interp import theory
from icl_interp.config import ModelConfig
from icl_interp.records import Run
from icl_interp.tasks import LinearRegression, MultiTaskRegression, kms
from icl_interp.testing import check_probe, plant
from icl_interp.weights import initial_weights
from icl_interp_probes.risk import Risk, RiskProbe

TASK = LinearRegression(dim=5, length=40, noise_var=0.1)
CLAIMS = ("below_one_head_optimum", "risk_of_debiased_gd", "function_of_debiased_gd")


def analyzed(run: Run, budget: int = 8000) -> tuple[Risk, dict[str, str]]:
    result = icl.analyze(run, budget=budget, probes=["risk"])
    return result.get(Risk), dict(zip(result.verdicts.claim, result.verdicts.status, strict=True))


def test_risks_are_the_closed_forms() -> None:
    """At every length, for the steps that are optimal at L = 40; ridge's from the literature's main setting."""
    found, statuses = analyzed(plant(TASK, roles=("positive", "negative")).run, budget=30_000)
    assert statuses == dict.fromkeys(CLAIMS, "holds")
    assert found.lengths == (10, 20, 40, 60, 100)
    vanilla, debiased = 0.86022, 0.87912
    for i, length in enumerate(found.lengths):
        sizes = {"dim": 5, "length": length, "noise_var": 0.1}
        for name, exact in (
            ("GD", theory.gd_risk(vanilla, **sizes)),
            ("debiased GD", theory.debiased_gd_risk(debiased, **sizes)),
        ):
            row = found.names.index(name)
            assert abs(found.risk[row, i] - exact) < 2.1 * found.risk_half[row, i]
    at = found.lengths.index(40)
    for name, value in (("ridge", 0.1145), ("one positive head", 0.4048), ("one negative head", 0.4048)):
        row = found.names.index(name)
        assert abs(found.risk[row, at] - value) < 2.1 * found.risk_half[row, at]


def test_paired_errors_are_much_smaller_than_unpaired_ones() -> None:
    found, _ = analyzed(plant(TASK, roles=("positive", "negative"), gamma=0.05).run)
    row = found.names.index("debiased GD")
    at = found.lengths.index(40)
    assert found.excess_half[row, at] < 0.1 * found.risk_half[row, at]
    assert abs(found.excess[row, at]) < 3 * found.excess_half[row, at] + 1e-3


def test_one_head_is_near_one_head_and_claims_about_several_do_not_apply() -> None:
    for sign, name in ((1, "one positive head"), (-1, "one negative head")):
        found, statuses = analyzed(plant(TASK, omega=[0.518 * sign], mu=[1.5 * sign]).run)
        assert statuses == dict.fromkeys(CLAIMS, "not_applicable")
        nearest = found.names[1 + int(np.argmin([d.value for d in found.distance]))]
        assert nearest in (name, "kernel") if sign > 0 else nearest == name


def test_a_same_sign_pair_fails_all_three() -> None:
    found, statuses = analyzed(plant(TASK, omega=[0.518, 0.518], mu=[0.75, 0.75]).run)
    assert statuses["risk_of_debiased_gd"] == "fails"
    assert statuses["function_of_debiased_gd"] == "fails"
    assert statuses["below_one_head_optimum"] != "holds"
    assert found.ratio.value > 1.5


def test_vanilla_gd_is_told_from_debiased_gd_though_their_risks_are_alike() -> None:
    """A mean head that undoes the debiasing makes vanilla-like predictions: risk alone would not notice."""
    mu = 3.4
    biased, statuses = analyzed(plant(TASK, omega=[0.13, -0.13, 0.0], mu=[mu, -mu, 0.9]).run, budget=16_000)
    assert biased.ratio.value < 1.15
    assert statuses["function_of_debiased_gd"] != "holds"


def test_an_untrained_model_is_none_of_them() -> None:
    config = ModelConfig(5, n_heads=4)
    run = Run(config, initial_weights(config, torch.Generator().manual_seed(0)), task=TASK)
    found, statuses = analyzed(run)
    assert set(statuses.values()) == {"fails"}
    assert min(d.value for d in found.distance) > 0.4


def test_too_few_prompts_are_inconclusive() -> None:
    _, statuses = analyzed(plant(TASK, roles=("positive", "negative")).run, budget=4)
    assert "inconclusive" in statuses.values()
    assert "fails" not in statuses.values()


@pytest.mark.parametrize("task", [LinearRegression(5, 40, 0.1, covariance=kms(0.5)), TASK.shifted(0.3)])
def test_other_covariates_have_predictors_of_their_own(task: LinearRegression) -> None:
    found, _ = analyzed(plant(task, omega=[0.1, -0.1], mu=[3.0, -3.0]).run)
    at = found.lengths.index(40)
    risks = dict(zip(found.names, found.risk[:, at], strict=True))
    assert risks["ridge"] < risks["debiased GD"] < risks["one positive head"]
    if not task.isotropic:
        assert abs(risks["debiased GD"] - 0.23677) < 2.1 * found.risk_half[found.names.index("debiased GD"), at]


def test_a_length_of_its_own_is_measured_too() -> None:
    found, _ = analyzed(plant(LinearRegression(3, 17), omega=[0.2, -0.2], mu=[2.0, -2.0]).run, budget=200)
    assert found.trained == 17
    assert 17 in found.lengths


@pytest.mark.parametrize("shared", [False, True])
def test_several_responses_are_compared_with_each_one_s_own_predictors(shared: bool) -> None:
    """Supports of different sizes; the claims are about one response."""
    task = MultiTaskRegression(4, [(0, 1, 2), (3,)], 24, 0.2, shared_signal=shared)
    config = ModelConfig(4, 2, n_heads=3)
    run = Run(config, initial_weights(config, torch.Generator().manual_seed(0)), task=task)
    found, statuses = analyzed(run)
    assert statuses == dict.fromkeys(CLAIMS, "not_applicable")
    described = dict(zip(found.names[1:], found.described, strict=True))
    steps = [1 / (1 + size * 1.2 / 24) for size in (3, 1)]
    assert described["debiased GD"] == "step {:.4g}, {:.4g} on each support".format(*steps)
    learned = "from all responses jointly, penalty 0.2" if shared else "on each support, penalty 0.6, 0.2"
    assert described["ridge"] == f"Bayes {learned}"
    at, row = found.lengths.index(24), found.names.index("debiased GD")
    uses = np.array([[1, 1, 1, 0], [0, 0, 0, 1]], dtype=bool)
    ideal = theory.superposition_steps(uses, length=24, noise_var=0.2)
    exact = theory.task_gd_risks(ideal, uses, length=24, noise_var=0.2).mean()
    assert abs(found.risk[row, at] - exact) < 1.5 * found.risk_half[row, at] < 0.1 * exact
    risks = dict(zip(found.names, found.risk[:, at], strict=True))
    assert min(risks, key=risks.__getitem__) == "ridge"
    assert risks["debiased GD"] < risks["one positive head"] < risks["model"]


def test_responses_of_one_size_share_their_step_and_say_what_the_risk_is() -> None:
    task = MultiTaskRegression(3, [(0, 1), (1, 2)], 12)
    config = ModelConfig(3, 2, n_heads=2)
    run = Run(config, initial_weights(config, torch.Generator().manual_seed(0)), task=task)
    result = icl.analyze(run, budget=50, probes=["risk"])
    assert result.get(Risk).described[1] == f"step {1 / (1 + 2 * 1.1 / 12):.4g} on each support"
    assert "Risks are means over 2 responses." in result.to_markdown()
    check_probe(RiskProbe, run, budget=50)
