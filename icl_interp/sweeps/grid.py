"""Which runs a sweep has: every combination of the parameters given, each with every seed."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from icl_interp.config import ModelConfig, check_count
from icl_interp.errors import ConfigError
from icl_interp.records import TrainConfig
from icl_interp.serialization import dumps, to_data
from icl_interp.tasks import LinearRegression, Task

MAIN = LinearRegression(dim=5, length=40, noise_var=0.1)  # the main setting of arXiv 2503.12734

Grid = Mapping[str, object]


@dataclass(frozen=True, eq=False)
class Cell:
    """One run of a sweep."""

    config: TrainConfig

    @cached_property
    def key(self) -> str:
        """Names it in the data set, and in the folder of runs: a digest of its config, the same on every machine."""
        return hashlib.sha256(dumps(to_data(self.config), indent=None).encode()).hexdigest()[:16]

    @property
    def parameters(self) -> dict[str, str | bool | int | float | None]:
        """Every parameter of the run, by name: numbers, words and flags as they are, what is larger as JSON."""
        config, model, task = self.config, self.config.model, self.config.task
        named: dict[str, str | bool | int | float | None] = {"task": type(task).__name__}
        for part in (task, model, config):
            for name, value in _fields(part).items():
                if name not in ("task", "model"):
                    plain = value is None or isinstance(value, str | bool | int | float)
                    named[name] = value if plain else dumps(to_data(value), indent=None)
        return named


def cells(grid: Grid, seeds: int | Sequence[int], task: Task = MAIN) -> list[Cell]:
    """Every combination of the grid's values, with every seed.

    Args:
        grid: values by name: fields of the task, of `ModelConfig` or of `TrainConfig`, or "task"; a list of them, or
            one for all.
        seeds: so many from 0 on, or these.
        task: whose fields are varied.

    Raises:
        ConfigError: a name that is no field, a list without values, a combination that cannot be.
    """
    chosen = range(seeds) if isinstance(seeds, int) and not isinstance(seeds, bool) else list(_listed("seeds", seeds))
    if not len(chosen):
        raise ConfigError("a sweep needs a seed at least")
    values = {name: _listed(name, given) for name, given in grid.items()}
    combined = [dict(zip(values, each, strict=True)) for each in itertools.product(*values.values())]
    return list({cell.key: cell for each in combined for seed in chosen for cell in [_cell(each, seed, task)]}.values())


def _cell(given: Mapping[str, Any], seed: int, task: Task) -> Cell:
    check_count("seed", seed, minimum=0)
    task = given.get("task", task)
    own, of_model, of_training = (
        set(_fields(task)),
        {field.name for field in dataclasses.fields(ModelConfig)} - {"dim", "n_outputs"},
        {field.name for field in dataclasses.fields(TrainConfig)} - {"task", "model", "seed"},
    )
    unknown = set(given) - own - of_model - of_training - {"task"}
    if unknown:
        known = ", ".join(sorted({"task", *own, *of_model, *of_training}))
        raise ConfigError(f"nothing called {', '.join(sorted(unknown))} can be swept over; there are {known}")
    changes = {name: given[name] for name in given if name in own}
    varied: Any = dataclasses.replace(task, **changes) if changes else task  # type: ignore[type-var]
    model = ModelConfig(varied.dim, varied.n_outputs, **{n: given[n] for n in given if n in of_model})
    return Cell(TrainConfig(varied, model, seed=seed, **{n: given[n] for n in given if n in of_training}))


def _fields(part: object) -> dict[str, Any]:
    """By name; none of what is no dataclass, a task of somebody's own perhaps."""
    if not dataclasses.is_dataclass(part) or isinstance(part, type):
        return {}
    return {field.name: getattr(part, field.name) for field in dataclasses.fields(part)}


def _listed(name: str, given: object) -> list[Any]:
    """The values, of which there may be one."""
    values = list(given) if isinstance(given, Iterable) and not isinstance(given, str | bytes | Mapping) else [given]
    if not values:
        raise ConfigError(f"{name} has no values to sweep over")
    return values
