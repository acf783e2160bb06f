"""What is read of a residual stream that is made by hand, with what has to be found in it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from icl_interp.config import ModelConfig
from icl_interp.estimators import GradientSteps, NewtonSteps, Ridge, preprocess
from icl_interp.probing import Context
from icl_interp.records import Run
from icl_interp.tasks import Prompt, SparseRegression
from icl_interp.testing.construction import construct_descent
from icl_interp.weights import initial_weights
from icl_interp_probes.known_algorithms import NEWTON, PLAIN, PREPROCESSED, described
from icl_interp_probes.layer_readings import FAMILIES, STEPS, Answering, Readings, nearest
from icl_interp_probes.layer_streams import OTHER_PAIRS, OTHER_PROMPTS, TARGETS, WEIGHED, Contents, Stream

TASK = SparseRegression(4, 2, length=16, noise_var=0.1)


def prompts(n: int, seed: int, task: SparseRegression = TASK) -> Prompt:
    return task.sample(n, generator=torch.Generator().manual_seed(seed)).to(dtype=torch.float64)


def noise(like: Tensor, scale: float, seed: int) -> Tensor:
    return scale * torch.randn(like.shape, dtype=like.dtype, generator=torch.Generator().manual_seed(seed))


def halves(
    stream: Callable[[Prompt], Tensor], read: Callable[[Prompt], Tensor] | None = None, n: int = 600, seed: int = 0
) -> tuple[Stream, Stream]:
    """Two halves of prompts whose stream at the query after layer 1 is `stream`, before it x_q alone."""

    def half(prompt: Prompt) -> Stream:
        after = stream(prompt)
        before = torch.zeros_like(after)
        before[:, : TASK.dim] = prompt.x_q
        out = torch.zeros_like(prompt.y_q) if read is None else read(prompt)
        return Stream(prompt, torch.stack([before, after]), torch.stack([0 * out, out])[..., 0])

    return half(prompts(n, 2 * seed)), half(prompts(n, 2 * seed + 1))


# --- What is there ----------------------------------------------------------------------------------------------------


def test_the_stream_is_that_of_the_hooked_model() -> None:
    config = ModelConfig(
        4, n_layers=2, n_heads=3, read_in=9, read_out=True, layer_norm=True, mask="strict_causal", d_head=3
    )
    run = Run(config, initial_weights(config, torch.Generator().manual_seed(0)), task=TASK)
    stream = Stream.draw(Context(run), "these", 5)
    model = run.model().double()
    prediction, cache = model.run_with_cache(stream.prompt)
    hooks = ["blocks.0.hook_resid_pre", "blocks.0.hook_resid_post", "blocks.1.hook_resid_post"]
    for found, hook in zip(stream.at_query, hooks, strict=True):
        torch.testing.assert_close(found, cache[hook][:, -1])
    torch.testing.assert_close(stream.read[-1], prediction[:, -1, 0])
    np.testing.assert_array_equal(stream.prompt.x, Context(run).sample("these", 5).x)


def test_targets_are_what_they_are_called() -> None:
    stream = halves(lambda prompt: prompt.x_q)[0]
    targets = stream.targets(np.random.default_rng(0))
    prompt = stream.prompt
    r = torch.stack([prompt.x[i].mT @ prompt.y[i, :, 0] / 16 for i in range(len(prompt))])
    torch.testing.assert_close(targets["r̂"], r)
    torch.testing.assert_close(targets[WEIGHED], r * prompt.x_q)
    torch.testing.assert_close(targets[OTHER_PAIRS], r[:, [2, 3, 0, 1]] * prompt.x_q)
    shuffled = {tuple(row) for row in targets[OTHER_PROMPTS].tolist()}
    assert shuffled == {tuple(row) for row in (r * prompt.x_q).tolist()}
    assert not torch.equal(targets[OTHER_PROMPTS], targets[WEIGHED])
    again = stream.targets(np.random.default_rng(1))
    assert not torch.equal(targets[OTHER_PROMPTS], again[OTHER_PROMPTS])


def test_half_of_the_variance_is_explained_of_what_is_as_much_noise() -> None:
    """A stream (x_q, x̃ + noise of its own variance): R² = 1/2 of each coordinate, none of the controls'."""
    rotation = torch.linalg.qr(noise(torch.zeros(8, 8, dtype=torch.float64), 1, 5)).Q

    def stream(prompt: Prompt) -> Tensor:
        own = preprocess(prompt).x_q
        return torch.cat([prompt.x_q, own + noise(own, float(own.std()), len(prompt))], 1) @ rotation

    found = Contents.of(*halves(stream, n=4000), np.random.default_rng(0))
    explained = dict(zip(TARGETS, found.explained, strict=True))
    assert explained[WEIGHED][1].low - 0.02 < 0.5 < explained[WEIGHED][1].high + 0.02
    np.testing.assert_allclose(found.coordinates[1], 0.5, atol=0.08)
    assert abs(found.selectivity[1].value - explained[WEIGHED][1].value) < 0.01
    for name in TARGETS:
        assert abs(explained[name][0].value) < 0.02  # there is nothing before the layer
    for name in TARGETS[1:]:
        assert abs(explained[name][1].value) < 0.02


def test_a_stream_of_all_products_is_not_selective_and_the_correlations_themselves_are_found() -> None:
    """(x̃, other pairs, r̂), all of them with the same noise."""

    def stream(prompt: Prompt) -> Tensor:
        r = (prompt.x * prompt.y).mean(1)
        both = torch.cat([r * prompt.x_q, r.roll(2, 1) * prompt.x_q], 1)
        return torch.cat([both + noise(both, 0.1, len(prompt)), r], 1)

    found = Contents.of(*halves(stream, n=1500), np.random.default_rng(0))
    explained = {name: each[1].value for name, each in zip(TARGETS, found.explained, strict=True)}
    assert explained[WEIGHED] > 0.8
    assert explained[OTHER_PAIRS] == pytest.approx(explained[WEIGHED], abs=0.05)
    assert explained["r̂"] > 0.999
    assert abs(explained[OTHER_PROMPTS]) < 0.02
    assert abs(found.selectivity[1].value) < 0.3
    assert found.selectivity[1].low < 0.1


def test_intervals_of_selectivity_hold_it() -> None:
    """With a control that is partly there, whose own error counts too."""

    def stream(prompt: Prompt) -> Tensor:
        r = (prompt.x * prompt.y).mean(1)
        both = torch.cat([r * prompt.x_q, 0.5 * r.roll(2, 1) * prompt.x_q], 1)
        return both + noise(both, 0.2, int(1e6 * float(prompt.x_q[0, 0].abs())))

    def measured(n: int, seed: int) -> Contents:
        return Contents.of(*halves(stream, n=n, seed=seed), np.random.default_rng(seed))

    truth = measured(20_000, 99).selectivity[1].value
    found = [measured(500, seed).selectivity[1] for seed in range(40)]
    assert sum(each.low <= truth <= each.high for each in found) >= 35
    assert np.mean([each.half for each in found]) < 0.2


# --- Which algorithm answers so ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "algorithm",
    [
        GradientSteps(3, 0.4),
        GradientSteps(5, 0.02, relative=False),
        GradientSteps(2, 1.3, preprocessed=True),
        GradientSteps(20, 0.05, preprocessed=True, relative=False),
        NewtonSteps(4),
    ],
)
@pytest.mark.parametrize("length", [3, 16])
def test_answers_are_those_of_the_estimators(algorithm: GradientSteps | NewtonSteps, length: int) -> None:
    prompt = prompts(50, 0, dataclasses.replace(TASK, length=length))
    torch.testing.assert_close(Answering(prompt)(algorithm), algorithm(prompt)[:, 0], rtol=1e-8, atol=1e-10)


def test_the_grid_has_every_family_in_steps_and_finds_its_own() -> None:
    prompt = prompts(200, 0)
    answering = Answering(prompt)
    for family in FAMILIES:
        grid = list(answering.grid(family, STEPS))
        candidates = [pair for batch, answers in grid for pair in zip(batch, answers.mT, strict=True)]
        steps = {candidate.steps for candidate, _ in candidates}
        assert steps == set(range(1, 9)) if family == NEWTON else steps == set(STEPS)
        for candidate, answer in candidates[:: len(candidates) // 7]:
            torch.testing.assert_close(answer, candidate(prompt)[:, 0], rtol=1e-8, atol=1e-10)
            assert nearest(2 * answer[None], grid, lambda answers: 2 * answers) == [candidate]


READ = {
    PREPROCESSED: GradientSteps(3, 0.5, preprocessed=True),
    PLAIN: GradientSteps(2, 0.6),
    NEWTON: NewtonSteps(3),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_reading_is_told_from_those_of_other_families(family: str) -> None:
    """With noise of a hundredth of its variance, the distance that has to be measured, however it is read."""
    algorithm = READ[family]

    def read(prompt: Prompt) -> Tensor:
        answer = algorithm(prompt)
        return answer + noise(answer, 0.1 * float(answer.std()), len(prompt))

    def stream(prompt: Prompt) -> Tensor:
        beside = [preprocess(prompt).x_q] if family == PREPROCESSED else []
        return torch.cat([prompt.x_q, *beside, read(prompt)], 1)

    readings = Readings(*halves(stream, read, n=800))
    own = FAMILIES.index(family)
    for reading, floor in ((readings.by_read_out(), 0.01), (readings.by_probe(), 0.0)):
        distances = [each.value for each in reading.distance[0]]
        assert distances[own] == pytest.approx(floor, abs=0.012)
        assert min(distances) == distances[own]
        assert reading.reads == (True,)
    found = readings.by_read_out()
    assert found.ratio[0][0].value == pytest.approx(found.distance[0][0].value / found.distance[0][1].value, rel=1e-4)
    assert found.members[0][own].startswith(described(algorithm).split(",")[0])


def test_risks_are_of_all_prompts_and_of_the_member_itself() -> None:
    fit, held = halves(lambda prompt: prompt.x_q, GradientSteps(1, 0.7), n=400)
    reading = Readings(fit, held).by_read_out()
    expected = (GradientSteps(1, 0.7)(held.prompt) - held.prompt.y_q).square().mean().item()
    assert reading.risk[0].value == pytest.approx(expected, rel=1e-4)
    assert reading.risks[0][1].value == pytest.approx(expected, rel=0.02)  # at a rate of the grid
    assert reading.size[0] == pytest.approx(held.read[1].square().mean().item(), rel=1e-4)


def test_a_few_prompts_on_which_descents_diverge_do_not_decide() -> None:
    """The steepest prompts answer nonsense: risks say so, distances do not."""

    def read(prompt: Prompt) -> Tensor:
        steep = Answering(prompt).steepness
        return torch.where((steep > steep.quantile(0.995))[:, None], 1e3, GradientSteps(2, 0.8)(prompt))

    reading = Readings(*halves(lambda prompt: prompt.x_q, read, n=800)).by_read_out()
    assert reading.risk[0].value > 1000
    assert reading.distance[0][1].value < 0.002


def test_shrunk_answers_of_another_algorithm_are_near_none() -> None:
    """Ridge of no penalty, with the wrong sign."""
    reading = Readings(*halves(lambda prompt: prompt.x_q, lambda prompt: -Ridge(0.0)(prompt), n=500)).by_read_out()
    assert min(each.value for each in reading.distance[0]) > 0.9


def test_a_step_a_layer_is_at_its_best_rate() -> None:
    run = construct_descent(TASK, steps=2)
    fit, held = (Stream.draw(Context(run), label, 500) for label in ("fit", "held"))
    found = dict(zip(FAMILIES, Readings(fit, held).stepwise(), strict=True))
    zero = held.y.square().mean().item()
    assert found[PREPROCESSED][0] == pytest.approx(zero, rel=1e-3)
    for steps in (1, 2, 3):
        newton = (NewtonSteps(steps)(held.prompt)[:, 0] - held.y).square().mean().item()
        assert found[NEWTON][steps - 1] == pytest.approx(newton, rel=1e-3)
        rates = np.geomspace(0.1, 1.9, 30)
        risks = [
            [(GradientSteps(steps, rate, flag)(held.prompt)[:, 0] - held.y).square().mean().item() for rate in rates]
            for flag in (False, True)
        ]
        assert found[PLAIN][steps - 1] < 1.05 * min(risks[0])
        if steps < 3:
            assert found[PREPROCESSED][steps] < 1.05 * min(risks[1])
