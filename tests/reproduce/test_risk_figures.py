"""Figures 4 and 8: the mathematics of their numbers, and what they say of planted models that are right or wrong."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from icl_interp import theory
from icl_interp.estimators import bayes
from icl_interp.manifold import manifold_mu
from icl_interp.probing import Estimate, exact, mean_of
from icl_interp.records import Dynamics, Runs
from icl_interp.reproduce import MAIN, Bench, Schedule
from icl_interp.reproduce.figures import risks
from icl_interp.reproduce.lengths import LENGTHS, furthest, squared_errors, standard_errors_apart
from icl_interp.testing import plant

BEST = 1 / 46.5  # of linear attention at d = 5, L = 40, σ² = 0.1
GAMMA = 0.13
ONE_HEAD = {"omega": [0.518], "mu": [1.50]}


class PlantedBench(Bench):
    """A bench whose runs are given."""

    def __init__(self, folder, prompts, **planted):
        super().__init__(folder, Schedule("planted", 500_000, 1, 1, 1, prompts))
        self.planted = {name: Runs([run]) for name, run in planted.items()}

    def runs(self, name):
        return self.planted[name]


def heads(omega, mu, **options):
    return plant(omega=omega, mu=mu, permute=False, **options).run


def pair(copies=1):
    """Heads on the solution manifold: `copies` of each sign."""
    mu = manifold_mu(MAIN)(GAMMA) / copies
    return heads([GAMMA, -GAMMA] * copies, [mu, -mu] * copies)


def recorded(run):
    """The run with a record of training in which nothing changes."""
    steps = np.arange(10)
    circuits = run.circuits()
    return replace(
        run,
        dynamics=Dynamics(
            steps,
            np.ones(10),
            np.stack([circuits.omega] * 10),
            np.stack([circuits.mu] * 10),
            steps,
            {name: torch.stack([weight] * 10) for name, weight in run.weights.items()},
        ),
    )


def linear(a):
    return recorded(heads([0.4], [a / 0.4], activation="linear"))


def trained(**others):
    return {"h1": heads(**ONE_HEAD), "h2": pair(), "h4": pair(2), "h8": pair(4)} | others


def statuses(made):
    claims, _ = made
    return {claim.claim: claim.status for claim in claims}


def the(found, part):
    (status,) = {status for claim, status in found.items() if part in claim}
    return status


# --- Mathematics ------------------------------------------------------------------------------------------------------


def test_the_formula_of_linear_attention():
    printed = {10: 0.746, 20: 0.485, 40: 0.240, 43: 0.2349, 50: 0.256, 60: 0.365, 80: 0.860, 100: 1.72}
    for length, value in printed.items():
        assert risks.linear_risk(BEST, length) == pytest.approx(value, rel=6e-3)
    steps = np.linspace(0.015, 0.03, 3001)
    assert steps[np.argmin([risks.linear_risk(a, 40) for a in steps])] == pytest.approx(BEST, abs=1e-5)


@pytest.mark.parametrize("a", [0.012, BEST, 0.03])
def test_the_turning_point_is_where_the_formula_is_least(a):
    lengths = np.arange(5, 120)
    least = lengths[np.argmin([risks.linear_risk(a, int(length)) for length in lengths])]
    assert abs(risks.turning_point(a) - least) <= 0.5


def test_the_fitted_parabola_turns_where_it_should():
    rng = np.random.default_rng(0)
    lengths = np.array(LENGTHS, dtype=float)[:, None]
    curve = 0.2 + 1e-4 * (lengths - 43) ** 2 + 1e-5 * rng.normal(size=(1, 4000)) * lengths
    found = risks.fitted_turn(curve + 0.3 * rng.normal(size=(len(LENGTHS), 4000)))
    assert found.low < 43 < found.high
    assert 0 < found.half < 1


def test_errors_are_those_of_the_beginnings_of_the_same_prompts():
    circuits = pair().circuits()
    prompts = [MAIN.sample(n, length=12, generator=torch.Generator().manual_seed(n)) for n in (5, 3)]
    errors = squared_errors({"model": circuits.predict}, iter(prompts), lengths=(4, 12))["model"]
    assert errors.shape == (2, 8)
    short = replace(prompts[1], x=prompts[1].x[:, :4], y=prompts[1].y[:, :4])
    np.testing.assert_allclose(errors[0, 5:], (circuits.predict(short) - short.y_q)[:, 0] ** 2, rtol=1e-5)


def test_standard_errors_apart():
    one, other = (Estimate(value, value - e * 1.96, value + e * 1.96) for value, e in ((103.0, 3), (100.5, 4)))
    assert standard_errors_apart(one, other) == pytest.approx(0.5)
    assert standard_errors_apart(other, exact(108.5)) == pytest.approx(2)
    assert np.isnan(standard_errors_apart(Estimate(1.0, 0.5, 1.5), exact(1.0)))
    assert furthest({"a": (one, other), "b": (other, exact(108.5))}) == ("b", pytest.approx(2))
    assert furthest({"a": (Estimate(1.0, 0.5, 1.5), exact(1.0)), "b": (other, exact(108.5))})[0] == "a"


def test_the_risk_of_ridge_with_labels_integrated_out():
    prompt = MAIN.sample(20_000, generator=torch.Generator().manual_seed(0)).to(dtype=torch.float64)
    integrated = risks.ridge_risk(iter([prompt]))
    plain = mean_of((bayes(MAIN)(prompt) - prompt.y_q)[:, 0].square().numpy())
    assert standard_errors_apart(plain, integrated) < 3
    assert integrated.half < plain.half / 5
    assert integrated.value == pytest.approx(0.1145, abs=2e-4)


# --- Figure 4 ---------------------------------------------------------------------------------------------------------


def test_figure_4_of_ideal_heads(tmp_path):
    claims, blocks = risks.figure_4(PlantedBench(tmp_path, 10_000, **trained()))
    assert {claim.claim: claim.status for claim in claims if claim.status not in ("reproduced", "shown")} == {}
    assert sum(claim.status == "shown" for claim in claims) == 2
    assert [type(block).__name__ for block in blocks] == ["Lines", "Lines", "Table", "Table", "Text"]
    exactly = {row[:2]: row[3] for row in blocks[3].rows}
    assert exactly["GD", 40].value == theory.gd_risk(0.897, dim=5, length=40, noise_var=0.1)
    assert exactly["debiased GD", 10].value == pytest.approx(0.61, abs=0.01)


def test_figure_4_where_heads_differ(tmp_path):
    stuck = heads([0.3, 0.3, 0.3, 0.3], [0.5, 0.5, 0.5, 0.5])  # of one sign
    found = statuses(risks.figure_4(PlantedBench(tmp_path, 8_000, **trained(h4=stuck, h1=heads([0.3], [1.0])))))
    assert the(found, "Four and eight heads") == "differs"
    assert the(found, "not the trained one") == "differs"


def test_figure_4_of_a_model_that_gets_worse_with_length(tmp_path):
    found = statuses(
        risks.figure_4(PlantedBench(tmp_path, 8_000, **trained(h8=heads([0.4], [BEST / 0.4], activation="linear"))))
    )
    assert the(found, "Every curve falls") == "differs"


def test_figure_4_with_too_few_prompts(tmp_path):
    found = statuses(risks.figure_4(PlantedBench(tmp_path, 80, **trained())))
    assert the(found, "At L = 40 one head is far worse") == "undecided"
    assert the(found, "of the trained models, by Monte Carlo") == "undecided"


# --- Figure 8 ---------------------------------------------------------------------------------------------------------


def test_figure_8_of_ideal_models(tmp_path):
    bench = PlantedBench(tmp_path, 10_000, linear=linear(BEST), h1=heads(**ONE_HEAD), h2=pair())
    claims, blocks = risks.figure_8(bench)
    assert {claim.status for claim in claims} == {"reproduced"}
    turn = next(claim.ours for claim in claims if "by the formula" in claim.claim)
    assert turn.value == pytest.approx(43.25, abs=1e-3)
    assert [type(block).__name__ for block in blocks] == ["Lines", "Table", "Text"]


def test_figure_8_of_linear_attention_that_was_trained_at_another_length(tmp_path):
    bench = PlantedBench(tmp_path, 10_000, linear=linear(1 / 86.5), h1=heads(**ONE_HEAD), h2=linear(BEST))
    found = statuses(risks.figure_8(bench))
    assert the(found, "turns up after it") == "differs"
    assert the(found, "by the formula") == the(found, "by Monte Carlo too") == "differs"
    assert the(found, "is 1.72") == "differs"
    assert the(found, "2 heads: the risk goes on falling") == "differs"
    assert the(found, "one head: the risk goes on falling") == "reproduced"
    assert the(found, "the risk of the formula") == "reproduced"


def test_figure_8_of_linear_attention_along_other_directions(tmp_path):
    off = recorded(heads([0.4], [BEST / 0.4], activation="linear", noise=0.5))
    found = statuses(risks.figure_8(PlantedBench(tmp_path, 10_000, linear=off, h1=heads(**ONE_HEAD), h2=pair())))
    assert the(found, "the risk of the formula") == "differs"


def test_figure_8_with_too_few_prompts(tmp_path):
    found = statuses(risks.figure_8(PlantedBench(tmp_path, 40, linear=linear(BEST), h1=heads(**ONE_HEAD), h2=pair())))
    assert the(found, "by Monte Carlo too") == "undecided"
    assert the(found, "the risk of the formula") == "undecided"
