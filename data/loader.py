"""Which samples a worker takes at a step, and with how many processes; plain passes over a dataset for evaluation.

Shapes: B batch, H and W pixels.
"""

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, field_validator

from clusters import distributed
from clusters.config import Config, absolute
from data.cache import CachePlace
from data.combined import AnyDataset
from data.config import num_cores
from data.images import decode_stored

Pixels = NDArray[np.uint8]
MOST_PROCESSES = 16
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
