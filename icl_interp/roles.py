"""What each head of a one-layer model is for, judged by what it does to predictions, and jointly.

A head's *ideal self* is one kernel regressor, μ Σ softmax(ω x_ℓᵀ G x_q)_ℓ y_ℓ (arXiv 2503.12734, (3.2)), with the
model's own activation in place of softmax (5.2): G is the identity for isotropic covariates and, for other Σ, the
optimal debiased preconditioner scaled to trace d, (5.3).  ω comes from the weights, μ from regressing the head's output
on its ideal kernel over sampled prompts.

    dummy          removing all of them together leaves the predictions as they are
    mean           attends evenly, and adds μ times the mean label
    positive       does what its ideal self does, with ω > 0
    negative       the same with ω < 0
    mixed          the same with several responses, some of which it adds and others subtracts, or with ω of both signs
    unstructured   anything else

Roles are given to sets, smallest effect first, so that two heads that cancel are not taken for two that matter, nor
many small heads for nothing.  Cost: one pass over the prompts and one kernel regressor a head.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

import numpy as np
import torch
from einops import einsum
from jaxtyping import Bool, Float
from torch import Tensor

from icl_interp import theory
from icl_interp.activations import activation
from icl_interp.circuits import Circuits
from icl_interp.estimates import Estimate, exact, mean_of, ratio_of, slope_of
from icl_interp.tasks import LinearRegression, Prompt, Task

Role = Literal["positive", "negative", "dummy", "mean", "mixed", "unstructured"]

# Predictions may change by this much (root mean square, relative to them) and count as unchanged: a quarter of a
# percent of their energy, less than the 0.9 % by which η scatters from one iterate of a training to the next.
NEGLIGIBLE = 0.05
# A head may miss its ideal self by this much of what that self does beyond averaging labels (rms over rms): trained
# heads miss by 0.1 or so, untrained and random ones by more than 4.
FIDELITY = 0.5
# Heads cancel if together they do less than this, relative to the root of the sum of squares of what each does alone.
# A positive and a negative head do not: at γ = 0.02 they still add up to 0.2.
CANCELS = 0.1
# ω and μ describe a model if ideal heads explain its predictions but for this fraction of their energy.  Trained models
# miss 0.1 to 2 %; untrained ones miss more than half.
STRUCTURED = 0.05
# Of several responses a head serves those where its |μ| is this part of the largest head's there.  In trained models
# heads that leave a response to others keep 0.09 of it at most, and no other has less than 0.12.
SERVES = 0.1
EXHAUSTIVE = 12  # heads up to which every set is tried for cancellation; beyond it, pairs


@dataclass(frozen=True, eq=False)
class Heads:
    """Roles of a layer's heads and the numbers they rest on.

    Args:
        roles: one a head.
        stable: whether each quarter of the prompts alone gives the same roles.
        omega: ω, weight along G; of several responses the mean over features that may differ.
        omega_half: half-width of ω's 95 % t-interval over the d diagonal entries.
        mu: μ of the regression on the ideal kernel.
        mu_half: half-width of μ's 95 % interval over prompts (robust to heteroscedasticity).
        effect: root mean square of the head's output relative to the prediction's.
        misfit: rms of (output − ideal) relative to rms of (ideal − its mean-label part).
        explained: fraction of the prediction's energy that the ideal selves together explain.
        cancelling: sets of heads that matter one at a time and do nothing together.
    """

    roles: tuple[Role, ...]
    stable: bool
    omega: Float[np.ndarray, "heads"]
    omega_half: Float[np.ndarray, "heads"]
    mu: Float[np.ndarray, "heads outputs"]
    mu_half: Float[np.ndarray, "heads outputs"]
    effect: Float[np.ndarray, "heads"]
    misfit: Float[np.ndarray, "heads"]
    explained: Estimate
    cancelling: tuple[tuple[int, ...], ...]

    def are(self, *roles: Role) -> Bool[np.ndarray, "heads"]:
        """Which heads have one of these roles."""
        return np.array([role in roles for role in self.roles], dtype=bool)

    @property
    def serves(self) -> Bool[np.ndarray, "heads outputs"]:
        """Which responses each head serves: the only one, if there is one."""
        return _served(self.mu, self.are("positive", "negative", "mean", "mixed"))

    @property
    def structured(self) -> bool:
        """Whether ω and μ tell what the model does: the ideal selves explain it, and some head attends."""
        return self.explained.value >= 1 - STRUCTURED and bool(self.are("positive", "negative", "mixed").any())


def reference_shape(task: Task | None, dim: int) -> Float[np.ndarray, "dim dim"]:
    """G, the shape KQ_11 is expected to have, with trace d: the identity unless a known Σ says otherwise."""
    if not isinstance(task, LinearRegression) or task.isotropic:
        return np.eye(dim)
    gamma = theory.debiased_preconditioner(
        task.sigma, length=task.length, noise_var=task.noise_var, signal_var=task.signal_var
    )
    return gamma * dim / np.trace(gamma)


def along(shape: Float[np.ndarray, "dim dim"], KQ_11: Float[np.ndarray, "*heads dim dim"]) -> np.ndarray:
    """KQ_11 in the basis where `shape` is the identity, G^{-1/2} KQ_11 G^{-1/2}: ω·I for an ideal head."""
    values, vectors = np.linalg.eigh(shape)
    root = vectors @ np.diag(values**-0.5) @ vectors.T
    return root @ KQ_11 @ root


def ideal_matrices(
    circuits: Circuits, shape: Float[np.ndarray, "dim dim"]
) -> Float[np.ndarray, "layers heads dim dim"]:
    """KQ_11 of each head's ideal self: ω·G; with several responses its own diagonal, which has features by task."""
    if circuits.n_outputs > 1:
        return circuits.KQ_11 * np.eye(circuits.dim)
    omega = np.diagonal(along(shape, circuits.KQ_11), axis1=-2, axis2=-1).mean(-1)
    return omega[..., None, None] * shape


def classify(circuits: Circuits, prompts: Iterable[Prompt], shape: Float[np.ndarray, "dim dim"]) -> Heads:
    """The roles of a one-layer model's heads on `prompts` (float64 batches, thousands of prompts in all)."""
    omega = np.diagonal(along(shape, circuits.KQ_11[0]), axis1=-2, axis2=-1)
    matrices = torch.from_numpy(ideal_matrices(circuits, shape)[0])
    averages = activation(circuits.activation).normalised  # else a head of scores near zero adds nothing
    parts = _Parts.measure(
        (circuits.head_outputs(p), _ideal_kernels(circuits, matrices, p), p.y.mean(1) * averages) for p in prompts
    )
    roles, cancelling = _assign(parts, omega)
    quarters = [parts.of(quarter) for quarter in np.array_split(np.arange(len(parts.outputs)), 4) if len(quarter)]
    energy = parts.energy(parts.outputs)
    total = max(parts.total, np.finfo(float).tiny)
    return Heads(
        roles=roles,
        stable=all(_assign(part, omega)[0] == roles for part in quarters),
        omega=omega.mean(-1),
        omega_half=np.array([mean_of(entries).half if len(entries) > 1 else 0.0 for entries in omega]),
        mu=parts.mu,
        mu_half=parts.mu_half(),
        effect=np.sqrt(energy / total),
        misfit=parts.misfit(),
        explained=parts.explained(),
        cancelling=cancelling,
    )


def _ideal_kernels(
    circuits: Circuits, matrices: Float[Tensor, "heads dim dim"], prompt: Prompt
) -> Float[Tensor, "batch heads outputs"]:
    """Σ p y of each ideal head."""
    asks = einsum(matrices.to(prompt.x), prompt.x_q, "h k q, b q -> b h k")
    weights = circuits.weigh(einsum(asks, prompt.x, "b h k, b l k -> b h l"), None)
    return einsum(weights, prompt.y, "b h l, b l n -> b h n")


@dataclass(frozen=True, eq=False)
class _Parts:
    """Per prompt: what each head adds, what its ideal kernel is, the mean label; and μ fitted to all prompts."""

    outputs: Float[np.ndarray, "batch heads outputs"]
    ideal: Float[np.ndarray, "batch heads outputs"]
    mean_label: Float[np.ndarray, "batch 1 outputs"]
    mu: Float[np.ndarray, "heads outputs"]

    @classmethod
    def measure(cls, batches: Iterable[tuple[Tensor, Tensor, Tensor]]) -> _Parts:
        """From batches of (outputs, ideal kernels, mean labels)."""
        o, k, mean_label = (torch.cat(part).double().cpu().numpy() for part in zip(*batches, strict=True))
        energy = (k**2).sum(0)
        mu = np.divide((k * o).sum(0), energy, out=np.zeros_like(energy), where=energy > 0)
        return cls(o, k, mean_label[:, None], mu)

    def of(self, index: np.ndarray) -> _Parts:
        return _Parts(self.outputs[index], self.ideal[index], self.mean_label[index], self.mu)

    @staticmethod
    def energy(x: np.ndarray) -> Float[np.ndarray, "heads"]:
        return (x**2).sum(-1).mean(0)

    @property
    def total(self) -> float:
        return float((self.outputs.sum(1) ** 2).sum(-1).mean())

    def misfit(self) -> Float[np.ndarray, "heads"]:
        missed = self.energy(self.outputs - self.mu * self.ideal)
        signal = self.energy(self.mu * (self.ideal - self.mean_label))
        return np.sqrt(np.divide(missed, signal, out=np.full_like(missed, np.inf), where=signal > 0))

    def explained(self) -> Estimate:
        predictions = (self.outputs.sum(1) ** 2).sum(-1)
        missed = ((self.outputs - self.mu * self.ideal).sum(1) ** 2).sum(-1)
        if not predictions.any():
            return exact(0.0)
        return ratio_of(predictions - missed, predictions)

    def mu_half(self) -> Float[np.ndarray, "heads outputs"]:
        halves = np.empty(self.mu.shape)
        for at in np.ndindex(halves.shape):
            halves[at] = slope_of(self.outputs[:, *at], self.ideal[:, *at]).half
        return halves


def _assign(
    parts: _Parts, omega: Float[np.ndarray, "heads dim"]
) -> tuple[tuple[Role, ...], tuple[tuple[int, ...], ...]]:
    heads = range(parts.outputs.shape[1])
    limit = NEGLIGIBLE**2 * parts.total
    output, beyond_mean = _gram(parts.outputs), _gram(parts.outputs - parts.mu * parts.mean_label)
    dummies = _negligible(output, limit)
    averaging = [h for h in heads if h not in dummies and beyond_mean[h, h] <= FIDELITY**2 * output[h, h]]
    means = _negligible(beyond_mean, limit, averaging)
    cancelling = _cancelling(output, limit, [h for h in heads if h not in dummies | means], dummies)
    dummies |= {h for group in cancelling for h in group}
    roles: list[Role] = ["unstructured"] * len(heads)
    served = _served(parts.mu, np.array([h not in dummies for h in heads]))
    for h in _fitting(parts, np.sign(omega.mean(-1)), [h for h in heads if h not in dummies | means]):
        roles[h] = _sign(parts.mu[h][served[h]], omega[h], several=served.shape[1] > 1)
    for h in means:
        roles[h] = "mean"
    for h in dummies:
        roles[h] = "dummy"
    return tuple(roles), cancelling


def _fitting(parts: _Parts, sign: np.ndarray, attending: list[int]) -> list[int]:
    """The `attending` heads that do what their ideal selves do: alone, or with the heads of the same sign.

    Heads that attend alike are only known in sum, so what one of them does beyond its ideal self another may undo.  A
    head is excused if its group as a whole fits, and putting the ideal self in its place alone would make that worse.
    """
    missed = _gram(parts.outputs - parts.mu * parts.ideal)
    signal = _gram(parts.mu * (parts.ideal - parts.mean_label))

    def fits(head: int) -> bool:
        if missed[head, head] <= FIDELITY**2 * signal[head, head]:
            return True
        group = [h for h in attending if sign[h] == sign[head]]
        without = _joint(missed, [h for h in group if h != head])
        return _joint(missed, group) <= min(FIDELITY**2 * _joint(signal, group), without)

    return [head for head in attending if fits(head)]


def _joint(gram: np.ndarray, heads: Sequence[int]) -> float:
    """The energy of the sum of these heads' parts."""
    return float(gram[np.ix_(heads, heads)].sum())


def _served(
    mu: Float[np.ndarray, "heads outputs"], among: Bool[np.ndarray, "heads"]
) -> Bool[np.ndarray, "heads outputs"]:
    size = np.abs(mu)
    return (size >= SERVES * size[among].max(0, initial=0.0)) | (size.shape[1] == 1)


def _sign(served: np.ndarray, omega: np.ndarray, *, several: bool) -> Role:
    """By the μ of the responses that the head serves and the ω of the features that it attends to."""
    asks = np.sign(omega[np.abs(omega) > FIDELITY * np.abs(omega).max()])
    if several and (len(set(np.sign(served))) > 1 or len(set(asks)) > 1):
        return "mixed"
    return "positive" if omega.mean() > 0 else "negative"


def _gram(x: Float[np.ndarray, "batch heads outputs"]) -> Float[np.ndarray, "heads heads"]:
    return np.einsum("bhn,bgn->hg", x, x) / len(x)


def _negligible(gram: np.ndarray, limit: float, among: list[int] | None = None) -> set[int]:
    """The heads whose parts, smallest first, together stay below `limit`."""
    order = sorted(range(len(gram)) if among is None else among, key=lambda h: gram[h, h])
    chosen: list[int] = []
    for head in order:
        if _joint(gram, [*chosen, head]) > limit or gram[head, head] > limit:
            break
        chosen.append(head)
    return set(chosen)


def _cancelling(gram: np.ndarray, limit: float, among: list[int], dummies: set[int]) -> tuple[tuple[int, ...], ...]:
    """Smallest disjoint sets of heads that cancel, and with the `dummies` together stay below `limit`."""
    sizes = range(2, (len(among) if len(among) <= EXHAUSTIVE else 2) + 1)
    groups = [group for size in sizes for group in combinations(among, size)]
    members = np.zeros((len(groups), len(gram)))
    for row, group in zip(members, groups, strict=True):
        row[list(group)] = 1
    together, alone = np.einsum("sh,hg,sg->s", members, gram, members, optimize=True), members @ np.diagonal(gram)
    found: list[tuple[int, ...]] = []
    nothing = sorted(dummies)
    for index in np.flatnonzero(together <= CANCELS**2 * alone):
        group = groups[index]
        if not set(group) & set(nothing) and _joint(gram, [*nothing, *group]) <= limit:
            found.append(group)
            nothing += group
    return tuple(found)
