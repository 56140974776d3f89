"""Mixup and cutmix: which image is mixed with which other, how, and what becomes of its truth.

All of it depends on (seed, position) alone. The partner is any other sample of the training set, read for this
position, so that no rank needs an image of another's and the mixture is the same for any number of workers.

Shapes: V images of a sample, B samples on this rank, C channels, H and W pixels, K labels.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from data.order import keyed_uniforms
from finetune.full_config import AugmentationConfig

COLUMNS = ("share", "top", "left", "height", "width")
"""Of a mixture: the sample's own share, and the box that the partner fills, px (0 px high: mixup)."""


def draw_mixing(config: AugmentationConfig, seed: int, position: int, size_px: int) -> NDArray[np.float32]:
    """The mixture at a position, (5,): mixup (Zhang et al., 2018) or cutmix (Yun et al., 2019, eq. 1 and 2)."""
    from scipy.special import betaincinv

    if not config.mixes:
        return np.array([1, 0, 0, 0, 0], dtype=np.float32)
    which, quantile, row, column = keyed_uniforms(4, "mix", seed, position).tolist()
    by_box = config.cutmix > 0 and (config.mixup == 0 or which < 0.5)
    alpha = config.cutmix if by_box else config.mixup
    share = float(betaincinv(alpha, alpha, quantile))
    if not by_box:
        return np.array([share, 0, 0, 0, 0], dtype=np.float32)
    side = size_px * np.sqrt(1 - share)
    top, bottom = (round(min(max(size_px * row + half, 0), size_px)) for half in (-side / 2, side / 2))
    left, right = (round(min(max(size_px * column + half, 0), size_px)) for half in (-side / 2, side / 2))
    height, width = bottom - top, right - left
    # What the box covers after it was cut at the border counts.
    return np.array([1 - height * width / size_px**2, top, left, height, width], dtype=np.float32)


def mix_images(images_VBCHW: Tensor, partners_VBCHW: Tensor, records_B5: Tensor) -> Tensor:
    """Each image with the partner's of the same number, by the sample's record; (V, B, C, H, W)."""
    share, top, left, height, width = records_B5.to(images_VBCHW.device)[:, :, None, None].unbind(1)
    size_px = images_VBCHW.shape[-1]
    side = torch.arange(size_px, device=images_VBCHW.device)
    inside_BHW = ((side[:, None] >= top) & (side[:, None] < top + height)) & (
        (side[None, :] >= left) & (side[None, :] < left + width)
    )
    own_BHW = torch.where(height > 0, (~inside_BHW).float(), share)
    return torch.lerp(partners_VBCHW, images_VBCHW, own_BHW[None, :, None])


def mix_truth(truth_BK: Tensor, partner_BK: Tensor, share_B: Tensor) -> Tensor:
    """Truth by the shares; unknown (NaN) where either is, unless its share is nothing."""
    share_B1 = share_B[:, None]
    mixed_BK = share_B1 * truth_BK + (1 - share_B1) * partner_BK
    return torch.where(share_B1 == 1, truth_BK, torch.where(share_B1 == 0, partner_BK, mixed_BK))
