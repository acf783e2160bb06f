"""Figures 16 to 18: how two tasks share one, two and four heads (arXiv 2503.12734, section 5.4).

Two regressions of four features each, two of them in common.  To first order task n is solved with steps
E_n = Σ_h μ_n^h ω^h, a number a feature, so what runs of any seed have to agree on is E, Σ_h μ_n^h and the mode, not the
entries of ω and μ.  The paper shows one run a figure; here are populations: every claim on E is about the run of the
mode that is furthest off, and each figure says how many seeds end in the paper's mode at all.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from jaxtyping import Float, Int

from icl_interp.probing import Threshold, mean_of, propagate
from icl_interp.reproduce.bench import Bench
from icl_interp.reproduce.recipes import Made, recipe
from icl_interp.reproduce.results import Claim, compare, within
from icl_interp.reproduce.task_claims import formulas, mode_claims, solution_claims, worst_run, zero_sum
from icl_interp.reproduce.task_pictures import population_drawn
from icl_interp.reproduce.task_quantities import (
    Quantity,
    leak,
    level_means,
    level_ratio,
    level_spread,
    levels,
    misread,
    off_steps,
    opposition,
    own_sizes,
    pairs_opposition,
    step_ratio,
    tasks_apart,
)
from icl_interp.reproduce.task_readings import Ended, Population, approximate_optimum, risk_optima
from icl_interp.sharing import own_steps, shared_steps

ALIKE = Threshold("runs whose tasks share their heads are at 0.003 and below, tasks told apart at 0.97", high=0.03)
OPPOSITE = Threshold("nothing that a heat map shows; runs are at 0.01 to 0.03", high=0.1)
LARGER = Threshold("half-way from one level, at 1, to where the risk is least, at 1.2", low=1.1)
ONE_LEVEL = Threshold("single heads are at 0.002 to 0.003; their two levels are 0.2 apart", high=0.03)
AT_OPTIMUM = Threshold("single heads end within 2 %; the approximate loss is 10 % off", high=0.05)
READ = Threshold("all features of all heads", high=0.0)
ALONE = Threshold("nothing that a heat map shows; 1 is a head that serves both tasks alike", high=0.1)
RATE = 0.02, "the steps of 31 runs are 0.2 to 0.4 % off"
READ_OFF = 0.1, "read off one run's colour bars, and γ, with which both go, is hardly decided by the loss"


# --- Figures ----------------------------------------------------------------------------------------------------------


@recipe("figure-16", "Two tasks, one head", "Figure 16, section 5.4, mode I", runs=["two-tasks-h1"])
def figure_16(bench: Bench) -> Made:
    """One kernel regressor for both tasks, with a larger ω on the features of both."""
    population, whole = Population.of(bench, "two-tasks-h1"), bench.schedule.whole
    runs, (_, level) = population.those("I"), levels(population.uses)
    optima, risks = risk_optima(population.task, bench.prompts("two tasks, one head", population.task))
    claims = [
        *mode_claims(population, "I", whole),
        worst_run(
            "ω is larger on the features that both tasks use: over ω elsewhere",
            runs,
            level_ratio(level),
            LARGER,
            paper="larger",
            whole=whole,
            form=".3f",
            worst="smallest",
        ),
        worst_run(
            "on either level ω is one number: the largest deviation",
            runs,
            level_spread(level),
            ONE_LEVEL,
            paper="two levels",
            whole=whole,
        ),
        worst_run(
            "μ is the same for both tasks: the difference, relative to their mean",
            runs,
            lambda _, mu: float(np.ptp(mu[0]) / abs(mu[0].mean())),
            ALIKE,
            paper="0",
            whole=whole,
        ),
        *_optimum_claims(population, optima, level, whole),
    ]
    best = optima.mean(0)
    wanted = np.tile(best[-1] * best[level], (population.task.n_outputs, 1))
    run = bench.runs("two-tasks-h1")[population.drawn("I")]
    return claims, population_drawn(run, population, "I", wanted, {"I": float(risks.mean())})


@recipe("figure-17", "Two tasks, two heads", "Figure 17, section 5.4, mode II", runs=["two-tasks-h2"])
def figure_17(bench: Bench) -> Made:
    """One preconditioned gradient descent for both tasks."""
    population, whole = Population.of(bench, "two-tasks-h2"), bench.schedule.whole
    runs, (_, level) = population.those("II"), levels(population.uses)
    wanted = np.tile(shared_steps(population.task), (population.task.n_outputs, 1))
    ratio = float(wanted.max() / wanted.min())
    values = f"{wanted.max():.4f} and {wanted.min():.4f}"
    claims = [
        *mode_claims(population, "II", whole),
        worst_run(
            f"the steps E are best for both tasks together, {values} on features of both and of one: how far off",
            runs,
            off_steps(wanted),
            Threshold(RATE[1], high=RATE[0]),
            paper="",
            whole=whole,
        ),
        worst_run(
            f"the steps are larger on features of both tasks, {ratio:.3f} times",
            runs,
            step_ratio(level),
            within(*RATE, ratio),
            paper="larger",
            whole=whole,
            form=".4f",
            worst=ratio,
        ),
        zero_sum(runs, whole),
        worst_run(
            "the two heads are opposite: ‖ω + ω′‖ over ‖ω‖ + ‖ω′‖",
            runs,
            opposition,
            OPPOSITE,
            paper="0",
            whole=whole,
        ),
        worst_run(
            "both tasks are solved alike: the distance of their E at norm 1",
            runs,
            tasks_apart,
            ALIKE,
            paper="0",
            whole=whole,
        ),
    ]
    run = bench.runs("two-tasks-h2")[population.drawn("II")]
    return claims, population_drawn(run, population, "II", wanted, formulas(population))


@recipe("figure-18", "Two tasks, four heads", "Figure 18, section 5.4, mode III", runs=["two-tasks-h4"])
def figure_18(bench: Bench) -> Made:
    """A pair of opposite heads for each task, whose support can be read off KQ."""
    population, whole = Population.of(bench, "two-tasks-h4"), bench.schedule.whole
    runs = population.those("III")
    told: list[tuple[str, Quantity, Threshold, str, str]] = [
        (
            "two opposite heads serve each task: ‖ω + ω′‖ over ‖ω‖ + ‖ω′‖ of each pair",
            pairs_opposition,
            OPPOSITE,
            "0",
            ".2%",
        ),
        ("a head's OV serves one task alone: |μ| for another, relative to its own", leak, ALONE, "0: one-hot", ".2%"),
        (
            "supports can be read off KQ: features on the wrong side of half a head's largest |ω|",
            misread(population.uses),
            READ,
            "none",
            ".0f",
        ),
    ]
    claims = [
        *mode_claims(population, "III", whole),
        *solution_claims(runs, population, whole),
        *(
            worst_run(claim, runs, quantity, threshold, paper=paper, whole=whole, form=form)
            for claim, quantity, threshold, paper, form in told
        ),
        *_size_claims(runs, population, whole),
    ]
    run = bench.runs("two-tasks-h4")[population.drawn("III")]
    return claims, population_drawn(run, population, "III", own_steps(population.task), formulas(population))


# --- Claims -----------------------------------------------------------------------------------------------------------


def _optimum_claims(
    population: Population,
    optima: Float[np.ndarray, "pieces numbers"],
    level: Int[np.ndarray, "features"],
    whole: bool,
) -> list[Claim]:
    """At the optimum of the true risk, not at the approximate loss's."""
    read = level_means(level)
    found = np.array([[*read(run.mean[0]), np.abs(run.mean[1]).mean()] for run in population.those("I")])
    if not len(found):
        return []
    ours, best = (
        [mean_of(column, covers) for column in of.T] for of, covers in ((found, "seeds"), (optima, "prompts"))
    )
    approximate = approximate_optimum(population.task)
    miss = propagate(
        lambda *numbers: float(np.abs(numbers[0] / numbers[1] - 1).max()),
        *((np.array([n.value for n in of]), np.array([n.half for n in of])) for of in (ours, best)),
    )
    off = float(np.abs(found.mean(0) / approximate - 1).max())
    where = _listed([number.value for number in ours])
    return [
        compare(
            "the head ends where its risk is least: relative distance",
            miss,
            AT_OPTIMUM,
            f"|ω| by level, and |μ|: {where} in the mean of {len(found)} runs; the risk of one head, the mean over "
            f"tasks, is least at {_listed([number.value for number in best])}.",
            reached=whole,
        ),
        Claim(
            "where the approximate loss, (4.1) for each task, is least",
            "shown",
            f"It is least at {_listed(approximate)}, and runs end at {where}, up to {off:.0%} off: as for a single "
            f"task, its error at L = {population.task.length} moves the optimum of a single head.",
            ours=mean_of(np.abs(found / approximate - 1).max(1), "seeds"),
        ),
    ]


def _size_claims(runs: Sequence[Ended], population: Population, whole: bool) -> list[Claim]:
    """|ω| and |μ|, beside a plot."""
    sizes = np.array([own_sizes(*run.mean, population.uses) for run in runs]).reshape(-1, 2)
    return [
        compare(
            f"{name} is {paper}, of the task that a head serves",
            ours,
            within(*READ_OFF, middle),
            f"{ours}, the mean over heads and {len(runs)} runs.",
            paper=paper,
            reached=whole,
        )
        for name, ours, paper, middle in (
            ("|ω|", mean_of(sizes[:, 0], "seeds"), ".135 to .145", 0.14),
            ("|μ|", mean_of(sizes[:, 1], "seeds"), "3.3 to 3.5", 3.4),
        )
    ]


def _listed(numbers: Iterable[float]) -> str:
    return "(" + ", ".join(f"{number:.4f}" for number in numbers) + ")"
