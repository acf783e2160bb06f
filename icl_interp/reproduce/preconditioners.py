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

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from einops import einsum
from jaxtyping import Float
from torch import Tensor

from icl_interp import theory
from icl_interp.probing import Estimate, mean_of
from icl_interp.records import Run
from icl_interp.reproduce.bench import Bench
from icl_interp.tasks import LinearRegression, Prompt

Matrix = Float[np.ndarray, "*stack dim dim"]

PLAIN, DEBIASED, INVERSE = "Γ*", "Γ_deb", "Σ⁻¹"
# Iterates scatter by this much about their mean, relative to Γ̂.  By its square, at most, can noise move that mean.
ITERATE = 0.02


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


# --- Γ_deb or Γ*? -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Positions:
    """From Γ_deb (0) to Γ* (1).

    Args:
        measured: of Γ̂.
        expected: of the Γ at which the true risk of two opposite heads is least, at the γ of these runs.
        judged: measured − expected, with what noise may have done to the mean of iterates.
    """

    measured: Estimate
    expected: Estimate
    judged: Estimate

    @classmethod
    def of(cls, bench: Bench, population: Learned) -> Positions:
        """Both, for a population."""
        deb, plain = population.candidates[DEBIASED], population.candidates[PLAIN]
        prompts = bench.prompts("figure-12", population.task)
        best = deb + bends(population.task, float(np.abs(population.OV).mean()), prompts)
        measured = mean_of(population.position(DEBIASED, PLAIN), "seeds")
        expected = mean_of(position(best, deb, plain))
        value = measured.value - expected.value
        half = math.hypot(measured.half, expected.half) + ITERATE**2 / float(distance(deb, plain))
        return cls(measured, expected, Estimate(value, value - half, value + half, "seeds"))


def bends(task: LinearRegression, mu: float, prompts: Iterable[Prompt]) -> Float[np.ndarray, "pieces dim dim"]:
    """By how much the best Γ of heads KQ_11 = ±Γ/(2μ), OV = ±μ differs from Γ_deb, to which it tends as μ → ∞.

    One Newton step from Γ_deb with the Hessian of debiased gradient descent, whose own gradient vanishes there and is
    taken off on the same prompts.  Reflecting a principal axis of Σ changes no risk, so that the best Γ is diagonal
    in them, and only that part is kept: −d g_ii/(2(1 − 1/L) b_i s_i²), with s_i the eigenvalues of Σ and b_i those of
    Γ_deb⁻¹.  One answer for each piece of `prompts`.
    """
    deb = theory.debiased_preconditioner(task.sigma, length=task.length, noise_var=task.noise_var)
    s, axes = np.linalg.eigh(task.sigma)
    b = 1 / np.diag(axes.T @ deb @ axes)
    slopes = np.array([np.diag(axes.T @ slope(prompt, task, deb, mu) @ axes) for prompt in prompts])
    steps = -task.dim * slopes / (2 * (1 - 1 / task.length) * b * s**2)
    return np.einsum("id,pd,jd->pij", axes, steps, axes)


def slope(prompt: Prompt, task: LinearRegression, gamma: Float[np.ndarray, "dim dim"], mu: float) -> np.ndarray:
    """The gradient in Γ of the risk of two heads minus that of debiased gradient descent."""
    variable = torch.tensor(gamma, dtype=prompt.x.dtype, requires_grad=True)
    scores = einsum(prompt.x, variable, prompt.x_q, "b l i, i j, b j -> b l")
    heads = mu * (torch.softmax(scores / (2 * mu), -1) - torch.softmax(-scores / (2 * mu), -1))
    debiased = (scores - scores.mean(-1, keepdim=True)) / prompt.length
    (_risk(heads, prompt, task) - _risk(debiased, prompt, task)).backward()
    assert variable.grad is not None  # it was asked for
    return variable.grad.numpy()


def _risk(weights: Float[Tensor, "batch length"], prompt: Prompt, task: LinearRegression) -> Tensor:
    """Of predicting Σ w_ℓ y_ℓ, labels integrated out, but for the query's noise."""
    missed = einsum(weights, prompt.x, "b l, b l d -> b d") - prompt.x_q
    return (missed.square().sum(-1) / task.dim + task.noise_var * weights.square().sum(-1)).mean()
