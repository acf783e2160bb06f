"""The true risk of kernel heads as a function of (ω, μ), and the approximate one (arXiv 2503.12734, (4.1), Figure 6).

Heads of the pattern (3.1)–(3.2) predict Σ_h μ_h Σ_ℓ p^h_ℓ y_ℓ with p^h = softmax_ℓ(ω_h x_ℓᵀx_q), which is linear in the
labels.  So given the covariates, β ~ N(0, s·I) with s = signal_var/d and the noise integrate out exactly, and what is
left is quadratic in μ:

    R(ω, μ) = t − 2 μᵀb + μᵀMμ
    t = s‖x_q‖² + σ²,  b_h = s x̄_hᵀx_q,  M_hk = s x̄_hᵀx̄_k + σ² p^hᵀp^k,  x̄_h = Σ_ℓ p^h_ℓ x_ℓ

averaged over covariates.  One pass over prompts at one ω therefore answers for every μ, with its error.

Control variates make the average some ten times as precise near the solution manifold, where heads are nearly a step of
debiased gradient descent: that step's own t, b and M are known exactly, and their sampling error is taken off by
regression.  So is a trained model's, which is nearly its heads' ideal selves (`predictor_risk`).  Cost: one softmax a
head and a demonstration; 0.3 s for two heads on 32,768 prompts of the main setting.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TypedDict

import numpy as np
import torch
from einops import einsum
from jaxtyping import Float
from scipy import stats
from torch import Tensor

from icl_interp import theory
from icl_interp.errors import ConfigError
from icl_interp.estimates import LEVEL, Estimate
from icl_interp.estimators import Predictor
from icl_interp.tasks import LinearRegression, Prompt

Heads = Float[np.ndarray, "heads"]
Shape = Float[np.ndarray, "dim dim"]
CHUNK = 4_096  # prompts that are held at once


@dataclass(frozen=True, eq=False)
class Moments:
    """What the risk of fixed heads is made of: R(μ) = t − 2 μᵀb + μᵀMμ for every μ.

    Args:
        heads: how many; a debiased step counts as one.
        prompts: how many the averages rest on.
        mean: t, b, M's upper triangle, row by row, and the upper triangle of E pᵀp̃.
        covariance: of the errors of `mean`.
        freedom: degrees of freedom of those errors; 0 means that they are not known.
    """

    heads: int
    prompts: int
    mean: Float[np.ndarray, "moments"]
    covariance: Float[np.ndarray, "moments moments"]
    freedom: int

    @property
    def target(self) -> float:
        """t = E[y_q²], the risk of predicting zero."""
        return float(self.mean[0])

    @property
    def cross(self) -> Heads:
        """b_h = E[y_q k_h], k_h the head's prediction at μ = 1."""
        return self.mean[1 : 1 + self.heads].copy()

    @property
    def energy(self) -> Float[np.ndarray, "heads heads"]:
        """M_hk = E[k_h k_k]."""
        rows, columns = np.triu_indices(self.heads)
        energy = np.zeros((self.heads, self.heads))
        energy[rows, columns] = energy[columns, rows] = self.mean[1 + self.heads :][: len(rows)]
        return energy

    def risk(self, mu: Heads) -> Estimate:
        """R(μ), with its interval over prompts.

        Raises:
            ConfigError: μ for another number of heads.
        """
        return self._estimate(_risk_of(self._checked(mu)))

    def risk_difference(self, mu: Heads, other: Heads) -> Estimate:
        """R(μ) − R(`other`), on the same prompts: most of the error cancels.

        Raises:
            ConfigError: μ for another number of heads.
        """
        return self._estimate(_risk_of(self._checked(mu)) - _risk_of(self._checked(other)))

    def mean_square(self, mu: Heads) -> Estimate:
        """E[ŷ²] = μᵀMμ of the prediction ŷ = Σ μ_h k_h; at a difference of two μ, that of the predictions' difference.

        Raises:
            ConfigError: μ for another number of heads.
        """
        coefficients = _risk_of(self._checked(mu))
        coefficients[: 1 + self.heads] = 0
        return self._estimate(coefficients)

    def risks(self, mu: Float[np.ndarray, "*grid heads"]) -> Float[np.ndarray, "*grid"]:
        """R(μ) of many μ, without errors.

        Raises:
            ConfigError: μ for another number of heads.
        """
        mu = self._checked(mu)
        return np.asarray(self.target - 2 * mu @ self.cross + np.einsum("...h,hk,...k", mu, self.energy, mu))

    def overlap(self, head: int, other: int) -> Estimate:
        """E pᵀp̃ of two heads' attention; of a head with itself E‖p‖², which is 1/L where it attends evenly."""
        first, second = sorted(range(self.heads)[h] for h in (head, other))
        rows, columns = np.triu_indices(self.heads)
        coefficients = np.zeros(len(self.mean))
        coefficients[1 + self.heads + len(rows) :] = (rows == first) & (columns == second)
        return self._estimate(coefficients)

    def best_mu(self) -> Heads:
        """The μ of least risk, M⁻¹b; the shortest of them where heads share an ω."""
        return np.linalg.lstsq(self.energy, self.cross, rcond=1e-10)[0]

    def _checked(self, mu: np.ndarray) -> np.ndarray:
        mu = np.asarray(mu, dtype=float)
        if mu.shape[-1:] != (self.heads,) or not np.isfinite(mu).all():
            raise ConfigError(f"mu must have one finite number for each of {self.heads} heads, got {mu!r}")
        return mu

    def _estimate(self, coefficients: np.ndarray) -> Estimate:
        return _estimate(
            float(coefficients @ self.mean), float(coefficients @ self.covariance @ coefficients), self.freedom
        )


def pattern_moments(
    omega: Heads,
    prompts: Prompt | Iterable[Prompt],
    task: LinearRegression,
    *,
    shape: Shape | None = None,
    debiased_step: bool = False,
) -> Moments:
    """Everything the risk of heads at `omega` is made of, for every μ.

        moments = pattern_moments(np.array([0.127, -0.127]), task.sample(8192), task)
        moments.risk(np.array([3.5, -3.5])), moments.best_mu()

    Args:
        omega: ω of each head; the scale of the scores is folded in.
        prompts: whose covariates are averaged over; labels are not looked at.
        task: where they come from, and whose β and noise are integrated out; any Σ and mean.
        shape: G, for heads with scores ω x_ℓᵀGx_q (5.3); None means the identity.
        debiased_step: let one more head follow, which is a step of debiased gradient descent (4.11) along G with η = 1,
            so that its "μ" is η: what a pair of heads at ±γ with μ = ±η/2γ tends to as γ → 0.

    Raises:
        ConfigError: another task than linear regression, ω that are not finite numbers, or prompts that are not finite
            or none at all.
    """
    omega = _checked_heads(omega, task)
    sums = _Sums(task)
    for piece in _pieces(prompts):
        sums.add(piece, _per_prompt(_attention(omega, piece, shape, debiased_step), piece, task))
    return Moments(len(omega) + debiased_step, sums.prompts, *sums.means())


def predictor_risk(
    predict: Predictor,
    omega: Heads,
    mu: Heads,
    prompts: Prompt | Iterable[Prompt],
    task: LinearRegression,
    *,
    shape: Shape | None = None,
) -> Estimate:
    """The risk of any predictor, on sampled labels, with the pattern (ω, μ) as one more control variate.

    What the pattern's squared error owes to the labels is known, and so is most of what a model's does where (ω, μ) are
    its own: half the error of plain sampling and less.  Any other (ω, μ) do no harm.

    Raises:
        ConfigError: as `pattern_moments`, or μ for another number of heads.
    """
    omega = _checked_heads(omega, task)
    mu = np.asarray(mu, dtype=float)
    if mu.shape != omega.shape or not np.isfinite(mu).all():
        raise ConfigError(f"mu must have one finite number for each of {len(omega)} heads, got {mu!r}")
    weights = torch.from_numpy(mu)
    sums = _Sums(task)
    for piece in _pieces(prompts):
        p = _attention(omega, piece, shape, debiased_step=False)
        given_covariates = _per_prompt(p, piece, task) @ torch.from_numpy(_risk_of(mu)).to(piece.x)
        pattern = einsum(weights.to(p), p, piece.y, "h, b h l, b l n -> b n")
        errors = [(prediction.to(pattern) - piece.y_q).square().sum(-1) for prediction in (predict(piece), pattern)]
        sums.add(piece, errors[0][:, None], (errors[1] - given_covariates)[:, None])
    mean, covariance, freedom = sums.means()
    return _estimate(float(mean[0]), float(covariance[0, 0]), freedom)


# --- The approximate surface -----------------------------------------------------------------------------------------


class Sizes(TypedDict):
    """A task's numbers, as the functions of `theory` take them."""

    dim: int
    length: int
    noise_var: float
    signal_var: float


def unit_sizes(task: LinearRegression) -> tuple[float, Sizes]:
    """The variance v of isotropic covariates, and the sizes of the task for covariates of variance one.

    Heads with ω and a step η under Σ = v·I are heads with ω·v and a step η·v under Σ = I and v times the signal:
    `theory.manifold_mu(gamma * v, **sizes)` is μ_γ.

    Raises:
        ConfigError: Σ that is no multiple of the identity, or covariates with a mean.
    """
    if not (isinstance(task, LinearRegression) and task.isotropic and task.centred):
        raise ConfigError(f"closed forms at (ω, μ) are those of isotropic, centred covariates, got {task!r}")
    v = float(task.sigma[0, 0])
    return v, Sizes(dim=task.dim, length=task.length, noise_var=task.noise_var, signal_var=task.signal_var * v)


@dataclass(frozen=True)
class ApproximateSurface:
    """The approximate loss L̃(ω, μ) of (4.1) and its valley, for an isotropic, centred task, in the task's own units.

    Raises:
        ConfigError: another task.
    """

    task: LinearRegression

    def __post_init__(self) -> None:
        unit_sizes(self.task)

    @np.errstate(over="ignore", invalid="ignore")  # exp(dωω̃) of a huge ω: infinite is the answer
    def loss(self, omega: Heads, mu: Heads) -> float:
        """L̃(ω, μ)."""
        v, sizes = unit_sizes(self.task)
        return theory.approximate_loss(omega * v, mu, **sizes, query_noise=self.task.query_noise)

    def pair_loss(self, gamma: float, mu: float) -> float:
        """L̃ of two opposite heads (γ, μ) and (−γ, −μ): Figure 6's axes."""
        return self.loss(np.array([gamma, -gamma]), np.array([mu, -mu]))

    def floor(self, gamma: float) -> float:
        """μ_γ, where `pair_loss` is least at this γ (4.6)."""
        v, sizes = unit_sizes(self.task)
        return theory.manifold_mu(gamma * v, **sizes)

    def bias(self, step: float) -> float:
        """True risk minus L̃ on the valley as γ → 0, at η = `step`."""
        v, sizes = unit_sizes(self.task)
        return theory.approximate_loss_bias(step * v, **sizes)

    def overlap(self, omega: float, other: float) -> tuple[float, float]:
        """L·E pᵀp̃: exp(dωω̃), and its limit as L → ∞ (infinite where that has no mean)."""
        product, d = omega * other * unit_sizes(self.task)[0] ** 2, self.task.dim
        limit = theory.attention_overlap(product, 1.0, dim=d, length=1) if product < 0.5 else np.inf
        return float(np.exp(min(d * product, 700.0))), limit  # past it exp overflows


# --- Measuring -------------------------------------------------------------------------------------------------------


def _checked_heads(omega: Heads, task: LinearRegression) -> Heads:
    omega = np.asarray(omega, dtype=float)
    if not isinstance(task, LinearRegression):
        raise ConfigError(f"labels can be integrated out for LinearRegression only, got {task!r}")
    if omega.ndim != 1 or not len(omega) or not np.isfinite(omega).all():
        raise ConfigError(f"omega must have one finite number for each head, got {omega!r}")
    return omega


def _pieces(prompts: Prompt | Iterable[Prompt]) -> Iterator[Prompt]:
    for prompt in [prompts] if isinstance(prompts, Prompt) else prompts:
        for start in range(0, len(prompt), CHUNK):
            yield prompt[start : start + CHUNK].to(dtype=torch.float64)


def _attention(
    omega: Heads, prompt: Prompt, shape: Shape | None, debiased_step: bool
) -> Float[Tensor, "batch columns length"]:
    """The weight of each label in each head's prediction at μ = 1."""
    asks = prompt.x_q if shape is None else prompt.x_q @ torch.from_numpy(np.asarray(shape)).to(prompt.x_q).mT
    scores = einsum(prompt.x, asks, "b l d, b d -> b l")[:, None]
    p = torch.softmax(torch.from_numpy(omega).to(scores)[:, None] * scores, -1)
    if debiased_step:
        p = torch.cat([p, (scores - scores.mean(-1, keepdim=True)) / prompt.length], 1)
    return p


def _per_prompt(
    p: Float[Tensor, "batch columns length"], prompt: Prompt, task: LinearRegression
) -> Float[Tensor, "batch moments"]:
    """t, b, M and pᵀp̃ given each prompt's covariates."""
    signal = task.signal_var / task.dim
    mean_x = p @ prompt.x
    overlap = p @ p.mT
    energy = signal * mean_x @ mean_x.mT + task.noise_var * overlap
    target = signal * prompt.x_q.square().sum(-1) + task.noise_var * task.query_noise
    cross = signal * einsum(mean_x, prompt.x_q, "b h d, b d -> b h")
    rows, columns = torch.triu_indices(p.shape[1], p.shape[1])
    return torch.cat([target[:, None], cross, energy[:, rows, columns], overlap[:, rows, columns]], -1)


def _risk_of(mu: Heads) -> Float[np.ndarray, "moments"]:
    """R(μ) as a combination of the moments."""
    rows, columns = np.triu_indices(len(mu))
    squares = mu[rows] * mu[columns] * np.where(rows == columns, 1, 2)
    return np.concatenate([[1], -2 * mu, squares, np.zeros(len(rows))])


def _controls(prompt: Prompt, task: LinearRegression) -> Float[Tensor, "batch 3"]:
    """t, b and M of one debiased step with η = 1, given each prompt's covariates, minus their exact means.

    Its prediction is (1/L) yᵀX̃x_q with centred X̃, so that with W = X̃ᵀX̃, a Wishart matrix of n = L − 1 degrees of
    freedom whatever the mean is, b = s x_qᵀWx_q/L and M = (s‖Wx_q‖² + σ² x_qᵀWx_q)/L²; and E[W] = nΣ,
    E[W²] = n(n + 1)Σ² + n tr(Σ)Σ.
    """
    signal, noise, L, n = task.signal_var / task.dim, task.noise_var, prompt.length, prompt.length - 1
    centred = prompt.x - prompt.x.mean(1, keepdim=True)
    asked = einsum(centred, prompt.x_q, "b l d, b d -> b l")
    pulled = einsum(centred, asked, "b l d, b l -> b d")
    size, scatter, square = (part.square().sum(-1) for part in (prompt.x_q, asked, pulled))
    sampled = torch.stack([signal * size, signal * scatter / L, (signal * square + noise * scatter) / L**2], -1)

    sigma = task.sigma
    query = sigma + np.outer(task.mean_vector, task.mean_vector)  # E[x_q x_qᵀ]
    mean_scatter = n * np.trace(sigma @ query)
    mean_square = n * (n + 1) * np.trace(sigma @ sigma @ query) + np.trace(sigma) * mean_scatter
    exact = [signal * np.trace(query), signal * mean_scatter / L, (signal * mean_square + noise * mean_scatter) / L**2]
    return sampled - sampled.new_tensor(exact)


class _Sums:
    """Sums over prompts of the products of (1, controls, columns), from which the columns' means follow."""

    def __init__(self, task: LinearRegression) -> None:
        self.task, self.prompts, self.known, self.products = task, 0, 0, np.zeros(())

    def add(
        self, prompt: Prompt, columns: Float[Tensor, "batch columns"], *more: Float[Tensor, "batch controls"]
    ) -> None:
        """`more` are further controls, each of mean zero."""
        controls = torch.cat([_controls(prompt, self.task), *more], -1)
        rows = torch.cat([torch.ones_like(controls[:, :1]), controls, columns], -1)
        self.prompts += len(rows)
        self.known = 1 + controls.shape[1]
        self.products = self.products + (rows.mT @ rows).cpu().numpy()

    def means(self) -> tuple[np.ndarray, np.ndarray, int]:
        """The columns' means, the covariance of their errors, and its degrees of freedom.

        They are the intercepts of a regression on the controls, whose own means are zero.
        """
        if not self.prompts:
            raise ConfigError("risks are averages over prompts, got none")
        known, columns = slice(self.known), slice(self.known, None)
        design, shared = self.products[known, known], self.products[known, columns]
        if not np.isfinite(design).all():
            raise ConfigError("risks are averages over finite prompts, got covariates that are NaN or infinite")
        freedom = self.prompts - self.known
        if freedom < 1:  # too few to regress: plain means, whose errors are left open
            return shared[0] / self.prompts, np.zeros_like(self.products[columns, columns]), 0
        inverse = np.linalg.pinv(design, hermitian=True)
        slopes = inverse @ shared
        residual = self.products[columns, columns] - slopes.T @ shared
        return slopes[0], residual * inverse[0, 0] / freedom, freedom


def _estimate(value: float, variance: float, freedom: int) -> Estimate:
    if freedom < 1 or not np.isfinite([value, variance]).all():
        return Estimate(value, -np.inf, np.inf, "prompts")
    half = float(stats.t.ppf((1 + LEVEL) / 2, freedom)) * max(variance, 0.0) ** 0.5
    return Estimate(value, value - half, value + half, "prompts")
