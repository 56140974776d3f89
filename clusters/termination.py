"""Notices to leave: SIGTERM, Ctrl-C, or a node that is taken back. A training loop looks for them, saves, and leaves.

Where it arrives a notice is only kept in mind, so that no step is cut in two and all ranks leave after the same one.
"""

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

EXIT_CODE = 128 + signal.SIGTERM
INTERRUPTED = "Ctrl-C"

_notice: str | None = None
_heeded = False
_before: Any = signal.SIG_DFL


class Stopped(SystemExit):
    """The run has been told to leave, and has saved what it was at. It ends a process with 143, or 130 after Ctrl-C.

    `told`: by what; none: by what this process was.
    """

    def __init__(self, told: str | None = None) -> None:
        super().__init__(128 + signal.SIGINT if (told or _notice) == INTERRUPTED else EXIT_CODE)


def notice() -> str | None:
    """What this process was told (`SIGTERM`, `Ctrl-C`), if it was."""
    return _notice


def keep(told: str) -> None:
    """Keep a notice in mind until the loop looks."""
    global _notice
    _notice = told


@contextmanager
def heeding() -> Iterator[None]:
    """The block looks for a `notice` now and then, and leaves. Outside SIGTERM and Ctrl-C do what they always did.

    So does a second Ctrl-C. Only a main thread can listen for signals; a Ray worker trains in another one, see
    `leaving.hearing_torch`.
    """
    global _heeded
    listens = threading.current_thread() is threading.main_thread()
    interrupts = listens and signal.getsignal(signal.SIGINT) == signal.default_int_handler
    if listens:
        listen()
    if interrupts:
        signal.signal(signal.SIGINT, on_interrupt)
    _heeded = True
    try:
        yield
    finally:
        _heeded = False
        if listens:
            signal.signal(signal.SIGTERM, _before)
        if interrupts:
            signal.signal(signal.SIGINT, signal.default_int_handler)


def on_interrupt(number: int, frame: FrameType | None) -> None:
    """The first Ctrl-C is kept in mind, the next one is Python's own."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    print("Ctrl-C: the step is saved first; a second one stops at once", file=sys.stderr, flush=True)
    keep(INTERRUPTED)


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
