"""From the loader's batches to what a step takes, copied and finished beside the step that runs.

Shapes: V views, B samples on this rank, C colours, H and W pixels, G kinds of group.
"""

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import TypeVar

import torch
from torch import Tensor

from clusters import distributed
from data.combined import AnyDataset, order_of
from data.loader import positions_of
from data.prefetch import training_batches
from pretrain.batches import Batch, ViewBatches, finished_views
from pretrain.compute import refused_where_memory_is_short
from pretrain.config import PretrainConfig
from pretrain.methods import METHODS
from pretrain.patient_mask import patient_mask
from pretrain.stage import Samples

T = TypeVar("T")


def fed_batches(
    config: PretrainConfig, number: int, dataset: AnyDataset, samples: Samples, first_step: int, total_steps: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Normalised views (V, B, C, H, W) and groups (V, B, G) of this rank's share of each step, on the device."""
    stage, views, device = config.stages[number], config.stage_views(number), distributed.device()
    in_loader = config.augment == "loader"
    pairing = METHODS[stage.method].pairing(stage, dataset, samples)  # type: ignore[arg-type]
    make = ViewBatches(
        dataset, samples, pairing, views, config.seed, number, stage.batch_size,
        distributed.rank(), distributed.world_size(), augment=in_loader, mask=patient_mask(dataset, stage),
    )  # fmt: skip

    def finish(batch: Batch) -> tuple[Tensor, Tensor]:
        with refused_where_memory_is_short(f"{config.stage_name(number)}: a batch of views", device):
            views_VBCHW = finished_views(batch, views, device, in_loader, config.encoder.channels)
            return views_VBCHW, batch.groups_VBG.to(device, non_blocking=True)

    ready = training_batches(make, first_step, total_steps, config.loader, batch_bytes(config, number))
    return prefetched(ready, finish, device)


def batch_bytes(config: PretrainConfig, number: int) -> int:
    """What a batch of this rank's uint8 views takes."""
    share = config.stages[number].batch_size // distributed.world_size()
    return 2 * share * 3 * config.stage_views(number).size_px ** 2


def keys_of_batch(config: PretrainConfig, number: int, dataset: AnyDataset, samples: Samples, step: int) -> list[str]:
    """The keys of the cases in a step's global batch, by position."""
    positions = positions_of(step, config.stages[number].batch_size, 0, 1)
    numbers = order_of(dataset, samples.shard_sizes, config.seed).at(positions)
    return [str(key) for key in dataset.column("key")[[samples[number][0] for number in numbers.tolist()]]]


def prefetched(
    batches: Iterator[T], finish: Callable[[T], tuple[Tensor, Tensor]], device: torch.device
) -> Iterator[tuple[Tensor, Tensor]]:
    """`finish(batch)` of each batch in order, the next one begun as soon as the caller has queued its step.

    On a GPU that runs on a stream of its own, while the step before still runs on the caller's: nothing here waits
    for the device, the batches lie in pinned memory, and the caller's stream waits for the finished ones. Elsewhere
    it is the same without streams.
    """
    side = torch.cuda.Stream(device) if device.type == "cuda" else None
    for batch in batches:
        with torch.cuda.stream(side) if side is not None else nullcontext():
            finished = finish(batch)
        if side is not None:
            present = torch.cuda.current_stream(device)
            present.wait_stream(side)
            for tensor in finished:
                # Or its memory, which belongs to the side stream, could be taken again while the step still reads it
                tensor.record_stream(present)
        yield finished
