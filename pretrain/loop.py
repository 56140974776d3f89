"""The training loop of one stage, from its newest checkpoint to its encoder.

Shapes: V views, B samples on this rank, C colours, H and W pixels, G kinds of group.
"""

from functools import partial
from typing import Any

import torch
from torch import nn

from clusters import distributed
from clusters.checkpoint import Checkpoints
from clusters.config import InputError
from clusters.launch import report
from clusters.storage import Folder
from clusters.tracking import Progress, Tracker, say
from data.combined import AnyDataset, parts_of, samples_of_parts, shares
from pretrain.config import PretrainConfig
from pretrain.export import export_encoder, origins, seen_in
from pretrain.feeding import fed_batches, keys_of_batch
from pretrain.heads import first_layers
from pretrain.initial_weights import Start
from pretrain.meter import DIVERGED, Meter
from pretrain.methods import METHODS
from pretrain.methods.method import Output
from pretrain.monitor import probe, probe_dataset
from pretrain.nonfinite import NotFinite
from pretrain.stage import Rows, Samples
from pretrain.training import Training, build_module, write_heads


def run_stage(
    config: PretrainConfig,
    number: int,
    folder: Folder,
    previous: Folder | None,
    dataset: AnyDataset,
    rows: Rows,
    tracker: Tracker,
) -> None:
    """Train stage `number` on these rows, starting from the previous stage's weights; resumes by itself.

    Leaves `encoder/`, the heads and, last, `finished.json`. Every rank runs this.
    """
    stage, name = config.stages[number], config.stage_name(number)

    # Samples: images or cases, by method
    samples = METHODS[stage.method].samples(dataset, rows)
    total_steps = stage.num_steps(len(samples))
    for line in _passes(dataset, samples, total_steps * stage.batch_size):
        say(f"{name}: {line}")

    # Model, from the seed or from the stage before, and its newest intact checkpoint
    module, begun = build_module(config, number, previous)
    training = Training(config, number, module, total_steps)
    checkpoints = Checkpoints(folder, config.checkpoint)
    restored = checkpoints.restore()
    first_step = restored.step if restored else 0
    if restored:
        training.load_state(restored.state)
        say(f"{name}: resumed at step {first_step} of {total_steps}")
    tracker.start_section(folder, name)
    tracker.rewind(first_step)

    # Steps from there on
    batches = fed_batches(config, number, dataset, samples, first_step, total_steps)
    not_finite = NotFinite(
        name, config.compute.on_nonfinite, folder, partial(keys_of_batch, config, number, dataset, samples)
    )
    watch = _Watch(config, number, dataset, training, tracker, first_step, len(samples))
    for step in range(first_step, total_steps):
        watch.meter.begin()
        views_VBCHW, groups_VBG = next(batches)
        watch.meter.got_batch()
        output = training.step(step, views_VBCHW, groups_VBG)
        not_finite.add(step, training.health[1])
        done = step + 1
        if done % config.tracking.every_steps == 0 or done == total_steps:
            not_finite.check()
        watch.after_step(done, output)
        if checkpoints.due(done) or done == total_steps:
            not_finite.check()
            if distributed.is_main():
                refuse_broken_weights(module, name, done)
            checkpoints.save(done, training.state())

    # Encoder for the next stage and for everybody else
    if distributed.is_main():
        seen = seen_in(dataset, rows, begun.seen)
        lineage = [*begun.lineage, _lineage(config, number, begun, total_steps, dataset, rows)]
        views = config.stage_views(number)
        with training.averaged():
            write_heads(module, folder)
            head = first_layers(module.projection, stage.keep_projection_layers)
            fingerprint = export_encoder(folder / "encoder", module.encoder, config, views, lineage, seen, head)
        folder.write_json("finished.json", {"steps": total_steps, "encoder": fingerprint})
    distributed.barrier()


class _Watch:
    """What is said, measured and probed while a stage trains."""

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
        self.config, self.training, self.tracker, self.num_samples = config, training, tracker, num_samples
        self.name, self.views = config.stage_name(number), config.stage_views(number)
        self.stage, self.total_steps = config.stages[number], training.total_steps
        self.meter = Meter(self.stage.batch_size)
        self.progress = Progress(self.name, self.total_steps, config.tracking, first_step)
        self.probed = probe_dataset(dataset, config.probe.dataset)
        self.probe_every = config.probe.every_steps or max(1, self.total_steps // 10)

    def after_step(self, done: int, output: Output) -> None:
        """After each step, with the number of steps that are done; every rank calls it."""
        self.meter.add(output.loss, self.training.health[1])
        last = done == self.total_steps
        if last or done % self.config.tracking.every_steps == 0:
            self._log(done)
        if last or done % self.probe_every == 0:
            self._probe(done)

    def _log(self, done: int) -> None:
        metrics = self.meter.flush(self.name, done)
        metrics["lr"] = self.training.rate(done - 1)
        metrics["epoch"] = done * self.stage.batch_size / self.num_samples
        self.tracker.log(done, metrics)
        self.progress.line(done, {k: metrics[k] for k in ("loss", "lr", "images_per_s") if k in metrics})
        report(metrics)

    def _probe(self, done: int) -> None:
        module = self.training.module
        refuse_broken_weights(module, self.name, done)
        with self.training.averaged():
            scores = probe(module.encoder, self.probed, self.config, self.views)
        if scores:
            self.tracker.log(done, scores)
            said = "  ".join(f"{k} {v:.3f}" for k, v in scores.items())
            say(f"{self.name}  step {done}/{self.total_steps}  {said}")


def _lineage(
    config: PretrainConfig, number: int, begun: Start, total_steps: int, dataset: AnyDataset, rows: Rows
) -> dict[str, Any]:
    """What the stage adds to the lineage of its encoder."""
    stage = config.stages[number]
    return {
        "stage": config.stage_name(number),
        "method": stage.method,
        "steps": total_steps,
        "batch_size": stage.batch_size,
        "config": stage.model_dump(mode="json"),
        "seed": config.seed,
        "weights": config.weights,
        "datasets": origins(dataset, rows, config.splits),
        **({"starts_from": begun.starts_from} if begun.starts_from else {}),
    }


def _passes(dataset: AnyDataset, samples: Samples, num_positions: int) -> list[str]:
    """Of several datasets: the share of each and how often the stage passes over it."""
    parts = parts_of(dataset)
    if len(parts) == 1:
        return []
    counts = [int(sizes.sum()) for sizes in samples_of_parts(dataset, samples.shard_sizes)]
    return [
        f"{part.manifest.name}: {100 * share:.3g} % of each batch, {num_positions * share / count:.3g} passes over "
        f"{count} samples"
        for part, share, count in zip(parts, shares(dataset, samples.shard_sizes), counts)
    ]


def refuse_broken_weights(module: nn.Module, name: str, step: int) -> None:
    """Raise InputError rather than probe weights that are not finite, or let them replace good checkpoints."""
    if not all(bool(torch.isfinite(p).all()) for p in module.parameters()):
        raise InputError(f"{name}: weights are not finite at step {step}; {DIVERGED}")
