"""Bytes out of the shards of a dataset: of a local one from open files, of a remote one from the cache or by ranges."""

import os
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cached_property

from clusters.config import InputError, Transient
from clusters.retries import may_pass, retried
from clusters.storage import Folder
from data.cache import CachePlace, ShardCache, patiently
from data.manifest import Manifest

MAX_OPEN_FILES = 128
NUM_REQUESTS = 16
"""Ranges that are asked for at once, where a shard is not read whole."""


class ShardBytes:
    """The shards of one dataset, by their numbers. Says nothing of whether the bytes are the right ones."""

    def __init__(self, folder: Folder, manifest: Manifest, cache: CachePlace) -> None:
        self._folder, self._manifest, self._place = folder, manifest, cache
        self._names = manifest.shards
        self._files: OrderedDict[int, int] = OrderedDict()

    def __del__(self) -> None:
        for file in getattr(self, "_files", {}).values():
            os.close(file)

    @property
    def are_cached(self) -> bool:
        """Whether shards are brought to this machine, so that saying ahead what will be read pays."""
        return self._cache is not None

    def read(self, shards: Sequence[int], offsets: Sequence[int], sizes: Sequence[int]) -> list[bytes]:
        """`sizes[i]` bytes of shard `shards[i]` from `offsets[i]` on, fewer where it ends before.

        Raises InputError naming a shard that cannot be read.
        """
        if self._folder.path is not None or len(shards) == 1:
            return list(map(self._read, shards, offsets, sizes))
        return list(self._requests.map(self._read, shards, offsets, sizes))

    def announce(self, wanted: Mapping[int, float], now: bool, least_share: float) -> None:
        """Bring the shards of which as many bytes are wanted, at least `least_share` of each, as the cache allows."""
        assert self._cache is not None
        files, named = self._manifest.files, {self._names[shard]: number for shard, number in wanted.items()}
        self._cache.announce([name for name, number in named.items() if number >= least_share * files[name].size], now)

    def fetch_again(self, shard: int) -> bool:
        """Whether there was a copy of the shard, which may have been damaged: it is replaced."""
        if self._cache is None or not self._cache.drop(self._names[shard]):
            return False
        with suppress(OSError):  # the read that takes its place reports what is wrong
            self._cache.fetch(self._names[shard])
        return True

    @cached_property
    def _cache(self) -> ShardCache | None:
        """None where the shards are local or the cache is off."""
        if self._folder.path is not None or self._place.size_gb <= 0:
            return None
        sizes = {name: self._manifest.files[name].size for name in self._names.values()}
        return ShardCache(self._folder, self._manifest.sha256, sizes, self._place)

    @cached_property
    def _requests(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(NUM_REQUESTS, "requests")

    def _read(self, shard: int, offset: int, size: int) -> bytes:
        name = self._names[shard]
        if offset < 0 or size < 0:  # a damaged array; the hash will not fit
            return b""
        try:
            if self._folder.path is not None:
                return retried(lambda: self._read_file(shard, offset, size), self._folder.file(name), "read")
            content = self._cache.read(name, offset, size) if self._cache is not None else None
            if content is None:
                content = patiently(lambda: self._folder.read_range(name, offset, size))
            return content
        except OSError as error:
            raise unreadable(self._folder, name, error) from None

    def _read_file(self, shard: int, offset: int, size: int) -> bytes:
        try:
            return os.pread(self._opened(shard), size, offset)
        except OSError:
            file = self._files.pop(shard, None)
            if file is not None:  # after an error of the storage behind it an open file may stay bad
                os.close(file)
            raise

    def _opened(self, shard: int) -> int:
        """The shard's file, open; of many, those that were read last are kept open."""
        file = self._files.get(shard)
        if file is None:
            assert self._folder.path is not None
            file = os.open(self._folder.path / self._names[shard], os.O_RDONLY | os.O_CLOEXEC)
            if len(self._files) >= MAX_OPEN_FILES:
                os.close(self._files.popitem(last=False)[1])
            self._files[shard] = file
        else:
            self._files.move_to_end(shard)
        return file


def unreadable(folder: Folder, name: str, error: OSError) -> InputError:
    """What to tell about a file of a dataset that could not be read; Transient where another try may find it well."""
    if isinstance(error, FileNotFoundError):
        return InputError(f"{folder.file(name)} is missing; copy the dataset again")
    what = " ".join((error.strerror or str(error)).split()) or type(error).__name__
    return (Transient if may_pass(error) else InputError)(
        f"{folder.file(name)} cannot be read ({what}); check the place and your access to it, and run the same command "
        "again"
    )
