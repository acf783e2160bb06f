"""To and from TransformerLens's own HookedTransformer, which its releases before 4 have.

Both have the same weights under the same names.  What differs is who may be attended to: a HookedTransformer's
positions also attend to themselves, the query among them, so the exported model carries a permanent hook on its scores
that closes what our masks close.  Its embedding is zero: run it from its first layer,

    hooked = to_hooked_transformer(model)
    logits, cache = hooked.run_with_cache(prompt.z, start_at_layer=0)  # z in the model's dtype
"""

from __future__ import annotations

import warnings
from functools import partial
from importlib.util import find_spec
from types import ModuleType
from typing import TYPE_CHECKING, Any, get_args

import torch
from torch import Tensor

from icl_interp.attention import allowed_keys
from icl_interp.config import Mask, ModelConfig, check_count
from icl_interp.errors import ConfigError
from icl_interp.weights import from_state_dict

if TYPE_CHECKING:
    from icl_interp.lens import HookedRootModule
    from icl_interp.model import ICLTransformer

# How far predictions may be apart, relative to their size, for two models to be the same.
SAME = {torch.float64: 1e-9, torch.float32: 1e-4}
SAME_OTHERWISE = 1e-2


def to_hooked_transformer(model: ICLTransformer, *, n_ctx: int = 1024) -> HookedRootModule:
    """The same model as a `transformer_lens.HookedTransformer`, with a copy of its weights.

    Args:
        model: any with softmax attention and nothing but heads.
        n_ctx: the most positions (L+1) that the copy will read.

    Raises:
        ImportError: TransformerLens 4 or later is installed, which has no HookedTransformer.
        ConfigError: attention other than softmax, scratch, a read-in, a read-out or LayerNorm; an `n_ctx` below two.
    """
    lens = _transformer_lens_3()
    check_count("n_ctx", n_ctx, minimum=2)
    config, cfg = model.config, model.cfg
    if config.activation != "softmax":
        raise ConfigError(f"a HookedTransformer's attention is softmax, this model's is {config.activation!r}")
    if config.extras:
        raise ConfigError(f"a model with {', '.join(config.extras)} is not exported, only one of nothing but heads")
    settings = lens.HookedTransformerConfig(
        n_layers=cfg.n_layers,
        n_heads=cfg.n_heads,
        d_model=cfg.d_model,
        d_head=cfg.d_head,
        n_ctx=n_ctx,
        d_vocab=cfg.d_vocab,
        attn_only=True,
        normalization_type=None,
        positional_embedding_type="standard",  # there is no type "none": these are zeros, below
        attn_scale=cfg.attn_scale,
        use_attn_result=True,
        attention_dir="causal" if config.mask == "strict_causal" else "bidirectional",
        init_weights=False,
        default_prepend_bos=False,
        device=str(cfg.device),
        dtype=cfg.dtype,
        model_name=cfg.model_name,
    )
    with warnings.catch_warnings():  # it says that it will go, and to use what cannot hold this model
        warnings.simplefilter("ignore", DeprecationWarning)
        hooked = lens.HookedTransformer(settings)
    for parameter in hooked.parameters():
        parameter.data.zero_()
    hooked.load_state_dict(model.state_dict(), strict=False)
    hooked.add_perma_hook(lambda name: name.endswith("hook_attn_scores"), partial(_close, mask=config.mask))
    return hooked


def from_hooked_transformer(hooked: HookedRootModule) -> ICLTransformer:
    """The `ICLTransformer` that computes what a `transformer_lens.HookedTransformer` does, with a copy of its weights.

    The residual stream is read as covariates followed by as many responses as there are logits.  Then both are run,
    the other one with its hooks: whatever ours has no counterpart for (LayerNorm, an MLP, biases, a query that attends
    to itself, …) shows as a difference, and is refused.  Of our masks it gets the one that agrees.

    Raises:
        ImportError: TransformerLens 4 or later is installed, which has no HookedTransformer.
        ConfigError: not a HookedTransformer, or one that no ICLTransformer is equal to; the message says why.
        CheckpointError: weights that are not those of heads, or not finite.
    """
    lens = _transformer_lens_3()
    if not isinstance(hooked, lens.HookedTransformer):
        raise ConfigError(f"only a HookedTransformer is read here, got a {type(hooked).__name__}")
    apart = {mask: _compare(hooked, _with_weights_of(hooked, mask)) for mask in get_args(Mask)}
    mask = min(apart, key=lambda mask: apart[mask])
    if not apart[mask] <= SAME.get(_cfg(hooked).dtype, SAME_OTHERWISE):
        raise ConfigError(
            "no ICLTransformer computes what this HookedTransformer does: with the same weights the predictions are "
            f"{apart[mask]:.2g} of their size apart. {_reason(hooked)}"
        )
    return _with_weights_of(hooked, mask)


def _transformer_lens_3() -> ModuleType:
    if find_spec("transformer_lens.HookedTransformer") is None:
        raise ImportError(
            "HookedTransformer was removed in TransformerLens 4: pip install 'transformer-lens<4' to use it. "
            "ICLTransformer has the same hooks, weights and caches under the same names, without it"
        )
    import transformer_lens

    return transformer_lens


def _close(scores: Tensor, hook: object, *, mask: Mask) -> Tensor:
    """Close what our mask closes; a row without any key then gets zeros for its pattern, as ours does."""
    return scores.masked_fill(~allowed_keys(scores.shape[-1] - 1, mask, scores.device), -torch.inf)


def _with_weights_of(hooked: HookedRootModule, mask: Mask) -> ICLTransformer:
    from icl_interp.model import ICLTransformer

    cfg = _cfg(hooked)
    if cfg.d_vocab_out >= cfg.d_model:
        raise ConfigError(
            f"the residual stream has to hold covariates and responses: got {cfg.d_model} coordinates in it and "
            f"{cfg.d_vocab_out} logits, as in a model of language"
        )
    config = ModelConfig(
        dim=cfg.d_model - cfg.d_vocab_out,
        n_outputs=cfg.d_vocab_out,
        n_heads=cfg.n_heads,
        n_layers=cfg.n_layers,
        d_head=cfg.d_head,
        mask=mask,
        attn_scale=float(cfg.attn_scale) if cfg.use_attn_scale else 1.0,
    )
    return ICLTransformer.from_weights(config, from_state_dict(hooked.state_dict()))


@torch.no_grad()
def _compare(hooked: HookedRootModule, model: ICLTransformer) -> float:
    """How far apart their logits are on random residual streams, relative to their size."""
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(8, min(9, _cfg(hooked).n_ctx), model.config.d_model, generator=generator)
    theirs, ours = (m(z.to(model.cfg.device, model.cfg.dtype), start_at_layer=0).double() for m in (hooked, model))
    return float((theirs - ours).norm() / ours.norm())


def _reason(hooked: HookedRootModule) -> str:
    """The likeliest one."""
    cfg = _cfg(hooked)
    has = {
        f"LayerNorm ({cfg.normalization_type})": cfg.normalization_type is not None,
        "an MLP": not cfg.attn_only,
        "biases": any(".b_" in name and tensor.any() for name, tensor in hooked.state_dict().items()),
    }
    found = [what for what, present in has.items() if present]
    if found:
        return f"It has {', '.join(found)}, which ours has not"
    return (
        "Its heads attend otherwise, or other coordinates than the last are its responses; a HookedTransformer's "
        "positions attend to themselves unless a hook on their scores prevents it, ours never do"
    )


def _cfg(hooked: HookedRootModule) -> Any:
    return hooked.cfg
