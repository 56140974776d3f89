"""How fast a stage learns, and where its time goes."""

import time
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from clusters import distributed
from clusters.stopwatch import Stopwatch

PARTS = ("data_wait", "step", "optimizer", "checkpoint", "probe")


@dataclass(frozen=True)
class Window:
    """The metrics of the steps since the last flush; of the first that was not finite, how many steps ago it was."""

    metrics: dict[str, float]
    broken_ago: int | None
    broken_loss: float = float("nan")


class Meter:
    """Loss, gradient norm, speed and the parts of the time, from one flush to the next; waits for nothing between.

    The parts are shares of all the time: `data_wait` from the end of a step until the next batch lies ready on the
    device, `step` forward and backward, `optimizer`, `checkpoint`, `probe`. `communication` is what of them goes into
    collectives of our own (see `distributed.time_collectives`). What is left is logging and health.
    """

    def __init__(self, batch_size: int, optimizer: torch.optim.Optimizer) -> None:
        self._batch_size = batch_size
        self._stopwatch = Stopwatch(distributed.device())
        distributed.time_collectives(self._stopwatch)
        optimizer.register_step_pre_hook(lambda *_: self._stopwatch.start("optimizer"))
        optimizer.register_step_post_hook(lambda *_: self._stopwatch.stop("optimizer"))
        self._reset()

    def _reset(self) -> None:
        self._losses: list[Tensor] = []
        self._gradients: list[Tensor] = []
        self._started = time.perf_counter()

    def timing(self, part: str) -> AbstractContextManager[Any]:
        """The block is such a part of the time."""
        assert part in PARTS
        return self._stopwatch.timing(part)

    def add(self, loss: Tensor, gradient: Tensor | None = None) -> None:
        """The loss of this rank's share and (norm, 1 or 0 for finite or not) of the gradient, still on the device."""
        self._losses.append(loss.detach())
        if gradient is not None:
            self._gradients.append(gradient.detach().clone())

    @property
    def is_finite(self) -> bool:
        """Whether this rank has seen nothing but finite numbers since the last flush; waits for the device."""
        return not self._losses or not bool(self._broken().any())

    def flush(self) -> Window:
        """What happened since the last flush, over all ranks; every rank calls it after the same step."""
        num_steps = len(self._losses)
        totals = distributed.sum_over_ranks(torch.cat([torch.stack(self._losses).float(), self._broken().float()]))
        losses, broken = (totals / distributed.world_size()).cpu().chunk(2)
        metrics = {"loss": float(losses.mean())}
        if self._gradients:
            metrics["grad_norm"] = float(torch.stack(self._gradients)[:, 0].float().mean())
        metrics |= self._times(num_steps)
        self._reset()
        if not bool(broken.any()):
            return Window(metrics, None)
        first = int(broken.ne(0).nonzero()[0])
        return Window(metrics, num_steps - 1 - first, float(losses[first]))

    def _broken(self) -> Tensor:
        """Of each step since the last flush, whether its loss or gradient is not finite here."""
        broken = ~torch.stack(self._losses).isfinite()
        if self._gradients:
            gradients = torch.stack(self._gradients)
            broken |= (gradients[:, 1] == 0) | ~gradients[:, 0].isfinite()
        return broken

    def _times(self, num_steps: int) -> dict[str, float]:
        parts = self._stopwatch.read()
        seconds = time.perf_counter() - self._started
        parts["step"] = parts.get("step", 0.0) - parts.get("optimizer", 0.0)
        names = PARTS if distributed.world_size() == 1 else (*PARTS, "communication")
        shares = {f"time/{name}": parts.get(name, 0.0) / seconds for name in names}
        return {"samples_per_s": self._batch_size * num_steps / seconds, **shares}
