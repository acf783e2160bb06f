"""Figures 12 and 15: positions between preconditioners, and what is said of planted populations."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from icl_interp.probing import mean_of
from icl_interp.records import Dynamics, Runs
from icl_interp.reproduce import Bench, Schedule
from icl_interp.reproduce.figures import covariance
from icl_interp.reproduce.preconditioners import (
    DEBIASED,
    INVERSE,
    PLAIN,
    Learned,
    distance,
    position,
    symmetric,
    unit,
)
from icl_interp.reproduce.trainings import MAIN, RHOS
from icl_interp.tasks import kms
from icl_interp.testing import plant

SEEDS = 6
GAMMA = {0.3: 0.15, 0.5: 0.19, 0.7: 0.29}
# Whose Γ_deb is, up to a factor, another candidate of the main setting: Γ_deb⁻¹ = Σ + d(1 + σ²)/L · I.
SHAPES = {
    DEBIASED: {},
    PLAIN: {"noise_var": 1.1 / (1 + 1 / 40) - 1},
    INVERSE: {"length": 10**8},
}


def task(rho):
    return replace(MAIN, covariance=kms(rho))


def weights(rho, shape, mu, noise, seed):
    asked = replace(MAIN, noise_var=0.1) if shape == "I" else replace(task(rho), **SHAPES[shape])
    planted = plant(asked, omega=[GAMMA[rho], -GAMMA[rho]], mu=mu, noise=noise, seed=seed, permute=False)
    return planted.run


def seed_run(rho, shape, seed, mu=None, noise=0.003):
    """A run whose record has some noise about ideal heads with KQ_11 along `shape`."""
    size = 0.6 / GAMMA[rho]
    mu = [size, -size] if mu is None else mu
    moments = [weights(rho, shape, mu, noise, seed=100 * seed + i) for i in range(3)]
    return with_record(moments, task(rho))


def with_record(moments, of):
    circuits = [run.circuits() for run in moments]
    steps = np.array([90, 95, 100])
    dynamics = Dynamics(
        steps,
        np.ones(3),
        np.stack([c.omega for c in circuits]),
        np.stack([c.mu for c in circuits]),
        steps,
        {name: torch.stack([run.weights[name] for run in moments]) for name in moments[0].weights},
    )
    return replace(moments[-1], task=of, dynamics=dynamics)


def population(rho, shape, seeds=SEEDS, **options):
    return Runs([seed_run(rho, shape, seed, **options) for seed in range(seeds)])


class PlantedBench(Bench):
    """A bench whose populations are given by ρ; two isotropic heads with μ = ±3.4 beside them."""

    def __init__(self, folder, make, prompts=4_096):
        super().__init__(folder, Schedule("planted", 500_000, SEEDS, 1, 1, prompts))
        self.planted = {f"kms-{rho:g}": make(rho) for rho in RHOS}
        self.planted["h2"] = Runs([with_record([plant(omega=[0.13, -0.13], mu=[3.4, -3.4]).run] * 3, MAIN)])

    def runs(self, name):
        return self.planted[name]


def statuses(made):
    claims, _ = made
    return {claim.claim: claim.status for claim in claims}


def those(found, part):
    assert any(part in claim for claim in found)
    return {status for claim, status in found.items() if part in claim}


# --- Mathematics ------------------------------------------------------------------------------------------------------


def test_positions_are_zero_and_one_at_the_candidates_whatever_the_scale():
    candidates = Learned.of(population(0.5, DEBIASED, seeds=2)).candidates
    start, end = candidates[DEBIASED], candidates[INVERSE]
    ends = position(np.array([7 * start, 0.1 * end]), start, end)
    np.testing.assert_allclose(ends, [0, 1], atol=1e-12)
    assert position(unit(start) + unit(end), start, end) == pytest.approx(0.5, abs=1e-3)
    assert distance(3 * start, start) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize(("shape", "expected"), [(DEBIASED, 0), (INVERSE, 1)])
@pytest.mark.parametrize("rho", RHOS)
def test_positions_of_noisy_populations_recover_what_was_planted(rho, shape, expected):
    found = Learned.of(population(rho, shape, seeds=24, noise=0.03))
    estimate = mean_of(found.position(DEBIASED, INVERSE))
    assert abs(estimate.value - expected) < 1.5 * estimate.half  # three standard errors
    assert estimate.half < 0.1
    assert (distance(symmetric(found.products), found.candidates[shape]) > 0.005).all()  # noise adds to a distance


def test_the_plain_optimum_is_planted_as_such():
    found = Learned.of(population(0.5, PLAIN, noise=0.0))
    np.testing.assert_allclose(found.position(DEBIASED, PLAIN), 1, atol=1e-3)


def test_averages_put_the_positive_head_first_and_leave_out_inert_parts():
    mu = [-3.0, 3.0]
    runs = [
        with_record([plant(task(0.5), omega=[-0.2, 0.2], mu=mu, seed=seed, permute=False).run] * 3, task(0.5))
        for seed in range(2)
    ]
    found = Learned.of(runs)
    np.testing.assert_allclose(found.OV, [[3, -3]] * 2, rtol=1e-4)
    assert (np.trace(found.KQ, axis1=-2, axis2=-1)[:, 0] > 0).all()
    np.testing.assert_allclose(found.products, 3 * (found.KQ[:, 0] - found.KQ[:, 1]), rtol=1e-3, atol=1e-4)


# --- Figures ----------------------------------------------------------------------------------------------------------


def test_figure_12_of_the_debiased_optimum(tmp_path):
    claims, blocks = covariance.figure_12(PlantedBench(tmp_path, lambda rho: population(rho, DEBIASED)))
    found = {claim.claim: claim.status for claim in claims}
    assert those(found, "closer to Γ* than to Σ⁻¹") == {"reproduced"}
    assert those(found, "the distance of Γ̂ from Γ*") == {"reproduced"}
    assert those(found, "rather than Γ_deb") == {"undecided"}
    assert those(found, "tridiagonal") == those(found, "Both heads") == those(found, "Σμ is zero") == {"reproduced"}
    assert [type(block).__name__ for block in blocks] == ["Heatmap"] * 3 + ["Table"] * 2 + ["Text"]


def test_figure_12_of_the_inverse_covariance(tmp_path):
    found = statuses(covariance.figure_12(PlantedBench(tmp_path, lambda rho: population(rho, INVERSE))))
    assert those(found, "closer to Γ* than to Σ⁻¹") == {"differs"}
    assert those(found, "the distance of Γ̂ from Γ*") == {"differs"}
    assert those(found, "tridiagonal") == {"differs"}


@pytest.mark.parametrize("shape", [DEBIASED, PLAIN])
def test_the_two_optima_stay_tied_however_small_the_noise(tmp_path, shape):
    found = statuses(covariance.figure_12(PlantedBench(tmp_path, lambda rho: population(rho, shape, noise=1e-4))))
    assert those(found, "rather than Γ_deb") == {"undecided"}


def test_figure_12_of_heads_that_do_not_balance(tmp_path):
    found = statuses(
        covariance.figure_12(PlantedBench(tmp_path, lambda rho: population(rho, DEBIASED, mu=[3.4, -1.2])))
    )
    assert those(found, "Σμ is zero") == {"differs"}
    assert those(found, "OV is as large") == {"differs"}


def test_figure_12_of_heads_of_two_shapes(tmp_path):
    def mixed(rho):
        runs = []
        for seed in range(SEEDS):
            one, other = (seed_run(rho, shape, seed) for shape in (DEBIASED, "I"))
            both = {name: torch.cat([one.weights[name][:, :1], other.weights[name][:, 1:]], 1) for name in one.weights}
            runs.append(with_record([replace(one, weights=both)] * 3, task(rho)))
        return Runs(runs)

    assert those(statuses(covariance.figure_12(PlantedBench(tmp_path, mixed))), "Both heads") == {"differs"}


def test_figure_12_with_too_few_seeds(tmp_path):
    found = statuses(covariance.figure_12(PlantedBench(tmp_path, lambda rho: population(rho, DEBIASED, seeds=1))))
    assert those(found, "closer to Γ* than to Σ⁻¹") == {"undecided"}
    assert those(found, "rather than Γ_deb") == {"undecided"}


def test_figure_15_of_the_debiased_optimum(tmp_path):
    claims, blocks = covariance.figure_15(PlantedBench(tmp_path, lambda rho: population(rho, DEBIASED)))
    assert {claim.status for claim in claims} == {"reproduced"}
    assert [type(block).__name__ for block in blocks] == ["Heatmap", "Table", "Text"]


def test_figure_15_of_the_inverse_covariance_and_of_the_identity(tmp_path):
    found = statuses(covariance.figure_15(PlantedBench(tmp_path, lambda rho: population(rho, INVERSE))))
    assert those(found, "closer to (Γ*)⁻¹") == {"differs"}
    found = statuses(covariance.figure_15(PlantedBench(tmp_path, lambda rho: population(rho, "I"))))
    assert those(found, "look like Σ") == those(found, "look like (Γ*)⁻¹") == {"differs"}
