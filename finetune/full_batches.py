"""Training batches of full fine-tuning: images, or whole cases, with their truth and weight.

Shapes: V images of a sample, B samples on this rank, C channels, H and W pixels, K labels.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from clusters import distributed
from data.combined import order_of
from data.loader import positions_of
from finetune.cohort import Cohort, Rows
from finetune.config import FinetuneConfig
from finetune.full_config import FullConfig
from finetune.mixing import draw_mixing, mix_images, mix_truth
from pretrain.batches import Batch, ViewBatches, finished_views
from pretrain.stage import Samples
from pretrain.views import ViewConfig


@dataclass(frozen=True)
class MixedBatch:
    """What the loader hands over: `views` has V images of each sample, then those of its partner if it is mixed."""

    views: Batch
    mixing_B5: Tensor

    def pin_memory(self) -> "MixedBatch":
        """For torch's DataLoader, where there is a GPU."""
        return MixedBatch(self.views.pin_memory(), self.mixing_B5.pin_memory())


class FullBatches:
    """`batches(step)` is this rank's share of the global batch; an epoch has every training image, or case, once."""

    def __init__(self, cohort: Cohort, views: ViewConfig, config: FinetuneConfig) -> None:
        dataset, settings = cohort.dataset, config.full
        groups = cohort.train if settings.pooling == "none" else dataset.case_of[cohort.train]
        self.samples = Samples.group(cohort.train, groups, dataset.shard_of[cohort.train])
        self._share = (settings.batch_size, distributed.rank(), distributed.world_size())
        self._mixing, self._seed, self._size_px = settings.augmentation, config.seed, views.size_px
        self._order = order_of(dataset, self.samples.shard_sizes, config.seed)
        images = (1 if settings.pooling == "none" else settings.images_per_case) * (
            2 if settings.augmentation.mixes else 1
        )
        self.num_bytes = settings.batch_size // distributed.world_size() * images * 3 * views.size_px**2
        self._views = ViewBatches(
            dataset, self.samples, Chosen(self.samples, settings), views, config.seed, 0, *self._share,
            augment=in_loader(),
        )  # fmt: skip

    def __call__(self, step: int) -> MixedBatch:
        """Read, decode and crop this rank's images of a step, and draw how they are mixed."""
        positions = positions_of(step, *self._share, self._order)
        records = [draw_mixing(self._mixing, self._seed, position, self._size_px) for position in positions.tolist()]
        return MixedBatch(self._views(step), torch.from_numpy(np.stack(records)))


class Chosen:
    """Which images of a sample stand in a batch, and which of a partner to mix them with; goes to loader processes."""

    def __init__(self, samples: Samples, settings: FullConfig) -> None:
        self._num_images = 1 if settings.pooling == "none" else settings.images_per_case
        self._partners = samples if settings.augmentation.mixes else None

    def __call__(self, sample: int, rows: Rows, turn: int, uniforms: Any) -> tuple[int, ...]:
        """Row numbers: all images of a case in an order drawn for the turn, from the start again if too few."""
        chosen = self._some(rows, uniforms(len(rows), "images", sample, turn))
        if self._partners is None:
            return chosen
        (where,) = uniforms(1, "partner", sample, turn)
        # Another sample, if there is one
        ahead = 1 + int(where * (len(self._partners) - 1))
        partner = self._partners[(sample + ahead) % len(self._partners)]
        return chosen + self._some(partner, uniforms(len(partner), "partner images", sample, turn))

    def _some(self, rows: Rows, order: NDArray[np.float64]) -> tuple[int, ...]:
        return tuple(np.resize(rows[np.argsort(order)], self._num_images).tolist())


class Targets:
    """Truth and weight of each training row, and what a batch is to be learned as."""

    def __init__(self, cohort: Cohort, config: FinetuneConfig) -> None:
        rows = cohort.train
        self.weight_of = np.zeros(cohort.dataset.num_images, dtype=np.float32)
        self.weight_of[rows] = cohort.training_weights(config.class_weighting)
        if config.full.pooling != "none":
            # A case weighs what its images weigh together.
            _, place = np.unique(cohort.dataset.case_of[rows], return_inverse=True)
            self.weight_of[rows] = np.bincount(place, self.weight_of[rows])[place]
        self._truth_of = cohort.truth

    def of(self, batch: MixedBatch) -> tuple[Tensor, Tensor]:
        """Truth (B, K), NaN where unknown, and weight (B,)."""
        rows_VB = batch.views.rows_VB.numpy()
        share_B = batch.mixing_B5[:, 0]
        truths = [torch.from_numpy(self._truth_of[rows_VB[v]]).float() for v in (0, -1)]
        weights = [torch.from_numpy(self.weight_of[rows_VB[v]]) for v in (0, -1)]
        return mix_truth(truths[0], truths[1], share_B), torch.lerp(weights[1], weights[0], share_B)


def training_images(batch: MixedBatch, views: ViewConfig, channels: int, mixes: bool) -> Tensor:
    """The batch's normalised images on this worker's device, mixed, (V, B, channels, H, W)."""
    images_VBCHW = finished_views(batch.views, views, distributed.device(), in_loader(), channels)
    if not mixes:
        return images_VBCHW
    own, partners = images_VBCHW.chunk(2)
    return mix_images(own, partners, batch.mixing_B5)


def in_loader() -> bool:
    """Without an accelerator, views are finished by the loader, in 8 bits: many times faster there."""
    return distributed.device().type == "cpu"
