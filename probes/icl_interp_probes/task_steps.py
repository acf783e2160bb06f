"""The step that each of several tasks takes on each feature, beside theory's (arXiv 2503.12734, (A.3)–(A.4)).

E_ni = Σ_h μ_n^h ω_i^h, with ω^h the diagonal of head h's KQ_11 and μ_n^h that of its OV_22.  The theory: Σ_h μ_n^h = 0,
and E_n is η_n on the features of the task and 0 off them.  No probe is declared here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float

from icl_interp import theory
from icl_interp.activations import activation
from icl_interp.circuits import Circuits
from icl_interp.probing import Context, Estimate, Need, rounded
from icl_interp.roles import Heads
from icl_interp.sharing import imbalance, own_steps, step_risks, swapped_steps
from icl_interp.tasks import MultiTaskRegression, Task
from icl_interp_probes.iterates import Iterates, Quantity
from icl_interp_probes.shown import KEPT

DRAWS = 200  # of an error's propagation: how tasks share heads takes 0.3 ms to tell, and is asked a dozen times

ByTask = Callable[[np.ndarray, np.ndarray], np.ndarray]


@dataclass(frozen=True, eq=False)
class Steps:
    """E, and how it lies beside theory's; what theory says nothing of without supports is empty or None.

    Args:
        iterate: whose ω and μ they come of.
        found, half: E with its half-width.
        wanted: E in theory.
        imbalance: |Σ_h μ_n|/Σ_h |μ_n| of each task.
        unbalanced: the largest of them.
        on_support: mean of E_n over the task's features, over η_n.
        worst_on: the largest |mean E_n/η_n − 1|.
        off_support: by task the largest |E_ni|/η_n elsewhere; 0 where there is no elsewhere.
        worst_off: the largest of them; None where every task uses all features.
        off_cost: what the steps off the support add to the task's risk, to first order, without its error.
    """

    iterate: str
    found: Float[np.ndarray, "tasks features"]
    half: Float[np.ndarray, "tasks features"]
    wanted: Float[np.ndarray, "tasks features"] | None
    imbalance: tuple[Estimate, ...]
    unbalanced: Estimate
    on_support: tuple[Estimate, ...] = ()
    worst_on: Estimate | None = None
    off_support: tuple[Estimate, ...] = ()
    worst_off: Estimate | None = None
    off_cost: tuple[float, ...] = ()

    @classmethod
    def of(cls, iterates: Iterates, task: Task) -> Steps:
        """From (ω by feature, μ by task)."""
        E = theory.group_steps(*iterates.mean)

        steps = cls(
            iterate=iterates.name,
            found=rounded(E, KEPT),
            half=rounded(_halves(iterates)),
            wanted=None,
            imbalance=_each(iterates, lambda _, m: imbalance(m), _size),
            unbalanced=_size(iterates, lambda _, m: imbalance(m).max()),
        )
        return steps._beside_theory(iterates, task) if isinstance(task, MultiTaskRegression) else steps

    def _beside_theory(self, iterates: Iterates, task: MultiTaskRegression) -> Steps:
        wanted, uses = own_steps(task), task.uses
        eta = wanted.max(1, keepdims=True)
        E = theory.group_steps(*iterates.mean)
        off_cost = step_risks(task, E) - step_risks(task, E * uses)

        def on(omega: np.ndarray, mu: np.ndarray) -> np.ndarray:
            return np.mean(theory.group_steps(omega, mu) / eta, axis=1, where=uses)

        def off(omega: np.ndarray, mu: np.ndarray) -> np.ndarray:
            return np.max(np.abs(theory.group_steps(omega, mu)) / eta, axis=1, where=~uses, initial=0.0)

        return replace(
            self,
            wanted=rounded(wanted, KEPT),
            on_support=_each(iterates, on),
            worst_on=_size(iterates, lambda w, m: np.abs(on(w, m) - 1).max()),
            off_support=_each(iterates, off, _size),
            worst_off=None if uses.all() else _size(iterates, lambda w, m: off(w, m).max()),
            off_cost=tuple(rounded(off_cost).tolist()),
        )


def iterates_of(context: Context, heads: Heads) -> Iterates:
    """ω by feature, times what makes E the effective step, and OV_22's diagonal; of the checkpoint μ as a function.

    Needs WEIGHTS and TASK, and needs or uses DYNAMICS.
    """
    length = 1 if activation(context.config.activation).normalised else context.task.length

    def read(circuits: Circuits) -> tuple[np.ndarray, np.ndarray]:
        return length * circuits.slope * circuits.diagonal[0], circuits.mu[0]

    omega = read(context.circuits)[0]
    return Iterates.of(context, read, (omega, np.zeros_like(omega)), (heads.mu, heads.mu_half), DRAWS)


def swapped_of(context: Context) -> Float[np.ndarray, "tasks features"]:
    """The steps that swapped heads make (`icl_interp.sharing`), of the late iterates' mean or of the checkpoint.

    Needs WEIGHTS, and needs or uses DYNAMICS.
    """
    late = context.late_circuits() if context.offers(Need.DYNAMICS) else []
    return np.mean([swapped_steps(circuits) for circuits in late or [context.circuits]], axis=0)


def positive(iterates: Iterates, quantity: Quantity, most: float = np.inf) -> Estimate:
    """Of what lies between 0 and `most`."""
    return shortened(iterates.estimate(quantity).map(lambda value: min(max(value, 0.0), most)))


def _size(iterates: Iterates, quantity: Quantity) -> Estimate:
    """Of an absolute value, or the largest of several."""
    return shortened(iterates.estimate(quantity, size=True))


def shortened(estimate: Estimate) -> Estimate:
    """With as many digits as a report needs."""
    value, low, high = rounded([estimate.value, estimate.low, estimate.high], KEPT).tolist()
    return Estimate(value, low, high, estimate.covers)


def _halves(iterates: Iterates) -> Float[np.ndarray, "tasks features"]:
    """Half-widths of E; of a single iterate in one go, since ω is read off exactly and E is linear in μ."""
    omega, mu = iterates.mean
    if iterates.errors is not None:
        return np.sqrt((iterates.errors[1] ** 2).T @ omega**2)
    at = np.ndindex(mu.shape[1], omega.shape[1])
    halves = [iterates.estimate(lambda w, m, i=i: theory.group_steps(w, m)[i].item()).half for i in at]
    return np.reshape(halves, (mu.shape[1], omega.shape[1]))


def _each(
    iterates: Iterates, by_task: ByTask, estimate: Callable[[Iterates, Quantity], Estimate] | None = None
) -> tuple[Estimate, ...]:
    tasks = range(iterates.mu.shape[-1])
    return tuple((estimate or positive)(iterates, lambda w, m, n=n: by_task(w, m)[n]) for n in tasks)
