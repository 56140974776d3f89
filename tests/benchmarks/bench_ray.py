"""The same training function on two workers under Ray Train and under torch.multiprocessing.spawn.

Both run real steps of the real loop's parts (batch, step, meter, report) with one thread each over gloo; the first
steps, in which processes and buffers come up, are left out. Ray runs once between two runs of spawn, which are taken
together, so that a machine that grows slower or faster favours neither.
"""

import json
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
import torch.distributed as dist

from clusters import distributed
from clusters.launch import ClusterConfig, launch, report
from clusters.storage import Folder
from data.dataset import open_dataset
from pretrain.config import PretrainConfig
from pretrain.feeding import fed_batches
from pretrain.meter import Meter
from pretrain.methods import METHODS
from pretrain.training import Training, build_module
from tests.benchmarks.bench_loader import write_images

UNCOUNTED, COUNTED, LOG_EVERY = 10, 20, 5


def run() -> list[dict[str, Any]]:
    """Steps a second under each."""
    alike = mock.patch.dict(os.environ, OMP_NUM_THREADS="1")  # as Ray sets it for a worker of one core
    with alike, tempfile.TemporaryDirectory() as folder:
        config = _recipe(write_images(Path(folder)))
        before = _spawned(config, Path(folder) / "1")
        ray = launch(train, config, ClusterConfig(num_workers=2, use_gpu=False), Folder(f"{folder}/ray"))["seconds"]
        after = _spawned(config, Path(folder) / "2")
    ours, peer = statistics.median(ray), statistics.median([*before, *after])
    return [
        {
            "name": "step on two workers under Ray Train, ResNet-18, 64 px; peer torch.multiprocessing.spawn",
            "ours": round(1 / ours, 3),
            "peer": round(1 / peer, 3),
            "unit": "steps/s",
            "ratio": round(peer / ours, 3),
            "floor": 0.95,
            "goal": 0.98,
        }
    ]


def train(config: PretrainConfig) -> dict[str, Any]:
    """What each worker runs; returns the seconds of each counted step."""
    torch.set_num_threads(1)
    dataset, steps = open_dataset(config.locations[0]), UNCOUNTED + COUNTED
    samples = METHODS["simclr"].samples(dataset, np.arange(dataset.num_images))
    module, _ = build_module(config, 0, None)
    training = Training(config, 0, module, steps)
    meter = Meter(config.stages[0].batch_size, training.optimizer)
    seconds = []
    batches = fed_batches(config, 0, dataset, samples, 0, steps)
    for step in range(steps):
        started = time.perf_counter()
        with meter.timing("data_wait"):
            views_VBCHW, groups_VBG = next(batches)
        with meter.timing("step"):
            output = training.step(step, views_VBCHW, groups_VBG)
        meter.add(output.loss, training.health)
        if (step + 1) % LOG_EVERY == 0:
            report(meter.flush("benchmark", step + 1))
        seconds.append(time.perf_counter() - started)
    return {"seconds": seconds[UNCOUNTED:]}


def _recipe(location: str) -> PretrainConfig:
    stage = {"method": "simclr", "steps": UNCOUNTED + COUNTED, "batch_size": 32, "projection_hidden": 512}
    return PretrainConfig.model_validate(
        {
            "data": location,
            "run": "unused",
            "encoder": {"name": "resnet18"},
            "views": {"size_px": 64},
            "augment": "loader",
            "stages": [stage],
        }
    )


def _spawned(config: PretrainConfig, folder: Path) -> list[float]:
    folder.mkdir()
    torch.multiprocessing.spawn(_rank, (config, str(folder)), nprocs=2)  # type: ignore[attr-defined]
    return json.loads((folder / "0.json").read_text())["seconds"]


def _rank(rank: int, config: PretrainConfig, folder: str) -> None:
    dist.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=2)
    (Path(folder) / f"{distributed.rank()}.json").write_text(json.dumps(train(config)))
    dist.destroy_process_group()
