"""One run at a time in a run folder: a second is refused while the first lives.

The kernel holds the lock and lets it go with its holder, however that ends: none is ever left behind. A URL, and a
network file system without such locks, has a lease instead (lease.py).
"""

import errno
import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from socket import gethostname
from typing import Any, Literal, TextIO

from clusters.config import InputError
from clusters.lease import lease, named
from clusters.privacy import close_folder
from clusters.storage import Folder

LOCK = ".lock"
FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS)
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


@contextmanager
def run_lock(run: Folder, privacy: Literal["normal", "strict"] = "normal") -> Iterator[None]:
    """Hold the run folder for the block. Raises InputError with process and host of who holds it.

    With `privacy=strict` the host is not written down, and the folder is its owner's alone. Where nobody may write,
    nothing is held: what the run does next says so.
    """
    if privacy == "strict":
        with suppress(OSError):
            close_folder(run)
    holder = {"process": os.getpid(), **({} if privacy == "strict" else {"host": gethostname()})}
    with ExitStack() as held:
        try:
            held.enter_context(_lock_or_lease(run, holder, 0o600 if privacy == "strict" else 0o666))
        except OSError as error:
            if run.path is None or error.errno not in FORBIDDEN:
                if isinstance(error, (FileExistsError, NotADirectoryError)):
                    raise InputError(f"{run}: a file is in the place of this folder; name another one") from None
                told = " ".join(str(error).split())
                raise InputError(
                    f"{run}: cannot be kept from other runs ({told}); mend the storage or its credentials, then start "
                    "again"
                ) from None
        yield


@contextmanager
def _lock_or_lease(run: Folder, holder: dict[str, Any], mode: int) -> Iterator[None]:
    file = None if run.path is None else _acquire(run.path, mode)
    if run.path is None or file is None:
        with lease(run, holder):
            yield
        return
    with file:
        with suppress(OSError):  # on a full disk it is held without a name
            os.ftruncate(file.fileno(), 0)
            os.write(file.fileno(), json.dumps(holder).encode())
        try:
            yield
        finally:
            (run.path / LOCK).unlink(missing_ok=True)


def _acquire(folder: Path, mode: int) -> TextIO | None:
    """The lock, as the open file that holds it; none where there are no locks. OSError: nothing can be written."""
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
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
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
    try:
        return named(json.loads(content))
    except ValueError:
        return named({})
