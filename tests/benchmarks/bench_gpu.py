"""On a GPU: ResNet-50 in bfloat16 at 224 px, on a fixed batch, fed from shards, and what augmentation takes of it.

The batch has 512 samples, or as many as fit. Without a GPU it gives no rows and says so. The floors and goals are
for one H200 with 16 cores; on another card the first row says how far from that it is.
"""

import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from data.dataset import open_dataset
from pretrain.batches import Batch, finished_views
from pretrain.config import PretrainConfig
from pretrain.feeding import fed_batches
from pretrain.footprint import footprint
from pretrain.methods import METHODS
from pretrain.training import Training, build_module
from pretrain.views import draw
from tests.benchmarks.bench_loader import SIDE, write_images

SAMPLES, SIZE_PX, ROUNDS, STEPS, UNCOUNTED = 512, 224, 5, 10, 5
FLOOR_VIEWS, GOAL_VIEWS = 4500, 6200


def run() -> list[dict[str, Any]]:
    """Views a second on a fixed batch, the share that is left when fed, and augmentation's share of the step."""
    if not torch.cuda.is_available():
        print("bench_gpu: no GPU here, so no rows", file=sys.stderr)
        return []
    with tempfile.TemporaryDirectory() as folder:
        return _rows(write_images(Path(folder)), torch.cuda.get_device_name())


def _rows(location: str, card: str) -> list[dict[str, Any]]:
    # There are fewer images than a batch has samples: each stands in it several times, decoded anew
    total, memory = 1 + UNCOUNTED + ROUNDS * STEPS, torch.cuda.get_device_properties(0).total_memory
    batch_size = min(SAMPLES, footprint(_recipe(location, SAMPLES, total), 0).largest(memory, 1))
    config, dataset = _recipe(location, batch_size, total), open_dataset(location)
    module, _ = build_module(config, 0, None)
    training = Training(config, 0, module, total)
    samples = METHODS["simclr"].samples(dataset, np.arange(dataset.num_images))
    batches = fed_batches(config, 0, dataset, samples, 0, total)
    views_VBCHW, groups_VBG = next(batches)
    crops = _crops(config)

    fixed = _seconds(lambda: training.step(0, views_VBCHW, groups_VBG))
    fed = _seconds(lambda: training.step(0, *next(batches)))
    augmenting = _seconds(lambda: finished_views(crops, config.views, training.device, augmented=False))
    rate = 2 * batch_size / fixed
    return [
        _row(f"ResNet-50, bf16, 224 px, fixed batch, {card}; peer the floor", rate, FLOOR_VIEWS, "views/s",
             rate / FLOOR_VIEWS, 1, GOAL_VIEWS / FLOOR_VIEWS),
        _row(f"the same fed from shards by {_cores()} cores; peer the fixed batch", 2 * batch_size / fed, rate,
             "views/s", fixed / fed, 0.9, 0.97),
        # The ratio grows as augmentation shrinks: at most 8 % is 12.5 and more, 3 % is 33
        _row("augmentation on the GPU; peer the whole step on a fixed batch", 1e3 * augmenting, 1e3 * fixed, "ms",
             fixed / augmenting, 12.5, 33.3),
    ]  # fmt: skip


def _recipe(location: str, batch_size: int, steps: int) -> PretrainConfig:
    return PretrainConfig.model_validate(
        {
            "data": location,
            "run": "unused",
            "encoder": {"name": "resnet50"},
            "views": {"size_px": SIZE_PX},
            "augment": "device",
            "loader": {"num_processes": max(1, _cores() - 1), "prefetch": 2},
            "stages": [{"method": "simclr", "steps": steps, "batch_size": batch_size}],
        }
    )


def _crops(config: PretrainConfig) -> Batch:
    """A batch as the loader hands it on, with records of real draws."""
    count = config.stages[0].batch_size
    records = [[draw(config.views, (SIDE, SIDE), 0, 0, place, view) for place in range(count)] for view in (0, 1)]
    crops = torch.randint(0, 256, (2, count, 3, SIZE_PX, SIZE_PX), dtype=torch.uint8)
    zeros = torch.zeros(2, count, dtype=torch.long)
    return Batch(zeros[:, :, None], zeros, crops.cuda(), torch.from_numpy(np.array(records)))


def _seconds(work: Callable[[], Any]) -> float:
    """Median seconds of a call over rounds, each ended by waiting for the GPU."""
    for _ in range(UNCOUNTED):
        work()
    rounds = []
    for _ in range(ROUNDS):
        torch.cuda.synchronize()
        started = time.perf_counter()
        for _ in range(STEPS):
            work()
        torch.cuda.synchronize()
        rounds.append((time.perf_counter() - started) / STEPS)
    return statistics.median(rounds)


def _cores() -> int:
    return len(os.sched_getaffinity(0))


def _row(name: str, ours: float, peer: float, unit: str, ratio: float, floor: float, goal: float) -> dict[str, Any]:
    return {
        "name": name,
        "ours": round(ours, 2),
        "peer": round(peer, 2),
        "unit": unit,
        "ratio": round(ratio, 2),
        "floor": round(floor, 2),
        "goal": round(goal, 2),
    }
