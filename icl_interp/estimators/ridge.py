"""Ridge regression, of one response or of several that each see some of the features.

O(L·d·m + m³) a prompt with m the smaller of L and d, in float64.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from einops import einsum, rearrange
from jaxtyping import Float
from torch import Tensor

from icl_interp.config import check_positive
from icl_interp.errors import ConfigError
from icl_interp.estimators.fitting import answer
from icl_interp.tasks import MultiTaskRegression, Prompt


@dataclass(frozen=True)
class Ridge:
    """ŷ = x_qᵀ(XᵀX + λI)⁻¹Xᵀy, without intercept; at λ = 0 the solution of least norm."""

    penalty: float

    def __post_init__(self) -> None:
        check_positive("penalty", self.penalty, zero=True)

    def __call__(self, prompt: Prompt) -> Float[Tensor, "batch outputs"]:
        """ŷ_q."""
        return answer(prompt, self.coefficients(prompt.x, prompt.y))

    def coefficients(
        self, x: Float[Tensor, "batch length dim"], y: Float[Tensor, "batch length outputs"]
    ) -> Float[Tensor, "batch dim outputs"]:
        """(XᵀX + λI)⁻¹Xᵀy of each prompt, float64."""
        # With fewer demonstrations than covariates XᵀX is singular, and a small λ drowns in its rounding; XXᵀ is not.
        # Near L = d either is close to singular: hence float64.
        x, y = x.double(), y.double()
        if self.penalty == 0:
            return torch.linalg.pinv(x.nan_to_num()) @ y + 0 * x.sum((1, 2), keepdim=True)  # NaN if x is not finite
        if x.shape[1] < x.shape[2]:
            return x.mT @ torch.linalg.solve(self._penalised(x @ x.mT), y)
        return torch.linalg.solve(self._penalised(x.mT @ x), x.mT @ y)

    def _penalised(self, gram: Tensor) -> Tensor:
        return gram + self.penalty * torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)


@dataclass(frozen=True)
class SupportRidge:
    """The Bayes predictor of several responses, each of some of the features.

    Signals that are independent are learned one by one: ridge on the features S_n, with λ = |S_n|·σ²/E‖β_n‖².  A signal
    that is shared, β_n = s_n ⊙ b with b ~ N(0, I), is learned from the labels of all responses at once: ridge with
    λ = σ² on N·L rows s_n ⊙ x_ℓ, in one solve.  Without noise either is the limit σ² → 0, of least norm.

    Args:
        task: whose responses they are.
    """

    task: MultiTaskRegression

    def __call__(self, prompt: Prompt) -> Float[Tensor, "batch outputs"]:
        """ŷ_q.

        Raises:
            ConfigError: prompts with another number of responses than the task has.
        """
        if (outputs := prompt.y_q.shape[1]) != self.task.n_outputs:
            raise ConfigError(f"the task has {self.task.n_outputs} responses, these prompts have {outputs}")
        return self._jointly(prompt) if self.task.shared_signal else self._one_by_one(prompt)

    @property
    def penalties(self) -> tuple[float, ...]:
        """λ of each response where signals are independent; one, σ², where they are shared."""
        if self.task.shared_signal:
            return (self.task.noise_var,)
        return tuple(len(support) * self.task.noise_var / self.task.signal_var for support in self.task.supports)

    def _one_by_one(self, prompt: Prompt) -> Float[Tensor, "batch outputs"]:
        predictions: list[Tensor] = []
        for n, (support, penalty) in enumerate(zip(self.task.supports, self.penalties, strict=True)):
            seen, own = list(support), slice(n, n + 1)
            response = Prompt(prompt.x[..., seen], prompt.y[..., own], prompt.x_q[..., seen], prompt.y_q[..., own])
            predictions.append(Ridge(penalty)(response))
        return torch.cat(predictions, -1)

    def _jointly(self, prompt: Prompt) -> Float[Tensor, "batch outputs"]:
        sizes = np.array([len(support) for support in self.task.supports])
        scales = (self.task.signal_scales > 0) * np.sqrt(self.task.signal_var / sizes)  # in float64
        s = torch.from_numpy(scales).to(prompt.x.device)
        rows = rearrange(einsum(prompt.x.double(), s, "b l d, d n -> b l n d"), "b l n d -> b (l n) d")
        (penalty,) = self.penalties
        signal = Ridge(penalty).coefficients(rows, rearrange(prompt.y, "b l n -> b (l n) 1"))
        return einsum(prompt.x_q.double(), s, signal[..., 0], "b d, d n, b d -> b n").to(prompt.x)
