"""What can go wrong, by whose doing.

Every message says what was passed, and what would be right.  The command line turns `ConfigError` into exit status 2
(misuse) and the others into 1 (failure).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from icl_interp.records import Run, Runs


class ICLError(Exception):
    """Base of the library's own errors."""


class ConfigError(ICLError, ValueError):
    """A parameter that cannot be: zero heads, a negative noise, a Σ that is not positive definite."""


class CheckpointError(ICLError, ValueError):
    """A checkpoint that cannot be opened or trusted: not there, truncated, not finite, from the future."""


class NoCheckpointError(CheckpointError, ConfigError):
    """What was named is no checkpoint: nothing there, or a folder of something else."""


class UnsaidError(CheckpointError, ConfigError):
    """What a checkpoint does not say, and has to be given to open it."""


class NumericsError(ICLError, ArithmeticError):
    """A number that is not defined, such as attention weights whose denominator is next to zero."""


class SaveError(ICLError, OSError):
    """A run could not be written.  The run itself (or runs) is in `run`, so nothing that was trained is lost."""

    def __init__(self, message: str, run: Run | Runs | None = None):
        super().__init__(message)
        self.run = run


class TrainingError(ICLError, RuntimeError):
    """Training went wrong.  What was trained up to the last good record is in `run`, where there is any."""

    def __init__(self, message: str, run: Run | None = None):
        super().__init__(message)
        self.run = run
