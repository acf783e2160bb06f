"""The model with hooks: an attention-only transformer that reads prompts, under TransformerLens's names and shapes.

No positions or biases: a prompt's L+1 columns are the residual stream, and the prediction is the query's last N
coordinates (arXiv 2503.12734, section 2), unless the config asks for more.  What else tools want is in
`icl_interp.lens`.

This is the full pass, over all positions; `icl_interp.passes.predict` is the one without hooks, with the same numbers
at about a tenth of the cost.  Import this module late: TransformerLens takes seconds.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar, cast

import torch
from einops import einsum, repeat
from jaxtyping import Bool, Float
from torch import Tensor, nn
from transformer_lens.hook_points import HookPoint

from icl_interp.attention import allowed_keys, weighing
from icl_interp.compat import LensConfig, PromptLike, PromptTokens, say_if_absent
from icl_interp.config import ModelConfig
from icl_interp.errors import ConfigError
from icl_interp.lens import LensModel, Unembed
from icl_interp.passes import LN_EPS
from icl_interp.weights import NORMS, WEIGHT_NAMES, Weights, check_weights, initial_weights, to_state_dict

P = ParamSpec("P")
T = TypeVar("T")


def _sees_hooks(forward: Callable[P, T]) -> Callable[P, T]:
    """Make a module's `forward` run uncompiled while a hook is in it: compiled code would pass it by, silently.

    Reading the lists of hooks in traced code makes their lengths conditions of that trace, so that a hook which is
    added or removed later brings the compiler back here.  Eager passes pay for one look at a flag.
    """

    @wraps(forward)
    def run(*args: P.args, **kwargs: P.kwargs) -> T:
        if torch.compiler.is_compiling() and _hooked(args[0]):
            # Compiling hooks too is not safe: a trace does not notice when one takes another's place.
            eager = torch.compiler.disable(forward)  # no hooks under fullgraph=True, which ends in an error here
            return cast("Callable[P, T]", eager)(*args, **kwargs)
        return forward(*args, **kwargs)

    return run


def _hooked(module: object) -> bool:
    parts = module.modules() if isinstance(module, nn.Module) else []
    return any(isinstance(part, HookPoint) and (part.fwd_hooks or part.bwd_hooks) for part in parts)


class Attention(nn.Module):
    """The heads of one layer."""

    W_Q: nn.Parameter
    W_K: nn.Parameter
    W_V: nn.Parameter
    W_O: nn.Parameter
    hook_q_input: HookPoint
    hook_k_input: HookPoint
    hook_v_input: HookPoint
    hook_q: HookPoint
    hook_k: HookPoint
    hook_v: HookPoint
    hook_attn_scores: HookPoint
    hook_pattern: HookPoint
    hook_z: HookPoint
    hook_result: HookPoint

    def __init__(self, config: ModelConfig):
        super().__init__()
        heads, width, d_head = config.n_heads, config.d_model, config.head_width
        for name in ("W_Q", "W_K", "W_V"):
            self.register_parameter(name, nn.Parameter(torch.empty(heads, width, d_head)))
        self.W_O = nn.Parameter(torch.empty(heads, d_head, width))
        for name in ("b_Q", "b_K", "b_V"):  # zeros for tools to read; the forward pass does not add them
            self.register_buffer(name, torch.zeros(heads, d_head), persistent=False)
        self.register_buffer("b_O", torch.zeros(width), persistent=False)
        self._score_scale = config.score_scale
        self._weights_of_scores = weighing(config.activation, config.activation_scale)
        _add_hook_points(self)

    @_sees_hooks
    def forward(
        self, q_input: Tensor, k_input: Tensor, v_input: Tensor, allowed: Bool[Tensor, "positions positions"]
    ) -> Float[Tensor, "batch positions d_model"]:
        """What the heads add to the residual stream; inputs are (batch, positions, [heads,] d_model)."""
        q = self.hook_q(_project(q_input, self.W_Q))
        k = self.hook_k(_project(k_input, self.W_K))
        v = self.hook_v(_project(v_input, self.W_V))
        scores = einsum(q / self._score_scale, k, "batch q head d_head, batch k head d_head -> batch head q k")
        scores = self.hook_attn_scores(scores.masked_fill(~allowed, -torch.inf))
        # The mask is read off the scores again, so that hooks which edit them can close and open connections.
        pattern = self.hook_pattern(self._weights_of_scores(scores, scores != -torch.inf))
        z = self.hook_z(einsum(pattern, v, "batch head q k, batch k head d_head -> batch q head d_head"))
        return self.hook_result(einsum(z, self.W_O, "batch q head d_head, head d_head d -> batch q head d")).sum(2)


def _add_hook_points(module: nn.Module) -> None:
    """Make the hook points that a module's class declares."""
    for name in type(module).__annotations__:
        if name.startswith("hook_") and not hasattr(module, name):
            module.add_module(name, HookPoint())


def _project(x: Tensor, W: Float[Tensor, "heads d_model d_head"]) -> Float[Tensor, "batch positions heads d_head"]:
    own = "head " if x.ndim == 4 else ""  # whether each head has an input of its own
    return einsum(x, W, f"batch pos {own}d_model, head d_model d_head -> batch pos head d_head")


class Embed(nn.Module):
    """The read-in: W_E takes a prompt's columns to the residual stream."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.W_E = nn.Parameter(torch.empty(config.columns, config.d_model))

    def forward(self, z: Float[Tensor, "batch positions columns"]) -> Float[Tensor, "batch positions d_model"]:
        """The residual stream as it begins."""
        return z @ self.W_E


class LayerNorm(nn.Module):
    """What a layer reads, normalised, with TransformerLens's two hook points: the scale, and what is divided by it."""

    hook_scale: HookPoint
    hook_normalized: HookPoint

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.w = nn.Parameter(torch.ones(config.d_model))
        self.b = nn.Parameter(torch.zeros(config.d_model))
        _add_hook_points(self)

    @_sees_hooks
    def forward(self, x: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_model"]:
        """(x − mean)/scale · w + b, with scale² the variance over coordinates."""
        x = x - x.mean(-1, keepdim=True)
        scale = self.hook_scale((x.square().mean(-1, keepdim=True) + LN_EPS).sqrt())
        return self.hook_normalized(x / scale) * self.w + self.b


class Block(nn.Module):
    """One layer: attention and the residual link; there is no MLP, and its name says so."""

    hook_out_is_single_residual_stream: bool = True  # what TransformerLens's logit lens asks of a block
    attn: Attention
    hook_resid_pre: HookPoint
    hook_attn_in: HookPoint
    hook_q_input: HookPoint
    hook_k_input: HookPoint
    hook_v_input: HookPoint
    hook_attn_out: HookPoint
    hook_resid_mid: HookPoint
    hook_mlp_in: HookPoint
    hook_mlp_out: HookPoint
    hook_resid_post: HookPoint

    def __init__(self, config: ModelConfig, cfg: LensConfig):
        super().__init__()
        self.cfg = cfg
        self.ln1 = LayerNorm(config) if config.layer_norm else nn.Identity()
        self.attn = Attention(config)
        _add_hook_points(self)

    @_sees_hooks
    def forward(
        self, residual: Float[Tensor, "batch positions d_model"], allowed: Bool[Tensor, "positions positions"]
    ) -> Float[Tensor, "batch positions d_model"]:
        """The residual stream after this layer."""
        before = self.hook_resid_pre(residual)
        reads = (self.ln1(x) for x in self._inputs(before))
        middle = self.hook_resid_mid(before + self.hook_attn_out(self.attn(*reads, allowed)))
        # There is no MLP.  Zeros in its place let tools run that sweep over the parts of blocks.
        mlp_in = self.hook_mlp_in(middle.clone()) if self.cfg.use_hook_mlp_in else middle
        return self.hook_resid_post(middle + self.hook_mlp_out(0 * mlp_in))

    def __getattr__(self, name: str) -> Tensor | nn.Module:
        try:
            return super().__getattr__(name)
        except AttributeError as error:
            say_if_absent(self, name, error)

    def _inputs(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        if self.cfg.use_attn_in:
            x = self.hook_attn_in(self._per_head(x))
        if not self.cfg.use_split_qkv_input:
            return x, x, x
        return (  # TransformerLens 3 looks for these on the block, 4 on the attention
            self.attn.hook_q_input(self.hook_q_input(self._per_head(x))),
            self.attn.hook_k_input(self.hook_k_input(self._per_head(x))),
            self.attn.hook_v_input(self.hook_v_input(self._per_head(x))),
        )

    def _per_head(self, x: Tensor) -> Float[Tensor, "batch positions heads d_model"]:
        copies = x if x.ndim == 4 else repeat(x, "batch pos d -> batch pos head d", head=self.cfg.n_heads)
        return copies.clone()  # a hook may write into one of them


class ICLTransformer(LensModel):
    """An in-context learner with a hook on every activation.

    Args:
        config: sizes, mask, scale.
        seed: of the initial weights.
        generator: where their randomness comes from, instead of `seed`; with neither, torch's global generator.
        dtype: of weights and activations; inputs are cast to it.
        device: where the weights live; inputs are moved to it.

    Raises:
        ConfigError: both `seed` and `generator`.
    """

    cfg: LensConfig
    hook_embed: HookPoint
    blocks: nn.ModuleList
    unembed: Unembed

    def __init__(
        self,
        config: ModelConfig,
        *,
        seed: int | None = None,
        generator: torch.Generator | None = None,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
    ):
        super().__init__()
        if seed is not None:
            if generator is not None:
                raise ConfigError(f"pass seed or generator, not both, got seed={seed} and a generator")
            generator = torch.Generator().manual_seed(seed)
        self.config = config
        self.cfg = LensConfig(
            n_layers=config.n_layers,
            n_heads=config.n_heads,
            d_model=config.d_model,
            d_head=config.head_width,
            d_vocab=config.n_outputs,
            d_vocab_out=config.n_outputs,
            attn_scale=config.score_scale,
            seed=seed,
        )
        if config.read_in is not None:
            self.embed = Embed(config)
        self.hook_embed = HookPoint()
        self.blocks = nn.ModuleList(Block(config, self.cfg) for _ in range(config.n_layers))
        self.unembed = Unembed(config)
        self._load(initial_weights(config, generator))
        self.to(device=device, dtype=dtype)
        self.setup()
        self.eval()  # the modes do not differ, but TransformerLens's tools insist on this one

    @classmethod
    def from_weights(cls, config: ModelConfig, weights: Weights) -> ICLTransformer:
        """A model with these weights (copied), in their dtype and on their device.

        Raises:
            CheckpointError: weights that are missing, misshapen, or not finite floating-point numbers.
        """
        check_weights(weights, config)
        like = weights["W_Q"]
        # The initial weights are thrown away: a generator of their own leaves the global one where it was.
        model = cls(config, generator=torch.Generator(), dtype=like.dtype, device=like.device)
        model._load(weights)
        return model

    def weights(self) -> Weights:
        """The weight tensors, those of heads stacked over layers: detached copies."""
        weights = {name: self._stacked(name).detach() for name in WEIGHT_NAMES}
        if self.config.read_in is not None:
            weights["W_E"] = self.embed.W_E.detach().clone()
        if self.config.read_out:
            weights["W_U"] = self.W_U.detach().clone()
        norms = NORMS if self.config.layer_norm else {}
        return weights | {
            name: torch.stack([block.get_parameter(path) for block in self.blocks]).detach()
            for name, path in norms.items()
        }

    def _load(self, weights: Weights) -> None:
        self.load_state_dict({"unembed.W_U": self.W_U, **to_state_dict(weights)})

    @_sees_hooks
    def forward(
        self,
        input: PromptLike,
        return_type: str | None = "logits",
        start_at_layer: int | None = None,
        stop_at_layer: int | None = None,
        *,
        y_q: Float[Tensor, "batch outputs"] | None = None,
    ) -> Tensor | None:
        """Run over all positions, firing every hook point.  The input is never written to.

        Args:
            input: a `Prompt`, what `to_tokens` makes of it, or its columns z (batch, positions, d + N).
            return_type: "logits", the response coordinates at every position (batch, positions, outputs), of which the
                last is the prediction; "loss", the mean squared error of that prediction; None, nothing.
            start_at_layer: take `input` as the residual stream (batch, positions, d_model) before this layer.
            stop_at_layer: return the residual stream (batch, positions, d_model) before this layer.
            y_q: the query's response, for the loss on an input without one.  In a bare tensor it may also stand in the
                query's response coordinates; the model then reads zeros there.

        Raises:
            ConfigError: an input of the wrong kind or shape, an unknown `return_type`, a loss without a response.
        """
        if return_type not in ("logits", "loss", None):
            raise ConfigError(f"return_type must be 'logits', 'loss' or None, got {return_type!r}")
        tokens = self._tokens(input, self.config.columns if start_at_layer is None else self.config.d_model)
        if return_type == "loss":
            tokens = self._with_response(tokens, y_q, from_the_start=start_at_layer is None)
        z = tokens.z.to(self.cfg.device, self.cfg.dtype)
        if torch.is_grad_enabled() and not z.requires_grad and not torch.compiler.is_compiling():
            z = z.detach().requires_grad_()  # so that gradients reach hook_embed
        residual = self.hook_embed(self._read_in(z)) if start_at_layer is None else z.clone()  # hooks write in place
        allowed = allowed_keys(z.shape[1] - 1, self.config.mask, z.device)
        for block in list(self.blocks)[start_at_layer:stop_at_layer]:
            residual = block(residual, allowed)
        if stop_at_layer is not None:
            return residual
        logits = self.unembed(residual)
        if return_type == "loss" and tokens.y_q is not None:
            return nn.functional.mse_loss(logits[:, -1], tokens.y_q.to(logits))
        return logits if return_type == "logits" else None

    def _read_in(self, z: Tensor) -> Float[Tensor, "batch positions d_model"]:
        return nn.functional.pad(z, (0, self.config.scratch)).clone() if self.config.read_in is None else self.embed(z)

    def _with_response(self, tokens: PromptTokens, y_q: Tensor | None, from_the_start: bool) -> PromptTokens:
        z = tokens.z.clone()
        slot = z[:, -1, self.config.dim : self.config.columns]
        y_q = tokens.y_q if y_q is None else y_q
        if y_q is None:
            if not (from_the_start and slot.any()):  # further on, a prediction grows there
                raise ConfigError("the loss needs the query's response: pass a Prompt, or y_q of (batch, outputs)")
            y_q = slot.clone()
            slot.zero_()
        if y_q.shape != slot.shape:
            raise ConfigError(f"y_q must have shape {tuple(slot.shape)}, got {tuple(y_q.shape)}")
        return PromptTokens(z, y_q)

    def predict(self, prompt: PromptLike) -> Float[Tensor, "batch outputs"]:
        """ŷ_q, through the hooked pass (`icl_interp.attention.predict` is the quick one)."""
        return self(prompt)[:, -1]
