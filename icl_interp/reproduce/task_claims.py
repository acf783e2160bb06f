"""What is claimed of several populations: how many seeds end in a mode, and of all runs in it the one furthest off."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np

from icl_interp.probing import Estimate, Threshold, mean_of
from icl_interp.reproduce.results import Claim, compare
from icl_interp.reproduce.task_pictures import IN_WORDS, heads_said, in_words
from icl_interp.reproduce.task_quantities import (
    Quantity,
    distance,
    group_means,
    imbalance,
    off_steps,
    off_support,
    parts,
)
from icl_interp.reproduce.task_readings import Ended, Population
from icl_interp.sharing import Mode, own_steps, shared_steps, step_risks

MOST = Threshold("half of them: a mode that is what training finds is that of most seeds", low=0.5)
EVERY = Threshold("every one is a share of one", low=1.0)
ZERO_SUM = Threshold("0.001 to 0.02 in records of trained heads, 1 where all μ have one sign", high=0.03)
STEPS = Threshold("the mean iterates of 58 runs are 0.2 to 0.5 % off", high=0.02)
OFF_SUPPORT = Threshold("0.01 in the printed Table 2, and in dedicated heads; up to 0.02 in superposed ones", high=0.03)
NOTHING = Estimate(np.nan, -np.inf, np.inf, "nothing")  # of no runs
OTHERWISE = Threshold("up to 0.02 between batches of one run, 0.001 between runs of mode II, which is unique", low=0.1)


def mode_claims(population: Population, mode: Mode, whole: bool) -> list[Claim]:
    """Whether most seeds end in the paper's mode; and, where some do not, that not every one does."""
    hits, share = population.hits(mode), population.share(population.hits(mode))
    end = f"{heads_said(population.n_heads).lower()} {'ends' if population.n_heads == 1 else 'end'}"
    said = (
        f"{hits.sum()} of {len(hits)} runs end {population.steps:,} steps so: {share.value:.1%} (95 % {share.low:.1%} "
        f"to {share.high:.1%})."
    )
    usual = compare(
        f"{end} in mode {mode}, {IN_WORDS[mode]}: the share of seeds",
        share,
        MOST,
        said,
        paper="the run that is shown",
        reached=whole,
    )
    if hits.all():  # as many runs as one likes cannot say "always"; a single one refutes it
        return [usual]
    others = sorted({run.state for run in population.runs} - {mode})
    always = compare(
        f"{end} in mode {mode} always: the share of seeds",
        share,
        EVERY,
        f"{said} The others: {'; '.join(in_words(other) for other in others)}.",
        paper="no other is named",
        reached=whole,
        otherwise="does_not_hold",
    )
    return [usual, always]


def worst_run(
    claim: str,
    runs: Sequence[Ended],
    quantity: Quantity,
    threshold: Threshold,
    *,
    paper: str,
    whole: bool,
    form: str = ".2%",
    worst: Literal["largest", "smallest"] | float = "largest",
) -> Claim:
    """`quantity` of the run of a mode that does worst; "undecided" without runs.

    Args:
        claim, threshold, paper: as in `Claim`.
        runs: that are in the mode.
        quantity: of a run's mean iterate.
        whole: as `reached` in `compare`.
        form: how numbers are written in the sentence.
        worst: which value is the worst; a number means the one furthest from it.
    """
    far: dict[str, Callable[[float], float]] = {"largest": float, "smallest": lambda value: -value}
    badness = far[worst] if isinstance(worst, str) else lambda value: abs(value - worst)
    found = [(run.measured(quantity), run.seed) for run in runs]
    ours, seed = max(found, key=lambda each: badness(each[0].value), default=(NOTHING, None))
    if seed is None:
        sentence = "No run ended in this mode."
    elif len(found) == 1:
        sentence = f"It is {ours.value:{form}} in seed {seed}."
    else:
        name = {"largest": "At most", "smallest": "At least"}.get(str(worst), "Furthest off is")
        median = np.median([each.value for each, _ in found])
        sentence = (
            f"{name} {ours.value:{form}}, in seed {seed}; the median of the {len(found)} runs in this mode is "
            f"{median:{form}}."
        )
    return compare(claim, ours, threshold, sentence, paper=paper, reached=whole)


def zero_sum(runs: Sequence[Ended], whole: bool, paper: str = "0") -> Claim:
    """Σ_h μ_n^h = 0."""
    return worst_run("Σμ is zero for every task, relative to Σ|μ|", runs, imbalance, ZERO_SUM, paper=paper, whole=whole)


def solution_claims(
    runs: Sequence[Ended], population: Population, whole: bool, papers: Sequence[str] = ("0", "0.916", "0")
) -> list[Claim]:
    """(A.3)–(A.4): Σμ = 0, and E = η on the features of a task and 0 off them."""
    wanted, uses = own_steps(population.task), population.uses
    etas = " and ".join(dict.fromkeys(f"{row.max():.3f}" for row in wanted))
    return [
        zero_sum(runs, whole, papers[0]),
        worst_run(
            f"on its own features every task has the step η = {etas}: how far E is off, relative to η",
            runs,
            off_steps(wanted),
            STEPS,
            paper=papers[1],
            whole=whole,
        ),
        worst_run(
            "on the others' features it has none: the largest |E| there, relative to η",
            runs,
            off_support(uses),
            OFF_SUPPORT,
            paper=papers[2],
            whole=whole,
        ),
    ]


def division_claim(runs: Sequence[Ended], population: Population, whole: bool) -> Claim:
    """Solutions are not unique."""
    uses = population.uses
    divisions = [parts(group_means(run.mean[0], uses), run.mean[1]) for run in runs]
    patterns = [*group_means(np.zeros((1, uses.shape[1])), uses)]
    apart = np.array([[distance(one, other, patterns) for other in divisions] for one in divisions])
    count = len(runs)
    ours = mean_of(apart.sum(1) / (count - 1), "seeds") if count > 1 else NOTHING
    sentence = "Fewer than two runs ended in this mode."
    if count > 1:
        others = apart[~np.eye(count, dtype=bool)]
        sentence = (
            f"What each head adds to each task's steps differs by {ours.value:.2f} of its norm between two of {count} "
            f"runs on average, from {others.min():.2f} to {others.max():.2f}, up to the order of heads and the names "
            "of tasks."
        )
    return compare(
        "solutions are not unique: the distance between how two runs divide the work",
        ours,
        OTHERWISE,
        sentence,
        paper="two published runs differ",
        reached=whole,
    )


def formulas(population: Population) -> dict[str, float]:
    """What debiased gradient descent risks with the steps of each mode, the mean over tasks, which is the loss."""
    task = population.task
    shared = np.tile(shared_steps(task), (task.n_outputs, 1))
    risks = [step_risks(task, steps).mean() for steps in (shared, own_steps(task))]
    return {"II": float(risks[0]), "III": float(risks[1]), "IV": float(risks[1])}
