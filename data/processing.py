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
from multiprocessing.synchronize import Event
from typing import TypeVar

import cv2

from clusters.config import InputError
from data.cases import Case
from data.segments import Processing, Segment, make_segment

T = TypeVar("T")
R = TypeVar("R")
CASES_PER_SEGMENT = 16
TASKS_AHEAD = 4  # a process; fewer tasks than that are not worth starting it

# Held by a worker while it is not within a task: it may then be writing to the queue that all workers share, and one
# that ended in the middle of that would leave the others, and the parent at its exit, waiting for the rest.
_at_the_queue = threading.Lock()


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
    process that died. Whatever ends it early (Ctrl-C, an error, a caller who wants no more) ends the workers at once.
    """
    num_processes = min(num_processes, len(tasks) // TASKS_AHEAD)
    if num_processes <= 1:
        yield from map(function, tasks)
        return
    # Spawned, not forked: libraries here hold threads.
    context = get_context("spawn")
    stop = context.Event()
    pool = ProcessPoolExecutor(num_processes, context, _start_worker, (stop,))
    waiting: deque[Future[R]] = deque()
    remaining = iter(tasks)
    try:
        while True:
            with _interrupts_held_back():  # a submission may start a worker
                while len(waiting) < TASKS_AHEAD * num_processes and (task := next(remaining, None)) is not None:
                    waiting.append(pool.submit(_within_task, function, task))
            if not waiting:
                break
            yield waiting.popleft().result()
        pool.shutdown()
    except BaseException as error:
        stop.set()
        pool.shutdown(wait=False, cancel_futures=True)
        if isinstance(error, BrokenProcessPool):
            raise InputError(
                "an import process died, most likely for want of memory; lower num_processes or max_pixels"
            ) from None
        raise


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


def _within_task(function: Callable[[T], R], task: T) -> R:
    _at_the_queue.release()
    try:
        return function(task)
    finally:
        _at_the_queue.acquire()


def _start_worker(stop: Event) -> None:
    """One thread a worker, deaf to Ctrl-C, and no worker that outlives an import that was stopped or killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _at_the_queue.acquire()
    cv2.setNumThreads(1)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    threading.Thread(target=_end_when_stopped, args=(stop,), daemon=True).start()


def _end_with_parent() -> None:
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _end_when_stopped(stop: Event) -> None:
    """End in the middle of a task, but not in the middle of handing over its result."""
    stop.wait()
    with _at_the_queue:
        os._exit(1)
