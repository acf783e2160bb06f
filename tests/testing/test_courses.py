from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from icl_interp import analyze
from icl_interp.errors import ConfigError
from icl_interp.records import Run
from icl_interp.tasks import LinearRegression, kms
from icl_interp.testing import plant
from icl_interp.testing.courses import ENTRIES, MEMORY, SCATTER, VIOLATES, draw_course

MAIN = LinearRegression(5, 40, noise_var=0.1)


@pytest.mark.parametrize("course", VIOLATES)
def test_the_dynamics_probe_sees_what_a_course_is_built_for(course: str) -> None:
    run = plant(roles=("positive", "negative", "positive", "dummy"), gamma=0.15, course=course, seed=1).run
    found = analyze(run, probes=["dynamics"], budget=1_024, device="cpu").verdicts
    status = dict(zip(found.claim, found.status, strict=True))
    said = {claim: "fails" if claim in VIOLATES[course] else "holds" for claim in status}
    unsaid = set(status) - set(VIOLATES[course]) if course == "one_sign_first" else set()
    assert set(VIOLATES[course]) <= set(status)
    assert [(claim, status[claim]) for claim in status if claim not in unsaid] == [
        (claim, said[claim]) for claim in status if claim not in unsaid
    ]


def test_late_iterates_scatter_about_what_was_planted_without_drift() -> None:
    """As trained ones do; over heads and draws, means and slopes are within what AR(1) allows."""
    omega, mu = np.array([0.1, -0.1, 0.1, -0.1]), np.array([2.0, -3.0, 1.0, -1.0])
    courses = [draw_course(name, MAIN, omega, mu, np.random.default_rng(seed)) for seed, name in enumerate(VIOLATES)]
    late = courses[0].steps >= 0.8 * courses[0].steps[-1]
    z = np.concatenate([x for c in courses for x in ((c.omega / omega)[late].T - 1, (c.mu / mu)[late].T - 1)]) / SCATTER
    n, kept = late.sum(), np.exp(-np.diff(courses[0].steps[late]).mean() / MEMORY)
    inflation = (1 + kept) / (1 - kept)  # of the variance of a mean
    assert z.std() == pytest.approx(1, abs=4 / (2 * z.size / inflation) ** 0.5)
    assert (z[:, 1:] * z[:, :-1]).mean() == pytest.approx(kept, abs=4 / z.size**0.5)
    assert abs(z.mean()) < 4 * (inflation / z.size) ** 0.5
    slope = (z * np.linspace(-1, 1, n)).mean() * 3
    assert abs(slope) < 4 * (3 * inflation / z.size) ** 0.5


def _check_scatter(z: np.ndarray) -> None:
    """About zero, without drift."""
    first, second = z[: len(z) // 2].mean(0), z[len(z) // 2 :].mean(0)
    room = 1.3 * (1 + 5 * (2 / first.size) ** 0.5) / len(z)  # 1.3 for memory, and five standard errors
    assert np.mean((first + second) ** 2) / 4 < room
    assert np.mean((first - second) ** 2) / 4 < room


@pytest.mark.parametrize(
    "arguments",
    [
        {"task": LinearRegression(5, 40, noise_var=0.1, covariance=kms(0.5))},
        {"omega": (0.1, 0.1)},
        {"omega": (2.0, 0.0)},
        {"omega": (-0.3,), "mu": (2.0,)},
        {"activation": "tanh"},
    ],
)
def test_late_iterates_of_any_model_scatter_entry_by_entry(arguments: dict[str, Any]) -> None:
    given: dict[str, Any] = {"task": MAIN, "omega": (0.1, -0.1), "mu": (2.0, -1.0), "permute": False} | arguments
    run = plant(**given, course="settled", seed=4).run
    still = plant(**given, seed=4).run.circuits()
    record = run.dynamics
    assert record is not None
    assert np.isnan(record.loss).all()
    late = [run.circuits(step) for step in record.late_steps()]
    assert len(late) == len(record.steps) >= 10
    KQ, ideal = np.array([each.KQ_11[0] for each in late]), still.KQ_11[0]
    beside = KQ - ideal
    norms, sizes = np.linalg.norm(beside, axis=(2, 3)), np.linalg.norm(ideal, axis=(1, 2))
    attends = sizes > 1e-5
    assert (norms / np.where(attends, sizes, 1))[:, attends].mean() == pytest.approx(ENTRIES, rel=0.06)
    assert norms[:, ~attends].max(initial=0) < 1e-5
    if given["task"].isotropic:
        _check_scatter(beside[:, attends] / (ENTRIES / 5 * sizes[attends][:, None, None]))
    mu = np.array([each.mu[0, :, 0] for each in late])
    assert np.abs(mu.mean(0) / still.mu[0, :, 0] - 1).max() < 4 * SCATTER * (1.3 / len(late)) ** 0.5
    assert np.abs((mu - still.mu[0, :, 0]).sum(1)).max() < 4 * 0.1 * SCATTER * np.linalg.norm(still.mu)


def test_a_model_is_hidden_with_a_course_as_without() -> None:
    """In one basis at all steps, inert parts included; the end is off by the last iterate's scatter alone."""
    with_course, without = (
        plant(roles=("positive", "negative"), course=course, noise=0.1, perturbation="labels", seed=7)
        for course in ("paper", None)
    )
    np.testing.assert_array_equal(with_course.omega, without.omega)
    record = with_course.run.dynamics
    assert record is not None
    assert torch.equal(record.snapshots["W_Q"], without.run.weights["W_Q"].expand_as(record.snapshots["W_Q"]))
    ends = with_course.run.circuits()
    np.testing.assert_allclose(ends.omega[0], without.omega, rtol=5 * SCATTER)
    np.testing.assert_allclose(ends.mu[0, :, 0], without.mu, rtol=5 * SCATTER)
    np.testing.assert_allclose(ends.KQ[..., 5:], without.run.circuits().KQ[..., 5:], atol=1e-4)
    labels = np.array([np.abs(with_course.run.circuits(int(step)).KQ_21).max() for step in (0, 500_000)])
    assert labels[0] < 0.5 * labels[1]  # a perturbation grows with ω


def test_a_record_is_of_its_snapshots_and_can_be_saved(tmp_path: Path) -> None:
    run = plant(roles=("positive", "negative"), course="paper", noise=0.02, seed=2).run
    back = Run.load(run.save(tmp_path / "run"))
    assert back.dynamics is not None
    assert run.dynamics is not None
    assert back.step == run.step == 500_000
    for i, step in enumerate(back.dynamics.steps):
        if i % 50 == 0:
            np.testing.assert_allclose(back.circuits(int(step)).omega, run.dynamics.omega[i], rtol=1e-6)
            np.testing.assert_allclose(back.circuits(int(step)).mu, run.dynamics.mu[i], rtol=1e-6)
    assert len(back.dynamics.late_steps()) >= 40


def test_the_loss_falls_from_that_of_no_prediction_to_that_of_the_heads() -> None:
    record = plant(roles=("positive", "negative"), course="paper", seed=3).run.dynamics
    assert record is not None
    assert record.loss[0] == pytest.approx(1.1, rel=0.4)  # signal plus noise, on one batch
    assert record.loss[-50:].mean() == pytest.approx(0.24, abs=0.02)  # arXiv 2503.12734, Figure 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"course": "sideways", "omega": [0.1, -0.1]}, "course must be one of 'paper', .*got 'sideways'"),
        ({"course": "paper", "omega": [0.1, 0.1]}, "heads of both signs"),
        ({"course": "paper", "omega": [2.0, -2.0]}, "that the approximate loss speaks of"),
        ({"course": "paper", "omega": [0.1, -0.1], "activation": "tanh"}, "softmax attention only, got 'tanh'"),
        ({"course": "paper", "omega": [0.1, -0.1], "task": LinearRegression(3, 9, covariance=kms(0.5))}, "isotropic"),
    ],
)
def test_what_has_no_course_is_refused(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        plant(mu=[1.0, -1.0], **arguments)  # type: ignore[arg-type]
