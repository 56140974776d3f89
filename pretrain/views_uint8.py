"""A view's record applied to one uint8 crop with OpenCV: the path for runs without an accelerator.

It takes the same records as `views.apply` and gives the same views but for rounding to 8 bits after each
step and OpenCV's 8-bit hue; the tests measure and state the difference. Shapes: H and W pixels, K columns.
"""

import cv2
import numpy as np
from numpy.typing import NDArray

from pretrain.views import COLUMNS, GREY_WEIGHTS, ORDERS, ViewConfig, blur_taps

Pixels = NDArray[np.uint8]
LEVELS = np.arange(256, dtype=np.float32)


def apply_uint8(config: ViewConfig, crop_HWC: Pixels, record_K: NDArray[np.float32]) -> Pixels:
    """Flips, colour jitter in the view's own order, greyscale and blur of one RGB crop."""
    record: dict[str, float] = dict(zip(COLUMNS, record_K.tolist()))
    x = crop_HWC
    if record["flip_horizontal"]:
        x = cv2.flip(x, 1)
    if record["flip_vertical"]:
        x = cv2.flip(x, 0)
    if record["jitter"]:
        x = _jitter(np.asarray(x, dtype=np.uint8), record)
    if record["grey"]:
        x = cv2.cvtColor(cv2.cvtColor(x, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    if record["blur"]:
        taps, sigma = blur_taps(config.size_px), record["blur"]
        x = cv2.GaussianBlur(x, (taps, taps), sigma, sigmaY=sigma, borderType=cv2.BORDER_REFLECT_101)
    return np.asarray(x, dtype=np.uint8)


def _jitter(x: Pixels, record: dict[str, float]) -> Pixels:
    for number in ORDERS[int(record["order"])]:
        if number == 0:
            x = _levels(x, LEVELS * record["brightness"])
        elif number == 1:
            red, green, blue = cv2.mean(x)[:3]
            mean = float(np.dot((red, green, blue), GREY_WEIGHTS))
            x = _levels(x, mean + (LEVELS - mean) * record["contrast"])
        elif number == 2:
            grey = cv2.cvtColor(cv2.cvtColor(x, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
            x = np.asarray(cv2.addWeighted(x, record["saturation"], grey, 1 - record["saturation"], 0), np.uint8)
        else:
            x = _turn_hue(x, record["hue"])
    return x


def _levels(x: Pixels, table: NDArray[np.floating]) -> Pixels:
    """Map each of the 256 levels through a table, rounded and clipped."""
    entries = np.clip(np.rint(table), 0, 255).astype(np.uint8)
    return np.asarray(cv2.LUT(x, entries), dtype=np.uint8)


def _turn_hue(x: Pixels, shift: float) -> Pixels:
    hsv = np.asarray(cv2.cvtColor(x, cv2.COLOR_RGB2HSV_FULL), dtype=np.uint8)
    hsv[..., 0] += np.uint8(round(shift * 256) % 256)  # uint8 wraps round, as hue does
    return np.asarray(cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB_FULL), dtype=np.uint8)
