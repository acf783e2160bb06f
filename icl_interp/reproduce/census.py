"""How runs of many seeds share heads between tasks: what the map of superposition counts.

Heads have two ways to take part in gradient descent.  The paper's (arXiv 2503.12734, section 5.4) is to match
covariates, x_ℓᵀ KQ_11 x_q, and to read labels, μ_n y_nℓ.  The other has the roles swapped: attend by a label,
y_nℓ·kᵀx_q with k the row of KQ_21, and read covariates, oᵀx_ℓ with o the row of OV_21.  As y_nℓ x_ℓ averages to β_n,
together they predict β_nᵀ E_n x_q to first order, with

    E_n = Σ_h μ_n^h KQ_11^h + o_n^h (k_n^h)ᵀ

A swapped head adds a matrix of rank one, so that a task takes |S_n| of them at least.  As Σ_h μ_n^h = 0 keeps the mean
label out of the prediction, Σ_h o_n^h = 0 keeps the mean covariate out of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Literal, get_args

import numpy as np
from jaxtyping import Float

from icl_interp import theory
from icl_interp.circuits import Circuits
from icl_interp.errors import ConfigError
from icl_interp.probing import Estimate
from icl_interp.records import Run, Runs
from icl_interp.reproduce.figures.basin import LATE
from icl_interp.reproduce.readings import share_of
from icl_interp.reproduce.trainings import Site
from icl_interp.sharing import BALANCED, CLEAR, SWAPPED, Sharing, own_steps, same_supports, step_risks, swapped_steps
from icl_interp.tasks import MultiTaskRegression

Kind = Literal["I", "II", "III", "IV", "packed", "swapped", "other"]
KINDS: tuple[Kind, ...] = get_args(Kind)
PACKED = 0.02  # above the least risk that the directions allow; runs that get there are within 0.001 of it

Steps = Float[np.ndarray, "tasks features"]


@dataclass(frozen=True)
class Reading:
    """One run, by the mean of its last fifth.

    Args:
        kind: its mode; "swapped", a task gets a tenth of its steps from swapped heads; "packed", the best steps for
            all tasks that H − 1 directions allow, where that is neither one predictor for all nor one for each.
        resolved: whether every task has the best step on its own features and none elsewhere, in whichever way, and
            heads whose means cancel.
        swapped: the largest part of a task's steps that comes from swapped heads.
        score: superposition, by `Sharing`.
        loss: mean over the tasks.
        stream: of prompts.
    """

    kind: Kind
    resolved: bool
    swapped: float
    score: float
    loss: float
    stream: int

    @classmethod
    def of(cls, run: Run) -> Reading:
        """Read it off the run's record.

        Raises:
            ConfigError: a run without one, or of another task.
        """
        task, dynamics = run.task, run.dynamics
        if not isinstance(task, MultiTaskRegression) or dynamics is None or run.training is None:
            raise ConfigError("the map is made of runs that were trained on several tasks, with their records")
        late = [run.circuits(step) for step in dynamics.late_steps()]
        omega, mu, swapped, read = (np.mean([part(each) for each in late], 0) for part in _PARTS)
        sharing = Sharing.of_weights(*mirrored(omega, mu, task), same_supports(task.uses), swapped)
        part = sharing.swapped_part
        return cls(
            kind=_kind(sharing, task, run.model_config.n_heads),
            resolved=_resolved(sharing.steps, sharing.imbalance * (1 - part), task)
            and bool((_lean(read) * part).max() <= BALANCED),
            swapped=float(part.max()),
            score=sharing.score,
            loss=float(dynamics.loss[dynamics.steps >= (1 - LATE) * dynamics.steps[-1]].mean()),
            stream=run.training.prompt_seed,
        )


@dataclass(frozen=True, eq=False)
class Census:
    """The population of one site.

    Args:
        site: where on the map.
        readings: one a run.
        folder: of the runs, as it is called beside the page.
    """

    site: Site
    readings: tuple[Reading, ...]
    folder: str

    @classmethod
    def of(cls, site: Site, runs: Runs) -> Census:
        """Read every run, one at a time."""
        folder = "/".join(runs.folder.parts[-3:]) if runs.folder else ""
        return cls(site, tuple(Reading.of(run) for run in runs), folder)

    @property
    def losses(self) -> Float[np.ndarray, "runs"]:
        """Of each run."""
        return np.array([reading.loss for reading in self.readings])

    @property
    def scores(self) -> Float[np.ndarray, "runs"]:
        """Of each run."""
        return np.array([reading.score for reading in self.readings])

    @cached_property
    def own_risk(self) -> float:
        """Debiased gradient descent for each task on its own, with its best step; mean over the tasks."""
        return mean_risk(own_steps(self.site.task), self.site.task)

    @cached_property
    def least_risk(self) -> float:
        """The same with the best steps that so many heads allow, one direction being taken by Σμ = 0; NaN for one."""
        if self.site.heads == 1:
            return float("nan")
        return mean_risk(best_steps(self.site.task, self.site.heads - 1), self.site.task)

    def share(self, hit: Callable[[Reading], bool]) -> Estimate:
        """Of the runs that are hits."""
        return share_in([self], hit)


def share_in(censuses: Iterable[Census], hit: Callable[[Reading], bool]) -> Estimate:
    """The share of hits among the runs of several sites; those of one site and stream may go together."""
    found = [(hit(r), (i, r.stream)) for i, census in enumerate(censuses) for r in census.readings]
    streams = np.unique([at for _, at in found], axis=0, return_inverse=True)[1].ravel()
    return share_of(np.array([each for each, _ in found]), streams)


def mirrored(omega: np.ndarray, mu: np.ndarray, task: MultiTaskRegression) -> tuple[np.ndarray, np.ndarray]:
    """(ω, μ) with the signs of each separate part of the tasks chosen so that their steps are as alike as can be.

    Where tasks share no feature, nothing changes if ω on the features of one and its μ change sign together: its own
    steps stay as they are, and steps on features it does not use are as harmful with either sign.
    """
    omega, mu = omega.copy(), mu.copy()
    uses = task.uses
    first, *others = _separate(uses)
    for part in others:
        steps = theory.group_steps(omega, mu)
        if (steps[first].sum(0) * steps[part].sum(0)).sum() < 0:
            omega[:, uses[part].any(0)] *= -1
            mu[:, part] *= -1
        first = [*first, *part]
    return omega, mu


@cache
def best_steps(task: MultiTaskRegression, rank: int) -> Steps:
    """The E of a given rank at which `theory.task_gd_risks` add up to least.

    A low-rank approximation of `sharing.own_steps` with weights, found by alternating least squares from 32 random
    starts: an entry off the support costs less than one on it.
    """
    target = own_steps(task).astype(float)
    if rank >= np.linalg.matrix_rank(target):
        return target
    uses = task.uses
    weights = uses / uses.sum(1, keepdims=True) + (1 + task.noise_var / task.signal_var) / task.length
    right = np.random.default_rng(0).standard_normal((32, rank, task.dim))
    for _ in range(500):
        left = _solved(right, weights, target)
        right = _solved(left, weights.T, target.T)
    found = np.einsum("srn,srd->snd", left, right)  # pyright: ignore[reportPossiblyUnboundVariable]
    return found[(weights * (found - target) ** 2).sum((1, 2)).argmin()]


def mean_risk(steps: Steps, task: MultiTaskRegression) -> float:
    """`theory.task_gd_risks`, the mean over the tasks: what the loss of a training is."""
    return float(step_risks(task, steps).mean())


# ω, μ, the diagonals of Σ_h o_n k_nᵀ, and o
_PARTS: tuple[Callable[[Circuits], np.ndarray], ...] = (
    lambda circuits: circuits.diagonal[0],
    lambda circuits: circuits.mu[0],
    swapped_steps,
    lambda circuits: circuits.OV_21[0],
)


def _lean(read: Float[np.ndarray, "heads tasks features"]) -> Float[np.ndarray, "tasks"]:
    """‖Σ_h o_n‖/Σ_h ‖o_n‖: what `Sharing.imbalance` is for μ."""
    return np.linalg.norm(read.sum(0), axis=-1) / np.linalg.norm(read, axis=-1).sum(0).clip(min=1e-12)


def _kind(sharing: Sharing, task: MultiTaskRegression, heads: int) -> Kind:
    if sharing.swapped_part.max() >= SWAPPED:
        return "swapped"
    if sharing.mode != "other":
        return sharing.mode
    balanced = sharing.imbalance.max() <= BALANCED
    if heads == 1 or not balanced or heads > np.linalg.matrix_rank(task.signal_scales):
        return "other"
    best = mean_risk(best_steps(task, heads - 1), task)
    return "packed" if mean_risk(sharing.steps, task) <= (1 + PACKED) * best else "other"


def _resolved(steps: Steps, imbalance: Float[np.ndarray, "tasks"], task: MultiTaskRegression) -> bool:
    own = own_steps(task)
    near = np.abs(steps - own) <= CLEAR * own.max(1, keepdims=True)
    return bool(near.all() and imbalance.max() <= BALANCED)


def _separate(uses: np.ndarray) -> list[list[int]]:
    """Tasks in parts that share no feature with one another."""
    parts: list[list[int]] = []
    for task in range(len(uses)):
        near = [part for part in parts if (uses[part] & uses[task]).any()]
        parts = [*(part for part in parts if part not in near), sorted([task, *(n for part in near for n in part)])]
    return sorted(parts)


def _solved(factor: np.ndarray, weights: np.ndarray, target: np.ndarray) -> np.ndarray:
    """The other factor, (starts, rank, rows), that is best beside `factor`, (starts, rank, columns).

    A start may lose a direction on the way; the tiny ridge keeps it solvable.
    """
    gram = np.einsum("src,nc,sqc->snrq", factor, weights, factor) + 1e-12 * np.eye(factor.shape[1])
    asked = np.einsum("src,nc->snr", factor, weights * target)
    return np.linalg.solve(gram, asked[..., None])[..., 0].swapaxes(1, 2)
