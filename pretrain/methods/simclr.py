"""SimCLR (Chen et al., 2020): two augmentations of one image are a positive pair.

Shapes: V = 2 views, B samples on this rank, D projected features, G kinds of group.
"""

from typing import Literal

from pydantic import Field
from torch import Tensor, nn

from data.combined import AnyDataset
from pretrain.losses import nt_xent
from pretrain.stage import Pair, Rows, Samples, StageConfig, Uniforms


class SimCLRConfig(StageConfig):
    """SimCLR: two augmentations of one image."""

    method: Literal["simclr"] = Field(default="simclr", description="two augmentations of one image")
    temperature: float = Field(default=0.1, ge=0.01, le=1, description="of NT-Xent")
    patient_mask: bool | Literal["even_slides"] = Field(
        default=False,
        description="leave other images of the same patient, and copies of the same picture, out of the negatives; "
        "refused where patients are slides of many patches, unless it is even_slides",
    )
    projection_hidden: int = Field(default=2048, ge=1, description="width of the projection head's hidden layer")
    projection_dim: int = Field(default=128, ge=1, description="width of the projection, on which the loss works")


class SimCLR(nn.Module):
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
    def pairing(config: SimCLRConfig, dataset: AnyDataset, samples: Samples) -> Pair:
        """Both views come from the sample's one image."""
        return one_image

    @staticmethod
    def remarks(config: SimCLRConfig, dataset: AnyDataset, samples: Samples) -> list[str]:
        """What a person should know of these samples before the stage starts. Raises InputError for bad ones."""
        return []

    def forward(self, views_VBCHW: Tensor, groups_VBG: Tensor) -> Tensor:
        """The loss of this rank's share, both views through the network in one batch."""
        projected_D = self.projection(self.encoder(views_VBCHW.flatten(0, 1)))
        first_BD, second_BD = projected_D.chunk(2)
        return nt_xent(first_BD, second_BD, self.temperature, groups_VBG.flatten(0, 1))


def one_image(sample: int, rows: Rows, turn: int, uniforms: Uniforms) -> tuple[int, int]:
    """The first row twice."""
    return int(rows[0]), int(rows[0])
