"""Work on images in worker processes, with results in the order of the work.

The workers import nothing heavy (no torch), read the raw files and hold no state, so the result does
not depend on their number.
"""

import os
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from multiprocessing import get_context, parent_process
from typing import TypeVar

import cv2

from clusters.config import InputError
from data.cases import Case
from data.segments import Processing, Segment, make_segment

T = TypeVar("T")
R = TypeVar("R")
CASES_PER_SEGMENT = 16
TASKS_AHEAD = 4  # a process; fewer tasks than that are not worth starting it


def cut(cases: Sequence[Case]) -> list[Sequence[Case]]:
    """The cases of a shard in groups of one segment each."""
    return [cases[start : start + CASES_PER_SEGMENT] for start in range(0, len(cases), CASES_PER_SEGMENT)]


def segments(groups: Sequence[Sequence[Case]], processing: Processing, num_processes: int = 1) -> Iterator[Segment]:
    """One segment a group, in order. Raises InputError for an image that cannot be read, and for a dead process."""
    return in_processes(partial(make_segment, processing=processing), groups, num_processes)


def in_processes(function: Callable[[T], R], tasks: Sequence[T], num_processes: int) -> Iterator[R]:
    """`function(task)` for each task, in order, a few tasks ahead. Raises what it raises, and InputError for a
    process that died.
    """
    num_processes = min(num_processes, len(tasks) // TASKS_AHEAD)
    if num_processes <= 1:
        yield from map(function, tasks)
        return
    # Spawned, not forked: libraries here hold threads.
    with ProcessPoolExecutor(num_processes, get_context("spawn"), _start_worker) as pool:
        waiting: deque[Future[R]] = deque()
        remaining = iter(tasks)
        try:
            while True:
                while len(waiting) < TASKS_AHEAD * num_processes and (task := next(remaining, None)) is not None:
                    waiting.append(pool.submit(function, task))
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
