"""Would the tool say yes to anything?  Negative controls find nothing, positive controls find what was planted."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pytest
import torch

import icl_interp as icl
from icl_interp.config import ModelConfig
from icl_interp.records import Run
from icl_interp.roles import Role
from icl_interp.tasks import LinearRegression
from icl_interp.testing import plant
from icl_interp.weights import initial_weights, weight_shapes
from icl_interp_probes.head_roles import HeadRoles

TASK = LinearRegression(dim=5, length=40, noise_var=0.1)
BUDGET = 4096
HEADS = (1, 2, 4, 8)


def untrained(seed: int) -> Run:
    config = ModelConfig(5, n_heads=HEADS[seed % 4])
    return Run(config, initial_weights(config, torch.Generator().manual_seed(seed)), task=TASK)


def random(seed: int) -> Run:
    """Gaussian weights, from a third of a trained model's size to several times it."""
    config = ModelConfig(5, n_heads=HEADS[seed % 4])
    generator, scale = torch.Generator().manual_seed(seed), (0.3, 0.6, 1.0, 2.0, 4.0)[seed % 5]
    weights = {k: scale * torch.randn(shape, generator=generator) for k, shape in weight_shapes(config).items()}
    return Run(config, weights, task=TASK)


@pytest.mark.parametrize("family", [untrained, random])
@pytest.mark.parametrize("seeds", [(2,), pytest.param(range(20), marks=pytest.mark.slow)], ids=["one", "twenty"])
def test_nothing_holds_where_nothing_was_learned(family: object, seeds: Iterable[int]) -> None:
    for seed in seeds:
        result = icl.analyze(family(seed), budget=BUDGET)  # type: ignore[operator]
        elsewhere = ("dynamics", "preconditioner")  # which need a record, and correlated covariates
        assert {o.status for o in result if o.probe not in elsewhere} == {"done"}
        assert not (result.verdicts.status == "holds").any(), (seed, result.verdicts[["claim", "status", "value"]])
        assert set(result.get(HeadRoles).heads.roles) == {"unstructured"}


@pytest.mark.parametrize("count", [10, pytest.param(100, marks=pytest.mark.slow)])
def test_planted_models_give_back_their_roles_omega_and_mu(count: int) -> None:
    rng = np.random.default_rng(0)
    for seed in range(count):
        counts = rng.integers(1, 4), rng.integers(1, 4), rng.integers(0, 3), rng.choice([0, 2, 3])
        names: tuple[Role, ...] = ("positive", "negative", "dummy", "mean")
        roles = [role for role, count in zip(names, counts, strict=True) for _ in range(count)]
        planted = plant(TASK, roles=roles, gamma=float(rng.uniform(0.05, 0.3)), seed=seed)
        result = icl.analyze(planted.run, budget=2048, probes=["circuit_pattern", "head_roles", "kernel_fit"])
        found = result.get(HeadRoles).heads
        assert found.roles == planted.roles, seed
        matters = planted.mu != 0
        np.testing.assert_allclose(found.omega[matters], planted.omega[matters], atol=1e-5)
        np.testing.assert_allclose(found.mu[:, 0], planted.mu, atol=1e-4)
        applicable = result.verdicts[result.verdicts.status != "not_applicable"]
        expected = {"solution_manifold", "zero_sum_ov"} if counts[3] == 3 else set()  # mean heads that do not cancel
        assert set(applicable.claim[applicable.status != "holds"]) <= expected, seed
