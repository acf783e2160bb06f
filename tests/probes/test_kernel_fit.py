from __future__ import annotations

import dataclasses

import numpy as np
import pytest

import icl_interp as icl
from icl_interp.manifold import manifold_mu
from icl_interp.records import Run
from icl_interp.tasks import LinearRegression, kms
from icl_interp.testing import plant
from icl_interp_probes.kernel_fit import KernelFit

TASK = LinearRegression(dim=5, length=40, noise_var=0.1)


def analyzed(run: Run, budget: int = 4000) -> tuple[KernelFit, dict[str, str]]:
    result = icl.analyze(run, budget=budget, probes=["kernel_fit"])
    return result.get(KernelFit), dict(zip(result.verdicts.claim, result.verdicts.status, strict=True))


SEVERAL = ("opposite_heads", "homogeneous_kq", "zero_sum_ov", "optimal_step", "solution_manifold")


def test_everything_holds_on_the_manifold() -> None:
    planted = plant(TASK, roles=("positive", "positive", "negative", "dummy"), gamma=0.13)
    found, statuses = analyzed(planted.run)
    assert statuses == {**dict.fromkeys(SEVERAL, "holds"), "one_head_optimum": "not_applicable"}
    assert found.kind == "opposite"
    assert found.gamma.value == pytest.approx(0.13, rel=1e-4)
    assert found.eta.value == pytest.approx(0.8790, abs=2e-4)
    assert found.eta_star == pytest.approx(0.8791, abs=1e-4)
    assert found.mu_gamma is not None
    assert found.positive_mu.value == pytest.approx(found.mu_gamma.value, rel=1e-4)
    assert found.eta_function.low <= 0.879 <= found.eta_function.high or abs(found.eta_function.value - 0.879) < 0.01


MU = (manifold_mu(TASK) or float)(0.13)


@pytest.mark.parametrize(
    ("claim", "omega", "mu"),
    [
        ("opposite_heads", [0.4, 0.4], [0.7, 0.7]),
        ("homogeneous_kq", [0.16, 0.10, -0.13], [MU / 2, MU / 2, -MU]),
        ("zero_sum_ov", [0.13, -0.13], [1.3 * MU, -0.7 * MU]),
        ("optimal_step", [0.13, -0.13], [1.1 * MU, -1.1 * MU]),
        ("solution_manifold", [0.13, -0.13], [0.9 * MU, -0.9 * MU]),
    ],
)
def test_each_claim_fails_where_exactly_it_is_violated(claim: str, omega: list[float], mu: list[float]) -> None:
    _, statuses = analyzed(plant(TASK, omega=omega, mu=mu).run)
    assert statuses[claim] == "fails"


def test_the_same_sign_basin_is_called_so() -> None:
    result = icl.analyze(plant(TASK, omega=[-0.5, -0.48], mu=[-0.9, -0.6]).run, budget=4000, probes=["kernel_fit"])
    verdict = result.verdicts.set_index("claim").loc["opposite_heads"]
    assert verdict.status == "fails"
    assert "same-sign basin" in verdict.sentence
    assert "45 with so many heads end there" in verdict.sentence
    assert result.get(KernelFit).kind == "same_sign"


def test_one_head_is_compared_with_the_true_optimum_and_not_with_the_formula() -> None:
    at_optimum, statuses = analyzed(plant(TASK, omega=[-0.518], mu=[-1.50]).run, budget=16_384)
    assert statuses == {**dict.fromkeys(SEVERAL, "not_applicable"), "one_head_optimum": "holds"}
    assert at_optimum.optimum_omega is not None
    assert at_optimum.optimum_omega.value == pytest.approx(0.518, abs=0.01)
    assert at_optimum.optimum_mu is not None
    assert at_optimum.optimum_mu.value == pytest.approx(1.50, abs=0.02)
    assert at_optimum.formula_omega == pytest.approx(1 / np.sqrt(5))
    at_formula, statuses = analyzed(plant(TASK, omega=[1 / np.sqrt(5)], mu=[1.628]).run, budget=16_384)
    assert statuses["one_head_optimum"] == "fails"
    assert at_formula.kind == "single"


def test_unstructured_heads_make_no_claim_applicable() -> None:
    run = icl.train(TASK, n_heads=4, steps=1)
    _, statuses = analyzed(run)
    assert set(statuses.values()) == {"not_applicable"}


def test_late_iterates_are_averaged_with_their_scatter() -> None:
    """Dynamics of known mean and noise around the checkpoint: the claims are about the mean."""
    import torch

    planted = plant(TASK, omega=[0.13, -0.13], mu=[MU, -MU], permute=False).run
    rng = np.random.default_rng(0)
    factors = 1 + 0.02 * rng.standard_normal(50)
    snapshots = {
        name: torch.stack([weight * float(f) if name == "W_O" else weight for f in factors])
        for name, weight in planted.weights.items()
    }
    steps = np.arange(5, 55) * 1000
    dynamics = icl.Dynamics(
        steps=steps,
        loss=np.full(50, 0.25),
        omega=np.zeros((50, 1, 2)),
        mu=np.zeros((50, 1, 2, 1)),
        snapshot_steps=steps,
        snapshots=snapshots,
    )
    noisy_last = {name: tensor[-1] for name, tensor in snapshots.items()}
    run = dataclasses.replace(planted, dynamics=dynamics, weights=noisy_last, step=54_000)
    found, _ = analyzed(run)
    late = factors[steps >= 0.8 * 54_000]
    assert "iterates in the last fifth" in found.iterate
    assert found.eta.value == pytest.approx(2 * 0.13 * MU * late.mean(), rel=1e-4)
    assert found.eta.covers == "training time"
    assert 0.002 < found.eta.half < 0.05


def test_other_tasks_get_what_theory_has_for_them() -> None:
    shifted = analyzed(plant(TASK.shifted(0.5), omega=[0.13, -0.13], mu=[MU, -MU]).run)[1]
    assert shifted["optimal_step"] == "not_applicable"
    assert shifted["solution_manifold"] == "not_applicable"
    assert shifted["zero_sum_ov"] == "holds"
    tilted = LinearRegression(5, 40, 0.1, covariance=kms(0.5))
    star = analyzed(plant(tilted, omega=[0.13, -0.13], mu=[1.0, -1.0]).run)[0].eta_star
    assert star is not None
    on = star / 0.26
    assert analyzed(plant(tilted, omega=[0.13, -0.13], mu=[on, -on]).run)[1]["optimal_step"] == "holds"
    assert analyzed(plant(tilted, omega=[0.13, -0.13], mu=[1.2 * on, -1.2 * on]).run)[1]["optimal_step"] == "fails"
