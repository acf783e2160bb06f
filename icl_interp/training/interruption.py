"""Ctrl-C asks a training to end; it does not tear it apart."""

from __future__ import annotations

import signal
import threading
from types import FrameType


class Interruption:
    """True once Ctrl-C was pressed.  A step is never cut in two; the second Ctrl-C is an ordinary one."""

    def __init__(self) -> None:
        self._pressed = False
        self._previous: signal.Handlers | object | None = None
        self._installed = False

    def __bool__(self) -> bool:
        return self._pressed

    def __enter__(self) -> Interruption:
        # Handlers belong to the main thread; elsewhere (a notebook's executor, a server) Ctrl-C is not ours to take.
        if threading.current_thread() is threading.main_thread():
            self._previous = signal.signal(signal.SIGINT, self._press)
            self._installed = True
        return self

    def _press(self, signum: int, frame: FrameType | None) -> None:
        self._pressed = True
        signal.signal(signal.SIGINT, self._previous)  # type: ignore[arg-type]

    def __exit__(self, *_: object) -> None:
        if self._installed:
            signal.signal(signal.SIGINT, self._previous)  # type: ignore[arg-type]
