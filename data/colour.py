"""Colour profiles: what a wide-gamut camera or scanner wrote, as sRGB.

A telephone's photographs are in Display P3: read as sRGB, red skin looks paler than it is. A profile that
says sRGB (most do) changes nothing; one that is damaged is passed over, as viewers do.
"""

import io
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms

Pixels = NDArray[np.uint8]
SAME_LEVELS = 2  # a profile that moves no colour further than this is sRGB under another name


def to_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """An RGB or CMYK image in sRGB; as it is where the profile is absent, sRGB, damaged or of another kind."""
    transform = _transform(profile, image.mode) if profile and image.mode in ("RGB", "CMYK") else None
    if transform is None:
        return image
    try:
        return ImageCms.applyTransform(image, transform) or image
    except ImageCms.PyCMSError:
        return image


def pixels_to_srgb(pixels: Pixels, profile: bytes) -> Pixels:
    """The same for `(H, W, 3)` pixels; grey ones, `(H, W, 1)`, stay as they are."""
    if not profile or pixels.shape[2] != 3 or _transform(profile, "RGB") is None:
        return pixels
    return np.asarray(to_srgb(Image.fromarray(pixels), profile))


@lru_cache(maxsize=16)
def _transform(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if source.profile.xcolor_space.strip() != mode:  # pyright: ignore[reportAttributeAccessIssue]
            return None
        transform = ImageCms.buildTransform(
            source, ImageCms.createProfile("sRGB"), mode, "RGB", ImageCms.Intent.RELATIVE_COLORIMETRIC
        )
        return None if mode == "RGB" and _changes_nothing(transform) else transform
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return None


def _changes_nothing(transform: ImageCms.ImageCmsTransform) -> bool:
    steps = np.linspace(0, 255, 9).astype(np.uint8)
    colours = np.stack(np.meshgrid(steps, steps, steps), axis=-1).reshape(27, 27, 3)
    moved = ImageCms.applyTransform(Image.fromarray(colours), transform)
    return moved is not None and int(np.abs(np.asarray(moved).astype(int) - colours).max()) <= SAME_LEVELS
