"""Numbers of a model's ideal selves, the kernel regressors of its ω and μ, with all of their error.

Labels are integrated out and risks are then known ten times as precisely as by plain sampling (`icl_interp.surfaces`),
at given ω and μ.  But μ is itself a regression on prompts, and what is small, such as the distance to debiased gradient
descent, varies more with it than with the prompts of the average.  Both errors are added.  No probe is declared here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from icl_interp.probing import Estimate, propagate
from icl_interp.roles import Heads
from icl_interp.surfaces import Moments
from icl_interp_probes.shown import joined

ByMu = Callable[[Float[np.ndarray, "*draws heads"]], np.ndarray]


@dataclass(frozen=True, eq=False)
class IdealSelves:
    """The heads' ideal selves and debiased GD with their η, whose error is that of the prompts and that of μ."""

    moments: Moments
    heads: Heads
    seed: int

    def gap(self) -> Estimate:
        """Root mean square of their difference."""
        sampled = self.moments.mean_square(self._apart(self._mu)).map(root)
        energy = self.moments.energy
        return with_error_of_mu(
            sampled,
            lambda mu: np.sqrt(np.maximum(np.einsum("...h,hk,...k", self._apart(mu), energy, self._apart(mu)), 0)),
            self.heads,
            self.seed,
            size=True,
        )

    def risk(self) -> Estimate:
        """Of the ideal selves."""
        sampled = self.moments.risk(self._own(self._mu))
        return with_error_of_mu(sampled, lambda mu: self.moments.risks(self._own(mu)), self.heads, self.seed)

    def price(self) -> Estimate:
        """Risk of the ideal selves minus that of the step."""
        sampled = self.moments.risk_difference(self._own(self._mu), self._step(self._mu))
        return with_error_of_mu(
            sampled,
            lambda mu: self.moments.risks(self._own(mu)) - self.moments.risks(self._step(mu)),
            self.heads,
            self.seed,
        )

    @property
    def _mu(self) -> np.ndarray:
        return self.heads.mu[:, 0]

    def _own(self, mu: np.ndarray) -> np.ndarray:
        return np.concatenate([mu, 0 * mu[..., :1]], -1)

    def _step(self, mu: np.ndarray) -> np.ndarray:
        return np.concatenate([0 * mu, (mu * self.heads.omega).sum(-1, keepdims=True)], -1)

    def _apart(self, mu: np.ndarray) -> np.ndarray:
        return self._own(mu) - self._step(mu)


def with_error_of_mu(sampled: Estimate, of_mu: ByMu, heads: Heads, seed: int, *, size: bool = False) -> Estimate:
    """What is `sampled` at the heads' μ, with the error that μ has: `of_mu` says the number at many μ.

    `size` as for `propagate`.
    """
    known = heads.mu[:, 0], heads.mu_half[:, 0]
    return joined(sampled, propagate(of_mu, known, seed=seed, batched=True, size=size))


def root(square: float) -> float:
    """Of what is not negative but for rounding and noise."""
    return float(np.sqrt(max(square, 0.0)))
