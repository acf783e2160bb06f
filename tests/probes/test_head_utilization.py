from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import pytest
import torch

import icl_interp as icl
from icl_interp.config import ModelConfig
from icl_interp.interventions import mean_ablation, resample_ablation, zero_ablation
from icl_interp.model import ICLTransformer
from icl_interp.probing import Context, Heatmap, Lines, Outcome, Table, Verdict, run_probe
from icl_interp.records import Run
from icl_interp.serialization import dumps, to_data
from icl_interp.tasks import LinearRegression, MultiTaskRegression, Prompt, SparseRegression, Task
from icl_interp.testing import check_probe, construct_descent
from icl_interp.weights import initial_weights
from icl_interp_probes.head_ablations import KINDS
from icl_interp_probes.head_utilization import FEWEST, HeadUtilization, HeadUtilizationProbe

TASK = SparseRegression(4, 2, length=40, noise_var=0.1)
BUDGET = 1_200
CLAIMS = FIRST, LATER, PRUNED, SINGLE = (
    "first_layer_uses_all_heads",
    "later_layers_use_one_head",
    "pruned_as_good",
    "single_head_worse",
)
PREPROCESSES = dict.fromkeys(CLAIMS, "holds")


def outcome(run: Run, budget: int = BUDGET) -> Outcome:
    found = run_probe(HeadUtilizationProbe(), Context(run, budget=budget))
    assert found.status == "done", found.details or found.reason
    return found


def analyzed(run: Run, budget: int = BUDGET) -> tuple[HeadUtilization, dict[str, Verdict]]:
    found = outcome(run, budget)
    assert isinstance(found.value, HeadUtilization)
    return found.value, {verdict.claim: verdict for verdict in found.verdicts}


def statuses(run: Run, budget: int = BUDGET) -> dict[str, str]:
    return {claim: verdict.status for claim, verdict in analyzed(run, budget)[1].items()}


def untrained(task: Task, *, scale: float = 1.0, seed: int = 0, **of_model: object) -> Run:
    config = ModelConfig(task.dim, task.n_outputs, **of_model)  # pyright: ignore[reportArgumentType]
    weights = initial_weights(config, torch.Generator().manual_seed(seed))
    return Run(config, {name: scale * weight for name, weight in weights.items()}, task=task)


def shared(run: Run, layer: int, parts: Sequence[Sequence[int]]) -> Run:
    """The same predictions: several heads share the step of a layer's one head, each with some of its coordinates."""
    weights = {name: weight.clone() for name, weight in run.weights.items()}
    (one,) = (h for h in range(run.model_config.n_heads) if run.weights["W_Q"][layer, h].any())
    for h, coordinates in enumerate(parts):
        mine = torch.zeros(run.model_config.head_width)
        mine[list(coordinates)] = 1
        for name in weights.keys() & {"W_Q", "W_K", "W_V", "W_O"}:
            own = run.weights[name][layer, one]
            weights[name][layer, h] = own * mine if name in ("W_Q", "W_K") else own
    return dataclasses.replace(run, weights=weights)


# --- What holds where -------------------------------------------------------------------------------------------------


def test_contract() -> None:
    small = SparseRegression(3, 2, length=12)
    trained = icl.train(small, n_layers=2, scratch=3, read_out=True, steps=60, n_records=40, progress=False)
    check_probe(HeadUtilizationProbe, trained, construct_descent(small, steps=1), budget=200)


@pytest.mark.parametrize("perturbation", [0.0, 0.01])
def test_a_model_that_preprocesses_and_then_descends(perturbation: float) -> None:
    run = construct_descent(TASK, steps=2, rate=0.1, width=12, perturbation=perturbation)
    found, verdicts = analyzed(run)
    assert {claim: verdict.status for claim, verdict in verdicts.items()} == PREPROCESSES
    assert found.effective.value[:, 0] == pytest.approx(4.0, abs=0.15)  # by all three kinds of ablation
    assert found.effective.value[:, 1:] == pytest.approx(1.0, abs=1e-4)
    assert found.lost.value[:, 0] == pytest.approx(0.0, abs=1e-6 * (perturbation > 0))
    assert found.lost.value[:, 1].min() > 0.5


def test_a_descent_on_covariates_as_they_are_needs_one_head() -> None:
    run = construct_descent(TASK, preprocessed=False, n_heads=4, width=12, perturbation=0.01)
    assert statuses(run) == {FIRST: "fails", LATER: "holds", PRUNED: "holds", SINGLE: "fails"}


def test_half_of_the_first_layers_heads_may_be_idle() -> None:
    assert statuses(construct_descent(TASK, steps=1, n_heads=8, width=12)) == PREPROCESSES | {FIRST: "fails"}


@pytest.mark.parametrize(("parts", "number"), [([(0, 1), (2, 3)], 2.0), ([(0,), (1,), (2,), (3,)], 4.0)])
def test_heads_that_share_a_later_step_are_not_one(parts: Sequence[Sequence[int]], number: float) -> None:
    run = construct_descent(TASK, steps=1, width=12)
    several = shared(run, 1, parts)
    context = Context(run)
    prompt = context.sample("prompts", 50)
    torch.testing.assert_close(Context(several).predict(prompt), context.predict(prompt), rtol=1e-5, atol=1e-6)
    found, verdicts = analyzed(several)
    assert found.effective.value[0, 1] == pytest.approx(number, abs=0.15)
    assert {claim: verdict.status for claim, verdict in verdicts.items()} == PREPROCESSES | {
        LATER: "fails",
        PRUNED: "fails",
    }


def test_layers_that_do_nothing_use_no_head_and_are_left_out_of_the_picture() -> None:
    """The descent is all in the first layer, the last adds nothing."""
    run = construct_descent(TASK, steps=2, preprocessed=False, n_heads=2)
    run.weights["W_O"][1] = 0
    found, verdicts = analyzed(run)
    assert found.effective.value[0].tolist() == [1.0, 0.0]
    assert verdicts[LATER].status == "not_applicable"
    assert verdicts[LATER].sentence == "No head of a later layer is worth anything to the risk."
    first, *_, last = outcome(run).blocks
    assert isinstance(first, Heatmap)
    assert np.isnan(first.matrices[0, 1]).all()
    assert sorted(first.matrices[0, 0]) == [0.0, 1.0]
    assert "No head of L1 is worth 0.1% of that: such a layer uses none." in last.alt


def test_a_model_that_explains_nothing_has_nothing_to_lose() -> None:
    run = construct_descent(TASK, steps=1)
    run.weights["W_U"] *= -1
    _, verdicts = analyzed(run)
    assert {verdict.status for verdict in verdicts.values()} == {"not_applicable"}
    assert all(verdict.sentence.startswith("The model explains nothing") for verdict in verdicts.values())


def test_one_head_a_layer_and_one_layer_have_nothing_to_prune() -> None:
    one_head = construct_descent(TASK, preprocessed=False)
    assert statuses(one_head, FEWEST) == dict.fromkeys(CLAIMS, "not_applicable")
    one_layer = construct_descent(TASK, steps=1, preprocessed=False, n_heads=4)
    assert statuses(one_layer, FEWEST) == {
        FIRST: "fails",
        LATER: "not_applicable",
        PRUNED: "not_applicable",
        SINGLE: "fails",
    }


@pytest.mark.parametrize("budget", [1, 8, FEWEST - 1])
def test_too_few_prompts_are_inconclusive(budget: int) -> None:
    for preprocessed in (True, False):
        run = construct_descent(TASK, steps=1 + (not preprocessed), rate=0.1, preprocessed=preprocessed, n_heads=4)
        assert set(statuses(run, budget).values()) <= {"inconclusive", "not_applicable"}


def test_where_outliers_decide_nothing_is_concluded() -> None:
    """Steps too large: few prompts diverge, and make the mean of all."""
    found, verdicts = analyzed(construct_descent(TASK, steps=2, rate=0.4))
    assert found.explained.half > 1
    assert {verdict.status for verdict in verdicts.values()} == {"inconclusive"}


def test_predictions_that_are_not_defined_are_not_judged() -> None:
    """Without a head, denominators of 1 + x may be next to zero."""
    run = untrained(TASK, scale=8.0, n_layers=2, activation="affine", read_out=True)
    assert run_probe(HeadUtilizationProbe(), Context(run, budget=500)).status == "not_applicable"


# --- The numbers ------------------------------------------------------------------------------------------------------

TWO = MultiTaskRegression(4, [(0, 1), (1, 2, 3)], 9, 0.1)
MODELS = {
    "linear": untrained(TASK, n_layers=3, n_heads=2, scratch=3, read_out=True, activation="linear", d_head=3),
    "causal": untrained(TASK, n_layers=2, n_heads=3, mask="strict_causal", read_in=7, read_out=True, layer_norm=True),
    "several": untrained(TWO, n_layers=2, n_heads=2),
}


def hooked(run: Run) -> ICLTransformer:
    return ICLTransformer.from_weights(
        run.model_config, {name: weight.double() for name, weight in run.weights.items()}
    )


def reordered(prompt: Prompt, order: torch.Tensor) -> Prompt:
    return Prompt(*(part[order] for part in (prompt.x, prompt.y, prompt.x_q, prompt.y_q)))


@pytest.mark.parametrize("name", MODELS)
def test_interventions_give_the_same_numbers(name: str) -> None:
    n, model, context = 60, hooked(MODELS[name]), Context(MODELS[name], budget=60)
    found, _ = analyzed(MODELS[name], n)
    prompt, reference = context.sample("ablations"), context.sample("reference")
    drawn = torch.randperm(n, generator=torch.Generator().manual_seed(0))  # so the intervention pairs them as we do
    for layer, head in np.ndindex(found.n_layers, found.n_heads):
        one = f"L{layer}H{head}"
        for kind, ablation in enumerate(
            (
                zero_ablation(model, one),
                mean_ablation(model, one, reference),
                resample_ablation(model, one, reordered(reference, drawn.argsort())),
            )
        ):
            expected, change = ablation.risk_change(prompt), found.changes.at(kind, layer, head)
            numbers = (change.value, change.low, change.high)
            assert numbers == pytest.approx((expected.value, expected.low, expected.high), rel=2e-5, abs=1e-9), KINDS[
                kind
            ]


@pytest.mark.parametrize("name", ["linear", "several"])
def test_what_is_kept_is_all_but_what_is_zeroed(name: str) -> None:
    n, model, context = 60, hooked(MODELS[name]), Context(MODELS[name], budget=60)
    found, _ = analyzed(MODELS[name], n)
    task = MODELS[name].task
    assert isinstance(task, SparseRegression | MultiTaskRegression)
    assert found.noise_vars == pytest.approx([0.0, 0.025, 0.1, 0.4])
    assert found.own == 2
    kept = [(layer, head) for layer, head in enumerate(found.dominant)]
    for level, noise_var in enumerate([0.0, 0.025, 0.1, 0.4]):
        prompt = context.sample("pruning", task=dataclasses.replace(task, noise_var=noise_var))
        risks = [(model.predict(prompt) - prompt.y_q).square().mean().item()]
        for first in (1, 0):
            others = [
                f"L{layer}H{head}"
                for layer, head in np.ndindex(found.n_layers, found.n_heads)
                if layer >= first and (layer, head) not in kept
            ]
            with zero_ablation(model, others):
                risks.append((model.predict(prompt) - prompt.y_q).square().mean().item())
        assert found.risks.value[level] == pytest.approx(risks, rel=1e-5)
        explained = prompt.y_q.square().mean().item() - risks[0]
        if explained > 0:
            assert found.lost.value[level] == pytest.approx([(r - risks[0]) / explained for r in risks[1:]], rel=1e-4)
        else:
            assert np.isnan(found.lost.value[level]).all()


def test_dominant_heads_are_those_of_the_construction() -> None:
    run = construct_descent(TASK, steps=2, rate=0.1, n_heads=6)
    found, _ = analyzed(run, 300)
    for layer in (1, 2):
        assert found.dominant[layer] == run.weights["W_O"][layer].flatten(1).any(1).nonzero().item()
    unused = ~run.weights["W_O"][0].flatten(1).any(1).numpy()
    assert (found.changes.value[:, 0, unused] == 0).all()
    assert (found.changes.value[0, 0, ~unused] > 0).all()


@dataclasses.dataclass(frozen=True)
class Unlabelled:
    """Prompts whose noise nobody can turn up."""

    dim: int = TASK.dim
    n_outputs: int = 1
    length: int = TASK.length

    def sample(
        self,
        batch: int,
        *,
        length: int | None = None,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
    ) -> Prompt:
        return TASK.sample(batch, length=length, generator=generator, device=device)


def test_noise_is_varied_where_the_task_says_how() -> None:
    run = construct_descent(TASK, steps=1)
    unknown = outcome(dataclasses.replace(run, task=Unlabelled()), 200)
    assert isinstance(unknown.value, HeadUtilization)
    assert unknown.value.noise_vars == (None,)
    assert not any(isinstance(block, Lines) for block in unknown.blocks)
    noiseless, _ = analyzed(construct_descent(dataclasses.replace(TASK, noise_var=0.0), steps=1), 200)
    assert noiseless.noise_vars == (0.0, 0.0625, 0.25, 1.0)
    assert noiseless.own == 0
    linear, _ = analyzed(construct_descent(LinearRegression(3, 20, 0.5), preprocessed=False, n_heads=2), 200)
    assert linear.noise_vars == (0.0, 0.125, 0.5, 2.0)


# --- What is shown ----------------------------------------------------------------------------------------------------


def test_what_is_shown_is_what_was_found() -> None:
    found = outcome(construct_descent(SparseRegression(8, 2, length=20), steps=2, rate=0.1), 60)
    result = found.value
    assert isinstance(result, HeadUtilization)
    assert len(dumps(to_data(result))) + len(dumps([to_data(block) for block in found.blocks])) < 30_000
    picture, layers, pruning, curves, heads, _ = found.blocks
    assert isinstance(picture, Heatmap)
    assert picture.first_screen
    assert picture.matrices.shape == (1, 3, 8)
    worth = result.changes.value[0].clip(0)
    np.testing.assert_allclose(picture.matrices[0], worth / worth.max(1, keepdims=True), rtol=1e-3)
    assert isinstance(layers, Table)
    assert isinstance(pruning, Table)
    assert isinstance(heads, Table)
    assert isinstance(curves, Lines)
    assert [row[0] for row in layers.rows] == ["L0", "L1", "L2"]
    assert [row[4] for row in layers.rows] == [f"L{layer}H{head}" for layer, head in enumerate(result.dominant)]
    assert [row[0] for row in pruning.rows] == ["0", "0.0625", "0.25 (the task's)", "1"]
    assert heads.rows[-1][0] == "L2H7"
    np.testing.assert_allclose(curves.y, result.risks.value.T, rtol=1e-3)
    assert curves.names == ("all heads", "pruned", "one head a layer")
