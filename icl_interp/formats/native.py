"""Our own format: a folder that anyone can read without us.

    run.json              schema version, model, task, training configuration, seed, versions
    weights.safetensors   W_Q, W_K, W_V, W_O, stacked over layers
    dynamics.safetensors  records and weight snapshots (absent for a model of unknown origin)

No pickle anywhere.  A folder appears under its name only when all of it is written and flushed to disk.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors
from torch import Tensor

from icl_interp.config import ModelConfig
from icl_interp.errors import CheckpointError, ConfigError, SaveError
from icl_interp.records import Dynamics, Run, TrainConfig
from icl_interp.serialization import dumps, from_data, to_data
from icl_interp.tasks import Task
from icl_interp.weights import check_weights

SCHEMA_VERSION = 1
MAX_JSON_BYTES = 1_000_000
RUN, WEIGHTS, DYNAMICS = "run.json", "weights.safetensors", "dynamics.safetensors"
_RECORDS = ("steps", "loss", "omega", "mu", "snapshot_steps")


def save_run(run: Run, path: str | Path, *, overwrite: bool = False) -> Path:
    """Write `run` as the folder `path`, all or nothing.

    Raises:
        SaveError: `path` exists and `overwrite` is not set or it holds no run; or the disk refused.  The error carries
            the run.
    """
    path = Path(path)
    check_target(path, overwrite=overwrite)
    files = {RUN: dumps(_describe(run)).encode(), WEIGHTS: save_safetensors(_plain(run.weights))}
    if run.dynamics is not None:
        files[DYNAMICS] = save_safetensors(_dynamics_tensors(run.dynamics))
    temporary: str | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
        os.chmod(temporary, 0o755)  # mkdtemp's 0700 would hide the run from its group
        for name, data in files.items():
            _write(Path(temporary) / name, data)
        _move_into_place(Path(temporary), path)
    except OSError as error:
        raise SaveError(f"could not save the run to {path}: {error.strerror or error}", run) from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)
    return path


def check_target(path: Path, *, overwrite: bool) -> None:
    """Raise `SaveError` unless a run may be written to `path`: training asks this before its first step."""
    if not path.exists():
        return
    if path.is_dir() and not any(path.iterdir()):
        return
    if not (path / RUN).is_file():
        raise SaveError(f"{path} exists and is not a run of ours; choose another place")
    if not overwrite:
        raise SaveError(f"{path} already holds a run; choose another place, or overwrite it")


def load_run(path: str | Path) -> Run:
    """Open a run's folder, on the CPU wherever it was trained.

    Raises:
        CheckpointError: not there, not a run, damaged, or written by a newer version.
    """
    path = Path(path)
    if path.name == WEIGHTS and path.is_file():
        path = path.parent
    if not path.exists():
        raise CheckpointError(f"{path} does not exist")
    if not (path / RUN).is_file():
        found = ", ".join(sorted(p.name for p in path.iterdir())[:8]) if path.is_dir() else "a file"
        raise CheckpointError(
            f"{path} is not a run: expected a folder with {RUN} and {WEIGHTS}, found {found or 'nothing'}"
        )
    data = _read_json(path / RUN)
    try:
        return _assemble(data, path)
    except (CheckpointError, ConfigError) as error:
        raise CheckpointError(f"{path}: {error}") from error


def _describe(run: Run) -> dict[str, Any]:
    description = to_data(_Description(run.model_config, run.task, run.training, run.step, run.seed, run.versions))
    if run.training is not None:  # its model and task stand above already
        for name in ("model", "task"):
            del description["training"][name]
    return {"schema_version": SCHEMA_VERSION, **description}


@dataclass(frozen=True)
class _Description:
    model: ModelConfig
    task: Task | None
    training: TrainConfig | None
    step: int | None
    seed: int | None
    versions: dict[str, str]


def _assemble(data: dict[str, Any], path: Path) -> Run:
    version = data.pop("schema_version", None)
    if not isinstance(version, int) or version < 1:
        raise CheckpointError(f"{RUN} has no schema_version; expected {SCHEMA_VERSION}")
    if version > SCHEMA_VERSION:
        raise CheckpointError(f"written in schema version {version}, this icl-interp reads up to {SCHEMA_VERSION}")
    if isinstance(data.get("training"), dict):
        data["training"] |= {"model": data.get("model"), "task": data.get("task")}
    described = from_data(_Description, data)
    return Run(
        model_config=described.model,
        weights=_read_tensors(path / WEIGHTS),
        task=described.task,
        training=described.training,
        dynamics=_read_dynamics(path / DYNAMICS, described.model) if (path / DYNAMICS).is_file() else None,
        step=described.step,
        seed=described.seed,
        origin=str(path),
        versions=described.versions,
    )


def _read_json(path: Path) -> dict[str, Any]:
    if path.stat().st_size > MAX_JSON_BYTES:
        raise CheckpointError(f"{path} has {path.stat().st_size:,} bytes, a run's description has a few thousand")
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is damaged, not JSON: {error}") from error
    if not isinstance(data, dict):
        raise CheckpointError(f"{path} is not a run's description: expected an object")
    return data


def _read_tensors(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise CheckpointError(f"{path.name} is missing")
    try:
        return load_safetensors(path.read_bytes())
    except (SafetensorError, ValueError, RuntimeError, KeyError) as error:
        raise CheckpointError(f"{path.name} is truncated or damaged ({error})") from error


def _read_dynamics(path: Path, model: ModelConfig) -> Dynamics:
    tensors = _read_tensors(path)
    records = {name: tensors.pop(name, None) for name in _RECORDS}
    missing = [name for name, tensor in records.items() if tensor is None]
    if missing:
        raise CheckpointError(f"{path.name} lacks {', '.join(missing)}")
    arrays = {name: tensor.numpy() for name, tensor in records.items() if tensor is not None}
    lengths = len(arrays["steps"]), len(arrays["snapshot_steps"])
    shapes = {
        "loss": lengths[:1],
        "omega": (lengths[0], model.n_layers, model.n_heads),
        "mu": (lengths[0], model.n_layers, model.n_heads, model.n_outputs),
    }
    for name, shape in shapes.items():
        if arrays[name].shape != shape:
            raise CheckpointError(f"{path.name}: {name} has shape {arrays[name].shape}, expected {shape}")
    if any(tensor.shape[:1] != lengths[1:] for tensor in tensors.values()):
        raise CheckpointError(f"{path.name}: expected {lengths[1]} snapshots of every weight")
    for i in range(lengths[1]):
        check_weights({name: tensor[i] for name, tensor in tensors.items()}, model)
    return Dynamics(**arrays, snapshots=tensors)


def _dynamics_tensors(dynamics: Dynamics) -> dict[str, Tensor]:
    records = {name: torch.from_numpy(np.ascontiguousarray(getattr(dynamics, name))) for name in _RECORDS}
    return records | _plain(dynamics.snapshots)


def _plain(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}


def _write(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _move_into_place(new: Path, path: Path) -> None:
    """Rename `new` to `path`; an older run steps aside first and comes back should the rename fail."""
    if not path.exists():
        new.rename(path)
        return
    old = new.with_suffix(".old")
    path.rename(old)
    try:
        new.rename(path)
    except OSError:
        old.rename(path)
        raise
    shutil.rmtree(old, ignore_errors=True)
