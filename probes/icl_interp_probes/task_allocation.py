"""Which head serves which task, and in which of the four modes?  (arXiv 2503.12734, section 5.4, Figures 16 to 19.)

A model of several responses, each of some of the features, may solve them by one kernel regressor (I), by one
preconditioned GD for all (II), by heads of their own (III) or in superposition (IV); `icl_interp.sharing` says what
tells these apart.  It is read twice: off the weights, ω from KQ_11's diagonal and μ from OV_22's, at the mean iterate
where the training was recorded; and from what removing a head does to each task's risk, what a shift of the labels does
to its output, and the slopes of the predictions on debiased GD's directions.  Cost: two passes over the budget's
prompts.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from icl_interp.circuits import Circuits
from icl_interp.probing import (
    Block,
    Cell,
    Context,
    Estimate,
    Need,
    Table,
    Text,
    Threshold,
    Verdict,
    judge,
    not_applicable,
    probe,
    rounded,
)
from icl_interp.sharing import SWAPPED, Mode, Sharing, expected_groups, expected_mode, same_supports, uses_of
from icl_interp.sharing_effects import Effects
from icl_interp.tasks import MultiTaskRegression
from icl_interp_probes.iterates import Iterates
from icl_interp_probes.shown import around, coordinates
from icl_interp_probes.task_steps import DRAWS, swapped_of

SOURCE = "arXiv 2503.12734, section 5.4"
IN_WORDS: dict[Mode, str] = {
    "I": "one kernel regressor for all tasks",
    "II": "one preconditioned gradient descent for all tasks",
    "III": "heads of their own for each task",
    "IV": "superposition: heads that serve several tasks",
    "other": "none of the four modes",
}
INSIDE = Threshold(
    "the margin is negative outside of a mode, and relative to the bound that is nearest; the curves of "
    "planted_tasks_superposed and tasks_other_mode lie on either side",
    low=0.0,
)
EXACT = Threshold(
    "no feature may be in another group than it should be; the curves of planted_tasks_dedicated and "
    "tasks_wrong_groups lie on either side",
    high=0.0,
)


@dataclass(frozen=True, eq=False)
class TaskAllocation:
    """Who serves what.

    Args:
        omega, mu: KQ_11's and OV_22's diagonal of each head, of the iterate that claims are judged on.
        iterate: which one that is.
        mode, mode_under_ablation: as the weights have it, and as removing heads has it.
        expected: the mode that the paper finds with so many heads.
        margin: how far inside the expected mode the weights are, −1 … 1.
        margin_under_ablation: how far inside `mode` the effects are.
        groups: features that go together, as the model has them.
        uses: which features each task uses, as the model has it.
        supports: which ones it should use; None where that is not known.
        misplaced: features that are in another group than they should be; None likewise.
        work, work_under_ablation: each head's share in each task, 1 in all.
        serves: which tasks each head serves, under ablation.
        swapped: how much of each task's steps swapped heads make, which attend by labels and read covariates.
        rises: each task's rise in risk when a head is removed.
        steps: E as a function: slopes of the predictions on debiased GD's direction along each feature.
        structured: whether heads are what ω and μ say.
        prompts: on which effects were measured.
    """

    omega: Float[np.ndarray, "heads features"]
    mu: Float[np.ndarray, "heads tasks"]
    iterate: str
    mode: Mode
    mode_under_ablation: Mode
    expected: Mode
    margin: Estimate
    margin_under_ablation: Estimate
    groups: tuple[tuple[int, ...], ...]
    uses: Bool[np.ndarray, "tasks features"]
    supports: Bool[np.ndarray, "tasks features"] | None
    misplaced: Estimate | None
    work: Float[np.ndarray, "heads tasks"]
    work_under_ablation: Float[np.ndarray, "heads tasks"]
    serves: Bool[np.ndarray, "heads tasks"]
    swapped: Float[np.ndarray, "tasks"]
    rises: tuple[tuple[Estimate, ...], ...]
    steps: Float[np.ndarray, "tasks features"]
    structured: bool
    prompts: int


@probe(
    name="task_allocation",
    title="Which head serves which task, and how are heads shared?",
    needs=Need.WEIGHTS | Need.FORWARD | Need.TASK | Need.SEVERAL_RESPONSES | Need.ONE_LAYER,
    uses=Need.DYNAMICS,
    cost="a few seconds",
)
class TaskAllocationProbe:
    """Finds the groups of features that tasks use, what each head does for each task, and which of the paper's modes
    this is: from the weights, at the mean iterate of the last fifth of training where that was recorded, and from what
    removing each head does to each task's risk on sampled prompts.
    """

    def run(self, context: Context) -> TaskAllocation:
        """Read the weights, then remove, shift and regress."""
        task, heads = context.task, context.heads
        supports = uses_of(task)
        same = same_supports(supports)
        omega = diagonals(context.circuits)[0]
        iterates = Iterates.of(context, diagonals, (omega, np.zeros_like(omega)), (heads.mu, heads.mu_half), DRAWS)
        omega, mu = iterates.mean
        swapped = swapped_of(context)
        sharing = Sharing.of_weights(omega, mu, same, swapped)
        effects = Effects.measure(context.circuits, context.chunks("effects"))
        found = effects.sharing(same)
        expected = _expected(supports, len(mu.T), len(mu))
        return TaskAllocation(
            omega=omega,
            mu=mu,
            iterate=iterates.name,
            mode=sharing.mode,
            mode_under_ablation=found.mode,
            expected=expected,
            margin=iterates.estimate(lambda w, m: _margin(Sharing.of_weights(w, m, same, swapped), expected)),
            margin_under_ablation=effects.estimate(lambda each: _margin(each, sharing.mode), same),
            groups=sharing.groups,
            uses=sharing.uses,
            supports=supports,
            misplaced=iterates.estimate(lambda w, m: float(misplaced(Sharing.of_weights(w, m, same, swapped), task)))
            if isinstance(task, MultiTaskRegression)
            else None,
            work=sharing.work,
            work_under_ablation=found.work,
            serves=found.serves,
            swapped=rounded(sharing.swapped_part),
            rises=effects.rises,
            steps=found.steps,
            structured=heads.structured,
            prompts=context.budget,
        )

    def blocks(self, result: TaskAllocation) -> list[Block]:
        """Who serves what; what removing a head costs each task, beside what weights say; the groups."""
        d, tasks = result.omega.shape[1], result.mu.shape[1]
        names = coordinates(d, tasks)
        x, y = names[:d], names[d:]
        groups = [_together(group, x) for group in result.groups]
        by_group = np.stack([result.omega[:, list(group)].mean(1) for group in result.groups], axis=1)
        who = tuple(
            (h, *_roles(result, h), *map(float, by_group[h]), *map(float, result.mu[h])) for h in range(len(result.mu))
        )
        removed = tuple(
            (
                h,
                *result.rises[h],
                *(f"{result.work_under_ablation[h, n]:.0%} / {result.work[h, n]:.0%}" for n in range(tasks)),
            )
            for h in range(len(result.mu))
        )
        return [
            Table(
                ("head", *(f"for {name}" for name in y), *(f"ω {name}" for name in groups), *(f"μ {n}" for n in y)),
                who,
                alt="What each head is for each task, its ω on each group of features and its μ for each task.",
                title="Who serves which task",
                first_screen=True,
            ),
            Table(
                ("head", *(f"rise in risk of {name}" for name in y), *(f"share in {name}" for name in y)),
                removed,
                alt="Each task's rise in risk when a head is removed, and each head's share in each task.",
                title="Without a head",
            ),
            Table(
                ("features", "used by", "should be", *(f"E, {name}" for name in y)),
                tuple(_group_row(result, group, x, y) for group in result.groups),
                alt="Groups of features, the tasks that use them, and each task's step on them.",
                title="Groups of features",
            ),
            Text(
                f"ω, μ and groups are those of {result.iterate}. Effects: {result.prompts:,} prompts. Shares: what a "
                "head does for a task as part of what all heads do, by removing it (the root of the rise in risk) / by "
                "weights (|μ|·‖ω‖). A head serves the tasks that it does a third as much for as for its first; "
                "positive and negative: the sign of its ω on the task's features. E: the step of gradient descent that "
                "the predictions make along a feature."
            ),
        ]

    def judge(self, result: TaskAllocation) -> list[Verdict]:
        """The paper's mode; the same under ablation; the right features together."""
        claims = ("mode_of_so_many_heads", "mode_under_ablation", "groups_are_supports")
        if not result.structured:
            reason = f"ω and μ do not describe this model: its heads are unstructured.{_swapped(result)}".rstrip(".")
            return [not_applicable(claim, SOURCE, reason) for claim in claims]
        N, H = result.mu.shape[1], len(result.mu)
        sentence = (
            f"{'One head' if H == 1 else f'{H} heads'} for {N} tasks: mode {result.mode}, {IN_WORDS[result.mode]}; the "
            f"paper finds mode {result.expected} with so many.{_swapped(result)}"
        )
        return [
            judge(claims[0], SOURCE, result.margin, INSIDE, sentence),
            _confirmed(result, claims[1]),
            _grouped(result, claims[2]),
        ]


def _swapped(result: TaskAllocation) -> str:
    """What has to be said of a layer that does not match covariates and read labels."""
    task = int(result.swapped.argmax())
    if result.swapped[task] < SWAPPED:
        return ""
    return (
        f" Heads that attend by labels and read covariates, by KQ_21 and OV_21, make {result.swapped[task]:.0%} of the "
        f"steps of y{task}: no mode has such."
    )


def diagonals(circuits: Circuits) -> tuple[Float[np.ndarray, "heads features"], Float[np.ndarray, "heads tasks"]]:
    """ω of each feature and μ of each response, of a one-layer model."""
    return np.diagonal(circuits.KQ_11[0], axis1=-2, axis2=-1).copy(), circuits.mu[0]


def misplaced(sharing: Sharing, task: MultiTaskRegression) -> int:
    """Features that are in another group than they should be in this mode."""
    expected = {i: group for group in expected_groups(task, sharing.mode) for i in group}
    return sum(group != expected[i] for group in sharing.groups for i in group)


def _expected(supports: Bool[np.ndarray, "tasks features"] | None, tasks: int, heads: int) -> Mode:
    return expected_mode(tasks if supports is None else len(np.unique(supports, axis=0)), heads)


def _margin(sharing: Sharing, mode: Mode) -> float:
    """How far inside the mode; of "other", how far outside of all four."""
    margins = sharing.margins()
    return -max(margins.values()) if mode == "other" else margins[mode]


def _confirmed(result: TaskAllocation, claim: str) -> Verdict:
    sentence = (
        f"By what removing heads does this is mode {result.mode_under_ablation}; by the weights it is {result.mode}."
    )
    return judge(claim, SOURCE, result.margin_under_ablation, INSIDE, sentence)


def _grouped(result: TaskAllocation, claim: str) -> Verdict:
    if result.misplaced is None:
        return not_applicable(claim, SOURCE, "which features each task should use is not known")
    if result.mode == "other":
        return not_applicable(claim, SOURCE, "which features go together is said of the four modes; this is none")
    x = coordinates(result.omega.shape[1], 0)
    found = ", ".join(_together(group, x) for group in result.groups)
    count = int(result.misplaced.value)
    right = "as they should be" if not count else f"{count} of {len(x)} features in another group than they should be"
    return judge(claim, SOURCE, result.misplaced, EXACT, f"Groups of features: {found}; {right}.")


def _roles(result: TaskAllocation, head: int) -> tuple[str, ...]:
    """What the head is for each task, with its share."""
    return tuple(_role(result, head, n) for n in range(result.mu.shape[1]))


def _role(result: TaskAllocation, head: int, task: int) -> str:
    if not result.serves[head, task]:
        return "—"
    used = result.uses[task]
    omega = float(result.omega[head, used].mean()) if used.any() else 0.0
    sign = "positive" if omega > 0 else "negative"
    against = " (against)" if omega * result.mu[head, task] < 0 else ""
    return f"{sign}{against} {result.work_under_ablation[head, task]:.0%}"


def _together(group: tuple[int, ...], x: tuple[str, ...]) -> str:
    return "{" + ", ".join(x[i] for i in group) + "}"


def _group_row(
    result: TaskAllocation, group: tuple[int, ...], x: tuple[str, ...], y: tuple[str, ...]
) -> tuple[Cell, ...]:
    features = list(group)
    steps = (around(*_spread(result.steps[n, features]), "features") for n in range(len(y)))
    wanted = "?" if result.supports is None else _users(result.supports[:, features], y)
    return _together(group, x), _users(result.uses[:, features], y), wanted, *steps


def _spread(values: np.ndarray) -> tuple[float, float]:
    """The middle of the values and half of their range."""
    return float(values.max() + values.min()) / 2, float(np.ptp(values)) / 2


def _users(table: Bool[np.ndarray, "tasks features"], y: tuple[str, ...]) -> str:
    """The tasks that use all of these features; each feature's where they differ."""
    patterns = list(dict.fromkeys(tuple(column) for column in table.T.tolist()))
    words = [", ".join(name for name, uses in zip(y, pattern, strict=True) if uses) or "none" for pattern in patterns]
    return " | ".join(words)
