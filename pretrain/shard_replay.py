"""What the nodes of a cluster that is not there read: the real order, and the cache's real decisions, step by step.

A node is replayed as one process that asks for the samples of all its ranks, with an empty cache at the start, and for
which a download takes no time.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial

import numpy as np
from numpy.typing import NDArray

from data.combined import AnyDataset, order_of, parts_of
from data.dataset import Dataset
from data.eviction import IN_USE_S, REFUSED_SHARE, TOUCH_EVERY_S, make_room
from data.order import Integers, keyed_uniforms
from pretrain import batches
from pretrain.methods.method import one_image
from pretrain.stage import Pair, Rows, Samples


@dataclass(frozen=True)
class DescribedDataset:
    """A dataset that is told of rather than there: cases of equally many images of equal size."""

    num_images: int
    images_per_case: int
    images_per_shard: int
    bytes_per_image: int
    location: str = "the described dataset"

    @property
    def case_of(self) -> Integers:
        """Number of each row's case."""
        return np.arange(self.num_images) // self.images_per_case

    @property
    def shard_of(self) -> Integers:
        """Number of each row's shard; a case stands in one."""
        return self.case_of // max(1, self.images_per_shard // self.images_per_case)


@dataclass(frozen=True)
class Layout:
    """Where the images of a stage's samples lie. Without `cached` they are read in ranges, or out of files."""

    dataset: AnyDataset | DescribedDataset
    samples: Samples
    pair: Pair
    seed: int
    stage: int
    shard_of_row: NDArray[np.integer]
    bytes_of_row: NDArray[np.integer]
    shard_bytes: NDArray[np.integer]
    cached: bool

    def rows(self, samples: Integers, turns: Integers) -> list[Rows]:
        """The rows that each sample's views are made of, as pretrain.batches chooses them, none twice."""
        if self.pair is one_image:
            return list(self.samples.rows[self.samples.starts[samples], None])
        uniforms = partial(_uniforms, self.seed, self.stage)
        pairs = (
            self.pair(sample, self.samples[sample], turn, uniforms)
            for sample, turn in zip(samples.tolist(), turns.tolist())
        )
        return [np.unique(pair) for pair in pairs]


def _uniforms(seed: int, stage: int, count: int, *key: int | str) -> NDArray[np.float64]:
    return keyed_uniforms(count, "pair", seed, stage, *key)


def layout(
    dataset: AnyDataset | DescribedDataset, samples: Samples, pair: Pair, seed: int, stage: int, cached: bool
) -> Layout:
    """Of a dataset that is there, or of one that is told of."""
    if isinstance(dataset, DescribedDataset):
        sizes = np.broadcast_to(dataset.bytes_per_image, dataset.num_images)
        shard_of = dataset.shard_of
        shard_bytes = np.bincount(shard_of) * dataset.bytes_per_image
    else:
        sizes, shard_of = dataset.column("size"), dataset.shard_of
        shard_bytes = np.concatenate([_shard_bytes(part) for part in parts_of(dataset)])
    return Layout(dataset, samples, pair, seed, stage, shard_of, sizes, shard_bytes, cached)


def _shard_bytes(part: Dataset) -> Integers:
    """By the shard's number, 0 for numbers that no shard has."""
    sizes = np.zeros(int(part.shard_of[-1]) + 1, dtype=np.int64)
    for number in np.unique(part.shard_of).tolist():
        sizes[number] = part.manifest.files[part.manifest.shards[number]].size
    return sizes


@dataclass
class Reads:
    """What one node has read: bytes of whole shards and of single images, and how many images came from where."""

    shard_bytes: int = 0
    range_bytes: int = 0
    num_shards: int = 0
    num_cached: int = 0
    num_ranges: int = 0

    @property
    def total_bytes(self) -> int:
        """Over the network, or from the file system."""
        return self.shard_bytes + self.range_bytes


@dataclass
class NodeCache:
    """The bounded cache of shards of one node: data.cache.ShardCache without its files and threads."""

    shard_bytes: NDArray[np.integer]
    limit: int
    in_use_s: float = IN_USE_S
    reads: Reads = field(default_factory=Reads)
    _there: dict[int, tuple[float, int]] = field(default_factory=dict)  # when it was read, and in which order
    _touched: dict[int, float] = field(default_factory=dict)
    _refused: dict[int, float] = field(default_factory=dict)
    _taken: int = 0
    _nth: Iterator[int] = field(default_factory=itertools.count)

    def announce(self, shards: list[int], now: float, wait: bool) -> None:
        """Download these shards. `wait`: who asks is about to read them."""
        for shard in shards:
            if shard in self._there or now < self._refused.get(shard, 0.0):
                continue
            if not self._fetch(shard, now) and wait:
                self._refused[shard] = now + REFUSED_SHARE * self.in_use_s

    def read(self, shards: Integers, sizes: NDArray[np.integer], now: float) -> None:
        """Images of so many bytes out of these shards: from the cache where the shard is there, else by range."""
        here = np.array([shard in self._there for shard in shards.tolist()], dtype=bool)
        for shard in np.unique(shards[here]).tolist():
            if now - self._touched.get(shard, -TOUCH_EVERY_S) >= TOUCH_EVERY_S:
                self._there[shard], self._touched[shard] = (now, next(self._nth)), now
        self.reads.num_cached += int(here.sum())
        self.reads.num_ranges += int((~here).sum())
        self.reads.range_bytes += int(sizes[~here].sum())

    def _fetch(self, shard: int, now: float) -> bool:
        size = int(self.shard_bytes[shard])
        if size > self.limit:
            return False
        idle = [
            (at, name, int(self.shard_bytes[name])) for name, at in self._there.items() if at[0] <= now - self.in_use_s
        ]
        leaving = make_room(size, self.limit, self._taken, idle)
        if leaving is None:
            return False
        for name in leaving:
            del self._there[name]
            self._taken -= int(self.shard_bytes[name])
        self._there[shard], self._taken = (now, next(self._nth)), self._taken + size
        self.reads.shard_bytes += size
        self.reads.num_shards += 1
        return True


def lines_of_samples(layout: Layout, batch_size: int) -> Iterator[tuple[Integers, Integers]]:
    """Of each step the samples of the global batch by stream, and their turns: the line that ranks cut into shares.

    The same line as `data.loader.positions_of` cuts, for any number of ranks.
    """
    order, step = order_of(layout.dataset, layout.samples.shard_sizes, layout.seed), 0  # type: ignore[arg-type]
    while True:
        positions = step * batch_size + np.arange(batch_size, dtype=np.int64)
        positions = positions[np.argsort(order.stream_of(positions), kind="stable")]
        yield order.at(positions), order.epoch_of(positions)
        step += 1


def replay(
    layout: Layout, batch_size: int, num_nodes: int, num_steps: int, step_s: float, cache_bytes: int
) -> Iterator[list[Reads]]:
    """After each step what every node has read so far; the same objects each time.

    `step_s` is the time from one step to the next, by which the cache knows what is in use.
    """
    nodes = [NodeCache(layout.shard_bytes, cache_bytes if layout.cached else 0) for _ in range(num_nodes)]
    ahead = _steps_ahead(batch_size)
    lines, seen = lines_of_samples(layout, batch_size), []
    for step in range(num_steps):
        while (layout.cached and len(seen) <= ahead) or not seen:
            seen.append(_by_node(layout, *next(lines), num_nodes))
        for number, node in enumerate(nodes):
            shards, sizes = seen[0][number]
            if cache_bytes and layout.cached:
                node.announce(np.unique(shards).tolist(), step * step_s, wait=True)
                node.announce(np.unique(seen[-1][number][0]).tolist(), step * step_s, wait=False)
            node.read(shards, sizes, step * step_s)
        del seen[0]
        yield [node.reads for node in nodes]


def _steps_ahead(batch_size: int) -> int:
    """How many steps before they are needed the loader has shards downloaded."""
    return max(1, batches.LOOK_AHEAD_SAMPLES // batch_size)


def _by_node(
    layout: Layout, samples: Integers, turns: Integers, num_nodes: int
) -> list[tuple[Integers, NDArray[np.integer]]]:
    """(shard, bytes) of each image that each node reads at a step."""
    by_node = []
    for mine, at in zip(np.split(samples, num_nodes), np.split(turns, num_nodes)):
        rows = np.concatenate(layout.rows(mine, at))
        by_node.append((layout.shard_of_row[rows], layout.bytes_of_row[rows]))
    return by_node


@dataclass(frozen=True)
class NodeBytes:
    """Bytes that each node reads: at the first step, at one with filled caches on average, and in the first epoch.

    `cached_share` of all images came out of the cache.
    """

    first: NDArray[np.floating]
    later: NDArray[np.floating]
    first_epoch: NDArray[np.floating]
    cached_share: float
    num_steps: int


def read_by_nodes(
    layout: Layout, batch_size: int, num_nodes: int, at_most: int, step_s: float, cache_bytes: int
) -> NodeBytes:
    """Replay from empty caches: `at_most` steps of an epoch, more where `_steps_to_replay` says why."""
    epoch_steps = max(1, len(layout.samples) // batch_size)
    filled, num_steps = _steps_to_replay(epoch_steps, at_most, _steps_ahead(batch_size) if layout.cached else 0)
    read = np.zeros((num_steps + 1, num_nodes))
    reads: list[Reads] = []
    for done, reads in enumerate(replay(layout, batch_size, num_nodes, num_steps, step_s, cache_bytes), 1):
        read[done] = [one.total_bytes for one in reads]
    later = (read[-1] - read[filled]) / (num_steps - filled)
    cached, ranges = (sum(getattr(one, name) for one in reads) for name in ("num_cached", "num_ranges"))
    return NodeBytes(
        first=read[1],
        later=later,
        first_epoch=read[min(epoch_steps, num_steps)] + later * max(0, epoch_steps - num_steps),
        cached_share=cached / (cached + ranges),
        num_steps=num_steps,
    )


def _steps_to_replay(epoch_steps: int, at_most: int, ahead: int) -> tuple[int, int]:
    """After how many steps the caches count as filled, and how many are replayed in all.

    Of a long epoch the second half of what is replayed counts. A short one is replayed to its end and, since caches
    keep what they have, once more. While the loader has not come to what it looked ahead for, it reads more than later.
    """
    at_most = max(at_most, 2 * ahead)
    if not ahead or epoch_steps > at_most:
        num_steps = min(epoch_steps, at_most)
        return num_steps // 2, num_steps
    filled = max(epoch_steps, ahead)
    return filled, filled + max(2, epoch_steps)
