"""Any medical image file → canonical pixels, and nothing of the file but its pixels.

Pixels are uint8, `(H, W, 3)` RGB or `(H, W, 1)` grey, upright, in sRGB. What is stored is encoded again from
the pixel array, so that no EXIF, comment, text chunk, colour profile or thumbnail can come along.
"""

import io
import struct
import warnings
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageChops, ImageFile, UnidentifiedImageError

from data import jpeg
from data.colour import pixels_to_srgb, to_srgb
from data.hashes import difference_hash, pixel_hash
from data.jpeg import BadImage, encode_jpeg

# Formats that are read: no EPS or PDF (they would run an interpreter), nothing exotic.
FORMATS = ("JPEG", "PNG", "TIFF", "JPEG2000", "WEBP", "BMP", "GIF", "PPM")
Image.init()
# Pillow's own limit would stand in the way of max_pixels, which `decode` holds against every header itself.
Image.MAX_IMAGE_PIXELS = None
MAX_PIXELS = 200_000_000  # of an image, unless an import says otherwise; so that a small file cannot fill the memory
DEEP_BITS = (10, 12, 14, 16)
TIFF_BITS_PER_SAMPLE = 258
TIFF_PHOTOMETRIC = 262
# What phones write: the brands of HEIC and AVIF, which their first box names (ISO/IEC 23008-12; AV1 Image Format).
HEIF_BRANDS = (b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1", b"avif", b"avis")
BURNED_IN = "burned-in annotation"
BURNED_IN_MEND = "give burned_in=leave_out, or burned_in=keep where somebody has looked at them"
Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class StoredImage:
    """One image as it goes into a shard."""

    content: bytes
    width: int
    height: int
    pixel_sha256: str
    dhash: int


def decode(content: bytes, max_pixels: int = MAX_PIXELS, burned_in: str = "keep") -> Pixels:
    """Decode an image file whole: upright uint8 pixels, `(H, W, 3)` RGB or `(H, W, 1)` grey.

    Pixels of more than 8 bits are scaled by the bits that they use, never clipped (`_scale_to_8_bit`); transparency
    is laid on white; a colour profile is applied.
    Raises BadImage with its reason: absent bytes, not an image, too large (by the header, before anything is
    decoded), HEIC or AVIF, truncated, several frames, unreadable; for DICOM also a missing decoder, no pixel data,
    or text burned into the pixels or a face in them, unless burned_in is `keep`.
    """
    if not content:
        raise BadImage("zero bytes")
    if is_dicom(content):
        from data.dicom.decode import decode_dicom  # pydicom is loaded where a DICOM file comes, not before

        return decode_dicom(content, max_pixels, burned_in)
    if content[4:8] == b"ftyp" and content[8:12] in HEIF_BRANDS:
        raise BadImage(f"{'AVIF' if b'avif' in content[8:64] else 'HEIC'} is not read, convert it to JPEG")
    header = jpeg.read_header(content)
    if header is not None and header.plain:
        pixels = jpeg.decode_plain(content, header.channels, max_pixels)
        if pixels is not None:  # else Pillow finds out what is wrong, or bears with it
            return jpeg.upright(pixels_to_srgb(pixels, header.icc), header.orientation)
    return _decode_with_pillow(content, max_pixels)


def is_dicom(content: bytes) -> bool:
    """Whether this begins like a DICOM file, with its preamble or (as older archives write them) without.

    Without one the file must begin with group 2 or 8 and name a DICOM class or syntax, which chance does not.
    """
    if content[128:132] == b"DICM":
        return True
    begins = content[:2] in (b"\x02\x00", b"\x08\x00", b"\x00\x08")
    return begins and b"1.2.840.10008." in content[:1024]


def _decode_with_pillow(content: bytes, max_pixels: int) -> Pixels:
    assert not ImageFile.LOAD_TRUNCATED_IMAGES, "half an image would pass for a whole one"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image = Image.open(io.BytesIO(content), formats=FORMATS)
            if image.width * image.height > max_pixels:
                raise BadImage("too large")
            if getattr(image, "n_frames", 1) > 1 and image.format != "MPO":
                raise BadImage("several frames")
            deep = _is_deep_colour(image)
            image.load()  # `verify` and `open` pass a truncated file
            pixels = _deep_colour(content) if deep else _to_uint8(image, content)
            if deep:
                pixels = pixels_to_srgb(pixels, image.info.get("icc_profile", b""))
            orientation = _orientation(image)
    except BadImage:
        raise
    except UnidentifiedImageError:
        raise BadImage("not an image") from None
    except Image.DecompressionBombError:
        raise BadImage("too large") from None
    except Exception as error:  # decoders raise whatever they like on damaged files
        raise BadImage("truncated" if "truncated" in str(error).lower() else "undecodable") from None
    return jpeg.upright(pixels, orientation)


def _to_uint8(image: Image.Image, content: bytes) -> Pixels:
    """Pixels of any mode as `(H, W, 1)` or `(H, W, 3)` uint8."""
    if image.mode.startswith("I"):
        deep = np.asarray(image)
        values = _scale_to_8_bit(deep, _declared_bits(image, content, deep))[:, :, None]
        # Pillow turns MINISWHITE round for 1 to 8 bits, but not for 16.
        return 255 - values if image.format == "TIFF" and image.getexif().get(TIFF_PHOTOMETRIC) == 0 else values
    if image.mode == "F":
        raise BadImage("float pixels")
    grey = image.mode in ("1", "L", "LA", "La")
    if "transparency" in image.info or image.mode in ("RGBA", "LA", "PA", "RGBa", "La"):
        rgba = image.convert("RGBA")
        flat = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
        return np.asarray(flat.convert("L"))[:, :, None] if grey else _in_srgb(flat.convert("RGB"), image)
    if grey:
        return np.asarray(image.convert("L"))[:, :, None]
    if image.mode != "CMYK":
        return _in_srgb(image.convert("RGB"), image)
    # Pillow takes every CMYK JPEG for one of Adobe's, which hold the inverse; others do not.
    inverse = image.format == "JPEG" and "adobe" not in image.info
    return _in_srgb(ImageChops.invert(image) if inverse else image, image)


def _in_srgb(colours: Image.Image, image: Image.Image) -> Pixels:
    return np.asarray(to_srgb(colours, image.info.get("icc_profile")).convert("RGB"))


def _is_deep_colour(image: Image.Image) -> bool:
    """Whether Pillow would drop the lower 8 of 16 bits of each colour, as its raw modes (`RGB;16B`) tell."""
    if image.mode not in ("RGB", "RGBA", "LA"):
        return False
    tiles = image.tile if isinstance(image, ImageFile.ImageFile) else []
    return any(";16" in str(tile.args) for tile in tiles)


def _deep_colour(content: bytes) -> Pixels:
    """16-bit colours or grey with transparency, by OpenCV, which keeps them."""
    values = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
    if values is None or values.dtype != np.uint16 or values.ndim != 3:
        raise BadImage("undecodable")
    if values.shape[2] == 4:
        alpha = values[:, :, 3:].astype(np.float32) / 65535
        values = np.rint(values[:, :, :3] * alpha + 65535 * (1 - alpha)).astype(np.uint16)
    return np.ascontiguousarray(_scale_to_8_bit(values)[:, :, ::-1])


def _scale_to_8_bit(values: np.ndarray, bits: int | None = None) -> Pixels:
    """Deep values on 0..255 by the bits that they use, so that they fill the range and none is clipped.

    Radiographs often hold 10, 12 or 14 bits in a container of 16; as 16 bits they would come out nearly black. So
    where the file does not declare its bits, it is the next of 10, 12, 14 and 16 that holds the largest value.
    """
    if values.min() < 0 or values.max() > 65535:
        raise BadImage("more than 16 bits")
    full = 2 ** (bits or next(bits for bits in DEEP_BITS if values.max() < 2**bits)) - 1
    return ((values.astype(np.uint32) * 255 + full // 2) // full).astype(np.uint8)


def _declared_bits(image: Image.Image, content: bytes, values: np.ndarray) -> int | None:
    """The bits that grey values use as the file declares them: BitsPerSample of TIFF, sBIT of PNG.

    None where it declares nothing, or fewer bits than the values have.
    """
    if image.format == "TIFF":
        bits = image.getexif().get(TIFF_BITS_PER_SAMPLE, 16)
        bits = bits[0] if isinstance(bits, tuple) else bits
    else:
        bits = _png_significant_bits(content) if image.format == "PNG" else 16
    if not 8 < bits < 16:
        return None
    if image.format == "PNG":
        # By the standard (W3C PNG, 11.3.2.4) they are scaled to 16 bits, what is free filled with zeros or the upper
        # bits again; many writers declare them and leave the values as they are.
        top = values.astype(np.uint32) >> (16 - bits)
        shifted = top << (16 - bits)
        if np.array_equal(values, shifted) or np.array_equal(values, shifted | top >> (2 * bits - 16)):
            return 16
    return bits if values.max() < 2**bits else None


def _png_significant_bits(content: bytes) -> int:
    """The chunk sBIT, which stands between the header and the pixels; 16 where there is none."""
    place = 8
    while place + 8 <= len(content):
        length, kind = struct.unpack(">I4s", content[place : place + 8])
        if kind == b"IDAT":
            break
        if kind == b"sBIT" and length and place + 8 < len(content):
            return content[place + 8]
        place += 12 + length
    return 16


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(jpeg.ORIENTATION_TAG, 1))
    except Exception:  # a damaged EXIF block says nothing about the pixels
        return 1


def shrink(pixels: np.ndarray, short_side_px: int) -> np.ndarray:
    """Scale down, averaging over areas, so that the short side is `short_side_px`; never enlarges."""
    height, width, channels = pixels.shape
    scale = short_side_px / min(height, width)
    if scale >= 1:
        return pixels
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return cv2.resize(pixels, size, interpolation=cv2.INTER_AREA).reshape(size[1], size[0], channels)


def canonical(
    raw: bytes | Pixels, short_side_px: int, jpeg_quality: int, max_pixels: int, burned_in: str = "refuse"
) -> StoredImage:
    """From a raw file, or raw pixels, to what is stored.

    Raises BadImage, with the reason BURNED_IN for a DICOM file that says so of itself, unless burned_in is `keep`.
    """
    pixels = decode(raw, max_pixels, burned_in) if isinstance(raw, bytes) else raw
    small = shrink(pixels, short_side_px)
    content = encode_jpeg(small, jpeg_quality)
    return StoredImage(content, small.shape[1], small.shape[0], pixel_hash(pixels), difference_hash(small))


def decode_stored(content: bytes) -> Pixels:
    """Decode an image of a shard: uint8 `(H, W, 3)` RGB, upright; grey has three equal channels.

    Our own JPEGs go straight through; an adopted one with EXIF or a colour profile, or any other format, is
    decoded as the import would. Raises BadImage, also for one that says of itself that it has over MAX_PIXELS.
    """
    if jpeg.is_bare(content):
        pixels = jpeg.decode_plain(content, 3, MAX_PIXELS)
        if pixels is not None:
            return pixels
    pixels = decode(content)
    return np.repeat(pixels, 3, axis=2) if pixels.shape[2] == 1 else pixels
