"""Numbers of heads that serve several tasks, as functions of ω (heads × features) and μ (heads × tasks).

Those on which claims rest do not depend on the order of the heads, nor on which task is called the first.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import permutations

import numpy as np
from jaxtyping import Bool, Float, Int

from icl_interp import sharing
from icl_interp.sharing import Sharing

Omega = Float[np.ndarray, "heads features"]
Mu = Float[np.ndarray, "heads tasks"]
Uses = Bool[np.ndarray, "tasks features"]
Quantity = Callable[[Omega, Mu], float]
Groups = dict[tuple[int, ...], Float[np.ndarray, "heads"]]


# --- The steps E = μᵀω ------------------------------------------------------------------------------------------------


def off_steps(wanted: Float[np.ndarray, "tasks features"]) -> Quantity:
    """How far E is from `wanted`, relative to it, where that is not zero: the furthest entry."""
    used = wanted > 0
    return lambda omega, mu: float(np.abs((mu.T @ omega)[used] / wanted[used] - 1).max())


def off_support(uses: Uses) -> Quantity:
    """The largest |E_ni|/η_n on a feature that task n does not use, η_n being its mean step on those that it does."""

    def found(omega: Omega, mu: Mu) -> float:
        steps = mu.T @ omega
        own = np.where(uses, steps, 0).sum(1, keepdims=True) / uses.sum(1, keepdims=True)
        return float(np.abs(np.where(uses, 0, steps) / own).max())

    return found


def imbalance(_: Omega, mu: Mu) -> float:
    """The largest |Σ_h μ_n|/Σ_h |μ_n| among tasks."""
    return float(sharing.imbalance(mu).max())


def tasks_apart(omega: Omega, mu: Mu) -> float:
    """The largest distance between the E of two tasks at norm 1."""
    return float(Sharing.of_weights(omega, mu).apart.max())


def step_ratio(level: Int[np.ndarray, "features"]) -> Quantity:
    """E on the features of the highest level over E on those of the lowest, the mean over tasks."""

    def found(omega: Omega, mu: Mu) -> float:
        steps = mu.T @ omega
        return float((steps[:, level == level.max()].mean(1) / steps[:, level == level.min()].mean(1)).mean())

    return found


# --- ω by feature -----------------------------------------------------------------------------------------------------


def levels(uses: Uses) -> tuple[Int[np.ndarray, "levels"], Int[np.ndarray, "features"]]:
    """By how many tasks features are used: the numbers that occur, and which of them each feature has."""
    return np.unique(uses.sum(0), return_inverse=True)


def level_means(level: Int[np.ndarray, "features"]) -> Callable[[Omega], Float[np.ndarray, "levels"]]:
    """|ω| of a single head, averaged over each level."""
    return lambda omega: np.array([abs(omega[0, level == k].mean()) for k in range(level.max() + 1)])


def level_ratio(level: Int[np.ndarray, "features"]) -> Quantity:
    """ω of a single head on the highest level over that on the lowest."""
    return lambda omega, _: float(level_means(level)(omega)[-1] / level_means(level)(omega)[0])


def level_spread(level: Int[np.ndarray, "features"]) -> Quantity:
    """The largest deviation of a single head's ω from its level's mean, relative to that."""
    return lambda omega, _: float(np.abs(np.abs(omega[0]) / level_means(level)(omega)[level] - 1).max())


def users_of(uses: Uses) -> list[tuple[int, ...]]:
    """The tasks that use each feature."""
    return [tuple(np.flatnonzero(column).tolist()) for column in uses.T]


def group_means(omega: Omega, uses: Uses) -> Groups:
    """ω of every head, averaged over features that the same tasks use; keyed by those tasks, fewest first."""
    users = users_of(uses)
    patterns = sorted(set(users), key=lambda tasks: (len(tasks), tasks))
    return {tasks: omega[:, [own == tasks for own in users]].mean(1) for tasks in patterns}


def group_spread(uses: Uses) -> Quantity:
    """The largest deviation of a head's ω from its mean over a group of features, over the head's largest |ω|."""

    def found(omega: Omega, _: Mu) -> float:
        means = group_means(omega, uses)
        deviations = np.abs(omega - np.stack([means[tasks] for tasks in users_of(uses)], axis=1))
        return float((deviations.max(1) / np.abs(omega).max(1)).max())

    return found


# --- Who serves whom --------------------------------------------------------------------------------------------------


def opposition(omega: Omega, mu: Mu | None = None) -> float:
    """‖ω + ω′‖ over ‖ω‖ + ‖ω′‖ of two heads: 0 where they are opposite, 1 where they are equal, or not two."""
    sizes = np.linalg.norm(omega, axis=1)
    return float(np.linalg.norm(omega.sum(0)) / sizes.sum()) if len(omega) == 2 else 1.0


def pairs_opposition(omega: Omega, mu: Mu) -> float:
    """`opposition` of the heads that serve each task most, the largest among tasks."""
    serves = np.abs(mu).argmax(1)
    return max(opposition(omega[serves == n]) for n in range(mu.shape[1]))


def leak(_: Omega, mu: Mu) -> float:
    """The largest |μ| of a head for another task than the one it serves most, relative to its own."""
    sizes = np.sort(np.abs(mu), axis=1)
    return float((sizes[:, -2] / sizes[:, -1]).max())


def misread(uses: Uses) -> Quantity:
    """Features that are on the wrong side of half a head's largest |ω|, going by the task that it serves most."""

    def found(omega: Omega, mu: Mu) -> float:
        large = np.abs(omega) > np.abs(omega).max(1, keepdims=True) / 2
        return float((large != uses[np.abs(mu).argmax(1)]).sum())

    return found


def own_sizes(omega: Omega, mu: Mu, uses: Uses) -> tuple[float, float]:
    """|ω| on the support of the task that a head serves most, and |μ| for it: means over heads."""
    serves = np.abs(mu).argmax(1)
    return float(np.abs(omega)[uses[serves]].mean()), float(np.abs(mu).max(1).mean())


def parts(groups: Groups, mu: Mu) -> Float[np.ndarray, "heads tasks groups"]:
    """What each head adds to the step of each task on each group of features."""
    return mu[:, :, None] * np.stack([*groups.values()], axis=1)[:, None]


def distance(
    one: Float[np.ndarray, "heads tasks groups"],
    other: Float[np.ndarray, "heads tasks groups"],
    patterns: Sequence[tuple[int, ...]],
) -> float:
    """Between two divisions of the work, relative to their norms, up to the order of heads and the names of tasks."""
    names: list[tuple[list[int], list[int]]] = []
    for order in permutations(range(one.shape[1])):
        renamed = [tuple(sorted(order[n] for n in tasks)) for tasks in patterns]
        if set(renamed) == set(patterns):
            names.append((list(order), [patterns.index(tasks) for tasks in renamed]))
    size = np.sqrt(np.linalg.norm(one) * np.linalg.norm(other))
    return float(
        min(
            np.linalg.norm(one - other[list(heads)][:, tasks][:, :, groups])
            for heads in permutations(range(len(one)))
            for tasks, groups in names
        )
        / size
    )
