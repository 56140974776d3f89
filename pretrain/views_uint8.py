"""A view's record applied to one uint8 crop with OpenCV: the path for runs without an accelerator.

It takes the same records as `views.apply` and gives the same views but for rounding to 8 bits after each
step and OpenCV's 8-bit hue; the tests measure and state the difference. Shapes: H and W pixels, K columns.
"""

import cv2
import numpy as np
from numpy.typing import NDArray

from pretrain.policies import ViewConfig
from pretrain.views import COLUMNS, GREY_WEIGHTS, ORDERS
from pretrain.warps import blur_taps

Pixels = NDArray[np.uint8]
LEVELS = np.arange(256, dtype=np.float32)
LEVELS_UINT8 = np.arange(256, dtype=np.uint8).reshape(1, -1)
SOLARISED = np.where(LEVELS_UINT8 > 127, 255 - LEVELS_UINT8, LEVELS_UINT8)
TURNS = (cv2.ROTATE_90_COUNTERCLOCKWISE, cv2.ROTATE_180, cv2.ROTATE_90_CLOCKWISE)


def apply_uint8(config: ViewConfig, crop_HWC: Pixels, record_K: NDArray[np.float32]) -> Pixels:
    """Finish one RGB crop by its record, all but the normalisation."""
    record: dict[str, float] = dict(zip(COLUMNS, record_K.tolist()))
    x = crop_HWC
    if record["flip_horizontal"]:
        x = cv2.flip(x, 1)
    if record["flip_vertical"]:
        x = cv2.flip(x, 0)
    if record["quarter_turns"]:
        x = cv2.rotate(x, TURNS[int(record["quarter_turns"]) - 1])
    if record["rotation_deg"]:
        x = _rotate(np.asarray(x, dtype=np.uint8), record["rotation_deg"])
    if record["jitter"]:
        x = _jitter(np.asarray(x, dtype=np.uint8), record)
    if record["grey"]:
        x = cv2.cvtColor(cv2.cvtColor(x, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    if record["blur"]:
        x = _blur(np.asarray(x, dtype=np.uint8), record["blur"], blur_taps(config.size_px))
    if record["solarise"]:
        x = cv2.LUT(x, SOLARISED)
    return np.asarray(x, dtype=np.uint8)


def _rotate(x: Pixels, degrees: float) -> Pixels:
    """Counter-clockwise about the centre, bilinear, black from outside."""
    height, width = x.shape[:2]
    turn = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), degrees, 1.0)
    return np.asarray(cv2.warpAffine(x, turn, (width, height), flags=cv2.INTER_LINEAR), dtype=np.uint8)


def _jitter(x: Pixels, record: dict[str, float]) -> Pixels:
    for number in ORDERS[int(record["order"])]:
        if number == 0:
            x = _levels(x, record["brightness"], 0.0)
        elif number == 1:
            red, green, blue = cv2.mean(x)[:3]
            x = _levels(x, record["contrast"], float(np.dot((red, green, blue), GREY_WEIGHTS)))
        elif number == 2 and record["saturation"] != 1:
            grey = cv2.cvtColor(cv2.cvtColor(x, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
            x = np.asarray(cv2.addWeighted(x, record["saturation"], grey, 1 - record["saturation"], 0), np.uint8)
        elif number == 3 and record["hue"]:
            x = _turn_hue(x, record["hue"])
    return x


def _levels(x: Pixels, factor: float, middle: float) -> Pixels:
    """Stretch the 256 levels about a middle one, rounded and clipped: what a look-up table gives, but sooner.

    OpenCV's weighted sum may round a level otherwise, or in the last few pixels; then the table is used.
    """
    table = middle + (LEVELS - middle) * factor
    entries = np.clip(np.rint(table), 0, 255).astype(np.uint8)
    shift = middle * (1 - factor)
    summed = cv2.addWeighted(LEVELS_UINT8, factor, LEVELS_UINT8, 0, shift)
    if x.size % len(LEVELS) == 0 and summed.tobytes() == entries.tobytes():
        return np.asarray(cv2.addWeighted(x, factor, x, 0, shift), dtype=np.uint8)
    return np.asarray(cv2.LUT(x, entries), dtype=np.uint8)


def _turn_hue(x: Pixels, shift: float) -> Pixels:
    hsv = np.asarray(cv2.cvtColor(x, cv2.COLOR_RGB2HSV_FULL), dtype=np.uint8)
    # uint8 wraps round, as hue does; whole rows at a time, since every third byte is slow
    turn = np.zeros(hsv[0].size, np.uint8)
    turn[::3] = round(shift * 256) % 256
    rows = hsv.reshape(len(hsv), -1)
    np.add(rows, turn, out=rows)
    return np.asarray(cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB_FULL), dtype=np.uint8)


def _blur(x: Pixels, sigma: float, taps: int) -> Pixels:
    """OpenCV's 8-bit Gaussian of so many taps, without those that are zero in 8 bits: the same result, sooner.

    The taps are seen from the response to one white pixel. Where fewer taps respond otherwise, since their sum is
    made 1, all are kept.
    """
    edge = cv2.BORDER_REFLECT_101
    point = np.zeros((1, 2 * taps + 1), np.uint8)
    point[0, taps] = 255
    wanted = cv2.GaussianBlur(point, (taps, 1), sigma, sigmaY=sigma, borderType=edge).tobytes()
    support = 1 + 2 * max(1, taps - len(wanted) + len(wanted.lstrip(b"\0")))
    for few in range(support, min(support + 6, taps), 2):
        if cv2.GaussianBlur(point, (few, 1), sigma, sigmaY=sigma, borderType=edge).tobytes() == wanted:
            taps = few
            break
    return np.asarray(cv2.GaussianBlur(x, (taps, taps), sigma, sigmaY=sigma, borderType=edge), dtype=np.uint8)
