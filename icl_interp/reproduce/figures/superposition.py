"""Figure 19 and Table 2: three heads for two tasks, in superposition (arXiv 2503.12734, section 5.4 and (A.3)–(A.4)).

N tasks need two heads each to be kept apart; with fewer, trained heads serve several tasks at once.  What their ω and μ
have to satisfy is Σ_h μ_n^h = 0 and Σ_h μ_n^h ω_i^h = η_n on the features of task n and 0 elsewhere.  That leaves room:
seeds agree on these sums and not on the entries, so ours are not compared with the printed ones entry by entry.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from icl_interp.probing import Block, Cell, Table, Threshold, mean_of
from icl_interp.reproduce.bench import Bench
from icl_interp.reproduce.recipes import Made, recipe
from icl_interp.reproduce.results import Claim, compare
from icl_interp.reproduce.task_claims import division_claim, formulas, mode_claims, solution_claims, worst_run
from icl_interp.reproduce.task_pictures import (
    design_said,
    group_columns,
    groups_tabled,
    population_drawn,
    users_said,
)
from icl_interp.reproduce.task_quantities import (
    Mu,
    Omega,
    Uses,
    distance,
    group_means,
    group_spread,
    imbalance,
    off_steps,
    off_support,
    parts,
    users_of,
)
from icl_interp.reproduce.task_readings import Ended, Population
from icl_interp.sharing import SHARED, own_steps

# Table 2 as printed: ω on the features of the first task alone, of the second alone and of both; μ of each task.
PRINTED_OMEGA = {
    (0,): np.array([-0.0316, 0.0779, -0.0837]),
    (1,): np.array([-0.0689, 0.0, 0.0927]),
    (0, 1): np.array([-0.0893, 0.0870, 0.0152]),
}
PRINTED_MU = np.array([[-3.9911, -7.0742], [6.9204, 2.3371], [-2.8739, 4.7399]])

ONE_GROUP = Threshold("0.01; groups of one head are 0.2 apart and more", high=0.05)
SERVES_BOTH = Threshold("where modes III and IV are parted: dedicated heads have up to 0.23", low=SHARED)
CLOSE = Threshold("superposed heads have 0.4 %; tasks that are not told apart cost 17 %", high=0.01)


# --- Figures ----------------------------------------------------------------------------------------------------------


@recipe(
    "figure-19",
    "Two tasks, three heads: superposition",
    "Figure 19, section 5.4, mode IV, (A.3)–(A.4)",
    runs=["two-tasks-h3", "two-tasks-h4"],
)
def figure_19(bench: Bench) -> Made:
    """Three heads do the work of four, as some serve both tasks."""
    population, whole = Population.of(bench, "two-tasks-h3"), bench.schedule.whole
    runs = population.those("IV")
    claims = [
        *mode_claims(population, "IV", whole),
        *solution_claims(runs, population, whole),
        _service_claim(runs, whole),
        _loss_claim(population, Population.of(bench, "two-tasks-h4"), whole),
        division_claim(runs, population, whole),
    ]
    run = bench.runs("two-tasks-h3")[population.drawn("IV")]
    return claims, population_drawn(run, population, "IV", own_steps(population.task), formulas(population))


@recipe("table-2", "Superposition in numbers", "Table 2, (A.3)–(A.4)", runs=["two-tasks-h3"])
def table_2(bench: Bench) -> Made:
    """ω by group of features and μ by task of three heads: not the printed entries, but what they have in common."""
    population, whole = Population.of(bench, "two-tasks-h3"), bench.schedule.whole
    runs, drawn = population.those("IV"), population.runs[population.drawn("IV")]
    printed = _printed_omega(population.uses), PRINTED_MU
    papers = [
        f"{quantity(*printed):.1%}"
        for quantity in (imbalance, off_steps(own_steps(population.task)), off_support(population.uses))
    ]
    claims = [
        *solution_claims(runs[:1], population, whole, papers),
        worst_run(
            "on a group of features a head's ω is one number: the deviation, relative to the head's largest |ω|",
            runs,
            group_spread(population.uses),
            ONE_GROUP,
            paper="one number for each group",
            whole=whole,
        ),
        division_claim(runs, population, whole),
        *_printed_claims(runs, population),
    ]
    blocks: list[Block] = [
        groups_tabled(drawn, population.uses),
        _printed_table(),
        _sums_table(drawn, population),
        design_said(population, "IV"),
    ]
    return claims, blocks


# --- Claims -----------------------------------------------------------------------------------------------------------


def _service_claim(runs: Sequence[Ended], whole: bool) -> Claim:
    """By what removing a head does, as the mode itself is read off the weights."""
    served = np.array([run.by_effect.shared for run in runs])
    ours = mean_of(served, "seeds")
    sentence = "No run ended in this mode."
    if len(runs):
        sentence = (
            "When the head that does most for a second task is removed, the root of that task's rise in risk is "
            f"{ours.value:.2f} of the first task's, each relative to what all heads do; from {served.min():.2f} to "
            f"{served.max():.2f} in {len(runs)} runs."
        )
    return compare(
        "a head serves several tasks: what it does for its second, relative to its first",
        ours,
        SERVES_BOTH,
        sentence,
        paper="superposition",
        reached=whole,
    )


def _loss_claim(three: Population, four: Population, whole: bool) -> Claim:
    """What superposition costs; runs of one seed saw the same prompts, so most of the noise of their losses cancels."""
    dedicated = {run.seed: run.loss for run in four.those("III")}
    pairs = np.array([(run.loss, dedicated[run.seed]) for run in three.those("IV") if run.seed in dedicated])
    pairs = pairs.reshape(-1, 2)
    ours = mean_of(pairs[:, 0] / pairs[:, 1] - 1, "seeds")
    sentence = "No seed ended in mode IV with three heads and in mode III with four."
    if len(pairs):
        losses = pairs.mean(0)
        risks = formulas(three)
        sentence = (
            f"Three heads in superposition have a loss of {losses[0]:.4f}, four dedicated ones {losses[1]:.4f}: "
            f"{ours.value:.2%} more, the mean over {len(pairs)} seeds. Debiased gradient descent on every task's "
            f"features has {risks['IV']:.4f}, one that all tasks share {risks['II']:.4f}."
        )
    return compare(
        "three heads do as well as four: how much larger their loss is",
        ours,
        CLOSE,
        sentence,
        paper="close to 0",
        reached=whole,
    )


def _printed_claims(runs: Sequence[Ended], population: Population) -> list[Claim]:
    """How far ours are from the printed entries, which is not for or against anything."""
    if not runs:
        return []
    patterns = [*PRINTED_OMEGA]
    printed = parts(PRINTED_OMEGA, PRINTED_MU)
    apart = np.array(
        [distance(parts(group_means(run.mean[0], population.uses), run.mean[1]), printed, patterns) for run in runs]
    )
    nearest = runs[int(apart.argmin())]
    return [
        Claim(
            "the entries of Table 2",
            "shown",
            f"How heads divide the work differs from the printed table by {apart.min():.2f} of its norm in the nearest "
            f"run, seed {nearest.seed}, and by {np.median(apart):.2f} in the median of {len(runs)} runs.",
            paper="one solution of many",
            ours=mean_of(apart, "seeds"),
        )
    ]


# --- Tables -----------------------------------------------------------------------------------------------------------


def _printed_omega(uses: Uses) -> Omega:
    """The printed ω, feature by feature."""
    return np.stack([PRINTED_OMEGA[users] for users in users_of(uses)], axis=1)


def _printed_table() -> Table:
    columns = group_columns([*PRINTED_OMEGA], PRINTED_MU.shape[1])
    numbers = np.column_stack([*PRINTED_OMEGA.values(), PRINTED_MU]).tolist()
    return Table(
        columns,
        tuple((f"{h + 1} of the paper", *row) for h, row in enumerate(numbers)),
        alt="ω of every head by group of features and μ by task, as the paper prints them.",
        title="As printed",
    )


def _sums_table(run: Ended, population: Population) -> Table:
    """What the entries have to satisfy, of both tables."""
    patterns = [*group_means(run.mean[0], population.uses)]
    wanted = own_steps(population.task)
    printed = _printed_omega(population.uses), PRINTED_MU

    def step(omega: Omega, mu: Mu, task: int, users: tuple[int, ...]) -> float:
        return float(mu[:, task] @ group_means(omega, population.uses)[users])

    rows: list[tuple[Cell, ...]] = []
    for n, users in ((n, users) for n in range(len(wanted)) for users in patterns):
        rows.append(
            (
                f"E of y{n} on features of {users_said(users)}",
                run.measured(lambda omega, mu, n=n, users=users: step(omega, mu, n, users)),
                float(f"{step(*printed, n, users):.4f}"),
                float(f"{wanted[n].max():.4f}") if n in users else 0.0,
            )
        )
    for n in range(len(wanted)):
        rows.append(
            (
                f"Σμ of y{n}",
                run.measured(lambda _, mu, n=n: float(mu[:, n].sum())),
                float(f"{PRINTED_MU[:, n].sum():.4f}"),
                0.0,
            )
        )
    return Table(
        ("sum", "ours", "printed", "(A.3)–(A.4)"),
        tuple(rows),
        alt="Steps of each task on each group of features and sums of μ: ours, the printed table's, and in theory.",
        title="Their sums",
    )
