"""The CUDA engine: in numba-cuda's simulator, which has to be asked for before numba is imported; and on a GPU."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from numba import types

from icl_interp.config import ModelConfig
from icl_interp.training.compiled.attention import KINDS
from icl_interp.training.gpu.shapes import shape_of

CASES = Path(__file__).with_name("cuda_cases.py")
# Unsigned integers wrap around, as they are meant to; numpy warns of it, a GPU does not.
OVERFLOW = "ignore:overflow encountered:RuntimeWarning"


def run_cases(*options: str, **environment: str) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(CASES), *options]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment})
    assert done.returncode == 0, done.stdout[-6_000:] + done.stderr[-2_000:]


@pytest.mark.slow
def test_in_the_simulator() -> None:
    run_cases("-W", OVERFLOW, NUMBA_ENABLE_CUDASIM="1")


@pytest.mark.gpu
def test_on_a_gpu() -> None:
    run_cases(NUMBA_ENABLE_CUDASIM="0")


# --- The compiler -----------------------------------------------------------------------------------------------------

f4, f8, i4, i8, u4 = types.float32, types.float64, types.int32, types.int64, types.uint32
VECTORS = ((i8, 1), (i8, 1), (i4, 1), (i4, 1), (i4, 1), (f4, 1), (u4, 2), (f4, 3), (f4, 2), (f4, 3), (f4, 2), (f4, 3))
ARRAYS = (*VECTORS, (f4, 2), (f8, 2), (f8, 2), (f4, 2), (f4, 2), (f4, 2), (f4, 2), (f8, 1))
SIGNATURE = (i8, *(types.Array(kind, dimensions, "C") for kind, dimensions in ARRAYS))


@pytest.fixture
def compiler(monkeypatch: pytest.MonkeyPatch) -> Any:
    """From Python to PTX for an H200, which takes no GPU but NVIDIA's compiler."""
    from numba import cuda
    from numba.cuda import dispatcher
    from numba.cuda.cudadrv import nvrtc, nvvm

    try:
        nvrtc.get_supported_ccs()
        nvvm.NVVM()
    except Exception as error:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(f"no compiler, icl-interp[cuda] has one: {error}")
    device = type("Device", (), {"compute_capability": (9, 0)})()
    monkeypatch.setattr(dispatcher, "get_current_device", lambda: device)  # what is inside is compiled for it
    return cuda.compile_ptx


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_it_compiles_for_a_gpu(compiler: Any, kind: str) -> None:
    """Whose types are stricter than the simulator's; and what is small stays in registers, in float32."""
    from icl_interp.training.gpu import step

    optimizers = dict(zip(KINDS, ("adam", "adamw", "sgd", "adam", "sgd"), strict=True))
    plain = kind != "tanh"
    model = ModelConfig(3, 1 + (kind == "square"), 2, activation=kind)
    shape = shape_of(model, 256, optimizers[kind], plain=plain, given=kind == "linear")
    ptx, _ = compiler(step.make(shape).py_func, SIGNATURE, cc=(9, 0), fastmath=True)
    assert ".entry" in ptx
    assert "ex2.approx.ftz.f32" in ptx or kind not in ("softmax", "tanh")
    assert "lg2.approx" in ptx or shape.given
    assert ".local" not in ptx  # arrays of constant size and indices are no memory
