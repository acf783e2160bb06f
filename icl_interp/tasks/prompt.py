"""A batch of prompts: what every task draws and every model reads."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from icl_interp.config import check_count
from icl_interp.errors import ConfigError


@dataclass(frozen=True, eq=False)
class Prompt:
    """A batch of prompts: demonstrations, query, and the query's response.

    Where TransformerLens takes tokens it takes a batch of prompts too: `shape` and `ndim` are where its sweeps over
    positions look.

    Raises:
        ConfigError: other than four tensors, or shapes that do not belong together.
    """

    x: Float[Tensor, "batch length dim"]
    y: Float[Tensor, "batch length outputs"]
    x_q: Float[Tensor, "batch dim"]
    y_q: Float[Tensor, "batch outputs"]

    ndim: ClassVar[int] = 2
    """Axes, as TransformerLens counts those of tokens: batch and positions."""

    def __post_init__(self) -> None:
        parts = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        if not all(isinstance(part, Tensor) for part in parts.values()):
            kinds = ", ".join(f"{name} {type(part).__name__}" for name, part in parts.items())
            raise ConfigError(f"a prompt is made of four tensors, got {kinds}")
        fits = self.x.ndim == self.y.ndim == 3 and self.x.shape[:2] == self.y.shape[:2] and self.x.shape[1] > 0
        if not (fits and self.x_q.shape == self.x[:, 0].shape and self.y_q.shape == self.y[:, 0].shape):
            shapes = ", ".join(f"{name} {tuple(part.shape)}" for name, part in parts.items())
            raise ConfigError(
                "a prompt needs x (batch, length, dim), y (batch, length, outputs), x_q (batch, dim) and y_q (batch, "
                f"outputs), with a length of at least 1, got {shapes}"
            )

    @property
    def length(self) -> int:
        """L, the number of demonstrations."""
        return self.x.shape[1]

    @property
    def shape(self) -> torch.Size:
        """(batch, positions), with L + 1 positions: where TransformerLens's position sweeps look."""
        return torch.Size((len(self), self.length + 1))

    @property
    def demonstrations(self) -> Float[Tensor, "batch length d_model"]:
        """The columns (x_ℓ, y_ℓ) that attention reads."""
        return torch.cat([self.x, self.y], dim=-1)

    @property
    def query(self) -> Float[Tensor, "batch d_model"]:
        """The column (x_q, 0) that asks."""
        return torch.cat([self.x_q, torch.zeros_like(self.y_q)], dim=-1)

    @property
    def z(self) -> Float[Tensor, "batch positions d_model"]:
        """The residual stream at layer 0: L demonstrations, then the query with zeros for its response."""
        return torch.cat([self.demonstrations, self.query[:, None]], dim=1)

    def beginning(self, length: int) -> Prompt:
        """The same questions, with the first `length` demonstrations only.

        Raises:
            ConfigError: fewer than one of them, or more than there are.
        """
        check_count("length", length)
        if length > self.length:
            raise ConfigError(f"these prompts have {self.length} demonstrations, {length} were asked for")
        return Prompt(self.x[:, :length], self.y[:, :length], self.x_q, self.y_q)

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Prompt:
        """The same prompts on another device or in another dtype."""
        return Prompt(*(t.to(device=device, dtype=dtype) for t in (self.x, self.y, self.x_q, self.y_q)))

    def cpu(self) -> Prompt:
        """The same prompts on the CPU."""
        return self.to("cpu")

    def __len__(self) -> int:
        return self.x.shape[0]

    def __getitem__(self, index: slice | Tensor) -> Prompt:
        return Prompt(self.x[index], self.y[index], self.x_q[index], self.y_q[index])

    def __repr__(self) -> str:
        from icl_interp_reports import prompt_in_a_line

        return prompt_in_a_line(self)

    def __str__(self) -> str:
        from icl_interp_reports import prompt_text

        return prompt_text(self)

    def _repr_html_(self) -> str:
        from icl_interp_reports import prompt_in_notebook

        return prompt_in_notebook(self)
