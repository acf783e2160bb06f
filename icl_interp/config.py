"""What a model is made of, as data: sizes, mask, scale.

Free of torch and TransformerLens on purpose: a training machine needs the configuration, not the hooks.
"""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from typing import Literal, get_args

from icl_interp.activations import activation
from icl_interp.errors import ConfigError

Mask = Literal["demonstrations", "strict_causal"]


@dataclass(frozen=True)
class ModelConfig:
    """Attention-only transformer on a prompt's columns, without LayerNorm, biases or positions (arXiv 2503.12734, 2).

    Args:
        dim: d, the number of covariates.
        n_outputs: N, the number of responses; the residual stream has d_model = d + N coordinates.
        n_heads: heads in each layer.
        n_layers: layers.
        d_head: width of a head; None means d_model, as in the paper.
        mask: "demonstrations": every position attends to all L demonstrations; "strict_causal": to the demonstrations
            before it.  The query sees all L, and never itself, under both; so with one layer they agree at the query.
        attn_scale: divisor of the scores; None means √d_model, as published.
        activation: how scores become weights: "softmax", "affine", "square", "tanh", "linear", or one that was
            registered (see `icl_interp.activations`).
        activation_scale: C of the activation; 1 for softmax, whose KQ takes it up.

    Raises:
        ConfigError: a size below one, an unknown mask or activation, a scale that is not positive.
    """

    dim: int
    n_outputs: int = 1
    n_heads: int = 2
    n_layers: int = 1
    d_head: int | None = None
    mask: Mask = "demonstrations"
    attn_scale: float | None = None
    activation: str = "softmax"
    activation_scale: float = 1.0

    def __post_init__(self) -> None:
        for name in ("dim", "n_outputs", "n_heads", "n_layers", "d_head"):
            if not (name == "d_head" and self.d_head is None):
                check_count(name, getattr(self, name))
        check_choice("mask", self.mask, get_args(Mask))
        activation(self.activation)
        check_positive("activation_scale", self.activation_scale)
        if self.activation == "softmax" and self.activation_scale != 1:
            raise ConfigError(f"softmax has no activation_scale (its KQ takes it up), got {self.activation_scale!r}")
        if self.attn_scale is not None:
            check_positive("attn_scale", self.attn_scale)

    @property
    def d_model(self) -> int:
        """D = d + N."""
        return self.dim + self.n_outputs

    @property
    def head_width(self) -> int:
        """`d_head`, with its default filled in."""
        return self.d_head if self.d_head is not None else self.d_model

    @property
    def score_scale(self) -> float:
        """`attn_scale`, with its default filled in."""
        return self.attn_scale if self.attn_scale is not None else math.sqrt(self.d_model)


def check_count(name: str, value: object, minimum: int = 1) -> None:
    """Raise `ConfigError` unless `value` is a whole number ≥ `minimum`."""
    if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
        raise ConfigError(f"{name} must be a whole number ≥ {minimum}, got {_shown(value)}")


def check_positive(name: str, value: object, *, zero: bool = False) -> None:
    """Raise `ConfigError` unless `value` is a finite number > 0 (≥ 0 with `zero`)."""
    number = value if isinstance(value, int | float) and not isinstance(value, bool) else -1
    if not 0 <= number <= sys.float_info.max or (number == 0 and not zero):
        raise ConfigError(f"{name} must be a finite number {'≥' if zero else '>'} 0, got {_shown(value)}")


def check_flag(name: str, value: object) -> None:
    """Raise `ConfigError` unless `value` is True or False."""
    if not isinstance(value, bool):
        raise ConfigError(f"{name} must be True or False, got {value!r}")


def check_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    """Raise `ConfigError` unless `value` is one of `choices`."""
    if not isinstance(value, str) or value not in choices:
        raise ConfigError(f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}")


def _shown(value: object) -> str:
    # numpy's and torch's numbers look right but do not go into a file: say what would.
    return repr(value) + ("; pass a plain number, its .item()" if hasattr(value, "item") else "")
