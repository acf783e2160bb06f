from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import icl_interp as icl
from icl_interp.config import ModelConfig
from icl_interp.flow import Moment, approximate_loss_flow
from icl_interp.probing import Block, Frames, Lines, Outcome, Table
from icl_interp.records import Run
from icl_interp.serialization import dumps, to_data
from icl_interp.tasks import LinearRegression, Prompt, kms
from icl_interp.testing import check_probe, plant
from icl_interp.training.recording import record_steps
from icl_interp.weights import initial_weights, weight_shapes
from icl_interp_probes.dynamics import FRAMES, DynamicsProbe, HeadDynamics

TASK = LinearRegression(dim=5, length=40, noise_var=0.1)
STEPS = np.array([0, 1, 2, 5, 10, 100, 200, 300, 400, 500])


def recorded(run: Run, steps: Sequence[int], omega: object, mu: object, keep: slice = slice(None)) -> Run:
    """The run with a record of these (ω, μ), each (records, heads), and snapshots of noise that end in its weights."""
    steps, generator = np.asarray(steps), torch.Generator().manual_seed(0)
    kept = steps[keep]
    noise = {name: torch.randn((len(kept), *w.shape), generator=generator) for name, w in run.weights.items()}
    dynamics = icl.Dynamics(
        steps=steps,
        loss=np.linspace(1.1, 0.2, len(steps)),
        omega=np.asarray(omega, dtype=float)[:, None],
        mu=np.asarray(mu, dtype=float)[:, None, :, None],
        snapshot_steps=kept,
        snapshots={name: torch.cat([noise[name][:-1], w[None]]) for name, w in run.weights.items()},
    )
    return replace(run, dynamics=dynamics)


@lru_cache(8)  # tests ask several things of one run
def outcome(run: Run, budget: int = 1000) -> Outcome:
    return icl.analyze(run, budget=budget, probes=["dynamics"])["dynamics"]


def found(run: Run) -> HeadDynamics:
    value = outcome(run).value
    assert isinstance(value, HeadDynamics)
    return value


def shown(run: Run, kind: type[Block]) -> dict[str, Any]:
    return {block.title: block for block in outcome(run).blocks if isinstance(block, kind)}


PLANTED = plant(TASK, roles=("positive", "negative", "dummy"), permute=False).run
RISE = np.linspace(0.1, 3.0, len(STEPS))


def paths() -> tuple[np.ndarray, np.ndarray]:
    """ω that overshoots and μ that rises in heads 0 and 1; the dummy's signs never match."""
    size = np.array([0.05, 0.1, 0.1, 0.2, 0.3, 0.25, 0.2, 0.18, 0.15, 0.14])
    omega = np.stack([size, -0.9 * size, np.full(len(STEPS), 0.9)], 1)
    mu = np.stack([RISE, -RISE, np.full(len(STEPS), -0.001)], 1)
    return omega, mu


# --- Moments ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wrong", [[], [0], [0, 1, 2, 3], [6], [2, 6], [8], [9]])
def test_signs_match_from_the_step_after_the_last_that_does_not(wrong: list[int]) -> None:
    omega, mu = paths()
    omega[wrong, 1] *= -1
    moment = found(recorded(PLANTED, STEPS, omega, mu)).signs_match
    at = max(wrong, default=-1) + 1
    last = -RISE[-1] if 9 in wrong else RISE[-1]
    if at < len(STEPS):
        assert moment == Moment(int(STEPS[at]), pytest.approx(RISE[at]), pytest.approx(last))
    else:
        assert moment == Moment(None, None, pytest.approx(last))


def test_a_head_without_omega_does_not_match() -> None:
    omega, mu = paths()
    omega[4, 0] = 0
    moment = found(recorded(PLANTED, STEPS, omega, mu)).signs_match
    assert moment is not None
    assert moment.step == 100


@pytest.mark.parametrize("at", [0, 3, 9])
def test_mu_cancels_from_a_planted_step_on(at: int) -> None:
    omega, mu = paths()
    mu[:, 0] *= 1.2
    mu[:at, 2], mu[at:, 2] = 0, -0.18 * RISE[at:]  # a dummy's μ counts too: 0.2 / 2.2 is far too much, 0.02 / 2.38 not
    moment = found(recorded(PLANTED, STEPS, omega, mu)).zero_sum
    assert moment == Moment(int(STEPS[at]), pytest.approx(0.02 / 2.38), pytest.approx(0.02 / 2.38))


def test_mu_that_never_cancels_is_told_so() -> None:
    omega, mu = paths()
    run = recorded(PLANTED, STEPS, omega, np.abs(mu))
    assert found(run).zero_sum == Moment(None, None, pytest.approx(1.0))
    rows = {row[0]: row[1:] for row in shown(run, Table)["Moments"].rows}
    assert rows["|Σμ| / Σ|μ| is at most 0.03 from here on"] == ("not within this record", None, pytest.approx(1.0))


def test_peaks_are_those_of_attending_heads() -> None:
    result = found(recorded(PLANTED, STEPS, *paths()))
    assert result.roles == ("positive", "negative", "dummy")
    assert result.omega_peak == Moment(10, 0.3, 0.14)
    assert result.mu_peak == Moment(500, 3.0, 3.0)


def test_without_the_task_every_head_counts() -> None:
    omega, mu = paths()
    run = replace(recorded(PLANTED, STEPS, omega, mu), task=None)
    result = found(run)
    assert result.roles == ("?", "?", "?")
    assert result.signs_match == Moment(None, None, -0.001)  # the third never does
    assert result.omega_peak == Moment(0, 0.9, 0.9)
    (table,) = shown(run, Table).values()
    assert [row[0] for row in table.rows if "all heads" in str(row[0])]


def test_where_no_head_attends_no_moment_is_told() -> None:
    config = ModelConfig(5, n_heads=3)
    run = Run(config, initial_weights(config, torch.Generator().manual_seed(0)), task=TASK)
    run = recorded(run, STEPS, *paths())
    result = found(run)
    assert set(result.roles) == {"unstructured"}
    assert {result.signs_match, result.zero_sum, result.omega_peak, result.mu_peak} == {None}
    assert not shown(run, Table)


def test_moments_rest_on_the_full_record() -> None:
    """One record of a thousand is out of line, and is not among those that are drawn."""
    steps = np.arange(1000)
    omega, mu = (np.tile(row, (1000, 1)) for row in ([0.1, -0.1, 0.0], [2.0, -2.0, 0.0]))
    mu[800] *= -1
    omega[801, 0] = 0.7
    result = found(recorded(PLANTED, steps, omega, mu, slice(None, None, 100)))
    assert not {800, 801} & set(result.steps)
    assert result.signs_match == Moment(801, 2.0, 2.0)
    assert result.omega_peak == Moment(801, 0.7, 0.1)
    assert result.records == 1000


# --- What is concluded ------------------------------------------------------------------------------------------------

SIGNED = plant(TASK, roles=("positive", "negative", "negative"), permute=False).run
CLAIMS = (
    "signs_match_early",
    "zero_sum_throughout",
    "homogeneous_throughout",
    "omega_overshoots",
    "mu_rises",
    "mu_never_falls",
    "signs_of_the_flow",
)
LONG = np.array(record_steps(20_000, 200)[1:])
SHARES = np.array([1.0, -0.9, -0.1])  # of heads in the Σμ of their sign


def course(noise: float = 0.004) -> tuple[np.ndarray, np.ndarray]:
    """A training as it should be: η grows around step 240, γ peaks at step 400 or so, iterates scatter."""
    t, rng = LONG.astype(float), np.random.default_rng(0)
    eta = 0.88 / (1 + (240 / t) ** 3)
    gamma = 0.4 / (1 + (150 / t) ** 1.5) * (1 + (t / 400) ** 2) ** -0.12
    omega = gamma[:, None] * np.sign(SHARES)
    mu = (eta / gamma / 2)[:, None] * SHARES
    return omega * (1 + noise * rng.standard_normal(omega.shape)), mu * (1 + noise * rng.standard_normal(mu.shape))


def judged(run: Run, budget: int = 1000) -> dict[str, str]:
    return {verdict.claim: verdict.status for verdict in outcome(run, budget).verdicts}


def judged_course(omega: np.ndarray, mu: np.ndarray) -> dict[str, str]:
    return judged(recorded(SIGNED, LONG, omega, mu, slice(-1, None)))


GOOD = recorded(SIGNED, LONG, *course(), slice(-1, None))


def test_all_holds_of_a_good_course() -> None:
    assert judged(GOOD) == dict.fromkeys(CLAIMS, "holds")


def late_signs(omega: np.ndarray, mu: np.ndarray) -> None:
    omega[(LONG > 300) & (LONG < 3000), 2] *= -1  # the smallest head, so that little else changes


def unbalanced(omega: np.ndarray, mu: np.ndarray) -> None:
    mu *= np.where(mu > 0, 1.2, 0.8)


def unequal(omega: np.ndarray, mu: np.ndarray) -> None:
    omega *= np.where(mu > 0, 1.25, 0.75)


def no_decline(omega: np.ndarray, mu: np.ndarray) -> None:
    omega *= (1 + (LONG[:, None] / 400) ** 2) ** 0.115  # down by 4 % and no more


def no_rise(omega: np.ndarray, mu: np.ndarray) -> None:
    mu /= np.maximum(1, np.abs(mu).sum(1) / np.abs(mu[LONG > 560][0]).sum())[:, None]


def a_dip(omega: np.ndarray, mu: np.ndarray) -> None:
    mu[(LONG > 2000) & (LONG < 5000)] *= 0.8


def another_basin(omega: np.ndarray, mu: np.ndarray) -> None:
    for path in (omega, mu):
        path[LONG < 200] = np.abs(path[LONG < 200])


@pytest.mark.parametrize(
    ("claim", "change"),
    list(zip(CLAIMS, (late_signs, unbalanced, unequal, no_decline, no_rise, a_dip, another_basin), strict=True)),
)
def test_each_claim_fails_where_exactly_it_is_violated(claim: str, change: Callable[..., None]) -> None:
    omega, mu = course()
    change(omega, mu)
    expected = {**dict.fromkeys(CLAIMS, "holds"), claim: "fails"}
    if change is no_decline:  # where |ω| stays as large as it was, nobody knows since when |μ| should have risen
        expected["mu_rises"] = "inconclusive"
    assert judged_course(omega, mu) == expected


def test_signs_that_never_match() -> None:
    omega, mu = course()
    omega[:, 2] *= -1
    verdict = outcome(recorded(SIGNED, LONG, omega, mu, slice(-1, None))).verdicts[0]
    assert (verdict.claim, verdict.status) == ("signs_match_early", "fails")
    assert verdict.estimate is not None
    assert verdict.estimate.value == 1


@pytest.mark.parametrize("claim", ["omega_overshoots", "mu_rises", "mu_never_falls"])
def test_much_noise_leaves_open_what_it_hides(claim: str) -> None:
    assert judged_course(*course(noise=0.6))[claim] == "inconclusive"


def test_the_course_is_measured() -> None:
    """Of a course whose numbers are known, up to the noise."""
    found_course = found(GOOD).course
    assert found_course is not None
    assert found_course.grown == pytest.approx(240, rel=0.08)
    assert found_course.peak == pytest.approx(560, rel=0.15)
    assert found_course.length == pytest.approx(20_000 / 240, rel=0.08)
    assert found_course.decay is not None
    assert found_course.decay.value == pytest.approx(-0.233, abs=0.005)  # on its way to −0.24
    gamma = np.abs(course(noise=0)[0][:, 0])
    assert found_course.top == pytest.approx(gamma.max(), rel=0.01)
    ratio = gamma.max() / gamma[LONG >= 16_000].mean()
    assert found_course.overshoot.low < ratio < found_course.overshoot.high


def test_a_path_of_the_flow_is_its_own_company() -> None:
    """A record that is gradient flow itself: the flow beside it is the same, and all that is claimed holds."""
    start = np.array([0.02, -0.03, -0.01])
    path = approximate_loss_flow(start, 2 * start, 6.0, dim=5, length=40, noise_var=0.1)
    steps = np.array(record_steps(20_000, 600))
    times = steps / 20_000 * path.times[-1]
    omega, mu = (np.stack([np.interp(times, path.times, head) for head in p.T], 1) for p in (path.omega, path.mu))
    run = recorded(SIGNED, steps, omega, mu, slice(-1, None))
    assert judged(run) == dict.fromkeys(CLAIMS, "holds")
    beside = found(run).beside
    assert beside is not None
    np.testing.assert_allclose(beside.gamma[0], beside.gamma[1], rtol=0.02)
    np.testing.assert_allclose(beside.trained, beside.flow, atol=0.01)
    np.testing.assert_allclose(beside.mu, mu[-1], rtol=0.05)
    assert (np.abs(beside.gamma[2, -1]), beside.mu_sum[-1]) == (pytest.approx(np.abs(omega[-1, 0]), rel=0.02), 3.0)


@pytest.mark.parametrize("budget", [1, 8, 50])
def test_with_few_prompts_nothing_holds(budget: int) -> None:
    assert not {"holds", "fails"} & set(judged(GOOD, budget).values())


def test_a_record_that_ends_too_soon_tells_nothing() -> None:
    omega, mu = course()
    short = LONG < 3000
    run = recorded(SIGNED, LONG[short], omega[short], mu[short], slice(-1, None))
    assert judged(run) == dict.fromkeys(CLAIMS, "inconclusive")
    assert "The record ends too soon: η was half of its last value at step 2" in outcome(run).verdicts[0].sentence


def test_a_record_of_few_points_tells_nothing() -> None:
    omega, mu = course()
    run = recorded(SIGNED, LONG[::-12][::-1], omega[::-12][::-1], mu[::-12][::-1], slice(-1, None))
    assert judged(run) == dict.fromkeys(CLAIMS, "inconclusive")
    assert "points were recorded after growth" in outcome(run).verdicts[0].sentence


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_record_that_is_not_finite_tells_nothing(bad: float) -> None:
    omega, mu = course()
    omega[70, 1] = bad
    run = recorded(SIGNED, LONG, omega, mu, slice(-1, None))
    assert judged(run) == dict.fromkeys(CLAIMS, "inconclusive")
    assert "not finite" in outcome(run).verdicts[0].sentence


def test_a_record_of_no_learning_tells_nothing() -> None:
    omega, mu = course()
    assert judged_course(-omega, mu) == dict.fromkeys(CLAIMS, "inconclusive")


def test_a_start_far_from_zero_has_no_flow_beside_it() -> None:
    omega, mu = course()
    statuses = judged_course(100 * omega, mu)
    assert statuses["signs_of_the_flow"] == "not_applicable"
    assert statuses["omega_overshoots"] == "holds"


def other(**changes: Any) -> Run:
    """Three heads of both signs, of another make."""
    return plant(**{"task": TASK, "roles": ("positive", "negative", "negative"), "permute": False} | changes).run


UNTRAINED = Run(ModelConfig(5, n_heads=3), initial_weights(ModelConfig(5, n_heads=3), torch.Generator().manual_seed(0)))


@pytest.mark.parametrize(
    ("run", "reason"),
    [
        (other(roles=None, omega=[-0.4, -0.5, -0.4], mu=[-0.5, -0.6, -0.5]), "all heads that attend are negative"),
        (replace(SIGNED, task=None), "not known without the task"),
        (replace(UNTRAINED, task=TASK), "its heads are unstructured"),
        (other(activation="square", activation_scale=0.5), "the claim is about softmax and tanh"),
    ],
)
def test_where_the_claims_say_nothing(run: Run, reason: str) -> None:
    verdicts = outcome(recorded(run, LONG, *course(), slice(-1, None))).verdicts
    assert {verdict.status for verdict in verdicts} == {"not_applicable"}
    assert [verdict.claim for verdict in verdicts] == list(CLAIMS)
    assert reason in verdicts[0].sentence


def test_one_head_is_said_nothing_of() -> None:
    omega, mu = course()
    run = recorded(plant(TASK, omega=[0.5], mu=[1.5]).run, LONG, omega[:, :1], mu[:, :1], slice(-1, None))
    assert judged(run) == dict.fromkeys(CLAIMS, "not_applicable")


@pytest.mark.parametrize(
    "changes",
    [
        {
            "task": LinearRegression(5, 40, 0.1, covariance=kms(0.5)),
            "roles": None,
            "omega": [0.2, -0.2, -0.2],
            "mu": [3.0, -2.5, -0.5],
        },
        {"task": TASK.shifted(0.1)} | {"roles": None, "omega": [0.13, -0.13, -0.13], "mu": [3.4, -2.9, -0.5]},
        {"activation": "tanh"},
    ],
)
def test_without_the_approximate_loss_there_is_no_flow(changes: dict[str, Any]) -> None:
    run = recorded(other(**changes), LONG, *course(), slice(-1, None))
    assert judged(run) == {**dict.fromkeys(CLAIMS, "holds"), "signs_of_the_flow": "not_applicable"}
    assert "γ at equal Σ|μ|" not in shown(run, Lines)


def test_covariates_of_another_variance_have_the_same_flow_in_their_own_units() -> None:
    v, (omega, mu) = 4.0, course()
    scaled = recorded(other(task=LinearRegression(5, 40, 0.1, covariance=v * np.eye(5))), LONG, omega / v, mu)
    beside = found(scaled).beside
    assert beside is not None
    assert (np.sign(beside.omega) == np.sign(SHARES)).all()
    assert np.abs(beside.omega * v) == pytest.approx([0.15] * 3, abs=0.05)


def test_the_flow_is_shown_beside_the_training() -> None:
    lines, tables = shown(GOOD, Lines), shown(GOOD, Table)
    whole, heads = lines["γ at equal Σ|μ|"], lines["ω at equal Σ|μ|"]
    assert whole.names == ("training", "flow of all heads", "two-head flow (B.4)")
    assert heads.names[:1] + heads.names[3:4] == ("head 0 (positive)", "head 0 (positive), flow")
    assert whole.y.shape == (3, 24)
    assert heads.y.shape == (6, 24)
    np.testing.assert_allclose(whole.y[0, -1], np.abs(course()[0][-1]).mean(), rtol=0.01)
    assert [row[0] for row in tables["The ends of training and flow"].rows] == list(heads.names[:3])
    phases = {str(row[0]): row[1:] for row in tables["Phases"].rows}
    assert phases["γ at its peak"][1] == pytest.approx(0.6, abs=0.1)


def test_the_contract_holds_for_a_whole_course() -> None:
    check_probe(DynamicsProbe, GOOD, replace(GOOD, task=None), budget=300)


# --- Pictures ---------------------------------------------------------------------------------------------------------


def test_curves_go_over_steps_and_leave_step_0_out() -> None:
    omega, mu = paths()
    lines = shown(recorded(PLANTED, STEPS, omega, mu), Lines)
    assert list(lines)[:3] == ["ω", "μ", "loss"]
    for title, values in (("ω", omega), ("μ", mu), ("loss", np.linspace(1.1, 0.2, 10)[:, None])):
        curve = lines[title]
        np.testing.assert_array_equal(curve.x, STEPS[1:])
        np.testing.assert_allclose(curve.y, values[1:].T, rtol=1e-3)
        assert (curve.x_label, curve.y_label, curve.log_x) == ("step", title, True)
    assert lines["ω"].names == ("head 0 (positive)", "head 1 (negative)", "head 2 (dummy)")


def test_frames_are_the_circuits_as_they_were() -> None:
    run = icl.train(LinearRegression(3, 8), n_heads=2, steps=30, progress=False)
    frames = shown(run, Frames)
    labels = ("x0", "x1", "x2", "y0")
    for name, rows, columns in (("KQ", labels, labels[:3]), ("OV", labels[3:], labels)):
        block = frames[name]
        assert {0, 30} <= set(block.moments)
        for index, step in enumerate(block.moments):
            circuit = dict(zip(("KQ", "OV"), run.circuits(int(step)).masked(), strict=True))[name]
            live = circuit[0, :, -len(rows) :, : len(columns)]
            assert np.isfinite(live).sum() == np.isfinite(circuit).sum()
            np.testing.assert_allclose(block.matrices[index], live, rtol=0, atol=1e-3 * np.nanmax(np.abs(live)))
        assert (block.row_labels, block.column_labels) == (rows, columns)
        assert [panel[:7] for panel in block.panels] == ["head 0 ", "head 1 "]


# --- Sizes ------------------------------------------------------------------------------------------------------------


def untrained(dim: int, n_heads: int, steps: Sequence[int]) -> Run:
    """A record without a task, for its size only."""
    config, rng = ModelConfig(dim, n_heads=n_heads), np.random.default_rng(0)
    run = Run(config, initial_weights(config, torch.Generator().manual_seed(0)))
    return recorded(run, steps, *rng.standard_normal((2, len(steps), n_heads)))


@settings(max_examples=60)
@given(st.sets(st.integers(0, 10**6), min_size=2, max_size=300), st.integers(1, 6), st.integers(1, 20))
def test_what_is_shown_is_a_spread_of_the_record_with_both_ends(steps: set[int], dim: int, n_heads: int) -> None:
    whole = sorted(steps)
    result = found(untrained(dim, n_heads, whole))
    for chosen, most in ((result.steps, 80), (result.snapshot_steps, FRAMES)):
        assert len(chosen) <= most
        assert set(chosen) <= steps
        assert (chosen[0], chosen[-1]) == (whole[0], whole[-1])
        assert (np.diff(chosen) > 0).all()
    assert len(result.snapshot_steps) == 2 or result.KQ.size <= 4_000
    if len(steps) <= FRAMES and n_heads * (dim + 1) ** 2 * len(steps) <= 4_000:
        assert list(result.snapshot_steps) == whole


def test_a_spread_is_even_on_a_logarithmic_scale() -> None:
    result = found(untrained(2, 1, range(0, 30_000, 10)))
    late = np.diff(np.log1p(result.snapshot_steps[result.snapshot_steps > 1000]))
    assert len(late) >= 7
    assert late.max() < 1.2 * late.min()


def test_the_main_setting_is_small_in_json() -> None:
    steps = np.unique(
        np.concatenate([np.geomspace(1, 1000, 60).astype(int), np.linspace(1000, 500_000, 240, dtype=int)])
    )
    data = to_data(found(untrained(5, 4, steps)))
    assert len(json.dumps(data, separators=(",", ":"))) < 60_000


@pytest.mark.parametrize(("dim", "n_heads", "moments"), [(5, 8, 13), (20, 2, 4), (60, 4, 2)])
def test_a_large_model_gets_fewer_frames(dim: int, n_heads: int, moments: int) -> None:
    result = found(untrained(dim, n_heads, np.unique(np.geomspace(1, 10**6, 60).astype(int))))
    assert result.KQ.shape == (moments, n_heads, dim + 1, dim)
    assert result.OV.shape == (moments, n_heads, 1, dim + 1)


# --- Other models and records -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TwoResponses:
    dim: int = 3
    length: int = 12
    n_outputs: int = 2

    def sample(
        self,
        batch: int,
        *,
        length: int | None = None,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
    ) -> Prompt:
        one = LinearRegression(3, 12).sample(batch, length=length, generator=generator, device=device)
        return Prompt(one.x, one.y.repeat(1, 1, 2), one.x_q, one.y_q.repeat(1, 2))


def test_several_responses_have_a_curve_each_and_signs_of_no_meaning() -> None:
    config = ModelConfig(3, n_outputs=2, n_heads=2)
    weights = {
        k: torch.randn(shape, generator=torch.Generator().manual_seed(1)) for k, shape in weight_shapes(config).items()
    }
    mu = np.array([[[2.0, 1.0], [-1.0, -1.0]], [[2.0, 1.0], [-2.0, -1.05]], [[2.0, 1.0], [-2.0, -1.0]]])
    dynamics = icl.Dynamics(
        steps=np.array([0, 10, 20]),
        loss=np.ones(3),
        omega=np.array([[0.1, -0.1]] * 3)[:, None],
        mu=mu[:, None],
        snapshot_steps=np.array([20]),
        snapshots={name: w[None] for name, w in weights.items()},
    )
    run = Run(config, weights, dynamics=dynamics)
    result = found(run)
    assert result.signs_match is None
    assert result.zero_sum == Moment(10, pytest.approx(0.05 / 2.05), 0.0)  # the worst of the two
    assert result.mu_peak == Moment(0, 2.0, 2.0)
    lines, frames = shown(run, Lines)["μ"], shown(run, Frames)["KQ"]
    assert lines.names == ("head 0 (?), y0", "head 0 (?), y1", "head 1 (?), y0", "head 1 (?), y1")
    np.testing.assert_allclose(lines.y, mu[1:].reshape(2, 4).T)
    assert frames.row_labels == ("x0", "x1", "x2", "y0", "y1")
    KQ = run.circuits().KQ[0, :, :, :3]
    np.testing.assert_allclose(frames.matrices[0], KQ, rtol=0, atol=1e-3 * np.abs(KQ).max())
    check_probe(DynamicsProbe, run, replace(run, task=TwoResponses()), budget=200)


def test_one_head_has_nothing_to_cancel() -> None:
    run = recorded(plant(TASK, omega=[0.5], mu=[1.5]).run, STEPS, RISE[:, None], RISE[:, None])
    result = found(run)
    assert result.zero_sum is None
    assert result.signs_match == Moment(0, pytest.approx(0.1), 3.0)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_records_that_are_not_finite_are_shown_and_not_read(bad: float) -> None:
    omega, mu = paths()
    omega[4, 0] = mu[5, 1] = bad
    run = recorded(PLANTED, STEPS, omega, mu)
    run.dynamics.loss[3] = bad
    result = found(run)
    assert result.omega_peak == Moment(None, None, 0.14)
    assert result.mu_peak == Moment(None, None, 3.0)
    assert result.zero_sum == Moment(200, pytest.approx(0.0, abs=0.01), pytest.approx(0.0, abs=0.01))
    np.testing.assert_equal(result.loss[3], bad)
    check_probe(DynamicsProbe, run, budget=200)
    json.loads(dumps(to_data(result)), parse_constant=pytest.fail)


def test_heads_of_no_mu_at_all_do_not_cancel() -> None:
    omega, mu = paths()
    result = found(recorded(PLANTED, STEPS, omega, 0 * mu))
    assert result.zero_sum is not None
    assert result.zero_sum.step is None


def test_the_contract_holds_for_the_shortest_record_and_the_smallest_model() -> None:
    task = LinearRegression(1, 6)
    check_probe(
        DynamicsProbe,
        icl.train(task, steps=1, progress=False),
        icl.train(task, n_heads=1, steps=30, progress=False),
        recorded(PLANTED, STEPS[:2], *(path[:2] for path in paths())),
        recorded(PLANTED, STEPS.astype("uint64"), *paths(), keep=slice(-1, None)),
        budget=200,
    )


def test_a_deeper_model_and_one_without_a_record() -> None:
    deep = icl.train(LinearRegression(3, 8), n_layers=2, steps=2, progress=False)
    for run in (deep, replace(deep, task=None)):
        assert "one layer" in outcome(run).reason
    assert outcome(PLANTED).status == "skipped"
