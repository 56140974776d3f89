"""Batches of this worker from a position on, and plain passes over a dataset for evaluation.

A batch is a pure function of its step: the loader is a map from step to batch, which torch's DataLoader
spreads over processes and returns in order. Nothing has to be saved or fast-forwarded to resume.
Shapes: B batch, H and W pixels.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Generic, TypeVar

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from clusters.config import Config
from data.dataset import Dataset
from data.images import decode_stored

T = TypeVar("T")
Pixels = NDArray[np.uint8]


class LoaderConfig(Config):
    """How batches are read; makes no difference to what is in them. May change between resumes."""

    num_processes: int = Field(default=0, ge=0, description="loader processes a worker; 0: in the worker itself")
    prefetch: int = Field(default=2, ge=1, description="batches each loader process prepares ahead")


def positions_of(step: int, batch_size: int, rank: int, world_size: int) -> NDArray[np.int64]:
    """The stream positions that this rank takes at a step: every world_size-th of the global batch."""
    assert batch_size % world_size == 0
    return step * batch_size + np.arange(rank, batch_size, world_size, dtype=np.int64)


def training_batches(make: Callable[[int], T], first_step: int, last_step: int, config: LoaderConfig) -> Iterator[T]:
    """`make(step)` for each step from first_step to last_step - 1, in order, prepared ahead in processes."""
    processes = config.num_processes
    loader: DataLoader[T] = DataLoader(
        _Steps(make),
        batch_size=None,
        sampler=range(first_step, last_step),
        num_workers=processes,
        prefetch_factor=config.prefetch if processes else None,
        multiprocessing_context="forkserver" if processes else None,
        pin_memory=torch.cuda.is_available(),
        worker_init_fn=_quiet_threads if processes else None,
    )
    return iter(loader)


def evaluation_batches(
    dataset: Dataset, rows: NDArray[np.int64], size_px: int, batch_size: int
) -> Iterator[tuple[NDArray[np.int64], torch.Tensor]]:
    """Whole images, short side resized to size_px and centre-cropped, as (rows (B,), uint8 (B, 3, H, W))."""
    for start in range(0, len(rows), batch_size):
        some = rows[start : start + batch_size]
        pixels = [centre_square(decode_stored(dataset.read(int(row))), size_px) for row in some]
        yield some, torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2)


def centre_square(pixels: Pixels, size_px: int) -> Pixels:
    """The largest centred square of an (H, W, 3) image, resized to size_px."""
    height, width = pixels.shape[:2]
    side = min(height, width)
    return crop_and_resize(pixels, [(height - side) // 2, (width - side) // 2, side, side], size_px)


def crop_and_resize(pixels: Pixels, box: Sequence[int], size_px: int) -> Pixels:
    """A (top, left, height, width) box of an (H, W, 3) image as a square; antialiased if it shrinks."""
    top, left, height, width = box
    cut = pixels[top : top + height, left : left + width]
    shrinks = height > size_px and width > size_px
    interpolation = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(cut, (size_px, size_px), interpolation=interpolation), dtype=np.uint8)


class _Steps(TorchDataset[T], Generic[T]):
    def __init__(self, make: Callable[[int], T]) -> None:
        self._make = make

    def __getitem__(self, step: int) -> T:
        return self._make(step)


def _quiet_threads(_: int) -> None:
    """One thread a loader process: more would fight the model for cores."""
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
