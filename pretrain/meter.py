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
        self._taken: list[Tensor] = []
        self._waited = 0.0
        self._started = time.perf_counter()

    def begin(self) -> None:
        """A step begins by asking for its batch."""
        self._asked = time.perf_counter()

    def got_batch(self) -> None:
        """The batch is there."""
        self._waited += time.perf_counter() - self._asked

    def add(self, loss: Tensor, taken: Tensor) -> None:
        """The loss of this rank's share, and 1 if the step was taken, else 0; both still on the device."""
        self._losses.append(torch.where(taken > 0, loss.detach().float(), 0.0))
        self._taken.append(taken)

    def flush(self, name: str, step: int) -> dict[str, float]:
        """Loss over ranks, speed and waiting since the last flush; no loss where no step was taken.

        Raises InputError where the loss of a step that was taken is not finite.
        """
        total = distributed.sum_over_ranks(torch.stack(self._losses).sum()) / distributed.world_size()
        if not torch.isfinite(total):
            raise InputError(f"{name}: the loss is {float(total)} at step {step}; {DIVERGED}")
        num_taken = float(torch.stack(self._taken).sum())
        seconds = time.perf_counter() - self._started
        speed = self._batch_size * len(self._losses) / seconds
        loss = {"loss": float(total) / num_taken} if num_taken else {}
        metrics = {**loss, "images_per_s": speed, "data_wait": self._waited / seconds}
        self._reset()
        return metrics
