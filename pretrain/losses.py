"""NT-Xent over the global batch (Chen et al., 2020, equation 1), exact, in memory linear in the batch.

Shapes: n pairs on this rank, M = 2n rows on this rank, R rows over all ranks, D features, G kinds of group.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from clusters.distributed import gather, rank

# A tile of the similarity matrix: what a core's cache holds, or enough to keep a GPU busy (64 MiB).
TILE_ELEMENTS = {"cpu": 1 << 19, "cuda": 1 << 24}
TILE_ROWS = 512


def nt_xent(first_nD: Tensor, second_nD: Tensor, temperature: float, groups: Tensor | None = None) -> Tensor:
    """Cross-entropy of finding a view's partner among all other views of the global batch, mean over this rank's 2n.

    Row i of `first_nD` and of `second_nD` are a positive pair; all ranks hold n rows. Rows are normalised
    here. Averaging the ranks' losses, and their gradients as data-parallel training does, gives those of one
    process with the whole batch.

    `groups` holds integers, (n,) for both views alike or (2n, G) with the second views below the first: rows
    that share one in any column are neither positive nor negative to each other, the partner excepted. So a
    sample that stands twice in a batch, as it may where two epochs meet, is no negative of itself.

    Computed in float32 whatever the autocast (in bfloat16 the gradient would be off by a percent) and without TF32,
    in tiles, with one gather of rows, one of groups and one of log-sum-exps, and no communication in backward.
    Raises ValueError for a temperature that is not positive and finite.
    """
    if not 0 < temperature < math.inf:
        raise ValueError(f"temperature {temperature}: must be positive and finite")
    with torch.autocast(first_nD.device.type, enabled=False):
        rows_MD = F.normalize(torch.cat([first_nD, second_nD]).float(), dim=1)
        if groups is not None:
            groups = groups.repeat(2)[:, None] if groups.dim() == 1 else groups
        return _NTXent.apply(rows_MD, temperature, groups)  # type: ignore[no-any-return]


def nt_xent_bytes(num_pairs: int, num_ranks: int, width: int, device: str = "cuda") -> int:
    """The most that `nt_xent` holds at once, in backward: two tiles, two masks, all ranks' rows, five times its own."""
    rows, all_rows = 2 * num_pairs, 2 * num_pairs * num_ranks
    height = min(TILE_ROWS, num_pairs)
    tile = height * min(max(1, TILE_ELEMENTS[device] // height), all_rows)
    return (4 + 4 + 1 + 1) * tile + 4 * (all_rows + 5 * rows) * width


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
        groups = () if groups_MG is None else (groups_MG, gather(groups_MG))
        tiles = _Tiles(rows_MD, all_RD, temperature, *groups)
        with _full_float32():
            lse_M = tiles.log_sum_exp()
        positive_M = (rows_MD * tiles.partners_MD()).sum(1) / temperature
        ctx.save_for_backward(rows_MD, all_RD, lse_M, gather(lse_M), *groups)
        ctx.temperature = temperature
        return (lse_M - positive_M).mean()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        rows_MD, all_RD, lse_M, lse_R, *groups = ctx.saved_tensors
        tiles = _Tiles(rows_MD, all_RD, ctx.temperature, *groups)
        with torch.autocast(rows_MD.device.type, enabled=False), _full_float32():
            gradient_MD = tiles.pull(lse_M, lse_R).sub_(tiles.partners_MD(), alpha=2)
        return gradient_MD.mul_(gradients[0] / (len(rows_MD) * ctx.temperature)), None, None


class _Tiles:
    """Rows of S that belong to this rank, a tile at a time, -inf where two rows are not compared."""

    def __init__(
        self,
        rows_MD: Tensor,
        all_RD: Tensor,
        temperature: float,
        groups_MG: Tensor | None = None,
        all_groups_RG: Tensor | None = None,
    ) -> None:
        self._rows_MD, self._all_RD, self._temperature = rows_MD, all_RD, temperature
        self._groups_MG, self._all_groups_RG = groups_MG, all_groups_RG
        self._pairs, self._own = len(rows_MD) // 2, rank() * len(rows_MD)
        elements = TILE_ELEMENTS["cpu" if rows_MD.device.type == "cpu" else "cuda"]
        self._height = min(TILE_ROWS, self._pairs)
        self._width = min(max(1, elements // self._height), len(all_RD))

    def partners_MD(self) -> Tensor:
        """The other view of each row."""
        return self._rows_MD.roll(self._pairs, 0)

    def log_sum_exp(self) -> Tensor:
        """Of each row of S, (M,)."""
        lse_M = self._rows_MD.new_full((len(self._rows_MD),), -math.inf)
        for some, _, tile in self._tiles():
            lse_M[some] = torch.logaddexp(lse_M[some], tile.logsumexp(1))
        return lse_M

    def pull(self, lse_M: Tensor, lse_R: Tensor) -> Tensor:
        """Σ_i (exp(S_ji - lse_j) + exp(S_ji - lse_i)) z_i of each row j, (M, D)."""
        pull_MD = torch.zeros_like(self._rows_MD)
        spare = self._buffer()
        for some, columns, tile in self._tiles():
            # As differences: exp(-lse) alone would overflow at low temperatures.
            own_term = torch.sub(tile, lse_M[some, None], out=spare[: tile.numel()].view_as(tile)).exp_()
            tile.sub_(lse_R[columns]).exp_().add_(own_term)
            pull_MD[some].addmm_(tile, self._all_RD[columns])
        return pull_MD

    def _buffer(self) -> Tensor:
        return self._rows_MD.new_empty(self._height * self._width)

    def _tiles(self) -> Iterator[tuple[slice, slice, Tensor]]:
        """(rows, columns, tile): of first or of second views alone, so that partners stand on one diagonal."""
        buffer = self._buffer()  # each tile overwrites the one before
        for half, partner in ((0, self._pairs), (self._pairs, -self._pairs)):
            for row in range(half, half + self._pairs, self._height):
                some = slice(row, min(row + self._height, half + self._pairs))
                scaled = self._rows_MD[some] / self._temperature
                for column in range(0, len(self._all_RD), self._width):
                    columns = slice(column, column + self._width)
                    others = self._all_RD[columns]
                    tile = buffer[: len(scaled) * len(others)].view(len(scaled), len(others))
                    torch.mm(scaled, others.T, out=tile)
                    self._leave_out(tile, some, columns, self._own + row - column, partner)
                    yield some, columns, tile

    def _leave_out(self, tile: Tensor, some: slice, columns: slice, own: int, partner: int) -> None:
        """-inf for the row itself, on the diagonal `own`, and for its groups but not for its partner."""
        if self._groups_MG is not None and self._all_groups_RG is not None:
            same = torch.zeros_like(tile, dtype=torch.bool)
            for mine, every in zip(self._groups_MG[some].unbind(1), self._all_groups_RG[columns].unbind(1)):
                same |= mine[:, None] == every
            same.diagonal(own + partner).fill_(False)
            tile.masked_fill_(same, -math.inf)
        tile.diagonal(own).fill_(-math.inf)


@contextmanager
def _full_float32() -> Iterator[None]:
    """No TF32 nor bfloat16 inside matrix products, whatever the rest of the run allows."""
    backends = (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul)  # type: ignore[attr-defined]
    allowed = [backend.fp32_precision for backend in backends]
    for backend in backends:
        backend.fp32_precision = "ieee"
    try:
        yield
    finally:
        for backend, precision in zip(backends, allowed):
            backend.fp32_precision = precision
