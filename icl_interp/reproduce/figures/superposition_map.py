"""When do heads serve several tasks at once?  A map over tasks, overlaps and heads, which the paper does not have.

The paper shows one pair of tasks with one to four heads (arXiv 2503.12734, section 5.4): mode I with one head, II with
up to N, IV between N and 2N, III from 2N on.  Here are two tasks to four, that share no feature, some or all, with one
head to 2N + 1, and many seeds of each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np

from icl_interp.probing import Block, Cell, Heatmap, Lines, Table, Text, Threshold, mean_of, rounded
from icl_interp.reproduce.bench import Bench
from icl_interp.reproduce.census import KINDS, Census, Kind, Reading, share_in
from icl_interp.reproduce.recipes import Made, recipe
from icl_interp.reproduce.results import Claim, compare
from icl_interp.reproduce.trainings import OVERLAPS, SCHEDULES, sites
from icl_interp.sharing import MODES, SWAPPED

OWN = "our own"  # where the paper has a number, for claims that it does not make
Where = Callable[[Census], bool]

AS_A_RULE = Threshold("in nine runs of ten: some may take another way", low=0.9)
NONE_AT_ALL = Threshold("not one, which a few hundred runs can only show to within 2 %", high=0.02)
AS_GOOD = Threshold(
    "5 %: attention that is not linear costs 0.5 to 2 % where heads suffice, one head less 20 %", high=0.05
)

WHAT: dict[Kind, str] = {
    "I": "one kernel regressor for all tasks",
    "II": "one debiased, preconditioned gradient descent for all tasks",
    "III": "heads of its own for each task",
    "IV": "superposition: every task is resolved by heads that serve several",
    "packed": "the best steps that H − 1 directions allow, where tasks are more: each disturbs the others a little",
    "swapped": f"{SWAPPED:.0%} or more of a task's steps come from heads that attend by its labels and read covariates",
    "other": "anything else, most often a task that is left with heads of one sign, and so with their bias",
}


@recipe(
    "superposition-map",
    "When heads serve several tasks",
    "section 5.4, for one pair of tasks; the map is our own",
    runs=("map-*",),
)
def superposition_map(bench: Bench) -> Made:
    """How often each mode arises, at what risk, and how many heads it takes."""
    censuses = [Census.of(site, bench.runs(site.training)) for site in sites(bench.schedule)]
    reached = bench.schedule.map_steps >= SCHEDULES["paper"].map_steps
    return claims_of(censuses, reached=reached), blocks_of(censuses)


# --- What is claimed --------------------------------------------------------------------------------------------------


def claims_of(censuses: Sequence[Census], *, reached: bool) -> list[Claim]:
    """The paper's modes as shares of runs, and what first-order theory says of the number of heads."""
    return [
        *_mode_claims(censuses, reached),
        _too_few(censuses, reached),
        *_enough(censuses, reached),
        _control(censuses, reached),
        _swapped(censuses),
    ]


def _mode_claims(censuses: Sequence[Census], reached: bool) -> list[Claim]:
    """The paper has one pair of tasks; whether it goes on like that for more is asked here."""
    asked: list[tuple[str, Kind, Where]] = [
        ("One head is one kernel regressor for all tasks", "I", lambda c: c.site.heads == 1),
        ("Two heads to N share one gradient descent for all tasks", "II", lambda c: 1 < c.site.heads <= c.site.tasks),
        ("More heads than N, fewer than 2N, are in superposition", "IV", _between),
        ("With 2N heads or more, each task has heads of its own", "III", lambda c: c.site.heads >= 2 * c.site.tasks),
    ]
    claims = []
    for claim, kind, where in asked:
        chosen = _at(censuses, where)
        share = share_in(chosen, lambda reading, kind=kind: reading.kind == kind)
        sentence = f"Its share: {_tally(chosen)}."
        claims.append(compare(claim, share, AS_A_RULE, sentence, paper=f"mode {kind}", reached=reached))
    return claims


def _too_few(censuses: Sequence[Census], reached: bool) -> Claim:
    chosen = _at(censuses, lambda c: c.site.heads <= c.site.tasks)
    by_labels = [r for census in chosen for r in census.readings if r.resolved and r.kind == "swapped"]
    return compare(
        "N heads cannot resolve N tasks: to first order Σμ = 0 leaves them N − 1 directions",
        share_in(chosen, lambda reading: reading.resolved and reading.kind != "swapped"),
        NONE_AT_ALL,
        "The share of runs with N heads or fewer that give every task its best step without swapped heads; "
        f"{len(by_labels)} do so with them"
        + (f", at a loss of {np.median([r.loss for r in by_labels]):.3f} (median)." if by_labels else "."),
        paper=OWN,
        reached=reached,
    )


def _enough(censuses: Sequence[Census], reached: bool) -> list[Claim]:
    chosen = _at(censuses, lambda c: c.site.heads == c.site.tasks + 1)
    share = share_in(chosen, lambda reading: reading.resolved)
    claim = compare(
        "N + 1 heads suffice: every task gets its best step, and none where it has no features",
        share,
        AS_A_RULE,
        f"The share of runs with N + 1 heads; {_tally(chosen)}.",
        paper=OWN,
        reached=reached,
    )
    found = np.concatenate([_excess(census, lambda reading: reading.kind in ("III", "IV")) for census in chosen])
    if not found.size:
        return [claim]
    return [
        claim,
        compare(
            "Where they do so, and none is swapped, each task is solved as well as by gradient descent of its own",
            mean_of(found, covers="seeds"),
            AS_GOOD,
            "Loss over the risk of debiased gradient descent on each task's features, less one; the mean over "
            f"{len(found)} runs, of which the worst has {found.max():.1%}.",
            paper=OWN,
            reached=reached,
        ),
    ]


def _control(censuses: Sequence[Census], reached: bool) -> Claim:
    chosen = [census for census in censuses if census.site.overlap == "full"]
    return compare(
        "Tasks with the same features are not told apart, with however many heads",
        share_in(chosen, lambda reading: reading.score > 0),
        NONE_AT_ALL,
        "The control: the share of runs that solve them by more than one predictor.",
        paper=OWN,
        reached=reached,
    )


def _swapped(censuses: Sequence[Census]) -> Claim:
    share = share_in(censuses, lambda reading: reading.kind == "swapped")
    return Claim(
        "Heads match covariates and read labels",
        "shown",
        f"In {share.value:.0%} of all runs {WHAT['swapped']}: y_n kᵀx_q in the scores (KQ_21) and oᵀx in what is "
        "read (OV_21) add o kᵀ to the steps, a matrix of rank one. With Σ_h o = 0 it takes three such heads to solve a "
        "task of two features, as these are, and five for one of four, as the paper's are.",
        paper="always",
        ours=share,
    )


# --- What is shown ----------------------------------------------------------------------------------------------------


def blocks_of(censuses: Sequence[Census]) -> list[Block]:
    """The map, the curves over the number of heads, every population, and runs to open."""
    several = sorted({census.site.tasks for census in censuses})
    curves = [block for tasks in several for block in _curves([c for c in censuses if c.site.tasks == tasks])]
    return [_map(censuses), _kinds(censuses), *curves, _populations(censuses), _examples(censuses), _design(censuses)]


def _map(censuses: Sequence[Census]) -> Heatmap:
    rows = list(dict.fromkeys((census.site.tasks, census.site.overlap) for census in censuses))
    columns = max(census.site.heads for census in censuses)
    shares = np.full((len(KINDS), len(rows), columns), np.nan)
    for census in censuses:
        at = rows.index((census.site.tasks, census.site.overlap)), census.site.heads - 1
        for panel, kind in enumerate(KINDS):
            shares[panel, *at] = np.mean([reading.kind == kind for reading in census.readings])
    return Heatmap(
        rounded(shares),
        tuple(map(_called, KINDS)),
        alt="The share of runs in each mode: a row for each number of tasks N and overlap of their features, a column "
        "for each number of heads.",
        title="The share of runs in each mode, by tasks and heads",
        row_labels=tuple(f"N = {tasks}, {overlap}" for tasks, overlap in rows),
        column_labels=tuple(f"H = {heads}" for heads in range(1, columns + 1)),
    )


def _kinds(censuses: Sequence[Census]) -> Table:
    kinds = [reading.kind for census in censuses for reading in census.readings]
    return Table(
        ("mode", "what it is", "runs"),
        tuple((kind, what, kinds.count(kind)) for kind, what in WHAT.items()),
        alt="What the modes are, and how many of all runs are in each.",
        title="Modes",
    )


def _curves(censuses: Sequence[Census]) -> list[Block]:
    """Risk and superposition against the number of heads, for one number of tasks."""
    N = censuses[0].site.tasks
    by_overlap = {o: [c for c in censuses if c.site.overlap == o and c.site.heads > 1] for o in OVERLAPS}
    heads = np.array([census.site.heads for census in by_overlap["none"]], dtype=float)
    excess = {f"{o} shared": [_quartiles(c.losses - c.own_risk) for c in found] for o, found in by_overlap.items()}
    for overlap in ("none", "some"):
        least = [c.least_risk - c.own_risk for c in by_overlap[overlap]]
        excess[f"{overlap} shared, the least to first order"] = [(value,) * 3 for value in least]
    scores = {f"{o} shared": [_quartiles(c.scores) for c in found] for o, found in by_overlap.items()}
    return [
        _lines(
            heads,
            excess,
            alt=f"For {N} tasks, how far the loss is above the risk of gradient descent for each task on its own, "
            "against the number of heads, beside the least that so many heads can reach to first order.",
            title=f"Excess risk, N = {N}",
            y_label="excess risk",
        ),
        _lines(
            heads,
            scores,
            alt=f"For {N} tasks, the superposition score against the number of heads.",
            title=f"Superposition, N = {N}",
            y_label="superposition score",
        ),
    ]


def _lines(
    heads: np.ndarray, curves: dict[str, list[tuple[float, ...]]], *, alt: str, title: str, y_label: str
) -> Lines:
    low, middle, high = rounded(np.moveaxis(np.array(list(curves.values())), -1, 0))
    words = {"none": "no feature", "some": "some features", "full": "all features"}
    names = tuple(f"{words[name[:4]]}{name[4:]}" for name in curves)
    return Lines(heads, middle, names, alt, title, x_label="heads", y_label=y_label, low=low, high=high)


def _populations(censuses: Sequence[Census]) -> Table:
    columns = ("N", "shared", "heads", *KINDS, "resolved", "loss", "lowest", "highest", "to first order", "score")
    rows = tuple(
        (
            census.site.tasks,
            census.site.overlap,
            census.site.heads,
            *(sum(reading.kind == kind for reading in census.readings) for kind in KINDS),
            census.share(lambda reading: reading.resolved),
            *(float(f"{value:.4f}") for value in np.quantile(census.losses, (0.5, 0, 1))),
            None if census.site.heads == 1 else float(f"{census.least_risk:.4f}"),
            float(f"{np.median(census.scores):.2f}"),
        )
        for census in censuses
    )
    return Table(
        columns,
        rows,
        alt="For every number of tasks, shared features and number of heads: runs in each mode, the share of runs in "
        "which every task has its best step, the median loss, the lowest and the highest, the least to first order, "
        "and the median superposition score.",
        title="All populations",
    )


def _examples(censuses: Sequence[Census]) -> Table:
    """For each mode the clearest run, and the most superposed one."""
    found = [(census, i, r) for census in censuses for i, r in enumerate(census.readings)]
    chosen: list[tuple[str, tuple[Census, int, Reading]]] = []
    for kind in KINDS:
        if of_kind := [each for each in found if each[2].kind == kind]:
            chosen.append((kind, min(of_kind, key=_unclear)))
    if superposed := [each for each in found if each[2].kind == "IV"]:
        chosen.append(("IV, the most superposed", max(superposed, key=lambda each: each[2].score)))
    return Table(
        ("mode", "N", "shared", "heads", "loss", "score", "to open it"),
        tuple((name, *_row(*each)) for name, each in chosen),
        alt="A run for each mode, with the command that opens it.",
        title="Runs to open",
    )


def _unclear(found: tuple[Census, int, Reading]) -> tuple[float, ...]:
    """The least is the clearest: tasks that differ; swapped heads only where they make the mode; a low risk."""
    census, _, reading = found
    doubt = 1 - reading.swapped if reading.kind == "swapped" else reading.swapped
    return census.site.overlap == "full", round(doubt, 1), reading.loss / census.own_risk


def _row(census: Census, run: int, reading: Reading) -> tuple[Cell, ...]:
    site, numbers = census.site, (float(f"{reading.loss:.4f}"), float(f"{reading.score:.2f}"))
    return site.tasks, site.overlap, site.heads, *numbers, f"icl-interp analyze {census.folder}/{run:04d}"


def _design(censuses: Sequence[Census]) -> Text:
    first = censuses[0]
    runs, streams = len(first.readings), len({reading.stream for reading in first.readings})
    return Text(
        f"Every task has two features, L = {first.site.task.length}, σ² = {first.site.task.noise_var:g}. Shared "
        "features: none; some, S_n = {n, n + 1}; full, all tasks have the same two, the control. "
        f"{runs} seeds of each population, which share {streams} streams of prompts; each run is read by the mean of "
        "its last fifth. Resolved: every task has the best step on its features and none on others, by whichever "
        "heads. To first order: the least risk of debiased gradient descent whose steps E (tasks by features) have "
        "rank H − 1, as those of H heads with Σμ = 0 have. The score is 0 where each head serves one task, 1 where all "
        "serve all alike. Curves are medians with quartiles. Folders are under the one that --out named."
    )


# --- Small parts ------------------------------------------------------------------------------------------------------


def _at(censuses: Iterable[Census], where: Where) -> list[Census]:
    """The populations there, of tasks that differ."""
    return [census for census in censuses if census.site.overlap != "full" and where(census)]


def _between(census: Census) -> bool:
    return census.site.tasks < census.site.heads < 2 * census.site.tasks


def _tally(censuses: Iterable[Census]) -> str:
    """ "of 15 runs 12 in mode II, 3 swapped": the kinds that are there, most frequent first."""
    kinds = [reading.kind for census in censuses for reading in census.readings]
    found = sorted(((kinds.count(kind), kind) for kind in KINDS if kind in kinds), key=lambda each: -each[0])
    said = [f"{count} {'in ' if kind in MODES else ''}{_called(kind)}" for count, kind in found]
    return f"of {len(kinds)} runs {', '.join(said)}"


def _called(kind: str) -> str:
    return f"mode {kind}" if kind in MODES else kind


def _excess(census: Census, hit: Callable[[Reading], bool]) -> np.ndarray:
    return np.array([reading.loss / census.own_risk - 1 for reading in census.readings if hit(reading)])


def _quartiles(values: np.ndarray) -> tuple[float, ...]:
    return tuple(np.quantile(values, (0.25, 0.5, 0.75)).tolist())
