"""Fixed-width arrays in one file, memory-mapped: all processes of a node share one copy of the pages.

A file is magic, SHA-256 of the header, length of the header, header (JSON: each array's type, shape, place and
hash, and the file's size), arrays at multiples of 64 bytes. Opening one checks the header and the size, and those
arrays that it is told to check; `intact` checks all of them.
"""

import hashlib
import json
import mmap
import os
import time
import uuid
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clusters.config import InputError
from data.cache import locked

MAGIC = b"manyview arrays1"
ALIGNMENT = 64
UNUSED_S = 30 * 24 * 3600.0

Arrays = Mapping[str, NDArray[Any]]
Kinds = Mapping[str, tuple[str, tuple[int, ...]]]  # name: (numpy type, shape)


def mapped_arrays(
    path: Path, kinds: Callable[[], Kinds], fill: Callable[[Arrays], None], check: Collection[str] = ()
) -> Arrays:
    """The arrays of a file, read-only; where it is not there or damaged, it is made first.

    `fill` writes all elements of the arrays it is given; those named in `check` are read whole to find damage.
    Of many processes that ask at once, one makes the file.
    Raises InputError where there is no room for it.
    """
    arrays = open_arrays(path, check)
    if arrays is not None:
        return arrays
    try:
        with locked(path.parent / "making.lock"):
            arrays = open_arrays(path, check)
            if arrays is None:
                _remove_unused(path.parent)
                _write(path, kinds(), fill)
                arrays = open_arrays(path)
    except OSError as error:
        raise InputError(
            f"{path}: cannot be written ({error.strerror or error}); set MANYVIEW_CACHE or loader.cache "
            "to a folder of this machine with more room"
        ) from None
    assert arrays is not None
    return arrays


def share_arrays(folder: Path, arrays: Arrays) -> Path:
    """Write arrays to a file that is named by their content, unless it is there and whole."""
    digest = hashlib.sha256()
    for name, array in sorted(arrays.items()):
        digest.update(f"{name} {array.dtype} {array.shape} ".encode())
        digest.update(np.ascontiguousarray(array).data)
    path = folder / f"{digest.hexdigest()[:32]}.arrays"

    def fill(views: Arrays) -> None:
        for name, array in arrays.items():
            views[name][:] = array

    kinds = {name: (array.dtype.str, array.shape) for name, array in arrays.items()}
    mapped_arrays(path, lambda: kinds, fill, check=arrays.keys())
    return path


def open_arrays(path: Path, check: Collection[str] = ()) -> Arrays | None:
    """The arrays of a file, read-only, or None where it is not there or damaged.

    Its header and size are checked, and the arrays that `check` names (those are read whole).
    """
    opened = _opened(path)
    if opened is None:
        return None
    arrays, header = opened
    if not _whole(arrays, header, check):
        return None
    with suppress(OSError):  # a cache that is mounted read-only
        os.utime(path)  # when it was last wanted
    return arrays


def intact(path: Path) -> bool:
    """Whether every byte of a file's arrays is as it was written; reads all of it."""
    opened = _opened(path)
    return opened is not None and _whole(*opened, opened[0].keys())


def _opened(path: Path) -> tuple[Arrays, dict[str, Any]] | None:
    """The arrays of a file and what its header says of each."""
    try:
        with path.open("rb") as file:
            header = _header(file.read(len(MAGIC) + 40), file.read)
            if header is None or os.fstat(file.fileno()).st_size != header["size"]:
                return None
            pages = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError):
        return None
    return {name: _view(pages, array) for name, array in header["arrays"].items()}, header["arrays"]


def _header(start: bytes, read: Callable[[int], bytes]) -> dict[str, Any] | None:
    if not start.startswith(MAGIC):
        return None
    digest, length = start[len(MAGIC) : len(MAGIC) + 32], int.from_bytes(start[len(MAGIC) + 32 :], "little")
    content = read(min(length, 1 << 20))
    return json.loads(content) if hashlib.sha256(content).digest() == digest else None


def _view(pages: mmap.mmap, array: dict[str, Any]) -> NDArray[Any]:
    count = int(np.prod(array["shape"], dtype=np.int64))
    return np.frombuffer(pages, array["dtype"], count, array["offset"]).reshape(array["shape"])


def _write(path: Path, kinds: Kinds, fill: Callable[[Arrays], None]) -> None:
    """Write a file under a temporary name and rename it."""
    # Places first: the header's length does not depend on the hashes, which come last.
    arrays: dict[str, dict[str, Any]] = {
        name: {"dtype": dtype, "shape": list(shape), "offset": 0, "sha256": "0" * 64}
        for name, (dtype, shape) in kinds.items()
    }
    end = _aligned(len(MAGIC) + 40 + len(json.dumps(arrays)) + 20 * (len(arrays) + 2))
    for array in arrays.values():
        array["offset"] = end
        end = _aligned(end + int(np.prod(array["shape"], dtype=np.int64)) * np.dtype(array["dtype"]).itemsize)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.part")
    try:
        with temporary.open("w+b") as file:
            # A mapped write to a full disk would be a bus error instead of an OSError.
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, end)
            file.truncate(end)
            pages = mmap.mmap(file.fileno(), end)
            views = {name: _view(pages, array) for name, array in arrays.items()}
            fill(views)
            for name, view in views.items():
                arrays[name]["sha256"] = _digest(view)
            header = json.dumps({"size": end, "arrays": arrays}).encode()
            start = MAGIC + hashlib.sha256(header).digest() + len(header).to_bytes(8, "little") + header
            assert len(start) <= min((a["offset"] for a in arrays.values()), default=end)
            pages[: len(start)] = start
            pages.flush()
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _aligned(place: int) -> int:
    return -(-place // ALIGNMENT) * ALIGNMENT


def _digest(array: NDArray[Any]) -> str:
    return hashlib.sha256(array.reshape(-1).view(np.uint8).data if array.size else b"").hexdigest()


def _whole(arrays: Arrays, header: dict[str, Any], names: Collection[str]) -> bool:
    """Whether these arrays have the hashes of the header; hashed side by side, since a run waits for it."""
    if not names:
        return True
    with ThreadPoolExecutor(min(len(names), 8)) as threads:
        digests = list(threads.map(lambda name: _digest(arrays[name]), names))
    return digests == [header[name]["sha256"] for name in names]


def _remove_unused(folder: Path) -> None:
    """Remove what no process has opened for a month, but no lock: somebody may hold it."""
    for path in folder.iterdir():
        try:
            if path.suffix != ".lock" and path.stat().st_mtime < time.time() - UNUSED_S:
                path.unlink()
        except OSError:
            continue  # another process was faster
