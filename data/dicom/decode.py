"""DICOM files → uint8 pixels as a workstation shows them, and their headers; no tag's value leaves this file.

pydicom writes tag values, names of patients among them, into its warnings, log and exceptions: all three are
kept from getting any further. How the pixels are shown is in `display.py`.
"""

import importlib.util
import io
import logging
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, BinaryIO

import cv2
import numpy as np
from numpy.typing import NDArray

from data import jpeg
from data.dicom.display import COLOURS, GREYS, OF_FRAMES, PALETTE, shown, take_from_frame
from data.images import BURNED_IN, BadImage

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

Pixels = NDArray[np.uint8]
NEARLY_SQUARE, MOST_OBLONG = 0.01, 20  # beyond that a tag is wrong rather than a pixel so long
DEFLATED, RLE = "1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.5"
SAY_WHO = ("BurnedInAnnotation", "RecognizableVisualFeatures")
# Only these are read, so that no other tag is ever in memory as text; what else is in OF_FRAMES goes at once.
PIXEL_TAGS = (
    *("PixelData", "FloatPixelData", "DoubleFloatPixelData", "Rows", "Columns", "NumberOfFrames", "SamplesPerPixel"),
    *("PlanarConfiguration", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "ICCProfile"),
    *("PhotometricInterpretation", *SAY_WHO, "PixelPaddingValue", "PixelPaddingRangeLimit"),
    *("ModalityLUTSequence", "RescaleSlope", "RescaleIntercept", "VOILUTSequence", "VOILUTFunction"),
    *("WindowCenter", "WindowWidth", "PixelSpacing", "ImagerPixelSpacing", "PixelAspectRatio"),
    *(
        f"{colour}PaletteColorLookupTable{kind}"
        for colour in ("Red", "Green", "Blue")
        for kind in ("Data", "Descriptor")
    ),
    *(f"Segmented{colour}PaletteColorLookupTableData" for colour in ("Red", "Green", "Blue")),
    *OF_FRAMES,
)
DECODER = "python-gdcm>=3.0.24"  # the extra dicom, as pip finds it: this project itself is on no index
# What that optional decoder reads: the names for messages, by the end of the transfer syntax's UID.
BY_EXTRA = {
    "4.50": "JPEG",
    "4.57": "JPEG lossless",
    "4.70": "JPEG lossless",
    "4.80": "JPEG-LS",
    "4.81": "JPEG-LS",
    "4.90": "JPEG 2000",
    "4.91": "JPEG 2000",
}
WITHOUT_DECODER = {"4.51": "12-bit JPEG", "4.201": "HTJ2K", "4.202": "HTJ2K", "4.203": "HTJ2K"}


def read_header(file: BinaryIO, tags: tuple[str, ...], max_pixels: int) -> "Dataset":
    """The named tags of a DICOM file, without its pixels. Raises BadImage where it cannot be read."""
    with _silent():
        import pydicom

        try:
            if deflated := _deflated(file):
                _check_inflated_size(deflated, max_pixels)
            file.seek(0)
            header = pydicom.dcmread(file, force=True, stop_before_pixels=True, specific_tags=list(tags))
            header.file_meta.get("MediaStorageSOPClassUID")
            for element in header:  # values are converted here, where what they raise goes nowhere
                assert element is not None
            return header
        except (BadImage, OSError):
            raise
        except Exception:
            raise BadImage("undecodable") from None


def decode_dicom(content: bytes, max_pixels: int, burned_in: str = "keep") -> Pixels:
    """Decode a DICOM file of one frame: uint8 `(H, W, 3)` RGB or `(H, W, 1)` grey, black being dark.

    Raises BadImage: see `data.images.decode`.
    """
    with _silent():
        try:
            dataset = _read(content, max_pixels)
            _check(dataset, max_pixels, burned_in)
            take_from_frame(dataset)
            values = _decoded(dataset)
            return _with_square_pixels(dataset, shown(dataset, values))
        except BadImage:
            raise
        except MemoryError:
            raise BadImage("too large") from None
        except Exception:  # pydicom and its codecs raise whatever they like, with tag values in the text
            raise BadImage("undecodable") from None


@contextmanager
def _silent() -> Iterator[None]:
    """No warning and no log line of pydicom or its codecs: they may quote what a tag holds."""
    _silence_logs()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@cache
def _silence_logs() -> None:
    logging.getLogger("pydicom").setLevel(logging.CRITICAL + 1)
    if importlib.util.find_spec("gdcm") is not None:
        import gdcm

        for silence in (gdcm.Trace.DebugOff, gdcm.Trace.WarningOff, gdcm.Trace.ErrorOff):
            silence()


def _read(content: bytes, max_pixels: int) -> "Dataset":
    import pydicom
    from pydicom.uid import UID

    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        try:
            _check_inflated_size(_deflated(io.BytesIO(content)), max_pixels)
            dataset = pydicom.dcmread(io.BytesIO(content), force=True, specific_tags=list(PIXEL_TAGS))
        except EOFError:
            raise BadImage("truncated") from None
    if any("end of file" in str(warning.message).lower() for warning in told):
        raise BadImage("truncated")
    if "TransferSyntaxUID" not in dataset.file_meta:  # a file without preamble: pydicom saw how it is written
        implicit, little = dataset.original_encoding
        dataset.file_meta.TransferSyntaxUID = UID(
            "1.2.840.10008.1.2.2" if not little else "1.2.840.10008.1.2" if implicit else "1.2.840.10008.1.2.1"
        )
    return dataset


def _deflated(file: BinaryIO) -> bytes:
    """What is to be inflated of a deflated file (PS3.5, A.5), nothing of others.

    Which they are is read as pydicom itself reads it in a moment: a search for the UID can be led astray.
    """
    from pydicom.filereader import _read_file_meta_info, read_preamble

    read_preamble(file, force=True)
    return file.read() if _read_file_meta_info(file).get("TransferSyntaxUID") == DEFLATED else b""


def _check_inflated_size(deflated: bytes, max_pixels: int) -> None:
    """Refuse what would unpack to more than its pixels could need."""
    unpacker = zlib.decompressobj(-zlib.MAX_WBITS)
    size = 0
    while deflated and size <= 8 * max_pixels + 2**26:
        size += len(unpacker.decompress(deflated, 2**24))
        deflated = unpacker.unconsumed_tail
    if deflated:
        raise BadImage("too large")


def _check(dataset: "Dataset", max_pixels: int, burned_in: str) -> None:
    """Raise BadImage for what the header alone tells."""
    from pydicom.pixels import get_decoder

    if burned_in != "keep" and says_burned_in(dataset):
        raise BadImage(BURNED_IN)
    if "PixelData" not in dataset:
        floats = "FloatPixelData" in dataset or "DoubleFloatPixelData" in dataset
        raise BadImage("float pixels" if floats else "no pixel data")
    if int(dataset.get("NumberOfFrames") or 1) > 1:
        raise BadImage("several frames")
    rows, columns = int(dataset.Rows), int(dataset.Columns)
    if rows * columns > max_pixels:
        raise BadImage("too large")
    if dataset.PhotometricInterpretation not in (*COLOURS, *GREYS, PALETTE):
        raise BadImage("colour space not read")
    uid = dataset.file_meta.TransferSyntaxUID
    try:
        get_decoder(uid)
    except NotImplementedError:
        raise BadImage("transfer syntax not read") from None
    if not uid.is_compressed:
        samples = int(dataset.get("SamplesPerPixel", 1))
        subsampled = dataset.PhotometricInterpretation == "YBR_FULL_422"
        bits = rows * columns * int(dataset.BitsAllocated) * (2 if subsampled else samples)
        if len(dataset.PixelData) * 8 < bits:
            raise BadImage("truncated")
    elif uid != RLE:  # which unpacks to 64 times its own size at the most
        _check_stream(dataset, rows, columns)


def _with_square_pixels(dataset: "Dataset", pixels: Pixels) -> Pixels:
    """Scale down the finer axis where pixels are not square by more than 1 %, so that shapes are those of the body.

    PixelSpacing and ImagerPixelSpacing are mm between rows and between columns (PS3.3, 10.7.1.1), PixelAspectRatio is
    height to width of a pixel (C.7.6.3.1.7).
    """
    height_to_width = 1.0
    for tag in ("PixelSpacing", "ImagerPixelSpacing", "PixelAspectRatio"):
        try:
            height, width = (float(number) for number in dataset.get(tag) or ())
        except (TypeError, ValueError):  # empty, or not two numbers
            continue
        if 0 < height < np.inf and 0 < width < np.inf:
            height_to_width = height / width
            break
    if abs(height_to_width - 1) <= NEARLY_SQUARE or not 1 / MOST_OBLONG <= height_to_width <= MOST_OBLONG:
        return pixels
    rows, columns, channels = pixels.shape
    if height_to_width > 1:
        columns = max(1, round(columns / height_to_width))
    else:
        rows = max(1, round(rows * height_to_width))
    square = cv2.resize(pixels, (columns, rows), interpolation=cv2.INTER_AREA)
    return square.astype(np.uint8, copy=False).reshape(rows, columns, channels)


def says_burned_in(dataset: "Dataset") -> bool:
    """Whether a file says that its pixels hold text that identifies the patient, or a face (PS3.3, C.7.6.1)."""
    return any(str(dataset.get(tag) or "").strip().upper() == "YES" for tag in SAY_WHO)


def _check_stream(dataset: "Dataset", rows: int, columns: int) -> None:
    """Raise BadImage for a compressed stream whose own shape, by which codecs allocate, is not that of the tags.

    Boxes of a JP2 file around the stream, which do not belong there (PS3.5, A.4.4), are taken off, so that a codec
    reads the header that was read here.
    """
    from pydicom.encaps import encapsulate, get_frame

    stream = get_frame(dataset.PixelData, 0, number_of_frames=1)
    bare = jpeg.codestream(stream)
    if jpeg.stream_shape(bare) != (rows, columns, int(dataset.get("SamplesPerPixel", 1))):
        raise BadImage("undecodable")
    if bare is not stream:
        dataset.PixelData = encapsulate([bare])


def _decoded(dataset: "Dataset") -> np.ndarray:
    """Stored values, `(H, W)` or, in RGB, `(H, W, 3)`."""
    from pydicom.pixels import get_decoder, pixel_array

    decoder = get_decoder(dataset.file_meta.TransferSyntaxUID)
    try:
        return pixel_array(dataset)
    except Exception:
        # Pillow reads some of what gdcm does; what it cannot may be damaged, or beyond it.
        kind = decoder.UID.removeprefix("1.2.840.10008.1.2.")
        if kind in BY_EXTRA and "gdcm" not in decoder.available_plugins:
            raise BadImage(f"needs pip install '{DECODER}' ({BY_EXTRA[kind]})") from None
        if kind in WITHOUT_DECODER:
            raise BadImage(f"no decoder for {WITHOUT_DECODER[kind]}") from None
        raise
