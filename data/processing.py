"""Raw images → stored images, in worker processes, in order.

The workers import nothing heavy (no torch), read the raw files and hold no state, so the result does
not depend on their number.
"""

import os
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context, parent_process
from typing import Any

import cv2

from clusters.config import InputError
from data.cases import Case, SourceImage
from data.config import ImportConfig
from data.images import BadImage, StoredImage, canonical

CASES_PER_TASK = 16


def processed(cases: Sequence[Case], config: ImportConfig) -> Iterator[list[StoredImage | str]]:
    """For every case in order, its images as stored or the reason why not."""
    tasks = [cases[start : start + CASES_PER_TASK] for start in range(0, len(cases), CASES_PER_TASK)]
    wanted = (config.short_side_px, config.jpeg_quality, config.max_pixels)
    num_processes = min(config.processes, len(tasks) // 4)
    if num_processes <= 1:
        for task in tasks:
            yield from _process([case.images for case in task], *wanted)
        return
    # Spawned, not forked: libraries here hold threads. Results come in order, a few tasks ahead.
    with ProcessPoolExecutor(num_processes, get_context("spawn"), _start_worker) as pool:
        waiting: deque[Any] = deque()
        remaining = iter(tasks)
        try:
            while True:
                while len(waiting) < 4 * num_processes and (task := next(remaining, None)) is not None:
                    waiting.append(pool.submit(_process, [case.images for case in task], *wanted))
                if not waiting:
                    return
                yield from waiting.popleft().result()
        except BrokenProcessPool:
            raise InputError(
                "an import process died, most likely for want of memory; lower num_processes or max_pixels"
            ) from None
        finally:
            for future in waiting:
                future.cancel()


def _start_worker() -> None:
    """One thread a worker, and no worker that outlives a killed import."""
    cv2.setNumThreads(1)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _process(
    cases: Iterable[Sequence[SourceImage]], short_side_px: int, jpeg_quality: int, max_pixels: int
) -> list[list[StoredImage | str]]:
    return [[_one(image, short_side_px, jpeg_quality, max_pixels) for image in case] for case in cases]


def _one(image: SourceImage, short_side_px: int, jpeg_quality: int, max_pixels: int) -> StoredImage | str:
    """The stored image, or the reason why it is quarantined."""
    try:
        return canonical(image.read(), short_side_px, jpeg_quality, max_pixels)
    except BadImage as error:
        return error.reason
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        return "absent"
    except OSError as error:
        raise InputError(f"cannot read image {image.name}: {error.strerror or type(error).__name__}") from None
