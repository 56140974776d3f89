"""A training batch as a pure function of its step: which samples, which pairs, which views.

Shapes: V views, B samples on this rank, H and W pixels, K record columns.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from data.dataset import Dataset
from data.images import decode_stored
from data.loader import crop_and_resize, positions_of
from data.order import Order, keyed_uniforms
from pretrain.stage import Rows, Samples
from pretrain.views import BOX, ViewConfig, apply, draw, normalise
from pretrain.views_uint8 import apply_uint8

Pair = Callable[[Rows, NDArray[np.float64]], tuple[int, ...]]


@dataclass(frozen=True)
class Batch:
    """What the loader hands to the training loop."""

    samples_B: Tensor
    rows_VB: Tensor
    crops_VBCHW: Tensor
    records_VBK: Tensor

    def pin_memory(self) -> "Batch":
        """For torch's DataLoader, where there is a GPU."""
        pinned = (t.pin_memory() for t in (self.samples_B, self.rows_VB, self.crops_VBCHW, self.records_VBK))
        return Batch(*pinned)


class ViewBatches:
    """`batches(step)` is this rank's share of the global batch at a step, whoever asks and whenever.

    With `augment` the crops come out as finished uint8 views; otherwise the rest of each record is left to
    the accelerator.
    """

    def __init__(
        self,
        dataset: Dataset,
        samples: Samples,
        pair: Pair,
        views: ViewConfig,
        seed: int,
        stage: int,
        batch_size: int,
        rank: int,
        world_size: int,
        augment: bool,
    ) -> None:
        self._dataset, self._samples, self._pair, self._views = dataset, samples, pair, views
        self._seed, self._stage = seed, stage
        self._share = (batch_size, rank, world_size)
        self._augment = augment
        self._order = Order(samples.shard_sizes, seed=seed)

    def __call__(self, step: int) -> Batch:
        """Read, decode and crop this rank's views of a step."""
        positions = positions_of(step, *self._share)
        rows, crops, records = [], [], []
        samples = self._order.at(positions)
        for position, sample in zip(positions, samples):
            chosen = self._pair(
                self._samples[int(sample)], keyed_uniforms(4, "pair", self._seed, self._stage, int(position))
            )
            rows.append(chosen)
            views = self._make_views(chosen, int(position))
            crops.append([crop for crop, _ in views])
            records.append([record for _, record in views])
        return Batch(
            torch.from_numpy(samples),
            torch.tensor(rows).T,
            torch.from_numpy(np.array(crops)).permute(1, 0, 4, 2, 3),
            torch.from_numpy(np.array(records)).transpose(0, 1),
        )

    def _make_views(self, rows: tuple[int, ...], position: int) -> list[tuple[NDArray[np.uint8], NDArray[np.float32]]]:
        decoded = {row: decode_stored(self._dataset.read(row)) for row in set(rows)}
        views = []
        for view, row in enumerate(rows):
            pixels = decoded[row]
            size = (pixels.shape[0], pixels.shape[1])
            record = draw(self._views, size, self._seed, self._stage, position, view)
            box = record[: len(BOX)].astype(int).tolist()
            crop = crop_and_resize(pixels, box, self._views.size_px)
            views.append((apply_uint8(self._views, crop, record) if self._augment else crop, record))
        return views


def finished_views(batch: Batch, views: ViewConfig, device: torch.device, augmented: bool) -> Tensor:
    """The batch's normalised views on the device, (V, B, C, H, W); what the loader left undone is done there."""
    crops_NCHW = batch.crops_VBCHW.to(device, non_blocking=True).flatten(0, 1)
    if augmented:
        flat = normalise(crops_NCHW.float() / 255, views.mean, views.std)
    else:
        flat = apply(views, crops_NCHW, batch.records_VBK.to(device, non_blocking=True).flatten(0, 1))
    return flat.contiguous(memory_format=torch.channels_last).unflatten(0, batch.crops_VBCHW.shape[:2])
