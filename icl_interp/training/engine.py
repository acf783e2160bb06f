"""What a training engine is, so that another can come without touching its callers."""

from __future__ import annotations

from typing import Protocol

from icl_interp.tasks import Prompt
from icl_interp.weights import Weights


class Engine(Protocol):
    """One run in training: weights, optimiser state and the stream of prompts."""

    def grad(self, prompt: Prompt) -> tuple[float, Weights]:
        """Loss and gradient at `prompt` and the current weights; changes nothing."""
        ...

    def advance(self, steps: int) -> float:
        """Take optimiser steps, each on fresh prompts; return the mean loss over them, each before its update."""
        ...

    def weights(self) -> Weights:
        """A copy of the current weights, on the CPU."""
        ...
