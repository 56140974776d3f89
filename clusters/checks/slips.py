"""Slips of the hand, for names beside which others are right too: a hint for what is near alone would refuse those."""

from collections.abc import Iterable

# What Ray itself has of a machine; any other name is a resource of one's own, of which Ray knows no more.
RESOURCES = {"CPU": "cores", "GPU": "GPUs", "memory": "memory", "object_store_memory": "object store"}


def slip_of(written: str, known: Iterable[str]) -> str | None:
    """The known name that was probably meant by one which is none of them, or None where it may well be another.

    Meant is what differs in capitals or dashes only, or by two neighbours swapped, or by one letter more, less or
    other. Names of three letters are too close to each other (GPU, TPU, NPU) for all but a swap, a letter twice and an
    s at the end.
    """
    return None if written in known else next((name for name in known if _is_slip(_plain(written), _plain(name))), None)


def _plain(name: str) -> str:
    return name.lower().replace("_", "-")


def _is_slip(written: str, name: str) -> bool:
    pairs = enumerate(zip(written, name, strict=False))
    same = next((place for place, (one, other) in pairs if one != other), min(len(written), len(name)))
    left, meant = written[same:], name[same:]
    if written == name or (len(meant) > 1 and left == meant[1] + meant[0] + meant[2:]):
        return True
    more = left[:1].isalpha() and left[1:] == meant
    if len(name) <= 3:
        return more and left[0] in ("s" if not meant else "", written[same - 1 : same])
    return more or left == meant[1:] or (left[:1].isalpha() and left[1:] == meant[1:])
