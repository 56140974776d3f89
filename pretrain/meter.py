"""How fast a stage learns, and what it waits for."""

import time

import torch
from torch import Tensor

from clusters import distributed
from clusters.config import InputError

DIVERGED = "lower this stage's optim.lr or lengthen its warmup, and set on_change=redo; earlier checkpoints are kept"


class Meter:
    """Loss, speed and the share of time spent waiting for data, since the last flush."""

    def __init__(self, batch_size: int) -> None:
        self._batch_size = batch_size
        self._reset()

    def _reset(self) -> None:
        self._losses: list[Tensor] = []
        self._waited = 0.0
        self._started = time.perf_counter()

    def begin(self) -> None:
        """A step begins by asking for its batch."""
        self._asked = time.perf_counter()

    def got_batch(self) -> None:
        """The batch is there."""
        self._waited += time.perf_counter() - self._asked

    def add(self, loss: Tensor) -> None:
        """The loss of this rank's share, still on the device."""
        self._losses.append(loss.detach())

    def flush(self, name: str, step: int) -> dict[str, float]:
        """Loss over ranks, speed and waiting since the last flush. Raises InputError where the loss is not finite."""
        mean = distributed.sum_over_ranks(torch.stack(self._losses).float().mean()) / distributed.world_size()
        if not torch.isfinite(mean):
            raise InputError(f"{name}: the loss is {float(mean)} at step {step}; {DIVERGED}")
        seconds = time.perf_counter() - self._started
        speed = self._batch_size * len(self._losses) / seconds
        metrics = {"loss": float(mean), "images_per_s": speed, "data_wait": self._waited / seconds}
        self._reset()
        return metrics
