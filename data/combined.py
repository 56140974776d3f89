"""Several dataset folders read as one: their rows end to end, their samples interleaved by weight.

The stream of positions gives each dataset its share, and every dataset runs on across epochs of its own: in
each of them it has every sample once. Like the order of one dataset this is arithmetic on (sizes, weights,
seed): a position is found at once at any depth, by any rank and any loader process.

Shapes: M datasets, N samples of one of them.
"""

import itertools
from collections.abc import Sequence
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from clusters import distributed
from clusters.config import InputError
from clusters.tracking import say_here
from data.cache import CachePlace
from data.dataset import Dataset, open_dataset
from data.order import Integers, Order, keyed_generator

BLOCK_POSITIONS = 64
"""The datasets take turns in such blocks, shuffled inside; part of what the order depends on."""


class CombinedDataset:
    """Two dataset folders or more behind the interface of one; row r of dataset i is row starts[i] + r.

    Can be pickled: each process opens the shards for itself.
    """

    def __init__(self, parts: Sequence[Dataset], weights: Sequence[float] | None = None) -> None:
        assert len(parts) > 1 and (weights is None or len(weights) == len(parts))
        self.parts = list(parts)
        self.weights = weights
        self.starts = np.concatenate([[0], np.cumsum([part.num_images for part in parts])]).astype(np.int64)

    def __reduce__(self) -> tuple[object, ...]:
        return CombinedDataset, (self.parts, self.weights)

    def __repr__(self) -> str:
        return f"CombinedDataset({', '.join(map(repr, self.parts))})"

    @property
    def location(self) -> str:
        """The folders, for messages."""
        return " + ".join(part.location for part in self.parts)

    @property
    def is_remote(self) -> bool:
        """Whether the shards of any dataset come over a network."""
        return any(part.is_remote for part in self.parts)

    @property
    def num_images(self) -> int:
        """Number of rows."""
        return int(self.starts[-1])

    @property
    def num_cases(self) -> int:
        """Number of cases."""
        return sum(part.num_cases for part in self.parts)

    @property
    def label_names(self) -> list[str]:
        """Names of the labels where the datasets have the same ones, in the first one's order; else none."""
        names = self.parts[0].label_names
        return names if all(set(part.label_names) == set(names) for part in self.parts) else []

    @property
    def labels(self) -> NDArray[np.float32]:
        """Labels, float32 `(num_images, num_labels)`, NaN where not labelled."""
        names = self.label_names
        columns = [[part.label_names.index(name) for name in names] for part in self.parts]
        return np.concatenate([part.labels[:, places] for part, places in zip(self.parts, columns)])

    def column(self, name: str) -> np.ndarray:
        """A column that all indexes have, `(num_images,)`; ids of one dataset may mean others in the next."""
        return np.concatenate([part.column(name) for part in self.parts])

    def rows(self, splits: Sequence[str]) -> NDArray[np.int64]:
        """Row numbers in these splits, ascending. Raises InputError for a dataset that lacks one of them."""
        return np.concatenate([start + part.rows(splits) for start, part in zip(self.starts, self.parts)])

    @cached_property
    def case_of(self) -> NDArray[np.int32]:
        """Number of each row's case, `(num_images,)`, ascending over all datasets."""
        starts = np.cumsum([0, *(part.num_cases for part in self.parts)])
        return np.concatenate([part.case_of + np.int32(start) for start, part in zip(starts, self.parts)])

    @cached_property
    def shard_of(self) -> NDArray[np.int32]:
        """Number of each row's shard, `(num_images,)`, ascending over all datasets."""
        return np.concatenate([part.shard_of + np.int32(start) for start, part in zip(self.shard_starts, self.parts)])

    @cached_property
    def shard_starts(self) -> NDArray[np.int64]:
        """The first shard number of each dataset, and one more than the last of all, `(M + 1,)`."""
        counts = [int(part.shard_of[-1]) + 1 if part.num_images else 0 for part in self.parts]
        return np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)

    def read(self, row: int) -> bytes:
        """The stored file of one image, checked. Raises InputError naming shard and member."""
        return self.read_many(np.array([row]))[0]

    def read_many(self, rows: NDArray[np.int64]) -> list[bytes]:
        """The stored files of some images, checked. Raises InputError naming shard and member."""
        files = [b""] * len(rows)
        for part, places, mine in self._by_part(rows):
            for place, content in zip(places.tolist(), part.read_many(mine)):
                files[place] = content
        return files

    def announce(self, rows: NDArray[np.int64], now: bool = False, least_share: float = 0.0) -> None:
        """Say which images will be read, as `Dataset.announce`, to each dataset its own."""
        for part, _, mine in self._by_part(rows):
            part.announce(mine, now, least_share)

    def _by_part(self, rows: NDArray[np.int64]) -> list[tuple[Dataset, NDArray[np.int64], NDArray[np.int64]]]:
        """Of each dataset that is meant: which of `rows` are its, and their numbers in it."""
        rows = np.asarray(rows, dtype=np.int64)
        which = np.searchsorted(self.starts, rows, side="right") - 1
        places = [np.flatnonzero(which == number) for number in range(len(self.parts))]
        return [
            (part, mine, rows[mine] - start) for part, mine, start in zip(self.parts, places, self.starts) if len(mine)
        ]


AnyDataset = Dataset | CombinedDataset


def open_datasets(
    locations: Sequence[str], weights: Sequence[float] | None = None, cache: CachePlace | None = None
) -> AnyDataset:
    """One dataset as it is, or several as one. Raises InputError where a dataset stands twice in the list."""
    parts = [open_dataset(location, cache) for location in locations]
    for number, part in enumerate(parts):
        for other in parts[:number]:
            if part.fingerprint == other.fingerprint:
                raise InputError(
                    f"data: {other.location} and {part.location} are the same dataset; give it once, with its weight"
                )
    return CombinedDataset(parts, weights) if len(parts) > 1 else parts[0]


def parts_of(dataset: AnyDataset) -> list[Dataset]:
    """The dataset folders behind a dataset."""
    return dataset.parts if isinstance(dataset, CombinedDataset) else [dataset]


def samples_of_parts(dataset: AnyDataset, shard_sizes: Sequence[int] | Integers) -> list[Integers]:
    """`shard_sizes` (samples per shard) cut by dataset."""
    sizes = np.asarray(shard_sizes, dtype=np.int64)
    if not isinstance(dataset, CombinedDataset):
        return [sizes]
    starts = dataset.shard_starts
    return [sizes[start:end] for start, end in itertools.pairwise(starts)]


def shares(dataset: AnyDataset, shard_sizes: Sequence[int] | Integers) -> NDArray[np.float64]:
    """Share of the stream of each dataset, (M,); without weights by its samples, each equally often."""
    weights = dataset.weights if isinstance(dataset, CombinedDataset) else None
    counts = [int(sizes.sum()) for sizes in samples_of_parts(dataset, shard_sizes)]
    return _shares(counts if weights is None else weights)


def order_of(dataset: AnyDataset, shard_sizes: Sequence[int] | Integers, seed: int) -> "Order | MixedOrder":
    """The order of a dataset's samples, or of several datasets' by their weights."""
    if not isinstance(dataset, CombinedDataset):
        return Order(shard_sizes, seed=seed)
    return MixedOrder(samples_of_parts(dataset, shard_sizes), shares(dataset, shard_sizes), seed)


def _shares(weights: Sequence[float] | NDArray[np.float64]) -> NDArray[np.float64]:
    numbers = np.asarray(weights, dtype=np.float64)
    assert len(numbers) and (numbers > 0).all() and np.isfinite(numbers).all()
    numbers = numbers / numbers.max()  # the sum of the largest numbers is none
    return numbers / numbers.sum()


class MixedOrder:
    """The order of several datasets' samples, which are numbered dataset by dataset, shard by shard."""

    def __init__(
        self, shard_sizes: Sequence[Integers], weights: Sequence[float] | NDArray[np.float64], seed: int
    ) -> None:
        # Each dataset has a seed of its own: equal sizes must not mean equal orders.
        seeds = [int(keyed_generator("dataset", seed, number).random_raw()) for number in range(len(shard_sizes))]
        self._orders = [Order(sizes, seed=own) for sizes, own in zip(shard_sizes, seeds)]
        self._starts = np.cumsum([0, *(order.num_samples for order in self._orders)])
        self._turns = Turns(weights, seed)
        self._stream_starts = np.cumsum([0, *(order.num_streams for order in self._orders)])
        self.num_samples, self.num_streams = int(self._starts[-1]), int(self._stream_starts[-1])

    def at(self, positions: Integers) -> Integers:
        """The sample number at each position, shape as given."""
        samples = np.empty_like(positions)
        which, nth = self._turns.at(positions)
        for number, order in enumerate(self._orders):
            here = which == number
            if here.any():
                samples[here] = self._starts[number] + order.at(nth[here])
        return samples

    def epoch_of(self, positions: Integers) -> Integers:
        """The epoch of its own dataset that each position lies in: how often its sample stood there before."""
        epochs = np.empty_like(positions)
        which, nth = self._turns.at(positions)
        for number, order in enumerate(self._orders):
            here = which == number
            epochs[here] = order.epoch_of(nth[here])
        return epochs

    def stream_of(self, positions: Integers) -> Integers:
        """The stream at each position, numbered dataset by dataset."""
        streams = np.empty_like(positions)
        which, nth = self._turns.at(positions)
        for number, order in enumerate(self._orders):
            here = which == number
            streams[here] = self._stream_starts[number] + order.stream_of(nth[here])
        return streams


class Turns:
    """Whose turn it is at a position, and for which time.

    Dataset i would like its n-th turn at time (n + 1/2) / share_i, and turns are given in that order (the
    method of Webster, or Sainte-Lague, for seats in a parliament): at the end of each block of positions each
    dataset has had its share of turns, give or take (M + 1) / 2. Inside blocks the turns are shuffled, so that they
    have no period: whoever takes every W-th position meets all datasets.
    """

    def __init__(self, weights: Sequence[float] | NDArray[np.float64], seed: int) -> None:
        self._shares = _shares(weights)
        self._seed = seed

    def at(self, positions: Integers) -> tuple[Integers, Integers]:
        """The dataset at each position and how many turns it had before, both in the shape given."""
        which, nth = np.empty_like(positions), np.empty_like(positions)
        blocks, offsets = np.divmod(positions, BLOCK_POSITIONS)
        for block in np.unique(blocks):
            here = blocks == block
            turns = self._block(int(block))
            which[here], nth[here] = turns[0][offsets[here]], turns[1][offsets[here]]
        return which, nth

    def _block(self, block: int) -> tuple[Integers, Integers]:
        first, num = block * BLOCK_POSITIONS, len(self._shares)
        # Up to time t there are t turns, give or take M / 2: those before t = first - M are all earlier than
        # the block, and so many more of each dataset hold all of the block.
        before = self._before(first - num)
        more = np.ceil(self._shares * (BLOCK_POSITIONS + 2 * num)).astype(np.int64) + 2
        which = np.repeat(np.arange(num), more)
        nth = np.concatenate([start + np.arange(count) for start, count in zip(before, more)])
        times = (nth + 0.5) / self._shares[which]
        skipped = first - int(before.sum())
        inside = np.sort(np.lexsort((which, times))[skipped : skipped + BLOCK_POSITIONS])
        which, nth = which[inside], nth[inside]  # by dataset, then by time
        shuffle = np.argsort(keyed_generator("turns", self._seed, block).random_raw(len(which)), kind="stable")
        shuffled = which[shuffle]
        counted = np.empty_like(nth)
        counted[np.argsort(shuffled, kind="stable")] = nth
        return shuffled, counted

    def _before(self, time: int) -> Integers:
        """How many turns each dataset has before a time, by the very comparison that sorts them."""
        counts = np.maximum(np.ceil(time * self._shares - 0.5), 0).astype(np.int64)
        counts += (counts + 0.5) / self._shares < time
        counts -= (counts > 0) & ((counts - 0.5) / self._shares >= time)
        return counts


def tell_of_caches(dataset: AnyDataset) -> None:
    """Say, once on each machine, for which datasets its disk is too small: nothing else shows why reading is slow."""
    for part in parts_of(dataset) if distributed.is_first_here() else []:
        if told := part.short_of_disk():
            say_here(told)
