"""Linear regression with one response (arXiv 2503.12734, section 2): any covariance and mean of the covariates."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from icl_interp import theory
from icl_interp.config import check_count, check_flag, check_positive
from icl_interp.errors import ConfigError
from icl_interp.tasks.prompt import Prompt
from icl_interp.tasks.protocol import drawing


@dataclass(frozen=True)
class KMS:
    """Kac–Murdock–Szegő covariance Σ_ij = ρ^|i−j| of any size."""

    rho: float

    def __post_init__(self) -> None:
        try:
            theory.kms_covariance(1, self.rho)
        except ValueError as error:
            raise ConfigError(str(error)) from None
        object.__setattr__(self, "rho", float(self.rho))

    def __repr__(self) -> str:
        return f"kms({self.rho!r})"


def kms(rho: float) -> KMS:
    """Kac–Murdock–Szegő covariance with correlation `rho` between neighbours, −1 < rho < 1.

    Raises:
        ConfigError: any other `rho`.
    """
    return KMS(rho)


# What `LinearRegression` takes; matrices and vectors are kept as tuples, so that tasks can be compared and hashed.
Covariance = KMS | Sequence[Sequence[float]] | np.ndarray | None
Mean = float | Sequence[float] | np.ndarray


@dataclass(frozen=True)
class LinearRegression:
    """y = βᵀx + ε with x ~ N(mean, Σ), β ~ N(0, signal_var·I/d), ε ~ N(0, noise_var).

    Args:
        dim: d.
        length: L in training.
        noise_var: σ².
        covariance: Σ: None for the identity, `kms(rho)`, or a (d, d) matrix (kept as a tuple of rows).
        mean: mean of every x: one number for all coordinates, or d of them.  It is what tells debiased from vanilla GD.
        query_noise: whether the target y_q carries noise, as published, or is the noiseless βᵀx_q.
        signal_var: E‖β‖², 1 in the paper; the published multi-task code uses d.

    Raises:
        ConfigError: a size below one, a negative variance, a Σ that is not a symmetric positive-definite (d, d) matrix.
    """

    dim: int
    length: int
    noise_var: float = 0.1
    covariance: Covariance = None
    mean: Mean = 0.0
    query_noise: bool = True
    signal_var: float = 1.0

    def __post_init__(self) -> None:
        check_count("dim", self.dim)
        check_count("length", self.length)
        check_positive("noise_var", self.noise_var, zero=True)
        check_positive("signal_var", self.signal_var)
        for name in ("noise_var", "signal_var"):
            object.__setattr__(self, name, float(getattr(self, name)))  # a numpy number would show in the repr
        check_flag("query_noise", self.query_noise)
        if isinstance(self.covariance, KMS):
            _checked_covariance(self.sigma, self.dim)
        elif self.covariance is not None:
            object.__setattr__(self, "covariance", _checked_covariance(self.covariance, self.dim))
        object.__setattr__(self, "mean", _checked_mean(self.mean, self.dim))

    @property
    def n_outputs(self) -> int:
        """One response."""
        return 1

    @property
    def sigma(self) -> Float[np.ndarray, "dim dim"]:
        """Σ as a matrix."""
        if self.covariance is None:
            return np.eye(self.dim)
        if isinstance(self.covariance, KMS):
            return theory.kms_covariance(self.dim, self.covariance.rho)
        return np.array(self.covariance)

    @property
    def mean_vector(self) -> Float[np.ndarray, "dim"]:
        """E[x]."""
        return np.broadcast_to(np.asarray(self.mean, dtype=float), (self.dim,)).copy()

    @property
    def isotropic(self) -> bool:
        """Whether Σ is a multiple of the identity."""
        sigma = self.sigma
        return bool(np.abs(sigma - sigma[0, 0] * np.eye(self.dim)).max() <= 1e-12 * sigma[0, 0])

    @property
    def centred(self) -> bool:
        """Whether E[x] = 0."""
        return not np.any(self.mean_vector)

    def shifted(self, mean: Mean) -> LinearRegression:
        """The same task with another mean of x."""
        return dataclasses.replace(self, mean=mean)

    @cached_property
    def _on_devices(self) -> dict[torch.device, tuple[Tensor, Tensor]]:
        return {}

    def _root_and_mean(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Σ's Cholesky factor and E[x], copied to a device once: a CUDA graph cannot hold the copying."""
        if device not in self._on_devices:
            both = np.linalg.cholesky(self.sigma), self.mean_vector
            root, mean = (torch.from_numpy(array).to(device, torch.float32) for array in both)
            self._on_devices[device] = root, mean
        return self._on_devices[device]

    def sample(
        self,
        batch: int,
        *,
        length: int | None = None,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
    ) -> Prompt:
        """Draw `batch` independent prompts (float32), each with its own β.

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
        root, mean = self._root_and_mean(x.device)
        if self.covariance is not None:
            x = x @ root.mT
        if not self.centred:
            x = x + mean
        beta = torch.randn(batch, self.dim, 1, **options) * (self.signal_var / self.dim) ** 0.5
        noise = torch.randn(batch, L + 1, 1, **options) * self.noise_var**0.5
        if not self.query_noise:
            noise[:, L] = 0
        y = torch.baddbmm(noise, x, beta)
        return Prompt(x=x[:, :L], y=y[:, :L], x_q=x[:, L], y_q=y[:, L])


def _checked_covariance(covariance: object, dim: int) -> tuple[tuple[float, ...], ...]:
    sigma = _as_numbers(covariance)
    if sigma is None:
        raise ConfigError(f"covariance must be None, kms(rho) or a ({dim}, {dim}) matrix, got {covariance!r}")
    if sigma.shape != (dim, dim):
        raise ConfigError(f"covariance must have shape ({dim}, {dim}) for dim={dim}, got {sigma.shape}")
    if not np.isfinite(sigma).all():
        raise ConfigError("covariance must be finite, got NaN or infinity in it")
    if not np.allclose(sigma, sigma.T, rtol=1e-6, atol=1e-8 * np.abs(sigma).max()):
        raise ConfigError(
            f"covariance must be symmetric, got entries that differ by {np.abs(sigma - sigma.T).max():.3g}"
        )
    smallest = float(np.linalg.eigvalsh(sigma)[0])
    if smallest <= 1e-10 * np.abs(sigma).max():
        raise ConfigError(f"covariance must be positive definite, got a smallest eigenvalue of {smallest:.3g}")
    return tuple(tuple(row) for row in ((sigma + sigma.T) / 2).tolist())


def _checked_mean(mean: object, dim: int) -> float | tuple[float, ...]:
    values = _as_numbers(mean)
    if values is None or values.shape not in ((), (dim,)) or not np.isfinite(values).all():
        raise ConfigError(f"mean must be one finite number or {dim} of them, got {mean!r}")
    return float(values) if values.ndim == 0 else tuple(values.tolist())


def _as_numbers(value: object) -> np.ndarray | None:
    """`value` as a float64 array, or None where that would be a guess: strings, truth values, ragged lists."""
    try:
        array = np.asarray(value.detach().cpu() if isinstance(value, Tensor) else value)
    except (TypeError, ValueError):
        return None
    return array.astype(float) if array.dtype.kind in "iuf" else None
