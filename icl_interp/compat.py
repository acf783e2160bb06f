"""What TransformerLens's tools read off a model as data: its `cfg`, prompts in the place of tokens, what is not there.

Free of TransformerLens, which takes seconds to import; `icl_interp.lens` is the part that needs it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NoReturn

import torch
from jaxtyping import Float
from torch import Tensor

from icl_interp.tasks import Prompt

# Hook points that fire only while a switch of `cfg` is on.
SWITCHES: dict[str, str] = {
    "hook_q_input": "use_split_qkv_input",
    "hook_k_input": "use_split_qkv_input",
    "hook_v_input": "use_split_qkv_input",
    "hook_attn_in": "use_attn_in",
    "hook_mlp_in": "use_hook_mlp_in",
}

# What a HookedTransformer has and this model does not: why, and what to use instead.
ABSENT: dict[str, tuple[str, ...]] = {
    "it reads numbers and has no vocabulary; model.predict(prompt) answers a query, and model.to_str_tokens(prompt) "
    "names the positions": (
        *("generate", "generate_stream", "tokenizer", "set_tokenizer", "get_token_position", "sample_datapoint"),
        *("to_string", "to_single_str_token", "load_sample_training_dataset"),
    ),
    "a prompt's columns are the residual stream as they are; read prompt.z, or the activation hook_embed": (
        *("embed", "pos_embed", "W_E", "W_pos", "W_E_pos", "input_to_embed"),
    ),
    "there is no MLP: a block is attention alone, with the weights W_Q, W_K, W_V and W_O": (
        *("mlp", "W_in", "W_out", "W_gate", "b_in", "b_out"),
    ),
}


def say_if_absent(owner: object, name: str, error: AttributeError) -> NoReturn:
    """Raise the `AttributeError` of a name that `owner` lacks, with the reason where there is one to give."""
    for reason, names in ABSENT.items():
        if name in names:
            raise AttributeError(f"{type(owner).__name__} has no {name!r}: {reason}") from None
    raise error


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

    def __getitem__(self, index: slice | Tensor) -> PromptTokens:
        return PromptTokens(self.z[index], None if self.y_q is None else self.y_q[index])

    def __getattr__(self, name: str) -> NoReturn:
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
