"""Images of different cases that look alike, as the import counts them, the nearest first.

Shapes: N images, M pairs.
"""

import numpy as np
from numpy.typing import NDArray

from data.duplicates import NEAR_BITS, Known, each_near_pair

Integers = NDArray[np.int64]
MAX_BITS = NEAR_BITS  # beyond it most pairs of one modality are strangers
MAX_PAIRS = 200_000
FLAT_BITS = 3


def lookalikes(dhash_N: NDArray[np.uint64], case_N: Integers, pixels_N: Integers) -> Integers:
    """Pairs `(M, 2)` of rows of different cases whose hashes differ in at most MAX_BITS bits, nearest first.

    Without exact copies. Hashes of nearly flat pictures say nothing (they all look alike) and are left out. Of more
    than MAX_PAIRS pairs those within fewer bits are told.
    """
    ones = np.bitwise_count(dhash_N)
    rows_K = np.flatnonzero((ones > FLAT_BITS) & (ones < 64 - FLAT_BITS)).astype(np.int64)
    case_K, pixels_K = case_N[rows_K], pixels_N[rows_K].astype(np.uint64)
    known = Known(pixels_K, np.zeros_like(pixels_K), dhash_N[rows_K], case_K, case_K, case_K)
    limit, number = MAX_BITS, 0
    parts = [(np.zeros((0, 2), np.int64), np.zeros(0, np.int64))]
    for a, b in each_near_pair(known, np.zeros(len(rows_K), bool)):
        bits = np.bitwise_count(known.dhash[a] ^ known.dhash[b]).astype(np.int64)
        parts.append(_within(limit, rows_K[np.sort(np.stack([a, b], axis=1), axis=1)], bits))
        number += len(parts[-1][1])
        while number > MAX_PAIRS and limit > 0:
            limit -= 1
            parts = [_within(limit, *part) for part in parts]
            number = sum(len(bits) for _, bits in parts)
    pairs_M2, bits_M = (np.concatenate(column) for column in zip(*parts))
    return pairs_M2[np.lexsort([pairs_M2[:, 1], pairs_M2[:, 0], bits_M])]


def _within(limit: int, pairs: Integers, bits: Integers) -> tuple[Integers, Integers]:
    return pairs[bits <= limit], bits[bits <= limit]
