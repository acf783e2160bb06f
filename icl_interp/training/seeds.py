"""One seed, independent streams: initialisation does not change with the data, nor the data with the model."""

from __future__ import annotations

import numpy as np


def init_seed(seed: int) -> int:
    """Seed of the generator that draws initial weights."""
    return _stream(seed, 0)


def data_seed(seed: int) -> int:
    """Seed of the generator that draws prompts."""
    return _stream(seed, 1)


def record_seed(seed: int) -> int:
    """Seed of the generator that draws the prompts on which the untrained loss is measured."""
    return _stream(seed, 2)


def _stream(seed: int, stream: int) -> int:
    return int(np.random.SeedSequence(seed, spawn_key=(stream,)).generate_state(1, np.uint64)[0] >> 1)
