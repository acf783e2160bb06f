"""Layers of models whose algorithm is known: the construction, plain descent, untrained, and what lies between."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch

from icl_interp.config import ModelConfig
from icl_interp.estimators import GradientSteps
from icl_interp.probing import Context, Heatmap, Lines, Outcome, Table, Text, run_probe
from icl_interp.records import Run
from icl_interp.serialization import to_data
from icl_interp.tasks import LinearRegression, MultiTaskRegression, SparseRegression, Task
from icl_interp.testing import check_probe
from icl_interp.testing.construction import construct_descent
from icl_interp.weights import initial_weights
from icl_interp_probes.known_algorithms import PLAIN, PREPROCESSED
from icl_interp_probes.layer_algorithm import LayerAlgorithm, LayerAlgorithmProbe
from icl_interp_probes.layer_readings import FAMILIES
from icl_interp_probes.layer_streams import OTHER_PAIRS, OTHER_PROMPTS, TARGETS, WEIGHED

TASK = SparseRegression(5, 2, length=25, noise_var=0.1)
CLAIMS = THERE, FOLLOWS, NEARER = (
    "preprocessed_after_first_layer",
    "follows_preprocessed_descent",
    "nearer_to_preprocessed_than_plain",
)
BUDGET = 1_200
OWN = FAMILIES.index(PREPROCESSED)


def outcome(run: Run, budget: int = BUDGET, seed: int = 0) -> Outcome:
    found = run_probe(LayerAlgorithmProbe(), Context(run, budget=budget, seed=seed))
    assert found.status in ("done", "not_applicable"), found.details
    return found


def analyzed(run: Run, budget: int = BUDGET, seed: int = 0) -> tuple[LayerAlgorithm, dict[str, str]]:
    found = outcome(run, budget, seed)
    assert isinstance(found.value, LayerAlgorithm), found.reason
    return found.value, {verdict.claim: verdict.status for verdict in found.verdicts}


def untrained(task: Task = TASK, seed: int = 0, **sizes: object) -> Run:
    config = ModelConfig(task.dim, task.n_outputs, **{"read_out": True, **sizes})  # type: ignore[arg-type]
    return Run(config, initial_weights(config, torch.Generator().manual_seed(seed)), task=task)


def explained(found: LayerAlgorithm, layer: int) -> dict[str, float]:
    return {name: each[layer].value for name, each in zip(TARGETS, found.contents.explained, strict=True)}


@pytest.mark.parametrize(
    ("steps", "width", "perturbation"), [(1, 14, 0.0), (1, None, 0.01), (2, None, 0.0), (2, 20, 0.01)]
)
def test_the_construction_preprocesses_and_descends(steps: int, width: int | None, perturbation: float) -> None:
    """Hidden in a random read-in or not."""
    run = construct_descent(TASK, steps=steps, width=width, perturbation=perturbation, seed=steps)
    found, statuses = analyzed(run)
    assert statuses == dict.fromkeys(CLAIMS, "holds")
    before, after = explained(found, 0), explained(found, 1)
    assert after[WEIGHED] > (0.99 if perturbation else 1 - 1e-6)
    assert max(before[WEIGHED], after[OTHER_PROMPTS], after[OTHER_PAIRS]) < 0.05
    np.testing.assert_allclose(found.contents.coordinates[1:], 1.0, atol=0.01)
    assert found.read_out.reads == (False, *[True] * steps)
    for layer in range(1, steps + 1):
        near, *far = (each.value for each in found.read_out.distance[layer])
        assert near < 0.02 < 0.2 < min(far)
        assert found.probed.distance[layer][OWN].value < 0.02
        if not perturbation:
            assert found.read_out.members[layer][OWN].startswith(f"{layer} step")
            assert near < 0.001


def test_what_is_read_has_the_risk_of_the_algorithm() -> None:
    run = construct_descent(TASK, rate=0.2, width=12)
    found, _ = analyzed(run)
    prompt = Context(run).sample("judging", BUDGET // 2)
    for layer in (1, 2):
        gd = GradientSteps(layer, 0.2, preprocessed=True, relative=False)
        risk = (gd(prompt) - prompt.y_q).square().mean().item()
        assert found.read_out.risk[layer].value == pytest.approx(risk, rel=1e-4)
        assert found.read_out.risks[layer][OWN].value == pytest.approx(risk, rel=0.05)
    assert found.read_out.risk[0].value == pytest.approx(prompt.y_q.square().mean().item(), rel=1e-5)
    np.testing.assert_allclose(found.stepwise[:, 0][OWN], found.read_out.risk[0].value, rtol=1e-3)


def test_a_probe_reads_the_construction_as_it_reads_the_algorithm() -> None:
    """After layer 1 it sums x̃, which is a step on x; that is what the algorithm's own stream says too."""
    found, _ = analyzed(construct_descent(TASK))
    assert found.read_out.risk[0].value > 2 * found.probed.risk[0].value
    for layer in range(3):
        assert found.probed.distance[layer][OWN].value < 1e-3
    plain = found.probed.distance[0][FAMILIES.index(PLAIN)].value
    assert plain < 0.02  # and so it tells little


@pytest.mark.parametrize(("steps", "perturbation"), [(2, 0.0), (3, 0.01)])
def test_plain_descent_is_told_apart(steps: int, perturbation: float) -> None:
    run = construct_descent(TASK, steps=steps, preprocessed=False, n_heads=3, width=12, perturbation=perturbation)
    found, statuses = analyzed(run)
    assert statuses == dict.fromkeys(CLAIMS, "fails")
    assert explained(found, 1)[WEIGHED] == pytest.approx(1 / 5, abs=0.08)  # Σ x̃ is one of d directions
    for layer in range(steps):
        assert found.read_out.distance[layer][FAMILIES.index(PLAIN)].value < 0.01
    sentences = [verdict.sentence for verdict in outcome(run).verdicts]
    assert f"the nearest is GD on x ({steps} steps" in sentences[2]


@pytest.mark.parametrize("softmax", [False, True])
def test_untrained_models_are_near_nothing(softmax: bool) -> None:
    linear = {} if softmax else {"activation": "linear", "activation_scale": 1 / 25}
    run = untrained(n_layers=2, n_heads=4, scratch=5, layer_norm=softmax, **linear)
    found, statuses = analyzed(run)
    assert statuses == dict.fromkeys(CLAIMS, "fails")
    assert explained(found, 1)[WEIGHED] < 0.3
    assert "near none of the families" in outcome(run).verdicts[1].sentence


def test_a_wide_untrained_stream_has_all_products_and_is_not_taken_for_preprocessing() -> None:
    task = SparseRegression(3, 2, length=12, noise_var=0.1)
    linear = {"activation": "linear", "activation_scale": 1 / 12}
    run = untrained(task, n_layers=1, n_heads=12, d_head=12, read_in=48, **linear)
    found, statuses = analyzed(run)
    after = explained(found, 1)
    assert after[WEIGHED] > 0.9
    assert after[OTHER_PROMPTS] < 0.05
    assert after[OTHER_PAIRS] > 0.8
    assert statuses[THERE] != "holds"
    assert found.contents.selectivity[1].value < 0.8


def test_half_of_the_heads_leave_half_of_the_coordinates() -> None:
    run = construct_descent(TASK)
    weights = {name: weight.clone() for name, weight in run.weights.items()}
    weights["W_O"][0, 2:] = 0
    found, statuses = analyzed(dataclasses.replace(run, weights=weights))
    assert statuses[THERE] == "fails"
    assert "holds" not in statuses.values()
    there = np.sort(found.contents.coordinates[1])
    np.testing.assert_allclose(there[3:], 1, atol=1e-4)
    assert np.abs(there[:3]).max() < 0.05


def test_dense_regression_on_correlated_covariates_works_as_well() -> None:
    """Neighbours' products are alike there, and a control is partly there."""
    sigma = 0.5 ** np.abs(np.subtract.outer(np.arange(4), np.arange(4)))
    task = LinearRegression(4, 20, 0.1, covariance=sigma)
    found, statuses = analyzed(construct_descent(task, steps=1, perturbation=0.01))
    assert statuses == dict.fromkeys(CLAIMS, "holds")
    assert explained(found, 1)[OTHER_PAIRS] > 0.1
    assert found.contents.selectivity[1].value > 0.99


def test_too_few_prompts_decide_nothing() -> None:
    run = construct_descent(TASK, width=60)
    for budget in (1, 7, 900):
        assert set(analyzed(run, budget)[1].values()) == {"inconclusive"}
    statuses = analyzed(run, BUDGET)[1]
    assert statuses == {THERE: "inconclusive", FOLLOWS: "holds", NEARER: "holds"}  # a probe of 60 features takes more


def test_of_one_layer_only_the_first_claim_is_made() -> None:
    run = construct_descent(TASK, steps=1, preprocessed=False)
    _, statuses = analyzed(run)
    assert statuses == {THERE: "fails", FOLLOWS: "not_applicable", NEARER: "not_applicable"}


def test_a_model_that_predicts_zero_has_no_algorithm() -> None:
    run = construct_descent(TASK)
    silent = dataclasses.replace(run, weights={**run.weights, "W_U": torch.zeros_like(run.weights["W_U"])})
    found = outcome(silent)
    assert [verdict.status for verdict in found.verdicts] == ["holds", "not_applicable", "not_applicable"]
    assert "predicts zero" in found.verdicts[1].sentence


@pytest.mark.parametrize(
    ("run", "words"),
    [
        (untrained(MultiTaskRegression(3, [(0, 1), (1, 2)], 12, 0.1), n_layers=2), "one response"),
        (untrained(LinearRegression(1, 12, 0.1), n_layers=2), "nothing to weigh"),
    ],
)
def test_where_the_question_makes_no_sense_it_says_why(run: Run, words: str) -> None:
    found = outcome(run, 100)
    assert found.status == "not_applicable"
    assert words in found.reason


def test_what_is_shown() -> None:
    found = outcome(construct_descent(TASK))
    curves, coordinates, risks, lens, probed, beside, how = found.blocks
    assert isinstance(curves, Lines)
    assert isinstance(coordinates, Heatmap)
    assert isinstance(risks, Lines)
    assert curves.y.shape == (4, 4)
    assert coordinates.matrices.shape == (1, 4, 5)
    assert risks.y.shape == (5, 3)
    for table in (lens, probed, beside):
        assert isinstance(table, Table)
        assert [row[0] for row in table.rows] == [1, 2, 3]
    assert isinstance(lens, Table)
    assert lens.rows[0][-1] == "nothing is read yet"
    assert str(lens.rows[2][-1]).startswith("GD on x̃: 2 steps")
    assert isinstance(how, Text)
    assert "600 prompts were fitted to" in how.text
    assert len(json.dumps(to_data([found.value, list(found.blocks)]), ensure_ascii=False)) < 16_000


def test_the_contract() -> None:
    check_probe(LayerAlgorithmProbe, construct_descent(SparseRegression(3, 1, length=10), width=9), budget=120)
