"""Several linear regressions on the same covariates, each of some of the features (arXiv 2503.12734, Definition 5.1).

The paper's case: d = 6, L = 48, supports {0, 1, 2, 3} and {2, 3, 4, 5}, σ² = 0.1.  The code that was published with it
draws each task's β on its own and has every response twice as large, without noise on the query's: `signal_var=4`,
`noise_var=0.4`, `query_noise=False` here.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from icl_interp.config import check_count, check_flag, check_positive
from icl_interp.errors import ConfigError
from icl_interp.tasks.prompt import Prompt
from icl_interp.tasks.protocol import drawing

# What `MultiTaskRegression` takes; kept as a tuple of tuples, so that tasks can be compared and hashed.
Supports = Sequence[Collection[int] | np.ndarray] | np.ndarray


@dataclass(frozen=True)
class MultiTaskRegression:
    """y_n = β_nᵀ x_{S_n} + ε_n: x ~ N(0, I), β_n ~ N(0, signal_var·I/|S_n|), ε_n ~ N(0, noise_var), n = 0 … N−1.

    Args:
        dim: d.
        supports: the sets S_n of features, 0 … d−1, that each response sees; N of them, which may overlap (kept as a
            tuple of sorted tuples).
        length: L in training.
        noise_var: σ², of every response; their noises are independent.
        query_noise: whether the targets y_q carry noise, or are the noiseless β_nᵀ x_{q,S_n}.
        signal_var: E‖β_n‖² of every response.
        shared_signal: False: the β_n are independent, as in the code that made the paper's figures.  True: all of them
            are parts of one b ~ N(0, I) over all features, β_n = √(signal_var/|S_n|)·b_{S_n}.  So E‖β_n‖² is the same
            as before, whatever the size of S_n; and where supports are of one size, as in Definition 5.1, responses
            have the very same coefficients on the features that they share, else proportional ones.

    Raises:
        ConfigError: a size below one, a negative variance, no supports, or one that is empty, holds a feature twice or
            one that is not there.
    """

    dim: int
    supports: Supports
    length: int
    noise_var: float = 0.1
    query_noise: bool = True
    signal_var: float = 1.0
    shared_signal: bool = False

    def __post_init__(self) -> None:
        check_count("dim", self.dim)
        check_count("length", self.length)
        check_positive("noise_var", self.noise_var, zero=True)
        check_positive("signal_var", self.signal_var)
        for name in ("noise_var", "signal_var"):
            object.__setattr__(self, name, float(getattr(self, name)))  # a numpy number would show in the repr
        for name in ("query_noise", "shared_signal"):
            check_flag(name, getattr(self, name))
        object.__setattr__(self, "supports", _checked_supports(self.supports, self.dim))

    @property
    def n_outputs(self) -> int:
        """N, one response for each support."""
        return len(self.supports)

    @cached_property
    def _on_devices(self) -> dict[torch.device, Tensor]:
        return {}

    @property
    def uses(self) -> Bool[np.ndarray, "outputs dim"]:
        """The supports as a table."""
        return self.signal_scales.T > 0

    @property
    def signal_scales(self) -> Float[np.ndarray, "dim outputs"]:
        """Standard deviations of the β_n, zero off the supports (float32)."""
        scales = np.zeros((self.dim, self.n_outputs), dtype=np.float32)
        for n, support in enumerate(self.supports):
            scales[list(support), n] = (self.signal_var / len(support)) ** 0.5
        return scales

    def _scales(self, device: torch.device) -> Float[Tensor, "dim outputs"]:
        """`signal_scales`, copied to a device once, as a CUDA graph requires."""
        if device not in self._on_devices:
            self._on_devices[device] = torch.from_numpy(self.signal_scales).to(device)
        return self._on_devices[device]

    def sample(
        self,
        batch: int,
        *,
        length: int | None = None,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
    ) -> Prompt:
        """Draw `batch` independent prompts (float32), each with signals of its own.

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
        drawn = torch.randn(batch, self.dim, 1 if self.shared_signal else self.n_outputs, **options)
        noise = torch.randn(batch, L + 1, self.n_outputs, **options) * self.noise_var**0.5
        if not self.query_noise:
            noise[:, L] = 0
        y = torch.baddbmm(noise, x, drawn * self._scales(x.device))
        return Prompt(x=x[:, :L], y=y[:, :L], x_q=x[:, L], y_q=y[:, L])


def _checked_supports(supports: object, dim: int) -> tuple[tuple[int, ...], ...]:
    listed = supports.tolist() if isinstance(supports, np.ndarray | Tensor) else supports
    if not isinstance(listed, Sequence) or isinstance(listed, str | bytes) or not listed:
        raise ConfigError(
            f"supports must be a sequence of sets of features, one for each response, as in [(0, 1), (1, 2)]; got "
            f"{supports!r}"
        )
    return tuple(_checked_support(n, support, dim) for n, support in enumerate(listed))


def _checked_support(n: int, support: object, dim: int) -> tuple[int, ...]:
    """The features in order, as plain numbers."""
    listed = support.tolist() if isinstance(support, np.ndarray | Tensor) else support
    among = f"supports[{n}] must be features among 0 … {dim - 1}, each once and one at least, got {support!r}"
    if not isinstance(listed, Collection) or isinstance(listed, str | bytes | dict) or not len(listed):
        raise ConfigError(among)
    features = list(listed)
    if not all(isinstance(i, int | np.integer) and not isinstance(i, bool) and 0 <= i < dim for i in features):
        raise ConfigError(among)
    if len(set(features)) < len(features):
        raise ConfigError(among)
    return tuple(sorted(map(int, features)))
