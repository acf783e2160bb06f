from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
import pytest
import torch

from icl_interp.config import ModelConfig
from icl_interp.errors import NumericsError
from icl_interp.estimators import (
    GradientSteps,
    KernelRegressor,
    Lasso,
    NewtonSteps,
    OrthogonalMatchingPursuit,
    Predictor,
    Ridge,
    SparseBayes,
    preprocess,
)
from icl_interp.passes import bounds
from icl_interp.probing import Context, Outcome, Table, Text, mean_of, ratio_of, run_probe
from icl_interp.records import Run
from icl_interp.serialization import to_data
from icl_interp.tasks import LinearRegression, MultiTaskRegression, Prompt, SparseRegression, Task
from icl_interp.testing import check_probe
from icl_interp.testing.construction import construct_descent
from icl_interp.weights import initial_weights
from icl_interp_probes.algorithm_match import FEWEST, AlgorithmMatch, AlgorithmMatchProbe
from icl_interp_probes.known_algorithms import (
    BAYES,
    LASSO,
    NEWTON,
    PLAIN,
    PREPROCESSED,
    PURSUIT,
    RIDGE,
    Fitted,
    Given,
    Spectrum,
    described,
    fitted,
    left_out,
    nearest_family,
    ordinary,
    steepness,
)
from icl_interp_probes.prompt_kinds import kinds

TASK = SparseRegression(4, 2, length=12, noise_var=0.1)
DENSE = LinearRegression(4, 12, noise_var=0.1)  # fewer families, none of them solved a prompt at a time but the Lasso
CLAIMS = KNOWN, PREPROCESSES, ELSEWHERE, TO_RIDGE, TO_DESCENT = (
    "known_algorithm",
    "preprocessed_descent",
    "same_algorithm_elsewhere",
    "better_than_ridge",
    "better_than_descent",
)


def untrained(task: Task, seed: int = 0, **of_model: object) -> Run:
    config = ModelConfig(task.dim, task.n_outputs, **of_model)  # type: ignore[arg-type]
    return Run(config, initial_weights(config, torch.Generator().manual_seed(seed)), task=task)


class Predicting(Context):
    """A view of a predictor that no transformer is built of, in place of the model."""

    predictor: Predictor

    def predict(self, prompt: Prompt) -> torch.Tensor:
        return self.predictor(prompt)

    def restricted(self, allowed: object) -> Context:
        return self

    def at(self, budget: int) -> Context:
        return self


def outcome(of: Run | Predictor, budget: int = FEWEST, task: Task = TASK) -> Outcome:
    if isinstance(of, Run):
        context = Context(of, budget=budget)
    else:
        context = Predicting(untrained(task, n_layers=2), budget=budget)
        context.predictor = of
    found = run_probe(AlgorithmMatchProbe(), context)
    assert found.status in ("done", "not_applicable"), found.details
    return found


def matched(of: Run | Predictor, budget: int = FEWEST, task: Task = TASK) -> tuple[AlgorithmMatch, dict[str, str]]:
    found = outcome(of, budget, task)
    assert isinstance(found.value, AlgorithmMatch), found.reason
    return found.value, {verdict.claim: verdict.status for verdict in found.verdicts}


def distances(found: AlgorithmMatch, kind: str = "training") -> dict[str, float]:
    return dict(zip(found.families, found.distance.value[found.kinds.index(kind)], strict=True))


def winner(found: AlgorithmMatch) -> str:
    return found.families[found.winner]


def fit(predictor: Predictor, task: Task = TASK, n: int = 400) -> Fitted:
    prompt = task.sample(n, generator=torch.Generator().manual_seed(0)).to(dtype=torch.float64)
    bound = bounds(prompt, 1.0)
    return fitted(task, Given(prompt, predictor(prompt).clamp(-bound, bound), bound), n)


# --- Truths that were planted ----------------------------------------------------------------------------------------


def test_contract() -> None:
    check_probe(AlgorithmMatchProbe, construct_descent(TASK, steps=1), budget=150)


@pytest.mark.parametrize(("steps", "perturbation"), [(1, 0.0), (2, 0.01)])
def test_preprocessed_descent_is_found_with_its_steps(steps: int, perturbation: float) -> None:
    run = construct_descent(TASK, steps=steps, width=14, perturbation=perturbation)
    found, statuses = matched(run)
    assert winner(found) == PREPROCESSED
    rate = float(run.origin.split()[-1].removesuffix("."))
    name, written = found.nearest[found.winner].split(", η = ")
    assert name == ("1 step" if steps == 1 else f"{steps} steps")
    assert float(written) == pytest.approx(rate, rel=0.03 + 10 * perturbation)  # the grid is 4 % wide, and noise adds
    assert {statuses[claim] for claim in (KNOWN, PREPROCESSES)} == {"holds"}
    assert statuses[TO_RIDGE] == statuses[TO_DESCENT] == "fails"  # so short a descent leaves much
    others = [found.distance.value[i, found.winner] for i, same in enumerate(found.trained_length) if same]
    assert max(others) < 0.01


@cache
def plain() -> tuple[AlgorithmMatch, dict[str, str]]:
    return matched(construct_descent(TASK, steps=2, preprocessed=False, width=14, perturbation=0.01))


def test_plain_descent_is_found_and_is_not_preprocessed() -> None:
    found, statuses = plain()
    assert winner(found) == PLAIN
    assert found.nearest[found.winner].startswith("2 steps")
    assert statuses == {
        KNOWN: "holds",
        PREPROCESSES: "fails",
        ELSEWHERE: "holds",
        TO_RIDGE: "fails",
        TO_DESCENT: "fails",
    }
    assert found.by_steps[0].argmin() == 1
    missed = distances(found)
    assert found.ratio.value == pytest.approx(missed[PREPROCESSED] / missed[PLAIN], rel=1e-4)


def test_a_model_that_learned_nothing_is_none_of_these() -> None:
    found = outcome(untrained(DENSE, n_layers=2, scratch=4, read_out=True))
    assert {verdict.status for verdict in found.verdicts} == {"fails"}
    assert "none of these" in found.verdicts[0].sentence
    assert isinstance(found.value, AlgorithmMatch)
    assert found.value.distance.value[0].min() == pytest.approx(1.0, abs=0.02)


@pytest.mark.parametrize(
    ("family", "predictor"),
    [
        (PLAIN, GradientSteps(5, 1.1)),
        (PLAIN, GradientSteps(3, 0.4, relative=False)),
        (PREPROCESSED, GradientSteps(10, 1.3, preprocessed=True)),
        (PREPROCESSED, GradientSteps(1, 0.5, preprocessed=True, relative=False)),
        (NEWTON, NewtonSteps(4)),
        (RIDGE, Ridge(7.0)),
        (LASSO, Lasso(0.12)),
        (PURSUIT, OrthogonalMatchingPursuit(2)),
        (BAYES, SparseBayes(TASK)),
    ],
    ids=repr,
)
def test_every_family_is_told_from_the_others(family: str, predictor: Predictor) -> None:
    found = fit(predictor)
    assert found.nearest == family
    assert found.distance[family] < 0.01
    member = found.members[family]
    if isinstance(predictor, GradientSteps):
        assert isinstance(member, GradientSteps)
        assert member.rate == pytest.approx(predictor.rate, rel=0.021)
        predictor = dataclasses.replace(predictor, rate=member.rate)
    if isinstance(predictor, Ridge | Lasso):
        assert getattr(member, "penalty", 0) == pytest.approx(predictor.penalty, rel=0.4)  # half a step of the grids
    else:
        assert member == predictor


# --- Predictors in place of a model ----------------------------------------------------------------------------------


def test_ridge_as_it_is_best_is_ridge_and_no_better_than_it() -> None:
    found, statuses = matched(lambda prompt: Ridge(0.4)(prompt) * 1.0001, task=DENSE)  # dσ² = 0.4
    assert winner(found) == RIDGE
    assert found.nearest[found.winner] == found.best[found.winner] == "λ = 0.4"
    assert (statuses[KNOWN], statuses[PREPROCESSES], statuses[ELSEWHERE]) == ("holds", "fails", "holds")
    assert statuses[TO_RIDGE] != "holds"
    assert abs(found.gain.value[0, found.families.index(RIDGE)]) < 1e-3


def test_bayes_is_better_than_ridge_and_descent() -> None:
    sparse = SparseRegression(6, 1, length=8, noise_var=0.1)
    found, statuses = matched(SparseBayes(sparse), task=sparse)
    assert winner(found) == BAYES
    assert (statuses[KNOWN], statuses[TO_RIDGE], statuses[TO_DESCENT]) == ("holds", "holds", "holds")
    assert distances(found)[BAYES] == 0.0
    worse = [found.families.index(family) for family in (PLAIN, PREPROCESSED, NEWTON, RIDGE, LASSO)]
    assert found.difference.value[0, worse].max() < 0


@dataclass(frozen=True)
class Shy:
    """Ridge that shrinks more where covariates are large."""

    power: int = 12

    def __call__(self, prompt: Prompt) -> torch.Tensor:
        return Ridge(0.4 * prompt.x.square().mean().item() ** self.power)(prompt)


def test_an_algorithm_may_be_another_elsewhere() -> None:
    found = outcome(Shy(), task=DENSE)
    statuses = {verdict.claim: verdict for verdict in found.verdicts}
    assert statuses[KNOWN].status == "holds"
    assert statuses[ELSEWHERE].status == "fails"
    assert "scaled x (x times 1.25, labels kept)" in statuses[ELSEWHERE].sentence


def test_a_kernel_is_none_of_these() -> None:
    found, statuses = matched(KernelRegressor(1.0, 1.5), task=DENSE)
    assert statuses[KNOWN] == statuses[PREPROCESSES] == "fails"
    assert min(distances(found).values()) > 0.1


def test_numbers_are_those_of_the_same_prompts() -> None:
    """Distances, risks and paired differences by hand; dear families on the first prompts only."""
    predictor = Ridge(3.0)
    found, _ = matched(predictor, budget=400)
    prompt = Context(untrained(TASK, n_layers=2)).sample(
        "training", 400, task=dataclasses.replace(TASK, query_noise=False)
    )
    newton = int(found.nearest[found.families.index(NEWTON)].split()[0])
    model, newton_steps, other = (
        p(prompt)[:, 0].numpy() for p in (predictor, NewtonSteps(newton), OrthogonalMatchingPursuit(2))
    )
    gain = found.difference.value[0] / found.excess.value[0, 1:-1]
    assert found.gain.value[0, :4] == pytest.approx(gain[:4], rel=1e-3)  # of families that answered all prompts
    truth, few = prompt.y_q[:, 0].numpy(), found.sizes.training_dear
    assert (found.sizes.training, found.sizes.other, few, found.sizes.other_dear) == (400, 200, 50, 13)
    pursuit = found.families.index(PURSUIT)
    at = ordinary(steepness(prompt)).numpy()
    assert at.sum() == 396
    near, far = ((model - newton_steps) ** 2)[at], ((model - other) ** 2)[:few][at[:few]]
    for measured, estimate in (
        (found.distance.at(0, found.families.index(NEWTON)), ratio_of(near, (model**2)[at])),
        (found.distance.at(0, pursuit), ratio_of(far, (model[:few] ** 2)[at[:few]])),
        (found.excess.at(0, 0), mean_of((model - truth) ** 2)),
        (found.difference.at(0, pursuit), mean_of(((model - truth) ** 2 - (other - truth) ** 2)[:few])),
    ):
        assert (measured.value, measured.low, measured.high) == pytest.approx(
            (estimate.value, estimate.low, estimate.high), rel=1e-4
        )


def test_predictions_larger_than_any_response_are_clipped() -> None:
    """One prompt in fifty explodes: it costs what the largest response would, and the share is told."""

    def exploding(prompt: Prompt) -> torch.Tensor:
        answers = Ridge(0.4)(prompt)
        return torch.where(prompt.x_q[:, :1] > 2.054, 1e6 * answers.sign(), answers)

    found, _ = matched(exploding, budget=500, task=DENSE)
    assert found.clipped[0] == pytest.approx(0.02, abs=0.015)
    ridge = found.excess.value[0, 1 + found.families.index(RIDGE)]
    assert 0.2 < found.excess.value[0, 0] - ridge < 1.5  # 0.02·(4√2)², less or more as labels are


# --- What claims say, and when they do not apply ---------------------------------------------------------------------


@pytest.mark.filterwarnings("error")
def test_a_handful_of_prompts_is_no_cause_for_warnings() -> None:
    for budget in (1, 2, 16):
        assert outcome(construct_descent(TASK, perturbation=0.002, seed=1), budget).status == "done"


def test_few_prompts_leave_claims_open() -> None:
    found, _ = plain()
    few = dataclasses.replace(found, sizes=dataclasses.replace(found.sizes, training=FEWEST - 1))
    verdicts = AlgorithmMatchProbe().judge(few)
    assert {verdict.claim: verdict.status for verdict in verdicts} == dict.fromkeys(CLAIMS, "inconclusive")


def test_without_noise_ridge_is_exact_and_nothing_is_better() -> None:
    task = LinearRegression(3, 12, noise_var=0.0)
    found, statuses = matched(construct_descent(task, steps=1), budget=300)
    assert statuses[TO_RIDGE] == "not_applicable"
    assert set(found.kinds) == {"training", "noise", "another Σ", "scaled x", "long prompts", "short prompts"}


@pytest.mark.parametrize("where", ["long", "everywhere"])
def test_where_there_are_no_predictions(where: str) -> None:
    def partly(prompt: Prompt) -> torch.Tensor:
        if where == "everywhere" or prompt.length > TASK.length:
            raise NumericsError("scores overflow")
        return Ridge(1.0)(prompt)

    found = outcome(partly, budget=200)
    if where == "everywhere":
        assert found.status == "not_applicable"
        assert "scores overflow" in found.reason
        return
    assert isinstance(found.value, AlgorithmMatch)
    at = found.value.kinds.index("long prompts")
    assert np.isnan(found.value.distance.value[at]).all()
    assert next(b for b in found.blocks if isinstance(b, Table) and "nearest" in b.columns).rows[at][2] == "not defined"
    assert "With long prompts the model has no predictions: scores overflow." in found.blocks[-1].alt


def test_other_lengths_are_shown_and_not_judged() -> None:
    """Linear attention's scores are divided by the training's L, so that elsewhere its steps are others."""
    found, statuses = plain()
    assert distances(found, "long prompts")[PLAIN] > 0.05
    assert statuses[ELSEWHERE] == "holds"
    assert not found.normalised
    assert "says nothing of its algorithm" in AlgorithmMatchProbe().blocks(found)[-1].alt


def test_not_for_several_responses_nor_for_nothing() -> None:
    several = untrained(MultiTaskRegression(4, [(0, 1), (2, 3)], 12), n_layers=2)
    assert "one response" in outcome(several, budget=50).reason
    silent = construct_descent(TASK, steps=1)
    silent.weights["W_U"].zero_()
    assert "answers zero" in outcome(silent, budget=50).reason


def test_a_result_is_small_and_its_first_screen_says_who() -> None:
    found = outcome(construct_descent(TASK, steps=1), budget=300)
    assert len(json.dumps(to_data([found.value, list(found.blocks)]), ensure_ascii=False)) < 30_000
    first = found.blocks[0]
    assert isinstance(first, Table)
    assert first.first_screen
    assert [row[0] for row in first.rows] == [
        "model",
        "nearest algorithm",
        *(f"{family}, at its best" for family in (RIDGE, PLAIN, PREPROCESSED, BAYES)),
    ]
    assert str(first.rows[1][1]).startswith("GD on x̃ (1 step")
    assert isinstance(found.blocks[-1], Text)


# --- Parts -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [3, 9])
@pytest.mark.parametrize("preprocessed", [False, True])
def test_filters_are_descents_and_ridges(length: int, preprocessed: bool) -> None:
    """With more covariates than demonstrations too, where there are eigenvalues of zero."""
    prompt = TASK.sample(20, length=length, generator=torch.Generator().manual_seed(1)).to(dtype=torch.float64)
    seen = preprocess(prompt) if preprocessed else prompt
    spectrum = Spectrum.of(seen)
    rates = torch.tensor([0.1, 1.5], dtype=torch.float64)
    for steps in (1, 2, 20):
        for relative in (False, True):
            unit = 1 / spectrum.values[:, -1:] if relative else torch.ones(20, 1)
            for rate, own in zip(rates, spectrum.descents(steps, rates[:, None, None] * unit), strict=True):
                expected = GradientSteps(steps, float(rate), preprocessed, relative)(prompt)
                torch.testing.assert_close(own, expected, rtol=1e-8, atol=1e-9)
    for penalty, own in zip(rates, spectrum.ridges(rates), strict=True):
        torch.testing.assert_close(own, Ridge(length * penalty.item())(seen), rtol=1e-6, atol=1e-9)


def test_the_nearest_family_is_nearest_on_the_same_prompts() -> None:
    """Where a few prompts decide, a family that was not asked about these would look nearer."""
    missed = {RIDGE: np.array([0.1, 0.1, 8.0, 0.1]), PLAIN: np.array([0.3, 0.3, 8.0, 0.3]), LASSO: np.array([0.2, 0.2])}
    assert nearest_family(missed) == RIDGE
    assert nearest_family(missed | {LASSO: np.array([0.05, 0.1])}) == LASSO
    assert nearest_family(missed | {BAYES: np.array([0.0, 0.1])}) == BAYES
    assert nearest_family({PLAIN: missed[PLAIN], RIDGE: missed[RIDGE]}) == RIDGE
    assert nearest_family(missed | {LASSO: np.array([])}) == RIDGE  # it warns of nothing, either


def test_kinds_vary_what_a_task_can_vary() -> None:
    named = {kind.name: kind for kind in kinds(TASK)}
    assert list(named) == [
        *("training", "more noise", "less noise", "one coefficient", "dense w", "scaled x"),
        *("long prompts", "short prompts"),
    ]
    assert named["more noise"].task == dataclasses.replace(TASK, noise_var=0.4, query_noise=False)
    assert named["dense w"].task == dataclasses.replace(TASK, sparsity=4, query_noise=False)
    assert (named["long prompts"].length, named["short prompts"].length) == (24, 6)
    prompt = TASK.sample(2)
    scaled = named["scaled x"].edit(prompt)
    torch.testing.assert_close(scaled.x, 1.25 * prompt.x)
    torch.testing.assert_close(scaled.x_q, 1.25 * prompt.x_q)
    assert torch.equal(scaled.y, prompt.y)
    assert "short prompts" not in {kind.name for kind in kinds(dataclasses.replace(TASK, length=1))}
    assert {kind.name for kind in kinds(SparseRegression(1, 1, 4))}.isdisjoint({"one coefficient", "dense w"})


@dataclass(frozen=True)
class OwnTask:
    """A user's own, of which nothing is known."""

    dim: int = 3
    length: int = 10
    n_outputs: int = 1
    sample: Callable[..., Prompt] = LinearRegression(3, 10, 0.1).sample


def test_a_task_of_which_nothing_is_known() -> None:
    task = OwnTask()
    found, _ = matched(Ridge(0.3), budget=200, task=task)
    assert found.kinds == ("training", "scaled x", "long prompts", "short prompts")
    assert winner(found) == RIDGE
    assert not found.exceeds_noise
    assert found.families == (PLAIN, PREPROCESSED, NEWTON, RIDGE, LASSO)
    assert "Bayes is not known" in found.left_out


def test_what_is_left_out_is_said() -> None:
    assert left_out(TASK) == ""
    assert "12,870 supports" in left_out(SparseRegression(16, 8))
    assert BAYES not in fit(Ridge(1.0), SparseRegression(16, 8), n=20).members
    assert left_out(SparseRegression(3, 3)) == "Ridge is Bayes here, as no coefficient is zero."
    assert "ridge is Bayes" in left_out(LinearRegression(3, 8))


def test_members_are_described_by_their_parameters() -> None:
    assert described(GradientSteps(1, 0.25, relative=False)) == "1 step, η = 0.25"
    assert described(GradientSteps(3, 0.5)) == "3 steps, η = 0.5/λ_max of each prompt"
    assert described(SparseBayes(TASK)) == "2 of 4, σ² = 0.1"
    assert described(KernelRegressor(1.0)) == "as the task has it"
