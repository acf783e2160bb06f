"""The state dict of a `torch.nn.MultiheadAttention`, or of a module with one and nothing else that has weights.

    in_proj_weight   (3E, E): queries, keys, values, out × in; head h owns rows h·E/H … (h+1)·E/H of each
    out_proj.weight  (E, E), columns of the heads likewise
    in_proj_bias     (3E,), out_proj.bias (E,)

E = d + N coordinates.  The call that is meant is `mha(query, demonstrations, demonstrations)`, with the prediction in
the last N coordinates of what it gives back.  How many heads there are is not in a state dict.

Of the biases, that of the keys shifts all scores of a query alike, which softmax does not see; that of the queries, and
a constant in the prediction, have no counterpart here.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from icl_interp.config import ModelConfig
from icl_interp.errors import CheckpointError, UnsaidError
from icl_interp.formats.contents import Contents, Given, shown
from icl_interp.formats.registry import checkpoint_format
from icl_interp.records import Run

ZERO = 1e-12  # of a bias, relative to the weights beside it

# Parts that are optional in it, and why they cannot be read.
_REFUSED = {
    "q_proj_weight": "keys or values of another width than the queries (kdim, vdim) have no counterpart here",
    "bias_k": "an extra key and value (add_bias_kv=True) have no counterpart here",
}


@checkpoint_format(name="multihead", title="a torch.nn.MultiheadAttention")
class MultiheadFormat:
    """torch's names, with or without a prefix; or the live module."""

    def recognises(self, contents: Contents) -> bool:
        """By its input projection, in one piece or in three."""
        return any(contents.inside(name) is not None for name in ("in_proj_weight", "q_proj_weight"))

    def read(self, contents: Contents, given: Given) -> Run:
        """The one-layer model.

        Raises:
            CheckpointError: a part that has no counterpart here, an unknown number of heads, sizes that do not fit.
        """
        live = _live(contents)
        _refuse(contents, live)
        prefix = contents.inside("in_proj_weight") or ""
        inner = ("in_proj_weight", "in_proj_bias", "out_proj.weight", "out_proj.bias")
        contents.only({prefix + name for name in inner})
        W_in, W_out = _projections(contents, prefix)
        width = len(W_out)
        heads = _heads(given, live, width)
        n_outputs, assumed = given.responses(width)
        _check_biases(contents, prefix, W_in, W_out, n_outputs)
        if given.mask is None:
            assumed += ("keys and values are the demonstrations, the query is not among them",)
        config = ModelConfig(
            dim=width - n_outputs,
            n_outputs=n_outputs,
            n_heads=heads,
            d_head=width // heads,
            mask=given.mask or "demonstrations",
            attn_scale=(width / heads) ** 0.5 if given.attn_scale is None else given.attn_scale,
        )
        return Run(config, _split(W_in, W_out, heads), origin=contents.origin, assumed=assumed)


def _live(contents: Contents) -> nn.MultiheadAttention | None:
    modules = contents.module.modules() if contents.module is not None else ()
    found = [module for module in modules if isinstance(module, nn.MultiheadAttention)]
    return found[0] if len(found) == 1 else None


def _refuse(contents: Contents, live: nn.MultiheadAttention | None) -> None:
    """Raise for what is known but not supported, with a reason."""
    for name, why in _REFUSED.items():
        if (prefix := contents.inside(name)) is not None:
            raise CheckpointError(f"it holds {shown([prefix + name])}: {why}")
    if live is not None and live.add_zero_attn:
        raise CheckpointError("it attends to a column of zeros too (add_zero_attn=True), which has no counterpart here")
    found = [name for name in contents.tensors if name.split(".")[-1] == "in_proj_weight"]
    if len(found) > 1:
        raise CheckpointError(f"one layer of MultiheadAttention is read, found {len(found)}: {shown(found)}")


def _projections(contents: Contents, prefix: str) -> tuple[Tensor, Tensor]:
    W_in = contents.numbers(f"{prefix}in_proj_weight", axes="(3E, E)", dims=2)
    W_out = contents.numbers(f"{prefix}out_proj.weight", axes="(E, E)", dims=2)
    width = W_in.shape[1]
    if W_in.shape != (3 * width, width) or W_out.shape != (width, width):
        raise CheckpointError(
            "in_proj_weight must have shape (3E, E) and out_proj.weight (E, E), got "
            f"{tuple(W_in.shape)} and {tuple(W_out.shape)}"
        )
    return W_in, W_out


def _heads(given: Given, live: nn.MultiheadAttention | None, width: int) -> int:
    heads = live.num_heads if live is not None else given.n_heads
    if heads is None:
        raise UnsaidError(
            "a state dict does not say how many heads a MultiheadAttention has: pass n_heads= (--heads on the command "
            "line), or the module itself"
        )
    if width % heads:
        raise CheckpointError(f"its {width} coordinates must split evenly into heads, got {heads} of them")
    return heads


def _split(W_in: Tensor, W_out: Tensor, heads: int) -> dict[str, Tensor]:
    """The four weight tensors of the one layer, each head's own."""
    width = len(W_out)
    parts = zip(("W_Q", "W_K", "W_V"), W_in.chunk(3), strict=True)
    weights = {name: part.reshape(1, heads, width // heads, width).mT for name, part in parts}
    weights["W_O"] = W_out.mT.reshape(1, heads, width // heads, width)
    return {name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in weights.items()}


def _check_biases(contents: Contents, prefix: str, W_in: Tensor, W_out: Tensor, n_outputs: int) -> None:
    b_in = _bias(contents, f"{prefix}in_proj_bias", "3E", len(W_in))
    b_out = _bias(contents, f"{prefix}out_proj.bias", "E", len(W_out))
    b_Q, _, b_V = b_in.chunk(3)
    if b_Q.abs().max() > ZERO * W_in.abs().max():
        raise CheckpointError(
            "in_proj_bias gives the queries a bias, which has no counterpart here: train with bias=False"
        )
    constant = (W_out.double() @ b_V + b_out)[-n_outputs:]
    if constant.abs().max() > ZERO * W_out.abs().max():
        raise CheckpointError(
            f"the biases of the values and of out_proj add up to {shown(f'{c:.3g}' for c in constant.tolist())} in the "
            "prediction, whatever the prompt: a constant has no counterpart here, train with bias=False"
        )


def _bias(contents: Contents, name: str, axes: str, length: int) -> Tensor:
    """A bias in float64; zeros where there is none."""
    if name not in contents.tensors:
        return torch.zeros(length, dtype=torch.float64)
    bias = contents.numbers(name, axes=f"({axes},)", dims=1).double()
    if len(bias) != length:
        raise CheckpointError(f"{shown([name])} must have shape ({axes},) = ({length},), got {tuple(bias.shape)}")
    return bias
