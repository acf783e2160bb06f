"""Writing files so that a reader never sees half of one."""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path

from icl_interp.errors import SaveError


def write_file(path: str | Path, data: bytes | str) -> Path:
    """Write `data` to `path` all or nothing: a temporary file beside it, flushed to disk, then renamed over it.

    Raises:
        SaveError: the disk refused; what was at `path` before is still there.
    """
    path = Path(path)
    temporary: str | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        with open(handle, "wb") as file:
            os.fchmod(handle, 0o644)  # mkstemp's 0600 would hide the file from its group
            file.write(data.encode() if isinstance(data, str) else data)
            file.flush()
            os.fsync(handle)
        os.replace(temporary, path)
    except OSError as error:
        if temporary is not None:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
        raise SaveError(f"could not write {path}: {error.strerror or error}") from error
    return path
