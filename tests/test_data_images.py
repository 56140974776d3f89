import functools
import io
import struct
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path

import cv2
import h5py
import numpy as np
import pydicom
import pytest
import simplejpeg
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageCms, ImageOps, PngImagePlugin
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import UID

from clusters.config import InputError
from data import images, jpeg
from data.images import BadImage, canonical, decode, decode_stored, encode_jpeg, shrink
from data.sources.pcam import Patch

CANARY = b"ZZPHICANARY"


def smooth(height: int = 40, width: int = 60) -> np.ndarray:
    y, x = np.mgrid[0:height, 0:width]
    return np.stack([x * 4, y * 6, (x + y) * 2], axis=2).clip(0, 255).astype(np.uint8)


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)  # pyright: ignore[reportArgumentType]
    return buffer.getvalue()


def dicom(pixels: np.ndarray, syntax: str = "1.2.840.10008.1.2.1", **tags: object) -> bytes:
    """The least that a DICOM file of one frame needs."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = UID("1.2.840.10008.1.2.1")
    dataset.SOPClassUID, dataset.SOPInstanceUID = UID("1.2.840.10008.5.1.4.1.1.7"), UID("1.2.3")
    dataset.Rows, dataset.Columns = pixels.shape[:2]
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = (1, "MONOCHROME2") if pixels.ndim == 2 else (3, "RGB")
    dataset.PlanarConfiguration, dataset.PixelRepresentation = 0, 0
    dataset.BitsAllocated = dataset.BitsStored = pixels.dtype.itemsize * 8
    dataset.HighBit = dataset.BitsStored - 1
    dataset.PixelData = pixels.tobytes()
    for name, value in tags.items():
        setattr(dataset, name, value)
    if syntax != dataset.file_meta.TransferSyntaxUID:
        dataset.compress(UID(syntax))
    buffer = io.BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def phantom() -> np.ndarray:
    """Smooth colours from 0 to 255, `(64, 96, 3)`."""
    y, x = np.mgrid[0:64, 0:96] / [[[63]], [[95]]]
    return np.rint(np.stack([x, y, (1 - x) * (1 - y)], axis=2) * 255).astype(np.uint8)


def grey() -> np.ndarray:
    return phantom()[:, :, 0]


def by_opencv(pixels: np.ndarray, kind: str, *options: int) -> bytes:
    ordered = pixels if pixels.ndim == 2 else pixels[:, :, [2, 1, 0, 3][: pixels.shape[2]]]
    return cv2.imencode(kind, ordered, list(options))[1].tobytes()


def tiff_white_is_zero(pixels: np.ndarray) -> bytes:
    """A TIFF whose smallest value is white, written by hand: Pillow cannot."""
    height, width = pixels.shape
    bits = pixels.dtype.itemsize * 8
    tags = [(256, width), (257, height), (258, bits), (259, 1), (262, 0), (273, 8), (277, 1), (278, height)]
    tags.append((279, pixels.nbytes))
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    directory = struct.pack("<H", len(tags)) + entries + bytes(4)
    return (
        b"II*\0"
        + struct.pack("<I", 8 + pixels.nbytes)
        + pixels.astype(pixels.dtype.newbyteorder("<")).tobytes()
        + (directory)
    )


def with_alpha(pixels: np.ndarray) -> np.ndarray:
    full = np.iinfo(pixels.dtype).max
    return np.concatenate([pixels, np.full_like(pixels[:, :, :1], full)], axis=2)


def as_palette(pixels: np.ndarray) -> Image.Image:
    image = Image.fromarray(255 - pixels, "P")
    image.putpalette([255 - level for level in range(256) for _ in range(3)])
    return image


def deep(pixels: np.ndarray) -> np.ndarray:
    return pixels.astype(np.uint16) * 257


def without_adobe_marker(cmyk: np.ndarray) -> bytes:
    """A CMYK JPEG that does not hold the inverse, as programs other than Adobe's write it."""
    content = encoded(Image.fromarray(255 - cmyk, "CMYK"), "JPEG", quality=100, subsampling=0)
    place = content.index(b"\xff\xee")
    return content[:place] + content[place + 2 + int.from_bytes(content[place + 2 : place + 4], "big") :]


RGB, GREY = Image.fromarray(phantom()), Image.fromarray(grey())
BEST = {"quality": 100, "subsampling": 0}
TIFF_LZW = (cv2.IMWRITE_TIFF_COMPRESSION, 5)
LOSSLESS: dict[str, bytes] = {
    "PNG": encoded(RGB, "PNG"),
    "PNG, 16 bits": by_opencv(deep(phantom()), ".png"),
    "PNG, alpha": encoded(Image.fromarray(with_alpha(phantom())), "PNG"),
    "PNG, 16 bits, alpha": by_opencv(with_alpha(deep(phantom())), ".png"),
    "PNG, grey": encoded(GREY, "PNG"),
    "PNG, grey, 16 bits": encoded(Image.fromarray(deep(grey())), "PNG"),
    "PNG, grey, alpha": encoded(GREY.convert("LA"), "PNG"),
    "PNG, palette": encoded(as_palette(grey()), "PNG"),
    "TIFF": encoded(RGB, "TIFF"),
    "TIFF, LZW": encoded(RGB, "TIFF", compression="tiff_lzw"),
    "TIFF, deflate": encoded(RGB, "TIFF", compression="tiff_adobe_deflate"),
    "TIFF, 16 bits": by_opencv(deep(phantom()), ".tiff", cv2.IMWRITE_TIFF_COMPRESSION, 1),
    "TIFF, 16 bits, LZW": by_opencv(deep(phantom()), ".tiff", *TIFF_LZW),
    "TIFF, grey": encoded(GREY, "TIFF"),
    "TIFF, grey, 16 bits": encoded(Image.fromarray(deep(grey())), "TIFF"),
    "TIFF, grey, 16 bits, LZW": by_opencv(deep(grey()), ".tiff", *TIFF_LZW),
    "TIFF, white is zero": tiff_white_is_zero(255 - grey()),
    "TIFF, white is zero, 16 bits": tiff_white_is_zero(deep(255 - grey())),
    "TIFF, CMYK": encoded(Image.fromarray(255 - with_alpha(phantom()), "CMYK"), "TIFF"),
    "BMP": encoded(RGB, "BMP"),
    "BMP, grey": encoded(GREY, "BMP"),
    "WebP, lossless": encoded(RGB, "WEBP", lossless=True),
    "GIF": encoded(GREY, "GIF"),
    "PPM": encoded(RGB, "PPM"),
    "JPEG 2000": encoded(RGB, "JPEG2000"),
    "DICOM": dicom(phantom()),
    "DICOM, 16 bits": dicom(deep(phantom())),
    "DICOM, grey": dicom(grey()),
    "DICOM, grey, 16 bits": dicom(deep(grey())),
    "DICOM, MONOCHROME1": dicom(255 - grey(), PhotometricInterpretation="MONOCHROME1"),
    "DICOM, RLE": dicom(phantom(), "1.2.840.10008.1.2.5"),
}


def dicom_jpeg(pixels: np.ndarray) -> bytes:
    """A DICOM file that holds a baseline JPEG, with half the colour columns as PS3.5 names it (YBR_FULL_422)."""
    stream = encoded(Image.fromarray(pixels), "JPEG", quality=100, subsampling=1)
    dataset = pydicom.dcmread(io.BytesIO(dicom(pixels)))
    dataset.file_meta.TransferSyntaxUID = UID("1.2.840.10008.1.2.4.50")
    dataset.PhotometricInterpretation, dataset.PixelData = "YBR_FULL_422", encapsulate([stream])
    buffer = io.BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def by_pillow(kind: str, **options: object) -> Callable[[np.ndarray], bytes]:
    return lambda pixels: encoded(Image.fromarray(pixels), kind, **options)


LOSSY: dict[str, Callable[[np.ndarray], bytes]] = {
    "JPEG": by_pillow("JPEG", **BEST),
    "JPEG, 4:2:2": by_pillow("JPEG", quality=100, subsampling=1),
    "JPEG, 4:2:0": by_pillow("JPEG", quality=100, subsampling=2),
    "JPEG, progressive": by_pillow("JPEG", progressive=True, **BEST),
    "JPEG, progressive, 4:2:0": by_pillow("JPEG", progressive=True, quality=100, subsampling=2),
    "JPEG, RGB inside": by_pillow("JPEG", keep_rgb=True, **BEST),
    "JPEG, grey": lambda pixels: encoded(Image.fromarray(pixels[:, :, 0]), "JPEG", **BEST),
    "JPEG, CMYK of Adobe": lambda pixels: encoded(Image.fromarray(255 - with_alpha(pixels), "CMYK"), "JPEG", **BEST),
    "JPEG, CMYK of others": lambda pixels: without_adobe_marker(255 - with_alpha(pixels)),
    "JPEG 2000, irreversible": by_pillow("JPEG2000", irreversible=True, quality_mode="dB", quality_layers=[70]),
    "TIFF, JPEG inside": by_pillow("TIFF", compression="jpeg", quality=100),
    "DICOM, JPEG, 4:2:2": dicom_jpeg,
    "WebP": by_pillow("WEBP", quality=100),
}
ENCODINGS = LOSSLESS | {name: encode(phantom()) for name, encode in LOSSY.items()}


@pytest.mark.parametrize("name", LOSSLESS)
def test_one_phantom_in_every_lossless_encoding_has_the_same_pixels(name: str) -> None:
    pixels = decode(LOSSLESS[name])
    expected = grey()[:, :, None] if pixels.shape[2] == 1 else phantom()
    if name in ("PNG, palette", "GIF"):
        expected = np.repeat(grey()[:, :, None], 3, axis=2)
    is_grey = any(word in name for word in ("grey", "white is zero", "MONOCHROME1"))
    assert pixels.shape[2] == (1 if is_grey else 3)
    assert np.array_equal(pixels, expected)
    if pixels.shape[2] == 3 and name not in ("PNG, palette", "GIF"):
        assert canonical(LOSSLESS[name], 256, 92, 10**8) == canonical(LOSSLESS["PNG"], 256, 92, 10**8)


def fields() -> np.ndarray:
    """A phantom that lossy codecs can keep: flat fields of 16 px of any colour, `(64, 96, 3)`.

    A flat block has no frequency to be rounded. What is left is the rounding of RGB to YCbCr and back: half a level
    of each makes at most 0.5 + 0.886 levels of blue (ITU-T T.871), so 1 of 255. Smooth colours lose up to 4 so.
    """
    colours = np.random.default_rng(0).integers(0, 256, (4, 6, 3), np.uint8)
    colours[0] = [(0, 0, 0), (255, 255, 255), (255, 0, 0), (0, 255, 0), (0, 0, 255), (200, 120, 100)]
    return np.kron(colours, np.ones((16, 16, 1), np.uint8))


@pytest.mark.parametrize("name", LOSSY)
def test_one_phantom_in_every_lossy_encoding_has_the_same_pixels_within_one_level(name: str) -> None:
    pixels = decode(LOSSY[name](fields()))
    assert pixels.shape == (64, 96, 1 if "grey" in name else 3)
    difference = np.abs(pixels.astype(int) - fields()[:, :, : pixels.shape[2]]).max(axis=2)
    # With fewer pixels of colour than of brightness, colour runs over the edge of a field, in any decoder.
    runs_over = any(word in name for word in ("4:2:", "WebP", "TIFF"))
    inside = difference.reshape(4, 16, 6, 16)[:, 2:-2, :, 2:-2] if runs_over else difference
    assert inside.max() <= 1


@pytest.mark.parametrize("quality", [100, 75])
@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("subsampling", [0, 1, 2, None])
def test_a_lossy_file_is_decoded_as_others_decode_it(quality: int, progressive: bool, subsampling: int | None) -> None:
    """What a codec itself lost stays lost; the rest is held against Pillow's and OpenCV's own decoders."""
    if subsampling is None:
        content = encoded(RGB, "WEBP", quality=quality, method=6 if progressive else 0)
    else:
        content = encoded(RGB, "JPEG", quality=quality, progressive=progressive, subsampling=subsampling)
    lost = np.abs(decode(content).astype(int) - phantom()).max()
    assert 1 < lost <= (8 if quality == 100 else 16)
    pillow = np.asarray(Image.open(io.BytesIO(content)).convert("RGB")).astype(int)
    opencv = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)
    assert opencv is not None
    for theirs in (pillow, opencv[:, :, ::-1].astype(int)):
        assert np.abs(decode(content) - theirs).max() <= 1


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_undone_and_gone(orientation: int, kind: str) -> None:
    content = encoded(
        Image.fromarray(smooth()), kind, exif=exif_of(orientation), **({"lossless": True} if kind == "WEBP" else {})
    )
    expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(content))))
    assert np.array_equal(decode(content), expected)
    assert np.array_equal(decode_stored(content), expected)
    stored = Image.open(io.BytesIO(canonical(content, 256, 92, 10**8).content))
    assert not stored.getexif()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_deep_colours_are_turned_once(orientation: int) -> None:
    content = io.BytesIO(by_opencv(deep(smooth()), ".tiff", cv2.IMWRITE_TIFF_COMPRESSION, 1))
    directory = int.from_bytes(content.getvalue()[4:8], "little")
    entry = struct.pack("<HHII", 0x0112, 3, 1, orientation)
    plain = content.getvalue()
    count = int.from_bytes(plain[directory : directory + 2], "little")
    entries = [plain[directory + 2 + 12 * i : directory + 14 + 12 * i] for i in range(count)]
    entries = sorted(
        [*(e for e in entries if e[:2] != entry[:2]), entry], key=lambda e: int.from_bytes(e[:2], "little")
    )
    moved = struct.pack("<H", len(entries)) + b"".join(entries) + bytes(4)
    turned = plain[:4] + struct.pack("<I", len(plain)) + plain[8:] + moved
    upright = encoded(Image.fromarray(smooth()), "PNG", exif=exif_of(orientation))
    assert np.array_equal(decode(turned), decode(upright))


def exif_of(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def test_an_orientation_in_xmp_counts_where_there_is_no_exif() -> None:
    xmp = b'<x:xmpmeta><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    content = encoded(Image.fromarray(smooth()), "JPEG", xmp=xmp)
    assert decode(content).shape == (60, 40, 3)
    assert decode_stored(content).shape == (60, 40, 3)


def test_a_damaged_exif_block_says_nothing() -> None:
    content = encoded(Image.fromarray(smooth()), "JPEG", exif=b"Exif\0\0" + b"II*\0\xff\xff\xff\xff" + bytes(9))
    assert decode(content).shape == (40, 60, 3)


def primaries(red: tuple[float, float], green: tuple[float, float], blue: tuple[float, float]) -> bytes:
    """A profile with these primaries, D65 and gamma 2.2, as monitors and cameras have them (ICC.1:2010)."""

    def xyz(x: float, y: float) -> np.ndarray:
        return np.array([x / y, 1, (1 - x - y) / y])

    matrix = np.stack([xyz(*red), xyz(*green), xyz(*blue)], axis=1)
    matrix = matrix * np.linalg.solve(matrix, xyz(0.3127, 0.3290))
    to_d50 = np.array([[1.0478, 0.0229, -0.0501], [0.0296, 0.9905, -0.0171], [-0.0092, 0.0151, 0.7517]])
    columns = (to_d50 @ matrix).T

    def number(value: float) -> bytes:
        return struct.pack(">i", round(value * 65536))

    def tag(values: np.ndarray) -> bytes:
        return b"XYZ \0\0\0\0" + b"".join(map(number, values))

    curve = b"curv\0\0\0\0" + struct.pack(">IH", 1, round(2.2 * 256)) + b"\0\0"
    text = b"desc\0\0\0\0" + struct.pack(">I", 2) + b"x\0" + bytes(78)
    parts = {b"desc": text, b"wtpt": tag(np.array([0.9642, 1, 0.8249])), b"cprt": b"text\0\0\0\0x\0\0\0"}
    parts |= {name: tag(column) for name, column in zip((b"rXYZ", b"gXYZ", b"bXYZ"), columns)}
    parts |= dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), curve)
    place, table, body = 128 + 4 + 12 * len(parts), b"", b""
    for name, part in parts.items():
        part += bytes(-len(part) % 4)
        table += name + struct.pack(">II", place + len(body), len(part))
        body += part
    head = struct.pack(">I", place + len(body)) + b"lcms\x02\x10\0\0mntrRGB XYZ " + bytes(12) + b"acsp" + bytes(28)
    head += number(0.9642) + number(1) + number(0.8249)
    return head + bytes(128 - len(head)) + struct.pack(">I", len(parts)) + table + body


SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
DISPLAY_P3 = primaries((0.680, 0.320), (0.265, 0.690), (0.150, 0.060))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_a_wide_gamut_photograph_is_turned_into_srgb(kind: str) -> None:
    skin = Image.new("RGB", (32, 32), (200, 120, 100))
    options = {"lossless": True} if kind == "WEBP" else {"quality": 100} if kind == "JPEG" else {}
    pixels = decode(encoded(skin, kind, icc_profile=DISPLAY_P3, **options))[16, 16].astype(int)
    assert np.abs(pixels - [214, 116, 95]).max() <= 2, "as the published matrices of both spaces have it"


# Named, since a profile holds the second in which it was made, and the processes that share the tests name them alike
@pytest.mark.parametrize(
    "profile",
    [SRGB, SRGB[:200], b"no profile at all", DISPLAY_P3[:140]],
    ids=["sRGB", "cut off", "no profile", "a wide gamut cut off"],
)
def test_srgb_and_broken_profiles_change_nothing(profile: bytes) -> None:
    for kind in ("JPEG", "PNG"):
        plain, tagged = (encoded(RGB, kind, **more) for more in ({}, {"icc_profile": profile}))
        assert np.array_equal(decode(tagged), decode(plain))


def test_one_bit_is_black_and_white() -> None:
    bits = Image.fromarray((grey() > 100).astype(np.uint8) * 255).convert("1")
    for kind, options in (("PNG", {}), ("TIFF", {}), ("TIFF", {"compression": "group4"}), ("BMP", {})):
        pixels = decode(encoded(bits, kind, **options))
        assert np.array_equal(pixels[:, :, 0] == 255, grey() > 100)
        assert set(np.unique(pixels)) == {0, 255}


def test_what_was_stored_is_read_without_a_look_at_its_header(monkeypatch: pytest.MonkeyPatch) -> None:
    stored = [canonical(ENCODINGS[name], 256, 92, 10**8).content for name in ("PNG", "PNG, grey")]
    expected = [np.asarray(Image.open(io.BytesIO(content)).convert("RGB")) for content in stored]
    monkeypatch.setattr(jpeg, "read_header", lambda _: pytest.fail("the slow way"))
    for content, pixels in zip(stored, expected):
        assert np.array_equal(decode_stored(content), pixels)


def test_foreign_formats_in_a_shard_are_decoded_as_an_import_would() -> None:
    for name in ("PNG", "JPEG, CMYK of Adobe", "WebP", "PNG, 16 bits"):
        assert np.array_equal(decode_stored(ENCODINGS[name]), decode(ENCODINGS[name]))


def test_a_16_bit_png_is_scaled_and_not_clipped() -> None:
    ramp = np.linspace(0, 65535, 256 * 64).reshape(64, 256).astype(np.uint16)
    pixels = decode(encoded(Image.fromarray(ramp), "PNG"))
    assert pixels.shape == (64, 256, 1)
    assert np.abs(pixels[:, :, 0].astype(float) - ramp / 257).max() <= 0.5


def test_twelve_bits_in_a_16_bit_png_keep_their_grey_levels() -> None:
    ramp = np.arange(4096, dtype=np.uint16).reshape(64, 64)
    pixels = decode(encoded(Image.fromarray(ramp), "PNG"))
    assert pixels.min() == 0
    assert pixels.max() == 255
    assert len(np.unique(pixels)) == 256


def test_cmyk_keeps_its_colours() -> None:
    content = encoded(Image.new("CMYK", (32, 32), (0, 255, 255, 0)), "JPEG", quality=95)
    assert np.abs(decode(content).astype(int).mean(axis=(0, 1)) - [255, 0, 0]).max() < 4


def test_grey_stays_one_channel_and_is_read_as_three_equal_ones() -> None:
    content = encoded(Image.fromarray(smooth()[:, :, 0]), "PNG")
    assert decode(content).shape == (40, 60, 1)
    back = decode_stored(canonical(content, 256, 92, 10**8).content)
    assert back.shape == (40, 60, 3)
    assert (back == back[:, :, :1]).all()


def test_palette_is_looked_up() -> None:
    image = Image.fromarray(np.tile(np.array([[0, 1]], np.uint8), (20, 10)), "P")
    image.putpalette([255, 0, 0, 0, 0, 255] + [0] * 762)
    pixels = decode(encoded(image, "PNG"))
    assert pixels[0, 0].tolist() == [255, 0, 0]
    assert pixels[0, 1].tolist() == [0, 0, 255]


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparency_is_laid_on_white_and_hides_nothing(mode: str) -> None:
    image = Image.new(mode, (20, 20), (10, 200, 30, 0) if mode == "RGBA" else (10, 0))
    assert (decode(encoded(image, "PNG")) == 255).all()


def test_a_transparent_colour_of_a_png_is_laid_on_white() -> None:
    content = encoded(Image.new("RGB", (8, 8), (10, 20, 30)), "PNG", transparency=(10, 20, 30))
    assert (decode(content) == 255).all()


def box(brand: bytes, others: bytes) -> bytes:
    """An ISO file as far as its brands go (ISO/IEC 14496-12, 4.3)."""
    return struct.pack(">I", 16 + len(others)) + b"ftyp" + brand + bytes(4) + others + bytes(400)


def bad_files() -> dict[str, tuple[bytes, str]]:
    jpeg = encoded(Image.fromarray(smooth(200, 200)), "JPEG")
    png = encoded(Image.effect_noise((80, 80), 50), "PNG")
    frames = [Image.fromarray(smooth()), Image.fromarray(255 - smooth())]
    return {
        "empty": (b"", "zero bytes"),
        "html": (b"<!DOCTYPE html><html>404</html>", "not an image"),
        "truncated jpeg": (jpeg[: len(jpeg) // 2], "truncated"),
        "truncated png": (png[: len(png) // 2], "truncated"),
        "several pages": (
            encoded(frames[0], "TIFF", save_all=True, append_images=frames[1:]),
            "several frames",
        ),
        "heic": (box(b"heic", b"mif1heic"), "HEIC is not read, convert it to JPEG"),
        "heif": (box(b"mif1", b"mif1heic"), "HEIC is not read, convert it to JPEG"),
        "avif": (box(b"avif", b"avifmif1"), "AVIF is not read, convert it to JPEG"),
        "avif in heif": (box(b"mif1", b"mif1avif"), "AVIF is not read, convert it to JPEG"),
        "a film": (box(b"qt  ", b"qt  "), "not an image"),
        "postscript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image"),
    }


@pytest.mark.parametrize("name", bad_files())
def test_a_bad_file_gives_its_reason(name: str) -> None:
    content, reason = bad_files()[name]
    with pytest.raises(BadImage) as caught:
        decode(content)
    assert caught.value.reason == reason


def chunk(kind: bytes, body: bytes) -> bytes:
    """One chunk of a PNG."""
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def test_too_large_is_known_from_the_header_alone() -> None:
    header = struct.pack(">IIBBBBB", 30000, 30000, 8, 2, 0, 0, 0)
    bomb = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")
    with pytest.raises(BadImage, match="too large"):
        decode(bomb)
    with pytest.raises(BadImage, match="too large"):
        decode(encoded(Image.fromarray(smooth()), "PNG"), max_pixels=100)


@functools.cache
def packed_100_mb() -> bytes:
    packer = zlib.compressobj()
    return b"".join([*(packer.compress(bytes(1_000_000)) for _ in range(100)), packer.flush()])


@pytest.mark.parametrize("before", [b"IDAT", b"IEND"])
@pytest.mark.parametrize(
    ("kind", "begins"),
    [(b"zTXt", b"a\0\0"), (b"iTXt", b"a\0\1\0\0\0"), (b"iCCP", b"a\0\0")],
    ids=["zTXt", "iTXt", "iCCP"],
)
def test_what_unpacks_to_100_mb_beside_a_png_s_pixels_is_not_unpacked(
    kind: bytes, begins: bytes, before: bytes
) -> None:
    content = encoded(Image.fromarray(smooth()), "PNG")
    place = content.index(before) - 4
    content = content[:place] + chunk(kind, begins + packed_100_mb()) + content[place:]
    assert len(content) < 1_000_000
    tracemalloc.start()
    with pytest.raises(BadImage, match="undecodable"):
        decode(content)
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak_bytes < 10_000_000


def claims(width: int, height: int) -> bytes:
    """One of our own JPEGs, of less than 1 KB, whose frame header says that it is this large."""
    content = bytearray(encode_jpeg(np.zeros((64, 64, 3), np.uint8), 90))
    place = content.find(b"\xff\xc0")
    content[place + 5 : place + 9] = struct.pack(">HH", height, width)
    return bytes(content)


@pytest.mark.parametrize("read", [decode, decode_stored])
@pytest.mark.parametrize("size", [(16_000, 16_000), (65_500, 65_500), (65_500, 3_100)])
def test_a_jpeg_that_claims_a_huge_size_is_refused_before_it_is_decoded(
    read: Callable[[bytes], np.ndarray], size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    content = claims(*size)
    assert len(content) < 1000
    monkeypatch.setattr(simplejpeg, "decode_jpeg", lambda *_, **__: pytest.fail("it was decoded"))
    with pytest.raises(BadImage, match="too large"):
        read(content)


def test_what_a_stored_jpeg_may_have_is_what_other_images_may(monkeypatch: pytest.MonkeyPatch) -> None:
    content = encode_jpeg(smooth())
    monkeypatch.setattr(images, "MAX_PIXELS", 40 * 60)
    assert decode_stored(content).shape == (40, 60, 3)
    monkeypatch.setattr(images, "MAX_PIXELS", 40 * 60 - 1)
    with pytest.raises(BadImage, match="too large"):
        decode_stored(content)


@pytest.mark.parametrize("marker", [b"\xff\x01", b"\xff\x00", b"\xff\xd0"])
def test_a_header_is_not_hidden_behind_a_marker_without_length(marker: bytes) -> None:
    huge, small = claims(16_000, 16_000), encode_jpeg(np.zeros((64, 64, 3), np.uint8))
    hidden = huge[2 : huge.find(b"\xff\xda") + 14]
    content = b"\xff\xd8" + marker + struct.pack(">H", len(hidden) + 2) + hidden + small[2:]
    assert jpeg.read_header(content) is None
    with pytest.raises(BadImage):
        decode(content)
    frame = small[small.find(b"\xff\xc0") :][:19]
    assert jpeg.read_header(small.replace(frame, frame + frame)) is None, "two sizes"


@given(st.data())
def test_damage_is_decoded_or_refused_and_never_anything_else(data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from(["JPEG", "PNG", "TIFF", "WEBP", "BMP"]))
    content = bytearray(encoded(Image.fromarray(smooth()), kind))
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    try:
        pixels = decode(bytes(content))
    except BadImage:
        return
    assert pixels.dtype == np.uint8
    assert pixels.ndim == 3


def with_metadata(kind: str) -> bytes:
    image = Image.fromarray(smooth())
    exif = Image.Exif()
    exif[0x010E] = CANARY.decode()
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes() + CANARY
    if kind == "PNG":
        texts = PngImagePlugin.PngInfo()
        texts.add_text("Patient", CANARY.decode())
        texts.add_itxt("XML:com.adobe.xmp", CANARY.decode())
        return encoded(image, kind, pnginfo=texts, exif=exif)
    return encoded(image, kind, comment=CANARY, exif=exif, icc_profile=profile, xmp=CANARY)


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_nothing_of_a_file_survives_but_its_pixels(kind: str) -> None:
    content = with_metadata(kind)
    assert CANARY in content
    stored = canonical(content + CANARY, 256, 92, 10**8).content
    assert CANARY not in stored
    segments = [stored[i + 1] for i in range(len(stored) - 1) if stored[i] == 0xFF]
    assert not {0xE1, 0xE2, 0xED, 0xFE} & set(segments[:8])
    assert set(Image.open(io.BytesIO(stored)).info) <= {"jfif", "jfif_version", "jfif_unit", "jfif_density"}


@given(st.integers(1, 90), st.integers(1, 90), st.integers(16, 64))
def test_shrinking_hits_the_short_side_and_never_enlarges(height: int, width: int, short_side: int) -> None:
    pixels = np.full((height, width, 3), 77, np.uint8)
    small = shrink(pixels, short_side)
    assert min(small.shape[:2]) == min(short_side, height, width)
    assert abs(small.shape[0] * width - small.shape[1] * height) <= max(height, width)
    assert (small == 77).all()


def test_shrinking_averages_what_it_leaves_out() -> None:
    board = (np.indices((64, 64)).sum(axis=0) % 2 * 255).astype(np.uint8)[:, :, None]
    assert np.abs(shrink(board, 16).astype(int) - 127).max() <= 1


def test_pixels_come_back_from_storage_nearly_unchanged() -> None:
    back = decode_stored(encode_jpeg(smooth()))
    assert np.abs(back.astype(int) - smooth()).mean() < 1.5


def test_the_pixel_hash_is_that_of_the_pixels_and_not_of_the_file() -> None:
    image = Image.fromarray(smooth(300, 400))
    as_png, as_bmp = (canonical(encoded(image, kind), 64, 92, 10**8) for kind in ("PNG", "BMP"))
    assert as_png == as_bmp
    other = smooth(300, 400)
    other[0, 0] ^= 1
    assert canonical(encoded(Image.fromarray(other), "PNG"), 64, 92, 10**8).pixel_sha256 != as_png.pixel_sha256


@pytest.mark.parametrize("bits", [10, 12, 14, 16])
def test_deep_values_fill_the_range_of_the_bits_that_they_use(bits: int) -> None:
    ramp = np.linspace(0, 2**bits - 1, 64 * 64).reshape(64, 64).astype(np.uint16)
    for kind in ("PNG", "TIFF"):
        pixels = decode(encoded(Image.fromarray(ramp), kind))[:, :, 0]
        assert np.abs(pixels - ramp / (2**bits - 1) * 255).max() <= 0.5


def with_significant_bits(png: bytes, bits: int) -> bytes:
    body = b"sBIT" + bytes([bits])
    return png[:33] + struct.pack(">I", 1) + body + struct.pack(">I", zlib.crc32(body)) + png[33:]


def test_the_bits_that_a_png_declares_count() -> None:
    dark = np.arange(900, dtype=np.uint16).reshape(30, 30)
    as_they_are = decode(with_significant_bits(encoded(Image.fromarray(dark), "PNG"), 12))[:, :, 0]
    assert np.abs(as_they_are - dark / 4095 * 255).max() <= 0.5, "12 bits, though 10 would do"
    for scaled in (dark << 4, dark << 4 | dark >> 8):  # the two ways of the standard
        found = decode(with_significant_bits(encoded(Image.fromarray(scaled), "PNG"), 12))[:, :, 0]
        assert np.abs(found.astype(int) - as_they_are).max() <= 1
    wrong = decode(with_significant_bits(encoded(Image.fromarray(dark), "PNG"), 9))[:, :, 0]
    assert np.array_equal(wrong, decode(encoded(Image.fromarray(dark), "PNG"))[:, :, 0]), "never clipped"


def test_a_grey_picture_saved_as_rgb_is_an_exact_copy() -> None:
    as_grey, as_rgb = (canonical(encoded(image, "PNG"), 64, 92, 10**8) for image in (GREY, GREY.convert("RGB")))
    assert as_grey.pixel_sha256 == as_rgb.pixel_sha256
    nearly = np.array(GREY.convert("RGB"))
    nearly[-2, 3, 2] ^= 1
    assert canonical(encoded(Image.fromarray(nearly), "PNG"), 64, 92, 10**8).pixel_sha256 != as_grey.pixel_sha256


def test_max_pixels_is_the_only_limit() -> None:
    wide = b"P4\n20000 9500\n" + bytes(20_000 * 9_500 // 8)  # one bit each; more than Pillow's own 179 megapixels
    with pytest.raises(BadImage, match="too large"):
        decode(wide, max_pixels=189_999_999)
    assert decode(wide, max_pixels=190_000_000).shape == (9_500, 20_000, 1)


def test_a_damaged_hdf5_chunk_is_told_with_its_file_and_the_mend(tmp_path: Path) -> None:
    path = tmp_path / "camelyonpatch_level_2_split_train_x.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("x", data=np.zeros((2, 96, 96, 3), np.uint8), chunks=(1, 96, 96, 3), compression="gzip")
        chunk = file["x"].id.get_chunk_info(1)  # pyright: ignore[reportAttributeAccessIssue]
    with path.open("r+b") as opened:
        opened.seek(chunk.byte_offset)
        opened.write(b"\xff" * chunk.size)
    assert not Patch(str(path), 0)().any()
    with pytest.raises(InputError, match=r"split_train_x\.h5 is damaged at patch 1; fetch the file again"):
        Patch(str(path), 1)()
