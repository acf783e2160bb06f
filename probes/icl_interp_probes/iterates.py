"""Which (ω, μ) claims are judged on, and with what error.  No probe is declared here.

A final iterate is noisy (η by about 0.9 %), so where the training was recorded claims are judged on the mean iterate of
its last fifth, with an error from batch means; else on the checkpoint itself, with the errors of its own ω and μ.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
from jaxtyping import Float
from scipy import stats

from icl_interp.circuits import Circuits
from icl_interp.estimates import LEVEL
from icl_interp.probing import Context, Estimate, Need, mean_of, propagate
from icl_interp_probes.shown import around

BATCHES = 5  # the late iterates are autocorrelated, their means over a fifth of them hardly are

Quantity = Callable[[np.ndarray, np.ndarray], float | np.ndarray]
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

    def estimate(self, quantity: Quantity, *, batched: bool = False, size: bool = False) -> Estimate:
        """`quantity` of the mean iterate; its interval from the means of successive batches, or from the errors.

        `batched` is for quantities of many (ω, μ) at once, `size` for norms and absolute values (`propagate`).
        """
        omega, mu = self.mean
        simulated = partial(propagate, seed=self.seed, draws=self.draws, batched=batched, size=size)
        if self.errors is not None:
            return simulated(quantity, (omega, self.errors[0]), (mu, self.errors[1]))
        batches = [np.array([part.mean(0) for part in np.array_split(of, BATCHES)]) for of in (self.omega, self.mu)]
        if size:
            return self._size(simulated, quantity, *batches)
        half = mean_of(np.array([quantity(*batch) for batch in zip(*batches, strict=True)])).half
        return around(float(quantity(omega, mu)), half, "training time")

    def _size(
        self, simulated: Callable[..., Estimate], quantity: Quantity, omega: np.ndarray, mu: np.ndarray
    ) -> Estimate:
        """A size, from batch means: the mean of all varies as if each batch's were added with a random weight."""
        weight = stats.t.ppf((1 + LEVEL) / 2, BATCHES - 1) / (BATCHES * (BATCHES - 1)) ** 0.5

        def moved(weights: np.ndarray) -> float | np.ndarray:
            return quantity(
                *(of + np.tensordot(weights, each - of, 1) for of, each in zip(self.mean, (omega, mu), strict=True))
            )

        return simulated(moved, (np.zeros(BATCHES), np.full(BATCHES, weight)), covers="training time")
