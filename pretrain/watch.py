"""What is measured, said and judged while a stage trains."""

import socket
import time
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import nn

from clusters import distributed
from clusters.config import InputError
from clusters.launch import report
from clusters.tracking import Progress, Tracker, say
from data.combined import AnyDataset
from data.loader import loader_processes, room_for_processes
from pretrain.alarms import Alarms
from pretrain.config import PretrainConfig
from pretrain.feeding import batch_bytes
from pretrain.health import measure, possible_directions
from pretrain.meter import DIVERGED, TIMES, Meter
from pretrain.methods.method import Output
from pretrain.monitor import Pace, num_probed, probe, probe_dataset
from pretrain.stragglers import Stragglers, fixed_work_s, waiting_share
from pretrain.training import Training


class Watch:
    """The eyes of a stage: `timing` around the parts of a step, `after_step` after it. Every rank has one.

    Metrics every tracking.every_steps steps, from tensors that stay on the device until then; probes now and then.
    """

    def __init__(
        self,
        config: PretrainConfig,
        number: int,
        dataset: AnyDataset,
        training: Training,
        tracker: Tracker,
        first_step: int,
        num_samples: int,
    ) -> None:
        self._config, self._training, self._tracker = config, training, tracker
        self._num_samples = num_samples
        self._name, self._views = config.stage_name(number), config.stage_views(number)
        self._batch_size, self._total_steps = config.stages[number].batch_size, training.total_steps
        self._collapsed_loss = training.module.collapsed_loss(self._batch_size)
        self._meter = Meter(self._batch_size, training.optimizer)
        self._progress = Progress(self._name, self._total_steps, config.tracking, first_step)
        self._probed = probe_dataset(dataset, config.probe.dataset)
        num_images = num_probed(self._probed, config)
        self._pace = Pace(config.probe.every_steps, self._total_steps, 2 * self._batch_size, num_images)
        self._first_step, self._started = first_step, time.monotonic()
        self._alarms = Alarms(self._total_steps, _more_data(config, number))
        width = config.stages[number].projection_dim
        self._alarms.possible_directions = possible_directions(self._batch_size, width)
        named = config.tracking.privacy == "normal"
        self._stragglers = Stragglers(distributed.gather_objects(socket.gethostname() if named else None))
        for record in tracker.records():  # those of before a resume
            self._alarms.see(record["step"], record)

    def timing(self, part: str) -> AbstractContextManager[Any]:
        """The block is such a part of the time, see `Meter`."""
        return self._meter.timing(part)

    def after_step(self, done: int, output: Output) -> dict[str, float]:
        """After each step, with the number of steps that are done; every rank calls it.

        Returns the probe's scores, on rank 0 where there was one.

        Raises InputError on all ranks where the loss of a step that was taken, or the weights, are not finite.
        """
        self._meter.add(output.loss, self._training.health)
        last, scores = done == self._total_steps, {}
        if last or done % self._config.tracking.every_steps == 0:
            self._log(done, output)
        if (last or done % self._pace.every_steps == 0) and self._probe_is_due(done):
            started = time.monotonic()
            with self._meter.timing("probe"):
                scores = self._probe(done)
            self._pace.took(time.monotonic() - started)
        if last:
            distributed.time_collectives(None)
        return scores

    def _probe_is_due(self, done: int) -> bool:
        """By rank 0's clock."""
        seconds = time.monotonic() - self._started
        return distributed.broadcast_object(self._pace.due(done, done - self._first_step, seconds))

    def _log(self, done: int, output: Output) -> None:
        metrics = self._meter.flush(self._name, done)
        if self._collapsed_loss is not None:
            metrics["loss_collapsed"] = self._collapsed_loss
        metrics["lr"] = self._training.rate(done - 1)
        metrics["epoch"] = done * self._batch_size / self._num_samples
        metrics |= measure(output)
        metrics |= self._compare_ranks(done)
        self._tracker.log(done, metrics)
        self._progress.line(done, {k: metrics[k] for k in ("loss", "lr", "samples_per_s") if k in metrics})
        if distributed.is_main():
            for alarm in self._alarms.see(done, metrics):
                self._tracker.alarm(done, alarm.kind, alarm.reason)
        report(metrics)

    def _compare_ranks(self, done: int) -> dict[str, float]:
        """How long the ranks wait for the slowest one, which is named where it is always the same."""
        if distributed.world_size() == 1:
            return {}
        mine, device = [self._meter.seconds_a_step[name] for name in TIMES], distributed.device()
        if device.type == "cuda":
            mine.append(fixed_work_s(device))
        found = distributed.gather(torch.tensor([mine], device=device)).double().cpu().numpy()
        seconds_RC, fixed_R = found[:, : len(TIMES)], found[:, -1] if device.type == "cuda" else None
        if distributed.is_main():
            for alarm in self._stragglers.see(seconds_RC, fixed_R):
                self._tracker.alarm(done, alarm.kind, alarm.reason)
        return {"time/waiting_for_slowest": waiting_share(seconds_RC)}

    def _probe(self, done: int) -> dict[str, float]:
        module = self._training.module
        distributed.stop_together(broken_weights(module, self._name, done))
        with self._training.averaged():
            scores = probe(module.encoder, self._probed, self._config, self._views)
        if scores:
            self._tracker.log(done, scores)
            said = "  ".join(f"{k.removeprefix('probe/')} {v:.3f}" for k, v in scores.items())
            say(f"{self._name}  step {done}/{self._total_steps}  {said}")
        return scores


def broken_weights(module: nn.Module, name: str, step: int) -> InputError | None:
    """Why weights are neither to be probed nor to replace good checkpoints, where they are not finite."""
    if bool(torch.stack([torch.isfinite(p).all() for p in module.parameters()]).all()):
        return None
    return InputError(f"{name}: weights are not finite at step {step}; {DIVERGED}")


def _more_data(config: PretrainConfig, number: int) -> str:
    """How to mend a loader that is too slow."""
    size = batch_bytes(config, number)
    loaders = loader_processes(config.loader, size)
    short = loaders >= room_for_processes(config.loader, size)
    more = "give it more shared memory (/dev/shm; docker's --shm-size) and " if short else ""
    return f"{more}raise loader.num_processes ({loaders} now), or import the images at a smaller size (short_side_px)"
