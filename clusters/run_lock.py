"""One run at a time in a run folder: a second is refused while the first lives.

The kernel holds the lock and lets it go with its holder, however that ends: none is ever left behind. Where there are
no such locks (a URL, some network file systems) two runs can begin, and the attempt numbers of checkpoints make the
first one stop.
"""

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from socket import gethostname
from typing import Literal, TextIO

from clusters.config import InputError
from clusters.storage import Folder

LOCK = ".lock"


@contextmanager
def run_lock(run: Folder, privacy: Literal["normal", "strict"] = "normal") -> Iterator[None]:
    """Hold the run folder for the block. Raises InputError with process and host of who holds it.

    With `privacy=strict` the host is not written down.
    """
    file = None if run.path is None else _acquire(run.path, 0o600 if privacy == "strict" else 0o666)
    if run.path is None or file is None:
        yield
        return
    with file:
        file.truncate(0)
        file.write(json.dumps({"process": os.getpid(), **({} if privacy == "strict" else {"host": gethostname()})}))
        file.flush()
        try:
            yield
        finally:
            (run.path / LOCK).unlink(missing_ok=True)


def _acquire(folder: Path, mode: int) -> TextIO | None:
    """The lock, as the open file that holds it; none where there are no locks, or nothing can be written at all."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        while True:
            file = _open(folder / LOCK, mode)
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.seek(0)
                raise InputError(
                    f"{folder}: another run is at work in this folder ({_named(file.read())}); wait for its end, or "
                    "stop it first"
                ) from None
            if not _is_still_there(file, folder / LOCK):
                file.close()
            elif file.writable():
                return file
            else:  # another's, who has gone
                (folder / LOCK).unlink()
                file.close()
    except OSError:
        return None


def _open(path: Path, mode: int) -> TextIO:
    """The lock's file, for reading alone where it is another user's: it can be locked all the same."""
    try:
        return open(path, "a+", opener=lambda path, flags: os.open(path, flags, mode))
    except PermissionError:
        return path.open()


def _is_still_there(file: TextIO, path: Path) -> bool:
    """Not where the holder before removed the file after we had opened it: then the next one would lock another."""
    try:
        return os.fstat(file.fileno()).st_ino == path.stat().st_ino
    except FileNotFoundError:
        return False


def _named(content: str) -> str:
    """`process 12, host lab3`; a holder that is just about to write itself down is not known yet."""
    try:
        return ", ".join(f"{key} {value}" for key, value in json.loads(content).items())
    except ValueError:
        return "it has just begun"
