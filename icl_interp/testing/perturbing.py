"""Ways in which a planted model can miss its ideal, each with one number for how far.

A kind adds a random matrix to what reaches the prediction.  Its size is the root mean square of the entries that the
kind touches, over draws, relative to the largest |ω| of the model (for OV_21 to the largest |μ|):

    random         every entry of KQ_11 and KQ_21, independent Gaussian numbers
    diagonal       the diagonal of KQ_11, independent: ω differs between features, and the planted ω is its mean
    off_diagonal   KQ_11 off its diagonal, symmetric
    antisymmetric  KQ_11 off its diagonal, antisymmetric
    low_rank       KQ_11, by one outer product of two Gaussian vectors
    labels         KQ_21: attention that looks at labels
    covariates     OV_21: outputs that are of covariates

So at equal size the Frobenius norms of what is added to KQ_11 are as √d (diagonal), √(d² − d) (off_diagonal,
antisymmetric) and d (random, low_rank).  One kind adds nothing:

    scale          each head's ω and each of its μ are multiplied by exp(size·z) with independent z ~ N(0, 1)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from icl_interp.config import check_choice
from icl_interp.errors import ConfigError


@dataclass(frozen=True, eq=False)
class Term:
    """What is added to the parts of the circuits that reach the prediction, at size 1."""

    KQ: Float[np.ndarray, "heads d_model dim"]
    OV_21: Float[np.ndarray, "heads outputs dim"]


def term(kind: str, rng: np.random.Generator, heads: int, dim: int, outputs: int) -> Term:
    """A draw of a kind at size 1; zeros for "scale", which adds nothing.

    Raises:
        ConfigError: another kind, or one that there is none of at d = 1.
    """
    check_kind(kind, dim)
    KQ, OV_21 = np.zeros((heads, dim + outputs, dim)), np.zeros((heads, outputs, dim))
    if kind == "random":
        KQ = rng.standard_normal(KQ.shape)
    elif kind == "labels":
        KQ[:, dim:] = rng.standard_normal(OV_21.shape)
    elif kind == "covariates":
        OV_21 = rng.standard_normal(OV_21.shape)
    elif kind in _OF_KQ_11:
        KQ[:, :dim] = _OF_KQ_11[kind](rng, heads, dim)
    return Term(KQ, OV_21)


def absolute(
    kind: str, size: float, omega: Float[np.ndarray, "*steps heads"], mu: Float[np.ndarray, "*steps heads"]
) -> Float[np.ndarray, "*steps"]:
    """The size of a kind in units of the circuits that it is added to, by the largest head at every step."""
    return size * np.abs(mu if kind == "covariates" else omega).max(-1)


def rescaled(
    omega: Float[np.ndarray, "heads *of_each"],
    mu: Float[np.ndarray, "heads *outputs"],
    size: float,
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    """ω and μ under "scale"; features of a head keep their proportions."""
    of_heads = rng.standard_normal((len(omega), *[1] * (omega.ndim - 1)))
    return omega * np.exp(size * of_heads), mu * np.exp(size * rng.standard_normal(mu.shape))


def check_kind(kind: object, dim: int) -> None:
    """Raise `ConfigError` unless a model of so many covariates can be perturbed in this way."""
    check_choice("perturbation", kind, KINDS)
    if dim == 1 and kind in ("off_diagonal", "antisymmetric"):
        raise ConfigError(f"the perturbation {kind!r} takes two covariates at least")


def _diagonal(rng: np.random.Generator, heads: int, dim: int) -> np.ndarray:
    return rng.standard_normal((heads, 1, dim)) * np.eye(dim)


def _off_diagonal(rng: np.random.Generator, heads: int, dim: int) -> np.ndarray:
    entries = rng.standard_normal((heads, dim, dim))
    return (entries + entries.transpose(0, 2, 1)) * (1 - np.eye(dim)) / 2**0.5


def _antisymmetric(rng: np.random.Generator, heads: int, dim: int) -> np.ndarray:
    entries = rng.standard_normal((heads, dim, dim))
    return (entries - entries.transpose(0, 2, 1)) / 2**0.5


def _low_rank(rng: np.random.Generator, heads: int, dim: int) -> np.ndarray:
    left, right = rng.standard_normal((2, heads, dim))
    return left[:, :, None] * right[:, None, :]


_OF_KQ_11: dict[str, Callable[[np.random.Generator, int, int], np.ndarray]] = {
    "diagonal": _diagonal,
    "off_diagonal": _off_diagonal,
    "antisymmetric": _antisymmetric,
    "low_rank": _low_rank,
}
KINDS = ("random", *_OF_KQ_11, "labels", "covariates", "scale")
