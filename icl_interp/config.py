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
    """Attention-only transformer on a prompt's columns, without biases or positions (arXiv 2503.12734, section 2).

    The residual stream is the prompt's columns themselves, (x, y), and the prediction is the query's y, unless one of
    the last four options says otherwise; deeper models need them (arXiv 2408.04532).

    Args:
        dim: d, the number of covariates.
        n_outputs: N, the number of responses.
        n_heads: heads in each layer.
        n_layers: layers.
        d_head: width of a head; None means d_model, as in the paper.
        mask: "demonstrations": every position attends to all L demonstrations; "strict_causal": to the demonstrations
            before it.  The query sees all L, and never itself, under both; so with one layer they agree at the query.
        attn_scale: divisor of the scores; None means √d_model, as published.
        activation: how scores become weights: "softmax", "affine", "square", "tanh", "linear", or one that was
            registered (see `icl_interp.activations`).
        activation_scale: C of the activation; 1 for softmax, whose KQ takes it up.
        scratch: further coordinates of the residual stream, (x, y, scratch), zero where it begins: room to work in.
        read_in: width of the residual stream that a learned matrix W_E takes (x, y) to; None for (x, y) as it is.
        read_out: whether the prediction is read by a learned matrix W_U, of all coordinates.
        layer_norm: whether each layer reads the residual stream normalised (LayerNorm before attention; none at the
            end).

    Raises:
        ConfigError: a size below one, an unknown mask or activation, a scale that is not positive; a read-in with
            scratch, or without a read-out.
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
    scratch: int = 0
    read_in: int | None = None
    read_out: bool = False
    layer_norm: bool = False

    def __post_init__(self) -> None:
        for name in ("dim", "n_outputs", "n_heads", "n_layers", "d_head", "read_in"):
            if not (name in ("d_head", "read_in") and getattr(self, name) is None):
                check_count(name, getattr(self, name))
        check_count("scratch", self.scratch, minimum=0)
        for name in ("read_out", "layer_norm"):
            check_flag(name, getattr(self, name))
        if self.read_in is not None and (self.scratch or not self.read_out):
            raise ConfigError(
                f"a stream of width read_in={self.read_in} has room of its own, and no coordinates that are the "
                f"responses: it takes scratch=0 and read_out=True, got scratch={self.scratch}, "
                f"read_out={self.read_out}"
            )
        check_choice("mask", self.mask, get_args(Mask))
        activation(self.activation)
        check_positive("activation_scale", self.activation_scale)
        if self.activation == "softmax" and self.activation_scale != 1:
            raise ConfigError(f"softmax has no activation_scale (its KQ takes it up), got {self.activation_scale!r}")
        if self.attn_scale is not None:
            check_positive("attn_scale", self.attn_scale)

    @property
    def d_model(self) -> int:
        """D, the width of the residual stream: d + N + scratch, or `read_in`."""
        return self.columns + self.scratch if self.read_in is None else self.read_in

    @property
    def columns(self) -> int:
        """d + N, numbers in a column of a prompt."""
        return self.dim + self.n_outputs

    @property
    def plain(self) -> bool:
        """Whether this is one layer of heads on a prompt's own columns, as in arXiv 2503.12734."""
        return self.n_layers == 1 and not self.extras

    @property
    def extras(self) -> tuple[str, ...]:
        """Which of the options are used that make the residual stream more than the prompt's columns."""
        used = {"scratch": self.scratch > 0, "read_in": self.read_in is not None}
        used |= {"read_out": self.read_out, "layer_norm": self.layer_norm}
        return tuple(name for name, is_used in used.items() if is_used)

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
