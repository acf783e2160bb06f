"""Checkpoints of the published code of arXiv 2503.12734: a dict of torch.save, or the state dict that is its `model`.

    attention_layer.{q,k,v}_proj.weight  (H·D, D), out × in; head h owns rows h·D … (h+1)·D
    attention_layer.o_proj.weight        (N, H·D), columns of the heads likewise; D = d + N
    qk_dynamics, ov_dynamics             a list over heads of ω, or μ, at steps 0, 1000, 2000, …
    training_losses, validation_losses   lists of numbers
    final_loss, qk_matrices              known, and not read: the weights say what they say

Scores are divided by √D, and the query attends to the demonstrations alone.  The recorded ω is divided by √(D + 1): it
is put right here if the weights agree.  A record that cannot be read is left out, and never spoils the model.

A model of several layers has attention_layers.{l}, whose o_proj writes all D coordinates, and final_linear, the
read-out.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from icl_interp.circuits import Circuits
from icl_interp.config import ModelConfig
from icl_interp.errors import CheckpointError
from icl_interp.formats.contents import Contents, Given, shown
from icl_interp.formats.registry import checkpoint_format
from icl_interp.records import Dynamics, Run, check_dynamics
from icl_interp.weights import Weights

EVERY = 1000  # steps between two records
LARGEST = 2_000_000  # numbers in one record: a published one has half a million losses, and thousands of others
AGREE = 1.1  # how far the last record and the weights may be apart, as a factor: a thousand steps lie between them
SAME = 1e-6  # how far a read-out may be from [0, I]
LOSSES = ("training_losses", "validation_losses")
RECORDS = ("final_loss", *LOSSES, "qk_dynamics", "ov_dynamics", "qk_matrices")

_LAYER = re.compile(r"((?:.*\.)?)attention_layer(?:s\.(0|[1-9][0-9]{0,4}))?\.[qkvo]_proj\.weight")


@checkpoint_format(name="published", title="a checkpoint of the published code of arXiv 2503.12734")
class Published:
    """One layer, or several."""

    def recognises(self, contents: Contents) -> bool:
        """By a projection's name."""
        return any(map(_LAYER.fullmatch, contents.tensors))

    def read(self, contents: Contents, given: Given) -> Run:
        """The model, and its record where it has one that can be read.

        Raises:
            CheckpointError: weights that do not fit together, or something that has no counterpart here.
        """
        prefix, layers = _layout(contents)
        base = _beside(prefix)
        read_out = {f"{prefix}final_linear.{name}" for name in ("weight", "bias")} if layers else set()
        blocks = [f"{prefix}attention_layers.{layer}." for layer in range(layers)] or [f"{prefix}attention_layer."]
        projections = {f"{block}{name}_proj.weight" for block in blocks for name in "qkvo"}
        contents.only({*projections, *read_out, *_records(contents, base)})
        config = _config(contents, given, blocks, f"{prefix}final_linear." if layers else None)
        parts = [_weights(contents, block, config, last=block == blocks[-1]) for block in blocks]
        weights = {name: torch.stack([part[name] for part in parts]) for name in parts[0]}
        dynamics, assumed = _dynamics(contents, base, config, weights)
        step = None if dynamics is None else int(dynamics.steps[-1])
        assumed += _LAYERED if layers else ()
        return Run(config, weights, dynamics=dynamics, step=step, origin=contents.origin, assumed=assumed)


_LAYERED = (
    "every layer is softmax attention from all positions to all demonstrations; the causal attention of the published "
    "code takes the softmax twice, and a model trained with it computes something else",
    "every layer adds to what it reads",
)


# --- Weights ---------------------------------------------------------------------------------------------------------


def _layout(contents: Contents) -> tuple[str, int]:
    """The prefix, and the number of layers; 0 for the layout of a single one."""
    found = [match for match in map(_LAYER.fullmatch, contents.tensors) if match]
    prefix = min((match[1] for match in found), key=len)
    layers = sorted({-1 if match[2] is None else int(match[2]) for match in found if match[1] == prefix})
    if layers == [-1]:
        return prefix, 0
    if layers != list(range(len(layers))):
        raise CheckpointError(
            "it must have one attention_layer, or attention_layers numbered 0, 1, …, got "
            f"{shown(match[0] for match in found)}"
        )
    return prefix, len(layers)


def _beside(prefix: str) -> str:
    """The path of the dict that has the records: the one that `model` is in."""
    parts = prefix.split(".")
    return "".join(f"{part}." for part in parts[: parts.index("model")]) if "model" in parts else ""


def _records(contents: Contents, base: str) -> list[str]:
    """The names of what is part of a record."""
    starts = tuple(f"{base}{name}." for name in RECORDS)
    return [name for name in (*contents.tensors, *contents.rest) if f"{name}.".startswith(starts)]


def _config(contents: Contents, given: Given, blocks: list[str], read_out: str | None) -> ModelConfig:
    """The sizes, by the first layer and by what writes, or reads, the responses."""
    rows, width = contents.numbers(f"{blocks[0]}q_proj.weight", axes="(H·D, D)", dims=2).shape
    name = f"{blocks[0]}o_proj.weight" if read_out is None else f"{read_out}weight"
    writes = contents.numbers(name, axes="(N, H·D)" if read_out is None else "(N, D)", dims=2)
    n_outputs = len(writes)
    if rows % width or n_outputs >= width:
        raise CheckpointError(
            f"{shown([blocks[0]])}q_proj.weight must have shape (H·D, D) and {shown([name])} N rows, with D = d + N, "
            f"got {(rows, width)} and {tuple(writes.shape)}"
        )
    if read_out is not None:
        _check_read_out(contents, read_out, writes, width)
    return ModelConfig(
        dim=width - n_outputs,
        n_outputs=n_outputs,
        n_heads=rows // width,
        n_layers=len(blocks),
        mask=given.mask or "demonstrations",
        attn_scale=given.attn_scale,
    )


def _check_read_out(contents: Contents, name: str, weight: Tensor, width: int) -> None:
    """Raise unless `final_linear` reads the last coordinates and nothing else."""
    bias = contents.tensors.get(f"{name}bias")
    wanted = torch.eye(width, dtype=weight.dtype)[width - len(weight) :]
    if weight.shape != wanted.shape or (weight - wanted).abs().max() > SAME or (bias is not None and bias.any()):
        raise CheckpointError(
            f"{shown([name])}weight must be [0, I], with no bias: here the prediction is the query's last "
            f"{len(weight)} coordinates, and a read-out that mixes covariates into it, or shifts it, has no counterpart"
        )


def _weights(contents: Contents, block: str, config: ModelConfig, *, last: bool) -> Weights:
    """One layer's four tensors, per head; what writes responses only is filled up with zeros."""
    heads, width = config.n_heads, config.d_model
    written = config.n_outputs if last and block.endswith("attention_layer.") else width
    q, k, v = (_shaped(contents, f"{block}{name}_proj.weight", (heads * width, width)) for name in "qkv")
    o = _shaped(contents, f"{block}o_proj.weight", (written, heads * width))
    W_O = o.new_zeros(heads, width, width)
    W_O[..., width - written :] = o.mT.reshape(heads, width, written)
    ours = {name: w.reshape(heads, width, width).mT for name, w in zip(("W_Q", "W_K", "W_V"), (q, k, v), strict=True)}
    return {**ours, "W_O": W_O}


def _shaped(contents: Contents, name: str, shape: tuple[int, int]) -> Tensor:
    tensor = contents.numbers(name, axes="(out, in)", dims=2)
    if tensor.shape != shape:
        raise CheckpointError(f"{shown([name])} must have shape (out, in) = {shape}, got {tuple(tensor.shape)}")
    return tensor


# --- The record ------------------------------------------------------------------------------------------------------


def _dynamics(
    contents: Contents, base: str, config: ModelConfig, weights: Weights
) -> tuple[Dynamics | None, tuple[str, ...]]:
    """The record of the training, if there is one; and what was assumed, or why it is left out."""
    starts = f"{base}qk_dynamics.", f"{base}ov_dynamics."
    if not any(f"{name}.".startswith(starts) for name in (*contents.tensors, *contents.rest)):
        return None, ()
    try:
        return _followed(contents, base, config, weights)
    except CheckpointError as error:
        return None, (f"the record of the training is left out: {error}",)


def _followed(contents: Contents, base: str, config: ModelConfig, weights: Weights) -> tuple[Dynamics, tuple[str, ...]]:
    if config.n_layers > 1:
        raise CheckpointError("it does not say of which layer it is")
    omega = _per_head(contents, base, "qk_dynamics", config, (1, config.dim)).mean(-1)
    mu = _per_head(contents, base, "ov_dynamics", config, (config.n_outputs,))
    if len(omega) != len(mu):
        raise CheckpointError(f"qk_dynamics has {len(omega):,} points and ov_dynamics {len(mu):,}")
    final = Circuits.from_weights(weights, config)
    drawn = math.sqrt(config.d_model + 1) / config.score_scale  # what their plots divide by, to what attention does
    factor = _factor("qk_dynamics", final.omega[0], omega[-1], (1.0, drawn))
    _factor("ov_dynamics", final.mu[0], mu[-1], (1.0,))
    steps = EVERY * np.arange(len(omega))
    loss, of_loss = _loss(contents, base, len(omega))
    snapshots = {name: tensor[None] for name, tensor in weights.items()}
    dynamics = Dynamics(steps, loss, factor * omega[:, None], mu[:, None], steps[-1:], snapshots)
    check_dynamics(dynamics, config)
    return dynamics, (*_said_of_steps(steps), *_said_of_omega(factor, config), of_loss)


def _said_of_steps(steps: np.ndarray) -> tuple[str, ...]:
    return (
        f"the record has a point every {EVERY:,} steps, from step 0 to {steps[-1]:,}, and the weights are those of the "
        "last",
    )


def _said_of_omega(factor: float, config: ModelConfig) -> tuple[str, ...]:
    if factor == 1:
        return ()
    return (
        f"ω was recorded divided by √(d+N+1) = {(config.d_model + 1) ** 0.5:.4g}, where attention divides by "
        f"{config.score_scale:.4g}: it is multiplied by {factor:.4g}, which makes it that of the weights at the end",
    )


def _record(contents: Contents, base: str, name: str) -> object:
    """A record, whatever it is made of; None if there is none."""
    return contents.tensors.get(base + name, contents.rest.get(base + name))


def _per_head(
    contents: Contents, base: str, name: str, config: ModelConfig, widths: tuple[int, ...]
) -> Float[np.ndarray, "records heads width"]:
    """A record over heads, of one of `widths` numbers a point."""
    record, heads = _sequence(_record(contents, base, name)), config.n_heads
    if len(record) != heads:
        raise CheckpointError(f"{name} must be a list over {heads} heads, got one of length {len(record):,}")
    series = [_series(head, name, widths, LARGEST // heads) for head in record]
    if len({head.shape for head in series}) > 1:
        raise CheckpointError(f"{name} must have as many points of every head")
    return np.stack(series, axis=1)


def _series(values: object, name: str, widths: tuple[int, ...], most: int) -> Float[np.ndarray, "records width"]:
    """A list of points, as many that they are `most` numbers or fewer.  Its length is looked at before all else.

    Raises:
        CheckpointError: something else, or numbers that are not finite.
    """
    points = _sequence(values)
    if not 0 < len(points) <= most // max(widths):
        raise CheckpointError(f"{name} must be a list of 1 to {most // max(widths):,} points, got {len(points):,}")
    try:
        array = _array(points, widths)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        raise CheckpointError(f"{name} must hold {' or '.join(map(str, widths))} numbers a point, all alike") from None
    if not np.isfinite(array).all():
        raise CheckpointError(f"{name} has NaN or infinity in it")
    return array


def _array(points: Tensor | Sequence[object], widths: tuple[int, ...]) -> Float[np.ndarray, "records width"]:
    if isinstance(points, Tensor):
        flat = _sized(points, [len(points) * width for width in widths]).detach().reshape(-1)
        return flat.to("cpu", torch.float64, copy=True).numpy().reshape(len(points), -1)
    if {type(point) for point in points} <= {int, float}:  # numpy is fast, but must not see lists within lists
        return np.array(points, dtype=float).reshape(-1, 1)
    return np.array([_point(point, widths) for point in points], dtype=float)


def _point(point: object, widths: Sequence[int]) -> list[float]:
    """The few numbers of one point: a number, a tensor of them, or a flat list."""
    if isinstance(point, list | tuple):
        if len(point) not in widths or any(isinstance(part, list | tuple) for part in point):
            raise ValueError(point)
        return [_point(part, (1,))[0] for part in point]
    if isinstance(point, int | float) and not isinstance(point, bool):
        return [float(point)]
    return _sized(_as_tensor(point), widths).reshape(-1).tolist()


def _sized(values: object, sizes: Sequence[int]) -> Tensor:
    """A tensor of so many real numbers: it may claim any number of them, so this is asked before they are looked at."""
    if not isinstance(values, Tensor) or values.numel() not in sizes or values.is_complex():
        raise ValueError(type(values))
    return values


def _sequence(values: object) -> Tensor | Sequence[object]:
    """`values` if it is a list or an array with an axis; else nothing."""
    values = _as_tensor(values)
    if isinstance(values, Tensor):
        return values if values.ndim else ()
    return values if isinstance(values, list | tuple) else ()


def _as_tensor(values: object) -> object:
    """numpy's numbers, which files do not hold but dicts in memory do, as a tensor; anything else as it is."""
    numeric = isinstance(values, np.ndarray | np.generic) and values.dtype.kind in "fiu"
    return torch.from_numpy(np.asarray(values, dtype=float)) if numeric else values


@np.errstate(all="ignore")  # numbers without end agree with nothing
def _factor(name: str, final: np.ndarray, last: np.ndarray, factors: tuple[float, ...]) -> float:
    """By which of `factors` the last point must be multiplied to be the weights' value, heads weighted by their size.

    Raises:
        CheckpointError: by none of them.
    """
    ratio = float((np.sign(last) * final).sum() / np.abs(last).sum())
    nearest = min(factors, key=lambda factor: abs(math.log(ratio / factor))) if 0 < ratio < math.inf else math.nan
    if not 1 / AGREE <= ratio / nearest <= AGREE:
        raise CheckpointError(f"the weights at the end are not those of {name}: they differ by a factor {ratio:.3g}")
    return nearest


def _loss(contents: Contents, base: str, records: int) -> tuple[Float[np.ndarray, "records"], str]:
    """The mean loss between records, from the first list that fits; NaN if none does."""
    for name in LOSSES:
        try:
            values = _series(_record(contents, base, name), name, (1,), LARGEST)[:, 0]
        except CheckpointError:
            continue
        if len(values) == records:
            return values, f"the loss is {name}, one to a point"
        for between in (records, records - 1):
            if between and len(values) % between == 0:
                means = values.reshape(between, -1).mean(1)
                said = f"the loss is {name}, the mean of {len(values) // between:,} up to each point"
                return np.concatenate([values[:1], means])[:records], said
    return np.full(records, math.nan), f"the loss is not known: no whole number of {' or '.join(LOSSES)} to a point"
