"""Any medical image file → canonical pixels, and nothing of the file but its pixels.

Pixels are uint8, `(H, W, 3)` RGB or `(H, W, 1)` grey, upright. What is stored is encoded again from the
pixel array, so that no EXIF, comment, text chunk, colour profile or thumbnail can come along.
"""

import hashlib
import io
import warnings
from dataclasses import dataclass

import cv2
import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image, ImageFile, UnidentifiedImageError

# Formats that are read: no EPS or PDF (they would run an interpreter), nothing exotic.
FORMATS = ("JPEG", "PNG", "TIFF", "JPEG2000", "WEBP", "BMP", "GIF", "PPM")
Image.init()
ORIENTATION_TAG = 0x0112
Pixels = NDArray[np.uint8]


class BadImage(ValueError):
    """An image that cannot be used. `reason` is one of a few words that the manifest counts."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True)
class StoredImage:
    """One image as it goes into a shard."""

    content: bytes
    width: int
    height: int
    pixel_sha256: str
    dhash: int


def decode(content: bytes, max_pixels: int = 200_000_000) -> np.ndarray:
    """Decode an image file whole: upright uint8 pixels, `(H, W, 3)` RGB or `(H, W, 1)` grey.

    16-bit pixels are scaled, not clipped; transparency is laid on white. Raises BadImage with its
    reason: absent bytes, not an image, too large (by the header, before anything is decoded), truncated,
    several frames, unreadable.
    """
    if not content:
        raise BadImage("zero bytes")
    assert not ImageFile.LOAD_TRUNCATED_IMAGES, "half an image would pass for a whole one"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image = Image.open(io.BytesIO(content), formats=FORMATS)
        if image.width * image.height > max_pixels:
            raise BadImage("too large")
        if getattr(image, "n_frames", 1) > 1 and image.format != "MPO":
            raise BadImage("several frames")
        image.load()  # `verify` and `open` pass a truncated file
    except BadImage:
        raise
    except UnidentifiedImageError:
        raise BadImage("not an image") from None
    except Image.DecompressionBombError:
        raise BadImage("too large") from None
    except Exception as error:  # decoders raise whatever they like on damaged files
        raise BadImage("truncated" if "truncated" in str(error).lower() else "undecodable") from None
    pixels = _to_uint8(image)
    return np.ascontiguousarray(_upright(pixels, _orientation(image)))


def _to_uint8(image: Image.Image) -> np.ndarray:
    """Pixels of any mode as `(H, W, 1)` or `(H, W, 3)` uint8."""
    if image.mode.startswith("I"):
        return _scale_to_8_bit(np.asarray(image))
    if image.mode == "F":
        raise BadImage("float pixels")
    if "transparency" in image.info or image.mode in ("RGBA", "LA", "PA", "RGBa", "La"):
        rgba = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    if image.mode in ("1", "L"):
        return np.asarray(image.convert("L"))[:, :, None]
    return np.asarray(image.convert("RGB"))


def _scale_to_8_bit(values: np.ndarray) -> np.ndarray:
    """Deep grey values on 0..255 by their bit depth: 12 bits where all fit in 12, else 16.

    Radiographs often hold 12 bits in a 16-bit container; as 16 bits they would keep 16 grey levels.
    """
    if values.min() < 0 or values.max() > 65535:
        raise BadImage("more than 16 bits")
    full = 4095 if values.max() <= 4095 else 65535
    return ((values.astype(np.uint32) * 255 + full // 2) // full).astype(np.uint8)[:, :, None]


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(ORIENTATION_TAG, 1))
    except Exception:  # a damaged EXIF block says nothing about the pixels
        return 1


def _upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Undo an EXIF orientation (CIPA DC-008, tag 274: 1 to 8; anything else means none)."""
    if orientation in (2, 4, 5, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4):
        return np.rot90(pixels, 2)
    if orientation in (6, 7):
        return np.rot90(pixels, -1)
    if orientation in (5, 8):
        return np.rot90(pixels, 1)
    return pixels


def shrink(pixels: np.ndarray, short_side_px: int) -> np.ndarray:
    """Scale down, averaging over areas, so that the short side is `short_side_px`; never enlarges."""
    height, width, channels = pixels.shape
    scale = short_side_px / min(height, width)
    if scale >= 1:
        return pixels
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return cv2.resize(pixels, size, interpolation=cv2.INTER_AREA).reshape(size[1], size[0], channels)


def encode_jpeg(pixels: np.ndarray, quality: int = 92) -> bytes:
    """A baseline JPEG of the pixels and nothing else; colour is not subsampled (small vessels are red)."""
    pixels = np.ascontiguousarray(pixels)
    if pixels.shape[2] == 1:
        return simplejpeg.encode_jpeg(pixels, quality=quality, colorspace="GRAY", colorsubsampling="Gray")
    return simplejpeg.encode_jpeg(pixels, quality=quality, colorspace="RGB", colorsubsampling="444")


def canonical(raw: bytes | Pixels, short_side_px: int, jpeg_quality: int, max_pixels: int) -> StoredImage:
    """From a raw file, or raw pixels, to what is stored. Raises BadImage."""
    pixels = decode(raw, max_pixels) if isinstance(raw, bytes) else raw
    digest = hashlib.sha256(repr(pixels.shape).encode() + pixels.tobytes()).hexdigest()
    small = shrink(pixels, short_side_px)
    content = encode_jpeg(small, jpeg_quality)
    return StoredImage(content, small.shape[1], small.shape[0], digest, difference_hash(small))


def difference_hash(pixels: Pixels) -> int:
    """A 64-bit perceptual hash: whether brightness rises from each of 8 x 8 fields to the next one right.

    Copies that were resized, recompressed or slightly retouched differ in few bits (Krawetz, "Kind of like
    that", 2013).
    """
    grey = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY) if pixels.shape[2] == 3 else pixels[:, :, 0]
    fields = cv2.resize(grey, (9, 8), interpolation=cv2.INTER_AREA).astype(np.int16)
    return int.from_bytes(np.packbits(fields[:, 1:] > fields[:, :-1]).tobytes(), "big")


def decode_stored(content: bytes) -> np.ndarray:
    """Decode an image of a shard: uint8 `(H, W, 3)` RGB; grey has three equal channels."""
    try:
        return simplejpeg.decode_jpeg(content, colorspace="RGB")
    except ValueError:
        pixels = decode(content)
        return np.repeat(pixels, 3, axis=2) if pixels.shape[2] == 1 else pixels
