"""Changes of colour on a batch of float pixels in 0..1, each view by its own number, as torchvision's v2 does them.

The steps may change the batch that they are given, which is a copy. Shapes: N views, H and W pixels.
"""

import torch
from torch import Tensor

GREY_WEIGHTS = (0.2989, 0.587, 0.114)  # ITU-R BT.601 as torchvision rounds it, so that white becomes 0.9999


def _brightness(x: Tensor, factor_N: Tensor) -> Tensor:
    return x.mul_(_wide(factor_N)).clamp_(0, 1)


def _contrast(x: Tensor, factor_N: Tensor) -> Tensor:
    return _blend(x, greyscale(x).mean(dim=(1, 2, 3), keepdim=True), factor_N)


def _saturation(x: Tensor, factor_N: Tensor) -> Tensor:
    return _blend(x, greyscale(x), factor_N)


def _hue(x: Tensor, turn_N: Tensor) -> Tensor:
    """Turn the hue by a share of the full circle, in HSV."""
    red, green, blue = x.unbind(1)
    lowest, value = torch.aminmax(x, dim=1)
    span = value - lowest
    safe = torch.where(span == 0, 1.0, span)
    from_red, from_green, from_blue = (value - red) / safe, (value - green) / safe, (value - blue) / safe
    hue = torch.where(
        red == value,
        from_blue - from_green,
        torch.where(green == value, 2 + from_red - from_blue, 4 + from_green - from_red),
    )
    hue = hue.div_(6).add_(turn_N.view(-1, 1, 1)).remainder_(1.0)
    # HSV → RGB, channel n: value - span·clamp(min(k, 4 - k), 0, 1), k = (n + 6·hue) mod 6; span is value·saturation.
    for channel, n in enumerate((5.0, 3.0, 1.0)):
        k = (6 * hue).add_(n).remainder_(6)
        x[:, channel] = value - torch.minimum(k, 4 - k).clamp_(0, 1).mul_(span)
    return x


JITTER = {"brightness": _brightness, "contrast": _contrast, "saturation": _saturation, "hue": _hue}


def greyscale(x: Tensor) -> Tensor:
    """(N, 1, H, W) grey."""
    red, green, blue = GREY_WEIGHTS
    return (red * x[:, 0]).add_(x[:, 1], alpha=green).add_(x[:, 2], alpha=blue).unsqueeze(1)


def solarise(x: Tensor) -> Tensor:
    """Invert what is brighter than half (BYOL, Grill et al., 2020, appendix B)."""
    return torch.where(x >= 0.5, 1 - x, x)


def _blend(x: Tensor, other: Tensor, share_N: Tensor) -> Tensor:
    share = _wide(share_N)
    return x.mul_(share).add_(other * (1 - share)).clamp_(0, 1)


def _wide(number_N: Tensor) -> Tensor:
    return number_N.view(-1, 1, 1, 1)
