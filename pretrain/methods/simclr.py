"""SimCLR (Chen et al., 2020): two augmentations of one image are a positive pair.

Shapes: V = 2 views, B samples on this rank, N = V·B, F encoder features, D projected features, G kinds of group.
"""

import math
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor, nn

from data.combined import AnyDataset
from pretrain.losses import nt_xent
from pretrain.methods.method import Method, Output, two_views
from pretrain.stage import Rows, Samples, StageConfig


class SimCLRConfig(StageConfig):
    """SimCLR: two augmentations of one image."""

    method: Literal["simclr"] = Field(default="simclr", description="two augmentations of one image")
    temperature: float = Field(default=0.1, ge=0.01, le=1, description="of NT-Xent")
    projection_hidden: int = Field(default=2048, ge=1, description="width of the projection head's hidden layer")
    projection_dim: int = Field(default=128, ge=1, description="width of the projection, on which the loss works")


class SimCLR(Method):
    """Encoder and projection head, trained by NT-Xent over the global batch."""

    def __init__(self, config: SimCLRConfig, encoder: nn.Module, num_features: int) -> None:
        from lightly.models.modules.heads import SimCLRProjectionHead

        super().__init__()
        self.encoder = encoder
        self.projection = SimCLRProjectionHead(num_features, config.projection_hidden, config.projection_dim)
        self.temperature = config.temperature

    @staticmethod
    def samples(dataset: AnyDataset, rows: Rows) -> Samples:
        """One sample an image."""
        return Samples.group(rows, rows, dataset.shard_of[rows])

    @staticmethod
    def pair(rows: Rows, uniforms: NDArray[np.float64]) -> tuple[int, int]:
        """Both views come from the sample's one image."""
        return int(rows[0]), int(rows[0])

    def forward(self, views_VBCHW: Tensor, groups_VBG: Tensor) -> Output:
        """The loss of this rank's share, both views through the network in one batch."""
        features_NF = self.encoder(views_VBCHW.flatten(0, 1))
        projected_VBD = two_views(self.projection(features_NF))
        loss = nt_xent(projected_VBD[0], projected_VBD[1], self.temperature, groups_VBG.flatten(0, 1))
        return Output(loss, two_views(features_NF).detach(), projected_VBD.detach())

    def collapsed_loss(self, batch_size: int) -> float:
        """The partner is one of 2N - 1 views that look alike."""
        return math.log(2 * batch_size - 1)
