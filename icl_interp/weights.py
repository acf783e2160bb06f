"""The four weight tensors that make up a model, as plain tensors: drawing, naming and checking them.

Free of TransformerLens on purpose: training and checkpoints need the numbers, not the hooks.  Axes are as in
TransformerLens, stacked over layers; rows multiply, so head h of layer l asks q = z @ W_Q[l, h].
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from icl_interp.config import ModelConfig
from icl_interp.errors import CheckpointError

WEIGHT_NAMES = ("W_Q", "W_K", "W_V", "W_O")

# W_Q, W_K, W_V: (n_layers, n_heads, d_model, d_head); W_O: (n_layers, n_heads, d_head, d_model).
Weights = dict[str, Tensor]


def weight_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """The shape of each of the four tensors."""
    layers, heads, width, d_head = config.n_layers, config.n_heads, config.d_model, config.head_width
    shapes = dict.fromkeys(WEIGHT_NAMES, (layers, heads, width, d_head))
    return {**shapes, "W_O": (layers, heads, d_head, width)}


def initial_weights(config: ModelConfig, generator: torch.Generator | None = None) -> Weights:
    """Draw weights as `nn.Linear` does: uniform on ±1/√fan_in, float32.

    Fan-in is d_model for W_Q, W_K and W_V, and n_heads·d_head for W_O.  After the last layer only the responses are
    read, so there the columns of W_O that write covariates are zero, as if they were not there.

    Args:
        config: sizes.
        generator: where randomness, and the device, come from; None means torch's global generator.
    """
    device = generator.device if generator is not None else None
    weights = {}
    for name, shape in weight_shapes(config).items():
        fan_in = config.n_heads * config.head_width if name == "W_O" else config.d_model
        weights[name] = torch.empty(shape, device=device).uniform_(-(fan_in**-0.5), fan_in**-0.5, generator=generator)
    weights["W_O"][-1, :, :, : config.dim] = 0
    return weights


def to_state_dict(weights: Weights) -> dict[str, Tensor]:
    """The same numbers under TransformerLens's names, `blocks.{layer}.attn.{name}`."""
    return {
        f"blocks.{layer}.attn.{name}": tensor for name in WEIGHT_NAMES for layer, tensor in enumerate(weights[name])
    }


def from_state_dict(state: Mapping[str, Tensor]) -> Weights:
    """Gather `blocks.{layer}.attn.{name}` over layers; other keys (`unembed.W_U`, biases) are passed over.

    Raises:
        CheckpointError: a layer lacks one of the four, or they cannot be stacked.
    """
    layers = {found[1] for key in state if (found := re.fullmatch(r"blocks\.(\d+)\.attn\.W_[QKVO]", key))}
    needed = [f"blocks.{layer}.attn.{name}" for name in WEIGHT_NAMES for layer in range(max(len(layers), 1))]
    if missing := [key for key in needed if key not in state]:
        raise CheckpointError(f"the state dict lacks {', '.join(missing)}; it has {', '.join(state) or 'nothing'}")
    try:
        return {name: torch.stack([state[key] for key in needed if key.endswith(name)]) for name in WEIGHT_NAMES}
    except RuntimeError as error:
        raise CheckpointError(f"the layers of the state dict do not stack: {error}") from error


def check_weights(weights: Mapping[str, Tensor], config: ModelConfig) -> None:
    """Raise unless `weights` are the four tensors of a model of this `config`, in floating point and finite.

    Raises:
        CheckpointError: which tensor is missing, unexpected, misshapen, not floating point or not finite.
    """
    shapes = weight_shapes(config)
    missing, unexpected = [n for n in shapes if n not in weights], [n for n in weights if n not in shapes]
    if missing or unexpected:
        raise CheckpointError(
            f"weights must be exactly {', '.join(WEIGHT_NAMES)}; missing: {', '.join(missing) or 'none'}, "
            f"unexpected: {', '.join(unexpected) or 'none'}"
        )
    for name, shape in shapes.items():
        tensor = weights[name]
        if tuple(tensor.shape) != shape:
            axes = "(n_layers, n_heads, d_head, d_model)" if name == "W_O" else "(n_layers, n_heads, d_model, d_head)"
            raise CheckpointError(f"{name} must have shape {axes} = {shape}, got {tuple(tensor.shape)}")
        if not tensor.is_floating_point():
            raise CheckpointError(f"{name} must be floating point, got {tensor.dtype}")
        if bad := int((~tensor.isfinite()).sum()):
            raise CheckpointError(f"{name} must be finite, got NaN or infinity in {bad} of {tensor.numel()} entries")
