"""Reads a whole dataset again and compares everything with everything, as fast as the disk gives it.

Several shards are read at once, each in pieces, so that memory does not grow with the dataset: hashing leaves
Python's lock to the other threads.
"""

import hashlib
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain
from typing import BinaryIO

import pyarrow as pa
import pyarrow.parquet as parquet

from clusters.config import InputError
from clusters.storage import BLOCK_BYTES, Folder
from data.config import num_cores
from data.manifest import INDEX, FileRecord, Manifest, read_manifest
from data.progress import Progress
from data.verify_privacy import privacy_problems

ROWS_AT_ONCE = 1 << 16
TOLD_OF_A_SHARD = 3
READERS_PER_CORE = 2  # while one waits for the disk, the other hashes
REMOTE_READERS = 16  # at once from a URL, where most of the time is waiting
TO_MB = 1e-6


@dataclass(frozen=True)
class Expected:
    """An image as the index tells of it."""

    member: str
    offset: int
    size: int
    sha256: str


def verify(location: str, quiet: bool = True) -> str:
    """Verify a dataset folder or URL; returns one line that says so.

    Raises InputError with the number of problems, then a line for each. A problem names the file, and the
    images in it that differ.
    """
    begun = time.monotonic()
    folder = Folder(location)
    manifest = read_manifest(folder)
    size = sum(record.size for record in manifest.files.values())
    progress = Progress("verify", size * TO_MB, "MB", quiet)
    problems = list(_problems(folder, manifest, progress))
    progress.close()
    if problems:
        number = f"{len(problems)} problem{'s' if len(problems) > 1 else ''}"
        lines = "".join(f"\n  {problem}" for problem in problems)
        raise InputError(f"{location} is damaged: {number}; copy it again or import again{lines}")
    counts = manifest.counts
    return (
        f"OK: {location}: {counts.images:,} images of {counts.cases:,} cases of {counts.patients:,} patients "
        f"in {len(manifest.shards)} shards, {size / 1e6:,.1f} MB read in {time.monotonic() - begun:.1f} s, "
        f"{manifest.sha256[:12]}"
    )


def _problems(folder: Folder, manifest: Manifest, progress: Progress) -> Iterator[str]:
    sizes = folder.sizes()
    for name in sizes:
        if name.endswith(".tar") and name not in manifest.files:
            yield f"{name} is not in the manifest"

    # The index: only one that is whole can tell of the images.
    problem = _shard_problem(folder, INDEX, [], manifest, sizes, progress)
    if problem:
        yield problem
        yield from _in_parallel(folder, manifest, sizes, progress, ((shard, []) for shard in manifest.shards))
        return
    with folder.open(INDEX) as file:
        index = parquet.ParquetFile(file)
        yield from _in_parallel(folder, manifest, sizes, progress, _by_shard(index, manifest))
        yield from _index_problems(index, manifest)
        yield from privacy_problems(index, manifest)


def _in_parallel(
    folder: Folder,
    manifest: Manifest,
    sizes: dict[str, int],
    progress: Progress,
    shards: Iterator[tuple[int, list[Expected]]],
) -> Iterator[str]:
    """The problems of all shards, in their order; a few shards are read at once."""
    num_readers = READERS_PER_CORE * num_cores() if folder.path is not None else REMOTE_READERS
    waiting: list[Future[str]] = []
    with ThreadPoolExecutor(num_readers) as pool:
        for shard, images in chain(shards, [(-1, [])]):
            if shard in manifest.shards:
                name = manifest.shards[shard]
                waiting.append(pool.submit(_shard_problem, folder, name, images, manifest, sizes, progress))
            while waiting and (shard < 0 or len(waiting) > num_readers):
                if problem := waiting.pop(0).result():
                    yield problem


def _by_shard(index: parquet.ParquetFile, manifest: Manifest) -> Iterator[tuple[int, list[Expected]]]:
    """The images of every shard, in the order of the shards; a shard that the index does not know has none."""
    left = list(manifest.shards)
    columns = ["shard", "member", "offset", "size", "sha256"]
    shard, images = -1, []
    for batch in index.iter_batches(ROWS_AT_ONCE, columns=columns):
        for number, *values in zip(*(batch.column(name).to_pylist() for name in columns)):
            if number != shard:
                if images:
                    yield shard, images
                shard, images = number, []
                if shard in left:
                    left.remove(shard)
            images.append(Expected(*values))
    if images:
        yield shard, images
    yield from ((shard, []) for shard in left)


def _shard_problem(
    folder: Folder, name: str, images: list[Expected], manifest: Manifest, sizes: dict[str, int], progress: Progress
) -> str:
    """What is wrong with a file, with the images in it that differ; empty where nothing is."""
    record = manifest.files[name]
    if name not in sizes:
        return f"{name} is missing"
    found: list[str] = []

    def advance(number: int) -> None:
        progress.advance(number * TO_MB)

    try:
        with folder.open(name) as file:
            if record.rest_sha256:
                if _holds(file, images, record, advance):
                    return ""
                file.seek(0)  # once more, to say what differs
            sha256, size, differ = _read_through(file, images, (lambda _: None) if record.rest_sha256 else advance)
    except OSError as error:
        return f"{name} cannot be read ({error.strerror or error})"
    if size != record.size:
        found.append(f"{name} has {size:,} bytes, the manifest says {record.size:,}")
    elif sha256 != record.sha256:
        found.append(f"{name} was altered (its hash differs)")
    elif differ:
        found.append(f"{INDEX} tells of other bytes than {name} has")
    found += [f"image {member} differs" for member in differ[:TOLD_OF_A_SHARD]]
    if len(differ) > TOLD_OF_A_SHARD:
        found.append(f"{len(differ):,} images differ in all")
    return "; ".join(found)


def _holds(file: BinaryIO, images: list[Expected], record: FileRecord, advance: Callable[[int], None]) -> bool:
    """Whether images and rest are what index and manifest say, so that the file is; each byte is hashed once."""
    left = deque(sorted((image.offset, image.offset + image.size, image.sha256) for image in images))
    if any(offset < stop for (offset, *_), (_, stop, _) in zip(left, [(0, 0, ""), *left])):  # images overlap
        return False
    rest, one = hashlib.sha256(), hashlib.sha256()  # `one`: of an image that reaches over the end of a block
    end = place = 0  # of the block, and up to where everything is hashed
    while block := file.read(BLOCK_BYTES):  # large ones: each call to read or hash may wait for another thread
        pieces, start, end = memoryview(block), end, end + len(block)
        around = []
        while left and left[0][0] < end:
            offset, stop, sha256 = left[0]
            around.append(pieces[place - start : max(0, offset - start)])
            if offset >= start and stop <= end:
                found = hashlib.sha256(pieces[offset - start : stop - start])
            else:
                one.update(pieces[max(0, offset - start) : stop - start])
                found = one
            place = min(stop, end)
            if stop > end:
                break
            if found.hexdigest() != sha256:
                return False
            one = hashlib.sha256() if found is one else one
            left.popleft()
        around.append(pieces[place - start :])
        rest.update(b"".join(around))
        place = end
        advance(len(block))
    return not left and rest.hexdigest() == record.rest_sha256


def _read_through(file: BinaryIO, images: list[Expected], advance: Callable[[int], None]) -> tuple[str, int, list[str]]:
    """Hash and size of a file, and the members among `images` whose bytes are not those of the index."""
    whole, size = hashlib.sha256(), 0
    left = deque(sorted(images, key=lambda image: image.offset))
    one, before = hashlib.sha256(), 0  # of the image that is being read, and where the one before it ended
    differ: list[str] = []
    while block := file.read(BLOCK_BYTES):
        whole.update(block)
        pieces, end = memoryview(block), size + len(block)
        while left and left[0].offset < end:
            image, stop = left[0], left[0].offset + left[0].size
            one.update(pieces[max(0, image.offset - size) : max(0, stop - size)])
            if stop > end:
                break
            if image.offset < before or one.hexdigest() != image.sha256:
                differ.append(image.member)
            left.popleft()
            one, before = hashlib.sha256(), stop
        size = end
        advance(len(block))
    return whole.hexdigest(), size, differ + [image.member for image in left]


def _index_problems(index: parquet.ParquetFile, manifest: Manifest) -> Iterator[str]:
    """Where the index and the manifest differ, and patients that stand in two splits."""
    found = {"images": index.metadata.num_rows}
    for name, column in (("cases", "key"), ("patients", "patient")):
        found[name] = index.read([column]).group_by(column).aggregate([]).num_rows
    for name, number in found.items():
        if number != getattr(manifest.counts, name):
            yield f"{INDEX} has {number} {name}, the manifest says {getattr(manifest.counts, name)}"
    pairs: pa.Table = index.read(["patient", "split"]).group_by(["patient", "split"]).aggregate([])
    num_splits = Counter(pairs.column("patient").to_pylist())
    for patient in sorted(patient for patient, number in num_splits.items() if number > 1)[:3]:
        yield f"{INDEX}: patient {patient} stands in two splits"
