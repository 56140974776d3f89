"""MoCo v3 (Chen, Xie and He, 2021): a view's prediction finds the other view's key among the global batch's keys.

Keys come from a momentum encoder, without gradient and without a queue. Views are drawn alike for both places; the
paper's second one is blurred less and solarised at times.
Shapes: V = 2 views, B samples on this rank, R samples over all ranks, D projected features, G kinds of group.
"""

import math
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from clusters.distributed import gather, rank
from pretrain.methods.method import Output
from pretrain.methods.momentum import MomentumMethod
from pretrain.stage import StageConfig


class MoCoV3Config(StageConfig):
    """MoCo v3: contrast with a momentum encoder. The defaults are the paper's for vision transformers."""

    method: Literal["moco_v3"] = Field(default="moco_v3", description="contrast with a momentum encoder")
    temperature: float = Field(default=0.2, ge=0.01, le=10, description="of the contrast; 1 for ResNet-50")
    momentum: float = Field(
        default=0.99, ge=0, le=1, description="of the momentum encoder at the start; 1 at the end, by a cosine"
    )
    projection_layers: int = Field(default=3, ge=2, description="layers of the projection head; 2 for ResNet-50")
    projection_hidden: int = Field(default=4096, ge=1, description="width of the heads' hidden layers")
    projection_dim: int = Field(default=256, ge=1, description="width of the projection, on which the loss works")


class MoCoV3(MomentumMethod):
    """Encoder, projection and prediction head with their momentum encoder (Algorithm 1 of the paper).

    A vision transformer's patch projection keeps the weights that it starts from (section 4.2: without that,
    training is unstable).
    """

    def __init__(self, config: MoCoV3Config, encoder: nn.Module, num_features: int) -> None:
        from timm.layers import PatchEmbed  # here, since timm takes seconds and configs do without it

        hidden, dim = config.projection_hidden, config.projection_dim
        projection = head(config.projection_layers, num_features, hidden, dim)
        super().__init__(encoder, projection, head(2, dim, hidden, dim), config.momentum)
        self.temperature = config.temperature
        patches = getattr(encoder, "patch_embed", None)
        if isinstance(patches, PatchEmbed):  # of a hybrid it is a whole ResNet, which must learn
            patches.requires_grad_(False)

    @staticmethod
    def loss_bytes(config: MoCoV3Config, num_samples: int, num_ranks: int) -> int:  # type: ignore[override]
        """All logits of both directions, and all ranks' keys."""
        return contrast_bytes(num_samples, num_ranks, config.projection_dim)

    def forward(self, views_VBCHW: Tensor, groups_VBG: Tensor) -> Output:
        """Algorithm 1: the contrast of each view's predictions with the other view's keys, summed."""
        features_VBF, projected_VBD, queries_VBD = self.predict(views_VBCHW)
        keys_VBD = self.targets(views_VBCHW)
        losses = [
            contrast(queries_VBD[query], keys_VBD[key], groups_VBG[query], groups_VBG[key], self.temperature)
            for query, key in ((0, 1), (1, 0))
        ]
        return Output(losses[0] + losses[1], features_VBF.detach(), projected_VBD.detach())

    def collapsed_loss(self, batch_size: int) -> float:
        """All keys equally likely, in both directions."""
        return 4 * self.temperature * math.log(batch_size)


def contrast(
    queries_BD: Tensor, keys_BD: Tensor, query_groups_BG: Tensor, key_groups_BG: Tensor, temperature: float
) -> Tensor:
    """2τ times the cross-entropy of finding each query's own key among all ranks' keys, mean over this rank's rows.

    `ctr` of Algorithm 1. Keys that share a group with the query, its own excepted, are left out: a sample that
    stands twice in a batch is no negative of itself. In float32 whatever the autocast; the keys get no gradient.
    """
    with torch.autocast(queries_BD.device.type, enabled=False):
        keys_RD = gather(F.normalize(keys_BD.detach().float(), dim=1))
        logits_BR = F.normalize(queries_BD.float(), dim=1) @ keys_RD.T / temperature
        own_B = torch.arange(len(queries_BD), device=queries_BD.device) + rank() * len(queries_BD)
        same_BR = (query_groups_BG[:, None] == gather(key_groups_BG)[None]).any(dim=2)
        others_BR = same_BR.scatter_(1, own_B[:, None], False)
        return 2 * temperature * F.cross_entropy(logits_BR.masked_fill(others_BR, -math.inf), own_B)


def contrast_bytes(num_samples: int, num_ranks: int, width: int) -> int:
    """The most that `contrast` of both directions holds at once, (B, R) of each: it is not cut into tiles.

    In the second direction's forward: log-probabilities in float32 and the mask of either direction, and of the second
    one the logits and those that are left.
    """
    all_samples = num_samples * num_ranks
    return (4 + 1 + 4 + 1 + 4 + 4) * num_samples * all_samples + 2 * 4 * all_samples * width


def head(num_layers: int, num_inputs: int, hidden: int, dim: int) -> nn.Module:
    """Linear maps, each with batch norm, all but the last with ReLU (section 3).

    The last batch norm has no scale of its own, as in the authors' code; lightly's MoCoProjectionHead has one.
    """
    from lightly.models.modules.heads import ProjectionHead

    widths = [num_inputs, *[hidden] * (num_layers - 1)]
    inner = [(width, hidden, nn.BatchNorm1d(hidden), nn.ReLU()) for width in widths[:-1]]
    return ProjectionHead([*inner, (widths[-1], dim, nn.BatchNorm1d(dim, affine=False), None)])
