"""Families built by formula: what they say of their members is true of (ω, μ), by theory, and by a margin."""

from __future__ import annotations

import itertools
from functools import cache

import numpy as np
import pytest
import torch
from members import (
    FAMILIES,
    MARGIN,
    best_debiased_risk,
    circuits_of,
    heads_of,
    members,
    read_preconditioner,
    regression,
)

from icl_interp import theory
from icl_interp.analysis import analyze
from icl_interp.circuits import Circuits
from icl_interp.estimators import best_kernel
from icl_interp.manifold import Groups, manifold_mu, optimal_step
from icl_interp.probing import Need, discover, fitting
from icl_interp.roles import reference_shape
from icl_interp.surfaces import ApproximateSurface, pattern_moments
from icl_interp.testing.families.members import altered
from icl_interp.testing.families.planted import best_step_along
from icl_interp.testing.families.wrong_circuits import ALLOWED, pattern_misses
from icl_interp_probes.readings import distance

# --- All families ----------------------------------------------------------------------------------------------------


@cache
def claims_made() -> frozenset[str]:
    """By the probes, on models that each of them applies to."""
    kinds = ("planted_course", "planted_preconditioner", "planted_tasks_superposed", "planted_descent")
    models = [members(name)[0] for name in kinds]
    outcomes = [outcome for known in models for outcome in analyze(known.run, budget=64)]
    assert not [outcome for outcome in outcomes if outcome.status in ("failed", "broken")]
    return frozenset(f"{outcome.probe}.{verdict.claim}" for outcome in outcomes for verdict in outcome.verdicts)


def test_every_claim_of_every_probe_is_true_of_one_family_and_false_of_another():
    holds = set(itertools.chain(*(family.holds for family in FAMILIES.values())))
    violates = set(itertools.chain(*(family.violates for family in FAMILIES.values())))
    built_in, _ = discover()
    assert {claim.partition(".")[0] for claim in claims_made()} == set(built_in)
    assert holds == claims_made()
    assert violates == claims_made()


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_members_are_decided_by_their_seeds(name: str):
    again, other = members(name)[1:3]
    (one,) = FAMILIES[name].members([1], None)
    assert one.run.model_config == again.run.model_config
    assert one.run.task == again.run.task
    assert all(torch.equal(tensor, again.run.weights[part]) for part, tensor in one.run.weights.items())
    assert one.numbers == again.numbers
    assert not torch.equal(one.run.weights["W_Q"].flatten()[:4], other.run.weights["W_Q"].flatten()[:4])


@pytest.mark.parametrize("name", FAMILIES)
def test_members_fit_the_probes_that_their_family_speaks_of(name: str):
    built_in, _ = discover()
    for known in members(name):
        fit = {probe.name for probe in fitting(known.run.model_config)}
        assert known.task is None
        assert known.run.task is not None
        assert known.roles is None or len(known.roles) == known.run.model_config.n_heads
        for probe in FAMILIES[name].probes:
            assert probe in fit
            assert known.run.dynamics is not None or Need.DYNAMICS not in built_in[probe].needs


def test_members_are_cheap_to_look_at():
    """Those of one layer as the main setting with three or four heads."""
    costs = [
        np.mean([known.run.model_config.n_heads * task.dim * task.length for known in members(name)])
        for name in FAMILIES
        for task in [members(name)[0].run.task]
        if task is not None and members(name)[0].run.model_config.plain
    ]
    assert np.mean(costs) < 3.5 * 5 * 40


def test_numbers_are_those_of_the_weights():
    for name in ("planted", "large_that_does_not", "unbalanced", "small_that_matters"):
        for known in members(name):
            omega, mu, _ = heads_of(known)
            assert known.roles is not None
            attends = [np.array(known.roles) == sign for sign in ("positive", "negative")]
            groups = Groups(*attends)
            room = 4 * known.size * max(np.abs(omega[attends[0]]).max(), 1e-9) + 1e-4
            numbers = known.numbers
            assert [numbers[f"kernel_fit.mu.{h}"] for h in range(len(mu))] == pytest.approx(mu, rel=1e-3, abs=1e-4)
            assert numbers["kernel_fit.gamma"] == pytest.approx(groups.gamma(omega, mu), abs=room)
            assert numbers["kernel_fit.zero_sum"] == pytest.approx(groups.imbalance(omega, mu), abs=1e-4)


def test_altering_adds_to_circuits_and_leaves_the_rest():
    known = members("planted_tasks_superposed")[0]
    before, config, rng = circuits_of(known), known.run.model_config, np.random.default_rng(0)
    h, d, N = config.n_heads, config.dim, config.n_outputs
    parts = {"KQ_11": (h, d, d), "KQ_21": (h, N, d), "OV_21": (h, N, d), "OV_22": (h, N, N)}
    added = {part: rng.standard_normal(shape) for part, shape in parts.items()}
    after = Circuits.from_weights(altered(known.run, **added).weights, config)
    for part, term in added.items():
        assert getattr(after, part)[0] - getattr(before, part)[0] == pytest.approx(term, abs=1e-3)


# --- What is planted -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["planted", "planted_course", "large_that_does_not"])
def test_planted_heads_are_on_the_solution_manifold(name: str):
    for known in members(name):
        task, (omega, mu, _) = regression(known), heads_of(known)
        assert known.roles is not None
        groups = Groups(*(np.array(known.roles) == sign for sign in ("positive", "negative")))
        mu_of, star = manifold_mu(task), optimal_step(task)
        assert mu_of is not None
        assert star is not None
        assert groups.distance(omega, mu, mu_of) < 0.05
        assert groups.imbalance(omega, mu) < 0.01
        assert groups.step(omega, mu) == pytest.approx(star, rel=0.025)


def test_planted_circuits_are_within_half_of_what_the_pattern_allows():
    for known in members("planted"):
        assert all(miss < 0.5 * ALLOWED[claim] for claim, miss in pattern_misses(known.run).items())


def test_planted_alone_is_at_the_optimum_of_the_risk():
    for known in members("planted_alone"):
        (omega,), (mu,), _ = heads_of(known)
        task = regression(known)
        best = best_kernel(task.sample(16_384, generator=torch.Generator().manual_seed(5)), scaled=True, task=task)
        assert abs(omega) == pytest.approx(best.omega, rel=0.035)
        assert abs(mu) == pytest.approx(best.mu, rel=0.035)
        assert omega * mu > 0


def test_the_best_step_along_the_best_preconditioner_is_one():
    task = regression(members("planted_preconditioner")[0])
    best = theory.debiased_preconditioner(task.sigma, length=task.length, noise_var=task.noise_var)
    assert best_step_along(task, best) == pytest.approx(1)


@pytest.mark.parametrize(
    ("name", "other"),
    [
        ("planted_preconditioner", None),
        ("planted_short_prompts", None),
        ("preconditioner_identity", lambda task: np.eye(task.dim)),
        ("preconditioner_inverse", lambda task: np.linalg.inv(task.sigma)),
        (
            "preconditioner_plain",
            lambda task: theory.gd_preconditioner(task.sigma, length=task.length, noise_var=task.noise_var),
        ),
    ],
)
def test_heads_are_along_the_preconditioner_of_their_family(name: str, other):
    for known in members(name):
        task, found = regression(known), read_preconditioner(known)
        best = reference_shape(task, task.dim)
        if other is None:
            assert distance(found, best) < 0.01
        else:
            assert distance(found, other(task)) < 0.01 < 0.02 < distance(found, best)


def test_heads_of_the_split_family_differ_in_shape():
    for known in members("preconditioner_split"):
        circuits, (_, _, groups) = circuits_of(known), heads_of(known)
        shapes = [
            np.einsum("h,hij->ij", circuits.mu[0, group, 0], circuits.KQ_11[0, group])
            for group in (groups.positive, groups.negative)
        ]
        one, other = (shape / np.linalg.norm(shape) for shape in shapes)
        assert np.linalg.norm(one - other) > MARGIN * 0.1


def test_short_prompts_tell_the_two_optima_apart():
    for known in (*members("planted_short_prompts"), *members("preconditioner_plain")):
        task = regression(known)
        optima = [of(task.sigma, length=task.length, noise_var=task.noise_var) for of in OPTIMA]
        assert distance(*optima) > 0.035


OPTIMA = (theory.debiased_preconditioner, theory.gd_preconditioner)


# --- What is not so, by (ω, μ) ---------------------------------------------------------------------------------------


def test_wrong_signs_do_not_match():
    for known in members("wrong_signs"):
        omega, mu, _ = heads_of(known)
        assert (omega * mu < 0).all()


@pytest.mark.parametrize(("name", "within"), [("wrong_scale", (0.8625, 1.1375)), ("large_scores", (0.9625, 1.0375))])
def test_steps_that_are_not_the_best_are_far_from_it(name: str, within: tuple[float, float]):
    for known in members(name):
        omega, mu, _ = heads_of(known)
        star = optimal_step(regression(known))
        assert star is not None
        assert not within[0] < omega @ mu / star < within[1]
        assert 0.25 < omega @ mu / star < 3.05


def test_unbalanced_heads_do_not_sum_to_zero_and_unequal_ones_differ():
    for known in members("unbalanced"):
        omega, mu, groups = heads_of(known)
        assert groups.imbalance(omega, mu) > MARGIN * 0.03
        assert groups.spread(omega, mu) < 1e-4
    for known in (*members("unequal"), *members("small_that_matters")):
        omega, mu, groups = heads_of(known)
        assert groups.spread(omega, mu) > MARGIN * 0.1
        assert groups.imbalance(omega, mu) < 1e-4
        assert groups.step(omega, mu) == pytest.approx(optimal_step(regression(known)), rel=1e-3)


def test_unbalanced_heads_are_off_the_floor_of_the_valley():
    for known in members("unbalanced")[:6]:
        task, (omega, mu, groups) = regression(known), heads_of(known)
        gamma = groups.gamma(omega, mu)
        floor = ApproximateSurface(task).floor(gamma)
        prompts = task.sample(4096, generator=torch.Generator().manual_seed(0))
        moments = pattern_moments(np.append(omega, [gamma, -gamma]), prompts, task)
        own, ground = np.append(mu, [0, 0]), np.append(0 * mu, [floor, -floor])
        assert moments.risk_difference(own, ground).low / moments.risk(ground).value > MARGIN * 0.005


def test_heads_of_one_sign_are_above_the_risk_of_the_best_head_and_far_above_that_of_debiased_gd():
    for known in members("same_sign"):
        task, (omega, mu, _) = regression(known), heads_of(known)
        assert len(set(np.sign(omega))) == 1
        assert (omega * mu > 0).all()
        prompts = task.sample(4096, generator=torch.Generator().manual_seed(0))
        best = best_kernel(prompts, scaled=True, task=task)
        moments = pattern_moments(np.append(omega, best.omega), prompts, task)
        own, other = np.append(mu, 0.0), np.append(0 * mu, best.mu)
        assert moments.risk_difference(own, other).low > 0.05 * moments.risk(other).value
        assert moments.risk(own).low > (1 + MARGIN * 0.05) * best_debiased_risk(task)


def test_large_scores_concentrate_attention_and_leave_the_approximate_loss():
    for known in members("large_scores")[:6]:
        task, (omega, mu, groups) = regression(known), heads_of(known)
        prompts, surface = task.sample(4096, generator=torch.Generator().manual_seed(0)), ApproximateSurface(task)
        moments = pattern_moments(omega, prompts, task)
        risk = moments.risk(mu).value
        expected = surface.loss(omega, mu) + surface.bias(groups.step(omega, mu))
        assert moments.overlap(0, 0).high * task.length / surface.overlap(omega[0], omega[0])[0] < 0.875
        assert abs(risk - expected) / risk > MARGIN * 0.015


def test_cancelling_heads_predict_next_to_nothing_together():
    for known in members("cancelling_heads"):
        circuits = circuits_of(known)
        parts = circuits.mu[0, :, 0, None, None] * circuits.KQ_11[0]
        assert np.linalg.norm(parts.sum(0)) < 0.15 * np.linalg.norm(parts, axis=(1, 2)).sum()


def test_idle_heads_are_large_and_heads_that_matter_small():
    for known in members("small_that_matters"):
        omega, mu, _ = heads_of(known)
        assert known.roles is not None
        assert set(known.roles) == {"positive", "negative"}
        part, sizes_of_all = np.abs(omega * mu) / np.abs(omega @ mu), (np.abs(omega), np.abs(mu))
        little = min((size.min() / size.max(), int(size.argmin())) for size in sizes_of_all)
        assert little[0] < 0.4
        assert part[little[1]] > 0.05
    for known in members("large_that_does_not"):
        assert known.roles is not None
        norms = np.array([np.linalg.norm(known.run.weights["W_K"][0, h]) for h in range(len(known.roles))])
        idle = np.array(known.roles) == "dummy"
        assert idle.any()
        assert norms[idle].max() > 0.05 * norms[~idle].max()


def test_denominators_of_large_scores_pass_through_zero():
    for known in members("unsafe_denominators"):
        prompts = regression(known).sample(4096, generator=torch.Generator().manual_seed(0))
        assert circuits_of(known).denominators(prompts).min() < 0


def test_the_gain_of_other_activations_shrinks_by_more_than_is_allowed_only_where_it_should():
    """By Stein's lemma over demonstrations the gain of tanh and the square falls with (d + 2)(Cω)² at least."""
    for name, low, high in (("shrinking_activation", 0.03 * MARGIN, 1.0), ("planted_activation", 0.0, 0.015)):
        for known in members(name):
            config, (omega, _, _) = known.run.model_config, heads_of(known)
            if config.activation == "affine":
                continue
            scores = config.activation_scale * np.abs(omega).max()
            spread = (config.dim + 2) * scores**2
            assert low < spread / (1 + spread) < high


def test_what_shrinks_took_too_long_a_step_so_that_its_risk_is_lower():
    """By a percent at least, by what the risk falls where the step does, and tanh and the square are below as one."""
    for known in members("shrinking_activation"):
        task, star = regression(known), optimal_step(regression(known))
        assert star is not None
        step = known.numbers["activation.eta"]
        whole, less = (
            theory.debiased_gd_risk(eta, dim=task.dim, length=task.length, noise_var=task.noise_var)
            for eta in (step, (1 - 0.03 * MARGIN) * step)
        )
        assert step > 1.4 * star
        assert less < 0.99 * whole


def test_linear_attention_is_the_best_gd_at_its_length_and_worse_beyond():
    for known in members("linear_attention"):
        task, circuits = regression(known), circuits_of(known)
        omega, mu, _ = heads_of(known)
        step = task.length * circuits.slope * float(omega @ mu)
        best = theory.gd_optimal_step(dim=task.dim, length=task.length, noise_var=task.noise_var)
        assert step == pytest.approx(best, rel=1e-3)
        risks = [
            theory.gd_risk(step * length / task.length, dim=task.dim, length=length, noise_var=task.noise_var)
            for length in (task.length, round(2.5 * task.length))
        ]
        assert risks[1] > 2 * risks[0]
