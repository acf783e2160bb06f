"""What makes an object a task, and what stands in for one that is not here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, TypedDict, runtime_checkable

import torch

from icl_interp.config import check_count
from icl_interp.errors import ConfigError
from icl_interp.tasks.prompt import Prompt


@runtime_checkable
class Task(Protocol):
    """A distribution over prompts.  Write one to train on, or analyze under, data of your own."""

    @property
    def dim(self) -> int:
        """d, the number of covariates."""
        ...

    @property
    def length(self) -> int:
        """L, the number of demonstrations in training."""
        ...

    @property
    def n_outputs(self) -> int:
        """N, the number of responses."""
        ...

    def sample(
        self,
        batch: int,
        *,
        length: int | None = None,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
    ) -> Prompt:
        """Draw `batch` prompts of `length` (default: the task's) with all randomness from `generator`."""
        ...


def check_task(task: object) -> None:
    """Raise `ConfigError` unless `task` has the protocol's members."""
    if not isinstance(task, Task):
        raise ConfigError(f"task must have dim, length, n_outputs and sample(), got {task!r}")


class DrawingOptions(TypedDict):
    """What `torch.randn` takes."""

    generator: torch.Generator | None
    device: torch.device | str | None
    dtype: torch.dtype


def drawing(
    task: Task,
    batch: int,
    length: int | None,
    generator: torch.Generator | None,
    device: torch.device | str | None,
) -> tuple[int, DrawingOptions]:
    """The number of demonstrations, and what `torch.randn` takes, for one call of a task's `sample`.

    Raises:
        ConfigError: `batch` or `length` below one.
    """
    check_count("batch", batch)
    L = task.length if length is None else length
    check_count("length", L)
    if device is None and generator is not None:
        device = generator.device
    return L, {"generator": generator, "device": device, "dtype": torch.float32}


@dataclass(frozen=True)
class UnavailableTask:
    """Stands in for a user's own task in a run read from disk: a file can describe code, not bring it back."""

    dim: int
    length: int
    n_outputs: int
    description: str

    def __post_init__(self) -> None:
        for name in ("dim", "length", "n_outputs"):
            check_count(name, getattr(self, name))

    def sample(
        self,
        batch: int,
        *,
        length: int | None = None,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
    ) -> Prompt:
        """Raise `ConfigError`: the task has to be passed again."""
        raise ConfigError(f"this run was trained on a task of its user's own, {self.description}: pass it as task=")
