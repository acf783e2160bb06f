"""The registry of formats: each says whether it recognises what a checkpoint holds, and makes a `Run` of it.

A format of your own is a class in a module of yours, declared with `@checkpoint_format` and found through an entry
point of the group `icl_interp.formats`, whose value is the module:

    @checkpoint_format(name="mine", title="a checkpoint of my code")
    class Mine:
        def recognises(self, contents: Contents) -> bool: ...
        def read(self, contents: Contents, given: Given) -> Run: ...
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from importlib import import_module
from importlib.metadata import entry_points
from typing import Protocol, TypeVar

from icl_interp.errors import ConfigError
from icl_interp.formats.contents import Contents, Given
from icl_interp.records import Run

ENTRY_POINTS = "icl_interp.formats"
BUILT_IN = ("native", "live", "published", "hooked_transformer", "multihead", "arrays")  # asked in this order


class CheckpointFormat(Protocol):
    """One layout of checkpoints.  Raise `CheckpointError` for what is damaged; its reader adds file and format."""

    def recognises(self, contents: Contents) -> bool:
        """Whether this is one, judged by names alone."""
        ...

    def read(self, contents: Contents, given: Given) -> Run:
        """The run; `Run.assumed` says, one sentence each, what the file and `given` did not."""
        ...


F = TypeVar("F", bound=CheckpointFormat)
_REGISTRY: dict[str, tuple[str, CheckpointFormat]] = {}


def checkpoint_format(*, name: str, title: str) -> Callable[[type[F]], type[F]]:
    """Register a format; declaring it again replaces it.

    Args:
        name: unique, snake_case.
        title: what a checkpoint of it is, as in "recognised as …".

    Raises:
        ConfigError: no title.
    """

    if not name.isidentifier() or not title.strip():
        raise ConfigError(f"a format needs a snake_case name and a title, got {name!r} and {title!r}")

    def register(kind: type[F]) -> type[F]:
        _REGISTRY[name] = title, kind()
        return kind

    return register


def known_formats() -> dict[str, tuple[str, CheckpointFormat]]:
    """All formats by name, with their titles: the built-in ones first, then those of installed packages."""
    for module in BUILT_IN:
        import_module(f"icl_interp.formats.{module}")
    for entry in sorted(entry_points(group=ENTRY_POINTS), key=lambda entry: entry.name):
        try:
            entry.load()
        except Exception as error:  # somebody's package must not keep others' checkpoints shut
            warnings.warn(f"the checkpoint format {entry.name!r} could not be loaded: {error}", stacklevel=2)
    first = {name: _REGISTRY[name] for name in BUILT_IN}
    return first | _REGISTRY
