import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageCms, ImageOps, PngImagePlugin

from data.images import BadImage, canonical, decode, decode_stored, encode_jpeg, shrink

CANARY = b"ZZPHICANARY"


def smooth(height: int = 40, width: int = 60) -> np.ndarray:
    y, x = np.mgrid[0:height, 0:width]
    return np.stack([x * 4, y * 6, (x + y) * 2], axis=2).clip(0, 255).astype(np.uint8)


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)  # pyright: ignore[reportArgumentType]
    return buffer.getvalue()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_undone_and_gone(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = encoded(Image.fromarray(smooth()), "PNG", exif=exif)
    expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(content))))
    assert np.array_equal(decode(content), expected)
    stored = Image.open(io.BytesIO(canonical(content, 256, 92, 10**8).content))
    assert not stored.getexif()


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
        "postscript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image"),
    }


@pytest.mark.parametrize("name", bad_files())
def test_a_bad_file_gives_its_reason(name: str) -> None:
    content, reason = bad_files()[name]
    with pytest.raises(BadImage) as caught:
        decode(content)
    assert caught.value.reason == reason


def test_too_large_is_known_from_the_header_alone() -> None:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", 30000, 30000, 8, 2, 0, 0, 0)
    bomb = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")
    with pytest.raises(BadImage, match="too large"):
        decode(bomb)
    with pytest.raises(BadImage, match="too large"):
        decode(encoded(Image.fromarray(smooth()), "PNG"), max_pixels=100)


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
