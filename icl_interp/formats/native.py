"""Our own format: a folder that anyone can read without us.

    run.json              schema version, model, task, training configuration, seed, versions, what was assumed
    weights.safetensors   W_Q, W_K, W_V, W_O, stacked over layers
    dynamics.safetensors  records and weight snapshots (absent for a model of unknown origin)

No pickle anywhere.  A folder appears under its name only when all of it is written and flushed to disk.  A run that is
overwritten steps aside as `.NAME.old` for a moment; should a crash leave it there, it is still opened by its own name.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors
from torch import Tensor

from icl_interp.config import ModelConfig
from icl_interp.errors import CheckpointError, NoCheckpointError, SaveError
from icl_interp.formats.contents import Contents, Given, shown
from icl_interp.formats.files import hidden, reason, write_through
from icl_interp.formats.registry import checkpoint_format
from icl_interp.records import Dynamics, Run, TrainConfig, check_dynamics
from icl_interp.serialization import dumps, from_data, to_data
from icl_interp.tasks import Task

SCHEMA_VERSION = 1
MAX_JSON_BYTES = 2**28  # a few thousand do, but a covariance matrix is written out: 30 MB at d = 1,000
MAX_TENSOR_BYTES = 2**33  # a few megabytes do, but snapshots of the widest models take gigabytes
RUN, WEIGHTS, DYNAMICS, RUNS = "run.json", "weights.safetensors", "dynamics.safetensors", "runs.json"
_RECORDS = ("steps", "loss", "omega", "mu", "snapshot_steps")


def save_run(run: Run, path: str | Path, *, overwrite: bool = False) -> Path:
    """Write `run` as the folder `path`, all or nothing.  With `overwrite`, a run's folder there is replaced whole.

    Raises:
        SaveError: `path` exists and `overwrite` is not set or it holds no run; or the disk refused.  The error carries
            the run.
    """
    try:
        return save_folder(path, lambda folder: write_run(run, folder), overwrite=overwrite)
    except SaveError as error:
        raise SaveError(str(error), run) from error


def write_run(run: Run, folder: Path) -> None:
    """Write the run's files into an empty folder."""
    files = {RUN: dumps(_describe(run)).encode(), WEIGHTS: save_safetensors(_plain(run.weights))}
    if run.dynamics is not None:
        check_dynamics(run.dynamics, run.model_config)  # what cannot be opened again is better not written
        files[DYNAMICS] = save_safetensors(_dynamics_tensors(run.dynamics))
    for name, data in files.items():
        write_through(folder / name, data)


def save_folder(path: str | Path, write: Callable[[Path], None], *, overwrite: bool) -> Path:
    """What `write` puts into a folder, as the folder `path`, all or nothing.

    Raises:
        SaveError: see `check_target`; or the disk refused, or anything else went wrong.
    """
    path = Path(path)
    new: Path | None = None
    try:
        check_target(path, overwrite=overwrite)
        target = path.resolve()  # through a link, what it points at is written
        target.parent.mkdir(parents=True, exist_ok=True)
        new = hidden(target, "tmp")
        new.mkdir()
        write(new)
        _move_into_place(new, target)
    except SaveError:
        raise
    except Exception as error:  # whatever it is, the run must not be lost with it
        raise SaveError(f"could not save the run to {path}: {reason(error)}") from error
    finally:
        if new is not None:
            shutil.rmtree(new, ignore_errors=True)
    return path


def check_target(path: Path, *, overwrite: bool) -> None:
    """Raise `SaveError` unless a run may be written to `path`: training asks this before its first step."""
    try:
        target = path.resolve()
        if _is_ours(place_of(target)):
            if not overwrite:
                raise SaveError(f"{path} already holds a run; choose another place, or overwrite it")
        elif target.exists() and not (target.is_dir() and not any(target.iterdir())):
            raise SaveError(f"{path} exists and is not a run of ours; choose another place")
        parent = next(parent for parent in target.parents if parent.exists())
        effective = os.access in os.supports_effective_ids
        if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK, effective_ids=effective):
            raise SaveError(f"{path} cannot be written: {parent} is not a folder that may be written to")
    except SaveError:
        raise
    except (OSError, ValueError, RuntimeError, StopIteration) as error:
        raise SaveError(f"{path} cannot be written: {reason(error)}") from error


@checkpoint_format(name="native", title="a run of icl-interp")
class Native:
    """A run's folder, or the weights' file in it."""

    def recognises(self, contents: Contents) -> bool:
        """Any folder: of one that is no run it can be said what is wanted."""
        path = contents.path
        return path is not None and (path.is_dir() or (path.name == WEIGHTS and (path.parent / RUN).is_file()))

    def read(self, contents: Contents, given: Given) -> Run:
        """The run, on the CPU wherever it was trained."""
        assert contents.path is not None
        folder = contents.path if contents.path.is_dir() else contents.path.parent
        if (folder / RUNS).is_file():
            raise NoCheckpointError(f"is a population of runs: open one of them, say {folder / '0000'}")
        if not (folder / RUN).is_file():
            found = shown(sorted(part.name for part in folder.iterdir()))
            raise NoCheckpointError(f"is not a run: expected a folder with {RUN} and {WEIGHTS}, found {found}")
        origin = contents.origin if contents.path.is_dir() else str(Path(contents.origin).parent)
        return _assemble(read_json(member(folder, RUN)), folder, origin)


def member(folder: Path, name: str) -> Path:
    """A file of a run's folder.

    Raises:
        CheckpointError: a link that leads out of the folder.
    """
    path = folder / name
    if not path.resolve().is_relative_to(folder.resolve()):
        raise CheckpointError(f"{name} is a link that leads out of the folder, which is not followed")
    return path


def _describe(run: Run) -> dict[str, Any]:
    description = to_data(
        _Description(run.model_config, run.task, run.training, run.step, run.seed, run.versions, run.assumed)
    )
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
    assumed: tuple[str, ...] = ()  # where it was read from another make


def _assemble(data: dict[str, Any], folder: Path, origin: str) -> Run:
    version = data.pop("schema_version", None)
    if type(version) is not int or version < 1:
        raise CheckpointError(f"{RUN} has schema_version {version!r}, expected {SCHEMA_VERSION}")
    if version > SCHEMA_VERSION:
        raise CheckpointError(f"written in schema version {version}, this icl-interp reads up to {SCHEMA_VERSION}")
    if isinstance(data.get("training"), dict):
        data["training"] |= {"model": data.get("model"), "task": data.get("task")}
    described = from_data(_Description, data)
    run = Run(
        model_config=described.model,
        weights=_read_tensors(member(folder, WEIGHTS)),
        task=described.task,
        training=described.training,
        step=described.step,
        seed=described.seed,
        origin=origin,
        versions=described.versions,
        assumed=described.assumed,
    )
    if not (folder / DYNAMICS).exists():
        return run
    return replace(run, dynamics=_read_dynamics(member(folder, DYNAMICS), run.model_config))


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file of ours.

    Raises:
        CheckpointError: too large, not JSON, or no object.
    """
    if path.stat().st_size > MAX_JSON_BYTES:
        raise CheckpointError(f"{RUN} has {path.stat().st_size:,} bytes, a run's has at most {MAX_JSON_BYTES:,}")
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{RUN} is damaged, not JSON: {error}") from error
    if not isinstance(data, dict):
        raise CheckpointError(f"{RUN} is not a run's description: expected an object, got a {type(data).__name__}")
    return data


def _read_tensors(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise CheckpointError(f"{path.name} is missing")
    if path.stat().st_size > MAX_TENSOR_BYTES:
        raise CheckpointError(f"{path.name} has {path.stat().st_size:,} bytes, a run's at most {MAX_TENSOR_BYTES:,}")
    try:
        return load_safetensors(path.read_bytes())
    except (SafetensorError, ValueError, RuntimeError, KeyError) as error:
        raise CheckpointError(f"{path.name} is truncated or damaged ({error})") from error


def _read_dynamics(path: Path, model: ModelConfig) -> Dynamics:
    tensors = _read_tensors(path)
    if missing := [name for name in _RECORDS if name not in tensors]:
        raise CheckpointError(f"{path.name} lacks {', '.join(missing)}")
    dynamics = Dynamics(**{name: tensors.pop(name).numpy() for name in _RECORDS}, snapshots=tensors)
    check_dynamics(dynamics, model)
    return dynamics


def _dynamics_tensors(dynamics: Dynamics) -> dict[str, Tensor]:
    records = {name: torch.from_numpy(np.array(getattr(dynamics, name), order="C")) for name in _RECORDS}
    return records | _plain(dynamics.snapshots)


def _plain(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    # A copy each: safetensors refuses tensors that share memory, and tied weights do.
    return {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()
    }


def _aside(path: Path) -> Path:
    return path.with_name(f".{path.name}.old")


def place_of(path: Path) -> Path:
    """Where the run called `path` lies: there, or aside if overwriting it was cut short."""
    if path.exists() or not path.name:
        return path
    return _aside(path) if _is_ours(_aside(path)) else path


def _is_ours(folder: Path) -> bool:
    return ((folder / RUN).is_file() and (folder / WEIGHTS).is_file()) or (folder / RUNS).is_file()


def _move_into_place(new: Path, path: Path) -> None:
    """Rename `new` to `path`; an older run steps aside first and comes back should the rename fail."""
    old = _aside(path)
    if _is_ours(path):
        shutil.rmtree(old, ignore_errors=True)
        path.rename(old)
    try:
        new.rename(path)
    except BaseException:
        if old.exists() and not path.exists():
            old.rename(path)
        raise
    shutil.rmtree(old, ignore_errors=True)
