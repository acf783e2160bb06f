"""How the functions here are compiled: for a GPU, or for numba-cuda's simulator, where threads are Python's."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import cuda
from numba.core import config

f4, f8, i4, u4, u8 = np.float32, np.float64, np.int32, np.uint32, np.uint64

# A type checker does not know what numba makes of a function, nor thread and block indices.
grid: Any = cuda
SIMULATED = bool(getattr(config, "ENABLE_CUDASIM", 0))

# Multiply-adds are contracted; quotients, roots and powers are the hardware's, good to two units in the last place.
inner: Any = grid.jit(device=True, fastmath=True)


def kernel(registers: int | None = None) -> Any:
    """Compile a kernel; with at most so many registers a thread, where that makes room for more blocks."""
    limit = {} if SIMULATED or registers is None else {"max_registers": registers}
    return grid.jit(fastmath=True, **limit)


def _simulated_exp2(x: float) -> Any:
    return f4(2.0 ** float(x))


def _simulated_log2(x: float) -> Any:
    return f4(np.log2(float(x)))


exp2: Any
log2: Any
if SIMULATED:
    exp2, log2 = _simulated_exp2, _simulated_log2
else:
    from numba.cuda import libdevice

    exp2, log2 = libdevice.exp2f, libdevice.fast_log2f
