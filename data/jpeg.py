"""JPEG files and JPEG 2000 streams: what their headers say, without decoding them, and the fast way in and out."""

import re
import warnings
from dataclasses import dataclass

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image

Pixels = NDArray[np.uint8]
ORIENTATION_TAG = 0x0112
EXIF, ICC = b"Exif\0\0", b"ICC_PROFILE\0"
FRAME_MARKERS = {*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC}  # SOF0-15 and JPEG-LS
PLAIN_FRAMES = {0xC0, 0xC1, 0xC2}  # baseline, extended, progressive (ITU-T T.81, table B.1)
# T.81, table B.1: reserved, RST0-7, SOI and EOI. No decoder expects a length behind them, so none is believed.
WITHOUT_LENGTH = {*range(0xC0), *range(0xD0, 0xDA)}
START_OF_2000 = b"\xff\x4f\xff\x51"  # SOC and SIZ (ITU-T T.800, A.5.1)
START_OF_JP2 = b"\x00\x00\x00\x0cjP  \r\n\x87\n"  # the signature box (T.800, I.5.1)
XMP_ORIENTATION = re.compile(rb"tiff:Orientation(?:=\"|>)([1-8])")


class BadImage(ValueError):
    """An image that cannot be used. `reason` is one of a few words that the manifest counts."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True)
class JpegHeader:
    """What stands before the pixels. `plain`: 8 bits, one or three channels, nothing that needs Pillow."""

    width: int
    height: int
    channels: int
    plain: bool
    orientation: int
    icc: bytes


def is_bare(content: bytes) -> bool:
    """Whether the tables follow upon the JFIF segment, so that no EXIF, XMP or profile stands between (ours do)."""
    return content[:4] == b"\xff\xd8\xff\xe0" and content[20:22] == b"\xff\xdb"


def read_header(content: bytes) -> JpegHeader | None:
    """Walk the segments up to the first scan; None where this is no whole JPEG header, or one of two sizes.

    What decoders pass over or end at is not walked over either: a second header, of another size, could hide there.
    """
    if content[:2] != b"\xff\xd8":
        return None
    place, frame, exif, xmp, profile = 2, None, b"", b"", {}
    while place + 4 <= len(content) and content[place] == 0xFF:
        marker = content[place + 1]
        if marker == 0xFF:  # filling
            place += 1
            continue
        if marker in WITHOUT_LENGTH or (marker in FRAME_MARKERS and frame is not None):
            return None
        body, place = place + 4, place + 2 + int.from_bytes(content[place + 2 : place + 4], "big")
        if marker in FRAME_MARKERS:
            frame = marker, content[body : body + 6]
        elif marker == 0xE1 and content.startswith(EXIF, body):
            exif += content[body + len(EXIF) : place]
        elif marker == 0xE1:
            xmp = xmp or content[body:place]
        elif marker == 0xE2 and content.startswith(ICC, body):
            profile[content[body + len(ICC)]] = content[body + len(ICC) + 2 : place]
        elif marker == 0xDA:
            return _header(frame, exif, xmp, profile)
    return None


def _header(frame: tuple[int, bytes] | None, exif: bytes, xmp: bytes, profile: dict[int, bytes]) -> JpegHeader | None:
    if frame is None or len(frame[1]) < 6:
        return None
    marker, body = frame
    bits, channels = body[0], body[5]
    height, width = int.from_bytes(body[1:3], "big"), int.from_bytes(body[3:5], "big")
    return JpegHeader(
        width=width,
        height=height,
        channels=channels,
        plain=marker in PLAIN_FRAMES and bits == 8 and channels in (1, 3) and width * height > 0,
        orientation=orientation(exif, xmp),
        icc=b"".join(profile[number] for number in sorted(profile)),
    )


def orientation(exif: bytes, xmp: bytes = b"") -> int:
    """The orientation, 1 to 8, that an EXIF block states, or else an XMP packet; 1 where none does."""
    found = None
    if exif:
        block = Image.Exif()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                block.load(EXIF + exif)
                found = block.get(ORIENTATION_TAG)
        except Exception:  # a damaged EXIF block says nothing about the pixels
            found = None
    elif told := XMP_ORIENTATION.search(xmp):
        found = int(told[1])
    return found if isinstance(found, int) and 1 <= found <= 8 else 1


def upright(pixels: Pixels, orientation: int) -> Pixels:
    """Undo an EXIF orientation (CIPA DC-008, tag 274: 1 to 8)."""
    if orientation in (2, 4, 5, 7):
        pixels = pixels[:, ::-1]
    turns = {3: 2, 4: 2, 5: 1, 6: -1, 7: -1, 8: 1}.get(orientation, 0)
    return np.ascontiguousarray(np.rot90(pixels, turns))


def decode_plain(content: bytes, channels: int, max_pixels: int) -> Pixels | None:
    """The pixels of a plain JPEG as they lie, `(H, W, channels)`; None where not a byte may be missing but one is.

    Raises BadImage, too large, before anything is decoded: the size is that which the decoder itself finds.
    """
    try:
        height, width, _, _ = simplejpeg.decode_jpeg_header(content)
    except ValueError:
        return None
    if int(height) * int(width) > max_pixels:
        raise BadImage("too large")
    try:
        return simplejpeg.decode_jpeg(content, colorspace="RGB" if channels == 3 else "GRAY")
    except ValueError:
        return None


def encode_jpeg(pixels: Pixels, quality: int = 92) -> bytes:
    """A baseline JPEG of the pixels and nothing else; colour is not subsampled (small vessels are red)."""
    pixels = np.ascontiguousarray(pixels)
    if pixels.shape[2] == 1:
        return simplejpeg.encode_jpeg(pixels, quality=quality, colorspace="GRAY", colorsubsampling="Gray")
    return simplejpeg.encode_jpeg(pixels, quality=quality, colorspace="RGB", colorsubsampling="444")


def codestream(stream: bytes) -> bytes:
    """A JPEG 2000 stream without the boxes of a JP2 file around it; anything else as it is.

    Raises BadImage where the boxes (ITU-T T.800, I.4) do not lead to a codestream.
    """
    if not stream.startswith(START_OF_JP2):
        return stream
    place = 0
    while place + 8 <= len(stream):
        length, kind = int.from_bytes(stream[place : place + 4], "big"), stream[place + 4 : place + 8]
        body = place + 8
        if length == 1:  # the length stands behind the kind
            length, body = int.from_bytes(stream[body : body + 8], "big"), body + 8
        end = place + length if length else len(stream)
        if kind == b"jp2c":
            return stream[body:end]
        if end < body:
            break
        place = end
    raise BadImage("undecodable")


def stream_shape(stream: bytes) -> tuple[int, int, int] | None:
    """Rows, columns and channels that a JPEG, JPEG-LS or JPEG 2000 stream gives itself; None where it gives none.

    A codec allocates by these, whatever is told elsewhere. The stream begins with its first marker, or has no shape.
    """
    if not stream.startswith(START_OF_2000):
        header = read_header(stream)
        return None if header is None else (header.height, header.width, header.channels)
    if len(stream) < 42:
        return None
    right, bottom, left, top = (int.from_bytes(stream[8 + 4 * i : 12 + 4 * i], "big") for i in range(4))
    return bottom - top, right - left, int.from_bytes(stream[40:42], "big")
