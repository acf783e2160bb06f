from __future__ import annotations

import pytest
import torch

import icl_interp as icl
from icl_interp.config import ModelConfig
from icl_interp.records import Run
from icl_interp.tasks import LinearRegression
from icl_interp.testing import plant
from icl_interp.weights import initial_weights
from icl_interp_probes.head_roles import HeadRoles

TASK = LinearRegression(dim=5, length=40, noise_var=0.1)


def analyzed(run: Run, budget: int = 4000) -> tuple[HeadRoles, dict[str, str]]:
    result = icl.analyze(run, budget=budget, probes=["head_roles"])
    return result.get(HeadRoles), dict(zip(result.verdicts.claim, result.verdicts.status, strict=True))


def test_removing_a_head_costs_what_a_direct_count_says() -> None:
    """At the optimum of μ the rise in risk is the head's own energy; beside it, a count by hand."""
    planted = plant(TASK, roles=("positive", "negative", "dummy"), permute=False)
    found, statuses = analyzed(planted.run, budget=20_000)
    assert statuses == {"heads_structured": "holds", "sign_matching": "holds"}
    prompt = TASK.sample(50_000, generator=torch.Generator().manual_seed(9)).to(dtype=torch.float64)
    outputs = planted.run.circuits().head_outputs(prompt)[:, :, 0]
    error = outputs.sum(1) - prompt.y_q[:, 0]
    for head in range(3):
        rise = ((error - outputs[:, head]) ** 2 - error**2).mean().item()
        estimate = found.risk_without[head]
        assert estimate.low - 2 * estimate.half <= rise <= estimate.high + 2 * estimate.half
    assert found.risk_without[2].value == pytest.approx(0, abs=1e-9)
    assert dict(found.risk_without_group)["dummy"].value == pytest.approx(0, abs=1e-9)


def test_signs_that_do_not_match_fail() -> None:
    planted = plant(TASK, omega=[0.2, -0.2, 0.2], mu=[3.0, -2.0, -1.0])
    _, statuses = analyzed(planted.run)
    assert statuses["sign_matching"] == "fails"


def test_a_model_of_unstructured_heads_fails_and_says_nothing_of_signs() -> None:
    config = ModelConfig(5, n_heads=4)
    run = Run(config, initial_weights(config, torch.Generator().manual_seed(0)), task=TASK)
    found, statuses = analyzed(run)
    assert statuses == {"heads_structured": "fails", "sign_matching": "not_applicable"}
    assert set(found.heads.roles) == {"unstructured"}


def test_cancelling_heads_are_told() -> None:
    planted = plant(TASK, omega=[0.13, -0.13, 0.2, 0.2], mu=[3.4, -3.4, 2.0, -2.0], permute=False)
    result = icl.analyze(planted.run, budget=4000, probes=["head_roles"])
    assert "2 and 3" in result.to_markdown()
    found = result.get(HeadRoles)
    assert found.risk_without[2].low > 0  # alone, each matters
    assert abs(dict(found.risk_without_group)["dummy"].value) < 1e-6  # together, they do nothing


def test_too_few_prompts_do_not_decide() -> None:
    planted = plant(TASK, roles=("positive", "negative"), noise=0.3, seed=2)
    _, few = analyzed(planted.run, budget=8)
    assert few["heads_structured"] in ("inconclusive", "fails")
