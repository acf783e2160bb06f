"""Pictures of several tasks: circuits with a label for each response, ω by feature group, steps, and how runs ended."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from jaxtyping import Bool, Float

from icl_interp.probing import Block, Cell, Estimate, Heatmap, Table, Text, rounded
from icl_interp.records import Run
from icl_interp.reproduce.task_quantities import group_means, users_of
from icl_interp.reproduce.task_readings import PROMPTS, Ended, Population
from icl_interp.sharing import MODES, Mode

IN_WORDS = {
    "I": "one kernel regressor for all tasks",
    "II": "one preconditioned GD for all tasks",
    "III": "heads of their own for each task",
    "IV": "superposition",
}


def circuits_drawn(run: Run) -> list[Block]:
    """KQ and OV of every head of the final model."""
    circuits = run.circuits()
    KQ, OV = circuits.masked()
    x, y = names_of(circuits.dim, "x"), names_of(circuits.n_outputs, "y")
    heads = names_of(circuits.n_heads, "head ")
    return [
        Heatmap(
            rounded(KQ[0]),
            heads,
            alt="KQ of every head, keys down and queries across; what no prediction sees is left out.",
            title=f"KQ, seed {run.seed}",
            row_labels=(*x, *y),
            column_labels=(*x, *y),
        ),
        Heatmap(
            rounded(OV[0, :, circuits.dim :]),
            heads,
            alt="The rows of every head's OV that predictions read, one for each task.",
            title=f"OV, seed {run.seed}",
            row_labels=y,
            column_labels=(*x, *y),
        ),
    ]


def allocation_drawn(
    run: Ended, uses: Bool[np.ndarray, "tasks features"], wanted: Float[np.ndarray, "tasks features"]
) -> list[Block]:
    """ω of every head by feature, in the order of their groups, μ, and the steps they make."""
    omega, mu = run.mean
    order = by_group(uses)
    x, y = tuple(f"x{i}" for i in order), names_of(len(uses), "y")
    heads = names_of(len(omega), "head ")
    late = f"mean of the last fifth, seed {run.seed}"
    shown: list[Block] = [
        Heatmap(
            rounded(omega[None][..., order]),
            ("ω",),
            alt=f"The diagonal of every head's KQ_11, by feature. Of {groups_said(uses)}.",
            title=f"ω, {late}",
            row_labels=heads,
            column_labels=x,
        ),
    ]
    if len(omega) > 1:  # the μ of a single head are numbers, not a picture
        shown.append(
            Heatmap(
                rounded(mu.T[None]),
                ("μ",),
                alt="The diagonal of every head's OV_22: a row a task, a column a head.",
                title=f"μ, {late}",
                row_labels=y,
                column_labels=heads,
            )
        )
    steps = Heatmap(
        rounded(np.stack([run.sharing.steps, wanted])[..., order]),
        ("found", "in theory"),
        alt="The step E of each task on each feature, as found and as theory has it.",
        title=f"Steps E = Σ μω, {late}",
        row_labels=y,
        column_labels=x,
    )
    return [*shown, steps, groups_tabled(run, uses)]


def population_drawn(
    run: Run,
    population: Population,
    mode: Mode,
    wanted: Float[np.ndarray, "tasks features"],
    formulas: Mapping[str, float],
) -> list[Block]:
    """One run, which is `population.drawn(mode)`, and how all of them ended.

    Args:
        run: with its weights.
        population: what was read off all runs.
        mode: the paper's.
        wanted: E in theory.
        formulas: the loss by mode, in theory.
    """
    return [
        *circuits_drawn(run),
        *allocation_drawn(population.runs[population.drawn(mode)], population.uses, wanted),
        states_tabled(population, formulas),
        design_said(population, mode),
    ]


def states_tabled(population: Population, formulas: Mapping[str, float]) -> Table:
    """How runs ended: counts, shares and losses."""
    states = [run.state for run in population.runs]
    known = [state for state in MODES if state in states]
    rows: list[tuple[Cell, ...]] = []
    for state in [*known, *sorted(set(states) - set(MODES))]:
        of = np.array([each == state for each in states])
        own = [run for run, mine in zip(population.runs, of, strict=True) if mine]
        losses = np.quantile([run.loss for run in own], (0, 0.5, 1))
        rows.append(
            (
                in_words(state),
                len(own),
                population.share(of),
                *(float(f"{loss:.4f}") for loss in losses),
                float(f"{formulas[state]:.4f}") if state in formulas else None,
                sum(run.confirmed for run in own),
            )
        )
    return Table(
        ("mode", "runs", "share", "lowest loss", "median", "highest", "by formula", "same mode by removing heads"),
        tuple(rows),
        alt="In which modes runs ended, their losses, and how many of these modes are found again by removing heads.",
        title=f"{heads_said(population.n_heads)}: how runs ended",
    )


def design_said(population: Population, mode: Mode) -> Text:
    """What the numbers rest on, and which run is drawn."""
    task, runs, seed = population.task, population.runs, population.runs[population.drawn(mode)].seed
    which = f"the first in mode {mode}" if population.hits(mode).any() else f"as none ended in mode {mode}"
    confirmed = sum(run.confirmed for run in runs)
    return Text(
        f"{len(runs)} seeds, {population.steps:,} steps, {len(np.unique(population.streams))} streams of prompts; "
        f"d = {task.dim}, L = {task.length}, σ² = {task.noise_var:g}, supports "
        f"{' and '.join('{' + ', '.join(f'x{i}' for i in support) + '}' for support in task.supports)}. What is shown "
        f"of one run is of seed {seed}, {which}. Modes are read off the mean (ω, μ) of the last fifth of training; "
        f"removing heads of the final model one by one, on {PROMPTS:,} prompts, finds the same mode in {confirmed} of "
        f"{len(runs)} runs. Losses are means over the last fifth of training and over tasks."
    )


def groups_tabled(run: Ended, uses: Bool[np.ndarray, "tasks features"]) -> Table:
    """ω by group of features and μ by task, as Table 2 prints them."""
    patterns = [*group_means(run.mean[0], uses)]

    def omega_of(head: int, tasks: tuple[int, ...]) -> Estimate:
        return run.measured(lambda omega, _: float(group_means(omega, uses)[tasks][head]))

    def mu_of(head: int, task: int) -> Estimate:
        return run.measured(lambda _, mu: float(mu[head, task]))

    rows = [
        (str(h), *(omega_of(h, tasks) for tasks in patterns), *(mu_of(h, n) for n in range(len(uses))))
        for h in range(len(run.mean[0]))
    ]
    return Table(
        group_columns(patterns, len(uses)),
        tuple(rows),
        alt="ω of every head by group of features and μ by task, of one of our runs.",
        title=f"ω by group of features and μ, mean of the last fifth, seed {run.seed}",
    )


def group_columns(patterns: list[tuple[int, ...]], tasks: int) -> tuple[str, ...]:
    """What the columns of Table 2 are called."""
    return ("head", *(f"ω, {users_said(users)}" for users in patterns), *(f"μ of y{n}" for n in range(tasks)))


def by_group(uses: Bool[np.ndarray, "tasks features"]) -> list[int]:
    """Features in the order of `group_means`, in their own order within a group."""
    users = users_of(uses)
    return sorted(range(len(users)), key=lambda i: (len(users[i]), users[i], i))


def groups_said(uses: Bool[np.ndarray, "tasks features"]) -> str:
    """Which features the same tasks use, in words."""
    users = users_of(uses)
    patterns = dict.fromkeys(users[i] for i in by_group(uses))
    return "; ".join(
        f"{users_said(tasks)}: {', '.join(f'x{i}' for i, own in enumerate(users) if own == tasks)}"
        for tasks in patterns
    )


def heads_said(count: int) -> str:
    """How many, in words."""
    return ("One head", "Two heads", "Three heads", "Four heads")[count - 1] if count <= 4 else f"{count} heads"


def in_words(state: str) -> str:
    """A mode with what it means; other states say it themselves."""
    return f"{state}: {IN_WORDS[state]}" if state in IN_WORDS else state


def names_of(count: int, kind: str) -> tuple[str, ...]:
    """As pictures call them: x0, x1, …"""
    return tuple(f"{kind}{i}" for i in range(count))


def users_said(tasks: tuple[int, ...]) -> str:
    """Who uses a group of features."""
    if len(tasks) < 2:
        return f"y{tasks[0]} alone" if tasks else "no task"
    return " and ".join(f"y{n}" for n in tasks)
