from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch

import icl_interp as icl
from icl_interp import theory
from icl_interp.config import ModelConfig
from icl_interp.probing import Context, Outcome, run_probe
from icl_interp.records import Run
from icl_interp.serialization import to_data
from icl_interp.tasks import LinearRegression, kms
from icl_interp.testing import check_probe, plant
from icl_interp.weights import initial_weights
from icl_interp_probes.optimality import Optimality, OptimalityProbe

TASK = LinearRegression(dim=5, length=40, noise_var=0.1)
SIZES = {"dim": 5, "length": 40, "noise_var": 0.1}
CLAIMS = GAP, STEP, NEAR, BAYES = (
    "gap_to_debiased_gd_as_theory",
    "step_of_least_risk",
    "risk_near_best_debiased_gd",
    "risk_within_bayes_bound",
)
BUDGET = 8_000


def outcome(run: Run, budget: int = BUDGET) -> Outcome:
    found = run_probe(OptimalityProbe(), Context(run, budget=budget))
    assert found.status in ("done", "not_applicable"), found.details
    return found


def analyzed(run: Run, budget: int = BUDGET) -> tuple[Optimality, dict[str, str]]:
    found = outcome(run, budget)
    assert isinstance(found.value, Optimality)
    return found.value, {verdict.claim: verdict.status for verdict in found.verdicts}


def untrained() -> Run:
    config = ModelConfig(5, n_heads=4)
    return Run(config, initial_weights(config, torch.Generator().manual_seed(0)), task=TASK)


def test_the_contract() -> None:
    check_probe(OptimalityProbe)


def test_everything_holds_on_the_manifold_and_the_numbers_are_right() -> None:
    found, statuses = analyzed(plant(TASK, roles=("positive", "positive", "negative", "dummy")).run, 32_000)
    assert statuses == dict.fromkeys(CLAIMS, "holds")
    assert found.gamma == pytest.approx(0.13, rel=1e-4)
    assert found.eta == pytest.approx(theory.manifold_step(0.13, **SIZES), rel=1e-4)
    assert found.theory.step == pytest.approx(found.eta, rel=1e-4)
    assert found.eta_star == pytest.approx(0.8791, abs=1e-4)
    assert found.gd_risk == pytest.approx(0.242857, abs=1e-6)
    assert found.relative_step.low - 0.005 < 1 < found.relative_step.high + 0.005
    for risk in (found.risk, found.ideal_risk):
        assert abs(risk.value - 0.2430) < 2 * risk.half + 1e-4
    assert abs(found.bayes_risk.value - 0.1145) < 2 * found.bayes_risk.half
    assert found.to_bayes.value == pytest.approx(0.2430 / 0.1145, rel=0.05)
    assert found.theory.to_bayes == pytest.approx(1.937, abs=1e-3)
    assert found.theory.bound == pytest.approx(1 + 11 / 8)
    assert found.constant.value == pytest.approx(40 * (found.risk.value - 0.1))
    assert found.theory.constant == pytest.approx(6.52, abs=0.02)
    assert found.late_eta is None


def test_the_distance_to_debiased_gd_grows_as_the_square_of_gamma() -> None:
    """Theorem 4.2 (i), with 0.9 of its leading order at L = 40; the planted model is its own ideal self."""
    gaps = []
    for gamma in (0.05, 0.1):
        found, _ = analyzed(plant(TASK, roles=("positive", "negative"), gamma=gamma).run)
        assert found.gap.value == pytest.approx(found.ideal_gap.value, rel=0.2)
        assert found.theory.gap == pytest.approx(theory.gd_gap_rms(found.eta, gamma, **SIZES), rel=1e-4)
        gaps.append(found.ideal_gap.value)
    assert np.log2(gaps[1] / gaps[0]) == pytest.approx(2.0, abs=0.1)


MU = theory.manifold_mu(0.13, **SIZES)


@pytest.mark.parametrize(
    ("claim", "omega", "mu", "holds"),
    [
        # Σμ at 4 % of Σ|μ|: even orders do not cancel, and the rest is as it was.
        (GAP, [0.13, -0.13], [1.04 * MU, -0.96 * MU], (STEP, NEAR, BAYES)),
        # A tenth too long a step: as far from a debiased one as theory says.
        (STEP, [0.13, -0.13], [1.1 * MU, -1.1 * MU], (GAP, BAYES)),
        # γ where the valley has risen: a good step still.
        (NEAR, [0.4, -0.4], [1.1387, -1.1387], (STEP,)),
        # A step so long that it is worse than any debiased step should be.
        (BAYES, [0.13, -0.13], [1.5 * MU, -1.5 * MU], (GAP,)),
    ],
)
def test_each_claim_fails_where_it_is_violated(
    claim: str, omega: list[float], mu: list[float], holds: tuple[str, ...]
) -> None:
    _, statuses = analyzed(plant(TASK, omega=omega, mu=mu).run, 16_000)
    assert statuses[claim] == "fails"
    assert {name: statuses[name] for name in holds} == dict.fromkeys(holds, "holds")


def test_heads_of_one_sign_are_held_to_the_risk_only() -> None:
    _, statuses = analyzed(plant(TASK, omega=[0.518, 0.518], mu=[0.75, 0.75]).run)
    assert statuses == {GAP: "not_applicable", STEP: "not_applicable", NEAR: "fails", BAYES: "fails"}


def test_a_single_head_stands_beside_its_own_theory() -> None:
    found, statuses = analyzed(plant(TASK, omega=[-0.518], mu=[-1.5]).run)
    assert statuses == dict.fromkeys(CLAIMS, "not_applicable")
    assert found.theory.one_head == pytest.approx(theory.single_head_optimum(**SIZES))
    assert found.theory.step == pytest.approx(np.prod(theory.single_head_optimum(**SIZES)))
    assert found.theory.constant == pytest.approx(20.80, abs=0.01)
    table = outcome(plant(TASK, omega=[-0.518], mu=[-1.5]).run, 300).blocks[0]
    rows = {row[0]: row[1:3] for row in table.rows}  # type: ignore[union-attr]
    assert rows["|ω|"] == pytest.approx((0.518, 0.4472), abs=1e-4)
    assert rows["|μ|"] == pytest.approx((1.5, 1.6277), abs=1e-3)


def test_unstructured_heads_make_no_claim_applicable() -> None:
    found, statuses = analyzed(untrained(), 1_000)
    assert statuses == dict.fromkeys(CLAIMS, "not_applicable")
    assert np.isnan(found.gamma)
    assert found.risk.value > 0.9


def test_too_few_prompts_are_inconclusive() -> None:
    run = plant(TASK, roles=("positive", "negative")).run
    for budget in (2, 8, 50):
        assert set(analyzed(run, budget)[1].values()) == {"inconclusive"}
    statuses = analyzed(run, 600)[1]
    assert statuses[GAP] == "inconclusive"  # its tails are heavier
    assert statuses[NEAR] == "holds"


def test_correlated_covariates_have_their_own_optimum() -> None:
    task = dataclasses.replace(TASK, covariance=kms(0.5))
    star = np.trace(theory.debiased_preconditioner(task.sigma, length=40, noise_var=0.1)) / 5
    found, statuses = analyzed(plant(task, omega=[0.08, -0.08], mu=[star / 0.16, -star / 0.16]).run)
    assert statuses == {GAP: "not_applicable", STEP: "holds", NEAR: "holds", BAYES: "not_applicable"}
    assert found.gd_risk == pytest.approx(0.23677, abs=1e-5)
    assert abs(found.ideal_risk.value - 0.2368) < 2 * found.ideal_risk.half + 2e-4


def test_without_noise_there_is_no_bound() -> None:
    task = dataclasses.replace(TASK, noise_var=0.0)
    found, statuses = analyzed(plant(task, roles=("positive", "negative"), gamma=0.1).run)
    assert statuses == {GAP: "holds", STEP: "holds", NEAR: "holds", BAYES: "not_applicable"}
    assert found.bayes_risk.value < 1e-6


def test_covariates_of_any_variance() -> None:
    scaled = dataclasses.replace(TASK, covariance=4 * np.eye(5), signal_var=0.25)
    found, statuses = analyzed(plant(scaled, roles=("positive", "negative"), gamma=0.13 / 4).run, 16_000)
    assert statuses == dict.fromkeys(CLAIMS, "holds")
    unit, _ = analyzed(plant(TASK, roles=("positive", "negative"), gamma=0.13).run, 16_000)
    assert found.theory.step == pytest.approx(unit.eta / 4, rel=1e-3)
    for name in ("gap", "constant", "to_bayes", "bound"):
        assert getattr(found.theory, name) == pytest.approx(getattr(unit.theory, name), rel=1e-3)


@pytest.mark.parametrize(
    ("run", "words"),
    [
        (plant(TASK.shifted(0.5), omega=[0.1, -0.1], mu=[3, -3]).run, "centred covariates"),
        (dataclasses.replace(untrained(), model_config=ModelConfig(5, n_heads=4, activation="tanh")), "is tanh"),
    ],
)
def test_where_theory_does_not_apply_it_says_why(run: Run, words: str) -> None:
    found = outcome(run, 200)
    assert found.status == "not_applicable"
    assert words in found.reason


def test_late_iterates_are_averaged() -> None:
    planted = plant(TASK, roles=("positive", "negative")).run
    factors = 1 + 0.02 * np.random.default_rng(0).standard_normal(50)
    snapshots = {
        name: torch.stack([weight * (float(f) if name == "W_O" else 1.0) for f in factors])
        for name, weight in planted.weights.items()
    }
    steps = np.arange(5, 55) * 1000
    numbers = {"loss": np.full(50, 0.25), "omega": np.zeros((50, 1, 2)), "mu": np.zeros((50, 1, 2, 1))}
    dynamics = icl.Dynamics(steps=steps, snapshot_steps=steps, snapshots=snapshots, **numbers)
    found, _ = analyzed(dataclasses.replace(planted, dynamics=dynamics), 300)
    late = theory.manifold_step(0.13, **SIZES) * factors[steps >= 0.8 * 54_000]
    assert found.late_eta is not None
    assert found.late_eta.value == pytest.approx(late.mean(), rel=0.005)
    assert 0.001 < found.late_eta.half < 0.05


def test_a_result_is_small() -> None:
    found = outcome(plant(TASK, omega=[0.1, -0.1] * 4, mu=[1.0, -1.0] * 4).run, 300)
    assert len(json.dumps(to_data([found.value, list(found.blocks)]), ensure_ascii=False)) < 6_000


def test_numbers_of_ideal_selves_vary_with_the_error_of_their_mu() -> None:
    """Of heads that are perturbed the μ are known from prompts only, and their gap to debiased GD hangs on Σμ."""
    task = LinearRegression(5, 40, 0.1, covariance=kms(0.5))
    run = plant(task, omega=[0.12, -0.12], mu=[3.0, -3.0], noise=0.05, seed=0).run

    def measured(seed: int, budget: int) -> Optimality:
        return OptimalityProbe().run(Context(run, seed=seed, budget=budget))

    truth, found = measured(1_000, 32_768), [measured(seed, 1_024) for seed in range(15)]
    for name in ("ideal_gap", "ideal_risk", "price"):
        value, estimates = getattr(truth, name).value, [getattr(each, name) for each in found]
        assert sum(e.low <= value <= e.high for e in estimates) >= 12, name
