"""Views: drawn per view as a record of numbers, applied by pure functions.

A record depends on (seed, stage, position, view) and the image's size alone, never on a worker's state. The
crop is cut in the loader from uint8 pixels; the rest is applied here to a whole batch of floats on any
device. Chen et al., 2020 (SimCLR), appendix A.
Shapes: B batch, C = 3 colours, H and W pixels, K record columns.
"""

import itertools
import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, PositiveFloat, model_validator
from torch import Tensor

from clusters.config import Config
from data.order import keyed_uniforms

BOX = ("top", "left", "height", "width")
COLOUR = ("jitter", "order", "brightness", "contrast", "saturation", "hue", "grey", "blur")
COLUMNS = (*BOX, "flip_horizontal", "flip_vertical", *COLOUR)
ORDERS = list(itertools.permutations(range(4)))
CROP_TRIES = 10
GREY_WEIGHTS = (0.299, 0.587, 0.114)  # ITU-R BT.601, as in torchvision


Range = tuple[PositiveFloat, PositiveFloat]


class ViewConfig(Config):
    """How a view is made from an image. The defaults are SimCLR's, plus a vertical flip."""

    size_px: int = Field(default=224, ge=8, description="side of a view, px")
    crop_area: Range = Field(default=(0.08, 1.0), description="share of the image's area that a crop keeps")
    crop_aspect: Range = Field(default=(3 / 4, 4 / 3), description="width / height of a crop")
    flip_horizontal: float = Field(default=0.5, ge=0, le=1, description="probability")
    flip_vertical: float = Field(default=0.5, ge=0, le=1, description="probability; lesions have no upright")
    jitter: float = Field(default=0.8, ge=0, le=1, description="probability of colour jitter")
    jitter_strength: float = Field(
        default=1.0, ge=0, le=1.25, description="1: brightness, contrast, saturation 0.8, hue 0.2"
    )
    grey: float = Field(default=0.2, ge=0, le=1, description="probability of greyscale")
    blur: float = Field(default=0.5, ge=0, le=1, description="probability of a Gaussian blur")
    blur_sigma: Range = Field(default=(0.1, 2.0), description="px at 224 px, scaled with size_px")
    mean: tuple[float, float, float] = Field(default=(0.485, 0.456, 0.406), description="per colour, of pixels in 0..1")
    std: tuple[float, float, float] = Field(default=(0.229, 0.224, 0.225), description="per colour, of pixels in 0..1")

    @model_validator(mode="after")
    def _low_to_high(self) -> "ViewConfig":
        for name in ("crop_area", "crop_aspect", "blur_sigma"):
            low, high = getattr(self, name)
            if low > high:
                raise ValueError(f"{name} must go from low to high")
        if self.crop_area[1] > 1:
            raise ValueError("crop_area is a share of the image's area: at most 1")
        return self


def draw(
    config: ViewConfig, size: tuple[int, int], seed: int, stage: int, position: int, view: int
) -> NDArray[np.float32]:
    """The record (K,) of one view of an image of size (height, width) px."""
    # A fixed number of draws a view, so that a change of one setting leaves the others' draws alone.
    u = keyed_uniforms(2 * CROP_TRIES + 16, "view", seed, stage, position, view).tolist()
    top, left, crop_height, crop_width = _draw_crop(config, *size, u[: 2 * CROP_TRIES], u[-2:])
    jitter = 0.8 * config.jitter_strength
    rest = u[2 * CROP_TRIES :]
    factors = [1 + jitter * (2 * rest[place] - 1) for place in (4, 5, 6)]
    low, high = config.blur_sigma
    record = {
        "top": top,
        "left": left,
        "height": crop_height,
        "width": crop_width,
        "flip_horizontal": rest[0] < config.flip_horizontal,
        "flip_vertical": rest[1] < config.flip_vertical,
        "jitter": rest[2] < config.jitter,
        "order": int(rest[3] * len(ORDERS)),
        "brightness": max(0.0, factors[0]),
        "contrast": max(0.0, factors[1]),
        "saturation": max(0.0, factors[2]),
        "hue": 0.2 * config.jitter_strength * (2 * rest[7] - 1),
        "grey": rest[8] < config.grey,
        "blur": (low + (high - low) * rest[10]) * config.size_px / 224 if rest[9] < config.blur else 0.0,
    }
    return np.array([record[name] for name in COLUMNS], dtype=np.float32)


def apply(config: ViewConfig, crops_BCHW: Tensor, records_BK: Tensor, channels: int = 3) -> Tensor:
    """Flips, colour jitter in each view's own order, greyscale, blur, normalisation.

    `crops_BCHW` are uint8 crops, the result is float32 of the same shape. Each view has its own numbers;
    apart from float rounding it equals torchvision's v2 functions applied to it alone.
    """
    x = crops_BCHW.float() / 255
    record = {name: records_BK[:, number] for number, name in enumerate(COLUMNS)}
    x = torch.where(_flag(record["flip_horizontal"]), x.flip(3), x)
    x = torch.where(_flag(record["flip_vertical"]), x.flip(2), x)
    x = _jitter(x, record)
    x = torch.where(_flag(record["grey"]), _grey(x).expand_as(x), x)
    x = _blur(x, record["blur"], blur_taps(config.size_px))
    return normalise(x, config.mean, config.std, channels)


def normalise(x_BCHW: Tensor, mean: tuple[float, ...], std: tuple[float, ...], channels: int = 3) -> Tensor:
    """(x - mean) / std per colour, of RGB pixels in 0..1; for one channel of their grey, by the first of each."""
    if channels == 1:
        return (_grey(x_BCHW) - mean[0]) / std[0]
    shape = (1, 3, 1, 1)
    return (x_BCHW - x_BCHW.new_tensor(mean).view(shape)) / x_BCHW.new_tensor(std).view(shape)


def _draw_crop(
    config: ViewConfig, height: int, width: int, tries: Sequence[float], place: Sequence[float]
) -> tuple[int, int, int, int]:
    """A box of random area and aspect inside the image; the largest allowed centred one if none fits."""
    low, high = config.crop_area
    log_low, log_high = (math.log(limit) for limit in config.crop_aspect)
    for first, second in zip(tries[::2], tries[1::2]):
        area = height * width * (low + (high - low) * first)
        aspect = math.exp(log_low + (log_high - log_low) * second)
        crop_width, crop_height = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < crop_width <= width and 0 < crop_height <= height:
            top = int(place[0] * (height - crop_height + 1))
            left = int(place[1] * (width - crop_width + 1))
            return top, left, crop_height, crop_width
    crop_width = min(width, round(height * config.crop_aspect[1]))
    crop_height = min(height, round(width / config.crop_aspect[0]))
    return (height - crop_height) // 2, (width - crop_width) // 2, crop_height, crop_width


def _jitter(x: Tensor, record: dict[str, Tensor]) -> Tensor:
    orders = torch.tensor(ORDERS, device=x.device)[record["order"].long()]
    steps = (_brightness, _contrast, _saturation, _hue)
    factors = [record[name] for name in ("brightness", "contrast", "saturation", "hue")]
    wanted = record["jitter"] > 0
    x = x.clone()
    for turn in range(4):
        for number, (step, factor) in enumerate(zip(steps, factors)):
            chosen = torch.nonzero(wanted & (orders[:, turn] == number)).flatten()
            if len(chosen):
                x[chosen] = step(x[chosen], factor[chosen].view(-1, 1, 1, 1))
    return x


def _brightness(x: Tensor, factor: Tensor) -> Tensor:
    return (x * factor).clamp(0, 1)


def _contrast(x: Tensor, factor: Tensor) -> Tensor:
    return torch.lerp(_grey(x).mean(dim=(1, 2, 3), keepdim=True), x, factor).clamp(0, 1)


def _saturation(x: Tensor, factor: Tensor) -> Tensor:
    return torch.lerp(_grey(x), x, factor).clamp(0, 1)


def _hue(x: Tensor, shift: Tensor) -> Tensor:
    """Turn the hue by `shift` of the full circle, in HSV."""
    red, green, blue = x.unbind(1)
    value, minimum = x.amax(1), x.amin(1)
    span = value - minimum
    safe = torch.where(span == 0, torch.ones_like(span), span)
    saturation = span / torch.where(value == 0, torch.ones_like(value), value)
    from_red, from_green, from_blue = (value - red) / safe, (value - green) / safe, (value - blue) / safe
    hue = torch.where(
        red == value,
        from_blue - from_green,
        torch.where(green == value, 2 + from_red - from_blue, 4 + from_green - from_red),
    )
    hue = (hue / 6 + shift.squeeze(1)) % 1.0
    # HSV → RGB, channel n: value - value·saturation·clamp(min(k, 4 - k), 0, 1), k = (n + 6·hue) mod 6.
    n = x.new_tensor([5.0, 3.0, 1.0]).view(1, 3, 1, 1)
    k = (n + 6 * hue.unsqueeze(1)) % 6
    return value.unsqueeze(1) - (value * saturation).unsqueeze(1) * torch.minimum(k, 4 - k).clamp(0, 1)


def _grey(x: Tensor) -> Tensor:
    red, green, blue = GREY_WEIGHTS
    return (red * x[:, 0] + green * x[:, 1] + blue * x[:, 2]).unsqueeze(1)


def blur_taps(size_px: int) -> int:
    """Kernel width: a tenth of the side, made odd (SimCLR)."""
    return max(3, size_px // 10 // 2 * 2 + 1)


def _blur(x: Tensor, sigma: Tensor, taps: int) -> Tensor:
    """A separable Gaussian of each view's own width, as two batched matrix products."""
    chosen = torch.nonzero(sigma > 0).flatten()
    if not len(chosen):
        return x
    rows, columns = (_blur_matrix(sigma[chosen], side, taps) for side in x.shape[2:])
    x = x.clone()
    x[chosen] = rows.unsqueeze(1) @ x[chosen] @ columns.unsqueeze(1).transpose(2, 3)
    return x


def _blur_matrix(sigma: Tensor, side: int, taps: int) -> Tensor:
    """(B, side, side): row i holds the weights of pixel i's neighbours, borders reflected."""
    offsets = torch.arange(taps, device=sigma.device) - taps // 2
    weights = torch.exp(-0.5 * (offsets / sigma.view(-1, 1)) ** 2)
    weights = weights / weights.sum(1, keepdim=True)
    neighbours = torch.arange(side, device=sigma.device).view(-1, 1) + offsets
    neighbours = neighbours.abs()
    neighbours = torch.where(neighbours >= side, 2 * (side - 1) - neighbours, neighbours)
    matrix = sigma.new_zeros(len(sigma), side, side)
    return matrix.scatter_add_(2, neighbours.expand(len(sigma), -1, -1), weights[:, None, :].expand(-1, side, -1))


def _flag(column: Tensor) -> Tensor:
    return (column > 0).view(-1, 1, 1, 1)
