"""Linear probes: what ridge regression reads off a model's residual stream.  No `@probe` is declared here.

A probe is fitted on some prompts and to be judged on others.  Features are standardised and centred; the penalty is the
one of least generalised cross-validation, RSS/n / (1 − freedom/n)², among `PENALTIES`, on the prompts of the fit alone
(Golub, Heath and Wahba 1979).  All in float64, O(n·D² + D³) for D features, once for all targets.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

PENALTIES = np.geomspace(1e3, 1e-9, 13)
"""In units of a feature's variance, the mean eigenvalue of the standardised features' covariance; descending."""
RESOLUTION = 1e-12  # of eigenvalues, and of a feature's spread to its size: what is smaller is rounding


@dataclass(frozen=True, eq=False)
class LinearProbe:
    """features @ weights + offset.

    Args:
        weights, offset: in terms of the features as they are.
        penalty: that was chosen, one of `PENALTIES`.
    """

    weights: Float[Tensor, "features targets"]
    offset: Float[Tensor, " targets"]
    penalty: float

    def __call__(self, features: Float[Tensor, "prompts features"]) -> Float[Tensor, "prompts targets"]:
        """What is read of the targets."""
        return features @ self.weights + self.offset


def fit_probes(
    features: Float[Tensor, "prompts features"], *targets: Float[Tensor, "prompts targets"]
) -> list[LinearProbe]:
    """One probe for each of `targets`, with a penalty of its own.

    Features that do not vary are not read, nor are directions in which the features are alike but for rounding.
    """
    centre = features.mean(0)
    spread = features.std(0, correction=0)
    spread = torch.where(spread > RESOLUTION * features.abs().amax(0), spread, torch.inf)
    seen = (features - centre) / spread
    values, vectors = torch.linalg.eigh(seen.mT @ seen / len(seen))
    kept = values > RESOLUTION * len(values) * values[-1]
    values, directions = values[kept], vectors[:, kept]
    probes: list[LinearProbe] = []
    for target in targets:
        mean = target.mean(0)
        moments = directions.mT @ (seen.mT @ (target - mean)) / len(seen)
        penalty = _least_gcv(values, moments, (target - mean).square().mean(0).sum(), len(seen))
        weights = directions @ (moments / (values + penalty)[:, None]) / spread[:, None]
        probes.append(LinearProbe(weights, mean - centre @ weights, penalty))
    return probes


def read_beside(
    base: Float[Tensor, "prompts features"],
    columns: Float[Tensor, "prompts columns"],
    target: Float[Tensor, " prompts"],
) -> Float[Tensor, "prompts columns"]:
    """What least squares reads of `target` off `base` and one column at a time: for many columns at the price of few.

    Of each column the part that `base` does not have is regressed on alone (Frisch and Waugh 1933).
    """
    basis = torch.linalg.qr(torch.cat([torch.ones_like(base[:, :1]), base], 1)).Q
    rest = columns - basis @ (basis.mT @ columns)
    slopes = target @ rest / rest.square().sum(0)
    return (basis @ (basis.mT @ target))[:, None] + slopes * rest


def _least_gcv(
    values: Float[Tensor, " directions"],
    moments: Float[Tensor, "directions targets"],
    total: Float[Tensor, ""],
    prompts: int,
) -> float:
    """The penalty of least generalised cross-validation; the largest where all that is fitted fits all."""
    penalties = torch.as_tensor(PENALTIES, device=values.device)[:, None]
    kept = values / (values + penalties)  # of each direction, by penalty
    explained = ((2 * kept - kept**2) * (moments**2).sum(1) / values).sum(1)
    spare = 1 - (1 + kept.sum(1)) / prompts  # the mean takes one
    scores = torch.where(spare > 0, (total - explained).clamp(min=0.0) / spare**2, torch.inf)
    return float(PENALTIES[int(scores.argmin())])
