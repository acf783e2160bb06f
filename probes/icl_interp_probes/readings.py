"""A symmetric matrix that is known up to a factor, read in batches, against candidates.  No probe is declared here.

Noise only ever adds to a distance, so a distance comes with what noise makes of it, and its interval is by the triangle
inequality: the truth is within the noise's own 95 % radius of what was read.  What decides between two candidates is a
position: the matrix projected on the line from one of them (0) to the other (1), which noise moves to either side.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy import stats

from icl_interp.estimates import LEVEL
from icl_interp.probing import Estimate, mean_of
from icl_interp_probes.shown import around

# Γ is what KQ tends to as γ → 0.  At the γ of trained runs (0.19 where Σ_ij = 0.5^|i−j|) what is read off the weights
# and what is read off the predictions of one checkpoint differ by this much, relative to Γ; so closer than this nothing
# can be told, however small the noise.
FIRST_ORDER = 0.002
DECIMALS = 5  # of what is only shown: a result is a part of every report


@dataclass(frozen=True, eq=False)
class Reading:
    """A matrix Γ̂ read in one way, and what follows.

    Args:
        name: of what, and how.
        matrix: Γ̂'s symmetric part, scaled to the norm of the first candidate.
        half: half-width of each entry's 95 % interval, in the same units.
        step: the least-squares factor of Γ̂ on the first candidate.
        antisymmetric: norm of Γ̂'s antisymmetric part relative to Γ̂.
        noise: the distance that noise alone makes.
        distance: from Γ̂ to each candidate, relative to Γ̂, after one fitted factor; noise included.
        misfit: distance to the first candidate without what noise adds to it, in units of the distance from there to
            the next of the third and fourth.
        to_inverse: position of what was read between the first candidate (0) and the third (1).
        to_plain: the same between the first (0) and the second (1).
        askew: norm of Γ̂'s off-diagonal part in the eigenvectors of Σ, relative to Γ̂; noise included.
        eigenvalues: Γ̂'s diagonal there, largest eigenvalues of Σ first, and the half-width of each interval.
    """

    name: str
    matrix: Float[np.ndarray, "dim dim"]
    half: Float[np.ndarray, "dim dim"]
    step: float
    antisymmetric: float
    noise: float
    distance: Float[np.ndarray, "candidates"]
    misfit: Estimate
    to_inverse: Estimate
    to_plain: Estimate
    askew: float
    eigenvalues: Float[np.ndarray, "dim 2"]


@dataclass(frozen=True, eq=False)
class Candidates:
    """What a matrix might be, up to a factor: the first is expected, the second close to it, two others.

    All are symmetric and of the first one's norm.
    """

    matrices: Float[np.ndarray, "candidates dim dim"]
    sigma: Float[np.ndarray, "dim dim"]

    @classmethod
    def of(cls, matrices: list[np.ndarray], sigma: np.ndarray) -> Candidates:
        """Candidates in any scale; the first in its own."""
        return cls(np.array([sized(m, float(np.linalg.norm(matrices[0]))) for m in matrices]), sigma)

    def read(self, name: str, batches: Float[np.ndarray, "batches dim dim"], unseen: float = 0.0) -> Reading:
        """What batch means of Γ̂ tell; `unseen` is relative noise that all of them share."""
        raw, first = batches.mean(0), self.matrices[0]
        size = float(np.linalg.norm(first))
        factor = size / max(float(np.linalg.norm(symmetric(raw))), np.finfo(float).tiny)
        shapes = factor * symmetric(batches)
        mean = shapes.mean(0)
        turned = basis(self.sigma).T @ shapes @ basis(self.sigma)
        allowed = 2 * unseen * size / len(mean)  # 95 % of an entry, were noise the same in all
        beside = shapes - (shapes * first).sum((1, 2), keepdims=True) / size**2 * first
        next_one = min(self.apart(0, 2), self.apart(0, 3))
        return Reading(
            name=name,
            matrix=mean.round(DECIMALS),
            half=(_halves(shapes) + allowed).round(DECIMALS),
            step=float((raw * first).sum()) / size**2,
            antisymmetric=float(np.linalg.norm(raw - raw.T) / 2 / max(float(np.linalg.norm(raw)), 1e-300)),
            noise=math.hypot(_noise(beside / size), unseen),
            distance=np.array([distance(mean, candidate) for candidate in self.matrices]).round(6),
            misfit=length(beside / size, unseen).map(lambda value: value / next_one),
            to_inverse=self._position(shapes, 2, unseen),
            to_plain=self._position(shapes, 1, unseen),
            askew=float(np.linalg.norm(turned.mean(0) * (1 - np.eye(len(mean)))) / size),
            eigenvalues=np.stack([np.diagonal(turned.mean(0)), np.diagonal(_halves(turned)) + allowed], axis=1).round(
                DECIMALS
            ),
        )

    def apart(self, one: int, other: int) -> float:
        """Distance between two candidates."""
        return distance(self.matrices[one], self.matrices[other])

    def _position(self, shapes: Float[np.ndarray, "batches dim dim"], other: int, unseen: float) -> Estimate:
        ends = np.stack([self.matrices[0].ravel(), self.matrices[other].ravel()], axis=1)
        near, far = np.linalg.lstsq(ends, shapes.reshape(len(shapes), -1).T)[0]
        with np.errstate(all="ignore"):  # not finite is an answer here
            found = mean_of(far / (near + far), "batch means")
        shared = 1.96 * unseen / math.sqrt(_entries(shapes)) / self.apart(0, other)
        return around(found.value, math.hypot(found.half, shared), found.covers)


def allowing(position: Estimate, apart: float) -> Estimate:
    """What a position between two candidates tells of Γ: `FIRST_ORDER` more to either side than of what was read."""
    more = FIRST_ORDER / apart
    return Estimate(position.value, position.low - more, position.high + more, position.covers)


def length(batches: Float[np.ndarray, "batches rows columns"], unseen: float = 0.0) -> Estimate:
    """Norm of what a mean of batches stands for: what noise adds to it is taken off, and never below zero.

    The interval is the mean's norm give or take the noise's 95 % radius, in as many directions as noise has, and
    `FIRST_ORDER`.
    """
    read, noise = float(np.linalg.norm(batches.mean(0))), _noise(batches)
    if not (math.isfinite(read) and math.isfinite(noise)):
        return Estimate(math.nan, -math.inf, math.inf, "batch means")
    k = _entries(batches)
    radius = math.hypot(_radius(batches), unseen * math.sqrt(stats.chi2.ppf(LEVEL, k) / k)) + FIRST_ORDER
    value = math.sqrt(max(read**2 - noise**2 - unseen**2, 0.0))
    return Estimate(value, max(read - radius, 0.0), read + radius, "batch means")


def distance(matrix: np.ndarray, candidate: np.ndarray) -> float:
    """Distance after one fitted factor, relative to `matrix`: the sine of the angle between the two."""
    product, norms = float((matrix * candidate).sum()), float(np.linalg.norm(matrix) * np.linalg.norm(candidate))
    return math.sqrt(max(1 - (product / norms) ** 2, 0.0)) if norms > 0 else math.nan


def symmetric(matrices: Float[np.ndarray, "*some dim dim"]) -> Float[np.ndarray, "*some dim dim"]:
    """Symmetric part."""
    return (matrices + matrices.swapaxes(-1, -2)) / 2


def sized(matrix: np.ndarray, size: float) -> np.ndarray:
    """The matrix at another norm."""
    return matrix * (size / max(float(np.linalg.norm(matrix)), np.finfo(float).tiny))


def basis(sigma: Float[np.ndarray, "dim dim"]) -> Float[np.ndarray, "dim dim"]:
    """Eigenvectors of Σ as columns, those of the largest eigenvalues first."""
    return np.linalg.eigh(sigma)[1][:, ::-1]


def _halves(batches: Float[np.ndarray, "batches rows columns"]) -> Float[np.ndarray, "rows columns"]:
    return np.apply_along_axis(lambda entry: mean_of(entry).half, 0, batches)


def _noise(batches: Float[np.ndarray, "batches rows columns"]) -> float:
    """Root of the expected squared norm of the error of the mean; infinite for one batch."""
    n = len(batches)
    return math.sqrt(float(batches.var(0, ddof=1).sum()) / n) if n > 1 else math.inf


def _radius(batches: Float[np.ndarray, "batches rows columns"]) -> float:
    """95 % of errors of the mean are shorter: for noise of one direction the t-interval, for more an F quantile."""
    n, noise = len(batches), _noise(batches)
    if noise == 0:
        return 0.0
    scatter = (batches - batches.mean(0)).reshape(n, -1)
    gram = scatter @ scatter.T
    k = float(np.trace(gram) ** 2 / (gram**2).sum())  # directions, as many as carry the noise's energy
    return noise * math.sqrt(stats.f.ppf(LEVEL, k, k * (n - 1)))


def _entries(batches: np.ndarray) -> int:
    """Independent entries of a symmetric matrix."""
    dim = batches.shape[-1]
    return dim * (dim + 1) // 2
