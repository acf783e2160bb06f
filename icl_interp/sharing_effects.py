"""How tasks share heads, judged by what is done to the model: heads removed, labels shifted, predictions regressed.

The numbers that `sharing` reads off weights, as effects:

    E_n            the slopes of ŷ_n on a step of debiased GD along each feature, (1/L) Σ_ℓ y_ℓn (x_ℓi − x̄_i) x_qi
    μ_n^h          what head h adds to ŷ_n when 1 is added to all labels
    swapped        what of E_n goes when scores see no labels any more (KQ_21 cut): steps of swapped heads
    work of heads  the root of the rise in each task's risk when the head is removed: how much, not how much squared
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import numpy as np
import torch
from einops import einsum
from jaxtyping import Bool, Float

from icl_interp.circuits import Circuits
from icl_interp.estimates import Estimate, mean_of
from icl_interp.sharing import Sharing, imbalance, shares
from icl_interp.tasks import Prompt

BATCHES = 8  # of prompts: what scatters between them is the error


@dataclass(frozen=True, eq=False)
class Effects:
    """Sums over each of several batches of prompts, from which everything else follows.

    Args:
        prompts: in each batch.
        gram, cross: of the directions of debiased GD with themselves, and with the predictions.
        cut: of the directions with the predictions when scores see no labels.
        rise: of each task's squared error when a head is removed, summed over prompts.
        reply: of each head to labels that are larger by 1, summed over prompts.
    """

    prompts: Float[np.ndarray, "batches"]
    gram: Float[np.ndarray, "batches tasks features features"]
    cross: Float[np.ndarray, "batches tasks features"]
    cut: Float[np.ndarray, "batches tasks features"]
    rise: Float[np.ndarray, "batches heads tasks"]
    reply: Float[np.ndarray, "batches heads tasks"]

    @classmethod
    def measure(cls, circuits: Circuits, prompts: Iterable[Prompt]) -> Effects:
        """On these prompts of a one-layer model, each in every measurement; three passes."""
        blind = replace(circuits, KQ=circuits.KQ.copy())
        blind.KQ_21[...] = 0
        sums: list[list[np.ndarray]] = []
        for prompt in prompts:
            parts = [torch.as_tensor(part) for part in np.array_split(np.arange(len(prompt)), BATCHES)]
            columns = _per_prompt(circuits, blind, prompt)
            sums.append([torch.stack([c[part].sum(0) for part in parts]).cpu().numpy() for c in columns])
        return cls(*(np.sum(column, axis=0) for column in zip(*sums, strict=True)))

    def sharing(self, same: Bool[np.ndarray, "tasks tasks"] | None = None) -> Sharing:
        """Who does what for which task, on all prompts; `same` as in `Sharing`."""
        return self._sharing(slice(None), same)

    def estimate(
        self, quantity: Callable[[Sharing], float], same: Bool[np.ndarray, "tasks tasks"] | None = None
    ) -> Estimate:
        """`quantity` of all prompts; its interval from the batches, infinite if they are too small for d slopes."""
        value = quantity(self.sharing(same))
        if self.prompts.min() < 2 * self.cross.shape[-1]:
            return _around(value, np.inf)
        batches = [quantity(self._sharing([batch], same)) for batch in range(len(self.prompts))]
        return _around(value, mean_of(np.array(batches)).half)

    @property
    def rises(self) -> tuple[tuple[Estimate, ...], ...]:
        """The rise in each task's risk (inner) when a head (outer) is removed."""
        by_batch = self._means(self.rise)
        total = self.rise.sum(0) / self.prompts.sum()
        heads, tasks = total.shape
        return tuple(
            tuple(_around(float(total[h, n]), mean_of(by_batch[:, h, n]).half) for n in range(tasks))
            for h in range(heads)
        )

    def _means(self, sums: np.ndarray) -> np.ndarray:
        filled = self.prompts > 0
        return sums[filled] / self.prompts[filled].reshape(-1, *[1] * (sums.ndim - 1))

    def _sharing(self, batches: slice | list[int], same: np.ndarray | None) -> Sharing:
        gram = self.gram[batches].sum(0)
        reply = self.reply[batches].sum(0) / self.prompts[batches].sum()
        steps, straight = (_slopes(gram, cross[batches].sum(0)) for cross in (self.cross, self.cut))
        work = shares(np.sqrt(np.maximum(self.rise[batches].sum(0), 0)))
        return Sharing(steps, imbalance(reply), work, same, steps - straight)


def _slopes(
    gram: Float[np.ndarray, "tasks features features"], cross: Float[np.ndarray, "tasks features"]
) -> Float[np.ndarray, "tasks features"]:
    return np.stack([np.linalg.lstsq(g, c, rcond=None)[0] for g, c in zip(gram, cross, strict=True)])


def _per_prompt(circuits: Circuits, blind: Circuits, prompt: Prompt) -> list[torch.Tensor]:
    """Each prompt's part of the sums, in the order of the fields."""
    outputs = circuits.head_outputs(prompt)
    shifted = circuits.head_outputs(Prompt(x=prompt.x, y=prompt.y + 1, x_q=prompt.x_q, y_q=prompt.y_q))
    prediction = outputs.sum(1)
    error = prediction - prompt.y_q
    centred = prompt.x - prompt.x.mean(1, keepdim=True)
    direction = einsum(prompt.y, centred, prompt.x_q, "b l n, b l d, b d -> b n d") / prompt.length
    return [
        torch.ones(len(prompt), dtype=prompt.x.dtype, device=prompt.x.device),
        direction[..., :, None] * direction[..., None, :],
        direction * prediction[..., None],
        direction * blind.predict(prompt)[..., None],
        (error[:, None] - outputs).square() - error[:, None].square(),
        shifted - outputs,
    ]


def _around(value: float, half: float) -> Estimate:
    if not np.isfinite([value, half]).all():
        return Estimate(value, -np.inf, np.inf, "prompts")
    return Estimate(value, value - half, value + half, "prompts")
