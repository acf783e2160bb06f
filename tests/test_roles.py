"""Roles of heads whose truth is known, and of heads that try to mislead."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from icl_interp.circuits import Circuits
from icl_interp.config import ModelConfig
from icl_interp.records import Run
from icl_interp.roles import Heads, along, classify, reference_shape
from icl_interp.tasks import LinearRegression, Prompt, Task, kms
from icl_interp.testing import plant
from icl_interp.weights import initial_weights

TASK = LinearRegression(dim=5, length=40, noise_var=0.1)


def heads_of(run: Run, n: int = 4000, task: Task = TASK) -> Heads:
    prompt = task.sample(n, generator=torch.Generator().manual_seed(0)).to(dtype=torch.float64)
    return classify(run.circuits(), [prompt], reference_shape(task, run.model_config.dim))


def perturbed(run: Run, head: int, block: tuple[slice, slice], change: np.ndarray, circuit: str = "OV") -> Circuits:
    circuits = run.circuits()
    parts = {"KQ": circuits.KQ.copy(), "OV": circuits.OV.copy()}
    parts[circuit][0, head][block] += change
    return Circuits(parts["KQ"], parts["OV"], circuits.dim, circuits.n_outputs)


def classify_circuits(circuits: Circuits, n: int = 4000) -> Heads:
    prompt = TASK.sample(n, generator=torch.Generator().manual_seed(0)).to(dtype=torch.float64)
    return classify(circuits, [prompt], np.eye(5))


@pytest.mark.parametrize("gamma", [0.03, 0.13, 0.4])
def test_planted_roles_and_numbers_come_back(gamma: float) -> None:
    planted = plant(TASK, roles=("positive", "negative", "negative", "dummy", "mean", "mean"), gamma=gamma, seed=1)
    heads = heads_of(planted.run)
    assert heads.roles == planted.roles
    assert heads.stable
    assert heads.structured
    np.testing.assert_allclose(heads.omega, planted.omega, atol=1e-6)
    np.testing.assert_allclose(heads.mu[:, 0], planted.mu, atol=1e-5)
    assert heads.explained.value == pytest.approx(1, abs=1e-9)


def test_two_heads_that_cancel_are_dummies_and_said_to_cancel() -> None:
    planted = plant(TASK, omega=[0.13, -0.13, 0.2, 0.2], mu=[3.4, -3.4, 2.0, -2.0], permute=False)
    heads = heads_of(planted.run)
    assert heads.roles == ("positive", "negative", "dummy", "dummy")
    assert heads.cancelling == ((2, 3),)
    assert heads.effect[2] > 0.2  # alone each of them matters


def test_three_heads_that_cancel() -> None:
    planted = plant(TASK, omega=[0.13, -0.13, 0.3, 0.3, 0.3], mu=[3.4, -3.4, 1.0, 1.5, -2.5], permute=False)
    heads = heads_of(planted.run)
    assert heads.roles == ("positive", "negative", "dummy", "dummy", "dummy")
    assert heads.cancelling == ((2, 3, 4),)


def test_many_small_heads_are_not_nothing() -> None:
    """Forty heads, each below the threshold for one: together they are the model."""
    planted = plant(TASK, roles=("positive",) * 20 + ("negative",) * 20)
    heads = heads_of(planted.run, n=1000)
    assert (heads.effect < 0.1).all()
    assert heads.are("dummy").sum() < 4
    assert heads.are("positive").sum() >= 16
    assert heads.are("negative").sum() >= 16


def test_a_small_head_that_does_not_average_is_no_mean_head() -> None:
    """Two heads at the edge of mattering: the first is a dummy, and the second is not excused for being small."""
    planted = plant(TASK, omega=[0.13, -0.13, 0.0, 0.0], mu=[3.4, -3.4, 0.0, 0.0], permute=False)
    circuits = planted.run.circuits()
    circuits.OV[0, 2:, 5, 0] = 0.22, 0.24  # x̄_1, with 4 % of the prediction's rms each
    heads = classify_circuits(circuits)
    assert heads.roles == ("positive", "negative", "dummy", "unstructured")


def test_large_weights_without_effect_are_a_dummy_and_small_ones_with_effect_are_not() -> None:
    planted = plant(TASK, omega=[0.13, -0.13, 5.0, 0.01], mu=[3.4, -3.4, 0.0, 0.3], permute=False)
    assert heads_of(planted.run).roles == ("positive", "negative", "dummy", "mean")


def test_departures_that_undo_each_other_are_excused_and_others_are_not() -> None:
    """Two positive heads share KQ, so OV_21 = ±v changes nothing; in one of them alone it does."""
    planted = plant(TASK, omega=[0.13, 0.13, -0.13], mu=[1.7, 1.7, -3.4], permute=False)
    v = np.array([0.0, 0.0, 1.5, 0.0, 0.0])
    block = (slice(5, 6), slice(0, 5))
    alone = perturbed(planted.run, 0, block, v)
    assert classify_circuits(alone).roles == ("unstructured", "positive", "negative")
    both = Circuits(alone.KQ, alone.OV.copy(), 5, 1)
    both.OV[0, 1][block] -= v
    heads = classify_circuits(both)
    assert heads.roles == ("positive", "positive", "negative")
    assert heads.misfit[0] > 1  # it is the company that excuses it
    assert heads.structured


def test_a_head_that_attends_to_labels_or_off_diagonally_is_unstructured() -> None:
    planted = plant(TASK, omega=[0.13, -0.13], mu=[3.4, -3.4], permute=False)
    labels = perturbed(planted.run, 0, (slice(5, 6), slice(0, 5)), 0.2 * np.ones((1, 5)), "KQ")
    assert classify_circuits(labels).roles == ("unstructured", "negative")
    turned = perturbed(planted.run, 0, (slice(0, 5), slice(0, 5)), 0.13 * (np.eye(5)[::-1] - np.eye(5)), "KQ")
    assert classify_circuits(turned).roles == ("unstructured", "negative")


@pytest.mark.parametrize("n_heads", [1, 2, 4, 8])
def test_untrained_heads_are_unstructured(n_heads: int) -> None:
    config = ModelConfig(5, n_heads=n_heads)
    for seed in range(5):
        heads = heads_of(Run(config, initial_weights(config, torch.Generator().manual_seed(seed)), task=TASK))
        assert not heads.structured
        assert not heads.are("positive", "negative", "mixed").any()


def test_a_model_of_zeros_is_all_dummies_and_unstructured() -> None:
    config = ModelConfig(5)
    zeros = {name: torch.zeros_like(w) for name, w in initial_weights(config).items()}
    heads = heads_of(Run(config, zeros, task=TASK))
    assert heads.roles == ("dummy", "dummy")
    assert not heads.structured
    assert np.isfinite(heads.effect).all()


def test_other_covariances_expect_another_shape() -> None:
    """Under Σ ≠ I the ideal KQ_11 is ω·Γ_deb; ω·I is not what the optimum looks like."""
    task = LinearRegression(5, 40, 0.1, covariance=kms(0.7))
    shape = reference_shape(task, 5)
    assert np.trace(shape) == pytest.approx(5)
    np.testing.assert_allclose(along(shape, 0.3 * shape[None]), 0.3 * np.eye(5)[None], atol=1e-12)
    planted = plant(task, omega=[0.13, -0.13], mu=[3.0, -3.0], permute=False)
    heads = heads_of(planted.run, task=task)
    assert heads.roles == ("positive", "negative")
    np.testing.assert_allclose(heads.omega, planted.omega, atol=1e-6)


class TwoResponses:
    """Two responses that share covariates, each with a signal of its own."""

    dim, length, n_outputs = 4, 30, 2

    def sample(
        self,
        batch: int,
        *,
        length: int | None = None,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
    ) -> Prompt:
        x = torch.randn(batch, (length or 30) + 1, 4, generator=generator)
        y = x @ torch.randn(batch, 4, 2, generator=generator) / 2
        return Prompt(x[:, :-1], y[:, :-1], x[:, -1], y[:, -1])


def test_a_head_that_serves_two_responses_with_different_signs_is_mixed() -> None:
    KQ, OV = np.zeros((1, 3, 6, 6)), np.zeros((1, 3, 6, 6))
    for head, (omega, mu) in enumerate(((0.2, (2.0, 2.0)), (-0.2, (-4.0, -1.0)), (0.2, (2.0, -2.0)))):
        KQ[0, head, :4, :4] = omega * np.eye(4)
        OV[0, head, 4:, 4:] = np.diag(mu)
    circuits = Circuits(KQ, OV, 4, 2)
    prompt = TwoResponses().sample(3000, generator=torch.Generator().manual_seed(0)).to(dtype=torch.float64)
    heads = classify(circuits, [prompt], np.eye(4))
    assert heads.roles == ("positive", "negative", "mixed")
    np.testing.assert_allclose(heads.mu[2], [2, -2], atol=1e-6)


def test_intervals_of_mu_cover_the_regression_on_more_prompts() -> None:
    """μ as a function is the slope on infinitely many prompts; small samples' intervals should contain it."""
    planted = plant(TASK, roles=("positive", "negative"), noise=0.1, seed=4)
    truth = heads_of(planted.run, n=50_000).mu[:, 0]
    covered = []
    for seed in range(60):
        prompt = TASK.sample(500, generator=torch.Generator().manual_seed(seed + 1)).to(dtype=torch.float64)
        heads = classify(planted.run.circuits(), [prompt], np.eye(5))
        covered.append(np.abs(heads.mu[:, 0] - truth) <= heads.mu_half[:, 0])
    assert 0.87 <= np.mean(covered) <= 1.0  # 120 intervals at 95 %: three standard errors below
