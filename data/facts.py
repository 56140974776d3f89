"""What the index tells of an image besides its place, from the stored bytes, in processes."""

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from itertools import islice
from multiprocessing import get_context
from typing import TypeVar

from clusters.config import InputError
from data.images import BadImage, Pixels, decode, difference_hash, is_dicom, shrink
from data.processing import _start_worker

T = TypeVar("T")
R = TypeVar("R")

TASKS_AHEAD = 4  # a process
HASHED_SIDE_PX = 256  # as importers shrink by default, so that a picture has one perceptual hash wherever it stands


@dataclass(frozen=True)
class Facts:
    """Size in pixels, upright; hash of the bytes and of the decoded pixels; perceptual hash."""

    width: int
    height: int
    sha256: str
    pixel_sha256: str
    dhash: int


def read_facts(task: tuple[Sequence[Callable[[], bytes | Pixels]], int]) -> list[Facts | str]:
    """Facts of some images, or why one cannot be used."""
    readers, max_pixels = task
    found: list[Facts | str] = []
    for read in readers:
        content = read()
        assert isinstance(content, bytes)
        try:
            if is_dicom(content):
                raise BadImage("DICOM named as another format")
            pixels = decode(content, max_pixels)
        except BadImage as error:
            found.append(error.reason)
            continue
        # The hash of the pixels is that of `images.canonical`, so that copies in other datasets are known again.
        digest = hashlib.sha256(repr(pixels.shape).encode() + pixels.tobytes()).hexdigest()
        height, width = pixels.shape[:2]
        looks = difference_hash(shrink(pixels, HASHED_SIDE_PX))
        found.append(Facts(width, height, hashlib.sha256(content).hexdigest(), digest, looks))
    return found


def in_processes(function: Callable[[T], R], tasks: Sequence[T], num_processes: int) -> Iterator[R]:
    """Results in the order of the tasks, a few tasks ahead. Raises what a task raises."""
    num_processes = min(num_processes, len(tasks), os.cpu_count() or 1)
    if num_processes <= 1:
        yield from map(function, tasks)
        return
    with ProcessPoolExecutor(num_processes, get_context("spawn"), _start_worker) as pool:
        remaining = iter(tasks)
        waiting = [pool.submit(function, task) for task in islice(remaining, TASKS_AHEAD * num_processes)]
        try:
            while waiting:
                yield waiting.pop(0).result()
                waiting += [pool.submit(function, task) for task in islice(remaining, 1)]
        except BrokenProcessPool:
            raise InputError(
                "a process died, most likely for want of memory; lower num_processes or max_pixels"
            ) from None
        finally:
            for future in waiting:
                future.cancel()
