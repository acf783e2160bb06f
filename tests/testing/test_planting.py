from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from icl_interp.errors import ConfigError
from icl_interp.estimators import KernelRegressor
from icl_interp.roles import classify
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


@settings(max_examples=25, deadline=None)
@given(
    heads=st.lists(st.tuples(st.floats(-0.5, 0.5), st.floats(-4, 4)), min_size=1, max_size=5),
    dim=st.integers(1, 5),
    condition=st.floats(1, 1e4),
    seed=st.integers(0, 2**16),
)
def test_predictions_see_omega_and_mu_and_nothing_inert(
    heads: list[tuple[float, float]], dim: int, condition: float, seed: int
) -> None:
    omega, mu = zip(*heads, strict=True)
    task = LinearRegression(dim, 10)
    prompt = task.sample(20, generator=torch.Generator().manual_seed(seed)).to(dtype=torch.float64)
    quiet, loud = (
        plant(task, omega=omega, mu=mu, condition=condition, inert_noise=inert_noise, seed=seed)
        for inert_noise in (0.0, 1.0)
    )
    ideal = sum(KernelRegressor(float(w), float(m))(prompt) for w, m in zip(quiet.omega, quiet.mu, strict=True))
    for planted in (quiet, loud):
        assert sorted(planted.omega) == sorted(omega)
        torch.testing.assert_close(planted.run.circuits().predict(prompt), ideal, rtol=0, atol=1e-4 + 1e-5 * condition)


@pytest.mark.parametrize("condition", [1.0, 4.0, 1e4])
def test_factors_are_as_far_from_rotations_as_asked(condition: float) -> None:
    sizes = np.linalg.svd(plant(omega=[0.1] * 20, mu=[1.0] * 20, condition=condition).run.weights["W_Q"][0])[1]
    assert sizes.min() == pytest.approx(condition**-0.5, rel=0.15 * np.log(condition) + 1e-5)
    assert sizes.max() == pytest.approx(condition**0.5, rel=0.15 * np.log(condition) + 1e-5)
    assert sizes.min() > 0.999 * condition**-0.5
    assert sizes.max() < 1.001 * condition**0.5


@pytest.mark.parametrize("seed", range(4))
def test_cancelling_heads_matter_alone_and_do_nothing_together(seed: int) -> None:
    roles = ("positive", "cancelling", "negative", "cancelling", "positive", "cancelling", "cancelling")
    planted = plant(roles=roles, gamma=0.15, seed=seed)
    assert sorted(planted.roles) == ["dummy"] * 4 + ["negative", "positive", "positive"]
    assert planted.run.task is not None
    prompt = planted.run.task.sample(4_000, generator=torch.Generator().manual_seed(0)).to(dtype=torch.float64)
    circuits = planted.run.circuits()
    outputs = circuits.head_outputs(prompt)[..., 0]
    dummies = torch.tensor([role == "dummy" for role in planted.roles])
    total = outputs.sum(1).square().mean()
    assert outputs[:, dummies].sum(1).square().mean() < 1e-8 * total
    assert (outputs[:, dummies].square().mean(0) > 0.3 * total).all()
    assert classify(circuits, [prompt], np.eye(5)).roles == planted.roles


def test_a_preconditioner_and_supports_shape_what_heads_look_at() -> None:
    G = np.random.default_rng(0).standard_normal((3, 3))
    supports = np.array([[True, True, False], [False, True, True], [True, True, True]])
    arguments = {"omega": [0.1, 0.2, -0.3], "mu": [1.0, 2.0, 3.0], "preconditioner": G, "supports": supports}
    planted = plant(LinearRegression(3, 20), **arguments, seed=2)  # type: ignore[arg-type]
    order = [[0.1, 0.2, -0.3].index(w) for w in planted.omega]
    assert order != [0, 1, 2]
    seen = supports[order].astype(float)
    expected = planted.omega[:, None, None] * seen[:, :, None] * G * seen[:, None, :]
    np.testing.assert_allclose(planted.run.circuits().KQ_11[0], expected, atol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "give either roles, or omega and mu"),
        ({"roles": ("positive",), "omega": [1.0], "mu": [1.0]}, "give either roles, or omega and mu"),
        ({"omega": [1.0]}, "give either roles, or omega and mu"),
        ({"omega": [1.0], "mu": [1.0, 2.0]}, "omega and mu must be equally many numbers"),
        ({"omega": [], "mu": []}, "omega and mu must be equally many numbers"),
        ({"roles": ("positive", "mixed")}, r"got \['mixed'\]"),
        ({"roles": ("positive", "cancelling")}, "cancelling heads come in pairs, got 1"),
        ({"roles": ("positive",), "condition": 0.5}, "condition must be a finite number ≥ 1"),
        ({"roles": ("positive",), "noise": -1.0}, "noise must be a finite number ≥ 0"),
        ({"roles": ("positive",), "preconditioner": np.eye(4)}, r"preconditioner must be 5 × 5 .*got shape \(4, 4\)"),
        ({"roles": ("positive",), "supports": [[1, 1]]}, r"supports must be 1 × 5 truth values, got shape \(1, 2\)"),
        ({"roles": ("positive",), "supports": [[1, 1, 0, 1, 2]]}, "supports must be 1 × 5 truth values"),
        ({"task": LinearRegression(3, 9, covariance=kms(0.5)), "roles": ("positive",)}, "isotropic, centred"),
    ],
)
def test_nonsense_is_refused(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        plant(**arguments)  # type: ignore[arg-type]
