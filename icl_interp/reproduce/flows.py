"""Gradient flow of any number of heads on the approximate loss (4.1), in the paper's unit of time: half of L̃.

`theory.two_head_flow` is the case of two opposite heads (arXiv 2503.12734, (B.4)); gradient descent with learning rate
η follows the flow at t = η·steps.  Cost: some hundred gradients a flow, 0.03 s.
"""

from __future__ import annotations

from typing import TypedDict

import numpy as np
from jaxtyping import Float
from scipy.integrate import solve_ivp

from icl_interp import theory
from icl_interp.tasks import LinearRegression

Heads = Float[np.ndarray, "heads"]
Course = Float[np.ndarray, "times heads"]


class Setting(TypedDict):
    """A task as the closed forms take it."""

    dim: int
    length: int
    noise_var: float


def setting(task: LinearRegression) -> Setting:
    """`task` as the closed forms take it; for isotropic covariates and E‖β‖² = 1."""
    return Setting(dim=task.dim, length=task.length, noise_var=task.noise_var)


def head_flow(
    omega: Heads, mu: Heads, times: Float[np.ndarray, "times"], *, dim: int, length: int, noise_var: float
) -> tuple[Course, Course]:
    """(ω, μ) at ascending `times` under d(ω, μ)/dt = −∇L̃/2, from (`omega`, `mu`) at time 0."""
    heads = len(omega)

    def velocity(_: float, state: np.ndarray) -> np.ndarray:
        slopes = theory.approximate_loss_gradients(
            state[:heads], state[heads:], dim=dim, length=length, noise_var=noise_var
        )
        return -np.concatenate(slopes) / 2

    # LSODA: the late flow is stiff, a slow drift along the valley beside a fast fall into it.
    found = solve_ivp(velocity, (0.0, times[-1]), np.concatenate([omega, mu]), "LSODA", times, rtol=1e-6, atol=1e-8)
    return found.y[:heads].T, found.y[heads:].T
