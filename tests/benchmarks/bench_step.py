"""A whole training step: what the loader costs it, and all that is not the model against a plain script.

1. One process trains on one core, its loader process works on another: the median step fed by the loader against
   the median step on a fixed batch, turn and turn about.
2. Two gloo processes, each of which loads for itself, since there is no third core, train ResNet-18 on 224 px views
   in bfloat16 by our code and by a plain script of webdataset, PIL, lightly and DistributedDataParallel, turn and turn
   about in the same processes. Of each step of either side the time is taken off that its model takes: from where
   encoder and projection are called until they return, and from where the loss's gradient reaches the projections
   until backward is done, the exchange of gradients that DDP does meanwhile included. What remains is waiting for data,
   augmentation, loss, optimiser, checks and logging. Our model has the batch norm of the global batch, whose exchange
   counts as the model's; the peer's has each process's own, since torch's SyncBatchNorm does not run on CPUs. The
   first steps of a turn are not counted.
"""

import csv
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
import torch.distributed as dist
from torch import Tensor, nn

from data.dataset import Dataset, open_dataset
from pretrain.config import PretrainConfig
from pretrain.feeding import fed_batches
from pretrain.meter import Meter
from pretrain.methods import METHODS
from pretrain.training import Training, build_module
from tests.benchmarks.bench_loader import write_images

ROUNDS, UNCOUNTED, COUNTED, SETTLE_S = 2, 2, 3, 1.0
SHARE, HIDDEN, TEMPERATURE = 32, 512, 0.1
STEPS = ROUNDS * (UNCOUNTED + COUNTED) + 4
Step = Callable[[], None]


def run() -> list[dict[str, Any]]:
    """Both rows."""
    with tempfile.TemporaryDirectory() as folder:
        location = write_images(Path(folder))
        return [_fed_or_fixed(location), _two_processes(location, Path(folder))]


def _recipe(location: str, size_px: int, batch_size: int, num_processes: int) -> PretrainConfig:
    stage = {"method": "simclr", "steps": STEPS, "batch_size": batch_size, "projection_hidden": HIDDEN}
    return PretrainConfig.model_validate(
        {
            "data": location,
            "run": "unused",
            "encoder": {"name": "resnet18"},
            "views": {"policy": "dermatology", "size_px": size_px},
            "augment": "loader",
            "loader": {"num_processes": num_processes},
            "stages": [stage],
        }
    )


class _Ours:
    """Our training of a recipe's only stage in this process."""

    def __init__(self, config: PretrainConfig, dataset: Dataset) -> None:
        module, _ = build_module(config, 0, None)
        self.training = Training(config, 0, module, STEPS)
        samples = METHODS["simclr"].samples(dataset, np.arange(dataset.num_images))
        self.batches: Iterator[tuple[Tensor, Tensor]] = fed_batches(config, 0, dataset, samples, 0, STEPS)
        self.fixed = next(self.batches)
        self.meter, self.number = Meter(config.stages[0].batch_size, self.training.optimizer), 0

    def fed(self) -> None:
        with self.meter.timing("data_wait"):
            views_VBCHW, groups_VBG = next(self.batches)
        self._step(views_VBCHW, groups_VBG)

    def on_fixed(self) -> None:
        self._step(*self.fixed)

    def _step(self, views_VBCHW: Tensor, groups_VBG: Tensor) -> None:
        with self.meter.timing("step"):
            output = self.training.step(self.number % STEPS, views_VBCHW, groups_VBG)
        self.meter.add(output.loss, self.training.health)
        self.number += 1
        if self.number % COUNTED == 0:
            self.meter.flush("benchmark", self.number)


class _Peer:
    """What a careful person would write with webdataset, lightly and torch alone."""

    def __init__(self, dataset: Dataset, log: Path) -> None:
        from lightly.loss import NTXentLoss
        from lightly.models.modules.heads import SimCLRProjectionHead
        from lightly.transforms import SimCLRTransform
        from lightly.utils.lars import LARS
        from webdataset.compat import WebDataset

        transform = SimCLRTransform(input_size=224, vf_prob=0.5)
        shards = [str(path) for path in sorted(Path(dataset.location).glob("*.tar"))]
        samples: Any = WebDataset(shards, resampled=True, shardshuffle=False, nodesplitter=iter)
        samples = samples.shuffle(64).decode("pil").map(_Transformed(transform))
        loader: Any = torch.utils.data.DataLoader(samples, SHARE, num_workers=0, drop_last=True)
        self.batches = iter(loader)
        encoder = timm.create_model("resnet18", num_classes=0)
        self.model = nn.Sequential(encoder, SimCLRProjectionHead(512, HIDDEN, 128)).to(
            memory_format=torch.channels_last  # type: ignore[call-overload]
        )
        self.parallel = nn.parallel.DistributedDataParallel(self.model, gradient_as_bucket_view=True)
        self.criterion = NTXentLoss(temperature=TEMPERATURE, gather_distributed=True)
        weights = [p for p in self.model.parameters() if p.ndim > 1]
        others = [p for p in self.model.parameters() if p.ndim <= 1]
        groups = [{"params": weights, "weight_decay": 1e-6}, {"params": others, "weight_decay": 0.0}]
        self.optimizer = LARS(groups, lr=0.3, momentum=0.9)
        self.log = csv.writer(log.open("w", buffering=1))

    def _next(self) -> Tensor:
        first, second = next(self.batches)
        return torch.cat([first, second]).contiguous(memory_format=torch.channels_last)

    def fed(self) -> None:
        views_NCHW = self._next()
        with torch.autocast("cpu", torch.bfloat16):
            first, second = self.parallel(views_NCHW).chunk(2)
            loss = self.criterion(first, second)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        self.log.writerow([float(loss.detach())])


class _Transformed:
    """A webdataset sample to the two views of its first image; at the top level, since it goes to a process."""

    def __init__(self, transform: Any) -> None:
        self.transform = transform

    def __call__(self, sample: dict[str, Any]) -> Any:
        return self.transform(sample["0.jpg"])


class _ModelClock:
    """Seconds that a model's own forward and backward take of the steps since it was read last."""

    def __init__(self, first: nn.Module, last: nn.Module) -> None:
        self._seconds, self._since = 0.0, 0.0
        first.register_forward_pre_hook(self._begin)
        last.register_forward_hook(self._after_forward)

    def end(self) -> None:
        """What was begun has returned."""
        if self._since:
            self._seconds += time.perf_counter() - self._since
        self._since = 0.0

    def read(self) -> float:
        """The seconds, which begin anew."""
        seconds, self._seconds = self._seconds, 0.0
        return seconds

    def _begin(self, *_: Any) -> None:
        self._since = time.perf_counter()

    def _after_forward(self, module: nn.Module, inputs: Any, projected: Any) -> None:
        self.end()
        projected.register_hook(self._begin)


def _fed_or_fixed(location: str) -> dict[str, Any]:
    """Row 1, in this process."""
    torch.set_num_threads(1)
    ours = _Ours(_recipe(location, 64, SHARE, 1), open_dataset(location))
    median = _medians({"fed": ours.fed, "fixed": ours.on_fixed})
    return {
        "name": "step fed by the loader, ResNet-18, 64 px; peer the same step on a fixed batch",
        "ours": round(SHARE / median["fed"], 1),
        "peer": round(SHARE / median["fixed"], 1),
        "unit": "samples/s",
        "ratio": round(median["fixed"] / median["fed"], 3),
        "floor": 0.9,
        "goal": 0.97,
    }


def _two_processes(location: str, folder: Path) -> dict[str, Any]:
    """Row 2, from rank 0 of two processes."""
    torch.multiprocessing.spawn(_rank, (location, str(folder)), nprocs=2)  # type: ignore[attr-defined]
    median = json.loads((folder / "medians.json").read_text())
    return {
        "name": "step less the model's forward and backward, 2 x 32 samples; peer lightly + webdataset + DDP",
        "ours": round(1e3 * median["ours"], 1),
        "peer": round(1e3 * median["peer"], 1),
        "unit": "ms",
        "ratio": round(median["peer"] / median["ours"], 1),
        "floor": 2,
        "goal": 5,
    }


def _rank(rank: int, location: str, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=2)
    dataset = open_dataset(location)
    ours, peer = _Ours(_recipe(location, 224, 2 * SHARE, 0), dataset), _Peer(dataset, Path(folder) / f"{rank}.csv")
    module: Any = ours.training.module
    clocks = {
        "ours": _ModelClock(module.encoder, module.projection),
        "peer": _ModelClock(peer.model[0], peer.model[1]),
    }
    backward = Tensor.backward

    def timed_backward(loss: Tensor, *given: Any, **named: Any) -> None:
        backward(loss, *given, **named)
        for clock in clocks.values():
            clock.end()

    Tensor.backward = timed_backward  # type: ignore[assignment]
    median = _medians({"ours": ours.fed, "peer": peer.fed}, clocks)
    if rank == 0:
        (Path(folder) / "medians.json").write_text(json.dumps(median))
    dist.barrier()
    dist.destroy_process_group()


def _medians(steps: dict[str, Step], clocks: dict[str, _ModelClock] | None = None) -> dict[str, float]:
    """Median seconds of each kind of step, less those of its clock, over rounds in which they take turns.

    All ranks begin a turn together.
    """
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(ROUNDS):
        for name, step in steps.items():
            time.sleep(SETTLE_S)
            if dist.is_initialized():
                dist.barrier()
            for number in range(UNCOUNTED + COUNTED):
                started = time.perf_counter()
                step()
                ended = time.perf_counter()
                model = clocks[name].read() if clocks else 0.0
                if number >= UNCOUNTED:
                    seconds[name].append(ended - started - model)
    return {name: statistics.median(values) for name, values in seconds.items()}
