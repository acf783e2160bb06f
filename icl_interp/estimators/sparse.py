"""Regression that expects zeros: the Lasso and orthogonal matching pursuit, as scikit-learn solves them.

Prompts are solved one at a time, in float64: the better part of a millisecond each, whatever the device.  Each response
is fitted to its own labels.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from einops import einsum
from jaxtyping import Float
from torch import Tensor

from icl_interp.config import check_count, check_positive
from icl_interp.errors import ConfigError
from icl_interp.estimators.fitting import answer, check_finite
from icl_interp.tasks import Prompt

PENALTIES = np.geomspace(1.0, 1e-3, 13)
"""What `best_lasso` chooses from, in units of rms(x)·rms(y), of which penalties are multiples; descending."""

# The duality gap, relative to ‖y‖², at which coordinate descent stops, and where it gives up, with a warning.  At the
# least of `PENALTIES`, d = 16 and L from 4 to 40, one of 13,000 prompts took 163,000 sweeps, and all others took fewer.
_TOLERANCE = 1e-5
_MOST_SWEEPS = 1_000_000


@dataclass(frozen=True)
class Lasso:
    """ŷ = ŵᵀx_q with the ŵ of least (1/2L)‖y − Xw‖² + λ‖w‖₁, without intercept.

    Args:
        penalty: λ, above zero; at λ = 0 it would be least squares, `Ridge(0)`.
    """

    penalty: float

    def __post_init__(self) -> None:
        check_positive("penalty", self.penalty)

    def __call__(self, prompt: Prompt) -> Float[Tensor, "batch outputs"]:
        """ŷ_q."""
        return answer(prompt, self.coefficients(prompt.x, prompt.y))

    def coefficients(
        self, x: Float[Tensor, "batch length dim"], y: Float[Tensor, "batch length outputs"]
    ) -> Float[Tensor, "batch dim outputs"]:
        """ŵ of each prompt, float64."""
        return _lasso_paths(x, y, [self.penalty])[..., 0]


@dataclass(frozen=True)
class OrthogonalMatchingPursuit:
    """Least squares on `sparsity` covariates, chosen one by one for their correlation with what is still unexplained.

    Columns of X are brought to unit norm first, as scikit-learn expects: the next covariate is the one that explains
    most.  It stops early where nothing is left to explain, and with as many covariates as there are demonstrations.

    Args:
        sparsity: s, how many.
    """

    sparsity: int

    def __post_init__(self) -> None:
        check_count("sparsity", self.sparsity)

    def __call__(self, prompt: Prompt) -> Float[Tensor, "batch outputs"]:
        """ŷ_q.

        Raises:
            ConfigError: prompts of fewer covariates than `sparsity`.
        """
        return answer(prompt, self.coefficients(prompt.x, prompt.y))

    def coefficients(
        self, x: Float[Tensor, "batch length dim"], y: Float[Tensor, "batch length outputs"]
    ) -> Float[Tensor, "batch dim outputs"]:
        """ŵ of each prompt, float64.

        Raises:
            ConfigError: as for a call.
        """
        if x.shape[2] < self.sparsity:
            raise ConfigError(f"sparsity {self.sparsity} needs as many covariates, these prompts have {x.shape[2]}")
        return _one_by_one(x, y, self._pursue, 1)[..., 0]

    def _pursue(self, x: Float[np.ndarray, "length dim"], y: Float[np.ndarray, "length"]) -> Float[np.ndarray, "dim 1"]:
        from sklearn.linear_model import orthogonal_mp

        # Labels of unit norm too: scikit-learn stops where a correlation is below 1.5e-8, in whatever units.
        lengths, size = _nonzero(np.linalg.norm(x, axis=0)), _nonzero(np.linalg.norm(y))
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Orthogonal matching pursuit ended prematurely", RuntimeWarning)
            found = orthogonal_mp(x / lengths, y / size, n_nonzero_coefs=min(self.sparsity, len(x)))
        return (size * found / lengths)[:, None]


def best_lasso(prompt: Prompt) -> Lasso:
    """The Lasso of least squared error on `prompt`, at one of `PENALTIES` times rms(x)·rms(y).

    All penalties of a prompt are solved in one path, in about three times what one takes.

    Raises:
        ConfigError: prompts that are not finite, or that are all zero.
    """
    check_finite(prompt)
    unit = (prompt.x.double().square().mean() * prompt.y.double().square().mean()).sqrt().item()
    if unit == 0:
        raise ConfigError("a penalty cannot be fitted to covariates or labels that are all zero")
    penalties = (PENALTIES * unit).tolist()
    paths = _lasso_paths(prompt.x, prompt.y, penalties)
    errors = einsum(paths, prompt.x_q.double(), "b d n k, b d -> b n k") - prompt.y_q.double()[..., None]
    return Lasso(penalties[int(errors.square().mean((0, 1)).argmin())])


def _lasso_paths(
    x: Float[Tensor, "batch length dim"], y: Float[Tensor, "batch length outputs"], penalties: Sequence[float]
) -> Float[Tensor, "batch dim outputs penalties"]:
    """The Lasso's ŵ at every one of descending `penalties`."""
    from sklearn.linear_model import lasso_path

    options = {"tol": _TOLERANCE, "max_iter": _MOST_SWEEPS, "precompute": False, "check_input": False}
    # Cyclic descent draws nothing, yet would seed itself from numpy's global generator.
    options |= {"random_state": np.random.RandomState(0)}

    def path(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        if not y.any():  # to older versions of scikit-learn a gap of zero is not below a tolerance of zero
            return np.zeros((x.shape[1], len(penalties)))
        x, y = np.asfortranarray(x), np.ascontiguousarray(y)
        return lasso_path(x, y, alphas=np.array(penalties), **options)[1]  # type: ignore[arg-type]

    return _one_by_one(x, y, path, len(penalties))


def _one_by_one(
    x: Float[Tensor, "batch length dim"],
    y: Float[Tensor, "batch length outputs"],
    solve: Callable[[np.ndarray, np.ndarray], np.ndarray],
    answers: int,
) -> Float[Tensor, "batch dim outputs answers"]:
    """`solve(X, y)`, (dim, answers), of each prompt and response: NaN where they are not finite."""
    from sklearn import config_context

    xs, ys = x.detach().double().cpu().numpy(), y.detach().double().cpu().numpy()
    solved = np.full((len(xs), x.shape[2], y.shape[2], answers), np.nan)
    with config_context(skip_parameter_validation=True):  # which takes as long as solving
        for i, n in np.ndindex(len(xs), y.shape[2]):
            if np.isfinite(xs[i]).all() and np.isfinite(ys[i, :, n]).all():
                solved[i, :, n] = solve(xs[i], ys[i, :, n])
    return torch.from_numpy(solved).to(x.device)


def _nonzero(norms: np.ndarray | np.floating) -> np.ndarray:
    return np.where(norms > 0, norms, 1.0)
