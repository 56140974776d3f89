"""Rotation and blur of a batch of float pixels, each view by its own number, as torchvision's v2 does them.

Shapes: N views, C colours, H and W pixels.
"""

import torch
from torch import Tensor


def rotate(x_NCHW: Tensor, degrees_N: Tensor) -> Tensor:
    """Rotate counter-clockwise about the centre, bilinear; what comes from outside is black."""
    num, _, height, width = x_NCHW.shape
    radians = torch.deg2rad(degrees_N.double())
    cos, sin = radians.cos().float(), radians.sin().float()
    # Where each pixel comes from, in pixels from the centre, then in shares of half a side
    rows = torch.linspace((1 - height) / 2, (height - 1) / 2, height, device=x_NCHW.device)
    columns = torch.linspace((1 - width) / 2, (width - 1) / 2, width, device=x_NCHW.device)
    from_column = torch.stack([cos / (0.5 * width), -sin / (0.5 * width)], 1)
    from_row = torch.stack([sin / (0.5 * height), cos / (0.5 * height)], 1)
    places = torch.stack([columns.expand(height, width), rows.unsqueeze(1).expand(height, width)], 2)
    grid = places.view(1, -1, 2).expand(num, -1, -1).bmm(torch.stack([from_column, from_row], 2))
    grid = grid.view(num, height, width, 2)
    return torch.nn.functional.grid_sample(x_NCHW, grid, "bilinear", "zeros", align_corners=False)


def blur_taps(size_px: int) -> int:
    """Kernel width: a tenth of the side, made odd (SimCLR)."""
    return max(3, size_px // 10 // 2 * 2 + 1)


def blur(x_NCHW: Tensor, sigma_N: Tensor, taps: int) -> Tensor:
    """A separable Gaussian of each view's own width in px, as two batched matrix products."""
    rows, columns = (_blur_matrix(sigma_N, side, taps).unsqueeze(1) for side in x_NCHW.shape[2:])
    return rows @ x_NCHW @ columns.transpose(2, 3)


def _blur_matrix(sigma_N: Tensor, side: int, taps: int) -> Tensor:
    """(N, side, side): row i holds the weights of pixel i's neighbours, borders reflected."""
    offsets = torch.arange(taps, device=sigma_N.device) - taps // 2
    weights = torch.exp(-0.5 * (offsets / sigma_N.view(-1, 1)) ** 2)
    weights = weights / weights.sum(1, keepdim=True)
    neighbours = torch.arange(side, device=sigma_N.device).view(-1, 1) + offsets
    neighbours = neighbours.abs()
    neighbours = torch.where(neighbours >= side, 2 * (side - 1) - neighbours, neighbours)
    matrix = sigma_N.new_zeros(len(sigma_N), side, side)
    index = neighbours.expand(len(sigma_N), -1, -1)
    return matrix.scatter_add_(2, index, weights[:, None, :].expand(-1, side, -1))
