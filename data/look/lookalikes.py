"""Images of different cases that look alike, found by their perceptual hashes.

Shapes: N images, M pairs.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from data.duplicates import NEAR_BITS

Integers = NDArray[np.int64]
MAX_BITS = NEAR_BITS  # as the import counts them; beyond it most pairs of one modality are strangers
ALL_PAIRS_UP_TO = 20_000  # images; of more, only neighbours in sorted order are compared
BLOCK_ROWS, MAX_PAIRS, WINDOW, FLAT_BITS = 512, 200_000, 12, 3


@dataclass(frozen=True)
class Lookalikes:
    """Pairs `(M, 2)` of rows, nearest first, with the bits `(M,)` in which their hashes differ.

    `complete` says that every pair of the dataset was compared.
    """

    pairs: Integers
    bits: Integers
    complete: bool


def lookalikes(dhash_N: NDArray[np.uint64], case_N: Integers, pixels_N: Integers) -> Lookalikes:
    """Pairs of images of different cases whose hashes differ in at most MAX_BITS bits, without exact copies.

    Hashes of nearly flat pictures say nothing (they all look alike) and are left out. All pairs are
    compared up to ALL_PAIRS_UP_TO images; beyond it the hashes are sorted four times, each time from
    another bit on, and each is compared with its neighbours, which finds most of the close pairs.
    """
    ones = np.bitwise_count(dhash_N)
    rows = np.flatnonzero((ones > FLAT_BITS) & (ones < 64 - FLAT_BITS)).astype(np.int64)
    complete = len(rows) <= ALL_PAIRS_UP_TO
    pairs, bits = _all_pairs(dhash_N, rows) if complete else _neighbours(dhash_N, rows)
    one, other = pairs[:, 0], pairs[:, 1]
    wanted = (case_N[one] != case_N[other]) & (pixels_N[one] != pixels_N[other])
    pairs, bits = pairs[wanted], bits[wanted]
    order = np.lexsort([pairs[:, 1], pairs[:, 0], bits])
    return Lookalikes(pairs[order], bits[order], complete)


def _all_pairs(dhash_N: NDArray[np.uint64], rows: Integers) -> tuple[Integers, Integers]:
    """Every pair within MAX_BITS; of too many, those within fewer bits."""
    hashes, limit = dhash_N[rows], MAX_BITS
    pairs, bits = np.zeros((0, 2), np.int64), np.zeros(0, np.int64)
    for start in range(0, len(rows), BLOCK_ROWS):
        block = hashes[start : start + BLOCK_ROWS]
        distance = np.bitwise_count(block[:, None] ^ hashes[None, start:])
        one, other = np.nonzero(distance <= limit)
        later = other > one
        one, other = one[later], other[later]
        pairs = np.concatenate([pairs, np.stack([rows[start + one], rows[start + other]], axis=1)])
        bits = np.concatenate([bits, distance[one, other].astype(np.int64)])
        while len(pairs) > MAX_PAIRS and limit > 0:
            limit -= 1
            pairs, bits = pairs[bits <= limit], bits[bits <= limit]
    return pairs, bits


def _neighbours(dhash_N: NDArray[np.uint64], rows: Integers) -> tuple[Integers, Integers]:
    found = [np.zeros((0, 2), np.int64)]
    hashes = dhash_N[rows]
    for turn in (0, 16, 32, 48):
        turned = (hashes << np.uint64(turn)) | (hashes >> np.uint64((64 - turn) % 64)) if turn else hashes
        order = np.argsort(turned, kind="stable")
        for step in range(1, WINDOW):
            one, other = order[:-step], order[step:]
            near = np.bitwise_count(hashes[one] ^ hashes[other]) <= MAX_BITS
            found.append(np.sort(np.stack([rows[one[near]], rows[other[near]]], axis=1), axis=1))
    pairs = np.unique(np.concatenate(found), axis=0)
    bits = np.bitwise_count(dhash_N[pairs[:, 0]] ^ dhash_N[pairs[:, 1]]).astype(np.int64)
    return pairs, bits
