"""Heads taken away by the pass without hooks, beside the same by hooks; and how many heads are in use."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from jaxtyping import Float

from icl_interp.config import ModelConfig
from icl_interp.estimates import Estimate
from icl_interp.interventions import zero_ablation
from icl_interp.pruning import Model, ablated_errors, effective_number, heads_in_use, kept_errors, nothing
from icl_interp.records import Run
from icl_interp.tasks import Prompt, SparseRegression
from icl_interp.testing import construct_descent
from icl_interp.weights import initial_weights

TASK = SparseRegression(4, 2, length=10, noise_var=0.1)


def model_of(run: Run) -> Model:
    return Model({name: weight.double() for name, weight in run.weights.items()}, run.model_config)


def prompts(n: int = 30) -> Prompt:
    return TASK.sample(n, generator=torch.Generator().manual_seed(0)).to(dtype=torch.float64)


def untrained(**options: object) -> Run:
    config = ModelConfig(TASK.dim, n_layers=3, n_heads=3, scratch=2, read_out=True, **options)  # type: ignore[arg-type]
    return Run(config, initial_weights(config, torch.Generator().manual_seed(1)), task=TASK)


@pytest.mark.parametrize(
    "run",
    [
        untrained(),
        untrained(activation="linear", activation_scale=0.1, layer_norm=True),
        untrained(mask="strict_causal"),
        construct_descent(TASK, n_heads=5, perturbation=0.0),  # heads that write nothing
    ],
    ids=["softmax", "linear", "causal", "idle"],
)
def test_zero_ablation_is_that_of_hooks(run: Run) -> None:
    prompt, model = prompts(), model_of(run)
    errors, without = ablated_errors(model, prompt, nothing(model))
    hooked = run.model().double()
    assert errors.numpy() == pytest.approx((hooked.predict(prompt) - prompt.y_q).square()[:, 0].detach().numpy())
    for layer, head in np.ndindex(*without.shape[:2]):
        with zero_ablation(hooked, f"L{layer}H{head}"):
            expected = (hooked.predict(prompt) - prompt.y_q).square()[:, 0].detach()
        assert without[layer, head].numpy() == pytest.approx(expected.numpy(), rel=1e-9)


def test_what_is_put_in_place_of_itself_changes_nothing() -> None:
    model, prompt = model_of(untrained()), prompts()
    errors, same = ablated_errors(model, prompt, model.results(prompt))
    torch.testing.assert_close(same, errors.expand_as(same))


def test_pieces_are_all_prompts_and_keeping_is_keeping() -> None:
    """A construction needs one head a later layer, and all of the first one."""
    run = construct_descent(TASK, steps=2, rate=0.02, n_heads=6)
    model, many = model_of(run), prompts(3_000)
    pieces = list(model.pieces([many]))
    assert len(pieces) > 1
    assert torch.equal(torch.cat([piece.y for piece in pieces]), many.y)
    dominant = run.weights["W_O"].flatten(2).any(2).int().argmax(1).tolist()
    squares, (whole, pruned, single) = kept_errors(model, [many], dominant)
    assert squares == pytest.approx(many.y_q.square()[:, 0].numpy())
    assert pruned == pytest.approx(whole, rel=1e-9)
    assert single.mean() > 1.01 * whole.mean()
    alone = model.keeping(dominant)
    assert alone.config == dataclasses.replace(model.config, n_heads=1)


@given(
    worth=st.lists(st.floats(-1, 1), min_size=1, max_size=8),
    scale=st.floats(1e-3, 1e3),
    order=st.randoms(use_true_random=False),
)
def test_an_effective_number_counts_heads(worth: list[float], scale: float, order: object) -> None:
    number = float(effective_number(np.array(worth)))
    used = sum(value > 0 for value in worth)
    assert number == 0 if not used else 1 - 1e-9 <= number <= used + 1e-9
    assert float(effective_number(scale * np.array([*worth[::-1], 0.0, -1.0]))) == pytest.approx(number, rel=1e-6)
    assert float(effective_number(np.array([*worth, *worth]))) == pytest.approx(2 * number, rel=1e-6)


def test_effective_numbers_by_hand() -> None:
    draws = np.array([[3.0, 3.0, 3.0], [0.0, 2.0, -5.0], [0.5, 0.25, 0.25], [-1.0, 0.0, -2.0]])
    assert effective_number(draws) == pytest.approx([3.0, 1.0, 2**1.5, 0.0])


@pytest.mark.parametrize(
    "worth", [[1.0, 1.0, 1.0, 1.0], [1.0, 0.3, 0.1, 0.0], [1.0, 0.0, 0.0, -0.1], [0.5, 0.5, 0.01, -1.0]]
)
def test_intervals_of_the_number_of_heads_cover_it(worth: list[float]) -> None:
    """Errors that heads share, and some of their own."""
    rng, truth, hits = np.random.default_rng(0), float(effective_number(np.array(worth))), 0
    for _ in range(200):
        noise = 2 * rng.standard_normal((4, 400)) + 3 * rng.standard_normal(400)
        estimate = heads_in_use(np.array(worth)[:, None] + noise, floor=0.0)
        hits += estimate.low <= truth <= estimate.high
    assert hits >= 184  # of 200; 95 % would be 190


def samples(*means: float) -> Float[np.ndarray, "heads prompts"]:
    rng = np.random.default_rng(0)
    return np.array(means)[:, None] + 0.01 * rng.standard_normal((len(means), 500))


def test_a_layer_in_which_no_head_matters_uses_none() -> None:
    assert heads_in_use(samples(0.02, 0.03, -0.5), floor=0.1).high == 0
    assert heads_in_use(samples(0.02, 0.3), floor=0.1).low >= 1
    assert heads_in_use(np.zeros((3, 500)), floor=0.0) == Estimate(0.0, 0.0, 0.0, "prompts")
    assert heads_in_use(samples(1.0), floor=0.1).value == 1
    one = heads_in_use(samples(0.5, 1.0)[:, :1], floor=0.1)
    assert (one.low, one.high) == (-np.inf, np.inf)
    assert 1 < one.value < 2
