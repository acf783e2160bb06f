"""How a command ends."""

from __future__ import annotations

import sys

OK, FAILED, MISUSED, INTERRUPTED = 0, 1, 2, 130


def complain(error: object, status: int) -> int:
    """One line on standard error; the status."""
    print("icl-interp:", printable(" ".join(str(error).split())), file=sys.stderr)
    return status


def printable(text: str) -> str:
    """Text that does not steer the terminal: what a damaged file says, or how it is called, may try."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)
