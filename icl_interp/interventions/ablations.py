"""Taking away what heads say of this prompt: all of it, or what is more than a mean, or in exchange for another's."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from icl_interp.errors import ConfigError
from icl_interp.interventions.intervention import (
    HeadSet,
    Intervention,
    Layer,
    by_layer,
    chosen_heads,
    pieces,
    result_hook,
)
from icl_interp.tasks import Prompt

if TYPE_CHECKING:
    from icl_interp.model import ICLTransformer


def zero_ablation(model: ICLTransformer, heads: HeadSet) -> Intervention:
    """The heads add nothing.

    Args:
        model: whose heads; other hooks on it stay.
        heads: numbers (of a one-layer model) or labels, such as "L0H1".

    Raises:
        ConfigError: heads that the model does not have, none, or one twice.
    """
    return Intervention(
        model,
        chosen_heads(model, heads),
        "zero ablation",
        lambda at, _: model.hooks([result_hook(at, torch.zeros_like)]),
    )


def mean_ablation(model: ICLTransformer, heads: HeadSet, reference: Prompt) -> Intervention:
    """The heads add what they add on average over `reference`, at each position, whatever the prompt is.

    Args:
        model: whose heads; `reference` is run on it once, now, with the hooks it has now.
        heads: numbers (of a one-layer model) or labels.
        reference: prompts of the length that will be looked at.  The mean over n of them is off by 1/n of the variance
            of what the heads add, and so is the risk.

    Raises:
        ConfigError: heads that are not there; later, prompts of another length than the reference's.
    """
    chosen = chosen_heads(model, heads)
    means = {layer: results.mean(0, keepdim=True) for layer, results in _results(model, chosen, reference).items()}

    def applied(at: Layer, done: int) -> AbstractContextManager[object]:
        return model.hooks([result_hook(at, lambda results: _fitting(means[at.layer], results).expand_as(results))])

    return Intervention(model, chosen, "mean ablation", applied)


def resample_ablation(model: ICLTransformer, heads: HeadSet, reference: Prompt, *, seed: int = 0) -> Intervention:
    """The heads add what they add to another prompt: one of `reference` drawn at random, the same one for all of them.

    Args:
        model: whose heads; `reference` is run on it once, now, with the hooks it has now.
        heads: numbers (of a one-layer model) or labels.
        reference: prompts of the length that will be looked at.  They are drawn without replacement: as many are needed
            as are run at once, and as `risk_change` is given.
        seed: of the draw.

    Raises:
        ConfigError: heads that are not there; later, more prompts than the reference has, or of another length.
    """
    chosen = chosen_heads(model, heads)
    stored = _results(model, chosen, reference)
    order = torch.randperm(len(reference), generator=torch.Generator().manual_seed(seed))

    def applied(at: Layer, done: int) -> AbstractContextManager[object]:
        def another(results: Tensor) -> Tensor:
            until = done + len(results)
            if until > len(order):
                raise ConfigError(
                    f"each prompt needs a reference prompt of its own, got a reference of {len(order)} for {until}"
                )
            return _fitting(stored[at.layer][order[done:until].to(results.device)], results)

        return model.hooks([result_hook(at, another)])

    return Intervention(model, chosen, "resample ablation", applied)


@torch.no_grad()
def _results(
    model: ICLTransformer, chosen: tuple[tuple[int, int], ...], reference: Prompt
) -> dict[int, Float[Tensor, "batch positions heads d_model"]]:
    """What the chosen heads add on reference prompts, by layer."""
    if not isinstance(reference, Prompt) or not len(reference):
        raise ConfigError(f"reference must be a Prompt, with at least one prompt in it, got {reference!r}")
    layers = by_layer(chosen)
    names = [f"blocks.{at.layer}.attn.hook_result" for at in layers]
    caches = [model.run_with_cache(piece, names_filter=names)[1] for piece in pieces(model, reference)]
    return {at.layer: torch.cat([cache["result", at.layer][:, :, at.heads] for cache in caches]) for at in layers}


def _fitting(stored: Tensor, results: Tensor) -> Tensor:
    if stored.shape[1] != results.shape[1]:
        raise ConfigError(
            f"the reference has {stored.shape[1] - 1} demonstrations and these prompts {results.shape[1] - 1}: what "
            "heads add is replaced position by position, so they must be equally many"
        )
    return stored.to(results)
