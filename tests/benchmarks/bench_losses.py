"""NT-Xent, forward and backward, against lightly's on one core: time, and memory kept at the peak."""

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

from pretrain.losses import nt_xent

WIDTH, ROUNDS = 128, 5


def run() -> list[dict[str, Any]]:
    """2,048 and 4,096 pairs of 128 numbers in float32."""
    return [row for pairs in (2048, 4096) for row in _measure(pairs)]


def _measure(pairs: int) -> list[dict[str, Any]]:
    torch.set_num_threads(1)
    views = torch.randn(2, pairs, WIDTH, generator=torch.Generator().manual_seed(0))
    seconds = {who: [] for who in ("ours", "peer")}
    for _ in range(ROUNDS):  # turn and turn about, so that both meet the same machine
        for who, loss in (("ours", _ours), ("peer", _peer())):
            started = time.thread_time()
            _step(loss, views)
            seconds[who].append(time.thread_time() - started)
    fast = {who: sorted(times)[ROUNDS // 2] for who, times in seconds.items()}
    memory = {who: _peak_mib(who, pairs) for who in fast}
    name = f"NT-Xent of {pairs} pairs, forward and backward; peer lightly"
    return [
        _row(f"{name}, time", {who: 1e3 * value for who, value in fast.items()}, "ms", 2, 3),
        _row(f"{name}, memory above the network's", memory, "MiB", 4, 7),
    ]


def _row(name: str, of: dict[str, float], unit: str, floor: float, goal: float) -> dict[str, Any]:
    figures = {"ours": round(of["ours"], 1), "peer": round(of["peer"], 1), "unit": unit}
    return {"name": name, **figures, "ratio": round(of["peer"] / of["ours"], 1), "floor": floor, "goal": goal}


def _ours(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    return nt_xent(first, second, 0.1)


def _peer() -> Any:
    from lightly.loss import NTXentLoss

    return NTXentLoss(temperature=0.1)


def _step(loss: Any, views: torch.Tensor) -> None:
    leaf = views.clone().requires_grad_()
    loss(leaf[0], leaf[1]).backward()


def _peak_mib(who: str, pairs: int) -> float:
    """Peak resident memory of a process that does one step, above what it held before."""
    command = [sys.executable, "-m", "tests.benchmarks.bench_losses", who, str(pairs)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def _print_peak(who: str, pairs: int) -> None:
    torch.set_num_threads(1)
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
    _print_peak(sys.argv[1], int(sys.argv[2]))
