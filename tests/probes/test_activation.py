from __future__ import annotations

import json
from functools import cache, lru_cache

import numpy as np
import pytest
import torch

import icl_interp as icl
from icl_interp import theory
from icl_interp.config import ModelConfig
from icl_interp.probing import Lines, Outcome, Table
from icl_interp.records import Run
from icl_interp.serialization import to_data
from icl_interp.tasks import LinearRegression, MultiTaskRegression, kms
from icl_interp.testing import check_probe, plant
from icl_interp.weights import initial_weights
from icl_interp_probes.activation import RARE, TOO_SMALL, ActivationProbe, ActivationRate

TASK = LinearRegression(dim=5, length=40, noise_var=0.1)
SIZES = {"dim": 5, "length": 40, "noise_var": 0.1}
RATE, RISK, SAFE = CLAIMS = ("effective_rate_as_slope", "risk_as_gd_at_that_rate", "denominators_safe")
# Table 1 of arXiv 2503.12734: activation, C, ω, μ, η.
PUBLISHED = [
    ("softmax", 1.0, 0.1267, 3.5006, 0.8871),
    ("tanh", 1.0, 0.1504, 3.3362, 1.0035),
    ("affine", 0.5, 0.3677, 2.3963, 0.8810),
    ("affine", 1.0, 0.1979, 2.2221, 0.8794),
    ("square", 0.5, 0.2882, 1.7561, 1.0122),
    ("square", 1.0, 0.1452, 1.7448, 1.0132),
]


@cache
def pair(name: str, scale: float, omega: float, mu: float, task: LinearRegression = TASK) -> Run:
    """Two opposite heads."""
    return plant(task, omega=[omega, -omega], mu=[mu, -mu], activation=name, activation_scale=scale).run


@lru_cache(16)  # of one pair several things are asked
def outcome(run: Run, budget: int) -> Outcome:
    return icl.analyze(run, budget=budget, probes=[ActivationProbe])["activation"]


def analyzed(run: Run, budget: int = 6_000) -> tuple[ActivationRate, dict[str, str]]:
    found = outcome(run, budget)
    assert isinstance(found.value, ActivationRate), found.reason + found.details
    return found.value, {v.claim: v.status for v in found.verdicts}


# --- Verdicts ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "scale", "omega", "mu", "eta"), PUBLISHED)
def test_table_1(name: str, scale: float, omega: float, mu: float, eta: float) -> None:
    """Curves overlap for eˣ and 1 + Cx; the others gain less far out, and are better for it."""
    found, statuses = analyzed(pair(name, scale, omega, mu))
    assert found.eta == pytest.approx(eta, abs=2e-4)
    assert found.eta_star == pytest.approx(0.8791, abs=1e-4)
    flat = name in ("softmax", "affine")
    assert statuses[RATE] == statuses[RISK] == ("holds" if flat else "fails")
    assert statuses[SAFE] == ("not_applicable" if name == "softmax" else "inconclusive")  # of so few prompts
    assert found.eta_function.value == pytest.approx(0.88, abs=0.012)  # η*, whatever ω and μ say
    at = found.lengths.index(40)
    assert (found.risk[0, at] < found.risk[1:, at].min()) == (not flat)


def test_the_gain_explains_the_slope() -> None:
    """Σ ωμ·2/(1 + γ²‖x_q‖²) for the square, on average over directions."""
    found, _ = analyzed(pair("square", 1.0, 0.1452, 1.7448))
    assert found.eta_gain.value == pytest.approx(found.eta_function.value, abs=0.004)
    flat, _ = analyzed(pair("softmax", 1.0, 0.1267, 3.5006))
    assert flat.eta_gain.value == pytest.approx(flat.eta, rel=1e-6)  # f′ = f


def test_a_pair_that_is_too_sharp_has_another_risk() -> None:
    _, statuses = analyzed(pair("softmax", 1.0, 0.45, 0.8791 / 0.9))
    assert statuses[RISK] == "fails"


def test_linear_attention_makes_a_step_of_plain_gd() -> None:
    run = plant(TASK, omega=[0.4], mu=[0.86 / 40 / 0.4], activation="linear").run
    found, statuses = analyzed(run)
    assert statuses == {RATE: "holds", RISK: "holds", SAFE: "not_applicable"}
    assert found.eta == pytest.approx(0.86, rel=1e-5)
    assert found.eta_function.value == pytest.approx(0.86, rel=1e-5)
    assert found.eta_star is None
    assert found.unsafe is None
    at = found.lengths.index(40)
    assert abs(found.risk[1, at] - theory.gd_risk(0.86, **SIZES)) < 2.1 * found.risk_half[1, at]
    assert found.ratio[at].value == pytest.approx(1, abs=1e-5)
    assert found.ratio[-1].low > 2  # its step grows with L, GD's does not


def test_denominators_that_pass_through_zero_are_caught() -> None:
    found, statuses = analyzed(pair("affine", 1.0, 0.6, 0.5), 4000)
    assert statuses[SAFE] == "fails"
    assert found.denominators[:, 0].min() < 0
    wild, statuses = analyzed(pair("affine", 2.0, 1.0, 0.3), 4000)
    assert statuses[SAFE] == "fails"
    assert wild.undefined > 0
    assert statuses[RATE] == statuses[RISK] == "not_applicable"
    assert "no prediction" in wild.why_not


def test_small_denominators_that_do_not_pass_through_zero_fail_too() -> None:
    """(1 + Cx)² is never negative, but is small where most scores are near −1."""
    task = LinearRegression(dim=1, length=2, noise_var=0.1)
    found, statuses = analyzed(pair("square", 1.0, 0.6, 0.4, task), 32_768)
    assert found.denominators[:, 0].min() > 0
    assert statuses[SAFE] == "fails"


@pytest.mark.parametrize("name", ["softmax", "square"])
def test_untrained_models_and_single_heads(name: str) -> None:
    config = ModelConfig(5, n_heads=4, activation=name)
    untrained = Run(config, initial_weights(config, torch.Generator().manual_seed(0)), task=TASK)
    single = plant(TASK, omega=[0.3], mu=[1.0], activation=name).run
    same = plant(TASK, omega=[0.3, 0.3], mu=[0.5, 0.5], activation=name).run
    for run in (untrained, single, same):
        _, statuses = analyzed(run, 2000)
        assert statuses[RATE] == statuses[RISK] == "not_applicable"
        assert statuses[SAFE] != "holds"


@pytest.mark.parametrize("budget", [8, 50, 900])
def test_too_few_prompts_are_inconclusive(budget: int) -> None:
    _, statuses = analyzed(pair("affine", 0.5, 0.3677, 2.3963), budget)
    assert statuses == dict.fromkeys(CLAIMS, "inconclusive")


# --- Numbers ----------------------------------------------------------------------------------------------------------


def test_risks_are_the_closed_forms() -> None:
    found, _ = analyzed(pair("affine", 0.5, 0.3677, 2.3963))
    assert found.lengths == (10, 20, 40, 60, 100)
    for i, length in enumerate(found.lengths):
        for row, step in ((1, found.eta), (3, 0.87912)):
            exact = theory.debiased_gd_risk(step, dim=5, length=length, noise_var=0.1)
            assert abs(found.risk[row, i] - exact) < 2.1 * found.risk_half[row, i]


def test_correlated_covariates_are_read_along_their_preconditioner() -> None:
    task = LinearRegression(5, 40, 0.1, covariance=kms(0.5))
    found, statuses = analyzed(plant(task, omega=[0.1, -0.1], mu=[5.0, -5.0]).run, 4000)
    assert found.eta == pytest.approx(1.0, rel=1e-5)
    assert found.eta_function.value == pytest.approx(1.0, rel=0.02)
    assert statuses[RATE] == "holds"


def test_an_activation_of_ones_own() -> None:
    icl.register_activation("two_and_sine", lambda x: 2 + x.sin(), lambda x: x.cos())
    found, statuses = analyzed(pair("two_and_sine", 0.5, 0.3, 5.86), 6000)
    assert found.slope == pytest.approx(0.25)
    assert found.eta == pytest.approx(0.879, abs=1e-3)
    assert statuses[RATE] == "fails"  # E cos(Cs) falls with ‖x_q‖
    assert found.eta_gain.value == pytest.approx(found.eta_function.value, rel=0.02)


def test_so_few_unsafe_prompts_take_many_to_tell_from_none() -> None:
    task = LinearRegression(dim=1, length=8, noise_var=0.1)
    found, statuses = analyzed(pair("tanh", 1.0, 0.1, 2.0, task), 16_384)
    assert found.unsafe is not None
    assert found.denominators[:, 0].min() > TOO_SMALL
    assert found.unsafe.value == found.unsafe.low == 0
    assert statuses[SAFE] == "holds"
    fewer, statuses = analyzed(pair("tanh", 1.0, 0.1, 2.0, task), int(2 / RARE))
    assert fewer.unsafe is not None
    assert fewer.unsafe.high > RARE
    assert statuses[SAFE] == "inconclusive"


def test_what_is_shown_is_small() -> None:
    found = outcome(pair("affine", 0.5, 0.3677, 2.3963), 2000)
    size = len(json.dumps(to_data(found.value))) + sum(len(json.dumps(to_data(block))) for block in found.blocks)
    assert size < 12_000
    (lines,) = [block for block in found.blocks if isinstance(block, Lines)]
    assert lines.names == ("model", "debiased GD, η of ω and μ", "debiased GD, η as a function", "debiased GD, η*")
    titles = [block.title for block in found.blocks if isinstance(block, Table)]
    assert titles[0] == "Rate"
    assert titles[-1].startswith("Denominators")


def test_where_the_question_makes_no_sense() -> None:
    double = MultiTaskRegression(dim=6, length=12, supports=((0, 1, 2, 3), (2, 3, 4, 5)), noise_var=0.1)
    for config, task, reason in (
        (ModelConfig(6, n_outputs=2), double, "one response"),
        (ModelConfig(5, n_layers=2), TASK, "one layer"),
    ):
        run = Run(config, initial_weights(config, torch.Generator().manual_seed(0)), task=task)
        assert reason in outcome(run, 100).reason


def test_the_contract() -> None:
    task = LinearRegression(dim=3, length=12, noise_var=0.1)
    runs = [pair(name, 0.5, 0.3, 2.0, task) for name in ("affine", "square", "tanh")]
    linear = plant(task, omega=[0.4], mu=[0.1], activation="linear").run
    undefined = pair("affine", 2.0, 1.0, 0.3, task)
    check_probe(ActivationProbe, *runs, linear, undefined, budget=400)
    assert np.isfinite(analyzed(undefined, 400)[0].risk).all()
