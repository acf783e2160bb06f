"""A model of ours in memory, by itself or as the only thing in a module."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from torch import nn

from icl_interp.formats.contents import Contents, Given
from icl_interp.formats.registry import checkpoint_format
from icl_interp.records import Run

if TYPE_CHECKING:
    from icl_interp.model import ICLTransformer


@checkpoint_format(name="live", title="an ICLTransformer")
class Live:
    """An `ICLTransformer`; what it is in may have no parameters of its own."""

    def recognises(self, contents: Contents) -> bool:
        """By its type; a look at the loaded modules spares importing TransformerLens for that."""
        return len(_models(contents.module)) == 1

    def read(self, contents: Contents, given: Given) -> Run:
        """Its weights, copied."""
        (prefix, model), *_ = _models(contents.module).items()
        contents.only(f"{prefix}{name}" for name in model.state_dict())
        return Run(model.config, model.weights(), origin=contents.origin)


def _models(module: nn.Module | None) -> dict[str, ICLTransformer]:
    """Every `ICLTransformer` in a module, by the prefix of its parameters."""
    if module is None or "icl_interp.model" not in sys.modules:
        return {}
    from icl_interp.model import ICLTransformer

    parts = module.named_modules()
    return {f"{name}." if name else "": part for name, part in parts if isinstance(part, ICLTransformer)}
