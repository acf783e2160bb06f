"""Dataclasses to plain data and back, strictly: JSON in the end, never pickle.

One converter serves configurations, tasks, findings and verdicts.  Unknown keys are refused, numbers are not guessed
from strings, and what JSON cannot say is spelt out: arrays are nested lists, NaN and ±infinity the strings "NaN",
"Infinity", "-Infinity".
"""

from __future__ import annotations

import json
import math
from functools import cache
from typing import Any, TypeVar, get_origin

import numpy as np
from cattrs import BaseValidationError, Converter, transform_error

from icl_interp.errors import CheckpointError, ICLError
from icl_interp.tasks import KMS, Covariance, LinearRegression, Mean, Task, UnavailableTask

T = TypeVar("T")
TASKS: dict[str, type[Task]] = {"LinearRegression": LinearRegression, "custom": UnavailableTask}


def to_data(value: object, kind: Any = None) -> Any:
    """`value` (made of dataclasses, containers, arrays and numbers) as JSON-ready data; as a `kind` if given."""
    return _converter().unstructure(value, kind)


def from_data(kind: type[T], data: object) -> T:
    """The inverse of `to_data`.

    Raises:
        CheckpointError: `data` is not a `kind`; the message names each field that does not fit.
    """
    try:
        return _converter().structure(data, kind)
    except BaseValidationError as error:
        raise CheckpointError(
            f"not a {kind.__name__}: " + "; ".join(transform_error(error, format_exception=_say))
        ) from error
    except (TypeError, ValueError, RecursionError) as error:
        raise CheckpointError(f"not a {getattr(kind, '__name__', kind)}: {error}") from error


def dumps(data: object, *, indent: int | None = 2) -> str:
    """Plain data as strict JSON text."""
    return json.dumps(data, indent=indent, allow_nan=False, ensure_ascii=False)


def _say(error: BaseException, _: type | None) -> str:
    if isinstance(error, KeyError):
        return f"{error.args[0]} is missing"
    return str(error) if isinstance(error, ICLError) else f"{error}"


def _task_to(task: Task) -> dict[str, Any]:
    kind = next((name for name, known in TASKS.items() if type(task) is known), None)
    if kind is None:
        kind, task = "custom", UnavailableTask(task.dim, task.length, task.n_outputs, repr(task)[:1000])
    return {"kind": kind, **_converter().unstructure(task, type(task))}


def _task_from(data: object, _: type) -> Task:
    if not isinstance(data, dict) or data.get("kind") not in TASKS:
        kind = data.get("kind") if isinstance(data, dict) else data
        raise ValueError(f"unknown task {str(kind)[:100]!r}; this version knows {', '.join(TASKS)}")
    return _converter().structure({k: v for k, v in data.items() if k != "kind"}, TASKS[data["kind"]])


def _strict(*allowed: type) -> Any:
    def structure(value: object, kind: type) -> Any:
        if not isinstance(value, allowed) or (isinstance(value, bool) and bool not in allowed):
            raise ValueError(f"expected {kind.__name__}, got {str(value)[:100]!r}")
        return kind(value)

    return structure


def _float_from(value: object, _: type) -> float:
    if value in ("NaN", "Infinity", "-Infinity") or (isinstance(value, int | float) and not isinstance(value, bool)):
        return float(value)  # type: ignore[arg-type]
    raise ValueError(f"expected a number, got {str(value)[:100]!r}")


def _float_to(value: float) -> float | str:
    if math.isfinite(value):
        return float(value)
    return "NaN" if math.isnan(value) else ("Infinity" if value > 0 else "-Infinity")


def _is_array(kind: Any) -> bool:
    # jaxtyping's Float[np.ndarray, "heads dim"] is a class of its own that remembers what it annotates.
    return getattr(kind, "array_type", get_origin(kind) or kind) is np.ndarray


def _array_from(value: object, kind: Any) -> np.ndarray:
    if isinstance(value, dict):
        return np.zeros(value["shape"], value["dtype"])
    array = np.array(value)
    if array.dtype.kind in "UO":  # NaN or infinity among the numbers
        array = np.array(value, dtype=object).astype(float)
    if array.dtype.kind not in "fiub":
        raise ValueError(f"expected an array of numbers, got {str(value)[:100]!r}")
    dtypes = getattr(kind, "dtypes", None)
    if isinstance(dtypes, list | tuple) and "float64" in dtypes:
        array = array.astype(float)
    return array


def _array_to(array: np.ndarray) -> Any:
    if array.size == 0:
        return {"shape": list(array.shape), "dtype": str(array.dtype)}
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        return np.vectorize(_float_to, otypes=[object])(array).tolist()
    return array.tolist()


def _covariance_from(value: object, _: Any) -> Covariance:
    if value is None:
        return None
    if isinstance(value, dict):
        return _converter().structure(value, KMS)
    return _converter().structure(value, tuple[tuple[float, ...], ...])


def _mean_from(value: object, _: Any) -> Mean:
    return _converter().structure(value, tuple[float, ...] if isinstance(value, list) else float)


@cache
def _converter() -> Converter:
    converter = Converter(forbid_extra_keys=True)
    converter.register_structure_hook(int, _strict(int))
    converter.register_structure_hook(bool, _strict(bool))
    converter.register_structure_hook(str, _strict(str))
    converter.register_structure_hook(float, _float_from)
    converter.register_unstructure_hook(float, _float_to)
    converter.register_structure_hook_func(_is_array, _array_from)
    converter.register_unstructure_hook_func(_is_array, _array_to)
    converter.register_unstructure_hook(np.ndarray, _array_to)
    converter.register_unstructure_hook_func(
        lambda kind: isinstance(kind, type) and issubclass(kind, np.generic),
        lambda v: _converter().unstructure(v.item()),
    )
    converter.register_structure_hook(Task, _task_from)
    converter.register_unstructure_hook(Task, _task_to)
    converter.register_structure_hook(Covariance, _covariance_from)
    converter.register_structure_hook(Mean, _mean_from)
    return converter
