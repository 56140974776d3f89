"""Patient → split, by a stable keyed hash: the same patient stands in the same split in every import."""

import hashlib
import hmac
from collections.abc import Collection, Mapping

SPLITS = ("train", "val", "test")

# Published ids carry no secret: everybody gets the same split of a public dataset.
PUBLIC_SALT = "manyview-public-split-1"


def split_of(patient: str, salt: str, fractions: Mapping[str, float]) -> str:
    """The split of a patient: HMAC-SHA256(salt, patient) as a number in [0, 1), cut by the fractions.

    A patient keeps its place when others come or go; only changed fractions move the cuts.
    """
    assert abs(sum(fractions.values()) - 1) < 1e-6, fractions
    digest = hmac.new(salt.encode(), patient.encode(), hashlib.sha256).digest()
    place = int.from_bytes(digest[:6], "big") / 2**48
    upper = 0.0
    last = ""
    for split, fraction in fractions.items():
        upper += fraction
        if fraction > 0:
            last = split
        if place < upper:
            return split
    return last


def mend_of_empty(split: str, there: Collection[str], source: str) -> str:
    """What to do about a split without patients where those of `there` have some, for messages; empty: nobody knows.

    Sub-folders are official splits, of which only validation can be cut from train by the hash.
    """
    if (source, split) != ("folder", "test") or "val" not in there:
        return ""
    return (
        "where raw= has train/ and val/ alone, rename val/ to test/ and import into a new out=: validation is then cut "
        "from train by the patient's hash"
    )


def salt_id(salt: str) -> str:
    """A public name for a salt, which tells whether two datasets share it without giving it away."""
    return hashlib.sha256(b"salt:" + salt.encode()).hexdigest()[:12]
