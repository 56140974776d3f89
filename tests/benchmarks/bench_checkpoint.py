"""How long a save holds up training, ours and torch.save of the same state: ResNet-50 with AdamW's two moments.

Both run in the same loop of multiplications in place of steps, so that what ours does in its thread counts where it
slows the steps beside it. Held up is what a loop with a save takes longer than the loop alone.
"""

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import timm
import torch

from clusters.checkpoint import CheckpointConfig, Checkpoints
from clusters.storage import Folder

REPEATS, LOOP_S = 7, 4.0


def run() -> list[dict[str, Any]]:
    """Seconds that a save costs the loop; the ratio is the peer's over ours."""
    torch.manual_seed(0)
    state = _state()
    with tempfile.TemporaryDirectory() as folder:
        # Never due by itself; the first save makes the memory that the others use again
        checkpoints = Checkpoints(Folder(f"{folder}/ours"), CheckpointConfig(every_s=1e9))
        checkpoints.save(1, state)
        checkpoints.wait()
        num_steps = _steps_of(LOOP_S)
        ours, peer = [], []
        for repeat in range(REPEATS):
            alone = _loop(num_steps, lambda: None)
            ours.append(_loop(num_steps, lambda step=repeat + 2: checkpoints.save(step, state)) - alone)
            checkpoints.wait()
            peer.append(_loop(num_steps, lambda: torch.save(state, Path(folder) / "peer.pt")) - alone)
    held_up, peers = max(1e-4, statistics.median(ours)), statistics.median(peer)
    return [
        {
            "name": "training held up by a checkpoint, ResNet-50 with AdamW; peer torch.save of the same state",
            "ours": round(held_up, 4),
            "peer": round(peers, 4),
            "unit": "s",
            "ratio": round(peers / held_up, 1),
            "floor": 2,
            "goal": 5,
        }
    ]


def _state() -> dict[str, Any]:
    network = timm.create_model("resnet50", num_classes=0).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3)
    for parameter in network.parameters():
        parameter.grad = torch.full_like(parameter, 1e-3)
    optimizer.step()
    return {"module": network.state_dict(), "optimizer": optimizer.state_dict()}


MATRIX = torch.ones(512, 512)


def _loop(num_steps: int, save: Callable[[], Any]) -> float:
    """Seconds of so many steps with a save after the first tenth of them."""
    started = time.perf_counter()
    for step in range(num_steps):
        torch.mm(MATRIX, MATRIX)
        if step == num_steps // 10:
            save()
    return time.perf_counter() - started


def _steps_of(seconds: float) -> int:
    _loop(20, lambda: None)
    return max(20, round(seconds / (_loop(20, lambda: None) / 20)))
