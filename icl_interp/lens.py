"""What TransformerLens's tools ask of a model besides running it: its `cfg`, hooks that fire, caches, stacked weights.

`ICLTransformer` is built on it (`icl_interp.model`).  Names and shapes are those of an attn-only HookedTransformer, so
caches, patching and circuit tools take it as one.  TransformerLens multiplies rows: its QK and OV are the transposes of
the paper's KQ and OV, which `icl_interp.circuits` holds.  Import this module late: TransformerLens takes seconds.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformer_lens import ActivationCache, FactoredMatrix
from transformer_lens.utilities.matrix import composition_scores

from icl_interp.config import ModelConfig
from icl_interp.errors import ConfigError
from icl_interp.tasks import Prompt

try:
    from transformer_lens import HookedRootModule
except ImportError:  # its home in the first releases of TransformerLens 3
    from transformer_lens.hook_points import HookedRootModule

HookName = str | Callable[[str], bool]
Hook = tuple[HookName, Callable[..., Tensor | None]]

# Hook points that fire only while a switch of `cfg` is on.
SWITCHES = {
    "hook_q_input": "use_split_qkv_input",
    "hook_k_input": "use_split_qkv_input",
    "hook_v_input": "use_split_qkv_input",
    "hook_attn_in": "use_attn_in",
    "hook_mlp_in": "use_hook_mlp_in",
}


@dataclass(frozen=True, eq=False)
class PromptTokens:
    """Prompts where TransformerLens expects tokens: `shape` is (batch, positions), so that sweeps run over positions.

    Given a bare `z` instead, position sweeps would silently run over its d_model coordinates.
    """

    z: Float[Tensor, "batch positions d_model"]
    y_q: Float[Tensor, "batch outputs"] | None = None
    ndim: ClassVar[int] = 2

    @property
    def shape(self) -> torch.Size:
        """(batch, positions)."""
        return self.z.shape[:2]

    def to(self, device: torch.device | str) -> PromptTokens:
        """The same prompts on another device."""
        return PromptTokens(self.z.to(device), None if self.y_q is None else self.y_q.to(device))

    def cpu(self) -> PromptTokens:
        """The same prompts on the CPU."""
        return self.to("cpu")

    def __len__(self) -> int:
        return len(self.z)

    def __getitem__(self, index: slice) -> PromptTokens:
        return PromptTokens(self.z[index], None if self.y_q is None else self.y_q[index])

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(
            f"prompts are columns of numbers, not token ids, so they have no {name!r}; what compares tokens (duplicate "
            "token heads, induction heads) does not apply to them"
        )


PromptLike = Prompt | PromptTokens | Tensor


@dataclass
class LensConfig:
    """The model as TransformerLens's tools read it; `ICLTransformer.config` is what it was made from."""

    n_layers: int
    n_heads: int
    d_model: int
    d_head: int
    d_vocab: int
    d_vocab_out: int
    attn_scale: float
    seed: int | None = None
    model_name: str = "icl-interp"
    n_ctx: int = 2**31 - 1  # there are no positions, so any length will do
    attn_only: bool = True
    normalization_type: str | None = None
    positional_embedding_type: str = "none"
    use_attn_scale: bool = True
    use_attn_result: bool = True
    use_split_qkv_input: bool = False
    use_attn_in: bool = False
    use_hook_mlp_in: bool = False
    parallel_attn_mlp: bool = False
    final_rms: bool = False
    default_prepend_bos: bool = False
    n_key_value_heads: int | None = None
    d_mlp: int | None = None
    act_fn: str | None = None
    device: torch.device | None = None
    dtype: torch.dtype = torch.float32


class Unembed(nn.Module):
    """The prediction is the last N coordinates: W_U = [0; I_N], frozen."""

    b_U: Tensor

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.W_U = nn.Parameter(torch.eye(config.d_model)[:, config.dim :].clone(), requires_grad=False)
        self.register_buffer("b_U", torch.zeros(config.n_outputs), persistent=False)

    def forward(self, residual: Float[Tensor, "... d_model"]) -> Float[Tensor, "... outputs"]:
        """Read the response coordinates."""
        return residual @ self.W_U


class LensModel(HookedRootModule):
    """What TransformerLens's tools ask of a model besides running it.

    Hook points are known only while they fire: hooking another raises `ConfigError`, for it would never be called.
    """

    config: ModelConfig
    cfg: LensConfig
    blocks: nn.ModuleList
    unembed: Unembed

    def setup(self) -> None:
        """Register the hook points that fire under the present switches, and empty the others."""
        super().setup()
        for name in [name for name in self.hook_dict if not self._fires(name)]:
            self.hook_dict.pop(name).remove_hooks("both", including_permanent=True)

    def _fires(self, name: str) -> bool:
        switch = SWITCHES.get(name.rpartition(".")[2])
        return switch is None or getattr(self.cfg, switch)

    def _check_fires(self, name: HookName) -> None:
        if not isinstance(name, str):
            if not any(name(known) for known in self.hook_dict):
                raise ConfigError("this filter passes no hook point that fires; model.hook_dict lists them")
        elif name not in self.hook_dict:
            if name in self.mod_dict and not self._fires(name):
                advice = f"call model.set_{SWITCHES[name.rpartition('.')[2]]}(True) first"
            else:
                near = difflib.get_close_matches(name, self.hook_dict)
                advice = f"did you mean {' or '.join(near)}?" if near else "model.hook_dict lists those that do"
            raise ConfigError(f"no hook point {name!r} fires; {advice}")

    def add_hook(self, name: HookName, hook: Callable[..., Tensor | None], *args: Any, **kwargs: Any) -> None:
        """`HookedRootModule.add_hook`; raises `ConfigError` if the hook would never be called."""
        self._check_fires(name)
        super().add_hook(name, hook, *args, **kwargs)

    @contextmanager
    def hooks(
        self, fwd_hooks: Sequence[Hook] = (), bwd_hooks: Sequence[Hook] = (), *args: Any, **kwargs: Any
    ) -> Iterator[LensModel]:
        """`HookedRootModule.hooks`; raises `ConfigError` if a hook would never be called."""
        for name, _ in [*fwd_hooks, *bwd_hooks]:
            self._check_fires(name)
        with super().hooks(list(fwd_hooks), list(bwd_hooks), *args, **kwargs):
            yield self

    def run_with_cache(
        self, *args: Any, return_cache_object: bool = True, remove_batch_dim: bool = False, **kwargs: Any
    ) -> tuple[Any, Any]:
        """`forward`'s result, and an `ActivationCache` of every hook point that fires (or of `names_filter`).

        Args:
            args: `forward`'s.
            return_cache_object: whether to wrap the cache, or to return the plain dict.
            remove_batch_dim: drop the batch axis of a single prompt.
            kwargs: `forward`'s, and `HookedRootModule.run_with_cache`'s.

        Raises:
            ConfigError: `names_filter` names a hook point that does not fire; several prompts to `remove_batch_dim`.
        """
        names = kwargs.get("names_filter")
        for name in [names] if isinstance(names, str) else names if isinstance(names, Sequence) else []:
            self._check_fires(name)
        if remove_batch_dim and len(prompts := args[0] if args else kwargs["input"]) != 1:
            raise ConfigError(f"remove_batch_dim needs a batch of one prompt, got {len(prompts)}")
        result, cache = super().run_with_cache(*args, remove_batch_dim=remove_batch_dim, **kwargs)
        if return_cache_object:
            cache = ActivationCache(cache, self, has_batch_dim=not remove_batch_dim)
        return result, cache

    def _switch(self, name: str, on: bool) -> None:
        setattr(self.cfg, name, on)
        self.setup()

    def set_use_split_qkv_input(self, use_split_qkv_input: bool) -> None:
        """Whether `hook_{q,k,v}_input` (batch, positions, heads, d_model) fire: what each head's q, k and v read."""
        self._switch("use_split_qkv_input", use_split_qkv_input)

    def set_use_attn_in(self, use_attn_in: bool) -> None:
        """Whether `hook_attn_in` (batch, positions, heads, d_model) fires: what each head reads."""
        self._switch("use_attn_in", use_attn_in)

    def set_use_hook_mlp_in(self, use_hook_mlp_in: bool) -> None:
        """Whether `hook_mlp_in` fires, where an MLP would read.  There is none, so edits have no effect."""
        self._switch("use_hook_mlp_in", use_hook_mlp_in)

    def set_use_attn_result(self, use_attn_result: bool) -> None:
        """Accepted for compatibility: `hook_result` always fires."""
        self.cfg.use_attn_result = use_attn_result

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> LensModel:
        super()._apply(fn, recurse)  # what `.to()`, `.double()` and `.cuda()` come down to
        self.cfg.device, self.cfg.dtype = self.W_U.device, self.W_U.dtype
        return self

    def _stacked(self, name: str) -> Tensor:
        return torch.stack([getattr(block.attn, name) for block in self.blocks])

    W_Q = property(lambda self: self._stacked("W_Q"), doc="(n_layers, n_heads, d_model, d_head)")
    W_K = property(lambda self: self._stacked("W_K"), doc="(n_layers, n_heads, d_model, d_head)")
    W_V = property(lambda self: self._stacked("W_V"), doc="(n_layers, n_heads, d_model, d_head)")
    W_O = property(lambda self: self._stacked("W_O"), doc="(n_layers, n_heads, d_head, d_model)")
    b_Q = property(lambda self: self._stacked("b_Q"), doc="Zeros, (n_layers, n_heads, d_head)")
    b_K = property(lambda self: self._stacked("b_K"), doc="Zeros, (n_layers, n_heads, d_head)")
    b_V = property(lambda self: self._stacked("b_V"), doc="Zeros, (n_layers, n_heads, d_head)")
    b_O = property(lambda self: self._stacked("b_O"), doc="Zeros, (n_layers, d_model)")
    W_U = property(lambda self: self.unembed.W_U, doc="[0; I_N], (d_model, n_outputs)")
    b_U = property(lambda self: self.unembed.b_U, doc="Zeros, (n_outputs,)")
    QK = property(lambda self: FactoredMatrix(self.W_Q, self.W_K.mT), doc="score = z_q QK z_kᵀ / attn_scale")
    OV = property(lambda self: FactoredMatrix(self.W_V, self.W_O), doc="A head writes the mean of z OV over its keys")
    ln_final = property(lambda self: nn.Identity(), doc="There is no final LayerNorm")

    @property
    def all_head_labels(self) -> list[str]:
        """L0H0, L0H1, …"""
        return [f"L{layer}H{head}" for layer in range(self.cfg.n_layers) for head in range(self.cfg.n_heads)]

    def blocks_with(self, submodule: str) -> list[tuple[int, nn.Module]]:
        """(layer, block) for each block that has this part: all have "attn", and nothing else."""
        return list(enumerate(self.blocks)) if submodule == "attn" else []

    def accumulated_bias(
        self, layer: int, mlp_input: bool = False, include_mlp_biases: bool = True
    ) -> Float[Tensor, " d_model"]:
        """Zeros at every layer: there are no biases."""
        return torch.zeros_like(self.b_O[0])

    def all_composition_scores(self, mode: str) -> Float[Tensor, "layers heads layers heads"]:
        """How much each head (axes 2, 3) reads, through its `mode` (Q, K or V), of what each earlier one (0, 1) writes.

        Raises:
            ConfigError: another `mode`.
        """
        if mode not in ("Q", "K", "V"):
            raise ConfigError(f"mode must be 'Q', 'K' or 'V', got {mode!r}")
        reads = {"Q": self.QK, "K": self.QK.T, "V": self.OV}[mode]
        layer = torch.arange(self.cfg.n_layers, device=self.cfg.device)
        earlier = layer[:, None, None, None] < layer[:, None]
        return torch.where(earlier, composition_scores(self.OV, reads), 0.0)

    def to_tokens(self, input: object) -> PromptTokens:
        """A `PromptLike` with the shape of tokens, (batch, positions): what patching sweeps and `detect_head` take.

        Raises:
            ConfigError: not prompts, or not of this model's sizes.
        """
        if isinstance(input, Prompt | PromptTokens):
            z, y_q = input.z, input.y_q
        elif isinstance(input, Tensor):
            z, y_q = input, None
        else:
            raise ConfigError(
                f"the model reads a Prompt, or its z (batch, positions, d_model), got {type(input).__name__}; it has "
                "no vocabulary, so there is no text that it could read"
            )
        dim, outputs = self.config.dim, self.config.n_outputs
        if z.ndim != 3 or z.shape[1] < 2 or z.shape[2] != dim + outputs:
            raise ConfigError(
                f"the model reads z of shape (batch, positions ≥ 2, d_model = {dim + outputs}), that is dim {dim} + "
                f"n_outputs {outputs}, got {tuple(z.shape)}"
            )
        return PromptTokens(z, y_q)

    def to_str_tokens(self, input: PromptLike) -> list[str]:
        """Names of the positions: x1 … xL and query."""
        return [*(f"x{i + 1}" for i in range(self.to_tokens(input).shape[1] - 1)), "query"]

    def to_single_token(self, string: str) -> int:
        """The index of an output by its name: "y0" is 0.

        Raises:
            ConfigError: not the name of an output.
        """
        names = [f"y{i}" for i in range(self.cfg.d_vocab)]
        if string not in names:
            raise ConfigError(f"the outputs are {', '.join(names)}, got {string!r}")
        return names.index(string)

    def tokens_to_residual_directions(self, tokens: str | int | Tensor) -> Float[Tensor, "*tokens d_model"]:
        """The direction in the residual stream that each output, by name or index, reads: a column of W_U."""
        index = torch.as_tensor(self.to_single_token(tokens) if isinstance(tokens, str) else tokens)
        return self.W_U.T[index.squeeze() if index.numel() == 1 else index]
