"""SimCLR (Chen et al., 2020): two augmentations of one image are a positive pair.

Shapes: V = 2 views, B samples on this rank, N = V·B, F encoder features, D projected features, G kinds of group.
"""

import math
from typing import Literal

from pydantic import Field, model_validator
from torch import Tensor, nn

from pretrain.heads import projection_head
from pretrain.losses import nt_xent, nt_xent_bytes
from pretrain.methods.method import Method, Output, two_views
from pretrain.stage import StageConfig


class SimCLRConfig(StageConfig):
    """SimCLR: two augmentations of one image."""

    method: Literal["simclr"] = Field(default="simclr", description="two augmentations of one image")
    temperature: float = Field(default=0.1, ge=0.01, le=1, description="of NT-Xent")
    patient_mask: bool | Literal["even_slides"] = Field(
        default=False,
        description="leave other images of the same patient, and copies of the same picture, out of the negatives; "
        "refused where patients are slides of many patches, unless it is even_slides",
    )
    projection_layers: Literal[2, 3] = Field(default=2, description="of the projection head; 3 as in SimCLR v2")
    projection_hidden: int = Field(default=2048, ge=1, description="width of the projection head's hidden layers")
    projection_dim: int = Field(default=128, ge=1, description="width of the projection, on which the loss works")

    @model_validator(mode="after")
    def _enough_layers(self) -> "SimCLRConfig":
        if self.keep_projection_layers > self.projection_layers:
            raise ValueError(f"keep_projection_layers: the projection head has {self.projection_layers} layers")
        return self


class SimCLR(Method):
    """Encoder and projection head, trained by NT-Xent over the global batch."""

    def __init__(self, config: SimCLRConfig, encoder: nn.Module, num_features: int) -> None:
        super().__init__()
        self.encoder = encoder
        hidden, dim = config.projection_hidden, config.projection_dim
        self.projection = projection_head(num_features, hidden, dim, config.projection_layers)
        self.temperature = config.temperature

    @staticmethod
    def loss_bytes(config: SimCLRConfig, num_samples: int, num_ranks: int) -> int:  # type: ignore[override]
        """Tiles of the similarities, and all ranks' projections."""
        return nt_xent_bytes(num_samples, num_ranks, config.projection_dim)

    def forward(self, views_VBCHW: Tensor, groups_VBG: Tensor) -> Output:
        """The loss of this rank's share, both views through the network in one batch."""
        features_NF = self.encoder(views_VBCHW.flatten(0, 1))
        projected_VBD = two_views(self.projection(features_NF))
        loss = nt_xent(projected_VBD[0], projected_VBD[1], self.temperature, groups_VBG.flatten(0, 1))
        return Output(loss, two_views(features_NF).detach(), projected_VBD.detach())

    def collapsed_loss(self, batch_size: int) -> float:
        """All other views equally likely to be the partner."""
        return math.log(2 * batch_size - 1)
