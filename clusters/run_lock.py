"""One run at a time in a run folder: a second is refused while the first lives.

The kernel holds the lock and lets it go with its holder, however that ends: none is ever left behind. Where there are
no such locks (a URL, some network file systems) two runs can begin, and the attempt numbers of checkpoints make the
first one stop.
"""

import fcntl
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO, Literal

from clusters.config import InputError
from clusters.storage import Folder

LOCK = ".lock"


@contextmanager
def run_lock(run: Folder, privacy: Literal["normal", "strict"] = "normal") -> Iterator[None]:
    """Hold the run folder for the block. Raises InputError with process and host of who holds it.

    With `privacy=strict` the host is not written down.
    """
    if run.path is None:
        yield
        return
    run.path.mkdir(parents=True, exist_ok=True)
    with (run.path / LOCK).open("a+b") as file:
        locked = _lock(file, run)
        if locked:
            _write(file, {"process": os.getpid(), **({"host": socket.gethostname()} if privacy == "normal" else {})})
        try:
            yield
        finally:
            if locked:
                _write(file, {})  # the file stays: removing it would leave two runs with a lock of their own each


def _lock(file: BinaryIO, run: Folder) -> bool:
    """Whether there are locks here at all."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        raise InputError(
            f"{run}: another run is at work in this folder ({_named(file.read())}); wait for its end, or stop it first"
        ) from None
    except OSError:
        return False
    return True


def _write(file: BinaryIO, holder: dict[str, Any]) -> None:
    file.truncate(0)
    file.write(json.dumps(holder).encode() if holder else b"")
    file.flush()


def _named(content: bytes) -> str:
    """`process 12, host lab3`; a holder that is just about to write itself down is not known yet."""
    try:
        return ", ".join(f"{key} {value}" for key, value in json.loads(content).items())
    except ValueError:
        return "it has just begun"
