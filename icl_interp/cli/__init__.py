"""The command line: thin.  Exit status 0: fine; 1: failed; 2: misused; 130: interrupted, what was trained is saved."""

from __future__ import annotations

import argparse
import io
import os
import sys
from collections.abc import Callable, Sequence

from icl_interp.cli.options import parser
from icl_interp.cli.outcome import FAILED, INTERRUPTED, MISUSED, OK, complain
from icl_interp.errors import ConfigError, ICLError

__all__ = ["FAILED", "INTERRUPTED", "MISUSED", "OK", "main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; the exit status."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal that cannot show ω is no reason to fail
    options = parser().parse_args(arguments)
    command: Callable[[argparse.Namespace], int] = options.command
    try:
        status = command(options)
        sys.stdout.flush()
        return status
    except ConfigError as error:
        return complain(error, MISUSED)
    except BrokenPipeError:  # `icl-interp probes | head`: nobody reads on, and Python must not try again at its exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OK
    except (ICLError, OSError) as error:
        return complain(error, FAILED)
    except KeyboardInterrupt:
        return complain("interrupted", INTERRUPTED)
