"""The true risks of ideal heads on several tasks at once, as functions of their OV (arXiv 2503.12734, section 5.4).

Head h scores with Σ_i ω_hi x_ℓi x_qi, attends with p^h = softmax_ℓ of that, and adds μ_hn Σ_ℓ p^h_ℓ y_nℓ to response
n: ω_h is the diagonal of its KQ, μ_hn entry (n, n) of its OV.  As for one task (`surfaces`), β_n and the noise are
integrated out given the covariates; what is left is quadratic in μ_n.  With x on S_n only and s_n = signal_var/|S_n|,

    R_n = t_n − 2 μ_nᵀb_n + μ_nᵀM_n μ_n
    t_n = s_n‖x_q‖² + σ²,  b_nh = s_n x̄_hᵀx_q,  M_nhk = s_n x̄_hᵀx̄_k + σ² p^hᵀp^k,  x̄_h = Σ_ℓ p^h_ℓ x_ℓ

averaged over covariates.  A response is predicted from its own labels, so R_n does not know whether responses share a
signal.  To compare two sets of heads on the same prompts, ask for the moments of both together and set μ to zero where
a set is not meant.  Cost: one softmax a head and a demonstration; 0.2 s for four heads on 8,192 prompts of the paper's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from einops import einsum
from jaxtyping import Bool, Float
from torch import Tensor

from icl_interp.config import check_positive
from icl_interp.errors import ConfigError
from icl_interp.estimates import Estimate
from icl_interp.surfaces import Moments
from icl_interp.tasks import MultiTaskRegression, Prompt

Omega = Float[np.ndarray, "heads dim"]
Mu = Float[np.ndarray, "heads tasks"]
Serves = Bool[np.ndarray, "heads tasks"]
CHUNK = 4_096  # prompts that are held at once


@dataclass(frozen=True, eq=False)
class TaskMoments:
    """What the risks of fixed heads are made of: R_n(μ_n) = t_n − 2 μ_nᵀb_n + μ_nᵀM_n μ_n for every μ.

    Args:
        tasks: the moments t_n, b_n and M_n of each task, with their errors.
    """

    tasks: tuple[Moments, ...]

    @property
    def heads(self) -> int:
        """H."""
        return self.tasks[0].heads

    def risks(self, mu: Mu) -> tuple[Estimate, ...]:
        """R_n(μ) of each task, with its interval over prompts.

        Raises:
            ConfigError: μ of another shape.
        """
        return self._of_each(Moments.risk, self._checked(mu))

    def risk_differences(self, mu: Mu, other: Mu) -> tuple[Estimate, ...]:
        """R_n(μ) − R_n(`other`) of each task, on the same prompts: most of the error cancels.

        Raises:
            ConfigError: μ of another shape.
        """
        return self._of_each(Moments.risk_difference, self._checked(mu), self._checked(other))

    def best_mu(self, serves: Serves | None = None) -> Mu:
        """The μ of least risk for each task, M_n⁻¹b_n; the shortest of them where heads share an ω.

        Args:
            serves: which head may serve which task; μ is zero elsewhere.  None: every head serves every task.

        Raises:
            ConfigError: `serves` of another shape.
        """
        shape = (self.heads, len(self.tasks))
        serves = np.ones(shape, dtype=bool) if serves is None else np.asarray(serves, dtype=bool)
        if serves.shape != shape:
            raise ConfigError(f"serves must be {shape}, heads by tasks, got {serves.shape}")
        mu = np.zeros(shape)
        for n, (moments, mine) in enumerate(zip(self.tasks, serves.T, strict=True)):
            mu[mine, n] = np.linalg.lstsq(moments.energy[np.ix_(mine, mine)], moments.cross[mine], rcond=1e-10)[0]
        return mu

    def _of_each(self, measure: Callable[..., Estimate], *mu: Mu) -> tuple[Estimate, ...]:
        return tuple(measure(task, *(m[:, n] for m in mu)) for n, task in enumerate(self.tasks))

    def _checked(self, mu: Mu) -> Mu:
        mu = np.asarray(mu, dtype=float)
        if mu.shape != (self.heads, len(self.tasks)):
            raise ConfigError(f"mu must be {(self.heads, len(self.tasks))}, heads by tasks, got {mu.shape}")
        return mu


def task_moments(omega: Omega, prompts: Prompt | Iterable[Prompt], task: MultiTaskRegression) -> TaskMoments:
    """Everything the risks of softmax heads at `omega` are made of, for every μ.

        moments = task_moments(omega, task.sample(8192), task)
        moments.risks(mu), moments.best_mu()

    Args:
        omega: diagonal of each head's KQ; the scale of the scores is folded in.
        prompts: whose covariates are averaged over; labels are not looked at.
        task: where they come from, and whose signals and noise are integrated out.

    Raises:
        ConfigError: another task than several regressions, ω of another shape or not finite, or prompts that are not
            finite, of other covariates, or none at all.
    """
    omega = _checked_omega(omega, task)
    sums = [_Sums() for _ in task.supports]
    for piece in _pieces(prompts, task):
        for own, rows in zip(sums, _per_prompt(_attention(omega, piece), piece, task), strict=True):
            own.add(rows)
    return TaskMoments(tuple(own.moments(len(omega)) for own in sums))


# --- Heads that serve one task each ----------------------------------------------------------------------------------


def dedicated_heads(task: MultiTaskRegression, gamma: float) -> tuple[Omega, Serves]:
    """A pair of opposite heads for each task, ω = ±γ on the features of S_n and 0 elsewhere: 2N heads (Mode III).

    Returns:
        ω, and which head serves which task: heads 2n and 2n + 1 serve task n.

    Raises:
        ConfigError: another task than several regressions, or γ that is not above zero.
    """
    _check_task(task)
    check_positive("gamma", gamma)
    uses = task.uses
    omega = gamma * np.repeat(uses.astype(float), 2, axis=0)
    omega[1::2] *= -1
    return omega, np.repeat(np.eye(task.n_outputs, dtype=bool), 2, axis=0)


def dedicated_risks(
    task: MultiTaskRegression, gamma: float, prompts: Prompt | Iterable[Prompt]
) -> tuple[Mu, tuple[Estimate, ...]]:
    """The best μ of `dedicated_heads`, each serving its own task only, and the risk of each task with them.

    μ is fitted to the prompts that the risks are measured on, two numbers a task: the risks come out too low, by far
    less than their errors.

    Raises:
        ConfigError: as `task_moments` and `dedicated_heads`.
    """
    omega, serves = dedicated_heads(task, gamma)
    moments = task_moments(omega, prompts, task)
    mu = moments.best_mu(serves)
    return mu, moments.risks(mu)


# --- Measuring -------------------------------------------------------------------------------------------------------


def _check_task(task: object) -> None:
    if not isinstance(task, MultiTaskRegression):
        raise ConfigError(f"risks of several tasks are those of MultiTaskRegression, got {task!r}")


def _checked_omega(omega: Omega, task: MultiTaskRegression) -> Omega:
    _check_task(task)
    omega = np.asarray(omega, dtype=float)
    if omega.ndim != 2 or not len(omega) or omega.shape[1] != task.dim or not np.isfinite(omega).all():
        raise ConfigError(f"omega must have {task.dim} finite numbers for each head, got {omega!r}")
    return omega


def _pieces(prompts: Prompt | Iterable[Prompt], task: MultiTaskRegression) -> Iterator[Prompt]:
    for prompt in [prompts] if isinstance(prompts, Prompt) else prompts:
        if prompt.x.shape[-1] != task.dim:
            raise ConfigError(f"the task has {task.dim} covariates, these prompts have {prompt.x.shape[-1]}")
        for start in range(0, len(prompt), CHUNK):
            yield prompt[start : start + CHUNK].to(dtype=torch.float64)


def _attention(omega: Omega, prompt: Prompt) -> Float[Tensor, "batch heads length"]:
    asks = einsum(torch.from_numpy(omega).to(prompt.x_q), prompt.x_q, "h d, b d -> b h d")
    return torch.softmax(asks @ prompt.x.mT, -1)


def _per_prompt(
    p: Float[Tensor, "batch heads length"], prompt: Prompt, task: MultiTaskRegression
) -> Iterator[Float[Tensor, "batch moments"]]:
    """t, b, M and pᵀp̃ of each task given each prompt's covariates, in the order of `Moments`."""
    mean_x, overlap = p @ prompt.x, p @ p.mT
    rows, columns = torch.triu_indices(p.shape[1], p.shape[1])
    for support in map(list, task.supports):
        signal, read, asked = task.signal_var / len(support), mean_x[..., support], prompt.x_q[:, support]
        target = signal * asked.square().sum(-1, keepdim=True) + task.noise_var * task.query_noise
        cross = signal * einsum(read, asked, "b h d, b d -> b h")
        energy = signal * read @ read.mT + task.noise_var * overlap
        yield torch.cat([target, cross, energy[:, rows, columns], overlap[:, rows, columns]], -1)


class _Sums:
    """Sums over prompts of one task's moments and of their products."""

    def __init__(self) -> None:
        self.prompts, self.first, self.second = 0, np.zeros(()), np.zeros(())

    def add(self, rows: Float[Tensor, "batch moments"]) -> None:
        self.prompts += len(rows)
        self.first = self.first + rows.sum(0).cpu().numpy()
        self.second = self.second + (rows.mT @ rows).cpu().numpy()

    def moments(self, heads: int) -> Moments:
        """The means, with the covariance of their errors."""
        if not self.prompts:
            raise ConfigError("risks are averages over prompts, got none")
        if not np.isfinite(self.second).all():
            raise ConfigError("risks are averages over finite prompts, got covariates that are NaN or infinite")
        mean, freedom = self.first / self.prompts, self.prompts - 1
        spread = self.second / self.prompts - np.outer(mean, mean)
        return Moments(heads, self.prompts, mean, spread / max(freedom, 1), freedom)
