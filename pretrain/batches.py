"""A training batch as a pure function of its step: which samples, which pairs, which views.

Shapes: V views, B samples on this rank, H and W pixels, K record columns, G kinds of group.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from data.combined import AnyDataset, order_of, parts_of
from data.images import decode_stored
from data.loader import crop_and_resize, positions_of
from data.order import keyed_uniforms
from pretrain.patient_mask import PatientMask
from pretrain.stage import Pair, Rows, Samples
from pretrain.views import BOX, COLUMNS, ViewConfig, apply, draw, normalise
from pretrain.views_uint8 import apply_uint8

READ_TOGETHER = 32
AVERAGED_FROM = 1.25
"""Crops that shrink less are bilinear: averaging over areas would cost as much as decoding."""
LOOK_AHEAD_SAMPLES = 1 << 17
Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Batch:
    """What the loader hands to the training loop.

    `groups_VBG`: numbers that say of which views none is another's negative; column 0 is the sample's.
    """

    groups_VBG: Tensor
    rows_VB: Tensor
    crops_VBCHW: Tensor
    records_VBK: Tensor

    def pin_memory(self) -> "Batch":
        """For torch's DataLoader, where there is a GPU."""
        pinned = (t.pin_memory() for t in (self.groups_VBG, self.rows_VB, self.crops_VBCHW, self.records_VBK))
        return Batch(*pinned)


class ViewBatches:
    """`batches(step)` is this rank's share of the global batch at a step, whoever asks and whenever.

    With `augment` the crops come out as finished uint8 views; otherwise the rest of each record is left to
    the accelerator.
    """

    def __init__(
        self,
        dataset: AnyDataset,
        samples: Samples,
        pair: Pair,
        views: ViewConfig,
        seed: int,
        stage: int,
        batch_size: int,
        rank: int,
        world_size: int,
        augment: bool,
        mask: PatientMask | None = None,
    ) -> None:
        # The samples go to loader processes by way of the run's own cache.
        samples = replace(samples, cache=parts_of(dataset)[0].cache)
        self._dataset, self._samples, self._pair, self._views = dataset, samples, pair, views
        self._seed, self._stage = seed, stage
        self._share = (batch_size, rank, world_size)
        self._augment, self._mask = augment, mask
        self._order = order_of(dataset, samples.shard_sizes, seed)
        # An order of its own, since each remembers the blocks that it was asked for last.
        self._later = order_of(dataset, samples.shard_sizes, seed) if dataset.is_remote else None

    def __call__(self, step: int) -> Batch:
        """Read, decode and crop this rank's views of a step."""
        positions = positions_of(step, *self._share, self._order)
        samples, turns = self._order.at(positions), self._order.epoch_of(positions)
        rows_BV = [
            self._pair(sample, self._samples[sample], turn, self._uniforms)
            for sample, turn in zip(samples.tolist(), turns.tolist())
        ]
        self._dataset.announce(np.array(rows_BV).ravel(), now=True)
        self._announce_later(step)
        size, shape = self._views.size_px, (len(rows_BV[0]), len(rows_BV))
        crops_VBHWC = np.empty((*shape, size, size, 3), dtype=np.uint8)
        records_VBK = np.empty((*shape, len(COLUMNS)), dtype=np.float32)
        for start in range(0, len(rows_BV), READ_TOGETHER):
            some = rows_BV[start : start + READ_TOGETHER]
            needed = np.unique(np.array(some))
            contents = dict(zip(needed.tolist(), self._dataset.read_many(needed)))
            for number, rows in enumerate(some, start):
                decoded = {row: decode_stored(contents[row]) for row in set(rows)}
                for view, row in enumerate(rows):
                    record = self._draw(decoded[row], int(positions[number]), view)
                    records_VBK[view, number] = record
                    self._crop(decoded[row], record, crops_VBHWC[view, number])
        return Batch(
            torch.from_numpy(self._groups(samples, np.array(rows_BV).T)),
            torch.tensor(rows_BV).T,
            torch.from_numpy(crops_VBHWC).permute(0, 1, 4, 2, 3),
            torch.from_numpy(records_VBK),
        )

    def _uniforms(self, count: int, *key: int | str) -> NDArray[np.float64]:
        return keyed_uniforms(count, "pair", self._seed, self._stage, *key)

    def _groups(self, samples_B: Rows, rows_VB: Rows) -> Rows:
        """The numbers of each view's sample and, with a mask, of its patient and picture, (V, B, G)."""
        samples_VB1 = np.broadcast_to(samples_B, rows_VB.shape)[:, :, None]
        return samples_VB1.copy() if self._mask is None else np.concatenate([samples_VB1, self._mask(rows_VB)], axis=2)

    def _announce_later(self, step: int) -> None:
        """Have the shards fetched that the order needs in a while: it may take that long."""
        if self._later is None:
            return
        ahead = max(1, LOOK_AHEAD_SAMPLES // self._share[0])
        samples = self._later.at(positions_of(step + ahead, *self._share, self._later))
        self._dataset.announce(np.array([self._samples[sample][0] for sample in samples.tolist()]))

    def _draw(self, pixels: Pixels, position: int, view: int) -> NDArray[np.float32]:
        size = (pixels.shape[0], pixels.shape[1])
        return draw(self._views, size, self._seed, self._stage, position, view)

    def _crop(self, pixels: Pixels, record_K: NDArray[np.float32], out: Pixels) -> None:
        box = record_K[: len(BOX)].astype(int).tolist()
        crop_and_resize(pixels, box, self._views.size_px, AVERAGED_FROM, out)
        if self._augment:
            out[:] = apply_uint8(self._views, out, record_K)


def finished_views(batch: Batch, views: ViewConfig, device: torch.device, augmented: bool, channels: int = 3) -> Tensor:
    """The batch's normalised views on the device, (V, B, channels, H, W); what the loader left undone is done there."""
    crops_NCHW = batch.crops_VBCHW.to(device, non_blocking=True).flatten(0, 1)
    if augmented:
        flat = normalise(crops_NCHW.float().div_(255), views.mean, views.std, channels)
    else:
        flat = apply(views, crops_NCHW, batch.records_VBK.flatten(0, 1), channels)
    return flat.contiguous(memory_format=torch.channels_last).unflatten(0, batch.crops_VBCHW.shape[:2])
