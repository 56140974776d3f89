"""What `python -m pretrain simulate` expects of 1, 2 and 4 processes of this machine, and what they then take.

Measured here are the step that one process computes and how much that differs from step to step, with as many
processes beside it that it does not talk to (they share memory and, where there are fewer cores than processes, cores),
and the link: a latency and a bandwidth, from sums of two sizes between two processes. The rest, what it costs to talk,
is the simulation's own. Each process computes with one thread; gloo's threads find no cores of their own, so that
nothing is exchanged beside the work.
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
from pretrain import simulate as simulation
from pretrain.cluster_model import MachineConfig
from pretrain.measured_step import COUNTED, UNCOUNTED, measured_step_s
from pretrain.simulate_config import SimulateConfig
from pretrain.training import Training, build_module

SHARE, SIZES = 16, (1, 2, 4)
SMALL_BYTES, LARGE_BYTES, ROUNDS = 8, 1 << 24, 20


def run() -> list[dict[str, Any]]:
    """Expected and measured steps a second, by the number of processes."""
    with mock.patch.dict(os.environ, OMP_NUM_THREADS="1"), tempfile.TemporaryDirectory() as folder:
        torch.set_num_threads(1)
        hop_us, gb_per_s = _spawned(_link, 2, Path(folder) / "link")
        print(f"gloo here: {hop_us:.0f} µs a hop, {gb_per_s:.2f} GB/s")
        alone = {n: _spawned(_step_alone, n, Path(folder) / f"alone-{n}", connected=False) for n in SIZES}
        rows = []
        for num_processes, (known_s, jitter) in alone.items():
            with mock.patch.object(simulation, "measured_step_s", lambda *_, known_s=known_s: known_s):
                (stage,) = simulation.simulate(_recipe(num_processes, hop_us, gb_per_s, jitter))
            (one,) = stage.outcomes
            waits = ", ".join(f"{kind} {1e3 * seconds:.0f}" for kind, seconds in one.step.exposed.items())
            print(
                f"{one.gpus}: ranks differ by {100 * jitter:.1f} %; ms: computing {1e3 * one.step.compute:.0f}, {waits}"
            )
            real_s = _spawned(_steps, one.gpus, Path(folder) / f"{one.gpus}")
            rows.append(_row(one.gpus, one.step.total, real_s))
    return rows


def _row(num_processes: int, expected_s: float, real_s: float) -> dict[str, Any]:
    fits = num_processes <= (os.cpu_count() or 1)
    short = "" if fits else " (more than there are cores)"
    return {
        "name": f"simulated step of {num_processes} processes{short}, ResNet-18, 64 px; peer the real one",
        "ours": round(1e3 * expected_s, 1),
        "peer": round(1e3 * real_s, 1),
        "unit": "ms",
        "ratio": round(min(expected_s / real_s, real_s / expected_s), 2),  # 1: as expected, whichever is longer
        "floor": 0.8 if fits else 0.7,
        "goal": 1,
    }


def _recipe(num_processes: int, hop_us: float = 0.0, gb_per_s: float = 1.0, jitter: float = 0.0) -> SimulateConfig:
    machine = MachineConfig(
        gpus_per_node=max(SIZES),
        node_gb_per_s=gb_per_s,
        node_hop_us=hop_us,
        beside=False,
        jitter=jitter,
        loaded_per_core=1e6,
        storage_gb_per_s=1e3,
    )
    return SimulateConfig(
        num_images=4096,
        gpus=[num_processes],
        samples_per_gpu=SHARE,
        measure=True,
        machine=machine,
        encoder={"name": "resnet18"},  # type: ignore[arg-type]
        views={"size_px": 64},  # type: ignore[arg-type]
        stages=[{"method": "simclr", "steps": 100, "batch_size": SHARE, "projection_hidden": 512}],  # type: ignore[list-item]
    )


def _spawned(task: Any, num_processes: int, folder: Path, connected: bool = True) -> Any:
    """What rank 0 finds, or the first of processes that are not connected."""
    folder.mkdir()
    words = (task, num_processes, str(folder), connected and num_processes > 1)
    torch.multiprocessing.spawn(_rank, words, nprocs=num_processes)  # type: ignore[attr-defined]
    return json.loads((folder / "found.json").read_text())


def _rank(rank: int, task: Any, num_processes: int, folder: str, connected: bool) -> None:
    torch.set_num_threads(1)
    if connected:
        dist.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=num_processes)
    found = task() if connected or num_processes == 1 else task(num_processes)
    if rank == 0:
        (Path(folder) / "found.json").write_text(json.dumps(found))
    if connected:
        dist.destroy_process_group()


def _link() -> tuple[float, float]:
    """µs a hop and GB/s of sums between two processes: 2 hops, and as many bytes over the link as there are."""
    seconds = []
    for num_bytes in (SMALL_BYTES, LARGE_BYTES):
        tensor, times = torch.zeros(num_bytes // 4), []
        for _ in range(ROUNDS):
            dist.barrier()
            started = time.perf_counter()
            dist.all_reduce(tensor)
            times.append(time.perf_counter() - started)
        seconds.append(statistics.median(times))
    return max(0.0, 1e6 * seconds[0] / 2), LARGE_BYTES / (seconds[1] - seconds[0]) / 1e9


def _step_alone(num_ranks: int = 1) -> tuple[float, float]:
    """Seconds of what one of so many ranks computes, and how much its parts between collectives differ, as a share."""
    noted: list[list[float]] = []

    def noting(original: Any) -> Any:
        def call(*arguments: Any, **named: Any) -> Any:
            noted[-1].append(time.perf_counter())
            return original(*arguments, **named)

        return call

    def step(training: Training, *arguments: Any) -> Any:
        noted.append([time.perf_counter()])
        output = original_step(training, *arguments)
        noted[-1].append(time.perf_counter())
        return output

    original_step = Training.step
    with (
        mock.patch.object(Training, "step", step),
        mock.patch.object(dist, "all_reduce", noting(dist.all_reduce)),
        mock.patch.object(dist, "all_gather", noting(dist.all_gather)),
    ):
        known_s = measured_step_s(_recipe(num_ranks), 0, SHARE, num_ranks)
    parts = np.diff(np.array(noted[UNCOUNTED:]), axis=1)
    return known_s, float(parts.std(axis=0, ddof=1).sum() / parts.mean(axis=0).sum())


def _steps() -> float:
    """Seconds of a step on fixed random views; the median."""
    world_size = distributed.world_size()
    config = _recipe(world_size)
    stage = config.stages[0].model_copy(update={"batch_size": SHARE * world_size})
    config = config.model_copy(update={"stages": [stage]})
    training = Training(config, 0, build_module(config, 0, None)[0], UNCOUNTED + COUNTED)
    size = config.views.size_px
    views_NCHW = torch.randn(2 * SHARE, 3, size, size).contiguous(memory_format=torch.channels_last)
    groups_VBG = (torch.arange(SHARE) + SHARE * distributed.rank()).expand(2, SHARE)[:, :, None]
    seconds = []
    for step in range(UNCOUNTED + COUNTED):
        started = time.perf_counter()
        training.step(step, views_NCHW.unflatten(0, (2, SHARE)), groups_VBG)
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds[UNCOUNTED:])
