"""NT-Xent over the global batch (Chen et al., 2020, equation 1).

Shapes: n pairs on this rank, N pairs over all ranks, D features.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from clusters.distributed import gather, gather_with_gradient, rank


def nt_xent(first_nD: Tensor, second_nD: Tensor, temperature: float, samples_n: Tensor | None = None) -> Tensor:
    """Cross-entropy of finding a view's partner among all other 2N - 1 views, mean over this rank's 2n.

    Row i of `first_nD` and of `second_nD` are a positive pair; all ranks hold n rows. Rows are normalised
    here. Averaging the ranks' losses, and their gradients as data-parallel training does, gives those of one
    process with the whole batch. `samples_n` says which sample each pair comes from: where one stands twice in
    a global batch, as it may where two epochs meet, its other views are neither positive nor negative.
    Computed in float32 whatever the autocast: in bfloat16 the gradient would be off by a percent.
    """
    with torch.autocast(first_nD.device.type, enabled=False):
        first_nD, second_nD = (F.normalize(rows.float(), dim=1) for rows in (first_nD, second_nD))
        all_first_ND, all_second_ND = gather_with_gradient(first_nD), gather_with_gradient(second_nD)
        n, total = len(first_nD), len(all_first_ND)
        logits = torch.cat([first_nD, second_nD]) @ torch.cat([all_first_ND, all_second_ND]).T / temperature
        own = torch.arange(n, device=logits.device) + rank() * n
        partner = torch.cat([own + total, own])
        if samples_n is None:
            samples_n = own
        same_nN = samples_n[:, None] == gather(samples_n)[None, :]
        excluded = same_nN.repeat(2, 2).scatter(1, partner[:, None], False)
        return F.cross_entropy(logits.masked_fill(excluded, float("-inf")), partner)
