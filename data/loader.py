"""Batches of this worker from a position on, and plain passes over a dataset for evaluation.

A batch is a pure function of its step: the loader is a map from step to batch, which torch's DataLoader
spreads over processes and returns in order. Nothing has to be saved or fast-forwarded to resume.
Shapes: B batch, H and W pixels.
"""

import multiprocessing
import multiprocessing.connection
import os
import shutil
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Generic, Protocol, TypeVar

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, field_validator
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from clusters import distributed
from clusters.config import Config, InputError, Transient, absolute
from clusters.retries import may_pass
from clusters.tracking import say_here
from data.cache import CachePlace
from data.combined import AnyDataset
from data.config import num_cores
from data.images import BadImage, decode_stored

T = TypeVar("T")
Pixels = NDArray[np.uint8]
MOST_PROCESSES = 16
MOST_IN_A_ROW, STEADY_STEPS = 3, 100
"""How often loader processes that are killed are replaced; after so many steps without, as often once more."""
SHARED_MEMORY = Path("/dev/shm")
DENSE_SHARE, DENSE_ROWS = 0.1, 1 << 14
"""A remote shard is downloaded whole where so many rows of an evaluation ask for so large a share of it."""


class LoaderConfig(Config):
    """How batches are read; makes no difference to what is in them. May change between resumes."""

    num_processes: int | None = Field(
        default=None,
        ge=0,
        description="loader processes a worker; 0: in the worker itself; none: 0 on a CPU, and for a GPU its share of "
        "the machine's cores less one, as far as /dev/shm has room for what they prepare",
    )
    prefetch: int = Field(default=2, ge=1, description="batches each loader process prepares ahead")
    cache: str = Field(
        default="", description="folder on each machine for its cache; empty: $MANYVIEW_CACHE, or the temporary folder"
    )
    cache_gb: float = Field(
        default=64.0, ge=0, description="GB of remote shards kept on each machine at most; 0: read in ranges"
    )

    @field_validator("cache")
    @classmethod
    def _absolute(cls, folder: str) -> str:
        if "://" in folder:
            raise ValueError("the cache is a folder of each machine, not a URL")
        return absolute(folder) if folder else folder

    @property
    def place(self) -> CachePlace:
        """Where the cache lies, for `open_dataset`."""
        return CachePlace(self.cache, self.cache_gb)


def loader_processes(config: LoaderConfig, batch_bytes: int) -> int:
    """How many processes load for this worker, each of which keeps batches of so many bytes ready."""
    if config.num_processes is not None:
        return config.num_processes
    if distributed.device().type == "cpu":
        return 0
    cores = num_cores() // distributed.workers_here()
    return max(0, min(MOST_PROCESSES, cores - 1, room_for_processes(config, batch_bytes)))


def room_for_processes(config: LoaderConfig, batch_bytes: int) -> int:
    """How many processes' batches fit into this worker's part of half of the shared memory that is free."""
    if not SHARED_MEMORY.is_dir() or not batch_bytes:
        return MOST_PROCESSES
    free = shutil.disk_usage(SHARED_MEMORY).free / 2 / distributed.workers_here()
    return int(free // ((config.prefetch + 1) * batch_bytes))


class Streams(Protocol):
    """An order of samples that can tell which canonical stream stands at a position."""

    def stream_of(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """The stream at each position."""
        ...


def positions_of(
    step: int, batch_size: int, rank: int, world_size: int, order: Streams | None = None
) -> NDArray[np.int64]:
    """The stream positions that this rank takes at a step: an equal share of the global batch.

    With an order, its streams are divided among the ranks in sequence: rank r of W has the streams about r/W of
    the way, at every step, for any W, and ranks of one node have neighbouring ones. Without, every W-th position.
    """
    assert batch_size % world_size == 0
    if order is None or world_size == 1:
        return step * batch_size + np.arange(rank, batch_size, world_size, dtype=np.int64)
    positions = step * batch_size + np.arange(batch_size, dtype=np.int64)
    share = batch_size // world_size
    by_stream = np.argsort(order.stream_of(positions), kind="stable")
    return positions[np.sort(by_stream[rank * share : (rank + 1) * share])]


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
            multiprocessing_context=_server() if processes else None,
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


def evaluation_batches(
    dataset: AnyDataset, rows: NDArray[np.int64], size_px: int, batch_size: int
) -> Iterator[tuple[NDArray[np.int64], torch.Tensor]]:
    """Whole images, short side resized to size_px and centre-cropped, as (rows (B,), uint8 (B, 3, H, W))."""
    for start in range(0, len(rows), batch_size):
        some = rows[start : start + batch_size]
        dataset.announce(rows[start : start + DENSE_ROWS], now=True, least_share=DENSE_SHARE)
        batch = np.empty((len(some), size_px, size_px, 3), dtype=np.uint8)
        for place, content in enumerate(dataset.read_many(some)):
            batch[place] = centre_square(decode_stored(content), size_px)
        yield some, torch.from_numpy(batch).permute(0, 3, 1, 2)


def centre_square(pixels: Pixels, size_px: int) -> Pixels:
    """The largest centred square of an (H, W, 3) image, resized to size_px."""
    height, width = pixels.shape[:2]
    side = min(height, width)
    return crop_and_resize(pixels, [(height - side) // 2, (width - side) // 2, side, side], size_px)


def crop_and_resize(
    pixels: Pixels, box: Sequence[int], size_px: int, averaged_from: float = 1.0, out: Pixels | None = None
) -> Pixels:
    """A (top, left, height, width) box of an (H, W, 3) image as a square, in `out` (size_px, size_px, 3) if given.

    Averaged over areas where both sides shrink by more than `averaged_from`, else bilinear, which is several times
    as fast and aliases little up to about 1.25.
    """
    top, left, height, width = box
    cut = pixels[top : top + height, left : left + width]
    shrinks = min(height, width) > averaged_from * size_px
    interpolation = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(cut, (size_px, size_px), dst=out, interpolation=interpolation), dtype=np.uint8)


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


def _server() -> ForkServerContext:
    """Loader processes are forked from a server that has the libraries already and no threads or GPU of ours."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
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
