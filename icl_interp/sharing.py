"""How several tasks share a layer's heads (arXiv 2503.12734, section 5.4 and (A.3)–(A.4)).

Read to first order, task n is solved by debiased gradient descent with a step of its own on each feature,
E_ni = Σ_h μ_n^h ω_i^h, with ω^h the diagonal of head h's KQ_11 and μ_n^h that of its OV_22.  Everything here follows
from E, from whether Σ_h μ_n^h = 0, and from how the work of each task is divided among heads.

    I       one kernel regressor for all tasks: E_n alike, Σμ ≠ 0
    II      one debiased, preconditioned GD for all tasks: E_n alike, Σμ = 0
    III     heads of their own for each task: E_n = η on the task's features and 0 elsewhere, Σμ = 0
    IV      superposition: the same E, made by heads that serve several tasks
    other   none of these; states between them, such as tasks of which only some are told apart

Tasks count as alike whose E_n are one vector up to a factor; so a head that all tasks use alike is shared, but it is no
superposition.

There is a second way to make a step, which the paper does not mention: attend by a label, y_nℓ·kᵀx_q with k the row of
KQ_21, and read covariates, oᵀx_ℓ with o the row of OV_21.  As y_nℓ x_ℓ averages to β_n, such *swapped* heads add
Σ_h o_n k_nᵀ to the matrix of which E_n is the diagonal.  A layer that rests on them is in none of the modes.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float

from icl_interp import theory
from icl_interp.circuits import Circuits
from icl_interp.tasks import MultiTaskRegression, Task

Mode = Literal["I", "II", "III", "IV", "other"]
MODES: tuple[Mode, ...] = ("I", "II", "III", "IV")

# Where modes part.  Trained runs lie far from each of these: alike E_n are 0.01 apart, those of different tasks 0.97;
# |Σμ|/Σ|μ| is 0.001, or 1 for a single head; entries of a resolved E/η are within 0.03 of 0 or 1; a dedicated head does
# up to 0.23 as much for another task as for its own, the most shared one in superposition 0.7 and more.
ALIKE = 0.25  # distance of the E_n as unit vectors: what supports that share 31 of 32 features have
BALANCED = 0.25  # |Σμ|/Σ|μ|
CLEAR = 0.25  # distance of E_ni/η_n from 0 or 1, whichever is nearer
SHARED = 0.33  # what a head does for a second task, relative to what it does for its first
SWAPPED = 0.1  # of a task's steps: 0.00 to 0.02 in heads that match covariates and read labels, 0.16 and more in others
MATTERS = 0.2  # a head counts if it does this much of what the busiest one does
LEVELS = (
    0.04  # between the steps on features that all tasks use alike: half of what the paper's setting is expected to show
)


@dataclass(frozen=True, eq=False)
class Sharing:
    """Who does what for which task, from weights or from what removing heads does.

    Args:
        steps: E.
        imbalance: |Σ_h μ_n| / Σ_h |μ_n| of each task.
        work: how much each head does for each task; scaled so that every task's add up to 1.
        same: which tasks have equal supports, so that nothing can tell them apart; None means no two do.
        swapped: what part of the steps swapped heads make; None means not looked at.
    """

    steps: Float[np.ndarray, "tasks features"]
    imbalance: Float[np.ndarray, "tasks"]
    work: Float[np.ndarray, "heads tasks"]
    same: Bool[np.ndarray, "tasks tasks"] | None = None
    swapped: Float[np.ndarray, "tasks features"] | None = None

    @classmethod
    def of_weights(
        cls,
        omega: Float[np.ndarray, "heads features"],
        mu: Float[np.ndarray, "heads tasks"],
        same: Bool[np.ndarray, "tasks tasks"] | None = None,
        swapped: Float[np.ndarray, "tasks features"] | None = None,
    ) -> Sharing:
        """As the weights have it: a head does |μ_n|·‖ω‖ for task n, and `swapped_steps` are added to the others."""
        work = np.abs(mu) * np.linalg.norm(omega, axis=1, keepdims=True)
        steps = theory.group_steps(omega, mu)
        return cls(steps if swapped is None else steps + swapped, imbalance(mu), shares(work), same, swapped)

    @property
    def swapped_part(self) -> Float[np.ndarray, "tasks"]:
        """How much of each task's steps swapped heads make."""
        if self.swapped is None:
            return np.zeros(len(self.steps))
        swapped, others = (np.abs(part).sum(1) for part in (self.swapped, self.steps - self.swapped))
        return _over(swapped, swapped + others)

    @cached_property
    def scale(self) -> Float[np.ndarray, "tasks"]:
        """η_n as it is: the median of E_n over the features that task n uses."""
        return np.array([float(np.median(row[row > row.max() / 2])) if row.max() > 0 else 0.0 for row in self.steps])

    @property
    def uses(self) -> Bool[np.ndarray, "tasks features"]:
        """Which features each task uses: those where E_n is above half of η_n."""
        return self.steps > np.maximum(self.scale, 0)[:, None] / 2

    @cached_property
    def apart(self) -> Float[np.ndarray, "tasks tasks"]:
        """How far the E_n are from one another as unit vectors: 0 alike, √2 with no feature in common.

        A vector and its mirror image are alike: one predictor, which two tasks of disjoint supports may use so.
        """
        unit = _over(self.steps, np.linalg.norm(self.steps, axis=1, keepdims=True))
        sides = (np.linalg.norm(unit[:, None] + side * unit[None], axis=-1) for side in (-1, 1))
        return np.minimum(*sides)

    @cached_property
    def solvers(self) -> tuple[tuple[int, ...], ...]:
        """Tasks by the predictor that solves them: those whose E_n are alike go together."""
        groups: list[tuple[int, ...]] = []
        for task, distances in enumerate(self.apart):
            near = [group for group in groups if (distances[list(group)] <= ALIKE).all()]
            if near:
                groups[groups.index(near[0])] = (*near[0], task)
            else:
                groups.append((task,))
        return tuple(groups)

    @property
    def groups(self) -> tuple[tuple[int, ...], ...]:
        """Features that go together, in order: used by the same tasks; by the size of E where all tasks are alike."""
        alike = len(self.solvers) == 1
        return _levels(np.abs(_over(self.steps, self.scale[:, None])).mean(0)) if alike else _patterns(self.uses)

    @property
    def second(self) -> Float[np.ndarray, "heads"]:
        """What each head does for the second of the tasks it serves, relative to the first; alike tasks count as one.

        NaN for heads that do next to nothing.
        """
        by_solver = self._by_solver
        first, second = by_solver[:, 0], by_solver[:, 1] if by_solver.shape[1] > 1 else np.zeros(len(by_solver))
        return np.where(first > MATTERS * first.max(initial=0.0), _over(second, first), np.nan)

    @property
    def shared(self) -> float:
        """`second` of the most shared head."""
        return float(np.nanmax(self.second)) if np.isfinite(self.second).any() else 0.0

    @property
    def serves(self) -> Bool[np.ndarray, "heads tasks"]:
        """Which tasks each head serves: those it does a third as much for as for its first; none if it does nothing."""
        first = self.work.max(1, keepdims=True, initial=0.0)
        return (self.work > SHARED * first) & (first > MATTERS * first.max(initial=0.0))

    @property
    def score(self) -> float:
        """Superposition: 0 where every head serves one task, 1 where all serve all tasks equally, which differ.

        (K − Σ_h max_k w_hk)/(K − 1) with w_hk the share of head h in the work of solver k, K of them; 0 where K = 1.
        """
        by_solver = self._by_solver
        K = by_solver.shape[1]
        return float((by_solver.sum() - by_solver[:, 0].sum()) / (K - 1)) if K > 1 else 0.0

    def margins(self) -> dict[Mode, float]:
        """How far inside each mode this is, −1 … 1: the least slack of what makes the mode, relative to its bound."""
        pairs = self._pairs(alike=False)
        alike = _below(pairs.max(initial=0.0), ALIKE)
        balanced = _below(self.imbalance.max(initial=0.0), BALANCED)
        resolved = min(
            -_below(pairs.min(), ALIKE) if pairs.size else -1.0,
            _below(self._pairs(alike=True).max(initial=0.0), ALIKE),
            _below(self._ambiguity(), CLEAR),
        )
        dedicated = _below(self.shared, SHARED)
        straight = _below(self.swapped_part.max(initial=0.0), SWAPPED)
        found: dict[Mode, float] = {
            "I": min(straight, alike, -_below(self.imbalance.min(initial=2.0), BALANCED)),
            "II": min(straight, alike, balanced),
            "III": min(straight, resolved, balanced, dedicated),
            "IV": min(straight, resolved, balanced, -dedicated),
        }
        return found if np.isfinite(self.steps).all() and (self.scale > 0).all() else dict.fromkeys(MODES, -1.0)

    @property
    def mode(self) -> Mode:
        """The mode it is inside of."""
        margins = self.margins()
        best = max(margins, key=lambda mode: margins[mode])
        return best if margins[best] > 0 else "other"

    @cached_property
    def _by_solver(self) -> Float[np.ndarray, "heads solvers"]:
        """Shares of the work for each solver's tasks (their mean), the largest of each head first."""
        columns = [self.work[:, list(group)].mean(1) for group in self.solvers]
        return np.sort(np.stack(columns, axis=1), axis=1)[:, ::-1]

    def _pairs(self, *, alike: bool) -> Float[np.ndarray, "pairs"]:
        """`apart` of pairs of tasks that have, or have not, the same support."""
        N = len(self.steps)
        same = np.eye(N, dtype=bool) if self.same is None else self.same
        rows, columns = np.triu_indices(N, 1)
        return self.apart[rows, columns][same[rows, columns] == alike]

    def _ambiguity(self) -> float:
        """The furthest that an entry of E_n/η_n is from both 0 and 1."""
        relative = _over(self.steps, self.scale[:, None])
        return float(np.minimum(np.abs(relative), np.abs(1 - relative)).max(initial=0.0))


def shares(work: Float[np.ndarray, "heads tasks"]) -> Float[np.ndarray, "heads tasks"]:
    """Each task's work as parts of 1; nothing below zero counts."""
    work = np.maximum(work, 0)
    return _over(work, work.sum(0, keepdims=True))


def imbalance(mu: Float[np.ndarray, "heads tasks"]) -> Float[np.ndarray, "tasks"]:
    """|Σ_h μ_n| / Σ_h |μ_n| of each task; 0 where no head serves it."""
    return _over(np.abs(mu.sum(0)), np.abs(mu).sum(0))


def swapped_steps(circuits: Circuits) -> Float[np.ndarray, "tasks features"]:
    """The diagonals of Σ_h o_n k_nᵀ in a model's last layer."""
    return (circuits.OV_21[-1] * circuits.KQ_21[-1]).sum(0)


def uses_of(task: Task | None) -> Bool[np.ndarray, "tasks features"] | None:
    """The supports as a table; None where the task has none that are known."""
    return task.uses if isinstance(task, MultiTaskRegression) else None


def own_steps(task: MultiTaskRegression) -> Float[np.ndarray, "tasks features"]:
    """E of modes III and IV: the best step on each task's features, (A.3)–(A.4)."""
    return theory.superposition_steps(
        task.uses, length=task.length, noise_var=task.noise_var, signal_var=task.signal_var
    )


def shared_steps(task: MultiTaskRegression) -> Float[np.ndarray, "features"]:
    """E_n of mode II: the steps that are best for all tasks together."""
    return theory.shared_steps(task.uses, length=task.length, noise_var=task.noise_var, signal_var=task.signal_var)


def step_risks(task: MultiTaskRegression, steps: Float[np.ndarray, "tasks features"]) -> Float[np.ndarray, "tasks"]:
    """Risk of each task of debiased GD with these steps, in closed form."""
    return theory.task_gd_risks(
        steps,
        task.uses,
        length=task.length,
        noise_var=task.noise_var,
        signal_var=task.signal_var,
        query_noise=task.query_noise,
    )


def same_supports(uses: Bool[np.ndarray, "tasks features"] | None) -> Bool[np.ndarray, "tasks tasks"] | None:
    """Which tasks have equal supports."""
    return None if uses is None else (uses[:, None] == uses[None]).all(-1)


def expected_mode(n_tasks: int, n_heads: int) -> Mode:
    """The mode that the paper finds with so many heads, for tasks of different supports."""
    if n_heads == 1:
        return "I"
    if n_heads <= n_tasks or n_tasks == 1:
        return "II"
    return "IV" if n_heads < 2 * n_tasks else "III"


def expected_groups(task: MultiTaskRegression, mode: Mode) -> tuple[tuple[int, ...], ...]:
    """The features that go together in a mode: used by the same tasks, or, if all are alike, with steps of one size."""
    return _levels(shared_steps(task)) if mode in ("I", "II") else _patterns(task.uses)


def _patterns(uses: Bool[np.ndarray, "tasks features"]) -> tuple[tuple[int, ...], ...]:
    """Features that the same tasks use."""
    columns = [tuple(column) for column in uses.T.tolist()]
    return tuple(tuple(i for i, other in enumerate(columns) if other == column) for column in dict.fromkeys(columns))


def _levels(steps: Float[np.ndarray, "features"]) -> tuple[tuple[int, ...], ...]:
    """Features with steps of one size: cut where two neighbours in size differ by `LEVELS` of the largest."""
    order = np.argsort(-steps, kind="stable").tolist()
    groups = [[order[0]]]
    for above, below in pairwise(order):
        if steps[above] - steps[below] > LEVELS * steps[order[0]]:
            groups.append([])
        groups[-1].append(below)
    return tuple(sorted(tuple(sorted(group)) for group in groups))


def _below(value: float, bound: float) -> float:
    """How far `value` is below `bound`, relative to it: 1 at zero, negative above, −1 at twice the bound."""
    return float(np.clip((bound - value) / bound, -1, 1))


def _over(top: np.ndarray, bottom: np.ndarray) -> np.ndarray:
    top, bottom = np.broadcast_arrays(np.asarray(top, float), np.asarray(bottom, float))
    return np.divide(top, bottom, out=np.zeros(top.shape), where=bottom != 0)
