"""What the features of a batch tell about a run: whether they still differ, and in how many directions.

Shapes: V views, B samples on this rank, P samples over all ranks, N = V·P, F encoder features, D projected features.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from clusters import distributed
from pretrain.methods.method import Output

MAX_ROWS = 512
"""Rows over all ranks that are looked at: the eigenvalues that RankMe needs take about 0.1 s of a CPU core then."""


def measure(output: Output) -> dict[str, float]:
    """Health of a step's features and projections over all ranks, by name; every rank calls it, rank 0 gets it.

    At most MAX_ROWS rows are looked at, of every rank equally many. Empty where features are not finite.
    """
    num_views, num_samples = output.projected_VBD.shape[:2]
    share = max(1, min(num_samples, MAX_ROWS // (num_views * distributed.world_size())))
    features_NF = _gathered(output.features_VBF[:, :share]).flatten(0, 1)
    projected_VPD = _gathered(output.projected_VBD[:, :share])
    if not distributed.is_main():
        return {}
    projected_ND = projected_VPD.flatten(0, 1)
    if not bool(features_NF.isfinite().all() & projected_ND.isfinite().all()):
        return {}
    figures = {
        "health/alignment": alignment(projected_VPD),
        "health/uniformity": uniformity(projected_VPD),
        "health/std_encoder": spread(features_NF),
        "health/std_projection": spread(projected_ND),
        "health/rankme_encoder": rankme(features_NF),
        "health/rankme_projection": rankme(projected_ND),
    }
    values = torch.stack([figure.float() for figure in figures.values()]).tolist()  # one wait for the device
    return dict(zip(figures, values))


def possible_directions(batch_size: int, width: int) -> int:
    """The largest value that RankMe of the projections can take in `measure`: its number of rows or of dimensions."""
    return min(MAX_ROWS, 2 * batch_size, width)


def alignment(projected_VPD: Tensor) -> Tensor:
    """Mean squared distance of a sample's two normalised views; 0 where all are alike.

    Wang & Isola, 2020, section 4.1: L_align with α = 2.
    """
    first_PD, second_PD = F.normalize(projected_VPD[:2].float(), dim=2)
    return (first_PD - second_PD).square().sum(1).mean()


def uniformity(projected_VPD: Tensor) -> Tensor:
    """Log of the mean of exp(-2·squared distance) over pairs of samples, mean over views; 0 where all are alike.

    Wang & Isola, 2020, section 4.1: L_uniform with t = 2. About -4 for points spread evenly in many dimensions. It
    hardly tells a few dimensions from many: that is RankMe's part.
    """
    unit_VPD = F.normalize(projected_VPD.float(), dim=2)
    return torch.stack([torch.pdist(view_PD).square().mul(-2).exp().mean().log() for view_PD in unit_VPD]).mean()


def spread(rows_ND: Tensor) -> Tensor:
    """Standard deviation of each dimension of the normalised rows, times √D, mean over dimensions.

    1 for directions drawn evenly, 0 where all rows point the same way (Chen & He, 2021, SimSiam, section 4.1).
    """
    unit_ND = F.normalize(rows_ND.float(), dim=1)
    return unit_ND.std(dim=0, correction=0).mean() * rows_ND.shape[1] ** 0.5


def rankme(rows_ND: Tensor) -> Tensor:
    """Exponential of the entropy of the normalised singular values: in how many directions the rows extend.

    Garrido et al., 2023. Not centred: taking the mean away from collapsed rows leaves noise, which has full rank.
    From the eigenvalues of the smaller Gram matrix, in float64, since they are the squares of what is sought.
    """
    rows = rows_ND.double()
    gram = rows @ rows.T if rows.shape[0] <= rows.shape[1] else rows.T @ rows
    singular = torch.linalg.eigvalsh(gram).clamp(min=0).sqrt()
    p = singular / singular.sum().clamp(min=1e-30) + 1e-7
    return torch.exp(-(p * p.log()).sum())


def _gathered(local_VBX: Tensor) -> Tensor:
    """Every rank's samples, (V, P, X) in float32."""
    return distributed.gather(local_VBX.float().transpose(0, 1).contiguous()).transpose(0, 1)
