"""Putting another circuit in a head's place, which reads the same residual stream."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch
from einops import einsum
from jaxtyping import Bool, Float
from torch import Tensor

from icl_interp.activations import activation
from icl_interp.attention import weighing
from icl_interp.circuits import Circuits
from icl_interp.errors import ConfigError
from icl_interp.interventions.intervention import HeadSet, Intervention, Layer, chosen_heads, result_hook, select_heads
from icl_interp.roles import ideal_matrices, reference_shape
from icl_interp.tasks import Task

if TYPE_CHECKING:
    from icl_interp.lens import Hook
    from icl_interp.model import ICLTransformer


AttentionWeights = Callable[[Tensor, Tensor], Tensor]  # of scores and of which of them are allowed


def idealisation(
    model: ICLTransformer,
    heads: HeadSet | None = None,
    *,
    omega: float | Sequence[float] | None = None,
    mu: float | Sequence[float] | None = None,
    task: Task | None = None,
) -> Intervention:
    """Each head is its ideal self, one kernel regressor: KQ_11 = ω·G, OV_22 = μ, all else zero (arXiv 2503.12734, 3.1).

    Args:
        model: whose heads.
        heads: numbers or labels; None means all of them.
        omega: ω for all heads, or one a head; None means the head's own, the mean of KQ_11's diagonal along G (with
            several responses, the whole diagonal).
        mu: μ for all heads, or one a head; None means the head's own, OV_22's diagonal.
        task: tells G where covariates are correlated (`roles.reference_shape`); None means the identity.

    Raises:
        ConfigError: heads that are not there; ω or μ for another number of them; a task of another d; a model with more
            than heads.
    """
    chosen = chosen_heads(model, heads)
    KQ, OV = _ideal(model, chosen, task)
    d, N = model.config.dim, model.config.n_outputs
    if omega is not None:
        KQ[:, :d, :d] = _one_each("omega", omega, len(chosen)) * torch.from_numpy(reference_shape(task, d))
    if mu is not None:
        OV[:, d:, d:] = _one_each("mu", mu, len(chosen)) * torch.eye(N)
    weigh = weighing(model.config.activation, model.config.activation_scale)
    return Intervention(model, chosen, "idealisation", _in_place(model, KQ, OV, weigh))


def gradient_step(
    model: ICLTransformer,
    heads: HeadSet | None = None,
    *,
    step: float | Float[np.ndarray, "dim dim"] | None = None,
    task: Task | None = None,
) -> Intervention:
    """The heads together make one step of debiased gradient descent, (1/L) Σ y_ℓ (x_ℓ − x̄)ᵀ Γ x_q (4.11).

    It is what heads of small ω do to first order, but for their μ times the mean label, which cancels between heads of
    opposite signs.

    Args:
        model: whose heads.
        heads: numbers or labels; None means all of them.
        step: Γ, a (d, d) matrix, or η for η·I, of which each head makes an equal part; None means that each head makes
            a step of its own along G, together η = C·f′(0)/f(0)·Σ ωμ, (4.3) and (5.2): Σ ωμ for softmax, and L times as
            much for linear attention, which does not divide by L.
        task: tells G, as in `idealisation`.

    Raises:
        ConfigError: heads that are not there; a step of another shape, or not finite.
    """
    chosen = chosen_heads(model, heads)
    KQ, OV = _ideal(model, chosen, task)
    mean = True
    if step is None:
        f = activation(model.config.activation)
        KQ, mean = KQ * model.config.activation_scale * f.slope, f.normalised
    else:
        d = model.config.dim
        gamma = np.asarray(step, dtype=float)
        if gamma.shape not in ((), (d, d)) or not np.isfinite(gamma).all():
            raise ConfigError(f"step must be a finite number or a ({d}, {d}) matrix, got {step!r}")
        KQ[:, :d, :d] = torch.from_numpy((gamma if gamma.ndim else gamma * np.eye(d)) / len(chosen))
        OV[:, d:, d:] = torch.eye(model.config.n_outputs)
    return Intervention(model, chosen, "gradient step", _in_place(model, KQ, OV, partial(_debiased, mean=mean)))


def transplant(
    model: ICLTransformer,
    heads: HeadSet | None,
    donor: Circuits,
    donor_heads: HeadSet | None = None,
) -> Intervention:
    """The heads are those of another checkpoint, or of another step of the same one.

    Args:
        model: whose heads are replaced.
        heads: numbers or labels; None means all of them.
        donor: `run.circuits()` of a run with the same d and N; `run.circuits(step)` as it was then.
        donor_heads: which of the donor's heads, one for each of `heads`; None means those in the same places.

    Raises:
        ConfigError: heads that are not there, or not equally many; a donor of other sizes.
    """
    chosen = chosen_heads(model, heads)
    sizes, needed = (donor.dim, donor.n_outputs), (model.config.dim, model.config.n_outputs)
    if sizes != needed:
        raise ConfigError(f"the donor's (d, N) must be the model's, {needed}, got {sizes}")
    same = [f"L{layer}H{head}" for layer, head in chosen]
    given = select_heads(same if donor_heads is None else donor_heads, donor.n_layers, donor.n_heads)
    if len(given) != len(chosen):
        raise ConfigError(f"{len(chosen)} heads need as many of the donor's, got {len(given)}")
    KQ, OV = (torch.from_numpy(np.stack([parts[place] for place in given])) for parts in (donor.KQ, donor.OV))
    return Intervention(model, chosen, "transplant", _in_place(model, KQ, OV, donor.weigh))


def _ideal(
    model: ICLTransformer, chosen: tuple[tuple[int, int], ...], task: Task | None
) -> tuple[Float[Tensor, "heads d_model d_model"], Float[Tensor, "heads d_model d_model"]]:
    """KQ and OV of the chosen heads' ideal selves, in float64."""
    if model.config.extras:
        raise ConfigError(
            "a head's ideal self reads a prompt's columns and writes its response; this model has "
            f"{', '.join(model.config.extras)}"
        )
    circuits = Circuits.from_weights(model.weights(), model.config)
    d, D = circuits.dim, model.config.d_model
    if task is not None and task.dim != d:
        raise ConfigError(f"the task's dim must be the model's, {d}, got {task.dim}")
    KQ, OV = (torch.zeros(len(chosen), D, D, dtype=torch.float64) for _ in range(2))
    matrices = ideal_matrices(circuits, reference_shape(task, d))
    for row, place in enumerate(chosen):
        KQ[row, :d, :d] = torch.from_numpy(matrices[place])
        OV[row, d:, d:] = torch.from_numpy(np.diag(circuits.mu[place]))
    return KQ, OV


def _one_each(name: str, values: float | Sequence[float], heads: int) -> Float[Tensor, "heads 1 1"]:
    numbers = np.asarray(values, dtype=float)
    if numbers.shape not in ((), (heads,)) or not np.isfinite(numbers).all():
        raise ConfigError(f"{name} must be one finite number, or one for each of {heads} heads, got {values!r}")
    return torch.from_numpy(np.broadcast_to(numbers, (heads,)).copy())[:, None, None]


def _in_place(
    model: ICLTransformer,
    KQ: Float[Tensor, "heads d_model d_model"],
    OV: Float[Tensor, "heads d_model d_model"],
    weigh: AttentionWeights,
) -> Callable[[Layer, int], AbstractContextManager[object]]:
    """Other circuits (in the paper's convention) in the place of the chosen heads."""

    @contextmanager
    def applied(at: Layer, done: int) -> Iterator[object]:
        new = _Circuits(at, KQ[at.rows], OV[at.rows], weigh)
        # No hook point has all that attention reads, whichever switches are on, but the module itself has.
        reading = model.get_submodule(f"blocks.{at.layer}.attn").register_forward_pre_hook(new.read)
        try:
            with model.hooks(new.hooks()):
                yield
        finally:
            reading.remove()

    return applied


class _Circuits:
    """Other circuits for some heads of a layer.

    Scores, pattern and result become theirs; q, k, v and z stay the old heads', for the new ones need not factor
    through d_head.
    """

    def __init__(self, at: Layer, KQ: Tensor, OV: Tensor, weigh: AttentionWeights):
        self.at, self.KQ, self.OV, self.weigh = at, KQ, OV, weigh

    def hooks(self) -> list[Hook]:
        attn = f"blocks.{self.at.layer}.attn"
        return [
            (f"{attn}.hook_attn_scores", self.score),
            (f"{attn}.hook_pattern", self.attend),
            result_hook(self.at, self.add),
        ]

    def read(self, module: object, inputs: tuple[Tensor, ...]) -> None:
        self.query, self.key, self.value = (self._own(x) for x in inputs[:3])

    def score(self, scores: Tensor, hook: object) -> Tensor:
        new = einsum(self.key, self.KQ.to(scores), self.query, "b k head i, head i j, b q head j -> b head q k")
        # The mask is read off the scores, as the model does, so that hooks which open connections are heard.
        self.allowed = scores[:, self.at.heads] != -torch.inf
        self.scores = new.masked_fill(~self.allowed, -torch.inf)
        return self._put(scores, self.scores)

    def attend(self, pattern: Tensor, hook: object) -> Tensor:
        self.pattern = self.weigh(self.scores, self.allowed)
        return self._put(pattern, self.pattern)

    def add(self, results: Tensor) -> Tensor:
        # In this order: the circuit and the pattern share no axis, and their product would be huge.
        return einsum(self.pattern, self.value, self.OV.to(results), "b head q k, b k head i, head o i -> b q head o")

    def _own(self, x: Tensor) -> Float[Tensor, "batch positions heads d_model"]:
        """What the chosen heads read, of one input for all heads or of one for each."""
        return x[:, :, self.at.heads] if x.ndim == 4 else x[:, :, None].expand(-1, -1, len(self.at.heads), -1)

    def _put(self, whole: Tensor, part: Tensor) -> Tensor:
        return whole.index_copy(1, torch.tensor(self.at.heads, device=whole.device), part)


def _debiased(
    scores: Float[Tensor, "*batch queries keys"], allowed: Bool[Tensor, "*batch queries keys"], *, mean: bool
) -> Float[Tensor, "*batch queries keys"]:
    """s_ℓ − s̄ over the n keys that may be attended to, or a nth of it: the weights of y_ℓ in a debiased step."""
    n = allowed.sum(-1, keepdim=True).clamp(min=1)
    centred = scores - scores.masked_fill(~allowed, 0.0).sum(-1, keepdim=True) / n
    return (centred / n if mean else centred).masked_fill(~allowed, 0.0)
