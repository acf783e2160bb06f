"""Models, prompts and what they compute by hand, for all tests of interventions."""

import pytest
import torch

from icl_interp.config import ModelConfig
from icl_interp.model import ICLTransformer
from icl_interp.tasks import LinearRegression


@pytest.fixture
def task():
    return LinearRegression(dim=3, length=7)


@pytest.fixture
def model():
    """One layer, four heads, as they are drawn."""
    return ICLTransformer(ModelConfig(dim=3, n_heads=4), seed=0, dtype=torch.float64)


@pytest.fixture
def deep():
    """Two layers of three heads, narrow, strictly causal, with weights large enough for each head to matter."""
    config = ModelConfig(dim=3, n_heads=3, n_layers=2, d_head=2, mask="strict_causal")
    weights = ICLTransformer(config, seed=1, dtype=torch.float64).weights()
    return ICLTransformer.from_weights(config, {name: 2 * tensor for name, tensor in weights.items()})


@pytest.fixture
def sample(task):
    """Prompts in float64, by number and seed."""

    def draw(n=5, seed=0, length=None, task=task):
        return task.sample(n, length=length, generator=torch.Generator().manual_seed(seed)).to(dtype=torch.float64)

    return draw


@pytest.fixture
def with_weights():
    """A copy of a model with some of its heads' weights changed."""

    def changed(model, change, config=None):
        weights = model.weights()
        change(weights)
        return ICLTransformer.from_weights(config or model.config, weights)

    return changed
