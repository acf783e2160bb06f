from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np
import pytest
import torch

import icl_interp as icl
from icl_interp import theory
from icl_interp.config import ModelConfig
from icl_interp.probing import Context, Estimate, Heatmap, Outcome, Table
from icl_interp.records import Run
from icl_interp.serialization import to_data
from icl_interp.tasks import LinearRegression, MultiTaskRegression, kms
from icl_interp.testing import check_probe, plant
from icl_interp.weights import Weights, initial_weights
from icl_interp_probes.preconditioner import CANDIDATES, Preconditioner, PreconditionerProbe
from icl_interp_probes.readings import Candidates, allowing, basis, length, sized

TASK = LinearRegression(dim=5, length=40, noise_var=0.1, covariance=kms(0.5))
CLAIMS = ("not_the_inverse_covariance", "optimal_preconditioner", "debiased_preconditioner", "shared_preconditioner")
GAMMA, MU = 0.19, 3.2


def shape(name: str, task: LinearRegression = TASK) -> np.ndarray:
    """A candidate, at trace d."""
    size = {"length": task.length, "noise_var": task.noise_var}
    matrix = {
        "Γ_deb": theory.debiased_preconditioner(task.sigma, **size),
        "Γ*": theory.gd_preconditioner(task.sigma, **size),
        "Σ⁻¹": np.linalg.inv(task.sigma),
        "I": np.eye(task.dim),
    }[name]
    return matrix * task.dim / np.trace(matrix)


def weights(config: ModelConfig, heads: np.ndarray, mu: Sequence[float]) -> Weights:
    """KQ_11 and OV_22 as given, nothing else that is live."""
    d, D = config.dim, config.d_model
    KQ, OV = np.zeros((2, len(heads), D, D))
    KQ[:, :d, :d] = heads
    OV[:, d, d] = mu
    unit = np.broadcast_to(np.eye(D), KQ.shape)
    factors = {"W_Q": unit, "W_K": config.score_scale * KQ, "W_V": unit, "W_O": OV.transpose(0, 2, 1)}
    return {name: torch.tensor(factor[None]).float() for name, factor in factors.items()}


def planted(
    positive: str = "Γ_deb",
    negative: str = "",
    *,
    task: LinearRegression = TASK,
    noise: float = 0.03,
    iterates: int = 50,
    gamma: float = GAMMA,
) -> Run:
    """Heads at ±γ times a candidate, and a record in which each late iterate has noise of its own in KQ."""
    heads = np.array([gamma * shape(positive, task), -gamma * shape(negative or positive, task)])
    config, rng = ModelConfig(task.dim, n_heads=2), np.random.default_rng(0)
    size = noise * np.linalg.norm(heads[0]) / task.dim  # an entry's, so that `noise` is relative to the norm
    late = [weights(config, heads + size * rng.standard_normal(heads.shape), (MU, -MU)) for _ in range(iterates)]
    if not late:
        return Run(config, weights(config, heads, (MU, -MU)), task=task, origin="planted")
    steps = np.array([0, *range(400, 400 + iterates)])
    record = icl.Dynamics(
        steps=steps,
        loss=np.full(len(steps), 0.25),
        omega=np.zeros((len(steps), 1, 2)),
        mu=np.zeros((len(steps), 1, 2, 1)),
        snapshot_steps=steps,
        snapshots={name: torch.stack([late[0][name], *(each[name] for each in late)]) for name in late[0]},
    )
    return Run(config, late[-1], task=task, dynamics=record, step=int(steps[-1]), origin="planted")


def outcome(run: Run, budget: int = 2500) -> Outcome:
    return icl.analyze(run, budget=budget, probes=[PreconditionerProbe])["preconditioner"]


def analyzed(run: Run, budget: int = 2500) -> tuple[Preconditioner, dict[str, str]]:
    found = outcome(run, budget)
    assert isinstance(found.value, Preconditioner), found.reason + found.details
    return found.value, {v.claim: v.status for v in found.verdicts}


# --- Verdicts ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rho", [0.3, 0.5, 0.7])
@pytest.mark.parametrize("optimum", ["Γ_deb", "Γ*"])
def test_the_optimum_is_told_from_the_inverse_but_not_which_of_the_two_it_is(rho: float, optimum: str) -> None:
    found, statuses = analyzed(planted(optimum, task=LinearRegression(5, 40, 0.1, covariance=kms(rho))))
    assert statuses == {**dict.fromkeys(CLAIMS, "holds"), "debiased_preconditioner": "inconclusive"}
    judged = found.readings[0]
    assert "50 iterates" in judged.name
    assert judged.to_inverse.value == pytest.approx(0, abs=1.5 * judged.to_inverse.half)
    assert judged.distance[0] < 2 * judged.noise
    assert found.explained.low > 0.99


@pytest.mark.parametrize("rho", [0.3, 0.5, 0.7])
def test_heads_at_the_inverse_covariance_are_found_out(rho: float) -> None:
    found, statuses = analyzed(planted("Σ⁻¹", task=LinearRegression(5, 40, 0.1, covariance=kms(rho))))
    assert statuses["not_the_inverse_covariance"] == "fails"
    assert statuses["optimal_preconditioner"] == "fails"
    assert statuses["shared_preconditioner"] == "holds"
    judged = found.readings[0]
    assert judged.to_inverse.value == pytest.approx(1, abs=1.5 * judged.to_inverse.half)
    assert judged.misfit.low < 1 < judged.misfit.high


def test_heads_that_do_not_precondition_are_not_at_the_optimum_either() -> None:
    found, statuses = analyzed(planted("I"))
    assert statuses["optimal_preconditioner"] == "fails"
    assert statuses["not_the_inverse_covariance"] == "holds"
    assert found.readings[0].distance[CANDIDATES.index("I")] < 0.02


def test_heads_that_disagree_share_nothing() -> None:
    found, statuses = analyzed(planted("Γ_deb", "I"))
    assert statuses["shared_preconditioner"] == "fails"
    apart = np.linalg.norm(sized(shape("I"), 1.0) - sized(shape("Γ_deb"), 1.0))
    assert found.shared.low < apart < found.shared.high


def test_short_prompts_tell_the_two_optima_apart() -> None:
    """At L = 3 they differ by as much as Σ⁻¹ and Γ_deb do at L = 40."""
    short = LinearRegression(3, 3, 0.1, covariance=kms(0.7))
    for optimum, status in (("Γ_deb", "holds"), ("Γ*", "fails")):
        found, statuses = analyzed(planted(optimum, task=short, noise=0.01, gamma=0.05))
        assert statuses["debiased_preconditioner"] == status, found.readings[0].to_plain


def test_one_iterate_rejects_the_inverse_and_leaves_the_rest_open() -> None:
    found, statuses = analyzed(planted(iterates=0))
    assert [r.name for r in found.readings] == ["the checkpoint's predictions"]
    assert statuses["not_the_inverse_covariance"] == "holds"
    assert statuses["debiased_preconditioner"] == "inconclusive"
    assert statuses["optimal_preconditioner"] != "fails"
    assert statuses["shared_preconditioner"] != "fails"
    _, statuses = analyzed(planted("Σ⁻¹", iterates=0))
    assert statuses["not_the_inverse_covariance"] == "fails"
    assert statuses["optimal_preconditioner"] != "holds"


@pytest.mark.parametrize("budget", [8, 50, 150])
@pytest.mark.parametrize("iterates", [0, 50])
def test_too_few_prompts_are_inconclusive(budget: int, iterates: int) -> None:
    _, statuses = analyzed(planted(iterates=iterates), budget)
    assert statuses == dict.fromkeys(CLAIMS, "inconclusive")


def test_too_much_noise_is_inconclusive() -> None:
    _, statuses = analyzed(planted(noise=3.0))
    assert "holds" not in statuses.values()


def test_nearly_isotropic_covariates_are_inconclusive() -> None:
    _, statuses = analyzed(planted(task=LinearRegression(5, 40, 0.1, covariance=kms(0.02))))
    assert statuses["not_the_inverse_covariance"] == "inconclusive"
    assert statuses["optimal_preconditioner"] == "inconclusive"


@pytest.mark.parametrize("seed", range(3))
def test_untrained_models_and_others_that_no_preconditioner_describes(seed: int) -> None:
    config = ModelConfig(5, n_heads=4)
    untrained = Run(config, initial_weights(config, torch.Generator().manual_seed(seed)), task=TASK)
    single = plant(TASK, omega=[0.5], mu=[1.5]).run
    for run in (untrained, single):
        _, statuses = analyzed(run)
        assert statuses == dict.fromkeys(CLAIMS, "not_applicable")


def test_heads_of_one_sign_that_attend_weakly() -> None:
    """With a mean head to undo what their labels add, debiased GD describes them."""
    found = outcome(plant(TASK, omega=[0.03, 0.03, 0.0], mu=[15.0, 15.0, -30.0]).run)
    assert {v.status for v in found.verdicts} == {"not_applicable"}
    assert {v.sentence for v in found.verdicts} == {"the claim is about heads of both signs; all of these have one"}


# --- Where the question makes no sense --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("task", "activation", "reason"),
    [
        (LinearRegression(5, 40), "softmax", "multiple of the identity"),
        (LinearRegression(5, 40, covariance=4 * np.eye(5)), "softmax", "multiple of the identity"),
        (TASK.shifted(0.5), "softmax", "centred"),
        (TASK, "linear", "normalised attention"),
    ],
)
def test_not_applicable(task: LinearRegression, activation: str, reason: str) -> None:
    config = ModelConfig(5, activation=activation)
    found = outcome(Run(config, initial_weights(config, torch.Generator().manual_seed(0)), task=task), 100)
    assert found.status == "not_applicable"
    assert reason in found.reason


def test_several_responses_and_layers() -> None:
    double = MultiTaskRegression(dim=6, length=12, supports=((0, 1, 2, 3), (2, 3, 4, 5)), noise_var=0.1)
    for config, task, reason in (
        (ModelConfig(6, n_outputs=2), double, "one response"),
        (ModelConfig(5, n_layers=2), TASK, "one layer"),
    ):
        run = Run(config, initial_weights(config, torch.Generator().manual_seed(0)), task=task)
        assert reason in outcome(run, 100).reason


# --- Numbers ----------------------------------------------------------------------------------------------------------


def test_both_readings_are_the_planted_matrix() -> None:
    found, _ = analyzed(planted("Γ_deb", noise=0.0), budget=20_000)
    optimum = theory.debiased_preconditioner(TASK.sigma, length=40, noise_var=0.1)
    weights_, function = found.readings
    np.testing.assert_allclose(weights_.matrix, optimum, atol=2e-4)
    np.testing.assert_allclose(function.matrix, optimum, atol=0.02)
    assert np.mean(np.abs(function.matrix - optimum) < function.half) > 0.9
    assert weights_.step == pytest.approx(2 * GAMMA * MU * 5 / np.trace(optimum), rel=1e-4)
    assert function.step == pytest.approx(weights_.step, rel=0.01)
    vectors = basis(TASK.sigma)
    np.testing.assert_allclose(weights_.eigenvalues[:, 0], np.diag(vectors.T @ optimum @ vectors), atol=2e-4)


def test_distances_are_not_larger_for_noise() -> None:
    """The mean of many estimates is the truth, with noise of a tenth of it."""
    rng, true = np.random.default_rng(1), np.array([[0.3, 0.1], [0.1, -0.2]])
    for scale in (0.0, 1.0):
        found = [length(scale * true + 0.1 * rng.standard_normal((5, 2, 2))) for _ in range(400)]
        norm = scale * np.linalg.norm(true)
        assert np.mean([e.low <= norm <= e.high for e in found]) > 0.93
    assert np.mean([e.value for e in found]) == pytest.approx(np.linalg.norm(true), rel=0.05)


def test_positions_are_unbiased_and_covered() -> None:
    size = {"length": 40, "noise_var": 0.1}
    optima = theory.debiased_preconditioner(TASK.sigma, **size), theory.gd_preconditioner(TASK.sigma, **size)
    candidates = Candidates.of([*optima, np.linalg.inv(TASK.sigma), np.eye(5)], TASK.sigma)
    rng = np.random.default_rng(2)
    for at, matrix in ((0.0, optima[0]), (1.0, np.linalg.inv(TASK.sigma))):
        read = [candidates.read("", matrix + 0.02 * rng.standard_normal((5, 5, 5))) for _ in range(400)]
        assert np.mean([r.to_inverse.value for r in read]) == pytest.approx(at, abs=0.05)
        assert 0.92 < np.mean([r.to_inverse.low <= at <= r.to_inverse.high for r in read]) < 0.98


def test_what_batches_cannot_see_is_added_as_noise_and_what_is_not_of_first_order_as_an_allowance() -> None:
    candidates = Candidates.of([np.diag([1.0, 2.0]), np.diag([2.0, 1.0]), np.eye(2), np.ones((2, 2))], np.eye(2))
    batches = candidates.matrices[0] + 0.1 * np.random.default_rng(3).standard_normal((5, 2, 2))
    seen, unseen = (candidates.read("", batches, share).to_inverse for share in (0.0, 0.1))
    more = 1.96 * 0.1 / np.sqrt(3) / candidates.apart(0, 2)
    assert unseen.half == pytest.approx(np.hypot(seen.half, more))
    allowed = allowing(unseen, 0.05)
    assert (allowed.low, allowed.high) == pytest.approx((unseen.low - 0.04, unseen.high + 0.04))


def test_the_inverse_is_tridiagonal_and_the_optimum_is_not() -> None:
    found = outcome(planted())
    (entries,) = [b for b in found.blocks if isinstance(b, Table) and b.columns[0] == "entry"]
    assert entries.columns == ("entry", "Γ̂", "Γ_deb", "Γ*", "Σ⁻¹")
    row = {str(r[0]): r for r in entries.rows}["x0, x2"]
    assert row[2] == pytest.approx(-0.0348, abs=1e-4)
    assert row[4] == pytest.approx(0.0, abs=1e-9)
    assert row[1].high < 0  # type: ignore[union-attr]


def test_it_is_small_in_json_and_shows_the_inverses() -> None:
    found = outcome(planted())
    size = len(json.dumps(to_data(found.value))) + sum(len(json.dumps(to_data(block))) for block in found.blocks)
    assert size < 12_000
    inverses = [b for b in found.blocks if isinstance(b, Heatmap)][-1]
    np.testing.assert_allclose(inverses.matrices[0], inverses.matrices[1], atol=0.1)
    np.testing.assert_allclose(inverses.matrices[1] - inverses.matrices[2], 5.5 / 40 * np.eye(5), atol=1e-3)


def test_the_contract() -> None:
    check_probe(PreconditionerProbe, planted(iterates=15), planted(iterates=0), budget=800)


def test_what_is_explained_does_not_depend_on_how_many_prompts_it_is_told_from() -> None:
    """A fit to few prompts explains less of others than Γ does: batches are held against all that came before."""
    task = LinearRegression(5, 40, 0.1, covariance=kms(0.5))
    run = plant(task, omega=[0.12, -0.12], mu=[3.0, -3.0], noise=0.03, seed=10).run

    def explained(seed: int, budget: int) -> Estimate:
        return PreconditionerProbe().run(Context(run, seed=seed, budget=budget)).explained

    truth = explained(1_000, 32_768).value
    found = [explained(seed, 2_048) for seed in range(12)]
    assert sum(e.low <= truth <= e.high for e in found) >= 10
