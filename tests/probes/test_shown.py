"""What a reader sees of the built-in probes, all of them on one run."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

import icl_interp as icl
from icl_interp.probing import Equation, Estimate, Table
from icl_interp.tasks import LinearRegression
from icl_interp.testing import plant
from icl_interp_probes.head_roles import HeadRoles, HeadRolesProbe
from icl_interp_probes.kernel_fit import KernelFit
from icl_interp_probes.risk import Risk, RiskProbe
from icl_interp_probes.shown import around, furthest


@pytest.fixture(scope="module")
def analysis() -> icl.Analysis:
    return icl.analyze(icl.train(LinearRegression(3, 12), n_heads=3, steps=400, progress=False), budget=500)


def tables(analysis: icl.Analysis, probe: str) -> dict[str, Table]:
    return {block.title: block for block in analysis[probe].blocks if isinstance(block, Table)}


def test_every_probe_says_what_it_measured(analysis: icl.Analysis) -> None:
    for outcome in analysis:
        assert outcome.status == ("not_applicable" if outcome.probe == "preconditioner" else "done")  # Σ = I
        assert outcome.about.endswith(".")
        assert 100 < len(outcome.about) < 400


def test_every_table_has_a_title_and_no_number_is_words(analysis: icl.Analysis) -> None:
    for outcome in analysis:
        for table in (block for block in outcome.blocks if isinstance(block, Table)):
            assert table.title
            words = [cell for row in table.rows for cell in row if isinstance(cell, str)]
            assert not [word for word in words if "±" in word or word.strip("-−+.0123456789[], ") == ""]


def test_the_first_screen_has_heads_and_risk(analysis: icl.Analysis) -> None:
    first = [b for outcome in analysis for b in outcome.blocks if isinstance(b, Table) and b.first_screen]
    assert [table.title for table in first] == ["Heads", "Risk at L = 12"]


def test_heads_on_the_first_screen(analysis: icl.Analysis) -> None:
    result = analysis.get(HeadRoles)
    table, heads = tables(analysis, "head_roles")["Heads"], result.heads
    assert table.columns == ("head", "role", "ω", "μ", "risk without it − risk")
    for h, row in enumerate(table.rows):
        assert row == (
            h,
            heads.roles[h],
            around(heads.omega[h], heads.omega_half[h], "KQ's diagonal"),
            around(heads.mu[h, 0], heads.mu_half[h, 0], "prompts"),
            result.risk_without[h],
        )


def test_each_response_has_a_mu_of_its_own(analysis: icl.Analysis) -> None:
    result = analysis.get(HeadRoles)
    heads = replace(result.heads, mu=result.heads.mu * [1, 10], mu_half=result.heads.mu_half * [1, 2])
    table = HeadRolesProbe().blocks(replace(result, heads=heads))[0]
    assert isinstance(table, Table)
    assert table.columns[3:5] == ("μ_0", "μ_1")
    assert table.rows[1][4] == around(heads.mu[1, 1], heads.mu_half[1, 1], "prompts")


def test_risk_on_the_first_screen(analysis: icl.Analysis) -> None:
    result = analysis.get(Risk)
    table, at = tables(analysis, "risk")["Risk at L = 12"], result.lengths.index(12)
    assert table.columns == ("predictor", "risk", "model's risk − its risk", "distance")
    names = "model", "GD", "debiased GD", "ridge", "kernel", "one positive head", "one negative head"
    assert tuple(row[0] for row in table.rows) == names == result.names
    assert table.rows[0][2:] == (None, None)
    for i, (_, risk, excess, distance) in enumerate(table.rows):
        assert risk == around(result.risk[i, at], result.risk_half[i, at], "prompts")
        if i:
            assert excess == around(result.excess[i, at], result.excess_half[i, at], "prompts")
            assert distance == result.distance[i - 1]


def test_no_column_for_shifted_covariates_where_nothing_was_shifted(analysis: icl.Analysis) -> None:
    result = analysis.get(Risk)
    for shifted in ((), result.distance_shifted):
        blocks = RiskProbe().blocks(replace(result, distance_shifted=shifted))
        (details,) = (block for block in blocks if isinstance(block, Table) and block.title == "Predictors")
        assert details.columns == ("predictor", "parameters", "scale", "distance, shifted x")[: 4 if shifted else 3]


def test_the_fit_shows_what_is_fitted_and_theory_beside_it() -> None:
    analysis = icl.analyze(plant(roles=("positive", "negative")).run, budget=500, probes=["kernel_fit"])
    result = analysis.get(KernelFit)
    assert isinstance(analysis["kernel_fit"].blocks[0], Equation)
    rows = {row[0]: row[1:] for row in tables(analysis, "kernel_fit")["Measured and in theory"].rows}
    assert rows["η = Σ ωμ"] == (result.eta, result.eta_star)
    assert rows["Σμ, positive heads"] == (result.positive_mu, result.mu_gamma)
    assert result.mu_gamma is not None
    wanted = Estimate(-result.mu_gamma.value, -result.mu_gamma.high, -result.mu_gamma.low, result.mu_gamma.covers)
    assert rows["Σμ, negative heads"] == (result.negative_mu, wanted)


@pytest.mark.parametrize(
    ("value", "half"), [(np.nan, 0.1), (np.nan, np.inf), (np.inf, 0.1), (-np.inf, np.inf), (1.0, np.inf)]
)
def test_what_is_not_finite_has_no_end(value: float, half: float) -> None:
    estimate = around(value, half, "prompts")
    assert (estimate.low, estimate.high) == (-np.inf, np.inf)
    np.testing.assert_equal(estimate.value, value)


@pytest.mark.parametrize("truth", [(1.05, 1.05, 1.05), (1.1, 1.0, 0.97), (0.9, 1.1, 1.0)])
def test_the_furthest_of_several_ratios_is_covered_though_it_was_picked_by_chance(truth):
    rng, held = np.random.default_rng(0), 0
    for _ in range(400):
        ratios = [Estimate(v, v - 0.0392, v + 0.0392, "prompts") for v in truth + 0.02 * rng.standard_normal(3)]
        at, found = furthest(ratios)
        assert found.value == ratios[at].value
        held += found.low <= max(truth, key=lambda ratio: abs(math.log(ratio))) <= found.high
    assert held >= 0.93 * 400
