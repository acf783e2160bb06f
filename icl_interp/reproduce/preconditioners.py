"""What two heads learn for correlated covariates, and the preconditioners to hold it against (arXiv 2503.12734, 5.3).

Under a covariance Σ heads attend with KQ_11 = ±γΓ.  Three candidates for Γ, each up to a factor:

    Γ*    = ((1 + 1/L)Σ + (tr Σ + dσ²)/L · I)⁻¹    the optimum of gradient descent (5.6)
    Γ_deb = (Σ + (tr Σ + dσ²)/L · I)⁻¹             that of debiased gradient descent, a thousandth off Γ*
    Σ⁻¹                                            their limit for long prompts

Γ̂ = Σ_h μ_h KQ_11^h is averaged over the last fifth of each training, and its antisymmetric part, which is noise, left
out.  Between two candidates Γ̂ has a position, 0 at one and 1 at the other, to which noise adds nothing on average, as
it does to a distance.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from einops import einsum
from jaxtyping import Float

from icl_interp import theory
from icl_interp.records import Run
from icl_interp.tasks import LinearRegression

Matrix = Float[np.ndarray, "*stack dim dim"]

PLAIN, DEBIASED, INVERSE = "Γ*", "Γ_deb", "Σ⁻¹"
# Γ is what KQ tends to as γ → 0.  At the γ of trained runs what is read off the weights and what is read off the
# predictions of one model differ by this much, relative to Γ: closer than this nothing can be told, whatever the noise.
FIRST_ORDER = 0.002


@dataclass(frozen=True, eq=False)
class Learned:
    """Averages over the last fifth of each training of a population of two heads.

    Args:
        task: with its Σ.
        KQ: KQ_11 of the positive head, then of the negative one.
        OV: μ of the same.
        products: Γ̂'s symmetric part.
    """

    task: LinearRegression
    KQ: Float[np.ndarray, "seeds heads dim dim"]
    OV: Float[np.ndarray, "seeds heads"]
    products: Float[np.ndarray, "seeds dim dim"]

    @classmethod
    def of(cls, runs: Iterable[Run]) -> Learned:
        """Read it off the snapshots."""
        task, parts = None, []
        for run in runs:
            task = run.task
            parts.append(_averages(run))
        assert isinstance(task, LinearRegression)  # a population of the bench has runs, and they have tasks
        KQ, OV, products = (np.array(part) for part in zip(*parts, strict=True))
        return cls(task, KQ, OV, symmetric(products))

    @property
    def sigma(self) -> Float[np.ndarray, "dim dim"]:
        """Σ."""
        return self.task.sigma

    @cached_property
    def candidates(self) -> dict[str, Float[np.ndarray, "dim dim"]]:
        """Γ*, Γ_deb and Σ⁻¹, in their own scale."""
        sizes = {"length": self.task.length, "noise_var": self.task.noise_var}
        return {
            PLAIN: theory.gd_preconditioner(self.sigma, **sizes),
            DEBIASED: theory.debiased_preconditioner(self.sigma, **sizes),
            INVERSE: np.linalg.inv(self.sigma),
        }

    def inverse_of(self, candidate: str) -> Float[np.ndarray, "dim dim"]:
        """A candidate's inverse."""
        return np.linalg.inv(self.candidates[candidate])

    def position(self, start: str, end: str) -> Float[np.ndarray, "seeds"]:
        """Of each seed's Γ̂, from one candidate (0) to another (1)."""
        return position(self.products, self.candidates[start], self.candidates[end])

    def distances(self, candidate: str) -> Float[np.ndarray, "seeds"]:
        """From each seed's Γ̂; noise adds to it."""
        return distance(self.products, self.candidates[candidate])

    def inverse_distances(self, target: Float[np.ndarray, "dim dim"]) -> Float[np.ndarray, "seeds"]:
        """From the inverses of KQ_11, the mean of both heads."""
        signs = np.array([1.0, -1.0])[:, None, None]
        return distance(signs * np.linalg.pinv(self.KQ), target).mean(1)


def _averages(run: Run) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """KQ_11, μ and Σ μ KQ_11 of the last fifth; the head of larger ω first."""
    assert run.dynamics is not None  # the bench trained it
    late = [run.circuits(step) for step in run.dynamics.late_steps()]
    KQ, OV = np.array([c.KQ_11[0] for c in late]), np.array([c.mu[0, :, 0] for c in late])
    order = np.argsort(-np.trace(KQ.mean(0), axis1=-2, axis2=-1))
    return KQ.mean(0)[order], OV.mean(0)[order], einsum(OV, KQ, "s h, s h i j -> i j") / len(late)


def symmetric(matrix: Matrix) -> Matrix:
    """The symmetric part."""
    return (matrix + np.swapaxes(matrix, -1, -2)) / 2


def unit(matrix: Matrix) -> Matrix:
    """At Frobenius norm 1."""
    return matrix / np.linalg.norm(matrix, axis=(-2, -1), keepdims=True)


def distance(matrix: Matrix, target: Matrix) -> np.ndarray:
    """Norm of the difference of two matrices at norm 1."""
    return np.linalg.norm(unit(matrix) - unit(target), axis=(-2, -1))


def position(matrix: Matrix, start: Float[np.ndarray, "dim dim"], end: Float[np.ndarray, "dim dim"]) -> np.ndarray:
    """⟨Γ̂ − A, B − A⟩/‖B − A‖² of matrices at norm 1: 0 at A, `start`, and 1 at B, `end`."""
    line = unit(end) - unit(start)
    return ((unit(matrix) - unit(start)) * line).sum((-2, -1)) / (line * line).sum()
