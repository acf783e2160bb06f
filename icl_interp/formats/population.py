"""A population in one folder: `runs.json`, which says how many there are, and a run's folder for each: 0000, 0001, …"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from icl_interp.errors import CheckpointError, NoCheckpointError, SaveError
from icl_interp.formats.files import reason, write_through
from icl_interp.formats.native import RUNS, member, place_of, read_json, save_folder, write_run
from icl_interp.records import Run, Runs
from icl_interp.serialization import dumps

SCHEMA_VERSION = 1


def save_runs(runs: Iterable[Run], path: str | Path, *, overwrite: bool = False) -> Path:
    """Write `runs`, one at a time, as the folder `path`, all or nothing; see `save_run`.

    Raises:
        SaveError: as `save_run`; it carries the runs if they are `Runs`.
    """

    def write(folder: Path) -> None:
        count = 0
        for run in runs:
            place = folder / _name(count)
            place.mkdir()
            write_run(run, place)
            count += 1
        write_through(folder / RUNS, dumps({"schema_version": SCHEMA_VERSION, "runs": count}).encode())

    try:
        return save_folder(path, write, overwrite=overwrite)
    except SaveError as error:
        raise SaveError(str(error), runs if isinstance(runs, Runs) else None) from error


def load_runs(path: str | Path) -> Runs:
    """The population in the folder `path`; each run is opened when asked for.

    Raises:
        CheckpointError: not there or not a population (`NoCheckpointError`), or incomplete.
    """
    path = Path(path)
    folder = place_of(path)
    if not (folder / RUNS).is_file():
        raise NoCheckpointError(f"{path}: is not a population of runs: expected a folder with {RUNS}")
    try:
        about = read_json(member(folder, RUNS))
        version, count = about.get("schema_version"), about.get("runs")
        if version != SCHEMA_VERSION or type(count) is not int or not 0 <= count < 10**9:
            raise CheckpointError(f"{RUNS} must give schema_version {SCHEMA_VERSION} and a number of runs, got {about}")
        places = [member(folder, _name(i)) for i in range(count)]
        if missing := [place.name for place in places if not place.is_dir()]:
            raise CheckpointError(f"{len(missing)} of {count} runs are missing: {', '.join(missing[:8])}")
    except (CheckpointError, OSError) as error:
        raise CheckpointError(f"{path}: {reason(error)}") from error
    return Runs(places)


def _name(index: int) -> str:
    return f"{index:04d}"
