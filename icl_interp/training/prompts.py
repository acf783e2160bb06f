"""Where a run in training gets its prompts from: a stream that can be stopped and gone on with."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from icl_interp.records import TrainConfig
from icl_interp.tasks import LinearRegression, MultiTaskRegression, Prompt
from icl_interp.training.seeds import data_seed


@runtime_checkable
class Batches(Protocol):
    """Prompts, a batch at a time."""

    def fill(
        self,
        z: Float[Tensor, "batch length d_model_or_more"],
        x_q: Float[Tensor, "batch dim"],
        y_q: Float[Tensor, "batch outputs"],
    ) -> None:
        """Write the next batch."""
        ...

    def prompt(self) -> Prompt:
        """The next batch."""
        ...


@runtime_checkable
class Stream(Batches, Protocol):
    """The prompts of a run's steps."""

    def state(self) -> Tensor:
        """Where the stream is, on the CPU."""
        ...

    def restore(self, state: Tensor) -> None:
        """Go on from there."""
        ...


def is_gaussian(config: TrainConfig) -> bool:
    """Whether the compiled code can draw the config's prompts."""
    return type(config.task) in (LinearRegression, MultiTaskRegression)


def stream(config: TrainConfig, device: torch.device) -> Stream:
    """The stream of a config: compiled where that can be, for it takes a tenth of the time."""
    if device.type == "cpu" and is_gaussian(config):
        from icl_interp.training.gaussian import Drawn  # numba takes half a second, and not all need it

        return Drawn(config)
    return Sampled(config, device)


class Given:
    """A batch that is there already."""

    def __init__(self, prompt: Prompt):
        self._prompt = prompt

    def prompt(self) -> Prompt:
        """This batch."""
        return self._prompt

    def fill(self, z: Tensor, x_q: Tensor, y_q: Tensor) -> None:
        """Write this batch."""
        prompt, d = self.prompt(), x_q.shape[1]
        z[..., :d].copy_(prompt.x)
        z[..., d : d + y_q.shape[1]].copy_(prompt.y)
        x_q.copy_(prompt.x_q)
        y_q.copy_(prompt.y_q)


class Sampled(Given):
    """Batches from the task's own `sample`, drawn on the device that trains."""

    def __init__(self, config: TrainConfig, device: torch.device):
        self.generator: torch.Generator = torch.Generator(device).manual_seed(data_seed(config.prompt_seed))
        self._task, self._batch = config.task, config.batch_size

    def prompt(self) -> Prompt:
        """The next batch."""
        return self._task.sample(self._batch, generator=self.generator, device=self.generator.device)

    def state(self) -> Tensor:
        """The generator's."""
        return self.generator.get_state()

    def restore(self, state: Tensor) -> None:
        """Go on from there."""
        self.generator.set_state(state)
