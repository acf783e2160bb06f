"""What the squared error becomes when heads of a model of any depth are taken away.

A head's output becomes zero ("zero"), its mean over prompts, position by position ("mean"), or what it is on another
prompt ("resample"): `icl_interp.pruning` on a probe's prompts.  No probe is declared here.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import repeat
from typing import Literal, get_args

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from icl_interp.probing import Context
from icl_interp.pruning import Model, Results, ablated_errors, nothing

Kind = Literal["zero", "mean", "resample"]
KINDS: tuple[Kind, ...] = get_args(Kind)


@dataclass(frozen=True, eq=False)
class Ablations:
    """Prompt by prompt: y_q², the squared error, and what one head's ablation adds to it, by layer and head."""

    squares: Float[np.ndarray, "prompts"]
    errors: Float[np.ndarray, "prompts"]
    changes: Float[np.ndarray, "layers heads prompts"]

    @classmethod
    def of(cls, context: Context, model: Model, kind: Kind, n: int) -> Ablations:
        """Measured on n prompts; means and other prompts' outputs are those of n more.  Needs FORWARD and TASK."""
        parts: list[tuple[Tensor, Tensor, Tensor]] = []
        replacements = _replacements(context, model, kind, n)
        for prompt, instead in zip(model.pieces(context.chunks("ablations", n)), replacements, strict=False):
            errors, ablated = ablated_errors(model, prompt, instead)
            parts.append((prompt.y_q.square().mean(-1), errors, ablated - errors))
        return cls(*(torch.cat(part, -1).cpu().numpy() for part in zip(*parts, strict=True)))

    @property
    def explained(self) -> Float[np.ndarray, "prompts"]:
        """y_q² minus the squared error, prompt by prompt: on average what the model explains of the label."""
        return self.squares - self.errors


def _replacements(context: Context, model: Model, kind: Kind, n: int) -> Iterator[Results]:
    """What heads add instead, piece by piece of n prompts; for ever the same but for resampling."""
    if kind == "zero":
        yield from repeat(nothing(model))
        return
    others = (model.results(prompt) for prompt in model.pieces(context.chunks("reference", n)))
    yield from others if kind == "resample" else repeat(_means(others, n))


def _means(results: Iterator[Results], n: int) -> Results:
    sums = None
    for each in results:
        added = [of_layer.sum(0, keepdim=True) for of_layer in each]
        sums = added if sums is None else [total + more for total, more in zip(sums, added, strict=True)]
    return [total / n for total in sums or []]
