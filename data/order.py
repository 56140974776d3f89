"""Which sample stands at a position of the training stream: arithmetic, never a state.

The stream runs on across epochs: position p lies in epoch p // N, and each epoch has each of the N samples
once. Because it depends on (seed, sizes) alone, the order is the same for 1 worker or 64 and for any number
of loader processes, and a run is resumed by one integer.

Within an epoch the shards are permuted and laid end to end, and that line of samples is cut into
`num_streams` equal streams which are read side by side: of every num_streams positions each stream has one, in
an order drawn anew each time. Each stream is shuffled in blocks. How many streams and how long blocks are is told
by the dataset alone. So each batch takes its share from every stream and neighbours come from all over the
dataset; and ranks divide the batch by streams (`positions_of` in loader.py), so that a node reads few shards at a
time.
"""

import hashlib
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Integers = NDArray[np.int64]

# Raised with every change of what stands at a position (sample, pair, crop or record), so that a run that was begun
# by an earlier version is refused instead of being continued otherwise.
STREAM_VERSION = 3

MAX_STREAMS = 64
POOL_SAMPLES = 1 << 19
"""Samples that are mixed at a time, by all streams together, if there are so many."""
MIN_BLOCK_SAMPLES, MAX_BLOCK_SAMPLES = 1 << 13, 1 << 16
TURNS_TOGETHER = 256
"""Turns of the streams that are drawn at once."""


def keyed_generator(*key: int | str) -> np.random.Philox:
    """A counter-based generator that depends on the key alone, the same on every machine.

    Only its raw output is used: numpy promises that for a bit generator, and not for what is built on it.
    """
    return np.random.Philox(key=int.from_bytes(_digest(key), "little"))


def keyed_uniforms(count: int, *key: int | str) -> NDArray[np.float64]:
    """`count` numbers in [0, 1) that depend on the key alone."""
    return (_keyed_raw(count, *key) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _keyed_raw(count: int, *key: int | str) -> NDArray[np.uint64]:
    """The first numbers of `keyed_generator(*key)`, without making one: numpy first seeds it from the system."""
    generator, state = _AGAIN.generator, _AGAIN.state
    state["state"]["key"][:] = np.frombuffer(_digest(key), "<u8")
    generator.state = state
    return generator.random_raw(count)


def _digest(key: tuple[int | str, ...]) -> bytes:
    return hashlib.blake2b(repr(key).encode(), digest_size=16).digest()


class _Again(threading.local):
    """One generator of each thread, and the state that a fresh one has."""

    def __init__(self) -> None:
        self.generator = np.random.Philox(key=0)
        self.state: Any = self.generator.state


_AGAIN = _Again()


def keyed_permutation(count: int, *key: int | str) -> Integers:
    """A permutation of 0 … count-1 that depends on the key alone."""
    raw = _keyed_raw(count, *key)
    order = np.argsort(raw)
    ordered = raw[order]
    # The fast sort is not stable; with equal numbers, hardly ever, the order would depend on the machine.
    return np.argsort(raw, kind="stable") if (ordered[1:] == ordered[:-1]).any() else order


class Order:
    """The order of N samples, which are numbered shard by shard."""

    def __init__(
        self,
        shard_sizes: Sequence[int] | Integers,
        seed: int,
        num_streams: int | None = None,
        block_samples: int | None = None,
    ) -> None:
        self._sizes = np.asarray(shard_sizes, dtype=np.int64)
        self._sizes = self._sizes[self._sizes > 0]
        self._starts = np.concatenate([[0], np.cumsum(self._sizes)[:-1]]).astype(np.int64)
        self.num_samples = int(self._sizes.sum())
        assert self.num_samples > 0
        streams = min(MAX_STREAMS, len(self._sizes)) if num_streams is None else num_streams
        assert streams > 0
        block = min(max(POOL_SAMPLES // streams, MIN_BLOCK_SAMPLES), MAX_BLOCK_SAMPLES)
        self._seed = seed
        self.num_streams = min(streams, self.num_samples)
        self.block_samples = block if block_samples is None else block_samples
        assert self.block_samples > 0
        # Of each stream the block that was asked for last; and the line of shards of an epoch.
        self._blocks: dict[int, tuple[tuple[int, int], NDArray[np.int32]]] = {}
        self._line: tuple[int, Integers, Integers] = (-1, self._starts, self._starts)
        self._turns: tuple[tuple[int, int], Integers] = ((-1, -1), self._starts)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_blocks": {}}

    def at(self, positions: Integers) -> Integers:
        """The sample number at each position, shape as given."""
        samples = np.empty_like(positions)
        epochs, places = np.divmod(positions, self.num_samples)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            samples[here] = self._at_epoch(int(epoch), places[here])
        return samples

    def epoch_of(self, positions: Integers) -> Integers:
        """The epoch that each position lies in: how often its sample stood in the stream before."""
        return positions // self.num_samples

    def stream_of(self, positions: Integers) -> Integers:
        """The stream at each position: who keeps to few streams reads few shards at a time."""
        epochs, places = np.divmod(positions, self.num_samples)
        streams = np.empty_like(positions)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            streams[here] = self._streams(int(epoch), places[here])
        return streams

    def _at_epoch(self, epoch: int, places: Integers) -> Integers:
        inside, streams = places // self.num_streams, self._streams(epoch, places)
        blocks, offsets = np.divmod(inside, self.block_samples)
        line = np.empty_like(places)
        groups = streams * (1 + blocks.max(initial=0)) + blocks
        by_group = np.argsort(groups, kind="stable")
        cuts = np.flatnonzero(np.diff(groups[by_group])) + 1
        for here in np.split(by_group, cuts):
            stream, block = int(streams[here[0]]), int(blocks[here[0]])
            start, shuffle = self._block(epoch, stream, block)
            line[here] = start + shuffle[offsets[here]]
        return self._on_line(epoch, line)

    def _streams(self, epoch: int, places: Integers) -> Integers:
        """The stream at each place of an epoch: turn by turn, each turn a permutation of the streams."""
        turns, slots = np.divmod(places, self.num_streams)
        streams = slots.copy()  # so it stays in the last turn, which may be a part of one
        groups, rows = np.divmod(turns, TURNS_TOGETHER)
        shuffled = turns < self.num_samples // self.num_streams if self.num_streams > 1 else np.zeros(len(turns), bool)
        for group in np.unique(groups[shuffled]):
            here = shuffled & (groups == group)
            if self._turns[0] != (epoch, group):
                raw = _keyed_raw(TURNS_TOGETHER * self.num_streams, "turns", self._seed, epoch, int(group))
                table = np.argsort(raw.reshape(TURNS_TOGETHER, self.num_streams), axis=1, kind="stable")
                self._turns = (epoch, int(group)), table
            streams[here] = self._turns[1][rows[here], slots[here]]
        return streams

    def _block(self, epoch: int, stream: int, block: int) -> tuple[int, NDArray[np.int32]]:
        """Where a block begins on the line, and how it is shuffled."""
        share, rest = divmod(self.num_samples, self.num_streams)
        start = stream * share + min(stream, rest) + block * self.block_samples
        which, shuffle = self._blocks.get(stream, ((-1, -1), _NOTHING))
        if which != (epoch, block):
            size = min(self.block_samples, share + (stream < rest) - block * self.block_samples)
            shuffle = keyed_permutation(size, "block", self._seed, epoch, stream, block).astype(np.int32)
            self._blocks[stream] = (epoch, block), shuffle
        return start, shuffle

    def _on_line(self, epoch: int, line: Integers) -> Integers:
        """Sample numbers at places on the line of permuted shards."""
        if self._line[0] != epoch:
            shards = keyed_permutation(len(self._sizes), "shards", self._seed, epoch)
            self._line = epoch, shards, np.cumsum(self._sizes[shards])
        _, shards, ends = self._line
        nth = np.searchsorted(ends, line, side="right")
        chosen = shards[nth]
        return self._starts[chosen] + line - (ends[nth] - self._sizes[chosen])


_NOTHING = np.empty(0, dtype=np.int32)
