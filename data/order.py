"""Which sample stands at a position of the training stream: arithmetic, never a state.

The stream runs on across epochs: position p lies in epoch p // N, and each epoch has each of the N samples
once. Because it depends on (seed, sizes) alone, the order is the same for 1 worker or 64 and for any number
of loader processes, and a run is resumed by one integer.

Within an epoch the shards are permuted and laid end to end, and that line of samples is cut into
`num_streams` equal streams which are read side by side (position q belongs to stream q mod num_streams);
each stream is shuffled in blocks. So a worker that takes every W-th position reads few shards at a time,
while neighbours in a batch come from all over the dataset.
"""

import hashlib
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Integers = NDArray[np.int64]

BLOCK_SAMPLES = 65_536


def keyed_generator(*key: int | str) -> np.random.Philox:
    """A counter-based generator that depends on the key alone, the same on every machine.

    Only its raw output is used: numpy promises that for a bit generator, and not for what is built on it.
    """
    digest = hashlib.blake2b(repr(key).encode(), digest_size=16).digest()
    return np.random.Philox(key=int.from_bytes(digest, "little"))


def keyed_uniforms(count: int, *key: int | str) -> NDArray[np.float64]:
    """`count` numbers in [0, 1) that depend on the key alone."""
    raw = np.asarray(keyed_generator(*key).random_raw(count), dtype=np.uint64)
    return (raw >> np.uint64(11)).astype(np.float64) * 2.0**-53


@lru_cache(maxsize=64)
def keyed_permutation(count: int, *key: int | str) -> Integers:
    """A permutation of 0 … count-1 that depends on the key alone."""
    return np.argsort(keyed_generator(*key).random_raw(count), kind="stable")


class Order:
    """The order of N samples, which are numbered shard by shard."""

    def __init__(
        self,
        shard_sizes: Sequence[int] | Integers,
        seed: int,
        num_streams: int = 1,
        block_samples: int = BLOCK_SAMPLES,
    ) -> None:
        self._sizes = np.asarray(shard_sizes, dtype=np.int64)
        self._sizes = self._sizes[self._sizes > 0]
        self._starts = np.concatenate([[0], np.cumsum(self._sizes)[:-1]]).astype(np.int64)
        self.num_samples = int(self._sizes.sum())
        assert self.num_samples > 0 and num_streams > 0 and block_samples > 0
        self._seed, self._block = seed, block_samples
        self._num_streams = min(num_streams, self.num_samples)

    def at(self, positions: Integers) -> Integers:
        """The sample number at each position, shape as given."""
        samples = np.empty_like(positions)
        epochs, places = np.divmod(positions, self.num_samples)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            samples[here] = self._at_epoch(int(epoch), places[here])
        return samples

    def _at_epoch(self, epoch: int, places: Integers) -> Integers:
        inside, streams = np.divmod(places, self._num_streams)
        share, rest = divmod(self.num_samples, self._num_streams)
        stream_starts = streams * share + np.minimum(streams, rest)
        stream_sizes = share + (streams < rest)
        blocks, offsets = np.divmod(inside, self._block)
        line = np.empty_like(places)
        for stream, block in np.unique(np.stack([streams, blocks]), axis=1).T:
            here = (streams == stream) & (blocks == block)
            size = min(self._block, int(stream_sizes[here][0]) - int(block) * self._block)
            shuffle = keyed_permutation(size, "block", self._seed, epoch, int(stream), int(block))
            line[here] = stream_starts[here] + block * self._block + shuffle[offsets[here]]
        return self._on_line(epoch, line)

    def _on_line(self, epoch: int, line: Integers) -> Integers:
        """Sample numbers at places on the line of permuted shards."""
        shards = keyed_permutation(len(self._sizes), "shards", self._seed, epoch)
        ends = np.cumsum(self._sizes[shards])
        nth = np.searchsorted(ends, line, side="right")
        chosen = shards[nth]
        return self._starts[chosen] + line - (ends[nth] - self._sizes[chosen])
