"""Figures 4 and 8: the risk against the number of demonstrations, of models trained at L = 40 (arXiv 2503.12734).

Shorter prompts are the beginnings of longer ones, and all predictors answer the same, so that differences are paired.
Each risk is computed twice: by plain Monte Carlo as in the paper, and, on other prompts, with labels and noise
integrated out, or in closed form where there is one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import torch
from jaxtyping import Float

from icl_interp import theory
from icl_interp.circuits import Circuits
from icl_interp.estimators import GradientDescent, KernelRegressor, Predictor, bayes
from icl_interp.probing import Block, Cell, Estimate, Table, Text, Threshold, exact, mean_of, ratio_of
from icl_interp.records import Run
from icl_interp.reproduce.bench import Bench
from icl_interp.reproduce.lengths import (
    LENGTHS,
    PRINTED_AT,
    Errors,
    count,
    falling,
    furthest,
    lines_drawn,
    long_prompts,
    risk,
    squared_errors,
)
from icl_interp.reproduce.readings import BATCHES
from icl_interp.reproduce.recipes import Made, recipe
from icl_interp.reproduce.results import Claim, compare, within
from icl_interp.reproduce.trainings import MAIN
from icl_interp.surfaces import pattern_moments, predictor_risk
from icl_interp.tasks import Prompt

TRAINED_AT = MAIN.length
SETTING = {"dim": MAIN.dim, "noise_var": MAIN.noise_var}

TRAINED = {"one head": "h1", "2 heads": "h2", "4 heads": "h4", "8 heads": "h8"}
OMEGA, MU = 0.13, 3.45  # the two heads of panel (b)
STEP = 2 * OMEGA * MU
SINGLE = theory.single_head_optimum(length=TRAINED_AT, **SETTING)
MULTI, GD, DEBIASED, ONE, RIDGE = "two heads", "GD", "debiased GD", "one head of (4.12)", "ridge"
PRINTED: dict[str, dict[int, float]] = {
    "one head": {10: 0.840, 20: 0.574, 40: 0.405, 60: 0.342, 100: 0.278},
    "2 heads": {10: 0.573, 20: 0.370, 40: 0.241, 60: 0.202, 100: 0.164},
    "4 heads": {10: 0.577, 20: 0.364, 40: 0.245, 60: 0.202, 100: 0.167},
    "8 heads": {10: 0.592, 20: 0.368, 40: 0.244, 60: 0.203, 100: 0.164},
    MULTI: {10: 0.60, 40: 0.243, 100: 0.164},
    GD: {10: 0.64, 40: 0.241, 100: 0.162},
    DEBIASED: {10: 0.61, 40: 0.243, 100: 0.1635},
    ONE: {10: 0.87, 40: 0.407, 100: 0.283},
    RIDGE: {10: 0.194, 40: 0.1145, 100: 0.105},
}
LINEAR = "linear attention"
TURN = 43  # where the risk of linear attention is least, by the formula at the best weights for L = 40

INTEGRATED = 16  # part of the schedule's prompts, where labels are integrated out

TWICE = Threshold("three standard errors of the difference of two computations of one risk", high=3.0)
WORSE = Threshold("a larger risk, on the same prompts", low=0.0)
ALIKE = Threshold("the published curves carry an error of 3 %; one head is 68 % above two", 0.97, 1.03)
SAME = Threshold("the published curves are 3 % apart; η scatters by 0.9 %, the risk at L = 10 as much", 0.97, 1.03)
FAR = Threshold("half as much again", low=1.5)
AT_TURN = Threshold("43 ± 4: weights 10 % off their best turn there", TURN - 4, TURN + 4)
AT_LONGEST = 0.03, "1 % of a, its scatter over the training, is 2.5 % of the risk there"


# --- Figure 4 ---------------------------------------------------------------------------------------------------------


@recipe("figure-4", "Risk against the number of demonstrations", "Figure 4, Observation 3", runs=[*TRAINED.values()])
def figure_4(bench: Bench) -> Made:
    """(a) trained models; (b) heads of the theory, gradient descent and ridge."""
    trained = {name: bench.run(run).circuits() for name, run in TRAINED.items()}
    predictors: dict[str, Predictor] = {name: circuits.predict for name, circuits in trained.items()}
    errors = squared_errors({**predictors, **_estimators()}, long_prompts(bench, "figure-4"))
    again = {**{name: _of_model(bench, circuits) for name, circuits in trained.items()}, **_of_estimators(bench)}
    part_b = [name for name in again if name not in trained]
    claims = [
        _agree(errors, again, list(trained), "(a) The risks of the trained models", "labels integrated out"),
        _agree(errors, again, [GD, DEBIASED], "(b) The risks of gradient descent", "their closed forms"),
        _agree(errors, again, [MULTI, ONE, RIDGE], "(b) The risks of heads and ridge", "labels integrated out"),
        _shown(again, list(trained), "(a)"),
        _shown(again, part_b, "(b)"),
        *_orders(errors),
        _alike(errors),
        falling(errors, "Every curve falls with L"),
        _not_trained(bench, errors, trained["one head"]),
    ]
    return claims, [
        lines_drawn({name: errors[name] for name in trained}, "(a) Trained at L = 40", "models of 1, 2, 4 and 8 heads"),
        lines_drawn({n: errors[n] for n in part_b}, "(b) Estimators", "two heads, one head, GD and ridge"),
        _table(errors, again, list(trained), "(a) Trained at L = 40"),
        _table(errors, again, part_b, "(b) Estimators"),
        Text(
            f"Curves: {count(bench):,} prompts, for each length their beginnings. Tables: the same, and with labels "
            f"and noise integrated out over {count(bench, INTEGRATED):,} other prompts. Two heads: ω = ±{OMEGA}, μ = "
            f"±{MU}, and both kinds of gradient descent have η = 2ωμ = {STEP:.3f}. One head of (4.12): "
            f"({SINGLE[0]:.3f}, {SINGLE[1]:.3f}), best for L = 40 by the approximate loss. Ridge: λ = dσ². Models are "
            "those of the last iterate. Published numbers were read off plots and are not judged: each carries a Monte "
            "Carlo error of a few per cent."
        ),
    ]


def _estimators() -> dict[str, Predictor]:
    plus, minus = KernelRegressor(OMEGA, MU), KernelRegressor(-OMEGA, -MU)
    return {
        MULTI: lambda prompt: plus(prompt) + minus(prompt),
        GD: GradientDescent(STEP),
        DEBIASED: GradientDescent(STEP, debiased=True),
        ONE: KernelRegressor(*SINGLE),
        RIDGE: bayes(MAIN),
    }


# --- The second computation -------------------------------------------------------------------------------------------


def _of_model(bench: Bench, circuits: Circuits) -> dict[int, Estimate]:
    """A model's risk: its ideal heads', labels integrated out, and what it differs from them by."""
    omega, mu = circuits.omega[0], circuits.mu[0, :, 0]
    return {L: predictor_risk(circuits.predict, omega, mu, _again(bench, L), MAIN) for L in PRINTED_AT}


def _of_estimators(bench: Bench) -> dict[str, dict[int, Estimate]]:
    pair = np.array([1.0, -1.0])
    return {
        MULTI: {L: pattern_moments(OMEGA * pair, _again(bench, L), MAIN).risk(MU * pair) for L in PRINTED_AT},
        GD: {L: exact(theory.gd_risk(STEP, length=L, **SETTING)) for L in PRINTED_AT},
        DEBIASED: {L: exact(theory.debiased_gd_risk(STEP, length=L, **SETTING)) for L in PRINTED_AT},
        ONE: {
            L: pattern_moments(np.array(SINGLE[:1]), _again(bench, L), MAIN).risk(np.array(SINGLE[1:]))
            for L in PRINTED_AT
        },
        RIDGE: {L: ridge_risk(_again(bench, L)) for L in PRINTED_AT},
    }


def _again(bench: Bench, length: int) -> Iterator[Prompt]:
    return bench.prompts(f"figure-4, integrated, L = {length}", MAIN, count(bench, INTEGRATED), length=length)


def ridge_risk(prompts: Iterator[Prompt]) -> Estimate:
    """σ²(1 + tr (XᵀX + dσ²I)⁻¹), averaged over covariates: β's posterior has covariance σ²(XᵀX + dσ²I)⁻¹."""
    noise, identity = MAIN.noise_var, torch.eye(MAIN.dim, dtype=torch.float64)
    spreads = [
        torch.linalg.inv(prompt.x.mT @ prompt.x + MAIN.dim * noise * identity).diagonal(dim1=1, dim2=2).sum(1)
        for prompt in prompts
    ]
    return mean_of(noise * (1 + torch.cat(spreads).numpy()))


# --- What is claimed --------------------------------------------------------------------------------------------------


def _agree(errors: Errors, again: Mapping[str, dict[int, Estimate]], names: list[str], whose: str, how: str) -> Claim:
    """The two computations differ by no more than their errors."""
    pairs = {(name, L): (risk(errors, name, L), again[name][L]) for name in names for L in PRINTED_AT}
    (name, L), most = furthest(pairs)
    return compare(
        f"{whose}, by Monte Carlo, are those of {how}",
        exact(most),
        TWICE,
        f"At most {most:.1f} standard errors apart, over {len(pairs)} risks; that is {name} at L = {L}: "
        f"{pairs[name, L][0]} and {pairs[name, L][1]}.",
    )


def _shown(again: Mapping[str, dict[int, Estimate]], names: list[str], panel: str) -> Claim:
    """The published numbers that are furthest from ours."""
    off = {(name, L): PRINTED[name][L] / again[name][L].value - 1 for name in names for L in PRINTED[name]}
    (name, L), _ = max(off.items(), key=lambda item: abs(item[1]))
    ours, mean = again[name][L], np.mean(np.abs(list(off.values())))
    return Claim(
        f"{panel} The published risks, furthest from ours: {name} at L = {L}",
        "shown",
        f"Ours is {ours}. Over the {len(off)} numbers that could be read, the published ones are {mean:.1%} off on "
        f"average, and {off[name, L]:+.1%} here.",
        paper=f"{PRINTED[name][L]:g}",
        ours=ours,
    )


def _orders(errors: Errors) -> list[Claim]:
    """Who is better than whom at the training length."""
    at = {name: rows[LENGTHS.index(TRAINED_AT)] for name, rows in errors.items()}
    return [
        compare(
            "At L = 40 ridge is better than two heads",
            mean_of(at[MULTI] - at[RIDGE]),
            WORSE,
            f"Two heads have {mean_of(at[MULTI])}, ridge {mean_of(at[RIDGE])}; the difference is paired.",
            paper=".243 − .1145",
        ),
        *(
            compare(
                f"At L = 40 two heads do as {name} does",
                ratio_of(at[MULTI], at[name]),
                ALIKE,
                f"The ratio of their risks; {name} has {mean_of(at[name])}. At L = 10 it is "
                f"{ratio_of(errors[MULTI][0], errors[name][0])}.",
                paper=f"{PRINTED[MULTI][40] / PRINTED[name][40]:.2f}",
            )
            for name in (GD, DEBIASED)
        ),
        compare(
            "At L = 40 one head is far worse than two",
            ratio_of(at[ONE], at[MULTI]),
            FAR,
            f"The ratio of their risks; one head of (4.12) has {mean_of(at[ONE])}.",
            paper=f"{PRINTED[ONE][40] / PRINTED[MULTI][40]:.2f}",
        ),
    ]


def _alike(errors: Errors) -> Claim:
    """More than two heads bring nothing."""
    ratios = {
        (name, L): ratio_of(errors[name][at], errors["2 heads"][at])
        for name in ("4 heads", "8 heads")
        for at, L in enumerate(LENGTHS)
    }
    (name, L), worst = max(ratios.items(), key=lambda item: abs(item[1].value - 1))
    return compare(
        "(a) Four and eight heads have the curve of two",
        worst,
        SAME,
        f"The largest deviation of a ratio of risks from 1, over all lengths: {name} to two at L = {L}.",
        paper="1.03 (.592/.573, 8 heads at L = 10)",
    )


def _not_trained(bench: Bench, errors: Errors, trained: Circuits) -> Claim:
    """The approximate loss' best head is not the best head."""
    theirs, ours = np.array([SINGLE[1], 0.0]), np.array([0.0, trained.mu[0, 0, 0]])
    omega = np.array([SINGLE[0], trained.omega[0, 0]])
    prompts = bench.prompts("figure-4, one head", MAIN, count(bench))
    change = [mean_of(errors[ONE][LENGTHS.index(L)] - errors["one head"][LENGTHS.index(L)]) for L in (10, 100)]
    return compare(
        "The one head of panel (b) is not the trained one of panel (a), and worse at L = 40",
        pattern_moments(omega, prompts, MAIN).risk_difference(theirs, ours),
        WORSE,
        f"The risk at ({SINGLE[0]:.3f}, {SINGLE[1]:.3f}) minus that at the trained head's ({abs(omega[1]):.3f}, "
        f"{abs(ours[1]):.3f}), labels integrated out. By Monte Carlo it is {change[0]} at L = 10, {change[1]} at 100.",
        paper=".407 − .405",
    )


# --- Figure 8 ---------------------------------------------------------------------------------------------------------


@recipe("figure-8", "Longer prompts than in training", "Figure 8", runs=["linear", "h1", "h2"])
def figure_8(bench: Bench) -> Made:
    """Softmax attention goes on getting better; linear attention, which learned to divide by 40, does not."""
    models = {LINEAR: bench.run("linear"), "one head": bench.run("h1"), "2 heads": bench.run("h2")}
    circuits = {name: run.circuits() for name, run in models.items()}
    predictors: dict[str, Predictor] = {name: each.predict for name, each in circuits.items()}
    errors = squared_errors(predictors, long_prompts(bench, "figure-8"))
    slope, last = late_slope(models[LINEAR]), linear_slope(circuits[LINEAR])
    best = 1 / (TRAINED_AT + 2 * HALF)
    claims = [
        *(
            falling({name: errors[name]}, f"Softmax attention, {name}: the risk goes on falling after L = 40")
            for name in ("one head", "2 heads")
        ),
        _turns(errors[LINEAR]),
        compare(
            "The risk of linear attention is least just after the training length, by the formula",
            slope.map(turning_point),
            AT_TURN,
            f"Where R(L') = 1 + σ² − 2aL' + a²(L'² + (d(1 + σ²) + 1)L') is least: 1/a − (d(1 + σ²) + 1)/2, for the "
            f"mean a = {slope} of the last fifth of training; {turning_point(best):.2f} for the best a at L = 40, "
            f"{best:.5f}.",
            paper=f"just after 40 ({TURN} by the formula)",
        ),
        compare(
            "It is least there by Monte Carlo too",
            fitted_turn(errors[LINEAR]),
            AT_TURN,
            f"The minimum of the parabola in L' through the measured risks of the last iterate, whose a = {last:.5f}; "
            f"by the formula it is at {turning_point(last):.2f}.",
            paper=f"just after 40 ({TURN} by the formula)",
        ),
        compare(
            "At L = 100 its risk is 1.72",
            slope.map(lambda a: linear_risk(a, 100)),
            within(AT_LONGEST[0], AT_LONGEST[1], linear_risk(best, 100)),
            f"By the formula for the mean a of the last fifth; the last iterate's has {linear_risk(last, 100):.3f}, "
            f"and by Monte Carlo it has {risk(errors, LINEAR, 100)}.",
            paper=f"{linear_risk(best, 100):.2f}, by the formula",
        ),
        _as_formula(errors, last),
    ]
    return claims, [
        lines_drawn(errors, "Trained at L = 40", "linear attention, which turns up after 40, and softmax attention"),
        _linear_table(errors, slope.value, last, best),
        Text(
            f"{count(bench):,} prompts, for each length their beginnings; models of the last "
            "iterate. Linear attention predicts a Σ y_ℓ x_ℓᵀx_q, without dividing by the number of demonstrations; a = "
            "Σ μω, and L'a is its effective learning rate."
        ),
    ]


HALF = (1 + MAIN.dim * (1 + MAIN.noise_var)) / 2


def linear_slope(circuits: Circuits) -> float:
    """a, where linear attention predicts a Σ y_ℓ x_ℓᵀx_q."""
    return float(circuits.omega[0] @ circuits.mu[0, :, 0]) * circuits.slope


def late_slope(run: Run) -> Estimate:
    """Mean a over the last fifth of training, with a t-interval from the means of successive batches."""
    assert run.dynamics is not None  # the bench trained it
    slopes = np.array([linear_slope(run.circuits(step)) for step in run.dynamics.late_steps()])
    batches = np.array([batch.mean() for batch in np.array_split(slopes, BATCHES) if len(batch)])
    value, half = float(slopes.mean()), mean_of(batches).half
    return Estimate(value, value - half, value + half, "training time")


def linear_risk(slope: float, length: int) -> float:
    """R(L') of linear attention: gradient descent with the step aL'; infinite where a is."""
    return theory.gd_risk(slope * length, length=length, **SETTING) if np.isfinite(slope) else np.inf


def turning_point(slope: float) -> float:
    """Where R(L') is least: 1/a − (d(1 + σ²) + 1)/2."""
    return 1 / slope - HALF


def fitted_turn(errors: Float[np.ndarray, "lengths prompts"]) -> Estimate:
    """The minimum of the least-squares parabola in L through the mean errors.

    Its coefficients are linear in the errors, so each prompt has its own, and the minimum is a ratio of their means.
    """
    _, linear, square = np.linalg.pinv(np.vander(np.array(LENGTHS, dtype=float), 3, increasing=True)) @ errors
    return ratio_of(-linear, 2 * square)


def _turns(errors: Float[np.ndarray, "lengths prompts"]) -> Claim:
    """It is worse both below and above the training length."""
    short, trained, long = (errors[LENGTHS.index(L)] for L in (10, TRAINED_AT, 60))
    worse = mean_of(short - trained), mean_of(long - trained)
    return compare(
        "The risk of linear attention falls up to the training length and turns up after it",
        min(worse, key=lambda each: each.low),
        WORSE,
        f"At L = 40 it is {mean_of(trained)}, more by {worse[0]} at 10 and by {worse[1]} at 60; paired, and the "
        "smaller one counts.",
        paper="turns up just after 40",
    )


def _as_formula(errors: Errors, slope: float) -> Claim:
    pairs = {L: (risk(errors, LINEAR, L), exact(linear_risk(slope, L))) for L in LENGTHS}
    L, most = furthest(pairs)
    return compare(
        "The trained linear attention has the risk of the formula at all lengths",
        exact(most),
        TWICE,
        f"At most {most:.1f} standard errors between Monte Carlo and the formula at the model's own a = "
        f"{slope:.5f}, at L = {L}: {pairs[L][0]} and {linear_risk(slope, L):.4f}.",
    )


# --- What is shown ----------------------------------------------------------------------------------------------------


def _table(errors: Errors, again: Mapping[str, dict[int, Estimate]], names: list[str], title: str) -> Block:
    rows: list[tuple[Cell, ...]] = [
        (name, L, risk(errors, name, L), again[name][L], PRINTED[name].get(L)) for name in names for L in PRINTED_AT
    ]
    return Table(
        ("", "L", "Monte Carlo", "integrated or exact", "published"),
        tuple(rows),
        alt="Risks at five lengths: by Monte Carlo, by a second computation, and as published.",
        title=title,
    )


def _linear_table(errors: Errors, mean: float, last: float, best: float) -> Block:
    rows: list[tuple[Cell, ...]] = []
    for L in (10, 20, 40, 50, 60, 80, 100):
        formulas = (float(f"{linear_risk(a, L):.4f}") for a in (last, mean, best))
        rows.append((L, risk(errors, LINEAR, L), *formulas, *(risk(errors, n, L) for n in ("one head", "2 heads"))))
    return Table(
        ("L", "linear, measured", "formula at its a", "mean a of the last fifth", "best a", "one head", "2 heads"),
        tuple(rows),
        alt="Risks of linear attention beside its formula, and of softmax attention, at seven lengths.",
        title="Linear attention and its formula",
    )
