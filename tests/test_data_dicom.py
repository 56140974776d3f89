import io
import logging
import pickle
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pydicom.config import disable_value_validation
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.pixels import apply_windowing
from pydicom.uid import UID, ExplicitVRLittleEndian, ImplicitVRLittleEndian, RLELossless, generate_uid

from clusters.config import InputError, load_config
from clusters.storage import Folder
from data.__main__ import main
from data.cases import RawDataset
from data.dataset import Dataset as ManyviewDataset
from data.dataset import open_dataset
from data.dicom.decode import read_header
from data.dicom.headers import header_of
from data.images import BadImage, canonical, decode, encode_jpeg
from data.shards import write_dataset
from data.sources import read_raw, source_module
from tests.importers import everything

CANARY = "ZZPHICANARY"
REPOSITORY = Path(__file__).resolve().parents[1]
DEFLATED = UID("1.2.840.10008.1.2.1.99")
J2K, JPEG_LOSSLESS, JPEG_LS = (UID(f"1.2.840.10008.1.2.4.{number}") for number in (90, 70, 80))


def dataset_of(pixels: np.ndarray, **tags: Any) -> Dataset:
    """A data set of one frame: `(H, W)` or `(H, W, 3)` of uint8, uint16 or int16."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = UID("1.2.840.10008.5.1.4.1.1.7")
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    dataset.Rows, dataset.Columns = pixels.shape[:2]
    dataset.SamplesPerPixel = 1 if pixels.ndim == 2 else 3
    dataset.PhotometricInterpretation = "MONOCHROME2" if pixels.ndim == 2 else "RGB"
    if pixels.ndim == 3:
        dataset.PlanarConfiguration = 0
    dataset.BitsAllocated = dataset.BitsStored = pixels.dtype.itemsize * 8
    dataset.HighBit = dataset.BitsStored - 1
    dataset.PixelRepresentation = int(pixels.dtype.kind == "i")
    dataset.PixelData = pixels.tobytes() + bytes(pixels.nbytes % 2)
    for name, value in tags.items():
        setattr(dataset, name, value)
    if "BitsStored" in tags:
        dataset.HighBit = dataset.BitsStored - 1
    return dataset


def written(dataset: Dataset) -> bytes:
    buffer = io.BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def dicom(pixels: np.ndarray, **tags: Any) -> bytes:
    return written(dataset_of(pixels, **tags))


def transcoded(content: bytes, syntax: str, folder: Path) -> bytes:
    """The same image in another transfer syntax, by gdcm's own encoders."""
    gdcm = pytest.importorskip("gdcm")
    (folder / "in.dcm").write_bytes(content)
    reader = gdcm.ImageReader()
    reader.SetFileName(str(folder / "in.dcm"))
    assert reader.Read()
    change = gdcm.ImageChangeTransferSyntax()
    change.SetTransferSyntax(gdcm.TransferSyntax(getattr(gdcm.TransferSyntax, syntax)))
    change.SetInput(reader.GetImage())
    assert change.Change()
    writer = gdcm.ImageWriter()
    writer.SetFileName(str(folder / "out.dcm"))
    writer.SetFile(reader.GetFile())
    writer.SetImage(change.GetOutput())
    assert writer.Write()
    return (folder / "out.dcm").read_bytes()


def phantom() -> np.ndarray:
    """All 256 grey levels, `(32, 48)`."""
    return (np.arange(32 * 48).reshape(32, 48) * 7 % 256).astype(np.uint8)


def refused(content: bytes, **options: Any) -> str:
    with pytest.raises(BadImage) as caught:
        decode(content, **options)
    return caught.value.reason


# --- the grey scale pipeline ---------------------------------------------------------------------------


def lut_item(data: list[int], first: int, bits: int) -> Dataset:
    item = Dataset()
    item.add_new(0x00283002, "US" if first >= 0 else "SS", [len(data), first, bits])
    item.add_new(0x00283006, "US", data)
    return item


def deep(low: int = 0) -> np.ndarray:
    return (phantom().astype(np.uint16) * 16 + low).astype(np.uint16)


PHANTOMS: dict[str, Callable[[], bytes]] = {
    "8 bits": lambda: dicom(phantom()),
    "MONOCHROME1": lambda: dicom(255 - phantom(), PhotometricInterpretation="MONOCHROME1"),
    "12 bits, the largest range": lambda: dicom(deep(10), BitsStored=12),
    "16 bits": lambda: dicom(phantom().astype(np.uint16) * 257),
    "signed": lambda: dicom(phantom().astype(np.int16) * 10 - 1024),
    "signed 12 bits": lambda: dicom((phantom().astype(np.int16) * 8 - 1000) & 0x0FFF, BitsStored=12),
    "window": lambda: dicom(
        phantom().astype(np.uint16) + 1000, WindowCenter=1128, WindowWidth=256, VOILUTFunction="LINEAR"
    ),
    "the first of two windows": lambda: dicom(
        phantom().astype(np.uint16) + 1000, WindowCenter=[1128, 5], WindowWidth=[256, 3]
    ),
    "exact window": lambda: dicom(
        phantom().astype(np.uint16) + 1000, WindowCenter=1127.5, WindowWidth=255, VOILUTFunction="LINEAR_EXACT"
    ),
    "rescale and window": lambda: dicom(
        phantom().astype(np.uint16), RescaleSlope=4, RescaleIntercept=-1024, WindowCenter=-513.5, WindowWidth=1021
    ),
    "negative slope": lambda: dicom(
        (255 - phantom()).astype(np.uint16), RescaleSlope=-1, RescaleIntercept=255, WindowCenter=128, WindowWidth=256
    ),
    "VOI LUT": lambda: dicom(
        (255 - phantom()).astype(np.uint16) + 50,
        VOILUTSequence=[lut_item([257 * (255 - i) for i in range(256)], 50, 16)],
    ),
    "VOI LUT before window": lambda: dicom(
        (255 - phantom()).astype(np.uint16),
        VOILUTSequence=[lut_item([255 - i for i in range(256)], 0, 8)],
        WindowCenter=3,
        WindowWidth=7,
    ),
    "modality LUT": lambda: dicom(
        (255 - phantom()).astype(np.uint16), ModalityLUTSequence=[lut_item([255 - i for i in range(256)], 0, 8)]
    ),
    "overlay in the spare bits": lambda: dicom(deep() | 0xF000, BitsStored=12, WindowCenter=2040.5, WindowWidth=4081),
    "implicit VR": lambda: dicom_in(phantom(), ImplicitVRLittleEndian),
    "deflated": lambda: dicom_in(phantom(), DEFLATED),
    "RLE": lambda: rle(phantom()),
    "RLE, 16 bits": lambda: rle(phantom().astype(np.uint16) * 257),
    "palette": lambda: palette(),
    "no preamble, explicit": lambda: bare(phantom(), ExplicitVRLittleEndian),
    "no preamble, implicit": lambda: bare(phantom(), ImplicitVRLittleEndian),
}


def dicom_in(pixels: np.ndarray, syntax: UID) -> bytes:
    dataset = dataset_of(pixels)
    dataset.file_meta.TransferSyntaxUID = syntax
    return written(dataset)


def rle(pixels: np.ndarray) -> bytes:
    dataset = dataset_of(pixels)
    dataset.compress(RLELossless)
    return written(dataset)


def bare(pixels: np.ndarray, syntax: UID) -> bytes:
    """As archives of the nineties wrote it: no preamble, no meta information."""
    dataset = dataset_of(pixels)
    del dataset.file_meta
    buffer = io.BytesIO()
    pydicom.dcmwrite(buffer, dataset, implicit_vr=syntax == ImplicitVRLittleEndian, little_endian=True)
    return buffer.getvalue()


def palette() -> bytes:
    dataset = dataset_of(255 - phantom(), PhotometricInterpretation="PALETTE COLOR")
    for colour in ("Red", "Green", "Blue"):
        setattr(dataset, f"{colour}PaletteColorLookupTableDescriptor", [256, 0, 16])
        table = np.arange(255, -1, -1, dtype="<u2") * 257
        setattr(dataset, f"{colour}PaletteColorLookupTableData", table.tobytes())
    return written(dataset)


@pytest.mark.parametrize("name", PHANTOMS)
def test_one_phantom_in_every_dicom_has_the_same_pixels(name: str) -> None:
    pixels = decode(PHANTOMS[name]())
    assert pixels.shape == (32, 48, 3 if name == "palette" else 1)
    assert np.abs(pixels.astype(int) - phantom()[:, :, None]).max() <= 0


@pytest.mark.parametrize("syntax", ["JPEG2000Lossless", "JPEGLosslessProcess14_1", "JPEGLSLossless", "RLELossless"])
@pytest.mark.parametrize("bits", [8, 12, 16])
def test_lossless_compression_changes_nothing(tmp_path: Path, syntax: str, bits: int) -> None:
    full = {8: phantom(), 12: deep(15), 16: phantom().astype(np.uint16) * 257}[bits]
    content = dicom(full, BitsStored=bits)
    compressed = transcoded(content, syntax, tmp_path)
    assert pydicom.dcmread(io.BytesIO(compressed)).file_meta.TransferSyntaxUID.is_compressed
    assert np.array_equal(decode(compressed), decode(content))


@pytest.mark.parametrize("syntax", ["JPEG2000Lossless", "JPEGLSLossless", "RLELossless", None])
def test_colours_stay_what_they_are(tmp_path: Path, syntax: str | None) -> None:
    colours = np.stack([phantom(), phantom()[::-1], phantom()[:, ::-1]], axis=2)
    content = dicom(colours)
    assert np.array_equal(decode(transcoded(content, syntax, tmp_path) if syntax else content), colours)


def test_deep_colours_are_scaled_by_their_bits() -> None:
    colours = np.stack([phantom()] * 3, axis=2).astype(np.uint16) * 257
    assert np.array_equal(decode(dicom(colours)), colours // 257)


def test_ybr_is_turned_into_rgb() -> None:
    red = np.zeros((4, 4, 3), np.uint8) + np.array([76, 85, 255], np.uint8)
    pixels = decode(dicom(red, PhotometricInterpretation="YBR_FULL"))
    assert np.abs(pixels.astype(int) - [255, 0, 0]).max() <= 2


def test_padding_does_not_press_the_grey_levels_together() -> None:
    values = phantom().astype(np.int16) * 4
    values[:8] = -2000
    pixels = decode(dicom(values, PixelPaddingValue=-2000))
    assert np.abs(pixels[8:, :, 0].astype(int) - phantom()[8:]).max() <= 1
    assert (pixels[:8] == 0).all()


def test_a_constant_image_is_black_and_no_error() -> None:
    assert (decode(dicom(np.full((4, 6), 777, np.uint16))) == 0).all()


@settings(deadline=None)
@given(
    st.sampled_from(["LINEAR", "LINEAR_EXACT", "SIGMOID"]),
    st.floats(-500, 1500),
    st.floats(2, 3000),
    st.floats(0.1, 9),
    st.integers(-1024, 100),
)
def test_windows_are_those_of_pydicom(function: str, centre: float, width: float, slope: float, intercept: int) -> None:
    values = phantom().astype(np.uint16) * 4
    tags = {"WindowCenter": round(centre, 2), "WindowWidth": round(width, 2), "VOILUTFunction": function}
    dataset = dataset_of(values, RescaleSlope=round(slope, 3), RescaleIntercept=intercept, **tags)
    with np.errstate(over="ignore"):
        theirs = apply_windowing(values * float(dataset.RescaleSlope) + intercept, dataset)
    low = intercept
    high = 65535 * float(dataset.RescaleSlope) + intercept
    expected = (theirs - low) / (high - low) * 255
    assert np.abs(decode(written(dataset))[:, :, 0] - expected).max() <= 0.5001


def test_a_window_without_width_is_passed_over() -> None:
    values = phantom().astype(np.uint16) * 257
    assert np.array_equal(decode(dicom(values, WindowCenter=5, WindowWidth=0))[:, :, 0], phantom())


def group(**sequences: Dataset) -> Dataset:
    """An item of the functional groups."""
    outer = Dataset()
    for name, item in sequences.items():
        setattr(outer, name, [item])
    return outer


def tagged(**tags: Any) -> Dataset:
    item = Dataset()
    for name, value in tags.items():
        setattr(item, name, value)
    return item


def enhanced(values: np.ndarray, shared: Dataset, of_frame: Dataset | None = None, **tags: Any) -> bytes:
    """An enhanced CT image (PS3.3, A.38) of one frame."""
    tags = {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.2.1", "NumberOfFrames": 1, "BitsStored": 12, **tags}
    groups = {"SharedFunctionalGroupsSequence": [shared]}
    groups |= {} if of_frame is None else {"PerFrameFunctionalGroupsSequence": [of_frame]}
    return dicom(values, **tags, **groups)


def by_window(values: np.ndarray, centre: float, width: float) -> np.ndarray:
    """PS3.3, C.11.2.1.2.1, for values in the modality's unit."""
    return np.rint(np.clip((values - (centre - 0.5)) / (width - 1) + 0.5, 0, 1) * 255)


def test_an_enhanced_file_says_of_its_frame_how_it_is_shown() -> None:
    values = np.random.default_rng(0).integers(0, 4096, (40, 60)).astype(np.uint16)
    measured = values * 2.0 - 300
    rescale = tagged(RescaleSlope=2, RescaleIntercept=-300, RescaleType="HU")
    soft, bone = tagged(WindowCenter=[2500, 60], WindowWidth=[900, 350]), tagged(WindowCenter=4000, WindowWidth=2000)
    shared = group(FrameVOILUTSequence=soft, PixelValueTransformationSequence=rescale)
    of_soft, of_bone = by_window(measured, 2500, 900), by_window(measured, 4000, 2000)
    plain = by_window(values, 4000, 2000)

    def shown(content: bytes) -> np.ndarray:
        return decode(content)[:, :, 0]

    assert np.array_equal(shown(enhanced(values, shared)), of_soft)
    # What the frame itself says goes before what all share, also where it says nothing of the rest.
    assert np.array_equal(shown(enhanced(values, shared, group(FrameVOILUTSequence=bone))), of_bone)
    empty = group(FrameVOILUTSequence=tagged(WindowCenter=None))
    assert np.array_equal(shown(enhanced(values, shared, empty)), of_soft)
    assert np.array_equal(shown(enhanced(values, group(), group(FrameVOILUTSequence=bone))), plain)
    # And what stands at the top before both.
    assert np.array_equal(shown(enhanced(values, shared, WindowCenter=4000, WindowWidth=2000)), of_bone)
    # But for what says nothing by itself.
    assert np.array_equal(shown(enhanced(values, shared, VOILUTFunction="SIGMOID", RescaleSlope=9)), of_soft)
    oblong = group(PixelMeasuresSequence=tagged(PixelSpacing=[1, 0.5], SliceThickness=3))
    assert decode(enhanced(values, oblong)).shape == (40, 30, 1)


def test_nothing_else_of_the_functional_groups_is_stored_or_told(tmp_path: Path) -> None:
    content = tagged(FrameComments=CANARY, FrameAcquisitionDateTime="19990101")
    named = group(FrameContentSequence=content, FrameVOILUTSequence=tagged(WindowCenter=9, WindowWidth=9))
    named.FrameVOILUTSequence[0].WindowCenterWidthExplanation = CANARY
    raw = enhanced(phantom().astype(np.uint16), named, named, PatientID=CANARY, StudyInstanceUID="1.2")
    assert raw.count(CANARY.encode()) == 5
    assert CANARY.encode() not in canonical(raw, 256, 92, 10**8).content
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "a.dcm").write_bytes(raw)
    words = ["source=dicom", f"raw={tmp_path / 'raw'}", f"out={tmp_path / 'out'}", f"keyring={tmp_path / 'k.json'}"]
    dataset = imported(*words)
    assert CANARY.lower().encode() not in everything(dataset)
    assert refused(enhanced(np.zeros((3, 4), np.uint16), named, NumberOfFrames=2)) == "several frames"


# --- what is refused -----------------------------------------------------------------------------------


def test_bad_files_give_reasons_without_values() -> None:
    whole = dicom(phantom().astype(np.uint16), PatientName=CANARY)
    reasons = {
        "several frames": written(dataset_of(np.zeros((8, 6), np.uint8), Rows=4, NumberOfFrames=2)),
        "truncated": whole[:-200],
        "too large": written(dataset_of(phantom(), Rows=60000, Columns=60000)),
        "undecodable": dicom(np.zeros((8, 8, 3), np.uint8), PhotometricInterpretation="MONOCHROME2"),
        "colour space not read": dicom(phantom(), PhotometricInterpretation=CANARY),
    }
    for reason, content in reasons.items():
        assert refused(content) == reason
    without = dataset_of(phantom())
    del without.PixelData
    assert refused(written(without)) == "no pixel data"
    floats = dataset_of(phantom())
    del floats.PixelData
    floats.FloatPixelData = bytes(32 * 48 * 4)
    assert refused(written(floats)) == "float pixels"
    unknown = whole.replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.9.1\0")
    assert refused(unknown) == "transfer syntax not read"


def test_a_stream_that_is_larger_than_its_tags_is_not_unpacked() -> None:
    buffer = io.BytesIO()
    Image.new("L", (3000, 3000)).save(buffer, "JPEG2000", no_jp2=True)
    dataset = dataset_of(phantom())
    dataset.file_meta.TransferSyntaxUID = J2K
    dataset.PixelData = encapsulate([buffer.getvalue()])
    dataset["PixelData"].VR = "OB"
    assert refused(written(dataset)) == "undecodable"


def test_a_deflated_bomb_is_refused_before_it_unfolds() -> None:
    content = dicom_in(phantom(), DEFLATED)
    start = 144 + pydicom.dcmread(io.BytesIO(content)).file_meta.FileMetaInformationGroupLength
    packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    bomb = packer.compress(bytes(2**27)) + packer.flush()
    assert refused(content[:start] + bomb, max_pixels=10_000) == "too large"


def read_only_header(content: bytes, max_pixels: int) -> object:
    return read_header(io.BytesIO(content), ("PatientID",), max_pixels)


@pytest.mark.parametrize("read", [decode, read_only_header])
@pytest.mark.parametrize("length", [20, 5_000, 65_000])
def test_a_deflated_bomb_is_not_hidden_by_a_long_element_before_its_syntax(
    read: Callable[..., object], length: int
) -> None:
    def element(number: int, kind: bytes, value: bytes) -> bytes:
        value += bytes(len(value) % 2)
        return struct.pack("<HH2sH", 2, number, kind, len(value)) + value

    meta = element(2, b"UI", b"1.2.840.10008.5.1.4.1.1.7") + element(3, b"UI", b"1." + b"3" * length)
    meta += element(0x10, b"UI", DEFLATED.encode())
    packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    private = struct.pack("<HH2sHI", 0x7FE1, 0x10, b"OB", 0, 2**27)
    bomb = packer.compress(private + bytes(2**27)) + packer.flush()
    with pytest.raises(BadImage, match="too large"):
        read(bytes(128) + b"DICM" + element(0, b"UL", struct.pack("<I", len(meta))) + meta + bomb, max_pixels=10_000)


def jp2(pixels: np.ndarray, size: int | None = None, before: bytes = b"") -> bytes:
    """A JP2 file, its codestream and header claiming a square of this size, with boxes before the codestream."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG2000")
    content = bytearray(buffer.getvalue())
    if size is not None:
        header, start = content.find(b"ihdr"), content.find(b"\xff\x4f\xff\x51")
        for place in (header + 4, start + 8, start + 24):
            content[place : place + 8] = struct.pack(">II", size, size)
    place = content.find(b"jp2c") - 4
    return bytes(content[:place]) + before + bytes(content[place:])


def in_dicom(stream: bytes, **tags: Any) -> bytes:
    dataset = dataset_of(phantom(), **tags)
    dataset.file_meta.TransferSyntaxUID = J2K
    dataset.PixelData = encapsulate([stream])
    dataset["PixelData"].VR = "OB"
    return written(dataset)


BOXES = {
    "free": struct.pack(">I", 5008) + b"free" + bytes(5000),
    "long": struct.pack(">I4sQ", 1, b"free", 5016) + bytes(5000),
    "two": (struct.pack(">I", 8) + b"free") * 2,
    "none": b"",
}


@pytest.mark.parametrize("name", BOXES)
def test_boxes_do_not_hide_the_size_of_a_stream(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = decode(in_dicom(jp2(phantom(), before=BOXES[name])))
    assert np.array_equal(whole[:, :, 0], phantom())
    monkeypatch.setattr("data.dicom.decode._decoded", lambda _: pytest.fail("it was decoded"))
    assert refused(in_dicom(jp2(phantom(), 20_000, BOXES[name]))) == "undecodable"


@pytest.mark.parametrize(
    "stream",
    [
        jp2(phantom())[12:],  # without the signature
        jp2(phantom(), before=struct.pack(">I", 4) + b"free"),  # shorter than itself
        jp2(phantom(), before=struct.pack(">I", 0) + b"free"),  # to the end
        jp2(phantom()).split(b"jp2c")[0],
        jp2(phantom())[: jp2(phantom()).find(b"jp2c") + 30],
        bytes(4096) + jp2(phantom()).split(b"jp2c")[1],
        b"\0" + encode_jpeg(phantom()[:, :, None]),
        b"\xff\xd8\xff",
    ],
)
def test_a_stream_that_does_not_tell_its_size_is_refused(stream: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("data.dicom.decode._decoded", lambda _: pytest.fail("it was decoded"))
    assert refused(in_dicom(stream)) == "undecodable"


def test_a_stream_has_as_many_channels_as_its_tags_say(monkeypatch: pytest.MonkeyPatch) -> None:
    content = bytearray(jp2(phantom()))
    start = content.find(b"\xff\x4f\xff\x51")
    content[start + 40 : start + 42] = struct.pack(">H", 16_384)
    monkeypatch.setattr("data.dicom.decode._decoded", lambda _: pytest.fail("it was decoded"))
    assert refused(in_dicom(bytes(content))) == "undecodable"


@settings(deadline=None)
@given(st.binary(min_size=140, max_size=400), st.booleans())
def test_random_bytes_are_no_image(noise: bytes, begins_like_one: bool) -> None:
    assert refused((b"\x08\x00\x05\x00" if begins_like_one else b"") + noise.replace(b"DICM", b"")) in (
        "not an image",
        "undecodable",
        "truncated",
    )


DAMAGED = PHANTOMS["rescale and window"](), PHANTOMS["RLE"](), PHANTOMS["VOI LUT"]()


@settings(deadline=None)
@given(st.data())
def test_damage_is_decoded_or_refused_and_never_anything_else(data: st.DataObject) -> None:
    content = bytearray(data.draw(st.sampled_from(DAMAGED)))
    for _ in range(data.draw(st.integers(1, 6))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    content = content[: data.draw(st.integers(200, len(content)))]
    try:
        pixels = decode(bytes(content), max_pixels=10**6)
    except BadImage:
        return
    assert pixels.dtype == np.uint8
    assert pixels.ndim == 3


def test_pydicom_is_loaded_for_dicom_files_only_and_a_missing_decoder_is_named_with_its_mend(tmp_path: Path) -> None:
    content = dicom(phantom().astype(np.uint16) * 257)
    for syntax, name in (("JPEGLosslessProcess14_1", "JPEG lossless"), ("JPEGLSLossless", "JPEG-LS")):
        (tmp_path / name).write_bytes(transcoded(content, syntax, tmp_path))
    code = (
        "import sys; sys.modules['gdcm'] = None; from pathlib import Path; import data.sources.dicom\n"
        "from data.images import BadImage, decode, encode_jpeg\n"
        "decode(encode_jpeg(data.images.np.zeros((8, 8, 3), 'uint8'))); print('pydicom' in sys.modules)\n"
        f"for path in ('JPEG lossless', 'JPEG-LS'):\n  try: decode(Path({str(tmp_path)!r}, path).read_bytes())\n"
        "  except BadImage as error: print(error.reason)"
    )
    told = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert told.stdout.splitlines() == [
        "False",
        "needs pip install 'python-gdcm>=3.0.24' (JPEG lossless)",
        "needs pip install 'python-gdcm>=3.0.24' (JPEG-LS)",
    ]
    assert told.stderr == ""


def test_burned_in_text_is_refused_unless_it_is_asked_for() -> None:
    content = dicom(phantom(), BurnedInAnnotation="YES")
    with pytest.raises(BadImage, match="burned-in annotation"):
        canonical(content, 256, 92, 10**8)
    assert canonical(content, 256, 92, 10**8, burned_in="keep").width == 48
    assert canonical(dicom(phantom(), BurnedInAnnotation="NO"), 256, 92, 10**8).width == 48


def test_nothing_of_a_tag_is_stored_or_logged(caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    content = planted(phantom())
    assert content.count(CANARY.encode()) >= 8
    stored = canonical(content, 256, 92, 10**8, burned_in="keep")
    assert CANARY.encode() not in stored.content
    reasons = set()
    for end in range(300, len(content), 97):
        try:
            decode(content[:end])
        except BadImage as error:
            reasons.add(error.reason)
    assert reasons <= {"truncated", "undecodable", "no pixel data", "burned-in annotation"}
    told = capfd.readouterr()
    assert CANARY not in caplog.text + told.out + told.err
    assert told.err == ""


def planted(pixels: np.ndarray, **tags: Any) -> bytes:
    """A file with a canary wherever text can stand, in tags that pydicom warns about too."""
    dataset = dataset_of(pixels)
    for name in ("PatientName", "InstitutionName", "ReferringPhysicianName", "StudyDescription", "ImageComments"):
        setattr(dataset, name, CANARY)
    for name in ("OtherPatientIDs", "DeviceSerialNumber", "PatientAddress", "AccessionNumber", "ProtocolName"):
        setattr(dataset, name, CANARY)
    for name in ("ViewPosition", "BodyPartExamined", "Modality", "ImageLaterality", "PatientSex"):
        setattr(dataset, name, CANARY)
    block = dataset.private_block(0x0029, CANARY, create=True)
    block.add_new(0x01, "LO", CANARY)
    inner = Dataset()
    inner.PatientName = CANARY
    outer = Dataset()
    outer.RequestAttributesSequence = [inner]
    dataset.RequestAttributesSequence = [outer]
    dataset.IconImageSequence = [dataset_of(pixels[:4, :4], PatientName=CANARY)]
    with disable_value_validation():
        dataset.add_new("StudyInstanceUID", "UI", f"1.2.{CANARY}")
        dataset.add_new("PatientID", "LO", f"{CANARY} 7")
        dataset.add_new("PatientBirthDate", "DA", f"19{CANARY}")
        dataset.add_new("PatientAge", "AS", "093Y")
        dataset.add_new("WindowCenter", "DS", "")
        for name, value in tags.items():
            setattr(dataset, name, value)
        return written(dataset)


# --- source=dicom --------------------------------------------------------------------------------------


def export(folder: Path) -> Path:
    """Three patients, four studies, five images, with what else lies in an export."""
    rows = [
        # patient, study, accession, sex, age, birth, date, view, side, modality, body part
        ("P1", "1.2.1", "A1", "F", "058Y", "", "", "PA", "", "CR", "CHEST"),
        ("P1", "1.2.1", "A1", "F", "058Y", "", "", "LATERAL", "", "CR", "CHEST"),
        ("P1", "1.2.2", "A2", "F", "", "19600630", "20200629", "AP", "", "DX", "CHEST"),
        ("P2", "1.2.3", "A3", "M", "097Y", "", "", "CC", "L", "MG", "BREAST"),
        ("P3", "1.2.4", "A4", "O", "006M", "", "", "", "", "US", ""),
    ]
    rng = np.random.default_rng(0)
    (folder / "DATA" / "deep").mkdir(parents=True)
    for number, row in enumerate(rows):
        tags = dict(zip(("PatientID", "StudyInstanceUID", "AccessionNumber", "PatientSex", "PatientAge"), row[:5]))
        tags |= dict(zip(("PatientBirthDate", "StudyDate", "ViewPosition", "ImageLaterality"), row[5:9]))
        tags |= dict(zip(("Modality", "BodyPartExamined"), row[9:]))
        pixels = rng.integers(0, 4096, (40, 50)).astype(np.uint16)
        name = ("DATA/IM1", "DATA/deep/0002", "DATA/x.dcm", "a.bin", "z")[number]
        (folder / name).write_bytes(dicom(pixels, BitsStored=12, SeriesInstanceUID=f"{row[1]}.{number}", **tags))
    report = dataset_of(phantom(), PatientID="P1", SOPClassUID="1.2.840.10008.5.1.4.1.1.88.11")
    for name in ("PixelData", "Rows", "Columns"):
        delattr(report, name)
    (folder / "SR0001").write_bytes(written(report))
    (folder / "DICOMDIR").write_bytes(written(report))
    (folder / "readme.txt").write_text("no image")
    (folder / "copy of IM1").write_bytes((folder / "DATA" / "IM1").read_bytes())
    return folder


def read(*words: str) -> RawDataset:
    source = next(word.removeprefix("source=") for word in words if word.startswith("source="))
    return read_raw(load_config(source_module(source).Options, [*words, "out=/nowhere"]))


def imported(*words: str) -> ManyviewDataset:
    source = next(word.removeprefix("source=") for word in words if word.startswith("source="))
    config = load_config(source_module(source).Options, words)
    write_dataset(read_raw(config), config)
    return open_dataset(config.out)


def test_an_export_is_read_by_its_tags(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    raw = read("source=dicom", f"raw={export(tmp_path)}")
    assert raw.task == "unlabelled"
    cases = {case.key: case for case in raw.cases}
    assert {key: (case.patient, len(case.images)) for key, case in cases.items()} == {
        "1.2.1": ("P1", 2),
        "1.2.2": ("P1", 1),
        "1.2.3": ("P2", 1),
        "1.2.4": ("P3", 1),
    }
    assert cases["1.2.3"].images[0].attributes == {
        "sex": "male",
        "age": "90+",
        "view": "cc",
        "laterality": "left",
        "modality": "MG",
        "body_part": "breast",
    }
    assert {image.attributes["view"] for image in cases["1.2.1"].images} == {"pa", "lateral"}
    assert [cases[key].images[0].attributes["age"] for key in ("1.2.1", "1.2.2", "1.2.4")] == ["50-59", "50-59", "0-9"]
    assert cases["1.2.4"].images[0].attributes["sex"] == "other"
    told = capsys.readouterr().err
    assert told == "dicom: 5 images; left out 1 not DICOM, 2 without pixels, 1 copies of an image\n"


@pytest.mark.parametrize(("case", "number"), [("study", 4), ("series", 5), ("image", 5)])
def test_what_a_case_is_can_be_chosen_and_is_said(tmp_path: Path, case: str, number: int) -> None:
    raw = read("source=dicom", f"raw={export(tmp_path)}", f"case={case}")
    assert len(raw.cases) == number
    assert case in raw.case_meaning


def test_with_keyed_ids_a_tag_most_of_whose_values_are_of_one_patient_each_is_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    parts = ["ABDOMEN", "ANKLE", "ARM", "BRAIN", "BREAST", "CHEST", "ELBOW", "FOOT", "HAND", "HEAD", "HIP", "KNEE"]
    for number, part in enumerate([*parts, *["CHEST"] * 13]):
        tags = {"PatientID": f"P{number}", "StudyInstanceUID": f"1.2.{number}", "BodyPartExamined": part}
        pixels = np.full((8, 8), number, np.uint8)
        (tmp_path / f"{number}.dcm").write_bytes(dicom(pixels, Modality="CR", PatientAge=f"0{number + 10}Y", **tags))
    words = ("source=dicom", f"raw={tmp_path}")
    found = {name for case in read(*words).cases for image in case.images for name in image.attributes}
    assert found == {"sex", "age", "view", "laterality", "modality"}
    told = "left out body_part, which has 12 different values, 11 of them of one patient each"
    assert told in capsys.readouterr().err
    assert read(*words, "ids=source").cases[0].images[0].attributes["body_part"] == "abdomen"
    assert "left out" not in capsys.readouterr().err


def test_an_export_becomes_a_dataset_with_keyed_ids(tmp_path: Path) -> None:
    words = [f"raw={export(tmp_path / 'raw')}", f"keyring={tmp_path / 'k.json'}", f"out={tmp_path / 'out'}"]
    dataset = imported("source=dicom", *words)
    assert (dataset.num_images, dataset.num_cases, dataset.manifest.counts.patients) == (5, 4, 3)
    assert dataset.manifest.ids == "keyed"
    assert set(dataset.column("attr.modality")) == {"CR", "DX", "MG", "US"}
    open_ids = imported("source=dicom", words[0], "ids=source", f"out={tmp_path / 'open'}")
    assert set(open_ids.column("patient")) == {"p1", "p2", "p3"}
    assert set(open_ids.column("key")) == {"1-2-1", "1-2-2", "1-2-3", "1-2-4"}


def test_labels_are_joined_by_a_tag(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    raw = export(tmp_path / "raw")
    (tmp_path / "labels.csv").write_text("AccessionNumber,what\nA1,sick\nA2,well\nA3,sick\nA9,well\n")
    words = ["source=dicom", f"raw={raw}", f"labels={tmp_path / 'labels.csv'}", "label=what"]
    found = read(*words)
    assert (found.task, found.label_names) == ("binary", ("well",))
    labels = {case.key: case.labels["well"] for case in found.cases}
    assert np.array_equal([labels[f"1.2.{number}"] for number in (1, 2, 3, 4)], [0, 1, 0, np.nan], equal_nan=True)
    assert "1 of 4 cases have no row in the table" in capsys.readouterr().err
    manifest = imported(*words, f"keyring={tmp_path / 'k.json'}", f"out={tmp_path / 'out'}").manifest
    assert str(tmp_path) not in manifest.model_dump_json()
    (tmp_path / "labels.csv").write_text("who,what\nP1,a\nP2,b\nP3,c\n")
    found = read(*words, "join=PatientID", "column=who")
    assert (found.task, found.label_names) == ("multiclass", ("a", "b", "c"))
    with pytest.raises(InputError, match=r"no row of .*labels\.csv joins an image: no 'who' is the StudyInstanceUID"):
        read(*words, "join=StudyInstanceUID", "column=who")
    with pytest.raises(InputError, match="go together"):
        read(*words[:-1])


def rewrite(path: Path, **tags: Any) -> None:
    dataset = pydicom.dcmread(path)
    for name, value in tags.items():
        setattr(dataset, name, value)
    dataset.save_as(path)


def test_with_keyed_ids_a_label_tells_nobody(tmp_path: Path) -> None:
    raw = export(tmp_path / "raw")
    rows = "A1,Adler,1,0,P1\nA2,Adler,0,1,P1\nA3,Berg,1,1,P2\n"
    (tmp_path / "labels.csv").write_text(f"AccessionNumber,PatientName,ap,{CANARY} patient name,who\n{rows}")
    words = ["source=dicom", f"raw={raw}", f"labels={tmp_path / 'labels.csv'}"]
    for label in ("PatientName", f"ap,{CANARY} patient name"):
        with pytest.raises(InputError, match=r"means that it tells who somebody is; leave .* out of label="):
            read(*words, f"label={label}")
    with pytest.raises(InputError, match="'who' tells the patient, case or image; leave 'who' out of label="):
        read(*words, "label=who", "join=PatientID", "column=who")
    assert read(*words, "label=PatientName", "ids=source").label_names == ("Berg",)


def test_what_an_export_lacks_is_one_line_by_number(tmp_path: Path) -> None:
    raw = export(tmp_path / "raw")
    words = ["source=dicom", f"raw={raw}"]
    rewrite(raw / "a.bin", PatientID="")
    with pytest.raises(InputError, match=r"^file 6 \(in the order of the paths\) has no PatientID") as caught:
        read(*words)
    assert "a.bin" not in str(caught.value)
    assert len(read(*words, "patient=none").cases) == 4
    rewrite(raw / "a.bin", PatientID="P9", StudyInstanceUID="1.2.1")
    with pytest.raises(InputError, match=r"file 1 and file 6 are of one study but of two patients"):
        read(*words)
    rewrite(raw / "a.bin", StudyInstanceUID="")
    with pytest.raises(InputError, match="file 6 has no StudyInstanceUID"):
        read(*words)
    with pytest.raises(InputError, match="no such folder"):
        read("source=dicom", f"raw={tmp_path / 'nowhere'}")
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text("x")
    with pytest.raises(InputError, match="has no DICOM images: 1 files are no DICOM"):
        read("source=dicom", f"raw={tmp_path / 'texts'}")


def test_unreadable_files_count_as_bad_images(tmp_path: Path) -> None:
    raw = export(tmp_path / "raw")
    (raw / "empty.dcm").write_bytes(b"")
    (raw / "page.dcm").write_text("<html>404</html>" * 20)
    whole = (raw / "z").read_bytes()
    (raw / "z").write_bytes(whole[:-100])
    (raw / "y").write_bytes(whole[: whole.index(struct.pack("<HH", 0x0028, 0x0010))])  # cut before its Rows
    (raw / "w").write_bytes(whole[: whole.index(struct.pack("<HH", 0x0008, 0x0016))])  # cut behind its file meta
    (raw / "noise").write_bytes(bytes(128) + b"DICM" + np.random.default_rng(0).bytes(4000))
    (raw / "zeros").write_bytes(bytes(128) + b"DICM" + bytes(4000))
    words = ["source=dicom", f"raw={raw}", f"keyring={tmp_path / 'k.json'}", f"out={tmp_path / 'out'}"]
    with pytest.raises(InputError, match=r"images? (is|are) bad.*file \d+: "):
        imported(*words)
    quarantined = imported(*words, "max_bad_fraction=0.9").manifest.quarantined
    assert quarantined.reasons == {"not an image": 1, "truncated": 3, "undecodable": 2, "zero bytes": 1}


@pytest.mark.parametrize("tag", ["BurnedInAnnotation", "RecognizableVisualFeatures"])
def test_burned_in_text_or_a_face_stops_an_import_or_is_left_out(tmp_path: Path, tag: str) -> None:
    raw = export(tmp_path / "raw")
    rewrite(raw / "z", **{tag: "YES"})
    rewrite(raw / "a.bin", **{tag: "NO"})
    words = ["source=dicom", f"raw={raw}", f"keyring={tmp_path / 'k.json'}", f"out={tmp_path / 'out'}"]
    said = (
        "1 of 5 images say that text is burned into their pixels or that somebody .* the first: file 9; give burned_in"
    )
    with pytest.raises(InputError, match=said):
        imported(*words)
    assert not (tmp_path / "out").exists()
    dataset = imported(*words, "burned_in=keep", f"out={tmp_path / 'kept'}")
    assert dataset.num_images == 5
    dataset = imported(*words, "burned_in=leave_out")
    assert dataset.num_images == 4
    assert dataset.manifest.quarantined.reasons == {"burned-in annotation": 1}


@pytest.mark.parametrize("tag", ["BurnedInAnnotation", "RecognizableVisualFeatures"])
def test_burned_in_text_or_a_face_is_refused_by_other_sources_too(tmp_path: Path, tag: str) -> None:
    raw = export(tmp_path / "raw")
    rewrite(raw / "z", **{tag: "YES"})
    (raw / "table.csv").write_text("file,who\nDATA/IM1,a\nz,b\n")
    words = ["source=table", f"raw={raw / 'table.csv'}", "image=file", "patient=who", f"out={tmp_path / 'out'}"]
    words.append(f"keyring={tmp_path / 'k.json'}")
    with pytest.raises(InputError, match=r"row 3 says that text is burned into its .*; give burned_in=leave_out"):
        imported(*words)
    assert imported(*words, "burned_in=leave_out").num_images == 1


def test_no_canary_comes_through_an_import(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    folder = tmp_path / "raw" / CANARY
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for number in range(6):
        pixels = rng.integers(0, 255, (40, 50)).astype(np.uint8)
        content = planted(pixels, PatientID=f"{CANARY}{number}", StudyInstanceUID=f"1.2.{CANARY}.{number}")
        (folder / f"{CANARY}-{number}.dcm").write_bytes(content)
    broken = folder / f"{CANARY}-0.dcm"
    broken.write_bytes(broken.read_bytes()[:-500])
    (folder / f"{CANARY}.dcm").write_text(CANARY * 40)
    words = ["import", "source=dicom", f"raw={tmp_path / 'raw'}", f"out={tmp_path / 'out'}", "num_processes=1"]
    words.append(f"keyring={tmp_path / 'k.json'}")
    messages = []
    with pytest.raises(InputError) as caught:
        main(words)
    messages.append(str(caught.value))
    main([*words, "max_bad_fraction=0.5"])
    assert open_dataset(str(tmp_path / "out")).num_images == 5
    (folder / "0").write_bytes(planted(phantom(), PatientID=""))
    with pytest.raises(InputError) as caught:
        main(words)
    messages.append(str(caught.value))
    told = capfd.readouterr()
    outputs = [path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()]
    rows = str(open_dataset(str(tmp_path / "out")).index.to_pylist())
    for text in (
        *messages,
        told.out,
        told.err,
        caplog.text,
        rows,
        *(str(path) for path in (tmp_path / "out").rglob("*")),
    ):
        assert CANARY.lower() not in text.lower()
    assert all(CANARY.encode().lower() not in output.lower() for output in outputs)


def test_headers_can_be_read_in_other_processes(tmp_path: Path) -> None:
    look = partial(header_of, Folder(export(tmp_path)), 10**8)
    assert pickle.loads(pickle.dumps(look))(0, "DATA/IM1") == look(0, "DATA/IM1")
    assert pickle.loads(pickle.dumps(look(0, "DATA/IM1"))).study == "1.2.1"


def test_one_uid_in_every_file_makes_no_copies_but_equal_bytes_do(tmp_path: Path) -> None:
    for number in range(3):
        tags = {"PatientID": "P1", "StudyInstanceUID": "1.2", "SeriesInstanceUID": "1.2.3", "SOPInstanceUID": "1.2.3.4"}
        (tmp_path / f"{number}.dcm").write_bytes(dicom(np.roll(phantom(), number, axis=1), **tags))
    (tmp_path / "again.dcm").write_bytes((tmp_path / "1.dcm").read_bytes())
    (case,) = read("source=dicom", f"raw={tmp_path}", "ids=source").cases
    assert [image.file for image in case.images] == ["0.dcm", "1.dcm", "2.dcm"]


def test_a_stray_file_does_not_make_another_dataset(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    raw = export(tmp_path / "raw")
    (raw / "broken.dcm").write_bytes(b"")
    keyring = f"keyring={tmp_path / 'k.json'}"
    words = ["source=dicom", f"raw={raw}", keyring, f"out={tmp_path / 'out'}", "max_bad_fraction=0.9"]
    main(["import", *words])
    (raw / ".DS_Store").write_bytes(b"x")
    (raw / "DATA" / "notes.txt").write_text("x")
    capsys.readouterr()
    main(["import", *words])
    assert capsys.readouterr().out.startswith("reused")
    main(["whois", "file 5", keyring, f"data={tmp_path / 'out'}"])
    at_place = sorted(str(path.relative_to(raw)) for path in raw.rglob("*") if path.is_file())[4]
    assert f"image {at_place}, file 5" in capsys.readouterr().out, "numbers are told as they are now"


@pytest.mark.parametrize(
    ("tags", "shape"),
    [
        ({"PixelSpacing": [0.4, 0.2]}, (32, 24)),
        ({"ImagerPixelSpacing": [0.1, 0.2]}, (16, 48)),
        ({"PixelAspectRatio": [2, 1]}, (32, 24)),
        ({"PixelSpacing": [0.2, 0.2], "PixelAspectRatio": [2, 1]}, (32, 48)),
        ({"PixelSpacing": [0.2, 0.201]}, (32, 48)),
        ({"PixelSpacing": [0, 0.2]}, (32, 48)),
        ({"PixelSpacing": [0.001, 1000]}, (32, 48)),
        ({"PixelSpacing": ""}, (32, 48)),
    ],
)
def test_pixels_that_are_not_square_are_made_so(tags: dict[str, Any], shape: tuple[int, int]) -> None:
    assert decode(dicom(phantom(), **tags)).shape == (*shape, 1)
    if shape == (32, 48):
        assert np.array_equal(decode(dicom(phantom(), **tags))[:, :, 0], phantom())
