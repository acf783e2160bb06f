from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from jaxtyping import Float

import icl_interp as icl
from icl_interp import theory
from icl_interp.config import ModelConfig
from icl_interp.probing import Table, Verdict
from icl_interp.records import Run
from icl_interp.sharing import Mode, own_steps
from icl_interp.tasks import LinearRegression, MultiTaskRegression, Prompt
from icl_interp.testing import check_probe, plant_tasks
from icl_interp.testing.planting import hidden_weights
from icl_interp.weights import initial_weights
from icl_interp_probes.superposition import Superposition, SuperpositionProbe
from icl_interp_probes.task_costs import DEBIASED, DEDICATED

PAPER = MultiTaskRegression(6, [(0, 1, 2, 3), (2, 3, 4, 5)], 48, 0.1)
THREE = MultiTaskRegression(6, [(0, 1), (2, 3), (3, 4, 5)], 40, 0.1)
FOUR = MultiTaskRegression(8, [(0, 1, 2), (2, 3, 4), (4, 5, 6), (6, 7, 0)], 48, 0.2)
SAME = MultiTaskRegression(4, [(0, 1, 2), (0, 1, 2)], 40, 0.1)

THEORY = ("zero_sum_ov", "steps_on_support", "steps_off_support", "risk_of_dedicated_heads", "no_interference")
CLAIMS = ("superposition", *THEORY)


def analyzed(run: Run, budget: int = 4000) -> tuple[Superposition, dict[str, Verdict]]:
    outcome = icl.analyze(run, budget=budget, probes=[SuperpositionProbe])["superposition"]
    assert isinstance(outcome.value, Superposition), outcome.details or outcome.reason
    return outcome.value, {verdict.claim: verdict for verdict in outcome.verdicts}


def statuses(run: Run, budget: int = 4000) -> dict[str, str]:
    return {claim: verdict.status for claim, verdict in analyzed(run, budget)[1].items()}


def built(
    omega: Float[np.ndarray, "heads features"] | Float[np.ndarray, "heads features features"],
    mu: Float[np.ndarray, "heads tasks"],
    task: MultiTaskRegression = PAPER,
    *,
    across: float = 0.0,
) -> Run:
    """A run with these diagonals (or whole matrices KQ_11); y0 also gets `across` times what y1 gets."""
    rng, config = np.random.default_rng(0), ModelConfig(task.dim, task.n_outputs, len(omega))
    KQ_11 = omega if omega.ndim == 3 else omega[:, None, :] * np.eye(task.dim)
    weights = hidden_weights(config, KQ_11, mu, 1.0, 0.0, rng)
    weights["W_O"][0, :, :, task.dim] += across * weights["W_O"][0, :, :, task.dim + 1]
    return Run(config, weights, task=task)


def superposed(steps: Float[np.ndarray, "tasks features"]) -> tuple[np.ndarray, np.ndarray]:
    """(ω, μ) of three heads in superposition that make these steps."""
    mu = plant_tasks(PAPER, "IV", permute=False).mu
    return np.linalg.pinv(mu.T) @ steps, mu


def own_steps_of(run: Run) -> np.ndarray:
    assert isinstance(run.task, MultiTaskRegression)
    return own_steps(run.task)


# --- What holds where ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("task", "mode", "n_heads", "superposition"),
    [
        (PAPER, "III", None, "fails"),
        (PAPER, "IV", None, "holds"),
        (THREE, "IV", 5, "holds"),
        (FOUR, "IV", None, "holds"),
    ],
)
def test_tasks_that_are_told_apart(
    task: MultiTaskRegression, mode: Mode, n_heads: int | None, superposition: str
) -> None:
    """By heads of their own or in superposition: only the first claim knows which, and sharing is almost free."""
    planted = plant_tasks(task, mode, n_heads=n_heads, gamma=0.1, noise=0.01, seed=3)
    found, verdicts = analyzed(planted.run, budget=8000)
    assert {c: v.status for c, v in verdicts.items()} == {
        "superposition": superposition,
        **dict.fromkeys(THEORY, "holds"),
    }
    assert found.steps.wanted is not None
    np.testing.assert_allclose(found.steps.found, planted.mu.T @ planted.omega, atol=0.03)
    np.testing.assert_allclose(found.steps.wanted, own_steps_of(planted.run), rtol=1e-5)


@pytest.mark.parametrize(("task", "mode"), [(PAPER, "I"), (PAPER, "II"), (THREE, "II")])
def test_one_predictor_for_all_tasks_is_no_superposition_and_costs_risk(task: MultiTaskRegression, mode: Mode) -> None:
    found, verdicts = analyzed(plant_tasks(task, mode, noise=0.01, seed=1).run)
    assert found.solvers == (tuple(range(task.n_outputs)),)
    assert found.shared.value == found.score.value == 0
    for claim in ("superposition", "steps_on_support", "steps_off_support", "risk_of_dedicated_heads"):
        assert verdicts[claim].status == "fails", claim
    assert verdicts["zero_sum_ov"].status == ("holds" if mode == "II" else "not_applicable")
    assert verdicts["no_interference"].status == "holds"
    assert "One predictor solves all tasks alike" in verdicts["superposition"].sentence


def test_several_heads_of_one_sign_do_not_sum_to_zero() -> None:
    assert statuses(plant_tasks(PAPER, "I", n_heads=2).run)["zero_sum_ov"] == "fails"


@pytest.mark.parametrize("claim", CLAIMS)
def test_each_claim_fails_where_exactly_it_is_violated(claim: str) -> None:
    steps, support = own_steps(PAPER), own_steps(PAPER) > 0
    omega, mu = superposed(steps)
    if claim == "superposition":
        run = plant_tasks(PAPER, "III").run
    elif claim == "zero_sum_ov":  # a head that adds mean labels
        run = built(np.vstack([omega, np.zeros(6)]), np.vstack([mu, [0.045 * np.abs(mu).sum(0).max()] * 2]))
    elif claim == "steps_on_support":
        run = built(*superposed(0.94 * steps))
    elif claim == "steps_off_support":
        run = built(*superposed(steps + 0.1 * ~support))
    elif claim == "risk_of_dedicated_heads":  # other features get in
        mixed = 0.06 * np.broadcast_to(1 - np.eye(6), (2, 6, 6)) + steps[:, None] * np.eye(6)
        run = built(np.einsum("hn,nij->hij", np.linalg.pinv(mu.T), mixed), mu)
    else:
        run = built(omega, mu, across=0.1)
    expected = dict.fromkeys(CLAIMS, "holds") | {claim: "fails"}
    assert statuses(run) == expected


def test_an_untrained_model_makes_no_claim_applicable() -> None:
    config = ModelConfig(6, 2, n_heads=3)
    run = Run(config, initial_weights(config, torch.Generator().manual_seed(0)), task=PAPER)
    found, verdicts = analyzed(run)
    assert {verdict.status for verdict in verdicts.values()} == {"not_applicable"}
    assert found.costs.gamma is None


@pytest.mark.parametrize(("mode", "budget"), [("I", 50), ("II", 8), ("III", 50), ("IV", 8), ("IV", 50)])
def test_too_few_prompts_are_inconclusive(mode: Mode, budget: int) -> None:
    found = statuses(plant_tasks(PAPER, mode, noise=0.01).run, budget)
    assert set(found.values()) <= {"inconclusive", "not_applicable"}
    assert "inconclusive" in found.values()


def test_tasks_of_one_support_have_nothing_to_tell_them_apart() -> None:
    found = statuses(plant_tasks(SAME, "II").run)
    assert found == {**dict.fromkeys(THEORY, "holds"), "superposition": "not_applicable"}


def test_tasks_that_use_all_features_have_no_steps_elsewhere() -> None:
    full = MultiTaskRegression(3, [(0, 1, 2), (0, 1, 2)], 40, 0.1)
    found, verdicts = analyzed(plant_tasks(full, "II").run)
    assert verdicts["steps_off_support"].status == "not_applicable"
    assert found.steps.worst_off is None
    assert found.steps.off_cost == (0, 0)


@dataclasses.dataclass(frozen=True)
class Unknown:
    """Prompts whose supports nobody knows."""

    dim: int = PAPER.dim
    n_outputs: int = PAPER.n_outputs
    length: int = PAPER.length

    def sample(
        self,
        batch: int,
        *,
        length: int | None = None,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
    ) -> Prompt:
        return PAPER.sample(batch, length=length, generator=generator, device=device)


def test_without_known_supports_what_theory_says_of_them_is_not_applicable() -> None:
    planted = plant_tasks(PAPER, "IV").run
    found, verdicts = analyzed(dataclasses.replace(planted, task=Unknown()))
    unknown = ("steps_on_support", "steps_off_support", "risk_of_dedicated_heads")
    assert {c: v.status for c, v in verdicts.items()} == {
        **dict.fromkeys(CLAIMS, "holds"),
        **dict.fromkeys(unknown, "not_applicable"),
    }
    assert all("supports" in verdicts[claim].sentence for claim in unknown)
    assert found.costs.names == ("model",)


def test_deeper_models_and_models_of_one_response_are_left_alone() -> None:
    for config, task in (
        (ModelConfig(6, 2, n_heads=2, n_layers=2), PAPER),
        (ModelConfig(6, 1, n_heads=2), LinearRegression(6, 40)),
    ):
        run = Run(config, initial_weights(config, torch.Generator().manual_seed(0)), task=task)
        outcome = icl.analyze(run, budget=50, probes=[SuperpositionProbe])["superposition"]
        assert outcome.status == "skipped"


@pytest.mark.parametrize("name", ["affine", "linear"])
def test_other_activations_have_no_dedicated_heads(name: str) -> None:
    """1 + x attends with small scores as eˣ does, and without its denominator an L-th of that."""
    planted = plant_tasks(PAPER, "IV", gamma=0.05).run
    scale = {"affine": 1.0, "linear": 1 / PAPER.length}[name]
    weights = {**planted.weights, "W_O": planted.weights["W_O"] * scale}
    config = dataclasses.replace(planted.model_config, activation=name)
    found, verdicts = analyzed(dataclasses.replace(planted, model_config=config, weights=weights))
    np.testing.assert_allclose(found.steps.found, own_steps_of(planted), atol=0.05)
    assert verdicts["risk_of_dedicated_heads"].status == "not_applicable"
    assert verdicts["steps_on_support"].status == ("holds" if name == "affine" else "not_applicable")


# --- The numbers -----------------------------------------------------------------------------------------------------


def test_risks_are_those_of_the_closed_form() -> None:
    """At small ω the model is debiased GD with its own steps; dedicated heads are GD with theory's."""
    steps = own_steps(PAPER) + 0.3 * (own_steps(PAPER) == 0)
    omega, mu = superposed(steps)
    found, _ = analyzed(built(0.2 * omega, 5 * mu), budget=16_000)
    uses = own_steps(PAPER) > 0
    exact = {
        "model": theory.task_gd_risks(steps, uses, length=48, noise_var=0.1),
        DEDICATED: theory.task_gd_risks(own_steps(PAPER), uses, length=48, noise_var=0.1),
    }
    exact[DEBIASED] = exact[DEDICATED]
    risks = dict(zip(found.costs.names, found.costs.risk, strict=True))
    for name, values in exact.items():
        for estimate, value in zip(risks[name], values, strict=True):
            assert abs(estimate.value - value) < 1.5 * estimate.half
    assert found.costs.exact == pytest.approx(exact[DEBIASED], rel=1e-5)
    assert found.steps.off_cost == pytest.approx(exact["model"] - exact[DEBIASED], rel=1e-3)
    ratio = found.costs.of_dedicated_heads
    assert ratio is not None
    assert ratio.value == pytest.approx(exact["model"].sum() / exact[DEDICATED].sum(), abs=2 * ratio.half)
    assert ratio.half < 0.02


def test_heads_on_features_that_no_task_uses_are_held_against_heads_of_their_own_size() -> None:
    """On the features that are used they have rounding only, which is no γ that anything could be dedicated at."""
    solved = MultiTaskRegression(6, [(0, 3), (2, 3)], length=40, noise_var=0.1)
    run = plant_tasks(solved, "III", permute=False).run
    asked = dataclasses.replace(run, task=dataclasses.replace(solved, supports=[(1, 4), (4, 5)]))
    found, verdicts = analyzed(asked)
    own, _ = analyzed(run)
    assert found.costs.gamma == pytest.approx(own.costs.gamma)
    assert found.costs.of_dedicated_heads is not None
    assert found.costs.of_dedicated_heads.low > 3
    assert verdicts["risk_of_dedicated_heads"].status == "fails"


def test_interference_is_measured_where_it_is() -> None:
    """ŷ_0 gets 0.2 ŷ_1, whose labels are those of other covariates after an exchange; nothing reaches ŷ_1.

    E ŷ² is η²(1 + 4c) with its own labels and η²·4c with others, both times 1 − 1/L; c = (1 + σ²)/L.
    """
    omega, mu = superposed(own_steps(PAPER))
    found, _ = analyzed(built(omega, mu, across=0.2))
    (own, from_1), (from_0, _) = found.costs.interference
    noise = 4 * 1.1 / 48
    change = (1 + 2 * noise) / (1 + noise)
    assert from_1.value == pytest.approx(0.2 * np.sqrt(change / 1.04), abs=1.5 * from_1.half)
    assert own.value == pytest.approx(np.sqrt(change / 1.04), abs=1.5 * own.half)
    assert from_1.half < 0.02
    assert from_0.value < 1e-6


def test_who_serves_whom_is_told() -> None:
    run = plant_tasks(PAPER, "III", permute=False).run
    outcome = icl.analyze(run, budget=300, probes=[SuperpositionProbe])["superposition"]
    sentence = "Head 0 serves y0 (+), head 1 serves y0 (−), head 2 serves y1 (+), head 3 serves y1 (−)."
    assert outcome.verdicts[0].sentence.startswith(sentence)
    table = next(b for b in outcome.blocks if isinstance(b, Table) and b.title == "Heads by task")
    assert table.rows[1] == (1, "−50%", "—", "−x0 −x1 −x2 −x3")


def test_the_contract_of_a_probe() -> None:
    trained = icl.train(
        MultiTaskRegression(3, [(0, 1), (1, 2)], 12, 0.1), n_heads=3, steps=60, n_records=40, progress=False
    )
    check_probe(SuperpositionProbe, plant_tasks(PAPER, "IV").run, trained, budget=600)


def test_late_iterates_are_averaged_with_their_scatter() -> None:
    """Dynamics whose heads swap work around a mean in superposition: the claims are about the mean."""
    planted = plant_tasks(PAPER, "IV").run
    rng = np.random.default_rng(0)
    factors = 1 + 0.02 * rng.standard_normal(50)
    snapshots = {
        name: torch.stack([weight * float(f) if name == "W_O" else weight for f in factors])
        for name, weight in planted.weights.items()
    }
    at = np.arange(5, 55) * 1000
    dynamics = icl.Dynamics(
        steps=at,
        loss=np.full(50, 0.25),
        omega=np.zeros((50, 1, 3)),
        mu=np.zeros((50, 1, 3, 2)),
        snapshot_steps=at,
        snapshots=snapshots,
    )
    last = {name: tensor[-1] for name, tensor in snapshots.items()}
    found, _ = analyzed(dataclasses.replace(planted, dynamics=dynamics, weights=last, step=54_000), budget=500)
    late = factors[at >= 0.8 * 54_000]
    assert "iterates in the last fifth" in found.steps.iterate
    for ratio in found.steps.on_support:
        assert ratio.value == pytest.approx(late.mean(), rel=1e-3)
        assert ratio.covers == "training time"
        assert 0.002 < ratio.half < 0.05
    assert found.steps.half.max() > 0.002
