"""What several figures read off a run: roles of its heads, averages over its last fifth, and when something set in.

A final iterate is noisy (η by 0.9 %), so numbers of a trained model are those of the mean iterate of the last fifth of
its training, with an interval from batch means.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from icl_interp import estimates
from icl_interp.errors import ConfigError
from icl_interp.manifold import Groups
from icl_interp.probing import Estimate, mean_of
from icl_interp.records import Run
from icl_interp.reproduce.bench import Bench
from icl_interp.reproduce.trainings import MAIN
from icl_interp.roles import Heads, classify, reference_shape

BATCHES = 5  # of the last fifth: late iterates are autocorrelated, their means over a fifth of them hardly are
PROMPTS = 4_096  # that roles rest on

Quantity = Callable[[np.ndarray, np.ndarray], float]


@dataclass(frozen=True, eq=False)
class Course:
    """The training of a one-layer model of one response: ω and μ of every head at every record."""

    run: Run
    steps: Int[np.ndarray, "records"]
    omega: Float[np.ndarray, "records heads"]
    mu: Float[np.ndarray, "records heads"]

    @classmethod
    def of(cls, run: Run) -> Course:
        """Read it off the run's record.

        Raises:
            ConfigError: a run without one.
        """
        if run.dynamics is None:
            raise ConfigError("the run has no record of its training")
        d = run.dynamics
        return cls(run, d.steps, d.omega[:, 0].astype(float), d.mu[:, 0, :, 0].astype(float))

    @property
    def late(self) -> Bool[np.ndarray, "records"]:
        """Which records are of the last fifth."""
        return self.steps >= 0.8 * self.steps[-1]

    @property
    def late_omega(self) -> Float[np.ndarray, "heads"]:
        """Mean ω of the last fifth."""
        return self.omega[self.late].mean(0)

    @property
    def late_mu(self) -> Float[np.ndarray, "heads"]:
        """Mean μ of the last fifth."""
        return self.mu[self.late].mean(0)

    def measured(self, quantity: Quantity) -> Estimate:
        """`quantity` of the mean (ω, μ) of the last fifth; its t-interval from the means of successive batches."""
        batches = zip(
            np.array_split(self.omega[self.late], BATCHES), np.array_split(self.mu[self.late], BATCHES), strict=True
        )
        values = np.array([quantity(omega.mean(0), mu.mean(0)) for omega, mu in batches if len(omega)])
        value, half = quantity(self.late_omega, self.late_mu), mean_of(values).half
        if not np.isfinite([value, half]).all():
            return Estimate(value, -np.inf, np.inf, "training time")
        return Estimate(value, value - half, value + half, "training time")

    def nearest(self, step: int) -> int:
        """The index of the record that is nearest to `step`."""
        return int(np.abs(self.steps - step).argmin())

    def settled(self, holds: Bool[np.ndarray, "records"]) -> int | None:
        """The step of the first record from which on it `holds`; None if it does not hold at the last."""
        broken = np.flatnonzero(~holds)
        at = int(broken[-1]) + 1 if len(broken) else 0
        return int(self.steps[at]) if at < len(self.steps) else None


def heads_of(bench: Bench, run: Run) -> Heads:
    """Roles of the run's heads in the end, judged by what they do to predictions."""
    task = run.task or MAIN
    shape = reference_shape(task, run.model_config.dim)
    return classify(run.circuits(), bench.prompts("roles", task, PROMPTS), shape)


def groups_of(heads: Heads) -> Groups:
    """The positive and the negative heads."""
    return Groups(heads.are("positive"), heads.are("negative"))


def head_names(heads: Heads) -> tuple[str, ...]:
    """Heads as pictures call them: "head 0 (positive)"."""
    return tuple(f"head {h} ({role})" for h, role in enumerate(heads.roles))


def first_record(step: int | None) -> str:
    """A step from which on something holds, in words."""
    return "at no point of this training" if step is None else f"from step {step:,} on"


def share_of(hits: Bool[np.ndarray, "runs"], streams: Int[np.ndarray, "runs"]) -> Estimate:
    """The share of hits with its Clopper–Pearson interval, for as many runs as those of shared streams are worth.

    Where hits of one stream go together, the variance of the share is larger than that of independent runs; the sample
    counts as that much smaller, never as larger.
    """
    n, rate = len(hits), float(hits.mean())
    _, stream = np.unique(streams, return_inverse=True)
    groups = int(stream.max()) + 1
    if 0 < rate < 1 and groups > 1:
        excess = np.bincount(stream, hits - rate)
        variance = float(excess @ excess) / n**2 * groups / (groups - 1)
        n /= max(1.0, variance / (rate * (1 - rate) / (n - 1)))
    return estimates.share_of(rate * n, n, "seeds")
