"""Rows in a folder, as Parquet: added to a file at a time, never changed, and read by anything that reads Parquet.

    FOLDER/sweep.json            what is swept over, and how runs are analyzed
    FOLDER/rows/part-….parquet   rows as they came; files of one sweep may differ in their columns
    FOLDER/rows.parquet          all of them, once the sweep is done
    FOLDER/runs/CELL/            the runs, if they are kept

A file is there as a whole or not at all, and a row is told by its cell, so that a sweep that is killed at any moment
goes on with what is missing, and nothing is there twice.
"""

from __future__ import annotations

import io
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pandas as pd
from filelock import FileLock, Timeout

from icl_interp.errors import CheckpointError, ConfigError
from icl_interp.formats.files import write_file
from icl_interp.sweeps.rows import Row


class Dataset:
    """The rows of a sweep in a folder."""

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        self._parts, self._whole = self.folder / "rows", self.folder / "rows.parquet"

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Nobody else writes meanwhile, also from another process.

        Raises:
            ConfigError: somebody does.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.folder / ".lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise ConfigError(
                f"another sweep is writing to {self.folder}; wait for it, or take another folder"
            ) from None
        try:
            yield
        finally:
            lock.release()

    def frame(self) -> pd.DataFrame:
        """All rows there are, in the order of their cells.

        Raises:
            CheckpointError: a file that cannot be read.
        """
        files = [file for file in (self._whole, *sorted(self._parts.glob("part-*.parquet"))) if file.exists()]
        if not files:
            return pd.DataFrame({"cell": pd.Series(dtype=str)})
        rows = pd.concat([_read(file) for file in files], ignore_index=True)
        # A run that was tried again has its newer row in a part.
        return rows.drop_duplicates("cell", keep="last").sort_values("cell", ignore_index=True)

    def done(self, failed: bool = True) -> set[str]:
        """Cells that have a row; those that `failed` only if asked for."""
        rows = self.frame()
        return set(rows["cell"] if failed or rows.empty else rows["cell"][rows["error"].isna()])

    def add(self, rows: Sequence[Row]) -> None:
        """Write them down.

        Raises:
            SaveError: the disk refused; what was there is still there.
        """
        if rows:
            write_file(self._parts / f"part-{rows[0]['cell']}.parquet", _parquet(pd.DataFrame(rows)))

    def join(self) -> None:
        """One file of all rows, whose columns have one type throughout."""
        if any(self._parts.glob("part-*.parquet")):
            write_file(self._whole, _parquet(self.frame()))
        if self._parts.exists():
            shutil.rmtree(self._parts)  # with what a process that was killed left half written


def _parquet(frame: pd.DataFrame) -> bytes:
    buffer = io.BytesIO()
    frame.to_parquet(buffer, index=False)
    return buffer.getvalue()


def _read(file: Path) -> pd.DataFrame:
    try:
        return pd.read_parquet(file)
    except (OSError, ValueError) as error:  # of which pyarrow's own errors are
        raise CheckpointError(f"{file} cannot be read as rows of a sweep: {error}") from error
