"""Which (ω, μ) claims are judged on, and with what error.  No probe is declared here.

A final iterate is noisy (η by about 0.9 %), so where the training was recorded claims are judged on the mean iterate of
its last fifth, with an error from batch means; else on the checkpoint itself, with the errors of its own ω and μ.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from icl_interp.circuits import Circuits
from icl_interp.probing import Context, Estimate, Need, mean_of, propagate
from icl_interp_probes.shown import around

BATCHES = 5  # the late iterates are autocorrelated, their means over a fifth of them hardly are

Quantity = Callable[[np.ndarray, np.ndarray], float]
Read = Callable[[Circuits], tuple[np.ndarray, np.ndarray]]
Known = tuple[np.ndarray, np.ndarray]  # values, and half-widths of their 95 % intervals


@dataclass(frozen=True, eq=False)
class Iterates:
    """(ω, μ) of every head, at one or several steps, in any shape.

    Args:
        omega, mu: with the iterates first.
        name: what they are, in words.
        errors: half-widths of ω and μ where there is a single iterate.
        seed, draws: of the errors' propagation.
    """

    omega: Float[np.ndarray, "iterates heads *of_each"]
    mu: Float[np.ndarray, "iterates heads *outputs"]
    name: str
    errors: tuple[np.ndarray, np.ndarray] | None = None
    seed: int = 0
    draws: int = 1_000

    @classmethod
    def of(cls, context: Context, read: Read, omega: Known, mu: Known, draws: int = 1_000) -> Iterates:
        """The late iterates, as `read` gives (ω, μ) of circuits; `omega` and `mu` where they are too few.

        Needs (or uses) DYNAMICS.
        """
        late = context.late_circuits() if context.offers(Need.DYNAMICS) else []
        if len(late) < 2 * BATCHES:
            errors = omega[1], mu[1]
            return cls(omega[0][None], mu[0][None], "the checkpoint itself", errors, context.seed, draws)
        pairs = [read(circuits) for circuits in late]
        name = f"the mean of {len(pairs)} iterates in the last fifth of training"
        return cls(np.array([pair[0] for pair in pairs]), np.array([pair[1] for pair in pairs]), name)

    @property
    def mean(self) -> tuple[np.ndarray, np.ndarray]:
        """(ω, μ) of the mean iterate."""
        return self.omega.mean(0), self.mu.mean(0)

    def estimate(self, quantity: Quantity) -> Estimate:
        """`quantity` of the mean iterate; its interval from the means of successive batches, or from the errors."""
        omega, mu = self.mean
        if self.errors is not None:
            known = (omega, self.errors[0]), (mu, self.errors[1])
            return propagate(quantity, *known, seed=self.seed, draws=self.draws)
        batches = zip(np.array_split(self.omega, BATCHES), np.array_split(self.mu, BATCHES), strict=True)
        half = mean_of(np.array([quantity(w.mean(0), m.mean(0)) for w, m in batches])).half
        return around(quantity(omega, mu), half, "training time")
