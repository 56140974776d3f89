"""Work on a matrix of many rows in blocks: on all cores, and with the same result on any number of them.

The rows are cut into blocks of a fixed size whose sums are added in their order.
Shapes: I images, B a block of them, D features.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from data.config import num_cores
from finetune.bootstrap import Floats

F32, F64 = NDArray[np.float32], NDArray[np.float64]
T = TypeVar("T")

BLOCK_ROWS = 2048


class RowBlocks:
    """A context with a thread a core, in which each product runs on one thread."""

    def __init__(self, num_rows: int) -> None:
        self.slices = [slice(start, start + BLOCK_ROWS) for start in range(0, num_rows, BLOCK_ROWS)]

    def __enter__(self) -> "RowBlocks":
        # One thread a product: small ones are slowed tenfold by threads that wait for a busy core.
        self._limits = threadpool_limits(limits=1)
        self._threads = ThreadPoolExecutor(num_cores())
        return self

    def __exit__(self, *_: object) -> None:
        self._threads.shutdown()
        self._limits.restore_original_limits()

    def each(self, work: Callable[[slice], T]) -> Iterator[T]:
        """What the work gives for each block, in their order."""
        return iter([work(self.slices[0])]) if len(self.slices) == 1 else self._threads.map(work, self.slices)

    def total(self, work: Callable[[slice], NDArray[np.generic]]) -> F64:
        """The sum over blocks, in double precision."""
        first, *others = self.each(work)
        total = first.astype(np.float64)
        for other in others:
            total += other.astype(np.float64)
        return total


def standardised(values_ID: Floats, weight_I: Floats) -> tuple[F32, F64, F64]:
    """Columns of weighted mean 0 and deviation 1, and what mean and deviation were, (D,).

    A column that does not vary is only centred. Where a value is not finite, neither is its column's mean.
    """
    share_I = (weight_I / weight_I.sum()).astype(np.float32)
    scaled_ID = np.empty(values_ID.shape, dtype=np.float32)
    with RowBlocks(len(values_ID)) as blocks:
        near_D = blocks.total(lambda block: share_I[block] @ values_ID[block]).astype(np.float32)

        def centred(block: slice) -> F64:
            np.subtract(values_ID[block], near_D, out=scaled_ID[block], casting="same_kind")
            share_B, centred_BD = share_I[block], scaled_ID[block]
            return np.stack([share_B @ centred_BD, np.einsum("b,bd,bd->d", share_B, centred_BD, centred_BD)])

        rest_D, square_D = blocks.total(centred)
        scale_D = np.sqrt(np.maximum(square_D - rest_D**2, 0.0))
        scale_D[scale_D <= 1e-6 * scale_D.max()] = 1.0
        rest, inverse = rest_D.astype(np.float32), (1 / scale_D).astype(np.float32)

        def divide(block: slice) -> None:
            scaled_ID[block] -= rest
            scaled_ID[block] *= inverse

        list(blocks.each(divide))
    return scaled_ID, near_D + rest_D, scale_D
