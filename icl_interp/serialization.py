"""Dataclasses to plain data and back, strictly: JSON in the end, never pickle.

One converter serves configurations, tasks, findings and verdicts.  Unknown keys are refused, numbers are not guessed
from strings, and what JSON cannot say is spelt out: arrays are nested lists, NaN and ±infinity the strings "NaN",
"Infinity", "-Infinity".
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable
from functools import cache
from typing import Any, TypeAlias, TypeVar, get_origin

import numpy as np
from cattrs import BaseValidationError, Converter, transform_error
from cattrs.gen import make_mapping_structure_fn
from jaxtyping import jaxtyped

from icl_interp.errors import CheckpointError
from icl_interp.tasks import (
    KMS,
    Covariance,
    LinearRegression,
    Mean,
    MultiTaskRegression,
    SparseRegression,
    Supports,
    Task,
    UnavailableTask,
)

T = TypeVar("T")
# What JSON can say.
Json: TypeAlias = dict[str, "Json"] | list["Json"] | str | int | float | bool | None
_DTYPES = ("bool", *(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)), "float32", "float64")
TASKS: dict[str, type[Task]] = {
    "LinearRegression": LinearRegression,
    "MultiTaskRegression": MultiTaskRegression,
    "SparseRegression": SparseRegression,
    "custom": UnavailableTask,
}


def to_data(value: object, kind: object = None) -> Any:
    """`value` (made of dataclasses, containers, arrays and numbers) as JSON-ready data; as a `kind` if given.

    A dataclass becomes a dict, a container a list or a dict of the same: its caller knows, the signature cannot say.
    """
    return _converter().unstructure(value, kind)


def from_data(kind: type[T], data: object) -> T:
    """The inverse of `to_data`.

    Raises:
        CheckpointError: `data` is not a `kind`; the message names each field that does not fit.
    """
    try:
        return _converter().structure(data, kind)
    except BaseValidationError as error:
        reasons = "; ".join(transform_error(error, format_exception=_say))
        raise CheckpointError(f"not a {kind.__name__}: {reasons}") from error
    except Exception as error:  # whatever a stranger's file brings about
        raise CheckpointError(f"not a {kind.__name__}: {_say(error)}") from error


def dumps(data: object, *, indent: int | None = 2) -> str:
    """Plain data as strict JSON text."""
    return json.dumps(data, indent=indent, allow_nan=False, ensure_ascii=False)


def _say(error: BaseException, _: type | None = None) -> str:
    return f"{error.args[0]} is missing" if isinstance(error, KeyError) else f"{error}"


def _task_to(task: Task) -> dict[str, Any]:
    kind = next((name for name, known in TASKS.items() if type(task) is known), None)
    if kind is None:
        # Neither its numpy integers nor a repr that cannot be written may keep a trained run from being saved.
        sizes = int(task.dim), int(task.length), int(task.n_outputs)
        kind, task = "custom", UnavailableTask(*sizes, _described(task))
    return {"kind": kind, **_converter().unstructure(task, type(task))}


def _described(task: Task) -> str:
    try:
        text = repr(task)[:1000]
    except Exception:
        text = f"a {type(task).__name__}"
    return text.encode(errors="replace").decode()


def _task_from(data: object, _: type) -> Task:
    kind = data.get("kind") if isinstance(data, dict) else data
    if not isinstance(data, dict) or not isinstance(kind, str) or kind not in TASKS:
        raise ValueError(f"unknown task {_shown(kind)}; this version knows {', '.join(TASKS)}")
    return _converter().structure({k: v for k, v in data.items() if k != "kind"}, TASKS[kind])


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:100]}…"


def _strict(value: object, kind: type) -> Any:
    if type(value) is not kind:  # a bool is an int to isinstance
        raise ValueError(f"expected {kind.__name__}, got {_shown(value)}")
    return value


def _float_from(value: object, _: type = float) -> float:
    if value in ("NaN", "Infinity", "-Infinity") or type(value) in (int, float):
        return float(value)  # type: ignore[arg-type]
    raise ValueError(f"expected a number, got {_shown(value)}")


def _float_to(value: float) -> float | str:
    if math.isfinite(value):
        return float(value)
    return "NaN" if math.isnan(value) else ("Infinity" if value > 0 else "-Infinity")


def _is_array(kind: Any) -> bool:
    # jaxtyping's Float[np.ndarray, "heads dim"] is a class of its own that remembers what it annotates.
    return getattr(kind, "array_type", get_origin(kind) or kind) is np.ndarray


def _array_from(value: object, kind: Any) -> np.ndarray:
    array = _empty_from(value) if isinstance(value, dict) else _full_from(value)
    if hasattr(kind, "dtypes"):
        if "float64" in kind.dtypes and array.dtype.kind in "iu":
            array = array.astype(float)
        with jaxtyped("context"):  # names of axes are bound anew for each array
            if not isinstance(array, kind):
                raise ValueError(f"expected {kind.__name__}, got {array.dtype} of shape {array.shape}")
    return array


def _full_from(value: object) -> np.ndarray:
    leaves = np.array(value, dtype=object)  # a ragged list leaves lists as leaves, which no branch below accepts
    kinds = {type(leaf) for leaf in leaves.flat}
    if kinds in ({bool}, {int}):
        return leaves.astype(kinds.pop())
    return np.array([_float_from(leaf) for leaf in leaves.flat]).reshape(leaves.shape)


def _empty_from(value: dict[str, Any]) -> np.ndarray:
    shape, dtype = value.get("shape"), value.get("dtype")
    sizes = isinstance(shape, list | tuple) and all(type(size) is int and size >= 0 for size in shape) and 0 in shape
    if not sizes or dtype not in _DTYPES or len(value) != 2:
        raise ValueError(f"expected an array of numbers, or the shape and dtype of an empty one, got {_shown(value)}")
    return np.zeros(shape, dtype)  # type: ignore[arg-type]


def _array_to(array: np.ndarray) -> Any:
    if array.size == 0:
        return {"shape": list(array.shape), "dtype": str(array.dtype)}
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        return np.vectorize(_float_to, otypes=[object])(array).tolist()
    return array.tolist()


def _covariance_from(value: object, _: Any) -> Covariance:
    if value is None:
        return None
    return _converter().structure(value, KMS if isinstance(value, dict) else tuple[tuple[float, ...], ...])


def _mean_from(value: object, _: Any) -> Mean:
    return _converter().structure(value, tuple[float, ...] if isinstance(value, list) else float)


def _supports_from(value: object, _: Any) -> Supports:
    return _converter().structure(value, tuple[tuple[int, ...], ...])


@cache
def _converter() -> Converter:
    converter = Converter(forbid_extra_keys=True)
    _expect_containers(converter)
    for kind in (int, bool, str):
        converter.register_structure_hook(kind, _strict)
    converter.register_unstructure_hook(int, int)  # numpy's integers and truth values are not JSON
    converter.register_unstructure_hook(bool, bool)
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
    converter.register_structure_hook(Supports, _supports_from)
    return converter


def _expect_containers(converter: Converter) -> None:
    """Hold what is read as a dataclass, dict, tuple or list against its JSON type: a string is no tuple of letters."""
    building: set[Any] = set()

    def container(kind: Any) -> tuple[type, ...]:
        origin = get_origin(kind) or kind
        if dataclasses.is_dataclass(origin) or origin is dict:
            return (dict,)
        return (list, tuple) if origin in (list, tuple) else ()

    def build(kind: Any) -> Callable[[Any, Any], Any]:
        if (get_origin(kind) or kind) is dict:
            # What the converter would build too, but it would register that in our place.
            hook = make_mapping_structure_fn(kind, converter)
        else:
            building.add(kind)  # so that the converter answers with its own hook
            hook = converter.get_structure_hook(kind, cache_result=False)
            building.remove(kind)

        def structure(value: Any, kind: Any) -> Any:
            if not isinstance(value, container(kind)):
                raise ValueError(
                    f"expected {'an object' if container(kind) == (dict,) else 'a list'}, got {_shown(value)}"
                )
            return hook(value, kind)

        return structure

    converter.register_structure_hook_factory(lambda kind: bool(container(kind)) and kind not in building, build)
