from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

import icl_interp as icl
from icl_interp.config import ModelConfig
from icl_interp.probing import Block, Table, Text
from icl_interp.records import Run
from icl_interp.roles import Role
from icl_interp.tasks import LinearRegression, MultiTaskRegression
from icl_interp.testing import check_probe, plant, plant_tasks
from icl_interp.weights import initial_weights
from icl_interp_probes.head_roles import HeadRoles, HeadRolesProbe

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


# --- Several responses -----------------------------------------------------------------------------------------------

PAIR = MultiTaskRegression(6, [(0, 1, 2, 3), (2, 3, 4, 5)], length=48, noise_var=0.1)
FIRST, SECOND = np.array([1, 1, 1, 1, 0, 0]), np.array([0, 0, 1, 1, 1, 1])
OWN = [(0.13 * FIRST, (3.5, 0)), (-0.13 * FIRST, (-3.5, 0)), (0.13 * SECOND, (0, 3.5)), (-0.13 * SECOND, (0, -3.5))]


def sharing(*heads: tuple[np.ndarray, tuple[float, float]]) -> Run:
    """A model of these (ω of each feature, μ of each response), one a head."""
    config = ModelConfig(6, 2, n_heads=len(heads))
    KQ, OV = torch.zeros(2, 1, len(heads), 8, 8)
    for h, (omega, mu) in enumerate(heads):
        KQ[0, h, range(6), range(6)] = torch.tensor(omega).float()
        OV[0, h, [6, 7], [6, 7]] = torch.tensor(mu).float()
    as_it_is = torch.eye(8).expand(1, len(heads), 8, 8)
    weights = {"W_Q": as_it_is, "W_K": config.score_scale * KQ, "W_V": as_it_is, "W_O": OV.mT}
    return Run(config, {name: tensor.contiguous() for name, tensor in weights.items()}, task=PAIR)


def shown(found: HeadRoles) -> tuple[Table, Table, str]:
    """The table of heads, that of roles by response, and what is said of it."""
    heads, roles, told, *_ = HeadRolesProbe().blocks(found)
    assert isinstance(heads, Table)
    assert isinstance(roles, Table)
    assert isinstance(told, Text)
    return heads, roles, told.text


def sentence(run: Run, claim: str) -> str:
    verdicts = icl.analyze(run, budget=2000, probes=["head_roles"]).verdicts
    return verdicts.sentence[verdicts.claim == claim].item()


def test_heads_of_their_own_response_match_signs_where_they_serve() -> None:
    """What little a head adds to a response of others may have any sign."""
    first, *others = OWN
    leaking = sharing((first[0], (3.5, -0.1)), *others)
    found, statuses = analyzed(leaking)
    assert statuses == {"heads_structured": "holds", "sign_matching": "holds"}
    heads, roles, told = shown(found)
    assert [row[2:] for row in roles.rows] == [
        ("positive", "—"),
        ("negative", "—"),
        ("—", "positive"),
        ("—", "negative"),
    ]
    assert roles.columns == ("head", "role", "for y0", "for y1")
    assert heads.columns == ("head", "role", "mean ω", "μ_0", "μ_1", "risk without it − risk")
    assert heads.rows[0][2] == pytest.approx(0.13 * 4 / 6)
    assert "Mixed" not in told


@pytest.mark.parametrize("response", [0, 1])
def test_a_sign_that_does_not_match_for_one_response_fails(response: int) -> None:
    wrong = (0.13 * (FIRST, SECOND)[response], (-1.0, 0) if response == 0 else (0, -1.0))
    run = sharing(*OWN, wrong)
    assert analyzed(run)[1] == {"heads_structured": "holds", "sign_matching": "fails"}
    assert f"is -1 (head 4, for y{response})" in sentence(run, "sign_matching")


def test_too_few_prompts_of_several_responses_do_not_decide() -> None:
    run = plant_tasks(PAIR, "III", noise=0.05, seed=1).run
    assert analyzed(run)[1] == {"heads_structured": "holds", "sign_matching": "holds"}
    assert analyzed(run, budget=8)[1] == {"heads_structured": "inconclusive", "sign_matching": "inconclusive"}


def test_superposed_heads_are_mixed_and_the_reason_is_told() -> None:
    planted = plant_tasks(PAIR, "IV", permute=False, seed=2)
    found, statuses = analyzed(planted.run)
    assert statuses == {"heads_structured": "holds", "sign_matching": "not_applicable"}
    assert "mixed" in found.heads.roles
    _, roles, told = shown(found)
    largest = np.abs(planted.mu).max(0)
    for h, row in enumerate(roles.rows):
        for n, cell in enumerate(row[2:]):
            mu = planted.mu[h, n]
            served = "positive" if mu > 0 else "negative"
            assert cell == (served if abs(mu) > 0.1 * largest[n] else "—")
    assert "Mixed heads that" in told


def heads_like(found: HeadRoles, roles: tuple[Role, ...], mu: list[list[float]]) -> HeadRoles:
    changed = np.array(mu)
    return replace(found, heads=replace(found.heads, roles=roles, mu=changed, mu_half=0.01 * np.abs(changed)))


def test_reasons_of_mixed_heads_are_those_of_their_numbers() -> None:
    found, _ = analyzed(sharing(*OWN), budget=200)
    told = shown(heads_like(found, ("mixed", "mixed", "mixed", "positive"), [[2, -1], [1, 1], [-0.4, 3], [3, 3]]))[2]
    assert "subtract those of others: 0, 2." in told
    assert "have ω of one sign on some features and of the other on others: 1." in told


def test_heads_without_signs_have_their_role_for_every_response() -> None:
    found, _ = analyzed(sharing(*OWN), budget=200)
    roles: tuple[Role, ...] = ("dummy", "mean", "unstructured", "negative")
    table = shown(heads_like(found, roles, [[90, 90], [3, 0.1], [9, 0], [-3, -3]]))[1]
    assert [row[2:] for row in table.rows] == [
        ("—", "—"),
        ("mean", "—"),
        ("unstructured", "unstructured"),
        ("negative", "negative"),
    ]


def test_four_responses_have_a_column_each() -> None:
    task = MultiTaskRegression(8, [(0, 1, 2, 3), (2, 3, 4, 5), (4, 5, 6, 7), (6, 7, 0, 1)], length=48, noise_var=0.1)
    found, statuses = analyzed(plant_tasks(task, "III", permute=False, seed=1).run)
    assert statuses == {"heads_structured": "holds", "sign_matching": "holds"}
    _, roles, _ = shown(found)
    assert roles.columns[2:] == ("for y0", "for y1", "for y2", "for y3")
    for row in roles.rows:
        assert sorted(map(str, row[2:])) == sorted([str(row[1]), "—", "—", "—"])


def test_untrained_heads_of_several_responses_hold_nothing() -> None:
    for seed in range(4):
        config = ModelConfig(6, 2, n_heads=1 + seed)
        run = Run(config, initial_weights(config, torch.Generator().manual_seed(seed)), task=PAIR)
        found, statuses = analyzed(run, budget=1000)
        assert statuses == {"heads_structured": "fails", "sign_matching": "not_applicable"}
        assert {cell for row in shown(found)[1].rows for cell in row[2:]} == {"unstructured"}


def test_one_response_has_no_table_by_response() -> None:
    found, _ = analyzed(plant(TASK, roles=("positive", "negative")).run, budget=200)
    blocks: list[Block] = HeadRolesProbe().blocks(found)
    assert [getattr(b, "title", "") for b in blocks] == [
        "Heads",
        "What roles rest on",
        "Without a role",
        "Rise in risk without a head",
    ]


def test_the_probe_keeps_its_contract_with_several_responses() -> None:
    check_probe(HeadRolesProbe, sharing(*OWN), plant_tasks(PAIR, "IV").run, budget=100)
