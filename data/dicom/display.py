"""Stored values of a DICOM file → grey levels and colours as a workstation shows them.

The grey scale pipeline is that of DICOM PS3.3: modality LUT or rescale (C.11.1), VOI LUT or window (C.11.2),
inversion of MONOCHROME1 (C.7.6.3.1.2). It is our own and not pydicom's because that wraps values that lie beyond
an 8-bit table, and turns an image round where the rescale slope is negative.
"""

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from data.colour import pixels_to_srgb
from data.images import BadImage

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

Pixels = NDArray[np.uint8]
COLOURS = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT")
GREYS = ("MONOCHROME1", "MONOCHROME2")
PALETTE = "PALETTE COLOR"
# By sequence, what is said of the frame in enhanced files (PS3.3, C.7.6.16.2): the window, the rescale, the spacing;
# and of these tags, those of which one must stand there for it to be said.
OF_FRAME = {
    "FrameVOILUTSequence": (
        ("VOILUTSequence", "WindowCenter", "WindowWidth", "VOILUTFunction"),
        ("VOILUTSequence", "WindowCenter"),
    ),
    "PixelValueTransformationSequence": (("RescaleSlope", "RescaleIntercept"), ("RescaleIntercept",)),
    "PixelMeasuresSequence": (("PixelSpacing",), ("PixelSpacing",)),
}
OF_FRAMES = ("PerFrameFunctionalGroupsSequence", "SharedFunctionalGroupsSequence")


def take_from_frame(dataset: "Dataset") -> None:
    """Put what an enhanced file says of its one frame where other files say it, and drop the rest of the groups.

    Where the top says it already, that is left as it is; a window's function or a slope alone says nothing.
    """
    groups = [item for name in OF_FRAMES for item in list(dataset.get(name) or ())[:1]]
    for sequence, (tags, needed) in OF_FRAME.items():
        found = [dataset, *(item for group in groups for item in list(group.get(sequence) or ())[:1])]
        for item in found:
            told = {tag: item[tag] for tag in tags if tag in item and not item[tag].is_empty}
            if any(tag in told for tag in needed):
                for tag in tags:
                    dataset.pop(tag, None)
                for element in told.values():
                    dataset[element.tag] = element
                break
    for name in OF_FRAMES:
        if name in dataset:
            del dataset[name]


def shown(dataset: "Dataset", values: np.ndarray) -> Pixels:
    """Stored values, `(H, W)` or RGB `(H, W, 3)`, as uint8 `(H, W, 1)` or `(H, W, 3)`.

    Deep grey values go through the VOI LUT or the first window; without either, 8 bits are taken as they are and
    deeper ones from the smallest to the largest value that occurs, padding left out. Raises BadImage.
    """
    photometric, bits = dataset.PhotometricInterpretation, int(dataset.BitsStored)
    if photometric in COLOURS:
        if values.ndim != 3 or values.shape[2] != 3:
            raise BadImage("undecodable")
        return pixels_to_srgb(_scaled(values, 2**bits - 1), dataset.get("ICCProfile") or b"")
    if values.ndim != 2:
        raise BadImage("undecodable")
    if photometric == PALETTE:
        from pydicom.pixels import apply_color_lut

        colours = apply_color_lut(values, dataset)[:, :, :3]
        # Entries of 16 bits that all fit in 8 are 8-bit ones written so (PS3.3, C.7.6.3.1.5).
        return _scaled(colours, 255 if colours.max() <= 255 else 65535)
    values = _without_overlays(dataset, values)
    if values.dtype.itemsize > 2:
        return _grey(dataset, values, values)[:, :, None]
    # The pipeline is walked once for each value there can be, and the pixels looked up.
    pattern = values.view(f"u{values.dtype.itemsize}")
    domain = np.arange(2 ** (8 * values.dtype.itemsize)).astype(pattern.dtype).view(values.dtype)
    present = domain[np.bincount(pattern.ravel(), minlength=len(domain)) > 0]
    return _grey(dataset, domain, present)[pattern][:, :, None]


def _scaled(values: np.ndarray, full: int) -> Pixels:
    if full == 255 and values.dtype == np.uint8:
        return np.ascontiguousarray(values)
    wide = values.astype(np.uint64 if values.dtype.itemsize > 2 else np.uint32)
    return ((wide * 255 + full // 2) // full).clip(0, 255).astype(np.uint8)


def _without_overlays(dataset: "Dataset", values: np.ndarray) -> np.ndarray:
    """The bits that hold the pixel: older files keep graphics in those that are left over."""
    allocated, bits = int(dataset.BitsAllocated), int(dataset.BitsStored)
    high = int(dataset.get("HighBit", bits - 1))
    compressed = dataset.file_meta.TransferSyntaxUID.is_compressed
    if compressed or bits == allocated or allocated not in (8, 16, 32) or not bits - 1 <= high < allocated:
        return values
    return (values << (allocated - 1 - high)) >> (allocated - bits)


def _grey(dataset: "Dataset", values: np.ndarray, present: np.ndarray) -> Pixels:
    """Grey levels of stored values; `present` are those that occur in the image."""
    measured = _modality(dataset, values)
    levels = _voi(dataset, measured)
    if levels is None:
        bits = int(dataset.BitsStored)
        if bits <= 8 and int(dataset.PixelRepresentation) == 0 and np.array_equal(measured, values):
            levels = measured / (2**bits - 1)
        else:
            ends = _modality(dataset, _without_padding(dataset, present))
            low, high = float(ends.min()), float(ends.max())
            levels = (measured - low) / max(high - low, 1e-12)
    levels = np.clip(levels, 0, 1)
    if dataset.PhotometricInterpretation == "MONOCHROME1":
        levels = 1 - levels
    return np.rint(levels * 255).astype(np.uint8)


def _modality(dataset: "Dataset", values: np.ndarray) -> NDArray[np.float64]:
    """Stored values in the modality's unit (Hounsfield units, optical density)."""
    if dataset.get("ModalityLUTSequence"):
        return _looked_up(dataset.ModalityLUTSequence[0], values.astype(np.float64))[0]
    slope, intercept = dataset.get("RescaleSlope"), dataset.get("RescaleIntercept")
    return values * float(1 if slope is None else slope) + float(intercept or 0)


def _voi(dataset: "Dataset", values: NDArray[np.float64]) -> NDArray[np.float64] | None:
    """Values on 0..1 by the VOI LUT, or else by the first window; None where there is neither."""
    lut = next(iter(dataset.get("VOILUTSequence") or ()), None)
    if lut is not None and lut.get("LUTDescriptor") is not None and lut.get("LUTData") is not None:
        entries, full = _looked_up(lut, values)
        return entries / full
    centre, width = _first(dataset.get("WindowCenter")), _first(dataset.get("WindowWidth"))
    function = str(dataset.get("VOILUTFunction") or "LINEAR").strip().upper()
    if centre is None or width is None or width < (1 if function == "LINEAR" else 1e-9):
        return None
    if function == "SIGMOID":  # PS3.3, C.11.2.1.3.1
        return 1 / (1 + np.exp(np.clip(-4 * (values - centre) / width, -700, 700)))
    if function == "LINEAR_EXACT":  # C.11.2.1.3.2
        return (values - centre) / width + 0.5
    return (values - (centre - 0.5)) / max(width - 1, 1e-9) + 0.5  # C.11.2.1.2.1


def _first(value: Any) -> float | None:
    """The first of one or several numbers; None where there is none, or none that is finite."""
    if value is None or value == "":
        return None
    number = float(value if isinstance(value, (int, float, str)) else value[0])
    return number if np.isfinite(number) else None


def _looked_up(item: "Dataset", values: NDArray[np.float64]) -> tuple[NDArray[np.float64], int]:
    """Entries of a lookup table for values (PS3.3, C.11.1.1), and the largest entry that its bits allow."""
    count, first, bits = (int(number) for number in item.LUTDescriptor)
    data = item.LUTData
    if isinstance(data, bytes):
        data = np.frombuffer(data, "<u2" if len(data) >= 2 * (count or 65536) else np.uint8)
    entries = np.asarray(data, dtype=np.float64)[: count or 65536]
    if first > 32767 and values.min() < 0:  # a negative number that was read as unsigned
        first -= 65536
    index = np.clip(np.rint(values) - first, 0, len(entries) - 1).astype(np.int64)
    return entries[index], max(2**bits - 1, int(entries.max()))


def _without_padding(dataset: "Dataset", values: np.ndarray) -> np.ndarray:
    """Values but those that fill up what the detector did not see (PS3.3, C.7.5.1.1.2)."""
    padding = dataset.get("PixelPaddingValue")
    if padding is None:
        return values
    ends = sorted((int(padding), int(dataset.get("PixelPaddingRangeLimit", padding))))
    kept = values[(values < ends[0]) | (values > ends[1])]
    return kept if kept.size else values
