"""Cases → a segment of a shard: their tar members, one after another, and their rows of the index.

A tar is nothing but its members in a row, so segments are made in any process and joined in order. Members are
those of WebDataset (`<key>.0.jpg`, `<key>.1.jpg`, …, `<key>.json`) with USTAR headers: no clock, no owner, and
no extended header, which would halve the speed of plain WebDataset readers.
"""

import hashlib
import json
import math
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from clusters.config import InputError
from data.cases import Case, SourceImage
from data.config import ImportConfig
from data.images import BURNED_IN, BURNED_IN_MEND, BadImage, StoredImage, canonical
from data.privacy import WHILE, quiet_libraries

ABSENT = "absent"
ABSENT_MEND = "fetch what is missing, correct the table, or leave such images out with missing=skip"
MAX_NAME = 100  # characters; a longer name would need a prefix or an extended header


@dataclass(frozen=True)
class Processing:
    """What is done to every image; the fields are those of the import's config."""

    short_side_px: int
    jpeg_quality: int
    max_pixels: int
    burned_in: str = "refuse"
    missing: str = "refuse"

    @classmethod
    def of(cls, config: ImportConfig) -> "Processing":
        """What this import does to its images."""
        return cls(config.short_side_px, config.jpeg_quality, config.max_pixels, config.burned_in, config.missing)


@dataclass(frozen=True)
class Segment:
    """Some cases as they stand in a shard. Offsets in the rows count from the start of the segment."""

    content: bytes
    rows: list[dict[str, Any]]
    bad: list[str]
    num_images: int
    dropped_cases: int


def make_segment(cases: Sequence[Case], processing: Processing) -> Segment:
    """Read and process the images of some cases; those that cannot be used are told in `bad`.

    Raises InputError for an image that is there and cannot be read, and for one that is not there or says that text
    is burned into it, or somebody to be recognized in it, where such images are to be refused.
    """
    pieces: list[bytes] = []
    rows: list[dict[str, Any]] = []
    bad: list[str] = []
    size = dropped = 0
    for case in cases:
        with quiet_libraries():
            outcome = [(image, _stored(image, processing)) for image in case.images]
        bad += [f"{image.name}: {stored}" for image, stored in outcome if isinstance(stored, str)]
        usable = [(image, stored) for image, stored in outcome if isinstance(stored, StoredImage)]
        if not usable:
            dropped += 1
            continue
        told = [_row(case, number, image, stored) for number, (image, stored) in enumerate(usable)]
        members = [(row["member"], stored.content) for row, (_, stored) in zip(told, usable)]
        places = {}
        for name, content in sorted([*members, (f"{case.key}.json", _story(case, told))]):
            member = tar_member(name, content)
            places[name] = size + tarfile.BLOCKSIZE
            pieces.append(member)
            size += len(member)
        rows += [{**row, "offset": places[row["member"]]} for row in told]
    return Segment(b"".join(pieces), rows, bad, sum(len(case.images) for case in cases), dropped)


def still_bad(cases: Sequence[Case], bad: Sequence[str], processing: Processing) -> bool:
    """Whether each image that `make_segment` told as bad would be told so again: nobody has mended one since."""
    images = {image.name: image for case in cases for image in case.images}
    with quiet_libraries():
        return all(
            _stored(images[name], processing) == reason for name, reason in (line.rsplit(": ", 1) for line in bad)
        )


def tar_member(name: str, content: bytes) -> bytes:
    """One file of a tar: header, content, padding to whole blocks of 512 bytes."""
    assert len(name) <= MAX_NAME, name
    info = tarfile.TarInfo(name)
    info.size, info.mode, info.uname, info.gname = len(content), 0o444, "manyview", "manyview"
    return info.tobuf(tarfile.USTAR_FORMAT) + content + bytes(-len(content) % tarfile.BLOCKSIZE)


def tar_end(size: int) -> bytes:
    """What ends a tar of `size` bytes: two empty blocks, and more up to a whole record of 20."""
    return bytes(2 * tarfile.BLOCKSIZE + -(size + 2 * tarfile.BLOCKSIZE) % tarfile.RECORDSIZE)


def _stored(image: SourceImage, processing: Processing) -> StoredImage | str:
    """The stored image, or the reason why it is quarantined."""
    try:
        wanted = processing.short_side_px, processing.jpeg_quality, processing.max_pixels, processing.burned_in
        return canonical(image.read(), *wanted)
    except BadImage as error:
        if error.reason == BURNED_IN and processing.burned_in == "refuse":
            raise InputError(
                f"image {image.name} says that text is burned into its pixels or that somebody can be recognized in "
                f"them; {BURNED_IN_MEND}"
            ) from None
        return error.reason
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        if processing.missing == "refuse":
            raise InputError(f"image {image.name} is not there; {ABSENT_MEND}") from None
        return ABSENT
    except InputError as error:  # a source that knows what is wrong and how to mend it
        raise InputError(f"cannot read image {image.name}: {error}") from None
    except OSError as error:
        raise InputError(f"cannot read image {image.name}: {error.strerror or type(error).__name__}") from None
    except Exception as error:
        error.add_note(f"{WHILE} {image.name}")
        raise


def _row(case: Case, number: int, image: SourceImage, stored: StoredImage) -> dict[str, Any]:
    """An image's row of the index, but for its place."""
    row = {
        "name": image.name,
        "key": case.key,
        "patient": case.patient,
        "split": case.split,
        "member": f"{case.key}.{number}.jpg",
        "size": len(stored.content),
        "extension": "jpg",
        "width": stored.width,
        "height": stored.height,
        "sha256": hashlib.sha256(stored.content).hexdigest(),
        "pixel_sha256": stored.pixel_sha256,
        "dhash": stored.dhash,
        "uncertain": sorted(case.uncertain),
    }
    row |= {f"label.{name}": _or_none(value) for name, value in case.labels.items()}
    row |= {f"number.{name}": _or_none(value) for name, value in case.numbers.items()}
    return row | {f"attr.{name}": value for name, value in {**case.attributes, **image.attributes}.items()}


def _story(case: Case, rows: Sequence[dict[str, Any]]) -> bytes:
    """The case's json in the tar, for readers that do not know the index."""
    images = [
        {
            "width": row["width"],
            "height": row["height"],
            "attributes": {name.removeprefix("attr."): row[name] for name in row if name.startswith("attr.")},
        }
        for row in rows
    ]
    story = {
        "key": case.key,
        "patient": case.patient,
        "split": case.split,
        "labels": {name: _or_none(value) for name, value in case.labels.items()},
        "uncertain": sorted(case.uncertain),
        "images": images,
    }
    if case.numbers:
        story["numbers"] = {name: _or_none(value) for name, value in case.numbers.items()}
    return json.dumps(story, sort_keys=True, separators=(",", ":")).encode()


def _or_none(value: float) -> float | None:
    return None if math.isnan(value) else value
