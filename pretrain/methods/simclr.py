"""SimCLR (Chen et al., 2020): two augmentations of one image are a positive pair.

Shapes: V = 2 views, B samples on this rank, D projected features.
"""

from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator
from torch import Tensor, nn

from data.combined import AnyDataset
from pretrain.heads import projection_head
from pretrain.losses import nt_xent
from pretrain.stage import Rows, Samples, StageConfig


class SimCLRConfig(StageConfig):
    """SimCLR: two augmentations of one image."""

    method: Literal["simclr"] = Field(default="simclr", description="two augmentations of one image")
    temperature: float = Field(default=0.1, ge=0.01, le=1, description="of NT-Xent")
    projection_layers: Literal[2, 3] = Field(default=2, description="of the projection head; 3 as in SimCLR v2")
    projection_hidden: int = Field(default=2048, ge=1, description="width of the projection head's hidden layers")
    projection_dim: int = Field(default=128, ge=1, description="width of the projection, on which the loss works")

    @model_validator(mode="after")
    def _enough_layers(self) -> "SimCLRConfig":
        if self.keep_projection_layers > self.projection_layers:
            raise ValueError(f"keep_projection_layers: the projection head has {self.projection_layers} layers")
        return self


class SimCLR(nn.Module):
    """Encoder and projection head, trained by NT-Xent over the global batch."""

    def __init__(self, config: SimCLRConfig, encoder: nn.Module, num_features: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.projection = projection_head(
            num_features, config.projection_hidden, config.projection_dim, config.projection_layers
        )
        self.temperature = config.temperature

    @staticmethod
    def samples(dataset: AnyDataset, rows: Rows) -> Samples:
        """One sample an image."""
        return Samples.group(rows, rows, dataset.shard_of[rows])

    @staticmethod
    def pair(rows: Rows, uniforms: NDArray[np.float64]) -> tuple[int, int]:
        """Both views come from the sample's one image."""
        return int(rows[0]), int(rows[0])

    def forward(self, views_VBCHW: Tensor, samples_B: Tensor) -> Tensor:
        """The loss of this rank's share, both views through the network in one batch."""
        projected_D = self.projection(self.encoder(views_VBCHW.flatten(0, 1)))
        first_BD, second_BD = projected_D.chunk(2)
        return nt_xent(first_BD, second_BD, self.temperature, samples_B)
