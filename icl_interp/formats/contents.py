"""What a checkpoint holds, before anyone says what it means; and the words for saying so.

Tensors are named by their path through nested dicts ("model.attention_layer.q_proj.weight"); everything else that a
file holds (numbers, lists, strings) is in `rest`, by path too.  All of it comes from a stranger.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import get_args

import torch
from torch import Tensor, nn

from icl_interp.activations import activation
from icl_interp.config import Mask, check_choice, check_count, check_positive
from icl_interp.errors import CheckpointError

NAMED, LONGEST = 8, 60  # how many names a message holds, and how much of each


@dataclass(frozen=True, eq=False)
class Contents:
    """A checkpoint, taken apart.

    Args:
        origin: its path, or words for what was in memory.
        container: what kind of file or object it is, such as "a safetensors file".
        tensors: every tensor in it, on the CPU.
        rest: everything else in it.
        path: where it lies, if it is a file or a folder.
        module: the object, if it is a live module.
        left_out: the names of what is known to be no part of a model, such as an optimiser's state.
    """

    origin: str
    container: str
    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    rest: Mapping[str, object] = field(default_factory=dict)
    path: Path | None = None
    module: nn.Module | None = None
    left_out: tuple[str, ...] = ()

    def inside(self, name: str) -> str | None:
        """The prefix, the same for all of a layout, of the one tensor whose path ends in `name`; None without one.

        "model." where `name` is "o_proj.weight" and the tensor "model.o_proj.weight"; "" for a tensor of that name.
        Where there are several, the shortest.
        """
        found = [key for key in self.tensors if key == name or key.endswith(f".{name}")]
        return min(found, key=len).removesuffix(name) if found else None

    def at(self, name: str, *, axes: str, dims: int) -> Tensor:
        """The tensor of this path.

        Raises:
            CheckpointError: it is not there, or has another number of axes; `axes` says what they would be.
        """
        if name not in self.tensors:
            raise CheckpointError(f"it lacks {shown([name])}; it has {shown(self.tensors)}")
        tensor = self.tensors[name]
        if tensor.ndim != dims:
            raise CheckpointError(f"{shown([name])} must have axes {axes}, got shape {tuple(tensor.shape)}")
        return tensor

    def numbers(self, name: str, *, axes: str, dims: int) -> Tensor:
        """A tensor of weights: float32 or float64, half precision made float32.

        Raises:
            CheckpointError: not there, other axes than `axes`, empty, not floating point or not finite.
        """
        tensor = self.at(name, axes=axes, dims=dims)
        if not tensor.is_floating_point() or not tensor.numel():
            raise CheckpointError(
                f"{shown([name])} must hold floating-point numbers, got {tensor.dtype} of shape {tuple(tensor.shape)}"
            )
        tensor = tensor if tensor.dtype in (torch.float32, torch.float64) else tensor.float()
        if bad := int((~tensor.isfinite()).sum()):
            raise CheckpointError(f"{shown([name])} has NaN or infinity in {bad:,} of {tensor.numel():,} entries")
        return tensor

    def only(self, known: Iterable[str]) -> None:
        """Raise unless every tensor, and list of tensors, is one of `known`: nothing is dropped in silence.

        Raises:
            CheckpointError: which are left over.
        """
        understood = set(known)
        lists = [name for name, value in self.rest.items() if any(isinstance(part, Tensor) for part in leaves(value))]
        left = [name for name in (*self.tensors, *lists) if name not in understood]
        if left:
            raise CheckpointError(f"it also holds {shown(left)}, which would be lost: no model of ours has them")


@dataclass(frozen=True)
class Given:
    """What the user says of a checkpoint that its file may not; None where nothing was said.

    Args:
        dim: d, covariates.
        n_outputs: N, responses.
        n_heads: heads in each layer.
        attn_scale: divisor of the scores.
        mask: who may attend to whom.
        activation, activation_scale: how scores become weights (`ModelConfig`).

    Raises:
        ConfigError: a size below one, a scale that is not positive, an unknown mask or activation.
    """

    dim: int | None = None
    n_outputs: int | None = None
    n_heads: int | None = None
    attn_scale: float | None = None
    mask: Mask | None = None
    activation: str | None = None
    activation_scale: float | None = None

    def __post_init__(self) -> None:
        for name in ("dim", "n_outputs", "n_heads"):
            if getattr(self, name) is not None:
                check_count(name, getattr(self, name))
        if self.attn_scale is not None:
            check_positive("attn_scale", self.attn_scale)
            object.__setattr__(self, "attn_scale", float(self.attn_scale))
        if self.mask is not None:
            check_choice("mask", self.mask, get_args(Mask))
        if self.activation is not None:
            activation(self.activation)
        if self.activation_scale is not None:
            check_positive("activation_scale", self.activation_scale)
            object.__setattr__(self, "activation_scale", float(self.activation_scale))

    def responses(self, width: int) -> tuple[int, tuple[str, ...]]:
        """How many of the residual stream's `width` coordinates are responses, and what was assumed for that.

        Raises:
            CheckpointError: no coordinate would be left for covariates.
        """
        said = width - self.dim if self.n_outputs is None and self.dim is not None else self.n_outputs
        n_outputs = 1 if said is None else said
        if not 0 < n_outputs < width:
            raise CheckpointError(
                f"{width} coordinates have to hold covariates and responses, got {n_outputs} responses: pass the right "
                "dim= or n_outputs="
            )
        assumed = f"there is one response, the last of {width} coordinates (n_outputs= says otherwise)"
        return n_outputs, (assumed,) if said is None else ()


def leaves(value: object) -> Iterator[object]:
    """What is in lists and tuples within one another, however deep, each of them once."""
    waiting, seen = [value], set[int]()
    while waiting:
        part = waiting.pop()
        if not isinstance(part, list | tuple):
            yield part
        elif id(part) not in seen:
            seen.add(id(part))
            waiting += part


def shown(names: Iterable[str]) -> str:
    """Names from a file as they can stand in a message: a few, none of them long, nothing that steers a terminal."""
    listed = list(names)
    if not listed:
        return "nothing"
    cut = [name if len(name) <= LONGEST else f"{name[:LONGEST]}…" for name in map(str, listed[:NAMED])]
    clean = ["".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in name) for name in cut]
    more = f" and {len(listed) - NAMED:,} more" if len(listed) > NAMED else ""
    return ", ".join(clean) + more
