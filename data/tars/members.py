"""The members of a tar that somebody else wrote: walked through, and refused where they are not on a list.

Only images, JSON and short texts may be members: nothing here is unpickled, executed, followed or written.
"""

import hashlib
import tarfile
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, cast

from clusters.config import InputError
from clusters.storage import BLOCK_BYTES, Folder

IMAGES = ("jpg", "jpeg", "png", "webp", "tif", "tiff", "bmp")
TEXTS = ("json", "cls", "txt")
BLOCK = tarfile.BLOCKSIZE


@contextmanager
def local_copy(folder: Folder, name: str) -> Iterator[BinaryIO]:
    """A file of a folder, open for reading at any place; one behind a URL is copied for as long as it is open."""
    if folder.path is not None:
        with folder.open(name) as file:
            yield file
        return
    with tempfile.TemporaryDirectory(prefix="manyview-") as temporary:
        target = Path(temporary) / "shard"
        folder.download(name, target)
        with target.open("rb") as file:
            yield cast(BinaryIO, file)


def hash_of_rest(file: BinaryIO, spans: Iterable[tuple[int, int]]) -> str:
    """SHA-256 of a file without its images, given as (offset, size)."""
    digest, done = hashlib.sha256(), 0
    for offset, size in [*sorted(spans), (file.seek(0, 2), 0)]:
        file.seek(done)
        while block := file.read(min(BLOCK_BYTES, offset - done)):
            digest.update(block)
            done += len(block)
        done = offset + size
    return digest.hexdigest()


def members(
    file: BinaryIO, size: int, where: Callable[[int, str], str], name: str
) -> Iterator[tuple[int, tarfile.TarInfo]]:
    """The members of the tar `name` that may be there, each checked; number 1 is the first that `tar tf` prints.

    `where` says how messages call a member. Raises InputError, one line: a member that is not on the list or leads
    out of the tar, a tar that is truncated or damaged.

    Python's reader takes a damaged header for the end of the tar, and a tar that was cut between two members is
    whole to it. So the end is looked at as well.
    """
    end = number = 0
    file.seek(0)
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            while (member := tar.next()) is not None:
                cast(Any, tar).members.clear()  # it keeps them all
                number += 1
                _check_kind(member, where(number, member.name))
                place = member.offset_data
                after = place if member.isdir() else place + -(-member.size // BLOCK) * BLOCK
                if member.size < 0 or place < end or place + (0 if member.isdir() else member.size) > size:
                    raise tarfile.ReadError
                end = after
                if not member.isdir():
                    yield number, member
    except InputError:
        raise
    except (tarfile.TarError, ValueError, OverflowError, RecursionError, EOFError):
        what = f"truncated or damaged after member {number} (byte {end:,})" if number else "no tar, or damaged"
        raise InputError(f"{name} is {what}; copy it again") from None
    file.seek(end)
    rest = file.read(2 * BLOCK)
    if len(rest) < BLOCK:
        raise InputError(f"{name} is truncated after member {number}: it has no end mark; copy it again")
    while rest:
        if rest.count(0) != len(rest):
            raise InputError(
                f"{name} is damaged after member {number} (byte {end:,}), or it is two tars in one file; "
                "copy or write it again"
            )
        rest = file.read(1 << 20)


def _check_kind(member: tarfile.TarInfo, where: str) -> None:
    """Refuse everything but folders and plain files with a plain name and an extension that is on the list."""
    name = member.name
    if name.startswith("/") or ".." in name.split("/") or "\\" in name:
        raise InputError(f"{where} has a path that leads out of the tar; write the tar again with plain names")
    if not name.isprintable():
        raise InputError(f"{where} has a name that is not plain text; write the tar again with plain names")
    if member.isdir():
        return
    if member.type not in (tarfile.REGTYPE, tarfile.AREGTYPE) or member.sparse is not None:
        raise InputError(f"{where} is a link, device or sparse file; write the tar again with plain files")
    kind = name.rpartition("/")[2].rpartition(".")[2].lower()
    if kind not in (*IMAGES, *TEXTS):
        raise InputError(
            f"{where} is none of {', '.join((*IMAGES, *TEXTS))}: other members could be code and are not adopted; "
            "write the tar again without them"
        )
