"""What the families that are built by formula have in common: how members are drawn, hidden and altered.

Members of one family differ in all that the family says nothing of: the sizes of the task, the number and order of the
heads, how circuits are factored, and what is inert.
"""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import TypedDict

import numpy as np
import torch
from jaxtyping import Float

from icl_interp.circuits import Circuits
from icl_interp.manifold import Groups
from icl_interp.records import Run
from icl_interp.tasks import LinearRegression
from icl_interp.testing.known import Known, formula_family
from icl_interp.testing.planting import Planted, plant


def claims(probe: str, *names: str) -> tuple[str, ...]:
    """Claims of one probe, named as families name them."""
    return tuple(f"{probe}.{name}" for name in names)


CIRCUITS = claims("circuit_pattern", "kq_diagonal", "kq_identity", "kq_21_zero", "ov_21_zero")
ROLES = claims("head_roles", "heads_structured", "sign_matching")
SIGNS_AND_SUMS = claims("kernel_fit", "opposite_heads", "homogeneous_kq", "zero_sum_ov")
STEP = claims("kernel_fit", "optimal_step")
FIT = (*SIGNS_AND_SUMS, *STEP, "kernel_fit.solution_manifold")
FAITHFUL = claims("faithfulness", "ideal_heads_explain", "ideal_heads_explain_elsewhere", "ablations_agree")
RISK = claims("risk", "below_one_head_optimum", "risk_of_debiased_gd", "function_of_debiased_gd")
LENGTH = claims("length_generalization", "risk_falls_with_length", "generalizes_as_debiased_gd")
OPTIMALITY = claims(
    "optimality",
    "gap_to_debiased_gd_as_theory",
    "step_of_least_risk",
    "risk_near_best_debiased_gd",
    "risk_within_bayes_bound",
)
LOSS = claims("approximate_loss", "attention_spread", "approximate_loss_close", "in_the_valley")
RATE = claims("activation", "effective_rate_as_slope", "risk_as_gd_at_that_rate")


class Hiding(TypedDict):
    """How a planted model is hidden: arguments of `plant`."""

    condition: float
    inert_noise: float
    seed: int


def drawn_family(
    name: str, title: str, *, holds: Sequence[str] = (), violates: Sequence[str] = (), thorough: bool = False
) -> Callable[[Callable[[np.random.Generator], Known]], Callable[[np.random.Generator], Known]]:
    """`formula_family` of members that are drawn: a seed draws other numbers in every family."""

    def register(draw: Callable[[np.random.Generator], Known]) -> Callable[[np.random.Generator], Known]:
        def build(seed: int) -> Known:
            return draw(np.random.default_rng([zlib.crc32(name.encode()), seed]))

        formula_family(name, title, holds=holds, violates=violates, thorough=thorough)(build)
        return draw

    return register


# --- Draws -----------------------------------------------------------------------------------------------------------


def log_uniform(rng: np.random.Generator, low: float, high: float) -> float:
    """A number between `low` and `high`, even in its logarithm."""
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))


def wrong_factor(rng: np.random.Generator, below: tuple[float, float], above: tuple[float, float]) -> float:
    """A factor from either of two ranges, even in its logarithm in each."""
    return log_uniform(rng, *(below if rng.integers(2) else above))


def hiding(rng: np.random.Generator) -> Hiding:
    """A way to hide a model."""
    return {
        "condition": log_uniform(rng, 1, 100),
        "inert_noise": float(rng.uniform(0, 10)),
        "seed": int(rng.integers(2**31)),
    }


def draw_task(
    rng: np.random.Generator, *, dims: tuple[int, int] = (4, 6), lengths: tuple[int, int] = (6, 10)
) -> LinearRegression:
    """Isotropic linear regression: d, L/d and σ² vary.

    With fewer covariates or shorter prompts what theory says to leading order in 1/L is off by its own thresholds: at
    d = 3 ideal heads have 0.7 of the gap of Theorem 4.2 (i), and exceed the asymptotic bound of (iii) by 1 %.
    """
    dim = int(rng.integers(dims[0], dims[1] + 1))
    length = int(rng.integers(lengths[0] * dim, lengths[1] * dim + 1))
    return LinearRegression(dim, length, round(log_uniform(rng, 0.05, 0.5), 4))


def draw_gamma(rng: np.random.Generator, task: LinearRegression, low: float = 0.2, high: float = 0.33) -> float:
    """γ by the standard deviation of scores, γ√d: below a third heads are on theory in all that the probes ask."""
    return float(rng.uniform(low, high) / task.dim**0.5)


def draw_roles(rng: np.random.Generator, most: int = 5) -> list[str]:
    """Roles of 2 to `most` heads, of both signs at least; mean and cancelling heads come in pairs."""
    roles = ["positive", "negative"]
    for _ in range(rng.integers(0, most - 1)):
        kinds = ["positive", "negative", "dummy"] + ["mean", "cancelling"] * (most - len(roles) >= 2)
        role = str(rng.choice(kinds))
        roles += [role] * (2 if role in ("mean", "cancelling") else 1)
        if len(roles) >= most:
            break
    return roles


def opposite_heads(
    rng: np.random.Generator, gamma: float, total: float, most: int = 4
) -> tuple[Float[np.ndarray, "heads"], Float[np.ndarray, "heads"]]:
    """(ω, μ) of 2 to `most` heads at ±γ, whose μ of either sign sum to ±`total`."""
    positive = int(rng.integers(1, most // 2 + 1))
    negative = int(rng.integers(1, most - most // 2 + 1))
    omega = gamma * np.array([1.0] * positive + [-1.0] * negative)
    return omega, total * np.concatenate([parts_of_one(rng, positive), -parts_of_one(rng, negative)])


def parts_of_one(rng: np.random.Generator, count: int) -> Float[np.ndarray, "count"]:
    """Positive numbers of comparable size that sum to one."""
    parts = rng.uniform(0.5, 1.5, count)
    return parts / parts.sum()


def plant_heads(
    rng: np.random.Generator,
    task: LinearRegression,
    omega: Float[np.ndarray, "heads"],
    mu: Float[np.ndarray, "heads"],
    *,
    shape: Float[np.ndarray, "*heads dim dim"] | None = None,
    course: str | None = None,
    activation: str = "softmax",
    scale: float = 1.0,
    size: float = 0.0,
    kind: str = "random",
) -> Planted:
    """`plant` at these (ω, μ), hidden at random: KQ_11 along `shape`, perturbed by `size` in the way of `kind`.

    With a `course` there is a record of a training.
    """
    return plant(
        task,
        omega=omega.tolist(),
        mu=mu.tolist(),
        preconditioner=shape,
        course=course,
        activation=activation,
        activation_scale=scale,
        noise=size,
        perturbation=kind,
        **hiding(rng),
    )


# --- What is known of a planted model --------------------------------------------------------------------------------


def known_of(
    model: Planted, size: float = 0.0, *, slope: float = 1.0, numbers: Mapping[str, float] | None = None
) -> Known:
    """A planted model as a member; `slope` is C′ of its activation, `numbers` are further ones."""
    # Of the weights, which are float32: unperturbed models show μ to 1e-6.  Sums are of the mean of late iterates.
    mu = Circuits.from_weights(model.run.weights, model.run.model_config).mu[0, :, 0]
    fitted = fitted_numbers(model.omega, mu if model.run.dynamics is None else model.mu, model.roles, slope)
    of_heads = {f"kernel_fit.mu.{h}": float(m) for h, m in enumerate(mu)}
    return Known(model.run, size, numbers={**fitted, **of_heads, **(numbers or {})}, roles=model.roles)


def fitted_numbers(
    omega: Float[np.ndarray, "heads"], mu: Float[np.ndarray, "heads"], roles: Sequence[str], slope: float = 1.0
) -> dict[str, float]:
    """The truth of what is estimated from (ω, μ)."""
    signs = np.array(roles)
    groups = Groups(signs == "positive", signs == "negative")
    eta = slope * groups.step(omega, mu)
    numbers = {
        "kernel_fit.eta": eta,
        "kernel_fit.zero_sum": groups.imbalance(omega, mu),
        "kernel_fit.positive_mu": groups.positive_sum(omega, mu),
        "kernel_fit.negative_mu": groups.negative_sum(omega, mu),
        "activation.eta": eta,
        **{f"kernel_fit.omega.{h}": float(w) for h, w in enumerate(omega)},
        **{f"kernel_fit.mu.{h}": float(m) for h, m in enumerate(mu)},
    }
    if groups.attending.any():
        numbers["kernel_fit.gamma"] = groups.gamma(omega, mu)
        numbers["kernel_fit.spread"] = groups.spread(omega, mu)
    return numbers


# --- Alterations -----------------------------------------------------------------------------------------------------


def altered(
    run: Run,
    *,
    KQ_11: Float[np.ndarray, "heads dim dim"] | None = None,
    KQ_21: Float[np.ndarray, "heads outputs dim"] | None = None,
    OV_21: Float[np.ndarray, "heads outputs dim"] | None = None,
    OV_22: Float[np.ndarray, "heads outputs outputs"] | None = None,
) -> Run:
    """The run with these added to its circuits, factored as before."""
    config = run.model_config
    d, D, heads = config.dim, config.d_model, config.n_heads
    KQ, OV = np.zeros((2, heads, D, D))
    for whole, rows, columns, part in (
        (KQ, slice(d), slice(d), KQ_11),
        (KQ, slice(d, D), slice(d), KQ_21),
        (OV, slice(d, D), slice(d), OV_21),
        (OV, slice(d, D), slice(d, D), OV_22),
    ):
        if part is not None:
            whole[:, rows, columns] = part
    W = {name: tensor[0].double() for name, tensor in run.weights.items()}
    added = {
        "W_K": config.score_scale * torch.from_numpy(KQ) @ torch.linalg.inv(W["W_Q"]).mT,
        "W_O": torch.linalg.inv(W["W_V"]) @ torch.from_numpy(OV).mT,
    }
    weights = {name: (W[name] + added.get(name, 0))[None].float() for name in W}
    return dataclasses.replace(run, weights=weights)


def normalised(
    matrices: Float[np.ndarray, "heads rows columns"], sizes: Float[np.ndarray, "heads"] | float
) -> Float[np.ndarray, "heads rows columns"]:
    """The matrices at other Frobenius norms."""
    return matrices * np.reshape(sizes / np.linalg.norm(matrices, axis=(1, 2)), (-1, 1, 1))
