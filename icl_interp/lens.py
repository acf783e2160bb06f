"""What TransformerLens's tools ask of a model besides running it: its `cfg`, hooks that fire, caches, stacked weights.

`ICLTransformer` is built on it (`icl_interp.model`).  Names and shapes are those of an attn-only HookedTransformer, so
caches, patching and circuit tools take it as one.  TransformerLens multiplies rows: its QK and OV are the transposes of
the paper's KQ and OV, which `icl_interp.circuits` holds.  Of `detect_head`'s measures "abs" takes lower-triangular
patterns only, that is mask="strict_causal"; "mul" takes all.  Import this module late: TransformerLens takes seconds.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Generic, Literal, NoReturn, TypedDict, TypeVar, Unpack, overload

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformer_lens import ActivationCache, FactoredMatrix
from transformer_lens.hook_points import NamesFilter
from transformer_lens.utilities.matrix import composition_scores
from transformer_lens.utilities.slice import Slice, SliceInput

from icl_interp.compat import SWITCHES, LensConfig, PromptLike, PromptTokens, say_if_absent
from icl_interp.config import ModelConfig
from icl_interp.errors import ConfigError
from icl_interp.tasks import Prompt

try:
    from transformer_lens import HookedRootModule
except ImportError:  # its home in the first releases of TransformerLens 3
    from transformer_lens.hook_points import HookedRootModule

T = TypeVar("T")
HookName = str | Callable[[str], bool]
Hook = tuple[HookName, Callable[..., Tensor | None]]


class Unembed(nn.Module):
    """The prediction is the response coordinates: W_U = [0; I_N; 0], frozen unless the config has a read-out."""

    b_U: Tensor

    def __init__(self, config: ModelConfig):
        super().__init__()
        reads = torch.zeros(config.d_model, config.n_outputs)
        if not config.read_out:
            reads[config.dim : config.columns] = torch.eye(config.n_outputs)
        self.W_U = nn.Parameter(reads, requires_grad=config.read_out)
        self.register_buffer("b_U", torch.zeros(config.n_outputs), persistent=False)

    def forward(self, residual: Float[Tensor, "... d_model"]) -> Float[Tensor, "... outputs"]:
        """Read the response coordinates."""
        return residual @ self.W_U


class _Read(Generic[T]):
    """An attribute that is computed from the weights and cannot be set."""

    def __init__(self, read: Callable[[LensModel], T], doc: str):
        self._read: Callable[[LensModel], T] = read
        self.__doc__ = doc

    @overload
    def __get__(self, model: None, owner: type) -> _Read[T]: ...
    @overload
    def __get__(self, model: LensModel, owner: type | None = None) -> T: ...
    def __get__(self, model: LensModel | None, owner: type | None = None) -> T | _Read[T]:
        return self if model is None else self._read(model)

    def __set__(self, model: LensModel, value: object) -> NoReturn:
        raise AttributeError(f"this is computed from the blocks' weights: {self.__doc__}; set those")


class Parameters(dict[str, Tensor]):
    """Weights by name, for tools that ask for those of an MLP."""

    def __missing__(self, name: str) -> NoReturn:
        raise ConfigError(f"there is no {name!r}: the model has no MLP; its weights are {', '.join(self)}")


class RunOptions(TypedDict, total=False):
    """What a run takes besides an input and a return type: `forward`'s, and `HookedRootModule`'s."""

    start_at_layer: int | None
    stop_at_layer: int | None
    y_q: Tensor | None
    reset_hooks_end: bool
    clear_contexts: bool


class CacheOptions(RunOptions, total=False):
    """What `run_with_cache` takes."""

    names_filter: NamesFilter
    pos_slice: Slice | SliceInput
    remove_batch_dim: bool
    device: torch.device | None
    incl_bwd: bool


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

    def __getattr__(self, name: str) -> Tensor | nn.Module:
        try:
            return super().__getattr__(name)
        except AttributeError as error:
            say_if_absent(self, name, error)

    def add_hook(
        self,
        name: HookName,
        hook: Callable[..., Tensor | None],
        dir: Literal["fwd", "bwd"] = "fwd",
        is_permanent: bool = False,
        level: int | None = None,
        prepend: bool = False,
    ) -> None:
        """`HookedRootModule.add_hook`; raises `ConfigError` if the hook would never be called."""
        self._check_fires(name)
        super().add_hook(name, hook, dir, is_permanent, level, prepend)

    @contextmanager
    def hooks(
        self,
        fwd_hooks: Sequence[Hook] = (),
        bwd_hooks: Sequence[Hook] = (),
        reset_hooks_end: bool = True,
        clear_contexts: bool = False,
    ) -> Iterator[LensModel]:
        """`HookedRootModule.hooks`; raises `ConfigError` if a hook would never be called."""
        for name, _ in [*fwd_hooks, *bwd_hooks]:
            self._check_fires(name)
        with super().hooks(list(fwd_hooks), list(bwd_hooks), reset_hooks_end, clear_contexts):
            yield self

    @overload
    def run_with_hooks(
        self,
        input: PromptLike,
        return_type: str = "logits",
        *,
        fwd_hooks: Sequence[Hook] = (),
        bwd_hooks: Sequence[Hook] = (),
        **options: Unpack[RunOptions],
    ) -> Tensor: ...
    @overload
    def run_with_hooks(
        self,
        input: PromptLike,
        return_type: None,
        *,
        fwd_hooks: Sequence[Hook] = (),
        bwd_hooks: Sequence[Hook] = (),
        **options: Unpack[RunOptions],
    ) -> None: ...
    def run_with_hooks(
        self,
        input: PromptLike,
        return_type: str | None = "logits",
        *,
        fwd_hooks: Sequence[Hook] = (),
        bwd_hooks: Sequence[Hook] = (),
        **options: Unpack[RunOptions],
    ) -> Tensor | None:
        """`forward` with these hooks, and those that the model has.

        Raises:
            ConfigError: a hook that would never be called; a bare `z` to run hooks on.  Whoever sweeps over positions
                reads their number off the shape of what is passed here, and `z`'s ends in d_model.
        """
        if isinstance(input, Tensor) and (fwd_hooks or bwd_hooks) and options.get("start_at_layer") is None:
            raise ConfigError(
                f"hooks run on a Prompt, or on model.to_tokens(z), whose shape is (batch, positions), got a tensor of "
                f"shape {tuple(input.shape)}: a sweep over positions would take its last axis, d_model, for them"
            )
        return super().run_with_hooks(
            input, return_type, fwd_hooks=list(fwd_hooks), bwd_hooks=list(bwd_hooks), **options
        )

    @overload
    def run_with_cache(
        self,
        input: PromptLike,
        return_type: str = "logits",
        *,
        return_cache_object: Literal[True] = True,
        **options: Unpack[CacheOptions],
    ) -> tuple[Tensor, ActivationCache]: ...
    @overload
    def run_with_cache(
        self,
        input: PromptLike,
        return_type: str = "logits",
        *,
        return_cache_object: Literal[False],
        **options: Unpack[CacheOptions],
    ) -> tuple[Tensor, dict[str, Tensor]]: ...
    @overload
    def run_with_cache(
        self,
        input: PromptLike,
        return_type: None,
        *,
        return_cache_object: Literal[True] = True,
        **options: Unpack[CacheOptions],
    ) -> tuple[None, ActivationCache]: ...
    def run_with_cache(
        self,
        input: PromptLike,
        return_type: str | None = "logits",
        *,
        return_cache_object: bool = True,
        **options: Unpack[CacheOptions],
    ) -> tuple[Tensor | None, ActivationCache | dict[str, Tensor]]:
        """`forward`'s result, and an `ActivationCache` of every hook point that fires, or of some.

        Args:
            input: as `forward`'s.
            return_type: as `forward`'s.
            return_cache_object: whether to wrap the cache, or to return the plain dict.
            options: which hook points (`names_filter`: a name, several, or a function of names); which positions
                (`pos_slice`; of queries, in patterns); `remove_batch_dim`, for a single prompt; and further those of
                `forward` and `HookedRootModule.run_with_cache`.

        Raises:
            ConfigError: `names_filter` passes a hook point that does not fire, or none; several prompts to
                `remove_batch_dim`.
        """
        names = options.get("names_filter")
        if names is not None:
            names = names if callable(names) else [names] if isinstance(names, str) else list(names)
            options["names_filter"] = names
            for name in [names] if callable(names) else names:
                self._check_fires(name)
        single = options.get("remove_batch_dim", False)
        if single and (prompts := self.to_tokens(input).shape[0]) != 1:
            raise ConfigError(f"remove_batch_dim needs a batch of one prompt, got {prompts}")
        # Not left to HookedRootModule, which would take the heads of per-head inputs for positions.
        positions = Slice.unwrap(options.pop("pos_slice", None))
        result, cache = super().run_with_cache(input, return_type, **options)
        cache = {name: positions.apply(x, dim=self._position_axis(name) - single) for name, x in cache.items()}
        return result, ActivationCache(cache, self, has_batch_dim=not single) if return_cache_object else cache

    @staticmethod
    def _position_axis(name: str) -> int:
        return 2 if name.removesuffix("_grad").endswith(("hook_pattern", "hook_attn_scores")) else 1

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

    def tl_parameters(self) -> Parameters:
        """Weights by name, for `SVDInterpreter`."""
        return Parameters(self.named_parameters())

    def _stacked(self, name: str) -> Tensor:
        return torch.stack([getattr(block.attn, name) for block in self.blocks])

    W_Q: _Read[Tensor] = _Read(lambda self: self._stacked("W_Q"), "(n_layers, n_heads, d_model, d_head)")
    W_K: _Read[Tensor] = _Read(lambda self: self._stacked("W_K"), "(n_layers, n_heads, d_model, d_head)")
    W_V: _Read[Tensor] = _Read(lambda self: self._stacked("W_V"), "(n_layers, n_heads, d_model, d_head)")
    W_O: _Read[Tensor] = _Read(lambda self: self._stacked("W_O"), "(n_layers, n_heads, d_head, d_model)")
    b_Q: _Read[Tensor] = _Read(lambda self: self._stacked("b_Q"), "Zeros, (n_layers, n_heads, d_head)")
    b_K: _Read[Tensor] = _Read(lambda self: self._stacked("b_K"), "Zeros, (n_layers, n_heads, d_head)")
    b_V: _Read[Tensor] = _Read(lambda self: self._stacked("b_V"), "Zeros, (n_layers, n_heads, d_head)")
    b_O: _Read[Tensor] = _Read(lambda self: self._stacked("b_O"), "Zeros, (n_layers, d_model)")
    W_U: _Read[Tensor] = _Read(lambda self: self.unembed.W_U, "(d_model, n_outputs)")
    b_U: _Read[Tensor] = _Read(lambda self: self.unembed.b_U, "Zeros, (n_outputs,)")
    QK: _Read[FactoredMatrix] = _Read(
        lambda self: FactoredMatrix(self.W_Q, self.W_K.mT), "score = z_q QK z_kᵀ / attn_scale"
    )
    OV: _Read[FactoredMatrix] = _Read(
        lambda self: FactoredMatrix(self.W_V, self.W_O), "A head writes the mean of z OV over its keys"
    )
    ln_final: _Read[nn.Identity] = _Read(lambda self: nn.Identity(), "There is no final LayerNorm")

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

    def to_tokens(self, input: object, prepend_bos: bool | None = None) -> PromptTokens:
        """A `PromptLike` with the shape of tokens, (batch, positions): what patching sweeps and `detect_head` take.

        Raises:
            ConfigError: not prompts, or not of this model's sizes; `prepend_bos`, for there is no token to prepend.
        """
        if prepend_bos:
            raise ConfigError("prepend_bos must be None or False, got True: a prompt has no beginning-of-text column")
        return self._tokens(input, self.config.columns)

    def _tokens(self, input: object, width: int) -> PromptTokens:
        """The same for what is `width` coordinates wide: a prompt's columns, or a residual stream."""
        if isinstance(input, list) and input:  # one prompt, or several, in each
            return self._joined([self._tokens(part, width) for part in input])
        if isinstance(input, Prompt | PromptTokens):
            z, y_q = input.z, input.y_q
        elif isinstance(input, Tensor):
            z, y_q = input, None
        else:
            raise ConfigError(
                f"the model reads a Prompt, or its z (batch, positions, d_model), got {type(input).__name__}; it has "
                "no vocabulary, so there is no text that it could read or write"
            )
        if z.ndim != 3 or z.shape[1] < 2 or z.shape[2] != width:
            dim, outputs = self.config.dim, self.config.n_outputs
            of = f"that is dim {dim} + n_outputs {outputs}, " if width == self.config.columns else ""
            name = "d_model = " if width == self.config.d_model else ""
            raise ConfigError(
                f"the model reads z of shape (batch, positions ≥ 2, {name}{width}), {of}got {tuple(z.shape)}"
            )
        return PromptTokens(z, y_q)

    @staticmethod
    def _joined(parts: list[PromptTokens]) -> PromptTokens:
        if len({part.shape[1] for part in parts}) > 1:
            got = ", ".join(str(tuple(part.shape)) for part in parts)
            raise ConfigError(f"prompts that are run together must have equally many positions, got {got}")
        answers = [part.y_q for part in parts if part.y_q is not None]
        return PromptTokens(
            torch.cat([part.z for part in parts]), torch.cat(answers) if len(answers) == len(parts) else None
        )

    def to_str_tokens(self, input: object, prepend_bos: bool | None = None) -> list[str]:
        """Names of the positions: "#0", "#1", … for the demonstrations, and "query"; raises as `to_tokens` does."""
        return [*(f"#{i}" for i in range(self.to_tokens(input, prepend_bos).shape[1] - 1)), "query"]

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
