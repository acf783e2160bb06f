"""The plugin door: how a probe is declared and found.

A probe answers one question about a checkpoint.  `run` computes, `blocks` says how to show it, `judge` what to
conclude; none of them draws.  `@probe` is the only way in, from three places: an entry point of the group
`icl_interp.probes` (its value is a module), a file given by path, or a module that the user imported.
"""

from __future__ import annotations

import importlib.util
import re
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import entry_points
from pathlib import Path
from typing import Never, Protocol, TypeVar, cast, runtime_checkable

from icl_interp.config import ModelConfig
from icl_interp.errors import ConfigError
from icl_interp.probing.blocks import Block
from icl_interp.probing.context import KINDS, Context, Need, kind_of_model
from icl_interp.probing.verdicts import Verdict

R = TypeVar("R")
ENTRY_POINTS = "icl_interp.probes"
_FILE_MODULE = "icl_interp_probe_file_"


@runtime_checkable
class Probe(Protocol[R]):
    """One question.  R is a frozen dataclass that goes to JSON and back."""

    name: str
    title: str
    needs: Need
    uses: Need
    cost: str

    def run(self, context: Context) -> R:
        """Measure; raise `NotApplicable` where the question makes no sense."""
        ...

    def blocks(self, result: R) -> Sequence[Block]:
        """How the finding is shown."""
        ...

    def judge(self, result: R) -> Sequence[Verdict]:
        """What is concluded about this checkpoint."""
        ...


class AnyProbe(Protocol):
    """Any probe, whatever it finds, as a type checker sees it: `@probe` adds name and needs only at run time."""

    def run(self, context: Context, /) -> object:
        """See `Probe`."""
        ...

    def blocks(self, result: Never, /) -> Sequence[Block]:
        """See `Probe`."""
        ...

    def judge(self, result: Never, /) -> Sequence[Verdict]:
        """See `Probe`."""
        ...


A = TypeVar("A", bound=AnyProbe)
_REGISTRY: dict[str, Probe[object]] = {}


def probe(
    *, name: str, title: str, needs: Need, uses: Need = Need.NONE, cost: str = "seconds"
) -> Callable[[type[A]], type[A]]:
    """Register a class as a probe.

    Args:
        name: snake_case, unique.
        title: the question, for people.
        needs: without these the probe is skipped.
        uses: looked at where they are there.
        cost: what a run costs, in words.

    Raises:
        ConfigError: a name that is taken by another probe or malformed, no title, needs that are no `Need`, or a class
            without run, blocks and judge.
    """

    def register(kind: type[A]) -> type[A]:
        if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
            raise ConfigError(f"a probe's name must be snake_case, got {name!r}")
        if not title.strip():
            raise ConfigError(f"the probe {name!r} needs a title: its question, for people")
        if not (isinstance(needs, Need) and isinstance(uses, Need)):
            raise ConfigError(f"needs and uses of {name!r} must be made of Need, got {needs!r} and {uses!r}")
        for method in ("run", "blocks", "judge"):
            if not callable(getattr(kind, method, None)):
                raise ConfigError(f"the probe {name!r} lacks {method}()")
        taken = _REGISTRY.get(name)
        if taken is not None and _home(type(taken)) != _home(kind):
            raise ConfigError(f"the name {name!r} is taken by {_home(type(taken))}")
        for word, value in (("name", name), ("title", title), ("needs", needs), ("uses", uses), ("cost", cost)):
            setattr(kind, word, value)
        _REGISTRY[name] = cast("Probe[object]", kind())
        return kind

    return register


def discover() -> tuple[dict[str, Probe[object]], dict[str, BaseException]]:
    """All probes by name, after loading every entry point; and the entry points that failed to load, with why."""
    broken: dict[str, BaseException] = {}
    for entry in sorted(entry_points(group=ENTRY_POINTS), key=lambda e: (e.name != "builtin", e.name)):
        try:
            entry.load()
        except (Exception, SystemExit) as error:  # a broken plugin is the plugin's, not the analysis', failure
            broken[f"{entry.name} ({entry.value})"] = error
    return dict(_REGISTRY), broken


def fitting(model: ModelConfig) -> list[Probe[object]]:
    """The installed probes, but for those about another kind of model."""
    kind = kind_of_model(model)
    return [probe for probe in discover()[0].values() if probe.needs & KINDS in kind]


def load_file(path: str | Path) -> list[str]:
    """Run a Python file that declares probes; the names of those it declares.  Loaded again, it replaces them.

    Raises:
        ConfigError: no such file, an error in it, no probe in it, or a probe whose name an installed one has.
    """
    path = Path(path).resolve()
    if not path.is_file():
        raise ConfigError(f"no probe file at {path}")
    discover()  # so that installed probes have their names first
    module_name = f"{_FILE_MODULE}{path.stem}_{abs(hash(path)):x}"
    for name in _declared_in(module_name):
        del _REGISTRY[name]
    spec = importlib.util.spec_from_file_location(module_name, path)
    if spec is None or spec.loader is None:
        raise ConfigError(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module  # dataclasses look their module up
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[module_name]
        raise ConfigError(f"{path} could not be loaded: {type(error).__name__}: {error}") from error
    names = _declared_in(module_name)
    if not names:
        raise ConfigError(f"{path} declares no probe: decorate a class with @icl_interp.probes.probe(...)")
    return names


def is_probe_file(module: str) -> bool:
    """Whether `load_file` made this module."""
    return module.startswith(_FILE_MODULE)


def _declared_in(module: str) -> list[str]:
    return [name for name, known in _REGISTRY.items() if type(known).__module__ == module]


def _home(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"
