from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch
from scipy.special import softmax

import icl_interp as icl
from icl_interp.config import ModelConfig
from icl_interp.probing import Context, Lines, Outcome, Surface, Table, run_probe
from icl_interp.records import Run
from icl_interp.serialization import to_data
from icl_interp.surfaces import ApproximateSurface
from icl_interp.tasks import LinearRegression, kms
from icl_interp.testing import check_probe, plant
from icl_interp.weights import initial_weights
from icl_interp_probes.approximate_loss import GRID, PATH, ApproximateLoss, ApproximateLossProbe

TASK = LinearRegression(dim=5, length=40, noise_var=0.1)
CLAIMS = ("attention_spread", "approximate_loss_close", "in_the_valley")
BUDGET = 3_000


def outcome(run: Run, budget: int = BUDGET) -> Outcome:
    found = run_probe(ApproximateLossProbe(), Context(run, budget=budget))
    assert found.status in ("done", "not_applicable"), found.details
    return found


def analyzed(run: Run, budget: int = BUDGET) -> tuple[ApproximateLoss, dict[str, str]]:
    found = outcome(run, budget)
    assert isinstance(found.value, ApproximateLoss)
    return found.value, {verdict.claim: verdict.status for verdict in found.verdicts}


def untrained() -> Run:
    config = ModelConfig(5, n_heads=4)
    return Run(config, initial_weights(config, torch.Generator().manual_seed(0)), task=TASK)


def test_the_contract() -> None:
    check_probe(ApproximateLossProbe)


def test_everything_holds_in_the_valley_and_the_numbers_are_right() -> None:
    found, statuses = analyzed(plant(TASK, roles=("positive", "positive", "negative", "dummy"), gamma=0.13).run, 8_000)
    assert statuses == dict.fromkeys(CLAIMS, "holds")
    assert found.gamma == pytest.approx(0.13, rel=1e-4)
    assert found.group_mu == pytest.approx(found.floor_mu, rel=1e-4)
    assert found.loss == pytest.approx(found.floor_loss, rel=1e-5)
    assert found.bias == pytest.approx(0.0220, abs=1e-4)
    for risk in (found.risk, found.ideal_risk, found.floor_risk):
        assert abs(risk.value - 0.2430) < 2 * risk.half + 1e-4
    assert abs(found.above_floor.value) < 1e-6
    (*own, both) = found.attention
    assert [len(a.heads) for a in found.attention] == [1, 1, 1, 2]
    for attention, product in ((own[0], 0.0169), (own[-1], 0.0169), (both, -0.0169)):
        assert attention.approximate == pytest.approx(np.exp(5 * product), rel=1e-3)
        assert attention.limit == pytest.approx((1 - 2 * product) ** -2.5, rel=1e-3)
        assert attention.measured.value == pytest.approx(attention.approximate, rel=0.01)


@pytest.mark.parametrize(
    ("omega", "mu", "fails", "holds"),
    [
        # So concentrated that attention is on some demonstrations only, yet on the valley's floor.
        ([0.55, -0.55], [0.743, -0.743], "attention_spread", None),
        # A step three times too large: far off the valley, where L̃ is too high.
        ([0.3, -0.3], [5.0, -5.0], "approximate_loss_close", "attention_spread"),
        # A step 10 % too large, and Σμ at 5 % of Σ|μ|, which L̃ describes as well as any.
        ([0.13, -0.13], [3.70, -3.70], "in_the_valley", "attention_spread"),
        ([0.13, -0.13], [3.53, -3.19], "in_the_valley", "approximate_loss_close"),
    ],
)
def test_each_claim_fails_where_it_is_violated(
    omega: list[float], mu: list[float], fails: str, holds: str | None
) -> None:
    _, statuses = analyzed(plant(TASK, omega=omega, mu=mu).run, 8_000)
    assert statuses[fails] == "fails"
    assert holds is None or statuses[holds] == "holds"


def test_attention_is_that_of_the_model_and_not_of_its_ideal_selves() -> None:
    """Head by head and prompt by prompt, of a model whose KQ is not quite a multiple of the identity."""
    run = plant(TASK, omega=[0.3, -0.3], mu=[1.46, -1.46], noise=0.06, permute=False).run
    found, _ = analyzed(run, 400)
    prompt, KQ = Context(run, budget=400).sample("attention"), run.circuits().KQ[0]
    squares, ideal = [], []
    for z, x, x_q in zip(prompt.demonstrations.numpy(), prompt.x.numpy(), prompt.x_q.numpy(), strict=True):
        squares.append(np.sum(softmax(z @ KQ[0, :, :5] @ x_q) ** 2))
        ideal.append(np.sum(softmax(found.omega[0] * x @ x_q) ** 2))
    assert found.attention[0].heads == (0,)
    assert found.attention[0].measured.value == pytest.approx(40 * np.mean(squares), rel=1e-9)
    assert np.mean(squares) > 1.002 * np.mean(ideal)


def test_one_sign_has_attention_and_no_valley() -> None:
    for omega, mu in (([0.518], [1.5]), ([-0.518, -0.518], [-0.75, -0.75])):
        found, statuses = analyzed(plant(TASK, omega=omega, mu=mu).run)
        assert statuses == {CLAIMS[0]: "fails", CLAIMS[1]: "not_applicable", CLAIMS[2]: "not_applicable"}
        assert found.loss == pytest.approx(ApproximateSurface(TASK).loss(np.array(omega), np.array(mu)), rel=1e-4)
        assert abs(found.risk.value - 0.405) < 2 * found.risk.half
    _, statuses = analyzed(plant(TASK, omega=[0.2], mu=[1.5]).run)
    assert statuses["attention_spread"] == "holds"


def test_unstructured_heads_make_no_claim_applicable_and_still_get_the_maps() -> None:
    found, statuses = analyzed(untrained())
    assert statuses == dict.fromkeys(CLAIMS, "not_applicable")
    assert np.isnan(found.loss)
    assert np.isfinite(found.grid_risk).all()
    assert abs(found.risk.value - 1.1) < 0.5


def test_too_few_prompts_are_inconclusive() -> None:
    run = plant(TASK, roles=("positive", "negative")).run
    for budget in (2, 8, 50):
        assert set(analyzed(run, budget)[1].values()) == {"inconclusive"}


@pytest.mark.parametrize(
    ("run", "words"),
    [
        (plant(LinearRegression(5, 40, covariance=kms(0.5)), omega=[0.1, -0.1], mu=[3, -3]).run, "isotropic, centred"),
        (plant(TASK.shifted(0.5), omega=[0.1, -0.1], mu=[3, -3]).run, "isotropic, centred"),
        (dataclasses.replace(untrained(), model_config=ModelConfig(5, n_heads=4, activation="square")), "is square"),
    ],
)
def test_where_the_formula_does_not_apply_it_says_why(run: Run, words: str) -> None:
    found = outcome(run, 200)
    assert found.status == "not_applicable"
    assert words in found.reason


def test_the_maps_are_figure_six() -> None:
    """The bias around the valley's floor, and the sign of the difference where the step is far too large."""
    found, _ = analyzed(plant(TASK, roles=("positive", "negative"), gamma=0.11).run, 8_192)
    middle = GRID // 2
    assert found.grid_gamma[middle] == pytest.approx(0.11, rel=1e-3)
    assert found.grid_mu[middle] == pytest.approx(found.floor_mu, rel=1e-3)
    difference = found.grid_risk - found.grid_loss
    assert difference[middle, middle] == pytest.approx(0.022, abs=1e-3)
    assert difference[-1, -1] < -0.02
    assert found.grid_loss[:, middle].argmin() == found.grid_risk[:, middle].argmin() == middle


def test_blocks_show_the_path_and_stay_small() -> None:
    planted = plant(TASK, roles=("positive", "negative"), permute=False).run
    steps, growth = np.arange(300), np.linspace(0.01, 1, 300)
    circuits = planted.circuits()
    dynamics = icl.Dynamics(
        steps=steps,
        loss=growth,
        omega=growth[:, None, None] * circuits.omega,
        mu=growth[:, None, None, None] * circuits.mu,
        snapshot_steps=steps[-1:],
        snapshots={name: tensor[None] for name, tensor in planted.weights.items()},
    )
    found = outcome(dataclasses.replace(planted, dynamics=dynamics))
    value = found.value
    assert isinstance(value, ApproximateLoss)
    assert 10 < len(value.path_gamma) <= PATH
    np.testing.assert_allclose([value.path_gamma[-1], value.path_mu[-1]], [value.gamma, value.group_mu], rtol=1e-3)
    assert (np.diff(value.path_gamma) > 0).all()
    kinds = [type(block) for block in found.blocks]
    assert kinds.count(Surface) == 3
    assert kinds.count(Table) == 2
    (valley,) = (block for block in found.blocks if isinstance(block, Lines))
    path = np.isfinite(valley.y[0])
    np.testing.assert_allclose(valley.y[0, path], value.path_mu)
    np.testing.assert_allclose(valley.y[1, ~path], value.grid_floor)
    size = [len(json.dumps(to_data(part), ensure_ascii=False)) for part in (value, list(found.blocks))]
    assert sum(size) < 13_000


def test_covariates_of_any_variance() -> None:
    scaled = dataclasses.replace(TASK, covariance=4 * np.eye(5), signal_var=0.25)
    found, statuses = analyzed(plant(scaled, roles=("positive", "negative"), gamma=0.13 / 4).run)
    assert statuses == dict.fromkeys(CLAIMS, "holds")
    assert found.bias == pytest.approx(0.0220, abs=1e-4)


def test_a_head_that_sees_one_demonstration_only_is_no_accident() -> None:
    """L̃ is infinite there, and nothing breaks."""
    found, statuses = analyzed(plant(TASK, omega=[20.0, -20.0], mu=[1.0, -1.0]).run)
    assert found.loss == np.inf
    assert "holds" not in statuses.values()
