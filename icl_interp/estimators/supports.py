"""The Bayes predictor of sparse regression: ridge on every support, weighed by how well it explains the labels."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from math import comb

import torch
from jaxtyping import Float, Int
from torch import Tensor

from icl_interp.errors import ConfigError
from icl_interp.estimators.fitting import check_one_response
from icl_interp.tasks import Prompt, SparseRegression

MOST_SUPPORTS = 200_000
"""Supports that `SparseBayes` goes through, at most: of d = 16 and s = 4 there are 1,820, of 32 and 4 35,960."""

_CHUNK = 2**20  # numbers that one array may hold: 8 MB in float64

# σ² where there is none, in units of signal_var.  It is low enough to be none: any support fits s labels, and a wrong
# one fits one more by chance once in 10⁵ times.  And it is high enough to be computed with: labels drawn in float32 are
# off by 1e-14 in squares, and sums of squares in float64 by some 1e-15.  With s demonstrations or fewer, where all
# supports fit, predictions come out to within 1e-4 (at σ² = 1e-13, within 5e-3), and else to within 1e-6.
_LEAST_NOISE = 1e-12


@dataclass(frozen=True)
class SparseBayes:
    """E[y_q | prompt] = Σ_S p(S | X, y) x_{q,S}ᵀ(X_SᵀX_S + λI)⁻¹X_Sᵀy over all supports S of s covariates.

    λ = sσ²/signal_var, and log p(S | X, y) = yᵀX_S(X_SᵀX_S + λI)⁻¹X_Sᵀy/2σ² − ½ log det(X_SᵀX_S + λI) + const, as
    labels are N(0, σ²I + (signal_var/s) X_S X_Sᵀ) given S.  Without noise it is the limit σ² → 0, at σ² = 1e-12
    of signal_var.  At s = d it is ridge.

    C(d, s)·s³ operations a prompt, in float64: two milliseconds on one core at d = 16, s = 4.  Prompts and supports
    are taken in chunks, which hold some 150 MB.

    Args:
        task: whose predictor it is.

    Raises:
        ConfigError: more than `MOST_SUPPORTS` supports.
    """

    task: SparseRegression

    def __post_init__(self) -> None:
        d, s = self.task.dim, self.task.sparsity
        if (count := comb(d, s)) > MOST_SUPPORTS:
            raise ConfigError(
                f"the Bayes predictor goes through every support: {s} of {d} covariates have {count:,}, "
                f"more than {MOST_SUPPORTS:,}"
            )

    @property
    def noise_var(self) -> float:
        """σ² that is computed with: the task's, or 1e-12 of signal_var if that is more."""
        return max(self.task.noise_var, _LEAST_NOISE * self.task.signal_var)

    @property
    def penalty(self) -> float:
        """λ of ridge on a support."""
        return self.task.sparsity * self.noise_var / self.task.signal_var

    @cached_property
    def _supports(self) -> Int[Tensor, "supports sparsity"]:
        return torch.tensor(list(combinations(range(self.task.dim), self.task.sparsity)))

    def __call__(self, prompt: Prompt) -> Float[Tensor, "batch outputs"]:
        """ŷ_q.

        Raises:
            ConfigError: prompts of another number of covariates than the task's, or of several responses.
        """
        check_one_response("the Bayes predictor of sparse regression", prompt.y_q.shape[1])
        if (d := prompt.x.shape[2]) != self.task.dim:
            raise ConfigError(f"the task has {self.task.dim} covariates, these prompts have {d}")
        prompts_at_once = max(1, _CHUNK // len(self._supports))
        starts = range(0, max(1, len(prompt)), prompts_at_once)  # no prompts are one chunk too
        return torch.cat([self._mixture(prompt[start : start + prompts_at_once]) for start in starts])

    def _mixture(self, prompt: Prompt) -> Float[Tensor, "batch outputs"]:
        x, y, x_q = prompt.x.double(), prompt.y.double(), prompt.x_q.double()
        gram, moments = x.mT @ x, (x.mT @ y)[..., 0]
        at_once = max(1, _CHUNK // (max(1, len(prompt)) * self.task.sparsity**2))
        parts = [self._on(S, gram, moments, x_q) for S in self._supports.to(x.device).split(at_once)]
        evidence, predicted = (torch.cat(part, 1) for part in zip(*parts, strict=True))
        return (torch.softmax(evidence, 1) * predicted).sum(1, keepdim=True).to(prompt.x)

    def _on(
        self,
        S: Int[Tensor, "supports sparsity"],
        gram: Float[Tensor, "batch dim dim"],
        moments: Float[Tensor, "batch dim"],
        x_q: Float[Tensor, "batch dim"],
    ) -> tuple[Float[Tensor, "batch supports"], Float[Tensor, "batch supports"]]:
        """log p(S | X, y) but for a constant, and what ridge on S predicts: both of a factor of X_SᵀX_S + λI = CCᵀ."""
        eye = torch.eye(S.shape[1], dtype=gram.dtype, device=gram.device)
        factor, failed = torch.linalg.cholesky_ex(gram[:, S[:, :, None], S[:, None, :]] + self.penalty * eye)
        factor = factor.where(failed[..., None, None] == 0, torch.nan)  # a prompt that is not finite, say
        sides = torch.stack([moments[:, S], x_q[:, S]], -1)
        labels, query = torch.linalg.solve_triangular(factor, sides, upper=False).unbind(-1)
        log_root = factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        return labels.square().sum(-1) / (2 * self.noise_var) - log_root, (labels * query).sum(-1)
