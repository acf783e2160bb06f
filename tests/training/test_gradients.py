"""The hand-written backward pass against float64 autograd of the plain module."""

from __future__ import annotations

import oracles
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from icl_interp.config import ModelConfig
from icl_interp.tasks import LinearRegression, kms
from icl_interp.training import gradients
from icl_interp.training.gradients import Population, unpack
from icl_interp.training.prompts import Given
from icl_interp.training.torch_engine import TorchEngine
from icl_interp.weights import Weights, initial_weights


def draw(config: ModelConfig, seed: int, dtype: torch.dtype = torch.float32, scale: float = 1.0) -> Weights:
    weights = initial_weights(config, torch.Generator().manual_seed(seed))
    return {name: scale * weight.to(dtype) for name, weight in weights.items()}


@pytest.mark.parametrize("n_heads", [1, 2, 4, 8])
@pytest.mark.parametrize("covariance", [None, kms(0.5)])
def test_float32_gradient_is_exact_to_a_millionth(n_heads: int, covariance: object) -> None:
    task = LinearRegression(dim=5, length=40, noise_var=0.1, covariance=covariance)  # type: ignore[arg-type]
    config = ModelConfig(5, n_heads=n_heads)
    for seed, scale in enumerate((1.0, 3.0)):
        weights = draw(config, seed, scale=scale)
        prompt = task.sample(256, generator=torch.Generator().manual_seed(seed))
        value, grads = TorchEngine.grad(config, weights, prompt)
        assert oracles.distance(grads, oracles.autograd(weights, config, prompt)[1]) < 1e-6
        assert value == pytest.approx(oracles.autograd(weights, config, prompt)[0], rel=1e-5)


@settings(max_examples=30)
@given(
    dim=st.integers(1, 6),
    length=st.integers(1, 12),
    outputs=st.integers(1, 3),
    n_heads=st.integers(1, 4),
    d_head=st.integers(1, 8),
    batch=st.integers(1, 5),
    streams=st.integers(1, 3),
    runs=st.integers(1, 3),
    block=st.sampled_from([None, 1, 2, 5]),
    positions=st.sampled_from([1, 20, 10_000]),
    seed=st.integers(0, 2**20),
)
def test_float64_gradient_for_any_shape(
    dim: int,
    length: int,
    outputs: int,
    n_heads: int,
    d_head: int,
    batch: int,
    streams: int,
    runs: int,
    block: int | None,
    positions: int,
    seed: int,
) -> None:
    """However the population is cut into blocks, and its prompts into chunks."""
    config = ModelConfig(dim, outputs, n_heads, d_head=d_head)
    weights = [[draw(config, seed + runs * s + r, torch.float64) for r in range(runs)] for s in range(streams)]
    batches = [
        oracles.gaussian_prompts(dim, length, outputs, batch, seed + s).to(dtype=torch.float64) for s in range(streams)
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gradients, "POSITIONS", positions)
        patch.setattr(gradients, "SCORES", positions * streams * runs * n_heads)
        population = Population(config, weights, batch, length, block)
    for _ in range(2):  # nothing is left of the first time
        losses = population.descend([Given(prompt) for prompt in batches])
    for s, prompt in enumerate(batches):
        for r in range(runs):
            wanted_loss, wanted = oracles.autograd(weights[s][r], config, prompt)
            assert oracles.distance(unpack(population.grads[s, r], config), wanted) < 1e-10
            assert losses[s, r].item() == pytest.approx(wanted_loss, rel=1e-10)
    assert not population.grads[:, runs:].any()


@pytest.mark.parametrize("mask", ["demonstrations", "strict_causal"])
def test_deeper_models_go_through_autograd(mask: str) -> None:
    config = ModelConfig(3, n_layers=2, n_heads=2, mask=mask)  # type: ignore[arg-type]
    weights = draw(config, 0, torch.float64)
    prompt = oracles.gaussian_prompts(3, 7, 1, 16, 0).to(dtype=torch.float64)
    _, grads = TorchEngine.grad(config, weights, prompt)
    assert oracles.distance(grads, oracles.autograd(weights, config, prompt)[1]) < 1e-10


def test_inert_weights_get_exactly_no_gradient() -> None:
    config = ModelConfig(5, n_heads=2)
    _, grads = TorchEngine.grad(config, draw(config, 0), oracles.gaussian_prompts(5, 9, 1, 8, 0))
    assert not grads["W_Q"][:, :, 5:].any()  # the query's response is zero
    assert not grads["W_O"][..., :5].any()  # covariates are not read after the last layer


@pytest.mark.parametrize("scale", [10, 100, 1000])
def test_huge_scores_stay_finite(scale: float) -> None:
    config = ModelConfig(5, n_heads=2)
    value, grads = TorchEngine.grad(config, draw(config, 0, scale=scale), oracles.gaussian_prompts(5, 9, 1, 8, 0))
    assert torch.isfinite(torch.tensor(value))
    assert all(torch.isfinite(grad).all() for grad in grads.values())
