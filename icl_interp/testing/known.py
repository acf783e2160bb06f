"""Families of checkpoints of which something is known, to hold verdicts against.

A family says in one sentence what its members are, which claims are true of every one of them and which are false.
A claim is named "probe.claim"; of a claim that is in neither list the family says nothing.  The members of a family are
decided by their seeds, so that a smaller draw is a part of a larger one.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from icl_interp.errors import ConfigError
from icl_interp.records import Run
from icl_interp.tasks import Task


@dataclass(frozen=True, eq=False)
class Known:
    """A checkpoint, and what is known of it.

    Args:
        run: the checkpoint.
        size: of its perturbation, relative to what is perturbed; 0 where there is none.
        numbers: the truth of what probes estimate, by its path in their results: "kernel_fit.eta", "kernel_fit.mu.0".
        task: the distribution that it is to be read under; None means the run's own.
        roles: of its heads, where they are known.
        mode: how its heads are shared by tasks, where that is known.
    """

    run: Run
    size: float = 0.0
    numbers: Mapping[str, float] = field(default_factory=dict)
    task: Task | None = None
    roles: tuple[str, ...] | None = None
    mode: str | None = None


Members = Callable[[Sequence[int], Path | None], Iterator[Known]]


@dataclass(frozen=True)
class Family:
    """Checkpoints that are alike in what is true of them.

    Args:
        name: snake_case, unique.
        title: what its members are, in one sentence.
        holds: claims that are true of every member.
        violates: claims that are false of every member.
        trained: whether members have to be trained, a population at a time.
        thorough: whether the probes of all its claims judge it, or, where it violates any, only those of these.
        members: the members of these seeds, in their order; what is trained is kept in a folder, if there is one, and
            found there again.
    """

    name: str
    title: str
    holds: tuple[str, ...]
    violates: tuple[str, ...]
    trained: bool
    thorough: bool
    members: Members = field(repr=False, compare=False)

    def __post_init__(self) -> None:
        if both := set(self.holds) & set(self.violates):
            raise ConfigError(f"the family {self.name!r} has claims both true and false: {sorted(both)}")

    @property
    def probes(self) -> tuple[str, ...]:
        """The probes that judge its members: of the claims it violates, or, if `thorough` or there are none, of all."""
        aims = self.violates if self.violates and not self.thorough else self.holds + self.violates
        return tuple(dict.fromkeys(claim.partition(".")[0] for claim in aims))

    @property
    def claims(self) -> tuple[str, ...]:
        """The claims of those probes of which the family says something."""
        return tuple(claim for claim in self.holds + self.violates if claim.partition(".")[0] in self.probes)


_FAMILIES: dict[str, Family] = {}


def formula_family(
    name: str, title: str, *, holds: Sequence[str] = (), violates: Sequence[str] = (), thorough: bool = False
) -> Callable[[Callable[[int], Known]], Callable[[int], Known]]:
    """Declare a function of a seed, which builds one checkpoint by formula, as a family."""

    def register(build: Callable[[int], Known]) -> Callable[[int], Known]:
        _register(
            Family(name, title, tuple(holds), tuple(violates), False, thorough, lambda seeds, _: map(build, seeds))
        )
        return build

    return register


def trained_family(
    name: str, title: str, *, holds: Sequence[str] = (), violates: Sequence[str] = ()
) -> Callable[[Members], Members]:
    """Declare a function of several seeds and a folder, which trains a population, as a family."""

    def register(train: Members) -> Members:
        _register(Family(name, title, tuple(holds), tuple(violates), True, False, train))
        return train

    return register


def known_families() -> Mapping[str, Family]:
    """All families of this library, by name."""
    from icl_interp.testing import families as modules

    for module in pkgutil.iter_modules(modules.__path__):
        importlib.import_module(f"{modules.__name__}.{module.name}")
    return dict(_FAMILIES)


def _register(family: Family) -> None:
    if _FAMILIES.get(family.name, family) != family:
        raise ConfigError(f"there is a family {family.name!r} already")
    _FAMILIES[family.name] = family
