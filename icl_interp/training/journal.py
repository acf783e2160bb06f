"""The state of a training on disk, so that it goes on after whatever stopped it.

Beside the folder OUT that the finished run gets lies, while it is trained, the folder .OUT.training:

    training.json           what is trained, and by what
    records-N.safetensors   what was recorded, in parts
    state.safetensors       the state at some step, and how many of the parts belong to it

Every file is written whole and renamed into place, the state last: killed at any moment, the training stands where it
was last saved.
"""

from __future__ import annotations

import json
import shutil
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save as save_safetensors
from torch import Tensor

from icl_interp.errors import CheckpointError, ConfigError, SaveError
from icl_interp.formats.files import reason, write_file
from icl_interp.serialization import dumps

TRAINING, STATE = "training.json", "state.safetensors"
PART_BYTES = 64 * 2**20  # of records that may wait in memory


class Journal:
    """The journal of the training that is to end in the folder `out`; nothing is written before the first `save`.

    Args:
        out: where the result will go.
        described: what is trained and by what, as plain data: a training goes on only as what it was.
        every: seconds between two saves.
    """

    def __init__(self, out: Path, described: dict[str, Any], every: float):
        target = out.resolve()
        self.folder: Path = target.with_name(f".{target.name}.training")
        self._described, self._every, self._saved, self._parts = described, every, time.monotonic(), 0
        self._open: list[Any] = []

    def exists(self) -> bool:
        """Whether there is something to go on from."""
        return (self.folder / STATE).is_file()

    def due(self, waiting: int) -> bool:
        """Whether it is time to save, by the clock or by the bytes of records that wait."""
        return time.monotonic() - self._saved >= self._every or waiting >= PART_BYTES

    def save(self, step: int, state: Mapping[str, Tensor], records: Mapping[str, Tensor]) -> bool:
        """Write the state after `step` and the records since the last save; whether the disk took them.

        A disk that does not is no reason to stop training: it is warned of, and tried again next time.
        """
        self._saved = time.monotonic()
        try:
            if self._parts == 0:
                write_file(self.folder / TRAINING, dumps(self._described))
            write_file(self._part(self._parts), save_safetensors(dict(records)))
            about = {"step": str(step), "parts": str(self._parts + 1)}
            write_file(self.folder / STATE, save_safetensors(dict(state), about))
        except SaveError as error:
            warnings.warn(f"the training goes on, but its state could not be saved: {error}", stacklevel=2)
            return False
        self._parts += 1
        return True

    def load(self) -> tuple[int, dict[str, Tensor]]:
        """The step of the last save and its state.

        Raises:
            ConfigError: it is another training's.
            CheckpointError: it is damaged.
        """
        try:
            found = json.loads((self.folder / TRAINING).read_text(encoding="utf-8"))
            with safe_open(self.folder / STATE, "pt") as file:
                about, state = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            step, self._parts = int(about["step"]), int(about["parts"])
            self._open_parts()
        except Exception as error:
            raise CheckpointError(f"{self.folder} cannot be gone on from: {reason(error)}") from error
        if found != json.loads(dumps(self._described)):
            raise ConfigError(
                f"{self.folder} is the state of another training: {'; '.join(_differences(found, self._described))}"
            )
        return step, state

    def parts(self, run: int, names: Sequence[str]) -> Iterator[dict[str, Tensor]]:
        """A run's records, part by part: the tensors saved as `RUN.NAME`."""
        self._open_parts()
        for file in self._open:
            try:
                yield {name: file.get_tensor(f"{run}.{name}") for name in names}
            except SafetensorError:  # this part has nothing of this run
                continue

    def remove(self) -> None:
        """The training is over, or to be forgotten."""
        self._open.clear()
        try:
            (self.folder / STATE).unlink(missing_ok=True)  # first: without it what is left is nothing to go on from
        except OSError:
            return
        shutil.rmtree(self.folder, ignore_errors=True)

    def _open_parts(self) -> None:
        """Once: a population asks for its runs one after another, and each part knows of all."""
        self._open += [safe_open(self._part(index), "pt") for index in range(len(self._open), self._parts)]

    def _part(self, index: int) -> Path:
        return self.folder / f"records-{index}.safetensors"


def _differences(old: Any, new: Any, path: str = "") -> Iterator[str]:
    """Where two pieces of plain data differ, in words."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in {**old, **new}:
            yield from _differences(old.get(key), new.get(key), f"{path}.{key}" if path else key)
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for i, (a, b) in enumerate(zip(old, new, strict=True)):
            yield from _differences(a, b, f"{path}[{i}]")
    elif old != new:
        yield f"{path} was {old!r}, is {new!r}"
