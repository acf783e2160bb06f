"""Algorithms that come to least squares step by step, each with its whole path: what the layers of a model may be.

Gradient descent on the covariates as they are, or on covariates that were weighed by their correlation with the labels
first (arXiv 2408.04532: a first layer that preprocesses, then layers that optimise); and Newton's iterations, which
arXiv 2310.17086 finds in trained models.  All start from zero and are computed in float64.  A prompt whose covariates
or labels are all zero is answered by zero, one that is not finite by NaN.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from einops import einsum
from jaxtyping import Float
from torch import Tensor

from icl_interp.config import check_count, check_positive
from icl_interp.estimators.fitting import answer, best_of, check_one_response
from icl_interp.tasks import Prompt

RATES = np.concatenate([np.geomspace(0.05, 0.9, 14), np.linspace(1.0, 1.95, 11)])
"""What `best_rate` chooses from: a quarter more each time, then a tenth; below 2, from where steps diverge."""


def preprocess(prompt: Prompt) -> Prompt:
    """The prompt on covariates x̃ = r̂ ∘ x, of demonstrations and query: r̂_j = (1/L) Σ_ℓ x_ℓj y_ℓ (arXiv 2408.04532).

    Raises:
        ConfigError: several responses, which would need several x̃.
    """
    r = _correlations(prompt.x, prompt.y)
    return Prompt(prompt.x * r[:, None], prompt.y, prompt.x_q * r, prompt.y_q)


def _correlations(
    x: Float[Tensor, "batch length dim"], y: Float[Tensor, "batch length outputs"]
) -> Float[Tensor, "batch dim"]:
    check_one_response("preprocessing", y.shape[-1])
    return einsum(x, y, "b l d, b l one -> b d") / x.shape[1]


class Iteration(ABC):
    """An estimator ŷ = ŵ_kᵀx_q whose ŵ_k is come to in k = `steps` steps."""

    steps: int

    @abstractmethod
    def iterates(
        self, x: Float[Tensor, "batch length dim"], y: Float[Tensor, "batch length outputs"]
    ) -> Iterator[Float[Tensor, "batch dim outputs"]]:
        """ŵ_1, …, ŵ_steps of each prompt, float64."""

    def coefficients(
        self, x: Float[Tensor, "batch length dim"], y: Float[Tensor, "batch length outputs"]
    ) -> Float[Tensor, "batch dim outputs"]:
        """ŵ_steps of each prompt, float64."""
        *_, last = self.iterates(x, y)
        return last

    def __call__(self, prompt: Prompt) -> Float[Tensor, "batch outputs"]:
        """ŷ_q after all steps."""
        return answer(prompt, self.coefficients(prompt.x, prompt.y))

    def path(self, prompt: Prompt) -> Float[Tensor, "steps batch outputs"]:
        """ŷ_q after each step, the first to the last: for the price of the last."""
        return torch.stack([answer(prompt, w) for w in self.iterates(prompt.x, prompt.y)])


@dataclass(frozen=True)
class GradientSteps(Iteration):
    """v ← v + η X̂ᵀ(y − X̂v)/L from v = 0: gradient descent on the squared loss (1/2L)‖X̂v − y‖², ŷ = vᵀx̂_q.

    O(L·d² + steps·d²) a prompt.

    Args:
        steps: how many.
        rate: η, or with `relative` the multiple of 1/λ_max that it is.
        preprocessed: X̂ is X̃ of `preprocess`, where ŵ = r̂ ∘ v and the step of a coordinate of ŵ is η r̂_j²; else X.
        relative: η = rate/λ_max(X̂ᵀX̂/L), for each prompt its own: it converges for rate < 2.  One η for all prompts
            diverges on some, as the scale of X̃ differs from prompt to prompt.

    Raises:
        ConfigError: no steps, or a rate that is not positive; on several responses, if `preprocessed`.
    """

    steps: int
    rate: float
    preprocessed: bool = False
    relative: bool = True

    def __post_init__(self) -> None:
        check_count("steps", self.steps)
        check_positive("rate", self.rate)

    def iterates(
        self, x: Float[Tensor, "batch length dim"], y: Float[Tensor, "batch length outputs"]
    ) -> Iterator[Float[Tensor, "batch dim outputs"]]:
        """ŵ_1, …, ŵ_steps of each prompt in terms of x as it is, float64."""
        x, y = x.double(), y.double()
        weights = _correlations(x, y)[:, :, None] if self.preprocessed else x.new_ones(1, 1, 1)
        seen = x * weights.mT
        gram, moments = seen.mT @ seen / x.shape[1], seen.mT @ y / x.shape[1]
        step = self._relative(gram) if self.relative else self.rate
        v = torch.zeros_like(moments)
        for _ in range(self.steps):
            v = v + step * (moments - gram @ v)
            yield weights * v

    def _relative(self, gram: Float[Tensor, "batch dim dim"]) -> Float[Tensor, "batch 1 1"]:
        largest = torch.linalg.eigvalsh(_finite(gram))[:, -1, None, None]
        # Covariates that are zero, or as good as that: 1/λ_max would be infinite, and v stays at zero anyhow.
        return torch.where(largest > torch.finfo(gram.dtype).tiny, self.rate / largest, 0.0)


@dataclass(frozen=True)
class NewtonSteps(Iteration):
    """M ← 2M − MAM for A = XᵀX + λI, ŷ = x_qᵀMXᵀy: Newton's iterations for A⁻¹ (arXiv 2310.17086).

    They start from A/‖A‖² (spectral norm), from where they are sure to converge: I − MA has the eigenvalues
    1 − (a/a_max)², in [0, 1) where A's a > 0, and each step squares them.  A start twice as large would leave the
    largest where it is, at 1 − 2 = −1.  Where A is singular the end is the solution of least norm.

    M is a function of A, so that its eigenvalues are iterated, O(d) a step after O(L·d² + d³) for A's: the same
    numbers, but rounding errors off the range of A do not double with every step.

    Args:
        steps: how many.
        penalty: λ.

    Raises:
        ConfigError: no steps, or a negative penalty.
    """

    steps: int
    penalty: float = 0.0

    def __post_init__(self) -> None:
        check_count("steps", self.steps)
        check_positive("penalty", self.penalty, zero=True)

    def iterates(
        self, x: Float[Tensor, "batch length dim"], y: Float[Tensor, "batch length outputs"]
    ) -> Iterator[Float[Tensor, "batch dim outputs"]]:
        """M_1Xᵀy, …, M_stepsXᵀy of each prompt, float64."""
        x, y = x.double(), y.double()
        spoilt = 0 * x.sum((1, 2), keepdim=True)  # NaN if x is not finite
        values, vectors = torch.linalg.eigh(_finite(x.mT @ x))
        largest = values[:, -1:]
        in_range = values > largest * x.shape[2] * torch.finfo(x.dtype).eps
        moments = torch.where(in_range[..., None], vectors.mT @ (x.mT @ y) / (largest + self.penalty)[..., None], 0.0)
        # Everything in units of the largest eigenvalue of A, so that the scale of x does not matter.
        spectrum = torch.where(in_range, (values + self.penalty) / (largest + self.penalty), 0.0)
        inverse = spectrum
        for _ in range(self.steps):
            inverse = inverse * (2 - spectrum * inverse)
            yield vectors @ (inverse[..., None] * moments) + spoilt


def _finite(gram: Float[Tensor, "batch dim dim"]) -> Float[Tensor, "batch dim dim"]:
    """With zeros for what is not finite, at which LAPACK would give up on the whole batch."""
    return gram.nan_to_num(0.0, 0.0, 0.0)


def best_rate(steps: int, prompt: Prompt, *, preprocessed: bool = False) -> GradientSteps:
    """`steps` steps of (preprocessed) gradient descent, at the one of `RATES` with least squared error on `prompt`.

    Raises:
        ConfigError: no steps; prompts that are not finite; several responses, if `preprocessed`.
    """
    return best_of([GradientSteps(steps, float(rate), preprocessed) for rate in RATES], prompt)
