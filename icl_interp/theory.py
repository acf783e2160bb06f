"""Closed forms for in-context linear regression by one layer of softmax attention.

The claims are those of arXiv 2503.12734 (He, Pan, Chen, Yang), whose equations are cited by number; "derived" marks
what the paper does not print and the tests confirm by simulation. Setting: x ~ N(0, Σ), Σ = I unless a covariance is
given; β ~ N(0, signal_var/dim · I); y = βᵀx + ε, ε ~ N(0, noise_var); L = `length` demonstrations a prompt.

Conventions, the same in every function: σ² = noise_var/signal_var, c = (1 + σ²)/L, φ = dim·c, formulas are printed for
signal_var = 1; `step` is η, the learning rate of one gradient step from zero; a risk counts the noise of the query's
label unless `query_noise=False`; ω and μ are the heads' KQ and OV strengths, with the scale of the scores folded in.
Arguments out of range raise ValueError. float64; microseconds a call, milliseconds and scipy for `two_head_flow`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial, wraps
from math import cosh, e, exp, inf, sinh, sqrt
from numbers import Integral, Real
from typing import Any, ParamSpec, TypeVar

import numpy as np
from jaxtyping import Bool, Float

Heads = Float[np.ndarray, " heads"]
Matrix = Float[np.ndarray, "dim dim"]
Times = Float[np.ndarray, " times"]
Uses = Bool[np.ndarray, "tasks features"]
P = ParamSpec("P")
R = TypeVar("R")

# --- Arguments: one rule for each name -------------------------------------------------------------------------------


def _between(low: float, high: float) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, Real) and low < float(value) < high


def _is_covariance(value: Any) -> bool:
    square = np.ndim(value) == 2 and np.shape(value)[0] == np.shape(value)[1]
    return square and np.allclose(value, np.transpose(value)) and bool(np.linalg.eigvalsh(value)[0] > 0)


_is_positive = _between(0.0, inf)
_RULES: dict[str, tuple[Callable[[Any], Any], str]] = {
    **dict.fromkeys(("dim", "length"), (lambda n: isinstance(n, Integral) and int(n) >= 1, "an integer of at least 1")),
    **dict.fromkeys(("signal_var", "gamma", "ratio", "penalty", "start", "time"), (_is_positive, "finite and above 0")),
    **dict.fromkeys(("step", "steps", "slope", "omega", "other", "mu"), (lambda x: np.isfinite(x).all(), "finite")),
    "noise_var": (lambda x: _is_positive(x) or x == 0, "finite and at least 0"),
    "rho": (_between(-1.0, 1.0), "between -1 and 1, both excluded"),
    "omega_product": (_between(-inf, 0.5), "below 1/2, else the expectation is infinite (it is γ² for heads at ±γ)"),
    "times": (lambda t: len(t) and t[0] >= 0 < t[-1] and (np.diff(t) > 0).all(), "ascending, from 0 on to above 0"),
    "covariance": (_is_covariance, "a symmetric, positive definite matrix"),
    "uses": (lambda table: table.ndim == 2 and table.any(axis=1).all(), "tasks by features, with a True in every row"),
}


def _checked(formula: Callable[P, R]) -> Callable[P, R]:
    """Hold every argument of `formula` that has a rule against it."""
    names = tuple(inspect.signature(formula).parameters)

    @wraps(formula)
    def checked(*args: P.args, **kwargs: P.kwargs) -> R:
        for name, value in (*zip(names, args, strict=False), *kwargs.items()):  # too many are the formula's to refuse
            if name in _RULES and not _RULES[name][0](value):
                raise ValueError(f"{name} must be {_RULES[name][1]}; got {value!r}")
        return formula(*args, **kwargs)

    return checked


def _heads(omega: np.ndarray, mu: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both in float64, once it is sure that they speak of the same heads."""
    if np.ndim(omega) != np.ndim(mu) or np.shape(omega)[:1] != np.shape(mu)[:1]:
        raise ValueError(f"omega and mu must have one row for each head; got shapes {np.shape(omega)}, {np.shape(mu)}")
    return np.asarray(omega, dtype=np.float64), np.asarray(mu, dtype=np.float64)


def _checked_steps(steps: np.ndarray, uses: Uses) -> Float[np.ndarray, "tasks features"]:
    """In float64, once it is sure that they are the steps of these tasks."""
    if np.shape(steps) != np.shape(uses):
        raise ValueError(f"there must be one step for each entry of uses, {np.shape(uses)}; got {np.shape(steps)}")
    return np.asarray(steps, dtype=np.float64)


def _c(length: int, noise_var: float, signal_var: float) -> float:
    """The variance of the mean of the labels, over signal_var."""
    return (1 + noise_var / signal_var) / length


def _risk(excess: float, noise_var: float, signal_var: float, query_noise: bool) -> float:
    """All predictors here are linear in the labels, so their excess risk is signal_var times a function of σ²."""
    return float(signal_var * excess + noise_var * query_noise)


# --- The approximate loss and its minimisers (4.1)-(4.12) ------------------------------------------------------------


def _label_noise(omega: Heads, c: float, dim: int) -> Float[np.ndarray, "heads heads"]:
    """c·exp(dωωᵀ), entry by entry: how the heads' errors covary when each label is taken for independent noise."""
    return c * np.exp(dim * np.outer(omega, omega))


@_checked
def approximate_loss(
    omega: Heads,
    mu: Heads,
    *,
    dim: int,
    length: int,
    noise_var: float,
    signal_var: float = 1.0,
    query_noise: bool = True,
) -> float:
    """L̃(ω, μ) = 1 + σ² − 2μᵀω + μᵀ(ωωᵀ + c·exp(dωωᵀ))μ, exp entry by entry (4.1)."""
    omega, mu = _heads(omega, mu)
    noise = _label_noise(omega, _c(length, noise_var, signal_var), dim)
    return _risk(float((1 - mu @ omega) ** 2 + mu @ noise @ mu), noise_var, signal_var, query_noise)


@_checked
def approximate_loss_gradients(
    omega: Heads, mu: Heads, *, dim: int, length: int, noise_var: float, signal_var: float = 1.0
) -> tuple[Heads, Heads]:
    """(∂L̃/∂ω, ∂L̃/∂μ) of (4.1)."""
    omega, mu = _heads(omega, mu)
    noise = _label_noise(omega, _c(length, noise_var, signal_var), dim)
    error = mu @ omega - 1
    d_omega = error * mu + dim * mu * (noise @ (mu * omega))
    d_mu = error * omega + noise @ mu
    return 2 * signal_var * d_omega, 2 * signal_var * d_mu


@_checked
def approximate_loss_bias(step: float, *, dim: int, length: int, noise_var: float, signal_var: float = 1.0) -> float:
    """True risk minus L̃ on the solution manifold as γ → 0: (η/L)(2 − η(1 + φ)) (derived)."""
    return signal_var * step / length * (2 - step * (1 + dim * _c(length, noise_var, signal_var)))


@_checked
def optimal_mu_given_omega(omega: Heads, *, dim: int, length: int, noise_var: float, signal_var: float = 1.0) -> Heads:
    """The μ that minimises L̃ at fixed ω: (ωωᵀ + c·exp(dωωᵀ))⁻¹ω, and the shortest such μ where heads share an ω."""
    noise = _label_noise(omega, _c(length, noise_var, signal_var), dim)
    return np.linalg.lstsq(np.outer(omega, omega) + noise, omega)[0]


@_checked
def effective_step(omega: Heads, mu: Heads, *, slope: float = 1.0) -> float:
    """η = slope·Σ_h ω_h μ_h (4.3); `slope` is f′(0)/f(0) of a normalised activation f (5.2): C for 1 + Cx."""
    omega, mu = _heads(omega, mu)
    return float(slope * (mu @ omega))


@_checked
def optimal_step(*, dim: int, length: int, noise_var: float, signal_var: float = 1.0) -> float:
    """η* = 1/(1 + φ): the effective step at the minimum (4.3), and the minimiser of `debiased_gd_risk`, exactly."""
    return 1 / (1 + dim * _c(length, noise_var, signal_var))


@_checked
def manifold_step(gamma: float, *, dim: int, length: int, noise_var: float, signal_var: float = 1.0) -> float:
    """2γμ_γ = 1/(1 + c·sinh(dγ²)/γ²), the effective step where every |ω_h| is γ or 0 (4.8); η* as γ → 0."""
    growth = sinh(min(dim * gamma**2, 700.0)) / gamma**2  # past it sinh overflows, and the step is zero anyhow
    return 1 / (1 + _c(length, noise_var, signal_var) * growth)


@_checked
def manifold_mu(gamma: float, *, dim: int, length: int, noise_var: float, signal_var: float = 1.0) -> float:
    """μ_γ = γ/(2(γ² + c·sinh(dγ²))): what the positive heads' μ sum to; the negative heads' sum to −μ_γ (4.6)."""
    return manifold_step(gamma, dim=dim, length=length, noise_var=noise_var, signal_var=signal_var) / (2 * gamma)


@_checked
def manifold_loss(
    gamma: float, *, dim: int, length: int, noise_var: float, signal_var: float = 1.0, query_noise: bool = True
) -> float:
    """L̃ = 1 + σ² − 2γμ_γ on the solution manifold, which increases with γ (Theorem 4.2 ii)."""
    step = manifold_step(gamma, dim=dim, length=length, noise_var=noise_var, signal_var=signal_var)
    return _risk(1 - step, noise_var, signal_var, query_noise)


@_checked
def single_head_optimum(*, dim: int, length: int, noise_var: float, signal_var: float = 1.0) -> tuple[float, float]:
    """(ω, μ) = (1/√d, √d/(1 + eφ)), the minimiser of L̃ for one head, up to the sign of both (4.12)."""
    return 1 / sqrt(dim), sqrt(dim) / (1 + e * dim * _c(length, noise_var, signal_var))


# --- One gradient step: exact risks, first at Σ = I -------------------------------------------------------------------


@_checked
def gd_risk(
    step: float, *, dim: int, length: int, noise_var: float, signal_var: float = 1.0, query_noise: bool = True
) -> float:
    """Risk of (η/L) Σ y_ℓ x_ℓᵀx_q: 1 + σ² − 2η + η²(1 + 1/L + φ) (D.28)."""
    excess = 1 - 2 * step + step**2 * (1 + 1 / length + dim * _c(length, noise_var, signal_var))
    return _risk(excess, noise_var, signal_var, query_noise)


@_checked
def gd_optimal_step(*, dim: int, length: int, noise_var: float, signal_var: float = 1.0) -> float:
    """The minimiser of `gd_risk`, 1/(1 + 1/L + φ) (D.29)."""
    return 1 / (1 + 1 / length + dim * _c(length, noise_var, signal_var))


@_checked
def debiased_gd_risk(
    step: float, *, dim: int, length: int, noise_var: float, signal_var: float = 1.0, query_noise: bool = True
) -> float:
    """Risk of (η/L) Σ y_ℓ (x_ℓ − x̄)ᵀx_q (4.11): 1 + σ² + (1 − 1/L)(η²(1 + φ) − 2η) (derived)."""
    change = step**2 * (1 + dim * _c(length, noise_var, signal_var)) - 2 * step
    return _risk(1 + (1 - 1 / length) * change, noise_var, signal_var, query_noise)


@_checked
def gd_gap_rms(step: float, gamma: float, *, dim: int, length: int, noise_var: float, signal_var: float = 1.0) -> float:
    """Root mean square of attention minus debiased GD, both of step η, heads at ±γ (Theorem 4.2 i; derived).

    (ηγ²/6)·√(6(1 + σ² + 3/d)·d(d + 2)(d + 4)/L), to leading order in γ (odd orders cancel between the signs) and 1/L.
    """
    label_var = signal_var * (1 + 3 / dim) + noise_var
    return abs(step) * gamma**2 / 6 * sqrt(6 * label_var * dim * (dim + 2) * (dim + 4) / length)


@_checked
def kms_covariance(dim: int, rho: float) -> Matrix:
    """Kac-Murdock-Szegő covariance, Σ_ij = ρ^|i−j|."""
    return float(rho) ** np.abs(np.subtract.outer(np.arange(dim), np.arange(dim)))


@_checked
def kms_inverse(dim: int, rho: float) -> Matrix:
    """Its inverse: (1 − ρ²)⁻¹ times 1 + ρ² on the diagonal, 1 at the two corners, −ρ beside the diagonal."""
    inverse = (1 + rho**2) * np.eye(dim) - rho * (np.eye(dim, k=1) + np.eye(dim, k=-1))
    inverse[0, 0] -= rho**2
    inverse[-1, -1] -= rho**2
    return inverse / (1 - rho**2)


def _shrinkage(covariance: Matrix, length: int, noise_var: float, signal_var: float) -> Matrix:
    return np.eye(len(covariance)) * (np.trace(covariance) + len(covariance) * noise_var / signal_var) / length


@_checked
def gd_preconditioner(covariance: Matrix, *, length: int, noise_var: float, signal_var: float = 1.0) -> Matrix:
    """Γ* = ((1 + 1/L)Σ + (tr Σ + dσ²)/L · I)⁻¹, the best preconditioner of plain GD (5.6), Lemma E.4."""
    return np.linalg.inv((1 + 1 / length) * covariance + _shrinkage(covariance, length, noise_var, signal_var))


@_checked
def debiased_preconditioner(covariance: Matrix, *, length: int, noise_var: float, signal_var: float = 1.0) -> Matrix:
    """(Σ + (tr Σ + dσ²)/L · I)⁻¹, the minimiser of `preconditioned_debiased_gd_risk` over all matrices (derived)."""
    return np.linalg.inv(covariance + _shrinkage(covariance, length, noise_var, signal_var))


@_checked
def preconditioned_debiased_gd_risk(
    preconditioner: Matrix,
    covariance: Matrix,
    *,
    length: int,
    noise_var: float,
    signal_var: float = 1.0,
    query_noise: bool = True,
) -> float:
    """Risk of (1/L) Σ y_ℓ (x_ℓ − x̄)ᵀΓx_q (5.5), any square Γ with η folded in (derived; Γ and Σ need not commute).

    σ² + tr(Σ + (1 − 1/L)(ΣM(Σ + (tr Σ + dσ²)/L · I) − 2ΣΓΣ))/d with M = ΓΣΓᵀ: the centred scatter W is Wishart of
    n = L − 1 degrees of freedom, so E[W] = nΣ and E[WMW] = n(n + 1)ΣMΣ + n·tr(ΣM)Σ.
    """
    if np.shape(preconditioner) != np.shape(covariance):
        raise ValueError(f"preconditioner must be {np.shape(covariance)} as covariance; got {np.shape(preconditioner)}")
    read = covariance @ preconditioner @ covariance
    spread = read @ preconditioner.T
    shrunk = spread @ (covariance + _shrinkage(covariance, length, noise_var, signal_var))
    excess = np.trace(covariance) + (1 - 1 / length) * np.trace(shrunk - 2 * read)
    return _risk(float(excess / len(covariance)), noise_var, signal_var, query_noise)


# --- Long prompts ----------------------------------------------------------------------------------------------------


@_checked
def gd_risk_asymptotic(ratio: float, *, noise_var: float, signal_var: float = 1.0, query_noise: bool = True) -> float:
    """Limit of GD's best risk, debiased or not, as d/L → ξ = `ratio`: 1 + σ² − 1/(1 + ξ(1 + σ²)) (Theorem 4.2 iii)."""
    phi = ratio * (1 + noise_var / signal_var)
    return _risk(phi / (1 + phi), noise_var, signal_var, query_noise)


@_checked
def marchenko_pastur_stieltjes(ratio: float, penalty: float) -> float:
    """m(−λ) = lim tr((XXᵀ/L + λI)⁻¹)/d as d/L → ξ: the positive root of ξλm² + (1 − ξ + λ)m = 1; λ = `penalty`."""
    linear = 1 - ratio + penalty
    return (sqrt(linear**2 + 4 * ratio * penalty) - linear) / (2 * ratio * penalty)


@_checked
def bayes_risk_asymptotic(
    ratio: float, *, noise_var: float, signal_var: float = 1.0, query_noise: bool = True
) -> float:
    """Limit of the Bayes risk (ridge at λ = dσ²) as d/L → ξ: σ²(1 + ξ·m(−ξσ²)), or max(0, 1 − 1/ξ) without noise."""
    noise = noise_var / signal_var
    drop = 1 - 1 / ratio - noise
    return _risk((drop + sqrt(drop**2 + 4 * noise)) / 2, noise_var, signal_var, query_noise)


@_checked
def ridgeless_excess_risk(dim: int, length: int, *, signal_var: float = 1.0) -> float:
    """Risk of the least-squares solution of least norm, without noise: 1 − L/d, or 0 from L = d on (derived; exact).

    That solution is β projected on the span of the L covariates, and its risk at Σ = I the squared norm of what that
    leaves out.  The span is turned in any direction alike, independently of β, so that it leaves out d − L of d parts
    of ‖β‖² on average, whatever the law of β: a sparse one is found no better than a dense one.
    """
    return signal_var * max(0.0, 1 - length / dim)


@_checked
def _chi_square_mgf(omega_product: float, dof: int) -> float:
    """E exp(aχ²) = (1 − 2a)^(−dof/2): the scores are Gaussian given ‖x_q‖², which is averaged over here."""
    return (1 - 2 * omega_product) ** (-dof / 2)


@_checked
def attention_overlap(omega: float, other: float, *, dim: int, length: int) -> float:
    """E pᵀp̃ → (1 − 2ωω̃)^(−d/2)/L for the attention p, p̃ of heads of strengths ω, ω̃ as L → ∞; ωω̃ < 1/2 (derived)."""
    return _chi_square_mgf(omega * other, dim) / length


@_checked
def attention_overlap_approximate(omega: float, other: float, *, dim: int, length: int) -> float:
    """E pᵀp̃ ≈ exp(dωω̃)/L, its large-d form and the approximation behind (4.1) (Proposition 4.1)."""
    return exp(dim * omega * other) / length


@_checked
def multi_head_constant(gamma: float, *, dim: int, noise_var: float, signal_var: float = 1.0) -> float:
    """lim L·(excess risk) of heads at ±γ with effective step 1; γ² < 1/2; d(1 + σ²) + 1 as γ → 0 (derived)."""
    a = gamma**2
    labels = (1 + noise_var / signal_var) * (_chi_square_mgf(a, dim) - _chi_square_mgf(-a, dim))
    own_signal = a * (_chi_square_mgf(a, dim + 2) + _chi_square_mgf(-a, dim + 2))
    return signal_var * (labels + own_signal) / (2 * a)


@_checked
def single_head_constant(*, dim: int, noise_var: float, signal_var: float = 1.0) -> tuple[float, float]:
    """(lim L·(excess risk), ω) of one head with ωμ = 1 at its best ω (derived); e times that of two heads as d → ∞.

    At a = ω² it is v·E exp(aχ²_d)/a + E exp(aχ²_{d+2}), v = 1 + σ²: least where (d + 2)(2v − 1)a² + v = (d + 4)va.
    """
    v = 1 + noise_var / signal_var
    linear = (dim + 4) * v
    a = 2 * v / (linear + sqrt(linear**2 - 4 * (dim + 2) * (2 * v - 1) * v))
    return signal_var * (v * _chi_square_mgf(a, dim) / a + _chi_square_mgf(a, dim + 2)), sqrt(a)


# --- Several tasks at once (A.2)-(A.4) -------------------------------------------------------------------------------
# Task n reads the features S_n that row n of `uses` marks, with β_n ~ N(0, signal_var/|S_n| · I).


def group_steps(
    omega: Float[np.ndarray, "heads groups"], mu: Float[np.ndarray, "heads tasks"]
) -> Float[np.ndarray, "tasks groups"]:
    """η_ng = Σ_h ω_hg μ_hn: the effective step of each task on each group of features (or on each feature)."""
    omega, mu = _heads(omega, mu)
    return mu.T @ omega


@_checked
def superposition_steps(
    uses: Uses, *, length: int, noise_var: float, signal_var: float = 1.0
) -> Float[np.ndarray, "tasks features"]:
    """What `group_steps` is where heads suffice: 1/(1 + |S_n|c) on the features of S_n, 0 elsewhere (A.3)-(A.4)."""
    return uses / (1 + _c(length, noise_var, signal_var) * uses.sum(axis=1, keepdims=True))


@_checked
def shared_steps(
    uses: Uses, *, length: int, noise_var: float, signal_var: float = 1.0
) -> Float[np.ndarray, " features"]:
    """w_i/(w_i + Nc), w_i = Σ_{n: i ∈ S_n} 1/|S_n|: the steps to first order if N tasks share two heads (derived).

    Of all steps that are the same for every task they make the sum of `task_gd_risks` least, exactly.
    """
    weight = (uses / uses.sum(axis=1, keepdims=True)).sum(axis=0)
    return weight / (weight + len(uses) * _c(length, noise_var, signal_var))


def _missed_signal(steps: Float[np.ndarray, "tasks features"], uses: Uses) -> Float[np.ndarray, " tasks"]:
    """Σ_{i ∈ S_n} (E_ni² − 2E_ni)/|S_n|: the squared signal that steps E_n miss, less that of no step at all."""
    return (uses * (steps**2 - 2 * steps)).sum(axis=1) / uses.sum(axis=1)


@_checked
def task_gd_risks(
    steps: Float[np.ndarray, "tasks features"],
    uses: Uses,
    *,
    length: int,
    noise_var: float,
    signal_var: float = 1.0,
    query_noise: bool = True,
) -> Float[np.ndarray, " tasks"]:
    """Risk of (1/L) Σ y_nℓ (x_ℓ − x̄)ᵀ(E_n ⊙ x_q) for each task n, with E_n row n of `steps` (derived).

    1 + σ² + (1 − 1/L)(Σ_{i ∈ S_n} (E_ni² − 2E_ni)/|S_n| + c·Σ_i E_ni²), least at `superposition_steps`; the scatter of
    the x_ℓ is Wishart, as for `preconditioned_debiased_gd_risk`.
    """
    steps = _checked_steps(steps, uses)
    change = _missed_signal(steps, uses) + _c(length, noise_var, signal_var) * (steps**2).sum(axis=1)
    return signal_var * (1 + (1 - 1 / length) * change) + noise_var * query_noise


@_checked
def task_approximate_loss(
    omega: Float[np.ndarray, "heads features"],
    mu: Float[np.ndarray, "heads tasks"],
    uses: Uses,
    *,
    length: int,
    noise_var: float,
    signal_var: float = 1.0,
    query_noise: bool = True,
) -> Float[np.ndarray, " tasks"]:
    """L̃_n = 1 + σ² + Σ_{i ∈ S_n} (E_ni² − 2E_ni)/|S_n| + c·Σ_hk μ_hn μ_kn exp(ω_hᵀω_k), E = `group_steps` (derived).

    (4.1) for each task n, whose heads score with x_ℓᵀ(ω_h ⊙ x_q) and weigh the labels of the task by μ_hn.
    """
    omega, mu = _heads(omega, mu)
    steps = _checked_steps(group_steps(omega, mu), uses)
    noise = _c(length, noise_var, signal_var) * np.einsum("hn,hk,kn->n", mu, np.exp(omega @ omega.T), mu)
    return signal_var * (1 + _missed_signal(steps, uses) + noise) + noise_var * query_noise


# --- Gradient flow of two heads, ω = (ω, −ω), μ = (μ, −μ), on L̃/2: the paper's unit of time (Appendix B) --------------


@_checked
def two_head_flow_velocity(
    omega: float, mu: float, *, dim: int, length: int, noise_var: float, signal_var: float = 1.0
) -> tuple[float, float]:
    """(dω/dt, dμ/dt) = (μ − 2ωμ²(1 + φ·cosh dω²), ω − 2μ(ω² + c·sinh dω²)) (B.4)."""
    c = _c(length, noise_var, signal_var)
    d_omega = mu - 2 * omega * mu**2 * (1 + dim * c * cosh(dim * omega**2))
    d_mu = omega - 2 * mu * (omega**2 + c * sinh(dim * omega**2))
    return signal_var * d_omega, signal_var * d_mu


@_checked
def two_head_flow(
    times: Times, *, start: float = 1e-3, dim: int, length: int, noise_var: float, signal_var: float = 1.0
) -> tuple[Times, Times]:
    """(ω, μ) at ascending `times`, from ω = μ = `start` at time 0."""
    from scipy.integrate import solve_ivp

    velocity = partial(two_head_flow_velocity, dim=dim, length=length, noise_var=noise_var, signal_var=signal_var)
    # LSODA, because the late flow is stiff: a slow drift along the valley, a fast fall into it.
    solution = solve_ivp(
        lambda _, state: velocity(*state), (0, times[-1]), (start, start), "LSODA", times, rtol=1e-9, atol=1e-12
    )
    return solution.y[0], solution.y[1]


@_checked
def late_time_omega(time: float, *, dim: int, length: int, noise_var: float, signal_var: float = 1.0) -> float:
    """ω → (4φd²t)^(−1/6) as t → ∞ (derived from (B.4)); not the t^(−1/2) of the paper's elimination of μ."""
    return (4 * dim**3 * _c(length, noise_var, signal_var) * signal_var * time) ** (-1 / 6)
