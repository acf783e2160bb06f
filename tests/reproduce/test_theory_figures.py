"""Figures 6, 7, 20, 21, 22 and Theorem 4.2: their numbers against other ways to them, and claims that can fail."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from icl_interp import theory
from icl_interp.estimators import bayes, gradient_descent
from icl_interp.probing import Equation, Estimate, Surface, Table, Text
from icl_interp.reproduce import Bench, Schedule
from icl_interp.reproduce.figures import flow, grouping, loss, norms, theorem
from icl_interp.reproduce.readings import Course
from icl_interp.reproduce.recipes import recipes
from icl_interp.reproduce.results import Reproduction
from icl_interp.reproduce.trainings import MAIN, setting
from icl_interp.surfaces import pattern_moments
from icl_interp.tasks import LinearRegression
from icl_interp.training import train

GIVEN = setting(MAIN)
# Those of these figures that rest on theory and on sampled prompts, and those that train as well.
SAMPLED = ("figure-6", "figure-7", "figure-20", "theorem-4.2")
TRAINED = ("figure-21", "figure-22")
TINY = Schedule("tiny", steps=300, seeds=1, basin_seeds=4, basin_steps=300, prompts=2_000)


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    return Bench(tmp_path_factory.mktemp("bench"), TINY, progress=False)


@pytest.fixture(scope="module")
def made(bench):
    return {name: recipes()[name](bench) for name in (*SAMPLED, *TRAINED)}


@pytest.fixture(scope="module")
def ode():
    return flow.Flow.of(np.unique([*np.linspace(0, 30, 6001), *np.geomspace(30, 1e6, 120), 1e4]))


def statuses(claims):
    return [claim.status for claim in claims]


def block(found, title):
    (each,) = (b for b in found.blocks if not isinstance(b, Text | Equation) and b.title == title)
    return each


# --- All of them ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*SAMPLED, *TRAINED])
def test_a_figure_is_small_data_that_survives_being_saved(made, name):
    data = made[name].to_data()
    assert len(json.dumps(data)) < 30_000
    again = Reproduction.from_data(json.loads(json.dumps(data)))
    assert again.to_data() == data
    assert statuses(again.claims) == statuses(made[name].claims)


@pytest.mark.parametrize("name", [*SAMPLED, "figure-22"])
def test_what_needs_no_long_training_comes_out(made, name):
    unexpected = [c for c in made[name].claims if c.status in ("differs", "not_reached")]
    assert not unexpected
    refuted = [c.claim for c in made[name].claims if c.status == "does_not_hold"]
    assert len(refuted) == (name == "figure-22")


def test_a_figure_is_the_same_each_time(bench, made):
    again = recipes()["theorem-4.2"](bench)
    assert [c.ours for c in again.claims] == [c.ours for c in made["theorem-4.2"].claims]


# --- Flows ------------------------------------------------------------------------------------------------------------


def test_the_plateau_is_that_of_the_formula_not_of_another(made, ode):
    assert flow.AT_PLATEAU.low < ode.at(1e4, ode.step) / theory.optimal_step(**GIVEN) < 1
    assert ode.at(12.0, ode.step) / theory.optimal_step(**GIVEN) < flow.AT_PLATEAU.low


def test_phases_of_a_flow_in_another_unit_of_time_differ(ode):
    whole_loss = flow.Flow(ode.times / 2, ode.omega, ode.mu)
    found = dict(zip([c.claim for c in flow.phase_claims(ode)], statuses(flow.phase_claims(whole_loss)), strict=True))
    assert found["Phase II ends where ω turns, at t = 7.5"] == "differs"
    assert found["μ/ω is 1.58 at t = 12"] == "differs"
    assert found["Phase II: ω rises to 0.576"] == "reproduced"
    doubled = flow.Flow(ode.times, 2 * ode.omega, ode.mu)
    assert statuses(flow.phase_claims(doubled)).count("reproduced") <= 2


def power_law(exponent, rng=None):
    """A training whose |ω| falls as a power of the step, with the noise of single iterates."""
    run = train(MAIN, n_heads=2, steps=2)
    steps = np.arange(0, 100_001, 500)
    size = np.concatenate([[0.3], steps[1:].astype(float) ** exponent])
    noise = 1 + 0.02 * (rng.standard_normal((len(steps), 2)) if rng else 0)
    omega = size[:, None] * np.array([1, -1]) * noise
    return Course(run, steps, omega, omega)


def test_the_late_law_of_the_ode_refutes_the_elimination_and_a_flow_that_follows_it_does_not(ode):
    refuted, derived, real = flow.late_claims(ode, power_law(-0.1))
    assert refuted.status == "does_not_hold"
    assert refuted.ours
    assert derived.ours
    assert real.ours
    assert refuted.ours.value == pytest.approx(-1 / 6, abs=0.001)
    assert derived.ours.value == pytest.approx(1, abs=1e-3)
    assert real.ours.value == pytest.approx(-0.1, abs=1e-6)
    follows = flow.Flow(ode.times, ode.times.clip(min=0.01) ** -0.5, ode.mu)
    assert flow.late_claims(follows, power_law(-0.1))[0].status == "reproduced"


def test_the_late_slope_covers_the_exponent_under_noise():
    rng = np.random.default_rng(0)
    base = power_law(-0.16)
    found = []
    for _ in range(200):
        omega = base.omega * (1 + 0.02 * rng.standard_normal(base.omega.shape))
        found.append(flow.late_slope(Course(base.run, base.steps, omega, omega)))
    covered = np.mean([slope.low <= -0.16 <= slope.high for slope in found])
    assert 0.88 < covered < 0.99  # blocks that are even in log step hold unequal numbers of records
    assert np.mean([slope.half for slope in found]) < 0.01


def test_groups_on_the_approximate_loss():
    omega, mu = grouping.random_flow(0, np.array([1e4]))
    good = grouping.End(omega[-1], mu[-1])
    assert statuses(grouping.flow_claims([good, good])) == ["reproduced"] * 3
    one_sign = grouping.End(np.abs(omega[-1]), mu[-1])
    assert not one_sign.both
    assert grouping.flow_claims([good, one_sign])[0].status == "differs"
    uneven = grouping.End(omega[-1] * np.array([0.5, 1, 1.5, 1]), mu[-1])
    assert grouping.flow_claims([good, uneven])[1].status == "differs"
    early = grouping.End(*(values[-1] for values in grouping.random_flow(0, np.array([100.0]))))
    assert grouping.flow_claims([early, early])[2].status == "differs"
    assert grouping.End(np.array([0.1, -0.1, 0.1]), np.array([3.0, -3.0, 1e-3])).idle == 1


# --- Figure 6 ---------------------------------------------------------------------------------------------------------


def test_the_surfaces_lie_the_right_way_round(bench, made):
    surfaces = [b for b in made["figure-6"].blocks if isinstance(b, Surface)]
    true, approximate, difference = surfaces
    assert true.z == pytest.approx(approximate.z + difference.z, rel=1e-3)
    column, row = 19, 5
    omega, mu = np.array([0.2, -0.2]), loss.MU[row] * np.array([1, -1])
    assert approximate.z[row, column] == pytest.approx(theory.approximate_loss(omega, mu, **GIVEN), rel=1e-3)
    risk = pattern_moments(omega, bench.prompts("another", MAIN, 4_096), MAIN).risk(mu)
    own = pattern_moments(omega, bench.prompts("figure-6", MAIN), MAIN).risk(mu)
    assert true.z[row, column] == pytest.approx(own.value, rel=1e-3)
    assert abs(own.value - risk.value) < 2 * (own.half + risk.half)
    assert true.z[row, 0] == pytest.approx(1.1, abs=1e-3)


def test_the_best_mu_is_where_the_risk_is_least(bench):
    valley = loss.Valley(pattern_moments(np.ravel([[g, -g] for g in loss.GAMMAS]), bench.prompts("v", MAIN), MAIN))
    gamma, last = loss.GAMMAS[-1], len(loss.GAMMAS) - 1
    alone = pattern_moments(np.array([gamma, -gamma]), bench.prompts("v", MAIN), MAIN)
    grid = np.linspace(3, 4, 1001)
    best = grid[alone.risks(grid[:, None] * np.array([1, -1])).argmin()]
    assert valley.mu(last) == pytest.approx(best, abs=1e-3)
    assert valley.risk(last).value == pytest.approx(alone.risk(best * np.array([1, -1])).value, abs=1e-6)


def test_the_error_of_the_best_mu_is_its_scatter(bench):
    values = []
    for seed in range(40):
        moments = pattern_moments(
            np.ravel([[g, -g] for g in loss.GAMMAS]), bench.prompts(f"scatter {seed}", MAIN, 400), MAIN
        )
        values.append(loss.Valley(moments).product(len(loss.GAMMAS) - 1))
    scatter = np.std([v.value for v in values], ddof=1)
    assert np.mean([v.half for v in values]) / 1.966 == pytest.approx(scatter, rel=0.35)


def test_a_difference_of_the_other_sign_is_not_the_papers(bench):
    valley = loss.Valley(
        pattern_moments(np.ravel([[g, -g] for g in loss.GAMMAS]), bench.prompts("figure-6", MAIN), MAIN)
    )
    grid = np.full((20, 20), -0.02)
    found = loss.surface_claims(grid, grid - 1e-3, grid + 1e-3, valley)
    assert statuses(found)[:3] == ["differs", "reproduced", "differs"]


def test_a_valley_that_rises_is_not_level(bench):
    steep = np.array([0.02, 0.05, 0.08, 0.1, 0.3])
    valley = loss.Valley(
        pattern_moments(np.ravel([[g, -g] for g in steep]), bench.prompts("figure-6", MAIN, 8_000), MAIN)
    )
    assert loss.FLAT.judge(valley.rise()) == "fails"


# --- Figure 20 --------------------------------------------------------------------------------------------------------


def test_scores_may_be_drawn_in_place_of_covariates(bench):
    ours = norms.attention_norms(bench, 0.5, 40, 5)
    prompt = LinearRegression(5, 40).sample(20_000, generator=torch.Generator().manual_seed(0))
    scores = (prompt.x @ prompt.x_q[..., None])[..., 0]
    direct = torch.softmax(0.5 * scores, -1).norm(dim=-1).numpy()
    for power in (1, 2):
        a, b = ours**power, direct**power
        error = np.hypot(a.std() / len(a) ** 0.5, b.std() / len(b) ** 0.5)
        assert abs(a.mean() - b.mean()) < 4 * error
        assert error < 0.02 * b.mean()


def test_histograms_are_densities(made):
    for panel, scale in norms.SCALES.items():
        lines = block(made["figure-20"], f"({panel}) Scale {scale}")
        assert lines.y.sum(1) * (lines.x[1] - lines.x[0]) == pytest.approx(np.ones(3), abs=1e-3)


def test_norms_that_do_not_change_are_not_the_papers():
    rng = np.random.default_rng(0)
    level = {
        panel: {pair: 0.3 + 0.01 * rng.standard_normal(1000) for pair in pairs} for panel, pairs in norms.PAIRS.items()
    }
    assert statuses(norms.norm_claims(level))[::2] == ["differs", "differs"]
    falling = {**level, "b": {pair: 0.5 * norm for pair, norm in level["b"].items()}}
    assert norms.norm_claims(falling)[1].status == "differs"


def test_an_overlap_of_even_attention_is_not_the_papers():
    even = Estimate(1.0, 0.999, 1.001)
    assert norms.overlap_claim({length: [even] * 4 for length in norms.LENGTHS}).status == "differs"


# --- Theorem 4.2 ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("power", [1, 2])
def test_the_slope_of_a_power_is_the_power(power):
    x = np.geomspace(0.02, 0.2, 8)
    heavy = np.random.default_rng(0).standard_normal(500) ** 4
    slope = theorem.log_slope(x, 3 * x[:, None] ** (2 * power) * heavy)
    assert slope.value == pytest.approx(power)
    assert slope.half < 1e-9  # the samples are common to all points
    assert theorem.SQUARE.judge(slope) == ("holds" if power == 2 else "fails")


def test_the_interval_of_the_slope_covers():
    x, rng = np.array([0.1, 0.2, 0.4]), np.random.default_rng(1)
    found = [theorem.log_slope(x, x[:, None] ** 4 * rng.standard_normal((3, 400)) ** 2) for _ in range(400)]
    assert 0.92 < np.mean([slope.low <= 2 <= slope.high for slope in found]) < 0.98


def test_minima_agree_with_the_closed_form():
    for found in theorem.minima(0.3):
        omega = 0.3 * np.array(found.pattern)
        mu = theory.optimal_mu_given_omega(omega, **GIVEN)
        assert found.loss == pytest.approx(theory.approximate_loss(omega, mu, **GIVEN), abs=1e-9)
        assert found.sums[0] == pytest.approx(mu[omega > 0].sum(), abs=1e-4)
    assert len(theorem.minima(0.3)) == 14  # 15 multisets of signs but for all zero


def test_sums_off_the_manifold_are_seen():
    found = theorem.Minimum((1, -1, 0, 0), 0.3, (3.0, -3.0, 0.3))
    assert found.off(3.0) == pytest.approx(0.1)
    assert theorem.SAME.high < found.off(3.0)


def test_risks_of_designs_are_those_of_the_estimators(bench):
    task = LinearRegression(4, 20, 3.0)
    risks = theorem.design_risks(bench, task)
    prompt = task.sample(40_000, generator=torch.Generator().manual_seed(0)).to(dtype=torch.float64)
    predictors = (gradient_descent(task), gradient_descent(task, debiased=True), bayes(task))
    errors = torch.cat([(p(prompt) - prompt.y_q).square() for p in predictors], 1).numpy()
    for own, raw in zip(risks, errors.T, strict=True):
        error = np.hypot(own.std() / len(own) ** 0.5, raw.std() / len(raw) ** 0.5)
        assert abs(own.mean() - raw.mean()) < 4 * error
    # Differences on the same prompts tell the three apart.
    for own, raw in (
        (risks[0] - risks[2], errors[:, 0] - errors[:, 2]),
        (risks[1] - risks[0], errors[:, 1] - errors[:, 0]),
    ):
        error = np.hypot(own.std() / len(own) ** 0.5, raw.std() / len(raw) ** 0.5)
        assert abs(own.mean() - raw.mean()) < 4 * error
    exact = theory.debiased_gd_risk(theory.optimal_step(**setting(task)), **setting(task))
    assert risks[1].mean() == pytest.approx(exact, abs=4 * risks[1].std() / len(risks[1]) ** 0.5)


def test_the_table_of_risks_ends_with_their_limits(made):
    table = block(made["theorem-4.2"], "(iii) Risks at σ² = 3")
    assert isinstance(table, Table)
    assert table.rows[-1][2:] == (3.4444, 3.4444, 3.4051)
