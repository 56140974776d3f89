"""Which shards of a cache make room for a newcomer: the decisions of cache.py without its files, so that they can also
be replayed for clusters that are not there.
"""

from collections.abc import Iterable
from typing import Any, TypeVar

T = TypeVar("T")

IN_USE_S = 60.0
"""A shard that was read so recently is not removed."""
TOUCH_EVERY_S = 5.0
"""A process notes no more often that it read a shard."""
REFUSED_SHARE = 0.25
"""A shard that found no room is not tried again for so large a part of the time that a read one stays."""


def make_room(wanted: int, limit: int, taken: int, idle: Iterable[tuple[Any, T, int]]) -> list[T] | None:
    """Who leaves so that `wanted` more bytes fit under `limit`: those that were not read for longest.

    `taken` bytes are there; `idle` are (time of the last read, name, bytes) of what is not in use. None, and nobody
    has to leave, where all of them together were not enough.
    """
    leaving = []
    for _, name, size in sorted(idle):
        if taken + wanted <= limit:
            break
        leaving.append(name)
        taken -= size
    return leaving if taken + wanted <= limit else None
