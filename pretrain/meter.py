"""How fast a stage learns, and where its time goes."""

import math
import time
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from clusters import distributed
from clusters.config import InputError
from clusters.stopwatch import Stopwatch

DIVERGED = "lower this stage's optim.lr or lengthen its warmup, and set on_change=redo; earlier checkpoints are kept"
TIMES = ("data_wait", "compute", "communication")
"""Of which ranks are compared."""
PARTS = ("data_wait", "step", "optimizer", "checkpoint", "probe")


class Meter:
    """Loss, gradient norm, speed and the parts of the time, from one flush to the next; waits for nothing between.

    The parts are shares of all the time: `data_wait` from the end of a step until the next batch lies ready on the
    device, `step` forward and backward, `optimizer`, `checkpoint`, `probe`. `communication` is what of them goes into
    collectives (`distributed.time_collectives` says which). What is left is logging and health. `seconds_a_step` are
    this rank's in the last window, the communication taken out of its computing.
    """

    def __init__(self, batch_size: int, optimizer: torch.optim.Optimizer) -> None:
        self._batch_size = batch_size
        self.seconds_a_step = dict.fromkeys(TIMES, 0.0)
        self._stopwatch = Stopwatch(distributed.device())
        distributed.time_collectives(self._stopwatch)
        optimizer.register_step_pre_hook(lambda *_: self._stopwatch.start("optimizer"))
        optimizer.register_step_post_hook(lambda *_: self._stopwatch.stop("optimizer"))
        self._reset()

    def _reset(self) -> None:
        self._losses: list[Tensor] = []
        self._health: list[Tensor] = []
        self._started = time.perf_counter()

    def timing(self, part: str) -> AbstractContextManager[Any]:
        """The block is such a part of the time."""
        assert part in PARTS
        return self._stopwatch.timing(part)

    def add(self, loss: Tensor, health: Tensor) -> None:
        """The loss of this rank's share, and (norm of the gradient, 1 if the step was taken, else 0).

        Both are still on the device. A step that was not taken counts for the speed only.
        """
        self._losses.append(loss.detach().float())
        self._health.append(health.detach())

    def flush(self, name: str, step: int) -> dict[str, float]:
        """What happened since the last flush, over all ranks; every rank calls it after the same step.

        No loss where no step was taken. Raises InputError on all ranks where the loss of one that was is not finite.
        """
        num_steps = len(self._losses)
        norms, taken = torch.stack(self._health).float().unbind(1)
        losses = torch.where(taken > 0, torch.stack(self._losses), 0.0)
        mean = distributed.sum_over_ranks(losses.sum()) / (distributed.world_size() * taken.sum())
        norm = torch.where(taken > 0, norms, 0.0).sum() / taken.sum()
        mean_loss, mean_norm, num_taken = torch.stack([mean, norm, taken.sum()]).tolist()
        metrics = {"loss": mean_loss, "grad_norm": mean_norm} if num_taken else {}
        if num_taken and not math.isfinite(mean_loss):
            raise InputError(f"{name}: the loss is {mean_loss} at step {step}; {DIVERGED}")
        metrics |= self._times(num_steps)
        self._reset()
        return {key: value for key, value in metrics.items() if not math.isnan(value)}

    def _times(self, num_steps: int) -> dict[str, float]:
        parts = self._stopwatch.read()
        seconds = time.perf_counter() - self._started
        own = parts.get("step", 0.0) - parts.get("communication", 0.0)
        times = (parts.get("data_wait", 0.0), max(0.0, own), parts.get("communication", 0.0))
        self.seconds_a_step = {name: seconds / num_steps for name, seconds in zip(TIMES, times)}
        parts["step"] = parts.get("step", 0.0) - parts.get("optimizer", 0.0)
        names = PARTS if distributed.world_size() == 1 else (*PARTS, "communication")
        shares = {f"time/{name}": parts.get(name, 0.0) / seconds for name in names}
        return {"samples_per_s": self._batch_size * num_steps / seconds, **shares}
