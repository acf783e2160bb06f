"""A `Run`, or many, to and from disk."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from icl_interp.formats.native import load_run, save_run
from icl_interp.formats.population import load_runs, save_runs

if TYPE_CHECKING:
    from icl_interp.model import ICLTransformer

__all__ = ["load", "load_run", "load_runs", "save_run", "save_runs"]


def load(path: str | Path) -> ICLTransformer:
    """The model in a run's folder, ready to hook: `Run.load(path).model()`.

    Raises:
        CheckpointError: not a run, or a damaged one.
    """
    return load_run(path).model()
