"""NT-Xent over the global batch (Chen et al., 2020, equation 1), exact, in memory linear in the batch.

Shapes: n pairs on this rank, M = 2n rows on this rank, R rows over all ranks, D features, G kinds of group.
"""

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from clusters.distributed import gather, rank

# Elements of a tile of the similarity matrix: 64 MiB in float32, and at most so many rows.
TILE_ELEMENTS, TILE_ROWS = 1 << 24, 256


def nt_xent(first_nD: Tensor, second_nD: Tensor, temperature: float, groups: Tensor | None = None) -> Tensor:
    """Cross-entropy of finding a view's partner among all other views of the global batch, mean over this rank's 2n.

    Row i of `first_nD` and of `second_nD` are a positive pair; all ranks hold n rows. Rows are normalised
    here. Averaging the ranks' losses, and their gradients as data-parallel training does, gives those of one
    process with the whole batch.

    `groups` holds integers, (n,) for both views alike or (2n, G) with the second views below the first: rows
    that share one in any column are neither positive nor negative to each other, the partner excepted. So a
    sample that stands twice in a batch, as it may where two epochs meet, is no negative of itself.

    Computed in float32 whatever the autocast (in bfloat16 the gradient would be off by a percent), in tiles of
    rows, with one gather of rows, one of log-sum-exps, and no communication in backward. Raises ValueError for a
    temperature that is not positive and finite.
    """
    if not 0 < temperature < math.inf:
        raise ValueError(f"temperature {temperature}: must be positive and finite")
    with torch.autocast(first_nD.device.type, enabled=False):
        rows_MD = F.normalize(torch.cat([first_nD, second_nD]).float(), dim=1)
        if groups is not None:
            groups = groups.repeat(2)[:, None] if groups.dim() == 1 else groups
        return _NTXent.apply(rows_MD, temperature, groups)  # type: ignore[no-any-return]


class _NTXent(torch.autograd.Function):
    """The loss of normalised rows, first views above second ones, with its gradient written out.

    With S the similarities over the temperature τ and lse_i the log-sum-exp of row i, the loss is the mean of
    lse_i - S_i,partner(i). S is symmetric, so row j stands in its own term and, as a column, in every other
    row's: its gradient is [Σ_i (exp(S_ji - lse_j) + exp(S_ij - lse_i)) z_i - 2 z_partner(j)] / (M τ), scaled so
    that the mean over ranks is the gradient of the global mean.
    """

    @staticmethod
    def forward(ctx: Any, rows_MD: Tensor, temperature: float, groups_MG: Tensor | None) -> Tensor:
        all_RD = gather(rows_MD)
        all_groups_RG = None if groups_MG is None else gather(groups_MG)
        tiles = _Tiles(rows_MD, all_RD, temperature, groups_MG, all_groups_RG)
        lse_M = torch.cat([torch.logsumexp(tile, dim=1) for _, tile in tiles])
        groups = () if groups_MG is None else (groups_MG, all_groups_RG)
        ctx.save_for_backward(rows_MD, all_RD, lse_M, gather(lse_M), *groups)
        ctx.temperature = temperature
        return (lse_M - tiles.positive_M).mean()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        rows_MD, all_RD, lse_M, lse_R, *groups = ctx.saved_tensors
        with torch.autocast(rows_MD.device.type, enabled=False):
            tiles = _Tiles(rows_MD, all_RD, ctx.temperature, *(groups or (None, None)))
            pulls = []
            for some, tile in tiles:
                # As differences: exp(-lse) alone would overflow at low temperatures.
                weights = torch.sub(tile, lse_M[some, None]).exp_()
                weights += tile.sub_(lse_R).exp_()
                pulls.append(weights @ all_RD)
            gradient_MD = torch.cat(pulls).sub_(all_RD[tiles.partner_M], alpha=2)
        return gradient_MD * (gradients[0] / (len(rows_MD) * ctx.temperature)), None, None


class _Tiles:
    """Rows of S that belong to this rank, some at a time, -inf where two rows are not compared."""

    def __init__(
        self,
        rows_MD: Tensor,
        all_RD: Tensor,
        temperature: float,
        groups_MG: Tensor | None,
        all_groups_RG: Tensor | None,
    ) -> None:
        self.rows_MD, self.all_RD, self.temperature = rows_MD, all_RD, temperature
        self.groups_MG, self.all_groups_RG = groups_MG, all_groups_RG
        place = torch.arange(len(rows_MD), device=rows_MD.device)
        self.own_M = place + rank() * len(rows_MD)
        self.partner_M = self.own_M.roll(len(rows_MD) // 2)
        self.positive_M = (rows_MD * all_RD[self.partner_M]).sum(1) / temperature

    def __iter__(self) -> Any:
        size = max(1, min(TILE_ROWS, TILE_ELEMENTS // len(self.all_RD), len(self.rows_MD)))
        buffer = self.rows_MD.new_empty(size, len(self.all_RD))  # each tile overwrites the one before
        for start in range(0, len(self.rows_MD), size):
            some = slice(start, start + size)
            rows = self.rows_MD[some]
            tile = torch.mm(rows / self.temperature, self.all_RD.T, out=buffer[: len(rows)])
            if self.groups_MG is not None and self.all_groups_RG is not None:
                for mine, every in zip(self.groups_MG[some].T, self.all_groups_RG.T):
                    tile.masked_fill_(mine[:, None] == every, -math.inf)
                tile.scatter_(1, self.partner_M[some, None], self.positive_M[some, None])
            yield some, tile.scatter_(1, self.own_M[some, None], -math.inf)
