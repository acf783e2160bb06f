from __future__ import annotations

import numpy as np
import pytest
import torch

from icl_interp.errors import ConfigError
from icl_interp.estimators import KernelRegressor
from icl_interp.tasks import LinearRegression, kms
from icl_interp.testing import plant


def test_predictions_are_the_sum_of_the_planted_kernel_regressors() -> None:
    planted = plant(roles=("positive", "negative", "dummy", "mean", "mean"), gamma=0.2, seed=3)
    assert planted.run.task is not None
    prompt = planted.run.task.sample(100, generator=torch.Generator().manual_seed(0)).to(dtype=torch.float64)
    ideal = sum(KernelRegressor(float(w), float(m))(prompt) for w, m in zip(planted.omega, planted.mu, strict=True))
    torch.testing.assert_close(planted.run.circuits().predict(prompt), ideal, rtol=1e-4, atol=1e-5)


def test_truth_is_hidden_in_the_weights() -> None:
    """Heads are permuted, factors are not triangular or orthogonal, and inert parts are as large as the rest."""
    first, second = (plant(roles=("positive", "negative", "dummy"), seed=seed) for seed in (0, 1))
    assert not torch.allclose(first.run.weights["W_Q"], second.run.weights["W_Q"])
    KQ, OV = first.run.circuits().KQ, first.run.circuits().OV
    assert np.abs(KQ[..., 5:]).mean() > 0.3
    assert np.abs(OV[..., :5, :]).mean() > 0.3
    orders = {plant(roles=("positive", "negative", "dummy"), seed=seed).roles for seed in range(20)}
    assert len(orders) > 3


def test_the_same_seed_plants_the_same_model() -> None:
    a, b = (plant(roles=("positive", "negative"), seed=5).run.weights for _ in range(2))
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_omega_and_mu_are_taken_as_they_are() -> None:
    planted = plant(omega=[0.3, 0.0, -0.2], mu=[1.0, 2.0, 0.0], permute=False)
    assert planted.roles == ("positive", "mean", "dummy")
    np.testing.assert_allclose(planted.run.circuits().omega[0], [0.3, 0, -0.2], atol=1e-6)
    np.testing.assert_allclose(planted.run.circuits().mu[0, :, 0], [1, 2, 0], atol=1e-6)


def test_noise_perturbs_the_live_parts() -> None:
    clean, noisy = (plant(omega=[0.2], mu=[1.0], noise=noise).run.circuits() for noise in (0.0, 0.1))
    assert clean.KQ_21[0, 0].std() < 1e-6
    assert noisy.KQ_21[0, 0].std() == pytest.approx(0.02, rel=0.9)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "give either roles, or omega and mu"),
        ({"roles": ("positive",), "omega": [1.0], "mu": [1.0]}, "give either roles, or omega and mu"),
        ({"omega": [1.0]}, "give either roles, or omega and mu"),
        ({"omega": [1.0], "mu": [1.0, 2.0]}, "omega and mu must be equally many numbers"),
        ({"omega": [], "mu": []}, "omega and mu must be equally many numbers"),
        ({"roles": ("positive", "mixed")}, r"got \['mixed'\]"),
        ({"task": LinearRegression(3, 9, covariance=kms(0.5)), "roles": ("positive",)}, "isotropic, centred"),
    ],
)
def test_nonsense_is_refused(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        plant(**arguments)  # type: ignore[arg-type]
