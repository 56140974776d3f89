"""Work on images in worker processes, with results in the order of the work.

The workers import nothing heavy (no torch), read the raw files and hold no state, so the result does
not depend on their number.
"""

import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
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


def segments(
    groups: Sequence[Sequence[Case]], processing: Processing, num_processes: int = 1
) -> Generator[Segment, None, None]:
    """One segment a group, in order. Raises InputError for an image that cannot be read, and for a dead process."""
    return in_processes(partial(make_segment, processing=processing), groups, num_processes)


def in_processes(function: Callable[[T], R], tasks: Sequence[T], num_processes: int) -> Generator[R, None, None]:
    """`function(task)` for each task, in order, a few tasks ahead. Raises what it raises, and InputError for a
    process that died. What ends it early (Ctrl-C, an error, a caller who wants no more) waits for the tasks that are
    running, which are short: a worker that was killed while it hands over a result would leave the others waiting.
    """
    num_processes = min(num_processes, len(tasks) // TASKS_AHEAD)
    if num_processes <= 1:
        yield from map(function, tasks)
        return
    # Spawned, not forked: libraries here hold threads.
    context = get_context("spawn")
    pool = ProcessPoolExecutor(num_processes, context, _start_worker)
    waiting: deque[Future[R]] = deque()
    remaining = iter(tasks)
    try:
        while True:
            with _interrupts_held_back():  # a submission may start a worker
                while len(waiting) < TASKS_AHEAD * num_processes and (task := next(remaining, None)) is not None:
                    waiting.append(pool.submit(function, task))
            if not waiting:
                break
            yield waiting.popleft().result()
    except BrokenProcessPool:
        raise InputError(
            "an import process died, most likely for want of memory; lower num_processes or max_pixels"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


@contextmanager
def _interrupts_held_back() -> Iterator[None]:
    """Ctrl-C waits until the end of the block, and processes that are started in it never see it.

    A terminal sends it to all processes of an import; what happens then is for the parent to decide.
    """
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _start_worker() -> None:
    """One thread a worker, deaf to Ctrl-C, and no worker that outlives a killed import."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    cv2.setNumThreads(1)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
