"""How the functions of this folder are compiled."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic as _intrinsic

LANES = 64  # prompts in a block
COMPILING = "ICL_INTERP_COMPILING"  # in the environment of a process that does so for others

# A type checker knows neither numba's private options nor what `intrinsic` makes of a function.
jit: Any = njit
intrinsic: Any = _intrinsic

f4, i4, u4, u8 = np.float32, np.int32, np.uint32, np.uint64

# Multiply-adds may be contracted; nothing is reordered nor assumed finite, except where a loop sums over lanes.  Arrays
# are not reference-counted: nothing here allocates, and counting would take longer than the shorter functions.
_FAST = {"contract", "nsz", "arcp"}
compiled = jit(_nrt=False, fastmath=_FAST, error_model="numpy", no_cpython_wrapper=True)
summing = jit(_nrt=False, fastmath=_FAST | {"reassoc"}, error_model="numpy", no_cpython_wrapper=True)
inlined = jit(_nrt=False, fastmath=_FAST, error_model="numpy", inline="always")


def aligned(array: np.ndarray) -> np.ndarray:
    """A contiguous copy that starts at a multiple of 64 bytes: a vector across two cache lines costs twice."""
    room = np.empty(array.nbytes + 64, np.uint8)
    start = -room.ctypes.data % 64
    copy = room[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy


class Entry:
    """A function for Python to call, of arguments of one kind: compiled once, and kept on disk.

    numba's cache looks at the file of the outermost function only.  `make` is given a digest of all files of this
    folder for its function to mention, which makes it part of what the cache compares.

    What is compiled is not what is loaded from disk: the functions that are called inside are compiled twice, alone and
    as a part of the whole; a process that compiles runs the first, one that loads the second, and their sums differ by
    rounding.  For the same seed to give the same run in every process, a process of its own compiles, and all load: it
    runs the Python code `by`, which has to call the function with arguments of that kind.
    """

    def __init__(self, make: Callable[[str], Callable[..., None]], by: str):
        sources = sorted(Path(__file__).parent.glob("*.py"))
        made = make(hashlib.sha256(b"".join(source.read_bytes() for source in sources)).hexdigest())
        self._by, self._lock, self._ready = by, Lock(), COMPILING in os.environ
        options = {"_nrt": False, "error_model": "numpy", "nogil": True}
        try:
            self._function = jit(cache=True, **options)(made)
        except RuntimeError:  # numba finds no folder that it may write to: compiled anew in every process, then
            self._function, self._ready = jit(**options)(made), True

    def __call__(self, *arguments: object) -> None:
        """Run it."""
        with self._lock:
            if not self._ready:
                self._prepare(tuple(map(self._function.typeof_pyval, arguments)))
                self._ready = True
        try:
            self._function(*arguments)
        except OSError:  # a full disk: numba fails to keep what it has compiled, before it runs it
            self._function(*arguments)

    def _prepare(self, signature: tuple[types.Type, ...]) -> None:
        """Have it compiled in a process of its own, if it is not on disk.  Where that fails, it is compiled here."""
        cache = self._function._cache  # numba has no public way to ask
        if cache._index_key(signature, self._function.targetctx.codegen()) in cache._cache_file._load_index():
            return
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), COMPILING: "1"}
        with suppress(OSError, ValueError):  # no interpreter to start, or none that is known
            subprocess.run([sys.executable, "-c", self._by], env=environment, capture_output=True)


@intrinsic
def vectorise(typing_context: Any) -> Any:
    """Tell the compiler of the enclosing function: its arrays do not overlap, and the widest vectors are the best.

    Without the first, a loop over more than a few arrays is not vectorised at all.  Without the second, AVX-512
    machines get half their width.  To keep both the function is not inlined, which spares compile time too.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        attributes = builder.function.attributes
        attributes.add("noinline")
        set.add(attributes, '"prefer-vector-width"="512"')  # llvmlite's own `add` knows only some attributes
        for argument in builder.function.args[2:]:  # the first two are numba's
            if isinstance(argument.type, ir.PointerType):
                argument.add_attribute("noalias")
        return context.get_dummy_value()

    return types.void(), generate


@intrinsic
def bits(typing_context: Any, number: Any) -> Any:
    """A float32's bits as int32."""
    return types.int32(types.float32), lambda context, builder, signature, arguments: builder.bitcast(
        arguments[0], ir.IntType(32)
    )


@intrinsic
def from_bits(typing_context: Any, number: Any) -> Any:
    """The float32 of an int32's bits."""
    return types.float32(types.int32), lambda context, builder, signature, arguments: builder.bitcast(
        arguments[0], ir.FloatType()
    )


# --- Rows -------------------------------------------------------------------------------------------------------------


@compiled
def clear(array, size):
    """array = 0."""
    vectorise()
    for i in range(size):
        array[i] = f4(0)


@compiled
def scale(row, factor, offset):
    """row = row · factor + offset."""
    vectorise()
    for i in range(LANES):
        row[i] = row[i] * factor + offset


@compiled
def multiply(rows, row, count):
    """rows[k] ∘= row for each of `count` rows."""
    vectorise()
    for start in range(0, count * LANES, LANES):
        out = rows[start:]
        for i in range(LANES):
            out[i] *= row[i]


@compiled
def add_scaled(row, rows, factors, count):
    """row += Σ_k rows[k] · factors[k]."""
    vectorise()
    for k in range(count):
        other, factor = rows[k * LANES :], factors[k]
        for i in range(LANES):
            row[i] += other[i] * factor


@compiled
def add_products(row, left, right, count):
    """row += Σ_k left[k] ∘ right[k]."""
    vectorise()
    for k in range(count):
        a, b = left[k * LANES :], right[k * LANES :]
        for i in range(LANES):
            row[i] += a[i] * b[i]


@compiled
def subtract_products(rows, others, row, count):
    """rows[k] -= others[k] ∘ row."""
    vectorise()
    for start in range(0, count * LANES, LANES):
        out, other = rows[start:], others[start:]
        for i in range(LANES):
            out[i] -= other[i] * row[i]


@summing
def dots(out, row, rows, count):
    """out[k] = row · rows[k]."""
    vectorise()
    for k in range(count):
        other, total = rows[k * LANES :], f4(0)
        for i in range(LANES):
            total += row[i] * other[i]
        out[k] = total
