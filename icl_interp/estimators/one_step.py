"""One step on the squared loss, and one head: what a layer of attention can be (arXiv 2503.12734, sections 4.3 and 5).

`icl_interp.theory` has their risks.  All cost O(L·d) a prompt.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from einops import einsum
from jaxtyping import Float
from scipy.optimize import OptimizeResult, minimize_scalar
from torch import Tensor

from icl_interp import theory
from icl_interp.config import check_count
from icl_interp.errors import ConfigError
from icl_interp.estimators.fitting import check_finite
from icl_interp.tasks import LinearRegression, MultiTaskRegression, Prompt, SparseRegression, Task


@dataclass(frozen=True, eq=False)
class GradientDescent:
    """One step from zero on the squared loss: ŷ = (1/L) Σ y_ℓ x_ℓᵀ Γ x_q; `debiased` centres the x_ℓ, (4.11), (5.5).

    Args:
        preconditioner: Γ, a (d, d) matrix, or (N, d, d), one for each response, or the step size η for η·I.
        debiased: use x_ℓ − x̄ for x_ℓ.
    """

    preconditioner: float | Float[np.ndarray, "dim dim"] | Float[np.ndarray, "outputs dim dim"]
    debiased: bool = False

    def __call__(self, prompt: Prompt) -> Float[Tensor, "batch outputs"]:
        """ŷ_q.

        Raises:
            ConfigError: prompts with another number of responses than there are preconditioners.
        """
        x = prompt.x - prompt.x.mean(1, keepdim=True) if self.debiased else prompt.x
        gradient = einsum(prompt.y, x, "b l n, b l d -> b n d") / prompt.length
        gamma = torch.as_tensor(self.preconditioner, dtype=x.dtype, device=x.device)
        if gamma.ndim == 3:
            return einsum(gradient, self._own(gamma, prompt), prompt.x_q, "b n d, n d e, b e -> b n")
        asks = prompt.x_q * gamma if gamma.ndim == 0 else prompt.x_q @ gamma.mT
        return einsum(gradient, asks, "b n d, b d -> b n")

    def _own(self, gamma: Tensor, prompt: Prompt) -> Tensor:
        """The preconditioners, once it is sure that they are as many as the responses: einsum would stretch one."""
        if len(gamma) != (outputs := prompt.y_q.shape[1]):
            raise ConfigError(f"{len(gamma)} preconditioners are for as many responses, these prompts have {outputs}")
        return gamma

    def times(self, factor: float) -> GradientDescent:
        """The same direction with `factor` times the step."""
        return replace(self, preconditioner=self.preconditioner * factor)


@dataclass(frozen=True)
class KernelRegressor:
    """One head of (3.2): ŷ = μ Σ p_ℓ y_ℓ with p = softmax_ℓ(ω x_ℓᵀx_q); μ = 1 is Nadaraya and Watson's."""

    omega: float
    mu: float = 1.0

    def __call__(self, prompt: Prompt) -> Float[Tensor, "batch outputs"]:
        """ŷ_q."""
        return self.mu * einsum(_kernel_weights(self.omega, prompt), prompt.y, "b l, b l n -> b n")


def gradient_descent(
    task: LinearRegression | MultiTaskRegression | SparseRegression,
    *,
    debiased: bool = False,
    length: int | None = None,
) -> GradientDescent:
    """One step of GD with the Γ that is optimal at `length` (default: the task's): η*·I for isotropic covariates.

    Vanilla: Γ* of Lemma E.4; debiased: Γ_deb.  Both are exact for centred covariates, whatever the law of the signal:
    its second moment decides, so that a sparse one has the step of a dense one.  Of several responses each has the η*
    of its own |S_n| features on S_n, and zero elsewhere (`theory.superposition_steps` where debiased).  Where they
    share a signal the labels of the others would help; a step on a response's own does not know them.

    Raises:
        ConfigError: `length` below one.
    """
    L = task.length if length is None else length
    check_count("length", L)
    optimum = theory.debiased_preconditioner if debiased else theory.gd_preconditioner
    best = partial(optimum, length=L, noise_var=task.noise_var, signal_var=task.signal_var)
    if not isinstance(task, MultiTaskRegression):
        return GradientDescent(best(task.sigma if isinstance(task, LinearRegression) else np.eye(task.dim)), debiased)
    gamma = np.zeros((task.n_outputs, task.dim, task.dim))
    for own, support in zip(gamma, task.supports, strict=True):
        seen = list(support)
        own[np.ix_(seen, seen)] = best(np.eye(len(seen)))
    return GradientDescent(gamma, debiased)


def best_step(direction: GradientDescent, prompt: Prompt) -> GradientDescent:
    """`direction` with its step scaled to the least squared error on `prompt`.

    Raises:
        ConfigError: prompts that are not finite.
    """
    check_finite(prompt)
    g = direction(prompt)
    return direction.times(_ratio((g * prompt.y_q).sum().item(), g.square().sum().item()))


def best_kernel(prompt: Prompt, *, scaled: bool, task: Task | None = None) -> KernelRegressor:
    """The kernel regressor of least squared error on `prompt`, over ω ≥ 0.

    With `scaled`, over μ too: the one-head optimum, (0.518, 1.50) in the paper's main setting.  Without, μ = 1.  Given
    a linear-regression `task`, labels and noise are integrated out and only the covariates of `prompt` are used, which
    makes the optimum about three times as precise.

    Raises:
        ConfigError: prompts that are not finite, or covariates that are all zero.
    """
    check_finite(prompt)
    if not prompt.x.any() or not prompt.x_q.any():
        raise ConfigError("a kernel cannot be fitted to covariates that are all zero")
    # A softmax knows scores up to a constant; past some units of their spread it sees one demonstration only.
    spread = einsum(prompt.x, prompt.x_q, "b l d, b d -> b l").var(1, correction=0).mean().sqrt().item()
    unit = 1 / spread if spread > 0 else 0.0

    def mu(cross: float, energy: float) -> float:
        return _ratio(cross, energy) if scaled else 1.0

    def risk(u: float) -> float:  # but for E[y_q²], which no kernel changes
        cross, energy = _kernel_moments(u * unit, prompt, task)
        m = mu(cross, energy)
        return m * (m * energy - 2 * cross)

    found: OptimizeResult = minimize_scalar(risk, bounds=(0.0, 20.0), method="bounded", options={"xatol": 1e-4})  # type: ignore[assignment]
    omega = float(found.x) * unit
    return KernelRegressor(omega, mu(*_kernel_moments(omega, prompt, task)))


def _kernel_moments(omega: float, prompt: Prompt, task: Task | None) -> tuple[float, float]:
    """E[k y_q] and E[k²] of the kernel regressor k with μ = 1."""
    if not isinstance(task, LinearRegression):
        k = KernelRegressor(omega)(prompt)
        return (k * prompt.y_q).mean().item(), k.square().mean().item()
    signal = task.signal_var / task.dim
    weights = _kernel_weights(omega, prompt)
    mean_x = einsum(weights, prompt.x, "b l, b l d -> b d")
    energy = signal * mean_x.square().sum(-1) + task.noise_var * weights.square().sum(-1)
    return signal * (mean_x * prompt.x_q).sum(-1).mean().item(), energy.mean().item()


def _kernel_weights(omega: float, prompt: Prompt) -> Float[Tensor, "batch length"]:
    return torch.softmax(omega * einsum(prompt.x, prompt.x_q, "b l d, b d -> b l"), -1)


def _ratio(cross: float, energy: float) -> float:
    return cross / energy if energy > 0 else 0.0
