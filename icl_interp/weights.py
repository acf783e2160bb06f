"""The weight tensors that make up a model, as plain tensors: drawing, naming and checking them.

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

AXES = {
    **dict.fromkeys(("W_Q", "W_K", "W_V"), "(n_layers, n_heads, d_model, d_head)"),
    "W_O": "(n_layers, n_heads, d_head, d_model)",
    "W_E": "(dim + n_outputs, d_model)",
    "W_U": "(d_model, n_outputs)",
    **dict.fromkeys(("ln_w", "ln_b"), "(n_layers, d_model)"),
}
NORMS = {"ln_w": "ln1.w", "ln_b": "ln1.b"}  # their names within a block

# The four of the heads; W_E with a read-in, W_U with a read-out, ln_w and ln_b with LayerNorm.
Weights = dict[str, Tensor]


def weight_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """The shape of each tensor that a model of this config has."""
    layers, heads, width, d_head = config.n_layers, config.n_heads, config.d_model, config.head_width
    shapes: dict[str, tuple[int, ...]] = dict.fromkeys(WEIGHT_NAMES, (layers, heads, width, d_head))
    shapes["W_O"] = (layers, heads, d_head, width)
    if config.read_in is not None:
        shapes["W_E"] = (config.columns, width)
    if config.read_out:
        shapes["W_U"] = (width, config.n_outputs)
    if config.layer_norm:
        shapes |= dict.fromkeys(NORMS, (layers, width))
    return shapes


def initial_weights(config: ModelConfig, generator: torch.Generator | None = None) -> Weights:
    """Draw weights as `nn.Linear` does: uniform on ±1/√fan_in, float32.

    Fan-in is d_model for W_Q, W_K and W_V, n_heads·d_head for W_O, and for W_E and W_U the width that they read; the
    scale of a LayerNorm is one and its shift zero.  After the last layer only the responses are read, so there the
    columns of W_O that write anything else are zero, as if they were not there, unless there is a read-out.

    Args:
        config: sizes.
        generator: where randomness, and the device, come from; None means torch's global generator.
    """
    device = generator.device if generator is not None else None
    fan_in = {"W_O": config.n_heads * config.head_width, "W_E": config.columns}
    weights = {}
    for name, shape in weight_shapes(config).items():
        bound = fan_in.get(name, config.d_model) ** -0.5
        weights[name] = torch.empty(shape, device=device)
        if name in NORMS:
            weights[name].fill_(name == "ln_w")
        else:
            weights[name].uniform_(-bound, bound, generator=generator)
    if not config.read_out:
        weights["W_O"][-1, :, :, : config.dim] = 0
        weights["W_O"][-1, :, :, config.columns :] = 0
    return weights


def to_state_dict(weights: Weights) -> dict[str, Tensor]:
    """The same numbers under TransformerLens's names, `blocks.{layer}.attn.{name}` and so on."""
    state = {
        f"blocks.{layer}.{NORMS.get(name, f'attn.{name}')}": tensor
        for name in (*WEIGHT_NAMES, *NORMS)
        for layer, tensor in enumerate(weights.get(name, ()))
    }
    whole = {"embed.W_E": "W_E", "unembed.W_U": "W_U"}
    return state | {key: weights[name] for key, name in whole.items() if name in weights}


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
    """Raise unless `weights` are the tensors of a model of this `config`, in floating point and finite.

    Raises:
        CheckpointError: which tensor is missing, unexpected, misshapen, not floating point or not finite.
    """
    shapes = weight_shapes(config)
    missing, unexpected = [n for n in shapes if n not in weights], [n for n in weights if n not in shapes]
    if missing or unexpected:
        raise CheckpointError(
            f"weights must be exactly {', '.join(shapes)}; missing: {', '.join(missing) or 'none'}, "
            f"unexpected: {', '.join(unexpected) or 'none'}"
        )
    for name, shape in shapes.items():
        tensor = weights[name]
        if tuple(tensor.shape) != shape:
            raise CheckpointError(f"{name} must have shape {AXES[name]} = {shape}, got {tuple(tensor.shape)}")
        if not tensor.is_floating_point():
            raise CheckpointError(f"{name} must be floating point, got {tensor.dtype}")
        if bad := int((~tensor.isfinite()).sum()):
            raise CheckpointError(f"{name} must be finite, got NaN or infinity in {bad} of {tensor.numel()} entries")
