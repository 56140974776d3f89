"""What is measured, said and judged while a stage trains."""

from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import torch
from torch import nn

from clusters import distributed
from clusters.config import InputError
from clusters.launch import report
from clusters.tracking import Progress, Tracker, say
from data.combined import AnyDataset, order_of
from data.loader import positions_of
from pretrain.alarms import Alarms
from pretrain.config import PretrainConfig
from pretrain.health import measure, possible_directions
from pretrain.meter import Meter, Window
from pretrain.methods.method import Output
from pretrain.monitor import probe, probe_dataset
from pretrain.stage import Samples
from pretrain.training import Training

DIVERGED = "lower this stage's optim.lr or lengthen its warmup, and set on_change=redo; earlier checkpoints are kept"
KEYS_SAID = 4


class Watch:
    """The eyes of a stage: `timing` around the parts of a step, `after_step` after it. Every rank has one.

    Metrics every tracking.every_steps steps, from tensors that stay on the device until then; probes now and then.
    """

    def __init__(
        self,
        config: PretrainConfig,
        number: int,
        dataset: AnyDataset,
        samples: Samples,
        training: Training,
        tracker: Tracker,
        first_step: int,
    ) -> None:
        self._config, self._training, self._tracker = config, training, tracker
        self._dataset, self._samples = dataset, samples
        self._name, self._views = config.stage_name(number), config.stage_views(number)
        self._batch_size, self._total_steps = config.stages[number].batch_size, training.total_steps
        self._collapsed_loss = training.module.collapsed_loss(self._batch_size)
        self._meter = Meter(self._batch_size, training.optimizer)
        self._progress = Progress(self._name, self._total_steps, config.tracking, first_step)
        self._probed = probe_dataset(dataset, config.probe.dataset)
        self._probe_every = config.probe.every_steps or max(1, self._total_steps // 10)
        self._alarms = Alarms(self._total_steps, _more_data(config))
        for record in tracker.records():  # those of before a resume
            self._alarms.see(record["step"], record)

    def timing(self, part: str) -> AbstractContextManager[Any]:
        """The block is such a part of the time, see `Meter`."""
        return self._meter.timing(part)

    def after_step(self, done: int, output: Output) -> None:
        """After each step, with the number of steps that are done; every rank calls it.

        Raises InputError on all ranks where a loss, a gradient or the weights are not finite.
        """
        self._meter.add(output.loss, getattr(self._training, "health", None))
        last = done == self._total_steps
        if last or done % self._config.tracking.every_steps == 0:
            self._log(done, output)
        if last or done % self._probe_every == 0:
            with self._meter.timing("probe"):
                self._probe(done)
        if last:
            distributed.time_collectives(None)

    def may_save(self) -> bool:
        """Whether rank 0 may save this state: what is not finite must not replace a good checkpoint."""
        return not distributed.is_main() or (self._meter.is_finite and _is_finite(self._training.module))

    def _log(self, done: int, output: Output) -> None:
        window = self._meter.flush()
        if window.broken_ago is not None:
            self._stop(done - window.broken_ago, window)
        metrics = dict(window.metrics)
        if self._collapsed_loss is not None:
            metrics["loss_collapsed"] = self._collapsed_loss
        metrics["lr"] = self._training.rate(done - 1)
        metrics["epoch"] = done * self._batch_size / len(self._samples)
        metrics |= measure(output)
        self._tracker.log(done, metrics)
        self._progress.line(done, {k: metrics[k] for k in ("loss", "lr", "samples_per_s")})
        if distributed.is_main():
            self._alarms.possible_directions = possible_directions(output)
            for alarm in self._alarms.see(done, metrics):
                self._tracker.alarm(done, alarm.kind, alarm.reason)
        report(metrics)

    def _stop(self, step: int, window: Window) -> None:
        """Stop all ranks, each of which knows of the broken step, and leave the keys of its batch."""
        loss = window.broken_loss
        what = "the gradient is not finite" if np.isfinite(loss) else f"the loss is {loss}"
        keys: list[str] = []
        if distributed.is_main():
            keys = batch_keys(self._dataset, self._samples, self._config.seed, step, self._batch_size)
        some = ", ".join(keys[:KEYS_SAID]) + (f" and {len(keys) - KEYS_SAID} more" if len(keys) > KEYS_SAID else "")
        self._tracker.alarm(step, "not finite", f"{what}; the batch of this step: {some}", keys)
        raise InputError(
            f"{self._name}: {what} at step {step} (the keys of its batch are in metrics.jsonl); {DIVERGED}"
        )

    def _probe(self, done: int) -> None:
        module = self._training.module
        if not _is_finite(module):
            raise InputError(f"{self._name}: weights are not finite at step {done}; {DIVERGED}")
        scores = probe(module.encoder, self._probed, self._config, self._views)
        if scores:
            self._tracker.log(done, scores)
            said = "  ".join(f"{k.removeprefix('probe/')} {v:.3f}" for k, v in scores.items())
            say(f"{self._name}  step {done}/{self._total_steps}  {said}")


def batch_keys(dataset: AnyDataset, samples: Samples, seed: int, step: int, batch_size: int) -> list[str]:
    """Keys of the cases in the global batch of a step, counted from 1. The order is arithmetic: nobody keeps them."""
    order = order_of(dataset, samples.shard_sizes, seed)
    numbers = order.at(positions_of(step - 1, batch_size, 0, 1)).tolist()
    return [str(key) for key in dataset.column("key")[[int(samples[number][0]) for number in numbers]]]


def _is_finite(module: nn.Module) -> bool:
    """Whether all weights are; they are the same on all ranks, so that all ranks agree."""
    return bool(torch.stack([torch.isfinite(p).all() for p in module.parameters()]).all())


def _more_data(config: PretrainConfig) -> str:
    """How to mend a loader that is too slow."""
    loaders = config.loader.num_processes
    return f"raise loader.num_processes ({loaders} now), or import the images at a smaller size (short_side_px)"
