"""What every method is to the training loop.

Shapes: V = 2 views, B samples on this rank, F encoder features, D projected features, G kinds of group.
"""

from typing import Any, NamedTuple

from torch import Tensor, nn

from data.combined import AnyDataset
from pretrain.stage import Pair, Rows, Samples, Uniforms


class Output(NamedTuple):
    """A step's loss and, without gradient, what the monitors look at."""

    loss: Tensor
    features_VBF: Tensor
    projected_VBD: Tensor


class Method(nn.Module):
    """An encoder with all that trains it: heads, teachers, and the loss of this rank's share of a global batch.

    A subclass is one file. The mean of the ranks' losses, and of their gradients, must be that of one process with
    the whole batch. Whatever it holds is saved in checkpoints, so a resumed run goes on exactly. Of `encoder` the
    weights are handed on; where a method has several, it is the one that the optimiser trains.
    """

    encoder: nn.Module
    projection: nn.Module

    @staticmethod
    def samples(dataset: AnyDataset, rows: Rows) -> Samples:
        """One sample an image."""
        return Samples.group(rows, rows, dataset.shard_of[rows])

    @staticmethod
    def pairing(config: Any, dataset: AnyDataset, samples: Samples) -> Pair:
        """Both views come from the sample's one image."""
        return one_image

    @staticmethod
    def remarks(config: Any, dataset: AnyDataset, samples: Samples) -> list[str]:
        """What a person should know of these samples before the stage starts. Raises InputError for bad ones."""
        return []

    @staticmethod
    def loss_bytes(config: Any, num_samples: int, num_ranks: int) -> int:
        """The most that the loss holds at once on one of so many GPUs; 0 where it grows with the samples alone."""
        return 0

    def begin(self) -> None:
        """What follows once the weights that the stage starts from are loaded, and before any step."""

    def forward(self, views_VBCHW: Tensor, groups_VBG: Tensor) -> Output:
        """Loss of this rank's normalised views; rows that share a group are one and the same to the method."""
        raise NotImplementedError

    def after_step(self, progress: float, taken: Tensor) -> None:
        """What follows an optimiser step, a momentum encoder say.

        `progress` is the share of the stage that is done; `taken` is 0, on the device, where the step was left out
        because its gradient was not finite, else 1.
        """

    @property
    def heads(self) -> dict[str, nn.Module]:
        """What the next stage takes over, besides the encoder, where the shapes agree."""
        return {"projection": self.projection}

    def collapsed_loss(self, batch_size: int) -> float | None:
        """The loss where all images have one and the same projection; none where the loss does not tell it."""
        return None


def one_image(sample: int, rows: Rows, turn: int, uniforms: Uniforms) -> tuple[int, int]:
    """The first row twice."""
    return int(rows[0]), int(rows[0])


def two_views(flat_ND: Tensor) -> Tensor:
    """(2·B, D), first views above second ones, as (2, B, D)."""
    return flat_ND.view(2, -1, flat_ND.shape[1])
