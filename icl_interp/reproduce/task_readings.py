"""What the figures of several tasks read off a population: how its runs share heads, and how their work differs.

Numbers of a run are those of its mean iterate of the last fifth of training, with an interval from batch means.  Its
mode is read off (ω, μ) of that iterate, and again off the final model, by removing its heads.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.optimize import minimize

from icl_interp import theory
from icl_interp.probing import Estimate, mean_of
from icl_interp.records import Run
from icl_interp.reproduce.bench import Bench
from icl_interp.reproduce.readings import BATCHES, share_of
from icl_interp.reproduce.task_quantities import Mu, Omega, Quantity, levels
from icl_interp.sharing import BALANCED, SWAPPED, Mode, Sharing, swapped_steps
from icl_interp.sharing_effects import Effects
from icl_interp.task_risks import task_moments
from icl_interp.tasks import MultiTaskRegression, Prompt

PROMPTS = 4_096  # on which heads are removed, the same for every run


@dataclass(frozen=True, eq=False)
class Ended:
    """How one run ended.

    Args:
        seed: of its initial weights.
        stream: of its prompts.
        loss: mean over the last fifth of training, of fresh prompts and over tasks.
        omega: diagonals of KQ_11 at the snapshots of the last fifth.
        mu: diagonals of OV_22 at the same.
        swapped: the steps that swapped heads make (`sharing`), of the mean iterate.
        by_effect: what removing heads of the final model says.
    """

    seed: int
    stream: int
    loss: float
    omega: Float[np.ndarray, "iterates heads features"]
    mu: Float[np.ndarray, "iterates heads tasks"]
    swapped: Float[np.ndarray, "tasks features"]
    by_effect: Sharing

    @classmethod
    def of(cls, run: Run, prompts: Sequence[Prompt]) -> Ended:
        """Read it off a run's record, and remove heads on `prompts`."""
        assert run.dynamics is not None  # the bench trained it
        assert run.training is not None
        late = [run.circuits(step) for step in run.dynamics.late_steps()]
        records = run.dynamics.steps >= 0.8 * run.dynamics.steps[-1]
        return cls(
            run.training.seed,
            run.training.prompt_seed,
            float(run.dynamics.loss[records].mean()),
            np.array([circuits.diagonal[0] for circuits in late]),
            np.array([circuits.mu[0] for circuits in late]),
            np.mean([swapped_steps(circuits) for circuits in late], axis=0),
            Effects.measure(run.circuits(), prompts).sharing(),
        )

    @property
    def mean(self) -> tuple[Omega, Mu]:
        """(ω, μ) of the mean iterate."""
        return self.omega.mean(0), self.mu.mean(0)

    @cached_property
    def sharing(self) -> Sharing:
        """Who does what, by the weights of the mean iterate."""
        return Sharing.of_weights(*self.mean, swapped=self.swapped)

    @property
    def state(self) -> str:
        """Its mode, or what it is where it is in none."""
        if self.sharing.mode != "other":
            return self.sharing.mode
        if self.sharing.swapped_part.max() >= SWAPPED:
            return "swapped: some heads attend by labels and read covariates, by KQ_21 and OV_21"
        balanced, tasks = int((self.sharing.imbalance < BALANCED).sum()), len(self.sharing.imbalance)
        if balanced == tasks:
            return "between modes: Σμ = 0 for every task, but steps are neither alike nor each task's own"
        return f"between modes: Σμ = 0 for {balanced or 'none'} of {tasks} tasks"

    @property
    def confirmed(self) -> bool:
        """Whether removing heads says the same mode as the weights."""
        return self.by_effect.mode == self.sharing.mode

    def measured(self, quantity: Quantity) -> Estimate:
        """`quantity` of the mean (ω, μ); its t-interval from the means of successive batches."""
        batches = zip(np.array_split(self.omega, BATCHES), np.array_split(self.mu, BATCHES), strict=True)
        half = mean_of(np.array([quantity(w.mean(0), m.mean(0)) for w, m in batches if len(w)])).half
        value = quantity(*self.mean)
        if not np.isfinite([value, half]).all():
            return Estimate(value, -np.inf, np.inf, "training time")
        return Estimate(value, value - half, value + half, "training time")


@dataclass(frozen=True, eq=False)
class Population:
    """All runs of one training name.

    Args:
        task: theirs.
        steps: that each took.
        runs: how each ended.
    """

    task: MultiTaskRegression
    steps: int
    runs: tuple[Ended, ...]

    @classmethod
    def of(cls, bench: Bench, name: str) -> Population:
        """Read it off the records, one run at a time; heads are removed on the same prompts in every population."""
        task, steps, ended, prompts = None, 0, [], []
        for run in bench.runs(name):
            if task is None:
                assert isinstance(run.task, MultiTaskRegression)  # the catalogue has no others of this name
                task, steps = run.task, run.step or 0
                prompts = list(bench.prompts("two tasks, heads removed", task, PROMPTS))
            ended.append(Ended.of(run, prompts))
        assert task is not None  # populations have runs
        return cls(task, steps, tuple(ended))

    @property
    def n_heads(self) -> int:
        """Heads of each model."""
        return self.runs[0].omega.shape[1]

    @property
    def uses(self) -> Bool[np.ndarray, "tasks features"]:
        """The supports."""
        return self.task.uses

    @property
    def streams(self) -> Int[np.ndarray, "runs"]:
        """Of prompts, run by run."""
        return np.array([run.stream for run in self.runs])

    def share(self, hits: Bool[np.ndarray, "runs"]) -> Estimate:
        """Of runs that are hits; its interval counts those of one stream as fewer where they go together."""
        return share_of(hits, self.streams)

    def hits(self, mode: Mode) -> Bool[np.ndarray, "runs"]:
        """Which runs are in a mode."""
        return np.array([run.sharing.mode == mode for run in self.runs])

    def those(self, mode: Mode) -> list[Ended]:
        """The runs in a mode."""
        return [run for run in self.runs if run.sharing.mode == mode]

    def drawn(self, mode: Mode) -> int:
        """Which run a figure shows: the first in the mode, or the first of all where none is."""
        return int(self.hits(mode).argmax())


# --- One head for all tasks -------------------------------------------------------------------------------------------


def approximate_optimum(task: MultiTaskRegression) -> Float[np.ndarray, "numbers"]:
    """ω at each of `levels`, and μ: of the head that makes the approximate loss, (4.1) for each task, least."""
    uses = task.uses
    counts, level = levels(uses)

    def loss(numbers: np.ndarray) -> float:
        mu = np.full((1, len(uses)), numbers[-1])
        sizes = {"length": task.length, "noise_var": task.noise_var, "signal_var": task.signal_var}
        return float(theory.task_approximate_loss(numbers[level][None], mu, uses, **sizes).mean())

    start = np.append(np.full(len(counts), task.dim**-0.5), 1.5)
    return minimize(loss, start, method="Nelder-Mead", options={"xatol": 1e-6, "fatol": 1e-12}).x


def risk_optima(
    task: MultiTaskRegression, prompts: Iterable[Prompt]
) -> tuple[Float[np.ndarray, "pieces numbers"], Float[np.ndarray, "pieces"]]:
    """The same for the true risk, on each piece of the prompts; and that risk, the mean over tasks."""
    _, level = levels(task.uses)
    start, numbers, risks = approximate_optimum(task)[:-1], [], []
    for piece in prompts:

        def measured(at: np.ndarray, piece: Prompt = piece) -> tuple[np.ndarray, float]:
            moments = task_moments(at[level][None], piece, task)
            mu = moments.best_mu()
            return mu, float(np.mean([risk.value for risk in moments.risks(mu)]))

        best = minimize(lambda at: measured(at)[1], start, method="Nelder-Mead", options={"xatol": 1e-3, "fatol": 1e-6})
        mu, risk = measured(best.x)
        numbers.append(np.append(best.x, mu.mean()))
        risks.append(risk)
    return np.array(numbers), np.array(risks)
