"""A `Run`, or many, to and from disk; and checkpoints of other makes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from icl_interp.formats.contents import Contents, Given
from icl_interp.formats.native import save_run
from icl_interp.formats.opening import load_run
from icl_interp.formats.population import load_runs, save_runs
from icl_interp.formats.registry import CheckpointFormat, checkpoint_format

if TYPE_CHECKING:
    from icl_interp.model import ICLTransformer

__all__ = [
    "CheckpointFormat",
    "Contents",
    "Given",
    "checkpoint_format",
    "load",
    "load_run",
    "load_runs",
    "save_run",
    "save_runs",
]


def load(path: str | Path) -> ICLTransformer:
    """The model in a checkpoint, ready to hook: `Run.load(path).model()`.

    Raises:
        CheckpointError: not a checkpoint, or a damaged one.
    """
    return load_run(path).model()
