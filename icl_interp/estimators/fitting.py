"""What predictors are, and what several of them need: an answer, checks, the choice of one by its errors."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeAlias, TypeVar

from einops import einsum
from jaxtyping import Float
from torch import Tensor

from icl_interp.errors import ConfigError
from icl_interp.tasks import Prompt

Predictor: TypeAlias = Callable[[Prompt], Float[Tensor, "batch outputs"]]
P = TypeVar("P", bound=Predictor)


def answer(prompt: Prompt, w: Float[Tensor, "batch dim outputs"]) -> Float[Tensor, "batch outputs"]:
    """wᵀx_q, computed in float64, in the prompt's dtype."""
    return einsum(w.double(), prompt.x_q.double(), "b d n, b d -> b n").to(prompt.x)


def best_of(candidates: Iterable[P], prompt: Prompt) -> P:
    """The candidate of least squared error on `prompt`, the first of equals.

    Raises:
        ConfigError: prompts that are not finite.
    """
    check_finite(prompt)
    return min(candidates, key=lambda predict: (predict(prompt) - prompt.y_q).square().mean().item())


def check_finite(prompt: Prompt) -> None:
    """Raise `ConfigError` where there is NaN or infinity in `prompt`: nothing can be fitted to that."""
    for name in ("x", "y", "x_q", "y_q"):
        if bad := int((~getattr(prompt, name).isfinite()).sum()):
            raise ConfigError(f"cannot fit to prompts that are not finite: {bad} entries of {name} are NaN or infinite")


def check_one_response(name: str, outputs: int) -> None:
    """Raise `ConfigError` unless there is one response, for which alone `name` is defined."""
    if outputs != 1:
        raise ConfigError(f"{name} is defined for one response, these prompts have {outputs}")
