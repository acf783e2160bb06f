"""State dicts under TransformerLens's names: a HookedTransformer's (releases 2 and 3), or an ICLTransformer's.

    blocks.{layer}.attn.W_Q, W_K, W_V   (heads, d_model, d_head)
    blocks.{layer}.attn.W_O             (heads, d_head, d_model)
    unembed.W_U                         (d_model, N), must read the last N coordinates

A HookedTransformer has more: what is zero or has no effect is passed over, everything else is refused.  The bias of the
keys has none: it shifts all scores of a query alike, which softmax does not see.  A live HookedTransformer is compared
with what is made of it, and nothing has to be assumed.
"""

from __future__ import annotations

import dataclasses
import math
import re
from typing import TYPE_CHECKING, cast, get_args

import torch
from torch import Tensor, nn

from icl_interp.config import Mask, ModelConfig
from icl_interp.errors import CheckpointError, ConfigError
from icl_interp.formats.contents import Contents, Given, shown
from icl_interp.formats.registry import checkpoint_format
from icl_interp.records import Run
from icl_interp.weights import WEIGHT_NAMES, Weights

if TYPE_CHECKING:
    from icl_interp.lens import HookedRootModule

SAME = 1e-6  # how far W_U may be from [0; I]
UNUSED = ("embed.W_E", "pos_embed.W_pos")

_WEIGHT = re.compile(r"((?:.*\.)?)blocks\.(0|[1-9][0-9]{0,4})\.attn\.W_[QKVO]")

# What is known, but cannot be read: where it shows, and why.
_REFUSED = {
    r"(.*\.)?(ln\d*|ln\d?_post|ln_final|q_norm|k_norm)\.\w+": "LayerNorm is not supported in a state dict, "
    "which does not say enough of it: train with normalization_type=None, or open the run's folder",
    r"(.*\.)?mlp\..*": "an MLP is not supported, these models are of attention alone: train with attn_only=True",
    r".*\.attn\.rotary_\w+": "rotary positions are not supported, these models do not see where a demonstration "
    "stands: train with another positional_embedding_type, and run from the first layer",
    r".*\.attn\._[Wb]_[KV]": "heads that share keys and values (n_key_value_heads) are not supported: write each "
    "head's own W_K and W_V",
}


@checkpoint_format(name="hooked_transformer", title="a HookedTransformer or the state dict of one")
class HookedTransformerFormat:
    """TransformerLens's names, with or without a prefix; or the live module."""

    def recognises(self, contents: Contents) -> bool:
        """By a head's weights."""
        return _is_hooked_transformer(contents.module) or any(map(_WEIGHT.fullmatch, contents.tensors))

    def read(self, contents: Contents, given: Given) -> Run:
        """The model, of as many layers as there are blocks.

        Raises:
            CheckpointError: a part that has no counterpart here, or weights that do not fit together.
            ConfigError: a live model that no ICLTransformer is equal to, or one of another mask or scale than given.
        """
        if _is_hooked_transformer(contents.module):
            return _from_live(contents, given)
        prefix = min((found[1] for name in contents.tensors if (found := _WEIGHT.fullmatch(name))), key=len)
        _refuse(contents, prefix)
        weights = _weights(contents, prefix)
        _check_biases(contents, prefix, len(weights["W_Q"]))
        return _assemble(contents, given, prefix, weights)


def _assemble(contents: Contents, given: Given, prefix: str, weights: Weights) -> Run:
    layers, heads, width, d_head = weights["W_Q"].shape
    said = _read_out(contents, f"{prefix}unembed.W_U", width)
    n_outputs, assumed = (said, ()) if said is not None else given.responses(width)
    from_lens = _only_in_theirs(contents, prefix, layers)
    scale, assumed_scale = _scale(given, width, d_head, from_lens)
    mask, assumed_mask = _mask(contents, given, prefix, layers, from_lens)
    config = ModelConfig(width - n_outputs, n_outputs, heads, layers, d_head, mask, scale)
    assumed = (*assumed, *assumed_scale, *assumed_mask, *_unused(contents, prefix))
    return Run(config, weights, origin=contents.origin, assumed=assumed)


def _refuse(contents: Contents, prefix: str) -> None:
    """Raise for what is known but not supported, with a reason."""
    inner = [name.removeprefix(prefix) for name in contents.tensors if name.startswith(prefix)]
    for pattern, why in _REFUSED.items():
        if found := [name for name in inner if re.fullmatch(pattern, name)]:
            raise CheckpointError(f"it holds {shown(found)}: {why}")


def _weights(contents: Contents, prefix: str) -> Weights:
    """The four tensors, stacked over layers, once all names are known and all shapes agree."""
    found = (_WEIGHT.fullmatch(name) for name in contents.tensors)
    layers = sorted({int(match[2]) for match in found if match and match[1] == prefix})
    if layers != list(range(len(layers))):
        raise CheckpointError(f"its blocks must be numbered 0, 1, …, got {shown(map(str, layers))}")
    blocks = [f"{prefix}blocks.{layer}.attn." for layer in layers]
    others = ("b_Q", "b_K", "b_V", "b_O", "mask", "IGNORE")
    known = {f"{block}{name}" for block in blocks for name in (*WEIGHT_NAMES, *others)}
    contents.only(known | {f"{prefix}{name}" for name in (*UNUSED, "unembed.W_U", "unembed.b_U")})
    return {name: torch.stack(_of_layers(contents, blocks, name)) for name in WEIGHT_NAMES}


def _of_layers(contents: Contents, blocks: list[str], name: str) -> list[Tensor]:
    heads, width, d_head = contents.at(f"{blocks[0]}W_Q", axes="(heads, d_model, d_head)", dims=3).shape
    axes = "(heads, d_head, d_model)" if name == "W_O" else "(heads, d_model, d_head)"
    shape = (heads, d_head, width) if name == "W_O" else (heads, width, d_head)
    tensors = [contents.numbers(f"{block}{name}", axes=axes, dims=3) for block in blocks]
    for block, tensor in zip(blocks, tensors, strict=True):
        if tensor.shape != shape:
            raise CheckpointError(
                f"{shown([block + name])} must have shape {axes} = {shape} as {shown([blocks[0]])}W_Q has, "
                f"got {tuple(tensor.shape)}"
            )
    return tensors


def _check_biases(contents: Contents, prefix: str, layers: int) -> None:
    names = [f"blocks.{layer}.attn.{name}" for layer in range(layers) for name in ("b_Q", "b_V", "b_O")]
    for name in (*names, "unembed.b_U"):
        if (bias := contents.tensors.get(prefix + name)) is not None and bias.any():
            raise CheckpointError(
                f"{name} is not zero: biases have no counterpart here (but for b_K, which softmax does not see); "
                "train without them, or with these set to zero"
            )
    for name in (f"{prefix}blocks.{layer}.attn.b_K" for layer in range(layers)):
        if name in contents.tensors:
            contents.numbers(name, axes="(heads, d_head)", dims=2)


def _read_out(contents: Contents, name: str, width: int) -> int | None:
    """N, where there is an unembedding to tell it."""
    if name not in contents.tensors:
        return None
    W_U = contents.numbers(name, axes="(d_model, responses)", dims=2)
    n_outputs = W_U.shape[1]
    if len(W_U) != width or n_outputs >= width:
        raise CheckpointError(
            f"{shown([name])} must have shape (d_model, N), with d_model = {width} coordinates that hold covariates "
            f"and N responses, got {tuple(W_U.shape)}"
        )
    above, below = W_U.tensor_split([width - n_outputs])  # no [0; I] is made: a few numbers can claim a great width
    if max(above.abs().max(), (below - torch.eye(n_outputs, dtype=W_U.dtype)).abs().max()) > SAME:
        raise CheckpointError(
            f"{shown([name])} is not [0; I]: of a state dict the prediction is the query's last {n_outputs} "
            "coordinates; turn the residual stream so that these are the responses.  An ICLTransformer with scratch, a "
            "read-in or a read-out is opened from its run's folder, or live"
        )
    return n_outputs


def _only_in_theirs(contents: Contents, prefix: str, layers: int) -> bool:
    """Whether something is there that a HookedTransformer has and an ICLTransformer has not."""
    inner = [f"blocks.{layer}.attn.{name}" for layer in range(layers) for name in ("mask", "IGNORE")]
    return any(prefix + name in contents.tensors for name in (*UNUSED, *inner))


def _scale(given: Given, width: int, d_head: int, from_lens: bool) -> tuple[float, tuple[str, ...]]:
    """The divisor of the scores: each library has its own default."""
    if given.attn_scale is not None:
        return given.attn_scale, ()
    theirs, ours = (f"√d_head = {d_head**0.5:.4g}", "a HookedTransformer"), (f"√d_model = {width**0.5:.4g}", "ours")
    (value, owner), (other, _) = (theirs, ours) if from_lens else (ours, theirs)
    unless = "" if width == d_head else f", not by {other}"
    said = f"scores are divided by {value}{unless}: the default of {owner} (attn_scale= says otherwise)"
    return math.sqrt(d_head if from_lens else width), (said,)


def _mask(contents: Contents, given: Given, prefix: str, layers: int, from_lens: bool) -> tuple[Mask, tuple[str, ...]]:
    """Who attends to whom.  A permanent hook, such as an exported model has on its scores, is not in a state dict."""
    if given.mask is not None:
        return given.mask, ()
    said: list[Mask | None] = [_mask_of(contents, f"{prefix}blocks.{layer}.attn.mask") for layer in range(layers)]
    found: list[Mask] = [mask for mask in said if mask is not None]
    if len(set(found)) > 1:
        raise CheckpointError("its layers have different masks, which has no counterpart here")
    default: Mask = "strict_causal" if from_lens else "demonstrations"
    mask = found[0] if found else default
    itself = "the query does not attend to itself, as in an exported model; in a plain HookedTransformer it does"
    layered = f"of the demonstrations, a position attends to {_WORDS[mask]} (mask= says otherwise)"
    return mask, (*((itself,) if from_lens else ()), *((layered,) if layers > 1 else ()))


_WORDS: dict[Mask, str] = {"demonstrations": "all", "strict_causal": "those before it, not to itself"}


def _mask_of(contents: Contents, name: str) -> Mask | None:
    """What the buffer says, where it says something: release 3 of TransformerLens keeps an empty one."""
    if name not in contents.tensors or not contents.tensors[name].numel():
        return None
    mask = contents.at(name, axes="(positions, positions)", dims=2).bool()
    if mask.all():
        return "demonstrations"
    if torch.equal(mask, torch.ones_like(mask).tril()):
        return "strict_causal"
    raise CheckpointError(f"{shown([name])} is neither causal nor open: attention over a window has no counterpart")


def _unused(contents: Contents, prefix: str) -> tuple[str, ...]:
    found = [name for name in UNUSED if prefix + name in contents.tensors and contents.tensors[prefix + name].any()]
    there = f"{' and '.join(found)} {'is' if len(found) == 1 else 'are'} not used: a prompt enters at the first layer"
    return (there,) if found else ()


def _is_hooked_transformer(module: nn.Module | None) -> bool:
    """By the class's name: importing TransformerLens takes seconds."""
    kinds = [(kind.__module__.partition(".")[0], kind.__name__) for kind in type(module).__mro__]
    return ("transformer_lens", "HookedTransformer") in kinds


def _from_live(contents: Contents, given: Given) -> Run:
    from icl_interp.export import from_hooked_transformer

    model = from_hooked_transformer(cast("HookedRootModule", contents.module))
    config = model.config
    if config.n_layers == 1 and given.mask in get_args(Mask):  # the masks agree at the query
        config = dataclasses.replace(config, mask=given.mask)
    for name in ("attn_scale", "mask"):
        said, found = getattr(given, name), getattr(config, name)
        if said is not None and said != found and not (name == "attn_scale" and math.isclose(said, found)):
            raise ConfigError(f"the model's {name} is {found!r}, {said!r} was given: leave it out")
    weights = {name: tensor.cpu() for name, tensor in model.weights().items()}
    wide = {name: t if t.dtype in (torch.float32, torch.float64) else t.float() for name, t in weights.items()}
    return Run(config, wide, origin=contents.origin)
