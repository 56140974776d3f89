"""A training's batches, prepared ahead in processes: in order, none lost and none twice where one of them is killed.

A batch is a pure function of its step: the loader is a map from step to batch, which torch's DataLoader
spreads over processes and returns in order. Nothing has to be saved or fast-forwarded to resume.
"""

import multiprocessing
import multiprocessing.connection
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.context import ForkServerContext
from typing import Generic, TypeVar

import cv2
import torch
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from clusters import distributed
from clusters.config import InputError, Transient
from clusters.retries import may_pass
from clusters.tracking import say_here
from data.images import BadImage
from data.loader import LoaderConfig, loader_processes

T = TypeVar("T")
MOST_IN_A_ROW, STEADY_STEPS = 3, 100
"""How often loader processes that are killed are replaced; after so many steps without, as often once more."""


def training_batches(
    make: Callable[[int], T], first_step: int, last_step: int, config: LoaderConfig, batch_bytes: int = 0
) -> Iterator[T]:
    """`make(step)` for each step from first_step to last_step - 1, in order, prepared ahead in processes.

    The processes live until the iterator ends, and die with this one. Where one is killed, others go on with the same
    batches. An InputError in one of them is raised here as it is; what cannot be read, and processes that are killed
    again and again, are one line too. Other errors come with their traceback.
    """
    processes = loader_processes(config, batch_bytes)

    def begin(step: int) -> Iterator[T]:
        loader: DataLoader[T | _Refusal] = DataLoader(
            _Steps(make),
            batch_size=None,
            sampler=range(step, last_step),
            num_workers=processes,
            prefetch_factor=config.prefetch if processes else None,
            multiprocessing_context=_server(make) if processes else None,
            pin_memory=distributed.device().type == "cuda",
            worker_init_fn=_begin_process if processes else None,
        )
        return _told(iter(loader), processes)

    return _begun_again(begin(first_step), begin, first_step)


def _begun_again(batches: Iterator[T], begin: Callable[[int], Iterator[T]], step: int) -> Iterator[T]:
    """The batches from this step on, their processes replaced where one is killed: the step tells which are next."""
    in_a_row, killed_at = 0, step
    while True:
        try:
            for batch in batches:
                yield batch
                step += 1
            return
        except _Killed as error:
            in_a_row = in_a_row + 1 if step - killed_at < STEADY_STEPS else 1
            killed_at = step
            if in_a_row > MOST_IN_A_ROW:
                raise Transient(
                    f"{error}; lower loader.num_processes or loader.prefetch and run the same command"
                ) from None
            say_here(f"{error}; its batches are loaded anew from step {step} on")
        batches = begin(step)


class _Killed(RuntimeError):
    """A loader process is gone, and nothing is wrong with what it was to load."""


@dataclass(frozen=True)
class _Refusal:
    """Bad input on its way out of a loader process: torch would wrap it in the process's traceback."""

    line: str
    passes: bool = False

    def pin_memory(self) -> "_Refusal":
        return self


class _Steps(TorchDataset[T | _Refusal], Generic[T]):
    def __init__(self, make: Callable[[int], T]) -> None:
        self._make = make

    def __getitem__(self, step: int) -> T | _Refusal:
        try:
            return self._make(step)
        except InputError as error:
            return _Refusal(str(error), isinstance(error, Transient))
        except BadImage as error:
            return _Refusal(
                f"an image in the batch of step {step} cannot be used ({error.reason}), though its bytes are those "
                "that were written; import the dataset again, which sets such images aside"
            )
        except OSError as error:
            where = f"{error.filename}: " if error.filename else ""
            what = " ".join((error.strerror or str(error)).split()) or type(error).__name__
            return _Refusal(
                f"{where}{what}, while reading the batch of step {step}; check that the place is there and can be "
                "read, and run the same command again",
                may_pass(error),
            )


def _told(batches: Iterator[T | _Refusal], processes: int) -> Iterator[T]:
    while True:
        try:
            batch = next(batches)
        except StopIteration:
            return
        except RuntimeError as error:
            # An error of the process itself comes as "Caught … in DataLoader worker process 0", and stays as it is.
            if not processes or not str(error).startswith("DataLoader worker (pid"):
                raise
            raise _Killed(
                f"a loader process was killed from outside ({str(error).splitlines()[0].rstrip('.')}), mostly because "
                "memory or /dev/shm ran out"
            ) from None
        if isinstance(batch, _Refusal):
            raise (Transient if batch.passes else InputError)(batch.line)
        yield batch


def _server(make: Callable[[int], object]) -> ForkServerContext:
    """Loader processes are forked from a server that has the libraries already and no threads or GPU of ours.

    Ray too where it runs this worker: each process loads the worker's main file, and that imports it.
    """
    context = multiprocessing.get_context("forkserver")
    needed = {__name__, make.__module__, *({"ray"} & sys.modules.keys())}
    context.set_forkserver_preload(sorted(needed - {"__main__"}))
    return context


def _begin_process(_: int) -> None:
    """One thread a loader process: more would fight the model for cores. None ends before the run, or outlives it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all of a terminal, and the run has a step to save
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    threading.Thread(target=_end_with_the_run, daemon=True).start()


def _end_with_the_run() -> None:
    """End this process with the one that asked for it: torch watches the fork server, which waits for us."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    multiprocessing.connection.wait([parent.sentinel])
    os._exit(1)
