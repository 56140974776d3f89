"""NT-Xent, forward and backward, against lightly's on one core: time, and memory kept at the peak.

Alone with the whole batch, and as one of 128 ranks: that one's process group is torch's fake one, which hands each
rank's rows out as a copy of its own, so that the work is done and nothing is sent.
"""

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from pretrain.losses import nt_xent

WIDTH = 128
RANKS, LOCAL_PAIRS = 128, 512


def run() -> list[dict[str, Any]]:
    """2,048 and 4,096 pairs of 128 numbers in float32, and one rank's 512 of 65,536."""
    alone = [row for pairs in (2048, 4096) for row in _measure(pairs, 1, rounds=5, floors=((2, 3), (4, 7)))]
    return [*alone, *_measure(LOCAL_PAIRS, RANKS, rounds=3, floors=((1.7, 2.5), (8, 8)))]


def _measure(pairs: int, ranks: int, rounds: int, floors: tuple[tuple[float, float], ...]) -> list[dict[str, Any]]:
    torch.set_num_threads(1)
    views = torch.randn(2, pairs, WIDTH, generator=torch.Generator().manual_seed(0))
    seconds = {who: [] for who in ("ours", "peer")}
    with _one_of(ranks):
        for _ in range(rounds):  # turn and turn about, so that both meet the same machine
            for who, loss in (("ours", _ours), ("peer", _peer())):
                started = time.thread_time()
                _step(loss, views)
                seconds[who].append(time.thread_time() - started)
    fast = {who: 1e3 * sorted(times)[rounds // 2] for who, times in seconds.items()}
    memory = {who: _peak_mib(who, pairs, ranks) for who in fast}
    name = f"NT-Xent of {pairs} pairs" if ranks == 1 else f"NT-Xent, one rank's {pairs} of {pairs * ranks} pairs"
    name += ", forward and backward; peer lightly"
    return [
        _row(f"{name}, time", fast, "ms", *floors[0]),
        _row(f"{name}, memory above the network's", memory, "MiB", *floors[1]),
    ]


@contextmanager
def _one_of(ranks: int) -> Iterator[None]:
    """As the first of so many ranks."""
    if ranks == 1:
        yield
        return
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=ranks)
    try:
        yield
    finally:
        dist.destroy_process_group()


def _row(name: str, of: dict[str, float], unit: str, floor: float, goal: float) -> dict[str, Any]:
    figures = {"ours": round(of["ours"], 1), "peer": round(of["peer"], 1), "unit": unit}
    return {"name": name, **figures, "ratio": round(of["peer"] / of["ours"], 1), "floor": floor, "goal": goal}


def _ours(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    return nt_xent(first, second, 0.1)


def _peer() -> Any:
    from lightly.loss import NTXentLoss

    return NTXentLoss(temperature=0.1, gather_distributed=dist.is_initialized())


def _step(loss: Any, views: torch.Tensor) -> None:
    leaf = views.clone().requires_grad_()
    loss(leaf[0], leaf[1]).backward()


def _peak_mib(who: str, pairs: int, ranks: int) -> float:
    """Peak resident memory of a process that does one step, above what it held before."""
    command = [sys.executable, "-m", "tests.benchmarks.bench_losses", who, str(pairs), str(ranks)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def _print_peak(who: str, pairs: int, ranks: int) -> None:
    torch.set_num_threads(1)
    with _one_of(ranks):
        loss = _ours if who == "ours" else _peer()
        _step(loss, torch.randn(2, 8, WIDTH))  # libraries load before the baseline is taken
        views = torch.randn(2, pairs, WIDTH)
        Path("/proc/self/clear_refs").write_text("5")  # the high-water mark falls back to what is held now
        before = _high_water_kib()
        _step(loss, views)
        print((_high_water_kib() - before) / 1024)


def _high_water_kib() -> int:
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0])


if __name__ == "__main__":
    _print_peak(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
