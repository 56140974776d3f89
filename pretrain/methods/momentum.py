"""What MoCo v3 and BYOL share: a second network that follows the trained one, and predictions of what it says.

Shapes: V views, B samples on this rank, F encoder features, D projected features.
"""

import copy
import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from pretrain.methods.method import Method


class Predictions(NamedTuple):
    """What the trained network makes of the views, layer by layer."""

    features_VBF: Tensor
    projected_VBD: Tensor
    predicted_VBD: Tensor


class MomentumMethod(Method):
    """Trains encoder, projection and prediction head; targets are projections by a moving average of the first two.

    The averaged network takes no gradient, is in training mode (its batch norms use the batch, as the papers' do)
    and stays in this stage. Each view is a batch of its own to the batch norms, as in the papers.
    """

    def __init__(self, encoder: nn.Module, projection: nn.Module, prediction: nn.Module, momentum: float) -> None:
        super().__init__()
        self.encoder, self.projection, self.prediction = encoder, projection, prediction
        self.momentum = momentum
        self.target = copy.deepcopy(self._averaged()).requires_grad_(False)

    def begin(self) -> None:
        """The target begins as the trained network does."""
        self.target.load_state_dict(self._averaged().state_dict())

    def predict(self, views_VBCHW: Tensor) -> Predictions:
        """By the network that is trained."""
        features = [self.encoder(view_BCHW) for view_BCHW in views_VBCHW]
        projected = [self.projection(features_BF) for features_BF in features]
        predicted = [self.prediction(projected_BD) for projected_BD in projected]
        return Predictions(torch.stack(features), torch.stack(projected), torch.stack(predicted))

    @torch.no_grad()
    def targets(self, views_VBCHW: Tensor) -> Tensor:
        """(V, B, D) by the averaged network, without gradient."""
        return torch.stack([self.target(view_BCHW) for view_BCHW in views_VBCHW])

    @torch.no_grad()
    def after_step(self, progress: float, taken: Tensor) -> None:
        """The target goes towards the trained network, ever less: m·target + (1 - m)·trained, parameters alone."""
        share = taken * (1 - cosine_momentum(self.momentum, progress))
        target: list[Tensor] = list(self.target.parameters())
        trained: list[Tensor] = list(self._averaged().parameters())
        torch._foreach_lerp_(target, trained, [share] * len(target))

    @property
    def heads(self) -> dict[str, nn.Module]:
        """Projection and prediction."""
        return {"projection": self.projection, "prediction": self.prediction}

    def _averaged(self) -> nn.Module:
        return nn.Sequential(self.encoder, self.projection)


def cosine_momentum(start: float, progress: float) -> float:
    """From `start` to 1 by half a cosine; `progress` is the share of steps done (Grill et al., 2020, section 3.2)."""
    return 1 - (1 - start) * (math.cos(math.pi * progress) + 1) / 2
