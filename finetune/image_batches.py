"""Batches of images that predictions are asked for, read and decoded ahead by threads.

Shapes: B batch, S side in px.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.config import num_cores
from data.dataset import Dataset, open_dataset
from data.images import BadImage
from finetune.image_list import ImageList, Read, input_pixels

BATCHES_AHEAD = 2


@dataclass(frozen=True)
class Part:
    """Some images, in the order of the whole list."""

    number: int
    images: ImageList

    @property
    def file(self) -> str:
        """Where its rows stand until all are there."""
        return f"part-{self.number:06d}.parquet"


@dataclass(frozen=True)
class Reading:
    """How images are read. `processing` is what the model's card says of the import of its training images."""

    batch_size: int
    num_threads: int
    size_px: int
    max_pixels: int
    processing: dict[str, Any]


def batches_of(
    parts: Sequence[Part], reading: Reading
) -> Iterator[tuple[Part, ImageList, NDArray[np.uint8], list[str]]]:
    """Batches of decoded images, (B, 3, S, S), none across two parts; of each image why it cannot be read, or ""."""
    opened = open_dataset(parts[0].images.location) if parts and parts[0].images.dataset else None
    cuts = deque(
        (part, part.images.part(start, start + reading.batch_size))
        for part in parts
        for start in range(0, len(part.images), reading.batch_size)
    )
    ahead: deque[tuple[Part, ImageList, NDArray[np.uint8], list[Future[str]]]] = deque()
    with ThreadPoolExecutor(reading.num_threads or num_cores()) as pool:
        while cuts or ahead:
            while cuts and len(ahead) <= BATCHES_AHEAD:
                part, images = cuts.popleft()
                ahead.append((part, images, *_begun(pool, images, opened, reading)))
            part, images, pixels, futures = ahead.popleft()
            yield part, images, pixels.transpose(0, 3, 1, 2), [future.result() for future in futures]


def _begun(
    pool: ThreadPoolExecutor, images: ImageList, opened: Dataset | None, reading: Reading
) -> tuple[NDArray[np.uint8], list[Future[str]]]:
    """The pixels of a batch, (B, S, S, 3), to be filled by threads, and of each image why it could not be, or ""."""
    size_px = reading.size_px
    pixels = np.zeros((len(images), size_px, size_px, 3), dtype=np.uint8)

    def fill(place: int, read: Read) -> str:
        try:
            pixels[place] = input_pixels(read(), opened is not None, reading.processing, size_px, reading.max_pixels)
        except BadImage as error:
            return error.reason
        except MemoryError:
            return "too large"
        return ""

    return pixels, [pool.submit(fill, place, read) for place, read in enumerate(images.readers(opened))]
