"""How long a save holds up training, ours and torch.save of the same state: ResNet-50 with AdamW's two moments.

Both run in the same loop, of matrix products on all cores in place of steps. Held up is what the call takes before the
loop goes on, ours with its look at whether all weights are finite. What ours does in its thread after that is counted
too, in a row of its own: there it is what the whole loop takes longer than without a save, on a machine that has no
core and no accelerator to spare. Its peer there does what ours does: torch.save, hashed and brought to disk. That row
has no floor: a thread that takes one of the cores on which a product is spread holds up all of them.
"""

import hashlib
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import timm
import torch
from torch import nn

from clusters import distributed
from clusters.checkpoint import CheckpointConfig, Checkpoints
from clusters.storage import Folder
from pretrain.watch import broken_weights

REPEATS, LOOP_S = 7, 4.0
DEVICE = distributed.device()
MATRIX = torch.ones(512, 512, device=DEVICE)


def run() -> list[dict[str, Any]]:
    """Seconds a save; a ratio is the peer's over ours."""
    network, state = _training()
    ours, peer = [], []
    with tempfile.TemporaryDirectory() as folder:
        # Never due by itself; the first save makes the memory that the others use again
        checkpoints = Checkpoints(Folder(f"{folder}/ours"), CheckpointConfig(every_s=1e9))
        checkpoints.save(1, state)
        checkpoints.wait()
        num_steps, step = _steps_in(LOOP_S), 1

        def save() -> None:
            nonlocal step
            step += 1
            assert broken_weights(network, "benchmark", step) is None
            checkpoints.save(step, state)

        for _ in range(REPEATS):
            alone, _ = _loop(num_steps, lambda: None)
            whole, held_up = _loop(num_steps, save)
            checkpoints.wait()
            ours.append((held_up, whole - alone))
            _, held_up = _loop(num_steps, lambda: torch.save(state, Path(folder) / "peer.pt"))
            whole, _ = _loop(num_steps, lambda: _save_durably(state, Path(folder) / "peer.pt"))
            peer.append((held_up, whole - alone))
    what = "a checkpoint, ResNet-50 with AdamW; peer torch.save of the same state"
    rows = [
        (f"training held up by {what}", 2.0, 5.0),
        (f"training on all cores made longer by {what}, hashed and flushed", 0.0, 1.0),
    ]
    return [_row(*row, ours=one, peer=other) for row, one, other in zip(rows, zip(*ours), zip(*peer))]


def _save_durably(state: dict[str, Any], path: Path) -> None:
    with path.open("wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    with path.open("rb") as file:
        hashlib.file_digest(file, "sha256")


def _row(name: str, floor: float, goal: float, ours: tuple[float, ...], peer: tuple[float, ...]) -> dict[str, Any]:
    mine, theirs = max(1e-4, statistics.median(ours)), statistics.median(peer)
    numbers = {"ours": round(mine, 4), "peer": round(theirs, 4), "unit": "s", "ratio": round(theirs / mine, 1)}
    return {"name": name, **numbers, "floor": floor, "goal": goal}


def _training() -> tuple[nn.Module, dict[str, Any]]:
    network = timm.create_model("resnet50", num_classes=0).to(DEVICE, memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3)
    for parameter in network.parameters():
        parameter.grad = torch.full_like(parameter, 1e-3)
    optimizer.step()
    return network, {"module": network.state_dict(), "optimizer": optimizer.state_dict()}


def _loop(num_steps: int, save: Callable[[], Any]) -> tuple[float, float]:
    """Seconds of so many steps with a save after the first tenth of them, and of the save's call."""
    started, held_up = time.perf_counter(), 0.0
    for step in range(num_steps):
        torch.mm(MATRIX, MATRIX)
        if step == num_steps // 10:
            before = time.perf_counter()
            save()
            held_up = time.perf_counter() - before
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started, held_up


def _steps_in(seconds: float) -> int:
    _loop(20, lambda: None)
    return max(20, round(20 * seconds / _loop(20, lambda: None)[0]))
