"""Where (ω, μ) lie relative to the solution manifold S*_γ (arXiv 2503.12734, (4.2)–(4.8)).

The manifold at γ: ω_h ∈ {γ, −γ, 0}; the μ of the positive heads sum to μ_γ, those of the negative ones to −μ_γ, those
of the others to zero.  γ is hardly decided by the loss (a river valley), so distances are taken at the model's own γ.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeGuard

import numpy as np
from jaxtyping import Bool, Float

from icl_interp import theory
from icl_interp.tasks import LinearRegression, Task


@dataclass(frozen=True, eq=False)
class Groups:
    """Which heads are positive and which negative; the quantities that theory speaks of, as functions of (ω, μ)."""

    positive: Bool[np.ndarray, "heads"]
    negative: Bool[np.ndarray, "heads"]

    @property
    def attending(self) -> Bool[np.ndarray, "heads"]:
        """Heads of either sign."""
        return self.positive | self.negative

    def gamma(self, omega: Float[np.ndarray, "heads"], mu: Float[np.ndarray, "heads"]) -> float:
        """γ, the mean |ω| of attending heads weighted by |μ|, so that η = γ Σ|μ| where signs match; NaN without any."""
        return self._mean(np.abs(omega), mu)

    def spread(self, omega: Float[np.ndarray, "heads"], mu: Float[np.ndarray, "heads"]) -> float:
        """Root-mean-square deviation of |ω| from γ, relative to γ and weighted by |μ|: zero on the manifold (4.4)."""
        gamma = self.gamma(omega, mu)
        return self._mean((np.abs(omega) / gamma - 1) ** 2, mu) ** 0.5

    def imbalance(self, omega: Float[np.ndarray, "heads"], mu: Float[np.ndarray, "heads"]) -> float:
        """|Σμ| / Σ|μ|, zero on the manifold (4.2)."""
        return float(abs(mu.sum()) / np.abs(mu).sum()) if mu.any() else np.nan

    def step(self, omega: Float[np.ndarray, "heads"], mu: Float[np.ndarray, "heads"]) -> float:
        """η = Σ ωμ, the effective learning rate (4.3)."""
        return float(omega @ mu)

    def positive_sum(self, omega: Float[np.ndarray, "heads"], mu: Float[np.ndarray, "heads"]) -> float:
        """Σμ over positive heads."""
        return float(mu[self.positive].sum())

    def negative_sum(self, omega: Float[np.ndarray, "heads"], mu: Float[np.ndarray, "heads"]) -> float:
        """Σμ over negative heads."""
        return float(mu[self.negative].sum())

    def distance(
        self, omega: Float[np.ndarray, "heads"], mu: Float[np.ndarray, "heads"], mu_of: Callable[[float], float]
    ) -> float:
        """Relative distance to S*_γ at the own γ: root of the mean squared misses of |ω|/γ and of the sums of μ/μ_γ."""
        target = mu_of(self.gamma(omega, mu))
        if target < 1e-100:  # γ is so large that no μ is wanted at all
            return np.inf
        sums = np.array([self.positive_sum(omega, mu) - target, self.negative_sum(omega, mu) + target])
        others = mu[~self.attending].sum()
        return float(np.sqrt(self.spread(omega, mu) ** 2 + ((sums**2).mean() + others**2) / target**2))

    def _mean(self, values: np.ndarray, mu: np.ndarray) -> float:
        weights = np.abs(mu) * self.attending
        return float(values @ weights / weights.sum()) if weights.any() else np.nan


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
