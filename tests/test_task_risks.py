"""Risks of ideal heads on several tasks against loops, sampled labels, the one-task surface and closed forms."""

from __future__ import annotations

import dataclasses
import re

import numpy as np
import pytest
import torch
from scipy.special import softmax

from icl_interp import theory
from icl_interp.errors import ConfigError
from icl_interp.estimates import Estimate
from icl_interp.surfaces import pattern_moments
from icl_interp.task_risks import TaskMoments, dedicated_heads, dedicated_risks, task_moments
from icl_interp.tasks import LinearRegression, MultiTaskRegression, Prompt

TWO = MultiTaskRegression(6, [(0, 1, 2, 3), (2, 3, 4, 5)], 48, 0.1)
SMALL = MultiTaskRegression(3, [(0, 1), (2,)], 7, noise_var=0.3, signal_var=2.0)  # of different sizes, scaled
OMEGA = np.array([[0.4, -0.2, 0.0], [-0.7, 0.3, 0.5]])
MU = np.array([[1.1, -0.6], [0.3, 0.8]])


def prompts(task: MultiTaskRegression | LinearRegression, n: int, seed: int = 0) -> Prompt:
    return task.sample(n, generator=torch.Generator().manual_seed(seed)).to(dtype=torch.float64)


def values(estimates: tuple[Estimate, ...]) -> np.ndarray:
    return np.array([estimate.value for estimate in estimates])


def attended(omega: np.ndarray, prompt: Prompt) -> np.ndarray:
    """Every head's prediction at μ = 1, (heads, prompts, tasks)."""
    x, y, x_q = (part.numpy() for part in (prompt.x, prompt.y, prompt.x_q))
    scores = np.einsum("hd,bld,bd->hbl", omega, x, x_q)
    return np.einsum("hbl,bln->hbn", softmax(scores, axis=-1), y)


@pytest.mark.parametrize("query_noise", [True, False])
def test_risks_are_what_a_loop_over_prompts_finds(query_noise: bool) -> None:
    """ŷ = wᵀ(X_S β + ε), y_q = x_q,Sᵀβ + ε_q: nothing is left to chance but the covariates."""
    task = dataclasses.replace(SMALL, query_noise=query_noise)
    prompt = prompts(task, 5)
    found = task_moments(OMEGA, prompt, task).risks(MU)
    for n, (support, signal) in enumerate((([0, 1], 1.0), ([2], 2.0))):
        risks = []
        for x, x_q in zip(prompt.x.numpy(), prompt.x_q.numpy(), strict=True):
            w = sum(mu * softmax(x @ (omega * x_q)) for omega, mu in zip(OMEGA, MU[:, n], strict=True))
            missed = np.sum((x_q[support] - x[:, support].T @ w) ** 2)
            risks.append(signal * missed + 0.3 * (w @ w + query_noise))
        assert found[n].value == pytest.approx(np.mean(risks), rel=1e-12)
        assert found[n].half == pytest.approx(2.776445 * np.std(risks, ddof=1) / 5**0.5, rel=1e-6)  # t of 4


@pytest.mark.parametrize("shared", [False, True])
def test_risks_are_those_of_sampled_labels(shared: bool) -> None:
    task = dataclasses.replace(SMALL, shared_signal=shared)
    prompt = prompts(task, 20_000)
    moments = task_moments(OMEGA, [prompt[:9_000], prompt[9_000:]], task)
    predicted = np.einsum("hbn,hn->bn", attended(OMEGA, prompt), MU)
    squared = (predicted - prompt.y_q.numpy()) ** 2
    error = squared.std(0, ddof=1) / len(squared) ** 0.5
    found = moments.risks(MU)
    assert (np.abs(values(found) - squared.mean(0)) < 4 * error).all()
    assert all(risk.half < 1.1 * e for risk, e in zip(found, error, strict=True))  # with labels it is 1.96


def test_best_mu_is_a_minimum_of_each_task() -> None:
    omega = np.array(
        [[0.2, 0.2, -0.1, -0.1, 0.0, 0.1], [-0.1, 0.0, 0.2, 0.1, 0.2, 0.2], [0.0, -0.2, -0.1, 0.1, 0.0, -0.2]]
    )
    moments = task_moments(omega, prompts(TWO, 3_000), TWO)
    best = moments.best_mu()
    assert best.shape == (3, 2)
    for change in np.random.default_rng(0).normal(size=(5, 3, 2)):
        low, at, high = (values(moments.risks(best + scale * change)) for scale in (-0.1, 0.0, 0.1))
        assert (at < low).all()
        np.testing.assert_allclose(low, high, rtol=1e-9)
    # Heads that may not serve a task stay out of it, and the others do what they can alone.
    serves = np.array([[True, True], [True, False], [False, True]])
    restricted = moments.best_mu(serves)
    assert (restricted[~serves] == 0).all()
    assert (values(moments.risks(restricted)) > values(moments.risks(best))).all()
    first = task_moments(omega[:2], prompts(TWO, 3_000), TWO)
    np.testing.assert_allclose(restricted[:2, 0], first.best_mu()[:, 0])


def test_differences_are_paired() -> None:
    moments = task_moments(OMEGA, prompts(SMALL, 2_000), SMALL)
    other = MU + 0.01
    differences = moments.risk_differences(MU, other)
    np.testing.assert_allclose(
        values(differences), values(moments.risks(MU)) - values(moments.risks(other)), atol=1e-12
    )
    assert all(d.half < 0.1 * r.half for d, r in zip(differences, moments.risks(MU), strict=True))


def test_one_task_of_all_features_is_the_one_task_surface() -> None:
    one, known = MultiTaskRegression(5, [range(5)], 40, 0.1), LinearRegression(5, 40, 0.1)
    gammas, mu = np.array([0.13, -0.13, 0.4]), np.array([3.2, -3.4, 0.1])
    omega = gammas[:, None] * np.ones(5)
    few = prompts(known, 3)  # too few for the surface's control variates: plain means, as here
    ours, theirs = task_moments(omega, few, one).tasks[0], pattern_moments(gammas, few, known)
    np.testing.assert_allclose(ours.mean, theirs.mean, rtol=1e-12)
    many = prompts(known, 10_000)
    (ours,), theirs = task_moments(omega, many, one).risks(mu[:, None]), pattern_moments(gammas, many, known).risk(mu)
    assert ours.low < theirs.value < ours.high
    assert theirs.half < 0.5 * ours.half < 0.01


def test_a_pair_for_each_task_tends_to_gradient_descent_on_its_support() -> None:
    uses = TWO.uses
    sizes = {"length": 48, "noise_var": 0.1}
    gamma, steps = 1e-3, theory.superposition_steps(uses, **sizes)
    exact = theory.task_gd_risks(steps, uses, **sizes)
    mu, risks = dedicated_risks(TWO, gamma, prompts(TWO, 20_000))
    for n, risk in enumerate(risks):
        assert risk.low < exact[n] < risk.high
        assert risk.half < 0.02 * exact[n]
    np.testing.assert_allclose(2 * gamma * mu[[0, 2], [0, 1]], steps.max(1), rtol=0.01)
    np.testing.assert_allclose(mu[[1, 3], [0, 1]], -mu[[0, 2], [0, 1]], rtol=1e-3)
    assert (mu[[0, 1, 2, 3], [1, 1, 0, 0]] == 0).all()


def test_any_heads_of_small_omega_tend_to_gradient_descent_with_their_steps() -> None:
    """Superposition: three heads, two tasks, steps that are theirs as Σ_h μ_hn ω_h, with no sum of μ."""
    uses, sizes = TWO.uses, {"length": 48, "noise_var": 0.1}
    steps = theory.superposition_steps(uses, **sizes)
    weights = np.array([[1.0, 0.3], [-0.4, 0.7], [-0.6, -1.0]])  # columns add up to zero
    omega = np.linalg.pinv(weights).T @ steps
    scale = 1e-3
    found = task_moments(scale * omega, prompts(TWO, 20_000), TWO).risks(weights / scale)
    for risk, exact in zip(found, theory.task_gd_risks(steps, uses, **sizes), strict=True):
        assert risk.low < exact < risk.high
        assert risk.half < 0.02 * exact


def test_dedicated_heads_look_at_their_own_features() -> None:
    omega, serves = dedicated_heads(TWO, 0.2)
    first, second = np.array([[1, 1, 1, 1, 0, 0], [0, 0, 1, 1, 1, 1]])
    np.testing.assert_allclose(omega, 0.2 * np.array([first, -first, second, -second]))
    assert serves.tolist() == [[True, False], [True, False], [False, True], [False, True]]


def test_too_few_prompts_have_no_error() -> None:
    risks = task_moments(OMEGA, prompts(SMALL, 1), SMALL).risks(MU)
    assert all(np.isfinite(risk.value) and risk.half == np.inf for risk in risks)


def test_what_does_not_fit_is_refused() -> None:
    prompt = prompts(SMALL, 20)
    moments: TaskMoments = task_moments(OMEGA, prompt, SMALL)
    spoilt = dataclasses.replace(prompt, x=prompt.x * torch.nan)
    other = LinearRegression(3, 7)
    refusals = [
        (lambda: task_moments(OMEGA, prompt, other), "those of MultiTaskRegression, got LinearRegression"),  # type: ignore[arg-type]
        (lambda: dedicated_heads(other, 0.1), "those of MultiTaskRegression, got LinearRegression"),  # type: ignore[arg-type]
        (lambda: dedicated_heads(SMALL, 0.0), "gamma must be a finite number > 0, got 0.0"),
        (lambda: task_moments(OMEGA[:, :2], prompt, SMALL), "omega must have 3 finite numbers for each head"),
        (lambda: task_moments(OMEGA * np.nan, prompt, SMALL), "omega must have 3 finite numbers for each head"),
        (lambda: task_moments(OMEGA[0], prompt, SMALL), "omega must have 3 finite numbers for each head"),
        (lambda: task_moments(OMEGA, prompts(TWO, 2), SMALL), "the task has 3 covariates, these prompts have 6"),
        (lambda: task_moments(OMEGA, [], SMALL), "averages over prompts, got none"),
        (lambda: task_moments(OMEGA, spoilt, SMALL), "covariates that are NaN or infinite"),
        (lambda: moments.risks(MU[0]), "mu must be (2, 2), heads by tasks, got (2,)"),
        (lambda: moments.risk_differences(MU, MU * np.inf), "one finite number for each of 2 heads"),
        (lambda: moments.best_mu(np.ones((1, 2), dtype=bool)), "serves must be (2, 2), heads by tasks, got (1, 2)"),
    ]
    for refused, words in refusals:
        with pytest.raises(ConfigError, match=re.escape(words)):
            refused()
