"""Segments of shards, made in worker processes, in order.

The workers import nothing heavy (no torch), read the raw files and hold no state, so the result does
not depend on their number.
"""

import os
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context, parent_process
from typing import Any

import cv2

from clusters.config import InputError
from data.cases import Case
from data.segments import Processing, Segment, make_segment

CASES_PER_SEGMENT = 16
SEGMENTS_AHEAD = 4  # a process


def cut(cases: Sequence[Case]) -> list[Sequence[Case]]:
    """The cases of a shard in groups of one segment each."""
    return [cases[start : start + CASES_PER_SEGMENT] for start in range(0, len(cases), CASES_PER_SEGMENT)]


def segments(groups: Sequence[Sequence[Case]], processing: Processing, num_processes: int = 1) -> Iterator[Segment]:
    """One segment a group, in order. Raises InputError for an image that cannot be read, and for a dead process."""
    num_processes = min(num_processes, len(groups) // SEGMENTS_AHEAD)
    if num_processes <= 1:
        for group in groups:
            yield make_segment(group, processing)
        return
    # Spawned, not forked: libraries here hold threads. Results come in order, a few groups ahead.
    with ProcessPoolExecutor(num_processes, get_context("spawn"), _start_worker) as pool:
        waiting: deque[Any] = deque()
        remaining = iter(groups)
        try:
            while True:
                while len(waiting) < SEGMENTS_AHEAD * num_processes and (group := next(remaining, None)) is not None:
                    waiting.append(pool.submit(make_segment, group, processing))
                if not waiting:
                    return
                yield waiting.popleft().result()
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
