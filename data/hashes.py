"""By what a picture is known again: its pixels one by one, and how its brightness runs."""

import hashlib

import cv2
import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]


def pixel_hash(pixels: Pixels) -> str:
    """SHA-256 of an image's shape and pixels: the same for the same picture in any lossless encoding.

    Colour that is grey everywhere counts as one channel, `(H, W, 1)`: a grey picture saved as RGB is a copy of it.
    """
    pixels = pixels[:, :, :1] if _is_grey(pixels) else pixels
    digest = hashlib.sha256(repr(pixels.shape).encode())
    digest.update(np.ascontiguousarray(pixels).data)
    return digest.hexdigest()


def _is_grey(pixels: Pixels) -> bool:
    """Whether there are three equal channels: looked for in a few rows first, where most photographs show colour."""
    if pixels.shape[2] != 3:
        return False
    some = pixels[:: max(1, len(pixels) // 8)]
    return all(np.array_equal(part[:, :, 0], part[:, :, other]) for part in (some, pixels) for other in (1, 2))


def difference_hash(pixels: Pixels) -> int:
    """A 64-bit perceptual hash: whether brightness rises from each of 8 x 8 fields to the next one right.

    Copies that were resized, recompressed or slightly retouched differ in few bits (Krawetz, "Kind of like
    that", 2013).
    """
    grey = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY) if pixels.shape[2] == 3 else pixels[:, :, 0]
    fields = cv2.resize(grey, (9, 8), interpolation=cv2.INTER_AREA).astype(np.int16)
    return int.from_bytes(np.packbits(fields[:, 1:] > fields[:, :-1]).tobytes(), "big")
