"""Something else in the place of some heads: a context manager made of hooks, which measures its own effect."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from icl_interp.errors import ConfigError
from icl_interp.estimates import Estimate, mean_of
from icl_interp.tasks import Prompt

if TYPE_CHECKING:
    from icl_interp.lens import Hook
    from icl_interp.model import ICLTransformer


Head = int | str  # a number in a one-layer model, or TransformerLens's label, "L0H1", in any
HeadSet = Head | Sequence[Head] | np.ndarray

CHUNK_NUMBERS = 2_000_000  # of one attention pattern, held at once


class Layer(NamedTuple):
    """The chosen heads of one layer, and where they stand among all that were chosen."""

    layer: int
    heads: list[int]
    rows: list[int]


@dataclass(frozen=True, eq=False)
class Intervention:
    """Something else in the place of some heads of a model; made by the functions of this module.

    It is a context manager, whose contexts may be nested (the inner one has the last word), and measures its own
    effect.

    Args:
        model: whose heads.
        heads: which of them, as (layer, head).
        what: what it is called.
    """

    model: ICLTransformer
    heads: tuple[tuple[int, int], ...]
    what: str
    _applied_at: Callable[[Layer, int], AbstractContextManager[object]]  # given how many prompts were run before
    _open: list[ExitStack] = field(default_factory=list)

    def __enter__(self) -> ICLTransformer:
        self._open.append(self._applied())
        return self.model

    def __exit__(self, *exception: object) -> None:
        self._open.pop().close()

    def __repr__(self) -> str:
        return f"<{self.what} of {', '.join(f'L{layer}H{head}' for layer, head in self.heads)}>"

    @torch.no_grad()
    def risk_change(self, prompts: Prompt | Iterable[Prompt]) -> Estimate:
        """Mean squared error with the intervention minus without, on the same prompts, with its paired 95 % interval.

        Positive where the model does worse for it.  Errors are averaged over responses; other hooks on the model stay
        on, with and without.

        Args:
            prompts: independent prompts, all at once or in pieces; they are run a few at a time.

        Raises:
            ConfigError: no prompts; for a resampling, more of them than its reference has.
        """
        changes: list[np.ndarray] = []
        done = 0
        for prompt in pieces(self.model, prompts):
            before = self._squared_errors(prompt)
            with self._applied(done):
                changes.append((self._squared_errors(prompt) - before).cpu().numpy())
            done += len(prompt)
        if not done:
            raise ConfigError("a change in risk needs prompts to be measured on, got none")
        return mean_of(np.concatenate(changes))

    def _applied(self, done: int = 0) -> ExitStack:
        with ExitStack() as stack:
            for layer in by_layer(self.heads):
                stack.enter_context(self._applied_at(layer, done))
            return stack.pop_all()

    def _squared_errors(self, prompt: Prompt) -> Float[Tensor, "batch"]:
        prediction = self.model.predict(prompt).double()
        return (prediction - prompt.y_q.to(prediction)).square().mean(-1)


def pieces(model: ICLTransformer, prompts: Prompt | Iterable[Prompt]) -> Iterator[Prompt]:
    """The same prompts, in pieces that a full pass has room for."""
    for prompt in [prompts] if isinstance(prompts, Prompt) else prompts:
        size = max(1, CHUNK_NUMBERS // (model.config.n_heads * (prompt.length + 1) ** 2))
        yield from (prompt[start : start + size] for start in range(0, len(prompt), size))


def chosen_heads(model: object, heads: HeadSet | None) -> tuple[tuple[int, int], ...]:
    """The (layer, head) of each head of a model that is named; of all where None is.

    Raises:
        ConfigError: not a model; heads that it does not have, none, or one twice.
    """
    from icl_interp.model import ICLTransformer

    if not isinstance(model, ICLTransformer):
        raise ConfigError(f"interventions act on an ICLTransformer, such as run.model(), got a {type(model).__name__}")
    named = model.all_head_labels if heads is None else heads
    return select_heads(named, model.config.n_layers, model.config.n_heads)


def select_heads(heads: HeadSet, n_layers: int, n_heads: int) -> tuple[tuple[int, int], ...]:
    """The same for a model of these sizes."""
    labels = {f"L{layer}H{head}": (layer, head) for layer in range(n_layers) for head in range(n_heads)}
    numbers = dict(enumerate(labels.values())) if n_layers == 1 else {}

    def place(head: object) -> tuple[int, int]:
        found = labels.get(head) if isinstance(head, str) else None
        if isinstance(head, int | np.integer) and not isinstance(head, bool):
            found = numbers.get(int(head))
        if found is None:
            also = f", or their numbers, 0 to {n_heads - 1}" if numbers else ""
            raise ConfigError(f"the heads are L0H0 to L{n_layers - 1}H{n_heads - 1}{also}, got {head!r}")
        return found

    several = isinstance(heads, list | tuple | range | np.ndarray)
    chosen = tuple(place(head) for head in heads) if several else (place(heads),)
    if not chosen or len(set(chosen)) < len(chosen):
        raise ConfigError(f"name at least one head, and each once, got {heads!r}")
    return chosen


def by_layer(chosen: tuple[tuple[int, int], ...]) -> list[Layer]:
    """The same heads, layer by layer."""
    layers: dict[int, Layer] = {}
    for row, (layer, head) in enumerate(chosen):
        at = layers.setdefault(layer, Layer(layer, [], []))
        at.heads.append(head)
        at.rows.append(row)
    return list(layers.values())


def result_hook(at: Layer, instead: Callable[[Tensor], Tensor]) -> Hook:
    """A hook that writes `instead(results)` for what the heads add."""

    def write(result: Tensor, hook: object) -> Tensor:
        return result.index_copy(2, torch.tensor(at.heads, device=result.device), instead(result[:, :, at.heads]))

    return f"blocks.{at.layer}.attn.hook_result", write
