"""The cache of this machine: where it lies, and whole shards of remote datasets in it.

A shard is downloaded once for all processes of a machine, under a lock and a temporary name, and renamed when it
is whole. The cache never grows over its bound: the shards that were not read for longest make room, and where
all were read within the last minute, the newcomer is read in ranges instead.
"""

import fcntl
import os
import shutil
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from clusters.config import InputError
from clusters.storage import Folder
from data.eviction import IN_USE_S, REFUSED_SHARE, TOUCH_EVERY_S, make_room

VARIABLE = "MANYVIEW_CACHE"
MEND = f"set {VARIABLE} or loader.cache to a folder of yours"
NUM_DOWNLOADS = 4
FREE_SHARE = 0.05
"""Share of the disk that is left free, whatever the bound."""
RETRY_AFTER_S = (0.2, 1.0)

T = TypeVar("T")


@dataclass(frozen=True)
class CachePlace:
    """Where a run's cache lies and how large it may grow. `folder` empty: as the environment says."""

    folder: str = ""
    size_gb: float = 64.0

    def sub_folder(self, name: str) -> Path:
        """A folder of this cache, made if need be. Raises InputError where it cannot be made."""
        folder = cache_folder(self.folder) / name
        try:
            folder.mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            raise InputError(f"{folder}: no cache can be made there ({error.strerror}); {MEND}") from None
        return folder


def cache_folder(base: str = "") -> Path:
    """The user's cache folder on this machine, mode 0700.

    In `base`, else in $MANYVIEW_CACHE, else in $XDG_CACHE_HOME, else in the folder for temporary files: home
    folders are often on a network. Raises InputError where it cannot be made or is somebody else's.
    """
    parent = Path(base or os.environ.get(VARIABLE) or os.environ.get("XDG_CACHE_HOME") or tempfile.gettempdir())
    folder = parent / f"manyview-{os.getuid()}"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = folder.lstat()
    except OSError as error:
        raise InputError(f"{folder}: no cache can be made there ({error.strerror}); {MEND}") from None
    if folder.is_symlink() or status.st_uid != os.getuid():
        raise InputError(f"{folder}: a cache of somebody else; {MEND}")
    if status.st_mode & 0o077:
        folder.chmod(0o700)
    return folder


def short_of_disk(place: CachePlace, wanted: int) -> str | None:
    """What to tell a person of a cache whose disk, not its bound, keeps `wanted` bytes of shards from lying in it."""
    folder = place.sub_folder("shards")
    room = _free(folder)
    for path in folder.glob("*.tar"):
        with suppress(FileNotFoundError):  # another run makes room
            room += path.stat().st_size
    wanted = min(wanted, int(place.size_gb * 1e9))
    if room >= wanted:
        return None
    return (
        f"{folder}: the cache has room for {max(room, 0) / 1e9:.3g} of {wanted / 1e9:.3g} GB of shards, of its disk "
        f"{FREE_SHARE:.0%} stays free; what does not fit is read anew, in parts, in each epoch; free some, or set "
        "loader.cache to a folder on a larger disk"
    )


def _free(folder: Path) -> int:
    """Bytes that a cache may still take of its disk."""
    disk = shutil.disk_usage(folder)
    return disk.free - int(FREE_SHARE * disk.total)


def patiently(read: Callable[[], T]) -> T:
    """What `read` gives; asked again after short pauses, since stores and networks fail for moments."""
    for pause_s in RETRY_AFTER_S:
        try:
            return read()
        except (FileNotFoundError, PermissionError):
            raise
        except OSError:
            time.sleep(pause_s)
    return read()


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a lock between the processes of this machine; without one where the file system has none."""
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        with suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
    finally:
        os.close(file)


class ShardCache:
    """The shards of one remote dataset, in the cache that all datasets of a user share."""

    def __init__(
        self, remote: Folder, fingerprint: str, sizes: dict[str, int], place: CachePlace, in_use_s: float = IN_USE_S
    ) -> None:
        self._remote, self._sizes, self._in_use_s = remote, sizes, in_use_s
        self._prefix = fingerprint[:24]
        self._limit = int(place.size_gb * 1e9)
        self._folder = place.sub_folder("shards")
        self._touched: dict[str, float] = {}
        self._refused: dict[str, float] = {}
        self._coming: dict[str, Future[bool]] = {}
        self._guard = threading.Lock()
        self._downloads = threading.Semaphore(NUM_DOWNLOADS)

    def read(self, name: str, offset: int, size: int) -> bytes | None:
        """A part of a shard, from the cache; None where it is not there. Waits for one that was announced."""
        content = self._read(name, offset, size)
        if content is None:
            with self._guard:
                coming = self._coming.get(name)
            if coming is not None:
                with suppress(OSError):  # the read that takes its place reports what is wrong
                    coming.result()
            content = self._read(name, offset, size)  # it may also have come between the two looks
        return content

    def announce(self, names: list[str], wait: bool) -> None:
        """Download these shards in the background. `wait`: even where another process is already at it."""
        for name in names:
            if self._path(name).exists() or time.monotonic() < self._refused.get(name, 0.0):
                continue
            with self._guard:
                if name in self._coming:
                    continue
                self._coming[name] = Future()
            # Threads that die with the process: nobody waits for a download at the end of a run.
            threading.Thread(target=self._bring, args=(name, wait), daemon=True).start()

    def fetch(self, name: str, wait: bool = True) -> bool:
        """Download a shard if it is not there; False where there is no room, or somebody else is at it."""
        if self._sizes[name] > self._limit:
            return False
        lock = os.open(self._path(name).with_suffix(".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except BlockingIOError:
                return False
            if self._path(name).exists():
                return True
            return self._download(name)
        finally:
            os.close(lock)

    def drop(self, name: str) -> bool:
        """Remove a shard that turned out to be damaged; whether it was there."""
        try:
            self._path(name).unlink()
        except FileNotFoundError:
            return False
        return True

    def _read(self, name: str, offset: int, size: int) -> bytes | None:
        try:
            file = os.open(self._path(name), os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        try:
            now = time.monotonic()
            if now - self._touched.get(name, -TOUCH_EVERY_S) >= TOUCH_EVERY_S:
                with suppress(OSError):  # a cache that is mounted read-only
                    os.utime(file)
                self._touched[name] = now
            return os.pread(file, size, offset)
        finally:
            os.close(file)

    def _bring(self, name: str, wait: bool) -> None:
        coming = self._coming[name]
        try:
            with self._downloads:
                there = self.fetch(name, wait)
            if not there and wait:
                self._refused[name] = time.monotonic() + REFUSED_SHARE * self._in_use_s
            coming.set_result(there)
        except Exception as error:  # for whoever waits for the shard
            coming.set_exception(error)
        finally:
            with self._guard:
                del self._coming[name]

    def _download(self, name: str) -> bool:
        reserved = self._reserve(name)
        if reserved is None:
            return False
        part, file = reserved
        try:
            patiently(lambda: self._remote.download(name, part))
            if os.fstat(file).st_size != self._sizes[name]:
                raise InputError(
                    f"{self._remote.file(name)}: {os.fstat(file).st_size} bytes came, the manifest says "
                    f"{self._sizes[name]}; run the command again, or copy the dataset again"
                )
            with locked(self._folder / "room.lock"):  # who counts what is there sees it under one name or the other
                part.replace(self._path(name))
        finally:
            part.unlink(missing_ok=True)
            os.close(file)
        return True

    def _reserve(self, name: str) -> tuple[Path, int] | None:
        """Room for a shard, as an empty file whose name says how much will be in it; None where there is none.

        The file comes open and locked: one that nobody holds was left behind by a process that died.
        """
        wanted = self._sizes[name]
        with locked(self._folder / "room.lock"):
            taken, idle = 0, []
            for path in self._folder.iterdir():
                with suppress(FileNotFoundError):
                    status = path.stat()
                    if path.suffix == ".part":
                        taken += self._reserved(path)
                    else:
                        taken += status.st_size
                        if path.suffix == ".tar" and status.st_mtime <= time.time() - self._in_use_s:
                            idle.append((status.st_mtime, path, status.st_size))
            leaving = make_room(wanted, min(self._limit, taken + _free(self._folder)), taken, idle)
            if leaving is None:
                return None
            for path in leaving:
                path.unlink(missing_ok=True)
            part = self._folder / f"{self._path(name).name}.{wanted}.{uuid.uuid4().hex[:8]}.part"
            file = os.open(part, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            fcntl.flock(file, fcntl.LOCK_EX)
            return part, file

    def _reserved(self, part: Path) -> int:
        """What a download that goes on will take; one whose process died is removed and takes nothing."""
        file = os.open(part, os.O_RDWR | os.O_CLOEXEC)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return int(part.name.split(".")[-3])
        finally:
            os.close(file)
        part.unlink(missing_ok=True)
        return 0

    def _path(self, name: str) -> Path:
        return self._folder / f"{self._prefix}-{name}"
