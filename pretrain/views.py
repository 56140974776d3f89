"""Views: drawn per view as a record of numbers, applied by pure functions.

A record depends on (seed, stage, position, view) and the image's size alone, never on a worker's state. The
crop is cut in the loader from uint8 pixels. The rest is applied either here, to a whole batch of floats on any
device, or in the loader (views_uint8.py). In this order: crop, flips, quarter turns, rotation, colour jitter,
greyscale, blur, solarisation, normalisation. Chen et al., 2020 (SimCLR), appendix A.
Shapes: B batch, H and W pixels, K record columns, N the views of a batch that one step is for.
"""

import itertools
import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from data.order import keyed_uniforms
from pretrain.colour_jitter import JITTER, greyscale, solarise
from pretrain.policies import ViewConfig
from pretrain.warps import blur, blur_taps, rotate

BOX = ("top", "left", "height", "width")
PLACE = ("flip_horizontal", "flip_vertical", "quarter_turns", "rotation_deg")
COLOUR = ("jitter", "order", *JITTER, "grey", "blur", "solarise")
COLUMNS = (*BOX, *PLACE, *COLOUR)
ORDERS = list(itertools.permutations(range(len(JITTER))))
CROP_TRIES = 10
GREY_WEIGHTS = (0.299, 0.587, 0.114)  # ITU-R BT.601
Chosen = dict[str | tuple[int, str], Tensor]


def draw(
    config: ViewConfig, size: tuple[int, int], seed: int, stage: int, position: int, view: int
) -> NDArray[np.float32]:
    """The record (K,) of one view of an image of size (height, width) px."""
    # A fixed number of draws a view, each for one thing, so that a change of one setting leaves the others alone.
    u = keyed_uniforms(2 * CROP_TRIES + 16, "view", seed, stage, position, view).tolist()
    rest = u[2 * CROP_TRIES :]
    top, left, crop_height, crop_width = _draw_crop(config, *size, u[: 2 * CROP_TRIES], rest[14:16])
    strength = config.jitter_strength
    low, high = config.blur_sigma
    record = {
        "top": top,
        "left": left,
        "height": crop_height,
        "width": crop_width,
        "flip_horizontal": rest[0] < config.flip_horizontal,
        "flip_vertical": rest[1] < config.flip_vertical,
        "quarter_turns": int(4 * rest[12]) if config.quarter_turns else 0,
        "rotation_deg": config.rotation_deg * (2 * rest[11] - 1),
        "jitter": rest[2] < config.jitter,
        "order": int(rest[3] * len(ORDERS)),
        "brightness": max(0.0, 1 + config.brightness * strength * (2 * rest[4] - 1)),
        "contrast": max(0.0, 1 + config.contrast * strength * (2 * rest[5] - 1)),
        "saturation": max(0.0, 1 + config.saturation * strength * (2 * rest[6] - 1)),
        "hue": config.hue * strength * (2 * rest[7] - 1),
        "grey": rest[8] < config.grey,
        "blur": (low + (high - low) * rest[10]) * config.size_px / 224 if rest[9] < config.blur else 0.0,
        "solarise": rest[13] < config.solarise,
    }
    return np.array([record[name] for name in COLUMNS], dtype=np.float32)


def _draw_crop(
    config: ViewConfig, height: int, width: int, tries: Sequence[float], place: Sequence[float]
) -> tuple[int, int, int, int]:
    """A box of random area and aspect inside the image, over its middle if that is kept.

    Where none fits, it is the largest centred box of an allowed aspect.
    """
    low, high = config.crop_area
    log_low, log_high = (math.log(limit) for limit in config.crop_aspect)
    first_row, last_row = _middle(height, config.keep_centre)
    first_column, last_column = _middle(width, config.keep_centre)
    for first, second in zip(tries[::2], tries[1::2]):
        area = height * width * (low + (high - low) * first)
        aspect = math.exp(log_low + (log_high - log_low) * second)
        crop_width, crop_height = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        holds = crop_width >= last_column - first_column and crop_height >= last_row - first_row
        if holds and 0 < crop_width <= width and 0 < crop_height <= height:
            top = _begin(crop_height, height, first_row, last_row, place[0])
            left = _begin(crop_width, width, first_column, last_column, place[1])
            return top, left, crop_height, crop_width
    # Rounded outwards on both sides, so that a middle that is kept lies inside
    crop_width = max(min(width, round(height * config.crop_aspect[1])), last_column - first_column)
    crop_height = max(min(height, round(width / config.crop_aspect[0])), last_row - first_row)
    return (height - crop_height) // 2, (width - crop_width) // 2, crop_height, crop_width


def _middle(side: int, share: float) -> tuple[int, int]:
    """The pixels, from and up to, of a centred share of a side; none of them (0, 0) for a share of 0."""
    if not share:
        return 0, 0
    first = math.floor((side - share * side) / 2 + 1e-6)
    return first, side - first


def _begin(crop: int, side: int, first: int, last: int, where: float) -> int:
    """Where a crop begins on a side, so that it lies inside and holds what is kept; `where` in [0, 1) chooses."""
    lowest, highest = max(0, last - crop), min(side - crop, first if last else side)
    return lowest + int(where * (highest - lowest + 1))


def apply(config: ViewConfig, crops_B3HW: Tensor, records_BK: Tensor, channels: int = 3) -> Tensor:
    """Finish uint8 crops by their records: float32 (B, channels, H, W) on the crops' device.

    Each view has its own numbers; apart from float rounding it equals torchvision's v2 functions applied to it
    alone. The records lie on the host, which chooses there what is done to which view: nothing waits for the device.
    """
    assert records_BK.device.type == "cpu"
    device = crops_B3HW.device
    number = dict(zip(COLUMNS, records_BK.to(device, non_blocking=True).unbind(1)))
    chosen = _chosen(records_BK.numpy(), device)
    x = crops_B3HW.clone(memory_format=torch.contiguous_format)
    _on_some(x, chosen.get("flip_horizontal"), lambda some: some.flip(3))
    _on_some(x, chosen.get("flip_vertical"), lambda some: some.flip(2))
    for turns in (1, 2, 3):
        _on_some(x, chosen.get((turns, "quarter_turns")), lambda some, turns=turns: some.rot90(turns, (2, 3)))
    x = x.float().div_(255)
    _with_number(x, chosen.get("rotation_deg"), number["rotation_deg"], rotate)
    for turn in range(len(JITTER)):
        for name, step in JITTER.items():
            _with_number(x, chosen.get((turn, name)), number[name], step)
    _on_some(x, chosen.get("grey"), lambda some: greyscale(some).expand_as(some))
    taps = blur_taps(config.size_px)
    _with_number(x, chosen.get("blur"), number["blur"], lambda some, sigma: blur(some, sigma, taps))
    _on_some(x, chosen.get("solarise"), solarise)
    return normalise(x, config.mean, config.std, channels)


def normalise(x_B3HW: Tensor, mean: Sequence[float], std: Sequence[float], channels: int = 3) -> Tensor:
    """(x - mean) / std per colour, of pixels in 0..1; with channels=1, of their grey by the first mean and std."""
    assert channels in (1, 3)
    if channels == 1:
        x_B3HW = _weighted(x_B3HW)
    if x_B3HW.device.type == "cpu":
        mean_C11, std_C11 = (torch.tensor(numbers[:channels]).view(-1, 1, 1) for numbers in (mean, std))
        return (x_B3HW - mean_C11).div_(std_C11)
    out = torch.empty_like(x_B3HW)
    for channel in range(channels):  # by numbers of the host: a tensor of them would have to be copied first
        torch.sub(x_B3HW[:, channel], mean[channel], out=out[:, channel]).div_(std[channel])
    return out


def _weighted(x_B3HW: Tensor) -> Tensor:
    """(B, 1, H, W) grey whose weights have the sum 1, so that equal colours stay as they are."""
    red, green, blue = GREY_WEIGHTS
    return (red * x_B3HW[:, 0] + green * x_B3HW[:, 1] + blue * x_B3HW[:, 2]).unsqueeze(1)


def _chosen(records_BK: NDArray[np.float32], device: torch.device) -> Chosen:
    """For each step the views that it is for, where there are any, as indices on the device: one copy of all."""
    column = dict(zip(COLUMNS, records_BK.T))
    masks: dict[str | tuple[int, str], NDArray[np.bool_]] = {
        name: column[name] != 0
        for name in ("flip_horizontal", "flip_vertical", "rotation_deg", "grey", "blur", "solarise")
    }
    masks |= {(turns, "quarter_turns"): column["quarter_turns"] == turns for turns in (1, 2, 3)}
    step_at = np.array(ORDERS)[column["order"].astype(int)]
    for place, (name, nothing) in enumerate(zip(JITTER, (1, 1, 1, 0))):
        changes = (column["jitter"] != 0) & (column[name] != nothing)
        masks |= {(turn, name): changes & (step_at[:, turn] == place) for turn in range(len(JITTER))}
    indices = {step: np.flatnonzero(mask) for step, mask in masks.items() if mask.any()}
    if not indices:
        return {}
    on_host = torch.from_numpy(np.concatenate(list(indices.values())))
    if device.type == "cuda" and torch.cuda.is_available():
        on_host = on_host.pin_memory()
    there = on_host.to(device, non_blocking=True).split([len(index) for index in indices.values()])
    return dict(zip(indices, there))


def _on_some(x_BCHW: Tensor, index_N: Tensor | None, step: Callable[[Tensor], Tensor]) -> None:
    """Change some views in place."""
    if index_N is not None:
        x_BCHW.index_copy_(0, index_N, step(x_BCHW.index_select(0, index_N)))


def _with_number(
    x_BCHW: Tensor, index_N: Tensor | None, number_B: Tensor, step: Callable[[Tensor, Tensor], Tensor]
) -> None:
    """Change some views in place, each by its own number."""
    if index_N is not None:
        _on_some(x_BCHW, index_N, lambda some: step(some, number_B.index_select(0, index_N)))
