"""A notice to the worker that saves: leave a checkpoint now, since the workers are about to be started anew.

Given in another thread of its process, or by whoever can call a function there; heeded by `Checkpoints`.
"""

import threading

_given = threading.Event()


def give() -> None:
    """Ask for a checkpoint after the step that runs."""
    _given.set()


def is_given() -> bool:
    """Whether a checkpoint was asked for that is not on disk yet."""
    return _given.is_set()


def heeded() -> None:
    """Say that the checkpoint is on disk."""
    _given.clear()
