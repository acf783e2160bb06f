"""Linear regression on a few of the covariates, other ones in each prompt (the setting of arXiv 2408.04532).

A predictor that is linear in the labels knows w by its first two moments alone, and these are the moments of
`LinearRegression`: what sparsity is worth is what a predictor gains that looks at the labels twice.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from icl_interp.config import check_count, check_flag, check_positive
from icl_interp.errors import ConfigError
from icl_interp.tasks.prompt import Prompt
from icl_interp.tasks.protocol import DrawingOptions, drawing


@dataclass(frozen=True)
class SparseRegression:
    """y = wᵀx + ε with x ~ N(0, I_d), ε ~ N(0, noise_var), and w of `sparsity` entries N(0, signal_var/sparsity).

    The support of w is drawn uniformly for each prompt; w is zero off it.  So E[w] = 0 and E[wwᵀ] = signal_var·I/d; at
    sparsity = dim prompts are those of `LinearRegression`, number by number.

    Args:
        dim: d.
        sparsity: s, entries of w that are not zero, at most d.
        length: L in training (the paper's n).
        noise_var: σ².
        query_noise: whether the target y_q carries noise, or is the noiseless wᵀx_q.
        signal_var: E‖w‖².

    Raises:
        ConfigError: a size below one, more entries than covariates, a negative variance.
    """

    dim: int = 16
    sparsity: int = 4
    length: int = 20
    noise_var: float = 0.25
    query_noise: bool = True
    signal_var: float = 1.0

    def __post_init__(self) -> None:
        for name in ("dim", "sparsity", "length"):
            check_count(name, getattr(self, name))
        if self.sparsity > self.dim:
            raise ConfigError(f"sparsity must be at most dim={self.dim}, the number of covariates, got {self.sparsity}")
        check_positive("noise_var", self.noise_var, zero=True)
        check_positive("signal_var", self.signal_var)
        for name in ("noise_var", "signal_var"):
            object.__setattr__(self, name, float(getattr(self, name)))  # 1 and 1.0 are one task, with one repr
        check_flag("query_noise", self.query_noise)

    @property
    def n_outputs(self) -> int:
        """One response."""
        return 1

    def sample(
        self,
        batch: int,
        *,
        length: int | None = None,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
    ) -> Prompt:
        """Draw `batch` independent prompts (float32), each with a support and a w of its own.

        Args:
            batch: number of prompts.
            length: demonstrations in each; None means the task's own.
            generator: where randomness comes from, on `device`; None means torch's global generator.
            device: where the prompts live; None means the generator's device.

        Raises:
            ConfigError: `batch` or `length` below one.
        """
        L, options = drawing(self, batch, length, generator, device)
        x = torch.randn(batch, L + 1, self.dim, **options)  # the query is the last one
        signal = torch.randn(batch, self.dim, 1, **options)
        noise = torch.randn(batch, L + 1, 1, **options) * self.noise_var**0.5
        if not self.query_noise:
            noise[:, L] = 0
        y = torch.baddbmm(noise, x, signal * self._scales(batch, options))
        return Prompt(x=x[:, :L], y=y[:, :L], x_q=x[:, L], y_q=y[:, L])

    def _scales(self, batch: int, options: DrawingOptions) -> Float[Tensor, "batch dim 1"]:
        """Standard deviations of w: √(signal_var/s) on a support drawn anew for each prompt, zero off it."""
        # The s largest of d random numbers: a choice of fixed shape, made where they are, as a CUDA graph requires.
        chosen = torch.rand(batch, self.dim, 1, **options).topk(self.sparsity, dim=1, sorted=False).indices
        off = torch.zeros(batch, self.dim, 1, dtype=options["dtype"], device=chosen.device)
        return off.scatter(1, chosen, (self.signal_var / self.sparsity) ** 0.5)
