from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from jaxtyping import Float

import icl_interp as icl
from icl_interp.config import ModelConfig
from icl_interp.estimates import ratio_of
from icl_interp.interventions import gradient_step, idealisation, zero_ablation
from icl_interp.probing import Bars, Context, Estimate, Table
from icl_interp.records import Run
from icl_interp.serialization import dumps, to_data
from icl_interp.tasks import LinearRegression, MultiTaskRegression, Task, kms
from icl_interp.testing import check_probe, plant
from icl_interp.weights import initial_weights
from icl_interp_probes.faithfulness import FEWEST, Faithfulness, FaithfulnessProbe

TASK = LinearRegression(dim=5, length=40, noise_var=0.1)
HERE, ELSEWHERE, ABLATED = CLAIMS = ("ideal_heads_explain", "ideal_heads_explain_elsewhere", "ablations_agree")
OFF = ("more noise", "another Σ", "scaled x", "shifted x")


def analyzed(run: Run, budget: int = FEWEST) -> tuple[Faithfulness, dict[str, str]]:
    result = icl.analyze(run, budget=budget, probes=["faithfulness"])
    return result.get(Faithfulness), dict(zip(result.verdicts.claim, result.verdicts.status, strict=True))


def built(
    task: Task,
    KQ: Float[np.ndarray, "heads d_model d_model"],
    OV: Float[np.ndarray, "heads d_model d_model"],
    activation: str = "softmax",
) -> Run:
    """A run of these circuits."""
    config = ModelConfig(task.dim, task.n_outputs, n_heads=len(KQ), activation=activation)
    same = np.broadcast_to(np.eye(config.d_model), KQ.shape)
    factors = {"W_Q": same, "W_K": config.score_scale * KQ, "W_V": same, "W_O": OV.swapaxes(1, 2)}
    return Run(config, {k: torch.tensor(v[None], dtype=torch.float32) for k, v in factors.items()}, task=task)


def kernels(omega: Sequence[float], mu: Sequence[float], dim: int = 5) -> tuple[np.ndarray, np.ndarray]:
    """KQ and OV of ideal heads with one response."""
    KQ, OV = np.zeros((2, len(omega), dim + 1, dim + 1))
    KQ[:, :dim, :dim] = np.array(omega)[:, None, None] * np.eye(dim)
    OV[:, dim, dim] = mu
    return KQ, OV


def explained(found: Faithfulness, story: str) -> dict[str, float]:
    return dict(zip(found.kinds, getattr(found, story).value, strict=True))


def test_contract() -> None:
    check_probe(FaithfulnessProbe)


def test_ideal_heads_are_themselves_everywhere_and_debiased_gd_is_not() -> None:
    found, statuses = analyzed(plant(TASK, roles=("positive", "negative"), gamma=0.13).run)
    assert statuses == dict.fromkeys(CLAIMS, "holds")
    assert set(OFF) < set(found.kinds)
    np.testing.assert_allclose(found.kernels.value, 1.0, atol=1e-6)
    descent = explained(found, "descent")
    assert min(descent["training"], *(descent[kind] for kind in OFF)) > 0.98
    assert descent["outlying x"] < 0.85  # where scores are not small any more
    np.testing.assert_allclose(found.difference.value, 0.0, atol=1e-5)


@pytest.mark.parametrize("task", [TASK, LinearRegression(5, 40, 0.1, covariance=kms(0.5))], ids=["I", "kms"])
def test_hooks_give_the_same_numbers(task: LinearRegression) -> None:
    run = plant(task, omega=[0.14, -0.12, 0.1], mu=[3.0, -3.5, 0.5], noise=0.3).run
    found, _ = analyzed(run, budget=500)
    context, model = Context(run, budget=500), run.model()
    prompt = context.sample("training")
    own = model.predict(prompt).double().detach().numpy()[:, 0]
    for story, intervention in (
        (found.kernels, idealisation(model, task=task)),
        (found.descent, gradient_step(model, task=task)),
    ):
        with intervention as altered:
            other = altered.predict(prompt).double().detach().numpy()[:, 0]
        expected = ratio_of(own**2 - (own - other) ** 2, own**2)
        assert story.value[0] == pytest.approx(expected.value, abs=2e-5)
        assert story.half[0] == pytest.approx(expected.half, rel=1e-3)
    prompt = context.sample("ablations")
    for head in range(3):
        for change, intervention in (
            (found.removed, zero_ablation(model, head)),
            (found.replaced, idealisation(model, head, task=task)),
        ):
            assert change.value[head] == pytest.approx(intervention.risk_change(prompt).value, abs=2e-5)
        with idealisation(model, task=task) as ideal:
            predicted = zero_ablation(ideal, head).risk_change(prompt).value
        assert found.predicted.value[head] == pytest.approx(predicted, abs=2e-5)


def test_heads_that_are_no_kernels_are_not_explained() -> None:
    """KQ far from a multiple of the identity."""
    _, statuses = analyzed(plant(TASK, roles=("positive", "negative"), noise=1.0).run)
    assert statuses[HERE] == "fails"


def test_a_model_may_be_explained_as_trained_and_not_elsewhere() -> None:
    """Heads that attend to labels as well, a little: too little to be seen before labels are outliers."""
    KQ, OV = kernels([0.13, -0.13], [3.4, -3.4])
    KQ[:, 5, :5] = 0.02
    found, statuses = analyzed(built(TASK, KQ, OV), budget=16_000)
    assert statuses == {HERE: "holds", ELSEWHERE: "fails", ABLATED: "holds"}
    assert min(explained(found, "kernels"), key=explained(found, "kernels").__getitem__) == "outlying y"
    sentence = FaithfulnessProbe().judge(found)[1].sentence
    assert sentence.startswith("Ideal heads explain least with outlying y")


def test_ablations_may_disagree_where_the_whole_is_explained() -> None:
    """Two heads that attend alike pass covariates on with opposite signs: together that is nothing, alone it is not."""
    KQ, OV = kernels([0.13, 0.13, -0.13], [1.7, 1.7, -3.4])
    OV[:2, 5, :5] = np.array([[2.0], [-2.0]])
    found, statuses = analyzed(built(TASK, KQ, OV))
    assert statuses == {HERE: "holds", ELSEWHERE: "holds", ABLATED: "fails"}
    assert found.removed.value[0] > found.predicted.value[0] + 0.1


def test_an_untrained_model_is_not_explained() -> None:
    for seed in range(2):
        config = ModelConfig(5, n_heads=4)
        run = Run(config, initial_weights(config, torch.Generator().manual_seed(seed)), task=TASK)
        _, statuses = analyzed(run)
        assert statuses[HERE] == statuses[ELSEWHERE] == "fails"
        assert statuses[ABLATED] != "holds"


@pytest.mark.parametrize("budget", [1, 8, 50, FEWEST - 1])
def test_too_few_prompts_are_inconclusive(budget: int) -> None:
    for run in (plant(TASK, roles=("positive", "negative")).run, plant(TASK, omega=[0.2], mu=[2.0], noise=2).run):
        _, statuses = analyzed(run, budget=budget)
        assert statuses == dict.fromkeys(CLAIMS, "inconclusive")


def test_one_head_is_a_kernel_and_no_gradient_descent() -> None:
    found, statuses = analyzed(plant(TASK, omega=[0.518], mu=[1.5]).run)
    assert statuses == dict.fromkeys(CLAIMS, "holds")
    assert explained(found, "descent")["training"] < 0.9


def test_correlated_covariates_are_tried_uncorrelated() -> None:
    task = LinearRegression(5, 40, 0.1, covariance=kms(0.5))
    found, statuses = analyzed(plant(task, omega=[0.1, -0.1], mu=[6.0, -6.0]).run)
    assert statuses == dict.fromkeys(CLAIMS, "holds")
    assert dict(zip(found.kinds, found.described, strict=True))["another Σ"] == "uncorrelated covariates"
    assert found.step == pytest.approx(1.2, abs=1e-5)


def test_several_responses_each_have_a_step() -> None:
    """Two tasks on features of their own, a pair of heads for each."""
    task = MultiTaskRegression(4, [{0, 1}, {2, 3}], length=24)
    KQ, OV = np.zeros((2, 4, 6, 6))
    for head, (features, sign) in enumerate([((0, 1), 1), ((0, 1), -1), ((2, 3), 1), ((2, 3), -1)]):
        KQ[head, features, features] = 0.15 * sign
        OV[head, 4 + head // 2, 4 + head // 2] = 3.0 * sign
    found, statuses = analyzed(built(task, KQ, OV))
    assert statuses == dict.fromkeys(CLAIMS, "holds")
    np.testing.assert_allclose(found.step, 0.45, atol=1e-6)  # 2·0.15·3 on half of the features
    assert found.descent.value[0] > 0.98


def test_linear_attention_is_gd_and_not_debiased() -> None:
    KQ, OV = kernels([0.02], [0.86 / 0.8])
    found, statuses = analyzed(built(TASK, KQ, OV, "linear"))
    assert statuses == dict.fromkeys(CLAIMS, "holds")
    np.testing.assert_allclose(found.step, 0.86, atol=1e-4)
    descent = explained(found, "descent")
    assert descent["shifted x"] < descent["training"] - 0.1


def test_where_a_denominator_is_next_to_zero_nothing_is_concluded() -> None:
    task = LinearRegression(5, 12, 0.1)
    KQ, OV = kernels([0.3, -0.3], [1.5, -1.5])
    result = icl.analyze(built(task, KQ, OV, "affine"), budget=2000, probes=["faithfulness"])
    found = result.get(Faithfulness)
    lost = [kind for kind, why in zip(found.kinds, found.undefined, strict=True) if why]
    assert "outlying x" in lost
    assert "training" not in lost
    assert np.isnan(found.kernels.value[found.kinds.index("outlying x")])
    sentence = dict(zip(result.verdicts.claim, result.verdicts.sentence, strict=True))[ELSEWHERE]
    assert sentence.endswith(f"The model has no predictions with {', '.join(lost)}.")
    tables = [block for block in result["faithfulness"].blocks if isinstance(block, Table)]
    assert {row[0] for row in tables[0].rows if row[2] == "not defined"} == set(lost)
    assert "not defined" in result.to_markdown()
    hopeless = icl.analyze(
        built(task, *kernels([0.8, -0.8, 0.7, -0.7], [0.3, -0.3, 0.3, -0.3]), "affine"),
        budget=2000,
        probes=["faithfulness"],
    )
    assert hopeless["faithfulness"].status == "not_applicable"


def test_deeper_models_are_left_out() -> None:
    config = ModelConfig(5, n_layers=2)
    run = Run(config, initial_weights(config, torch.Generator().manual_seed(0)), task=TASK)
    assert icl.analyze(run, budget=2000, probes=["faithfulness"])["faithfulness"].status == "skipped"


def test_small_tasks_are_varied_too() -> None:
    """One covariate, one demonstration, no noise."""
    found, _ = analyzed(plant(LinearRegression(1, 1, 0.0), omega=[0.1, -0.1], mu=[3.0, -3.0]).run)
    assert "another Σ" not in found.kinds
    assert "short prompts" not in found.kinds
    assert dict(zip(found.kinds, found.described, strict=True))["more noise"] == "σ² = 1"


def test_what_a_report_carries_is_small_and_true() -> None:
    roles = ("positive", "positive", "negative", "negative", "dummy", "dummy", "mean", "mean")
    result = icl.analyze(plant(TASK, roles=roles).run, budget=2000, probes=["faithfulness"])
    outcome = result["faithfulness"]
    assert len(dumps(to_data(outcome.value))) + len(dumps([to_data(block) for block in outcome.blocks])) < 14_000
    table = next(block for block in outcome.blocks if isinstance(block, Table))
    bars = next(block for block in outcome.blocks if isinstance(block, Bars))
    for row, value in zip(table.rows, bars.values, strict=True):
        assert isinstance(row[2], Estimate)
        assert value == pytest.approx(row[2].value, abs=1e-5)
