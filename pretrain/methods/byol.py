"""BYOL (Grill et al., 2020): a view's prediction is drawn to the other view's projection by a moving average.

There are no negatives, so groups do not matter. Views are drawn alike for both places; the paper's second one is
blurred less and solarised at times.
Shapes: V = 2 views, B samples on this rank, F encoder features, D projected features, G kinds of group.
"""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from pretrain.methods.method import Output
from pretrain.methods.momentum import MomentumMethod
from pretrain.stage import StageConfig


class BYOLConfig(StageConfig):
    """BYOL: predict what a moving average of the network says. The defaults are the paper's for 1,000 epochs."""

    method: Literal["byol"] = Field(default="byol", description="prediction of a moving average, without negatives")
    momentum: float = Field(
        default=0.996, ge=0, le=1, description="of the moving average at the start; 1 at the end, by a cosine"
    )
    projection_hidden: int = Field(default=4096, ge=1, description="width of the heads' hidden layers")
    projection_dim: int = Field(default=256, ge=1, description="width of the projection, on which the loss works")


class BYOL(MomentumMethod):
    """Online network (encoder, projection, prediction) and target network; the online encoder is handed on."""

    def __init__(self, config: BYOLConfig, encoder: nn.Module, num_features: int) -> None:
        from lightly.models.modules.heads import BYOLPredictionHead, BYOLProjectionHead

        hidden, dim = config.projection_hidden, config.projection_dim
        projection, prediction = BYOLProjectionHead(num_features, hidden, dim), BYOLPredictionHead(dim, hidden, dim)
        super().__init__(encoder, projection, prediction, config.momentum)

    def forward(self, views_VBCHW: Tensor, groups_VBG: Tensor) -> Output:
        """Equation 2 with either view as the predicted one, summed."""
        features_VBF, projected_VBD, predicted_VBD = self.predict(views_VBCHW)
        loss = squared_distance(predicted_VBD, self.targets(views_VBCHW).flip(0))
        return Output(loss, features_VBF.detach(), projected_VBD.detach())


def squared_distance(predicted_VBD: Tensor, targets_VBD: Tensor) -> Tensor:
    """2 - 2·cosine of rows, the squared distance of normalised ones, summed over views, mean over this rank's samples.

    In float32 whatever the autocast; the targets get no gradient.
    """
    with torch.autocast(predicted_VBD.device.type, enabled=False):
        cosines_VB = F.cosine_similarity(predicted_VBD.float(), targets_VBD.detach().float(), dim=2)
        return (2 - 2 * cosines_VB).mean(dim=1).sum()
