"""Writing files so that a reader never sees half of one."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from icl_interp.errors import SaveError


def write_file(path: str | Path, data: bytes | str) -> Path:
    """Write `data` to `path` all or nothing: a temporary file beside it, flushed to disk, then renamed over it.

    Raises:
        SaveError: the disk refused; what was at `path` before is still there.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = hidden(path, "tmp")
        try:
            write_through(temporary, data.encode() if isinstance(data, str) else data)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    except (OSError, ValueError) as error:
        raise SaveError(f"could not write {path}: {reason(error)}") from error
    return path


def write_through(path: Path, data: bytes) -> None:
    """Write the new file `path`, flushed to disk."""
    with path.open("xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def hidden(path: Path, suffix: str) -> Path:
    """A name beside `path` that nobody has: with `tempfile`'s, permissions would not follow the user's umask."""
    return path.with_name(f".icl-{secrets.token_hex(8)}.{suffix}")


def reason(error: Exception) -> str:
    """What went wrong, without the errno and path that `str` of an `OSError` repeats."""
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
