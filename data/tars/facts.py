"""What the index tells of an image besides its place, from the stored bytes."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from data.hashes import difference_hash, pixel_hash
from data.images import BadImage, Pixels, decode, is_dicom, shrink

HASHED_SIDE_PX = 256  # as importers shrink by default, so that a picture has one perceptual hash wherever it stands


@dataclass(frozen=True)
class Facts:
    """Size in pixels, upright; hash of the bytes and of the decoded pixels; perceptual hash."""

    width: int
    height: int
    sha256: str
    pixel_sha256: str
    dhash: int


def read_facts(task: tuple[Sequence[Callable[[], bytes | Pixels]], int]) -> list[Facts | str]:
    """Facts of some images, or why one cannot be used."""
    readers, max_pixels = task
    found: list[Facts | str] = []
    for read in readers:
        content = read()
        assert isinstance(content, bytes)
        try:
            if is_dicom(content):
                raise BadImage("DICOM named as another format")
            pixels = decode(content, max_pixels)
        except BadImage as error:
            found.append(error.reason)
            continue
        # The hash of the pixels is that of `images.canonical`, so that copies in other datasets are known again.
        digest = pixel_hash(pixels)
        height, width = pixels.shape[:2]
        looks = difference_hash(shrink(pixels, HASHED_SIDE_PX))
        found.append(Facts(width, height, hashlib.sha256(content).hexdigest(), digest, looks))
    return found
