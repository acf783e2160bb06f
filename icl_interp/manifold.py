"""Where (ω, μ) lie relative to the solution manifold S*_γ (arXiv 2503.12734, (4.2)–(4.8)).

The manifold at γ: ω_h ∈ {γ, −γ, 0}; the μ of the positive heads sum to μ_γ, those of the negative ones to −μ_γ, those
of the others to zero.  γ is hardly decided by the loss (a river valley), so distances are taken at the model's own γ.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeGuard

import numpy as np
from jaxtyping import Bool, Float

from icl_interp import theory
from icl_interp.tasks import LinearRegression, Task

Heads = Float[np.ndarray, "*some heads"]
Quantities: TypeAlias = Any  # a number of one (ω, μ), of several an array: Float[np.ndarray, "*some"]


@dataclass(frozen=True, eq=False)
class Groups:
    """Which heads are positive and which negative; the quantities that theory speaks of, as functions of (ω, μ).

    Each takes one (ω, μ), or as many as ω and μ have leading axes, and then gives one number for each.
    """

    positive: Bool[np.ndarray, "heads"]
    negative: Bool[np.ndarray, "heads"]

    @property
    def attending(self) -> Bool[np.ndarray, "heads"]:
        """Heads of either sign."""
        return self.positive | self.negative

    def gamma(self, omega: Heads, mu: Heads) -> Quantities:
        """γ, the mean |ω| of attending heads weighted by |μ|, so that η = γ Σ|μ| where signs match; NaN without any."""
        return self._mean(np.abs(omega), mu)

    def spread(self, omega: Heads, mu: Heads) -> Quantities:
        """Root-mean-square deviation of |ω| from γ, relative to γ and weighted by |μ|: zero on the manifold (4.4)."""
        gamma = self.gamma(omega, mu)
        return self._mean((np.abs(omega) / gamma[..., None] - 1) ** 2, mu) ** 0.5

    @np.errstate(invalid="ignore")
    def imbalance(self, omega: Heads, mu: Heads) -> Quantities:
        """|Σμ| / Σ|μ|, zero on the manifold (4.2); NaN where all μ are zero."""
        return np.abs(mu.sum(-1)) / np.abs(mu).sum(-1)

    def step(self, omega: Heads, mu: Heads) -> Quantities:
        """η = Σ ωμ, the effective learning rate (4.3)."""
        return (omega * mu).sum(-1)

    def positive_sum(self, omega: Heads, mu: Heads) -> Quantities:
        """Σμ over positive heads."""
        return mu[..., self.positive].sum(-1)

    def negative_sum(self, omega: Heads, mu: Heads) -> Quantities:
        """Σμ over negative heads."""
        return mu[..., self.negative].sum(-1)

    def target(self, omega: Heads, mu: Heads, mu_of: Callable[[float], float]) -> Quantities:
        """`mu_of` at γ: μ_γ, which the sums of μ over heads of either sign should have (4.6)."""
        return np.vectorize(mu_of, otypes=[float])(self.gamma(omega, mu))[()]

    @np.errstate(invalid="ignore", divide="ignore", over="ignore")
    def distance(self, omega: Heads, mu: Heads, mu_of: Callable[[float], float]) -> Quantities:
        """Relative distance to S*_γ at the own γ: root of the mean squared misses of |ω|/γ and of the sums of μ/μ_γ."""
        target = self.target(omega, mu, mu_of)
        missed = self.positive_sum(omega, mu) - target, self.negative_sum(omega, mu) + target
        others = mu[..., ~self.attending].sum(-1)
        sums = (missed[0] ** 2 + missed[1] ** 2) / 2 + others**2
        distance = np.sqrt(self.spread(omega, mu) ** 2 + sums / target**2)
        return np.where(target < 1e-100, np.inf, distance)[()]  # γ is so large that no μ is wanted at all

    @np.errstate(invalid="ignore")
    def _mean(self, values: np.ndarray, mu: np.ndarray) -> Quantities:
        weights = np.abs(mu) * self.attending
        return (values * weights).sum(-1) / weights.sum(-1)


def manifold_mu(task: Task | None) -> Callable[[float], float] | None:
    """μ_γ as a function of γ under `task`; None unless it is linear regression with Σ = v·I and centred covariates.

    Covariates of variance v are unit ones with γ·v in place of γ, and v times the signal.
    """
    if not _is_isotropic(task):
        return None
    v = float(task.sigma[0, 0])
    return lambda gamma: theory.manifold_mu(
        gamma * v, dim=task.dim, length=task.length, noise_var=task.noise_var, signal_var=task.signal_var * v
    )


def one_head_formula(task: Task | None) -> tuple[float, float] | None:
    """(ω, μ) of (4.12), the approximate loss' one-head minimum; None as for `manifold_mu`."""
    if not _is_isotropic(task):
        return None
    v = float(task.sigma[0, 0])
    omega, mu = theory.single_head_optimum(
        dim=task.dim, length=task.length, noise_var=task.noise_var, signal_var=task.signal_var * v
    )
    return omega / v, mu


def optimal_step(task: Task | None) -> float | None:
    """η*, the optimal step of debiased GD along G (of trace d); None unless linear regression on centred covariates."""
    if not isinstance(task, LinearRegression) or not task.centred:
        return None
    optimum = theory.debiased_preconditioner(
        task.sigma, length=task.length, noise_var=task.noise_var, signal_var=task.signal_var
    )
    return float(np.trace(optimum) / task.dim)


def _is_isotropic(task: Task | None) -> TypeGuard[LinearRegression]:
    return isinstance(task, LinearRegression) and task.isotropic and task.centred
