"""Notices to leave: SIGTERM, or a node that is taken back. A training loop looks for them, saves, and leaves.

Where it arrives a notice is only kept in mind, so that no step is cut in two and all ranks leave after the same one.
"""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

EXIT_CODE = 128 + signal.SIGTERM

_notice: str | None = None
_heeded = False
_before: Any = signal.SIG_DFL


class Stopped(SystemExit):
    """The run has been told to leave, and has saved what it was at. It ends a process with exit code 143."""

    def __init__(self) -> None:
        super().__init__(EXIT_CODE)


def notice() -> str | None:
    """What this process was told (`SIGTERM`), if it was."""
    return _notice


def keep(told: str) -> None:
    """Keep a notice in mind until the loop looks."""
    global _notice
    _notice = told


@contextmanager
def heeding() -> Iterator[None]:
    """The block looks for a `notice` now and then, and leaves. Outside of one SIGTERM does what it always did.

    Only a main thread can listen for signals; a Ray worker trains in another one, see `leaving.hearing_torch`.
    """
    global _heeded
    listens = threading.current_thread() is threading.main_thread()
    if listens:
        listen()
    _heeded = True
    try:
        yield
    finally:
        _heeded = False
        if listens:
            signal.signal(signal.SIGTERM, _before)


def listen() -> None:
    """Have SIGTERM kept in mind where it is heeded. For main threads only."""
    global _before
    if signal.getsignal(signal.SIGTERM) != _on_signal:
        _before = signal.signal(signal.SIGTERM, _on_signal) or signal.SIG_DFL  # none: not of Python


def _on_signal(number: int, frame: FrameType | None) -> None:
    if _heeded:
        keep("SIGTERM")
    elif callable(_before):
        _before(number, frame)
    elif _before != signal.SIG_IGN:
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
