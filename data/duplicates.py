"""Images that stand in a dataset twice: pixel for pixel, or nearly so.

Shapes: N images, in the order of the index.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

Integers = NDArray[np.int64]
Hashes = NDArray[np.uint64]

# Two hashes that differ in at most 3 bits agree in at least 3 of 6 blocks (Manku, Jain, Das Sarma, "Detecting
# near-duplicates for web crawling", WWW 2007): sorting by each choice of 3 blocks brings every such pair together.
NEAR_BITS = 3
BLOCKS = ((0, 11), (11, 11), (22, 11), (33, 11), (44, 10), (54, 10))  # first bit and width
AGREEING = 3
MAX_BUCKET = 500  # images with the same 3 blocks; more of them are featureless, and their pairs are without number


@dataclass(frozen=True)
class Known:
    """What is kept of every image to find it again; a hash of the pixels is held as its first 128 bits."""

    pixels_high: Hashes
    pixels_low: Hashes
    dhash: Hashes
    case: Integers
    patient: Integers
    split: Integers


@dataclass(frozen=True)
class Copies:
    """Images that are pixel for pixel one that stands before: `later[i]` is a copy of `first[i]`."""

    first: Integers
    later: Integers

    def across(self, owner: Integers) -> "Copies":
        """Those whose owner (case, patient or split) is another than that of the image before."""
        differs = owner[self.first] != owner[self.later]
        return Copies(self.first[differs], self.later[differs])


def exact_copies(known: Known) -> Copies:
    """Every image whose pixels stand before, with the first that has them; ascending by the copy."""
    order = np.lexsort((known.pixels_low, known.pixels_high))  # stable: the first of equals comes first
    high, low = known.pixels_high[order], known.pixels_low[order]
    same = np.concatenate([[False], (high[1:] == high[:-1]) & (low[1:] == low[:-1])]) if len(order) else order > 0
    starts = np.maximum.accumulate(np.where(same, 0, np.arange(len(order))))
    first, later = order[starts[same]], order[same]
    by_place = np.argsort(later)
    return Copies(first[by_place], later[by_place])


@dataclass(frozen=True)
class NearPairs:
    """How many pairs of images of different cases look almost alike, without those that are exact copies."""

    pairs: int
    across_splits: int
    uncompared_images: int


def near_pairs(known: Known) -> NearPairs:
    """Count the pairs whose perceptual hashes differ in at most NEAR_BITS bits, each once.

    Images that share 3 blocks with more than MAX_BUCKET others are not compared with those, but counted.
    """
    pairs = across_splits = 0
    uncompared = np.zeros(len(known.dhash), bool)
    for a, b in each_near_pair(known, uncompared):
        pairs += len(a)
        across_splits += int((known.split[a] != known.split[b]).sum())
    return NearPairs(pairs, across_splits, int(uncompared.sum()))


def each_near_pair(known: Known, uncompared: NDArray[np.bool_]) -> Iterator[tuple[Integers, Integers]]:
    """The near pairs, each once, many at a time: the images on one side and those on the other.

    Marks in `uncompared` the images that stand in a bucket of more than MAX_BUCKET.
    """
    blocks = [(known.dhash >> np.uint64(at)) & np.uint64((1 << width) - 1) for at, width in BLOCKS]
    for chosen in combinations(range(len(BLOCKS)), AGREEING):
        joined = blocks[chosen[0]]
        for block in chosen[1:]:
            joined = (joined << np.uint64(11)) | blocks[block]
        order = np.argsort(joined, kind="stable")
        changes = np.flatnonzero(np.diff(joined[order])) + 1
        starts, ends = np.concatenate([[0], changes]), np.concatenate([changes, [len(order)]])
        too_full = ends - starts > MAX_BUCKET
        for start, end in zip(starts[too_full], ends[too_full]):
            uncompared[order[start:end]] = True
        for a, b in _within_buckets(order, starts, np.where(too_full, 1, ends - starts)):
            yield _near(known, blocks, chosen, a, b)


def _within_buckets(order: Integers, starts: Integers, sizes: Integers) -> Iterator[tuple[Integers, Integers]]:
    """Pairs within buckets, all buckets at once: members one apart, then two apart, and so on."""
    apart = 1
    while (big := sizes > apart).any():
        starts, sizes = starts[big], sizes[big]
        lengths = sizes - apart
        ends = np.cumsum(lengths)
        places = np.arange(ends[-1]) + np.repeat(starts - (ends - lengths), lengths)
        yield order[places], order[places + apart]
        apart += 1


def _near(
    known: Known, blocks: list[Hashes], chosen: tuple[int, ...], a: Integers, b: Integers
) -> tuple[Integers, Integers]:
    """The near ones among these pairs; one that agrees in more blocks belongs to its first three."""
    near = np.bitwise_count(known.dhash[a] ^ known.dhash[b]) <= NEAR_BITS
    near &= known.case[a] != known.case[b]
    near &= (known.pixels_high[a] != known.pixels_high[b]) | (known.pixels_low[a] != known.pixels_low[b])
    a, b = a[near], b[near]
    for block in range(chosen[-1]):
        if block not in chosen:
            differs = blocks[block][a] != blocks[block][b]
            a, b = a[differs], b[differs]
    return a, b


def duplicates_told(counts: Mapping[str, int]) -> list[str]:
    """A line for each thing that a person should know of the duplicates that a manifest counts."""
    lines = []
    copies, near = counts.get("images", 0), counts.get("near_pairs", 0)
    if copies:
        across = ", ".join(
            f"{counts[f'across_{owner}']:,} across {owner}" for owner in ("cases", "patients", "splits")
            if f"across_{owner}" in counts
        )  # fmt: skip
        are = "image is" if copies == 1 else "images are"
        lines.append(f"{copies:,} {are} pixel for pixel another one ({across})")
    if near:
        pairs = "pair of images of different cases looks" if near == 1 else "pairs of images of different cases look"
        lines.append(
            f"{near:,} {pairs} almost alike ({counts['near_pairs_across_splits']:,} across splits; at most {NEAR_BITS} "
            "of 64 bits of their perceptual hashes differ): python -m data look shows some"
        )
    if uncompared := counts.get("near_uncompared_images", 0):
        lines.append(f"{uncompared:,} images are too alike or too plain to be compared with one another")
    return lines
