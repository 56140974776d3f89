"""What every method is to the training loop.

Shapes: V = 2 views, B samples on this rank, F encoder features, D projected features, G kinds of group.
"""

from typing import NamedTuple

from torch import Tensor, nn


class Output(NamedTuple):
    """A step's loss and, without gradient, what the monitors look at."""

    loss: Tensor
    features_VBF: Tensor
    projected_VBD: Tensor


class Method(nn.Module):
    """An encoder with all that trains it: heads, teachers, and the loss of this rank's share of a global batch.

    A subclass is one file. The mean of the ranks' losses, and of their gradients, must be that of one process with
    the whole batch. Whatever it holds is saved in checkpoints, so a resumed run goes on exactly.
    """

    encoder: nn.Module
    projection: nn.Module

    def forward(self, views_VBCHW: Tensor, groups_VBG: Tensor) -> Output:
        """Loss of this rank's normalised views; rows that share a group are one and the same to the method."""
        raise NotImplementedError

    def after_step(self, progress: float) -> None:
        """What follows an optimiser step, a momentum encoder say; `progress` is the share of the stage that is done."""

    def collapsed_loss(self, batch_size: int) -> float | None:
        """What the loss is where all images have the same projection, at a global batch of so many; None: not known."""
        return None

    @property
    def heads(self) -> dict[str, nn.Module]:
        """What the next stage takes over, besides the encoder, where the shapes agree."""
        return {"projection": self.projection}


def two_views(flat_ND: Tensor) -> Tensor:
    """(2·B, D), first views above second ones, as (2, B, D)."""
    return flat_ND.view(2, -1, flat_ND.shape[1])
