"""The training loop of one stage, from its newest checkpoint to its encoder."""

import time
from typing import Any

import safetensors.torch
import torch
from torch import nn

from clusters import distributed
from clusters.checkpoint import Checkpoints
from clusters.config import InputError
from clusters.launch import report
from clusters.storage import Folder
from clusters.tracking import Progress, Tracker, say
from data.combined import AnyDataset, parts_of, samples_of_parts, shares
from data.loader import training_batches
from data.order import keyed_generator
from pretrain.batches import ViewBatches, finished_views
from pretrain.config import PretrainConfig
from pretrain.encoder_folder import load_backbone, load_weights, read_seen
from pretrain.export import export_encoder, origins, seen_in
from pretrain.heads import first_layers
from pretrain.initial_weights import Start, start
from pretrain.methods import METHODS
from pretrain.monitor import probe, probe_dataset
from pretrain.optim import build_optimizer, learning_rate
from pretrain.stage import Rows, Samples

PROJECTION = "projection.safetensors"
DIVERGED = "lower this stage's optim.lr or lengthen its warmup, and set on_change=redo; earlier checkpoints are kept"


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

    Leaves `encoder/`, the projection head and, last, `finished.json`. Every rank runs this.
    """
    stage, views = config.stages[number], config.stage_views(number)
    name, device = config.stage_name(number), distributed.device()

    # Samples: images or cases, by method
    method = METHODS[stage.method]
    samples = method.samples(dataset, rows)
    total_steps = stage.num_steps(len(samples))
    for line in _passes(dataset, samples, total_steps * stage.batch_size):
        say(f"{name}: {line}")

    # Model, from the seed or from the stage before
    module, lineage, seen = _build(config, number, previous, total_steps, dataset, rows)
    distributed.global_batch_norm(module)
    module.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = build_optimizer(module, stage.optim)

    # Newest intact checkpoint
    checkpoints = Checkpoints(folder, config.checkpoint)
    restored = checkpoints.restore()
    first_step = restored.step if restored else 0
    if restored:
        module.load_state_dict(restored.state["module"])
        optimizer.load_state_dict(restored.state["optimizer"])
        say(f"{name}: resumed at step {first_step} of {total_steps}")
    tracker.start_section(folder, name)
    tracker.rewind(first_step)

    # Batches from that position on
    in_loader = config.augment == "loader"
    make = ViewBatches(
        dataset, samples, method.pair, views, config.seed, number, stage.batch_size,
        distributed.rank(), distributed.world_size(), augment=in_loader,
    )  # fmt: skip
    batches = training_batches(make, first_step, total_steps, config.loader)
    parallel = distributed.data_parallel(module)
    progress = Progress(name, total_steps, config.tracking, first_step)
    meter = _Meter(stage.batch_size)
    probed = probe_dataset(dataset, config.probe.dataset)
    probe_every = config.probe.every_steps or max(1, total_steps // 10)

    for step in range(first_step, total_steps):
        meter.begin()
        batch = next(batches)
        meter.got_batch()

        # Networks that draw numbers (stochastic depth) draw the same after a resume
        torch.manual_seed(int(keyed_generator("step", config.seed, number, step, distributed.rank()).random_raw() >> 1))
        rate = learning_rate(stage.optim, step, total_steps, stage.batch_size)
        for group in optimizer.param_groups:
            group["lr"] = rate
        images_VBCHW = finished_views(batch, views, device, in_loader, config.encoder.channels)
        with torch.autocast(device.type, torch.bfloat16, enabled=config.precision == "bf16"):
            loss = parallel(images_VBCHW, batch.samples_B.to(device))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        meter.add(loss)

        done = step + 1
        probing = done % probe_every == 0 or done == total_steps
        if done % config.tracking.every_steps == 0 or done == total_steps:
            metrics = meter.flush(name, done) | {"lr": rate, "epoch": done * stage.batch_size / len(samples)}
            tracker.log(done, metrics)
            progress.line(done, {k: metrics[k] for k in ("loss", "lr", "images_per_s")})
            report(metrics)
        if probing:
            _refuse_broken_weights(module, name, done)
            scores = probe(module.encoder, probed, config, views)
            if scores:
                tracker.log(done, scores)
                say(f"{name}  step {done}/{total_steps}  " + "  ".join(f"{k} {v:.3f}" for k, v in scores.items()))
        if checkpoints.due(done) or done == total_steps:
            if distributed.is_main():
                _refuse_broken_weights(module, name, done)
            checkpoints.save(done, {"module": module.state_dict(), "optimizer": optimizer.state_dict()})

    # Encoder for the next stage and for everybody else
    if distributed.is_main():
        projection = {k: v.detach().cpu().contiguous() for k, v in module.projection.state_dict().items()}
        folder.write(PROJECTION, safetensors.torch.save(projection))
        head = first_layers(module.projection, stage.keep_projection_layers)
        fingerprint = export_encoder(folder / "encoder", module.encoder, config, views, lineage, seen, head)
        folder.write_json("finished.json", {"steps": total_steps, "encoder": fingerprint})
    distributed.barrier()


def _build(
    config: PretrainConfig,
    number: int,
    previous: Folder | None,
    total_steps: int,
    dataset: AnyDataset,
    rows: Rows,
) -> tuple[Any, list[dict[str, Any]], Any]:
    """The method's module with the weights it starts from, its lineage, and what it will have seen."""
    stage, views = config.stages[number], config.stage_views(number)
    torch.manual_seed(config.seed * 1000 + number)
    if previous is None:
        begun = start(config.encoder, views)
    else:
        encoder, card = load_backbone(str(previous), views.size_px)
        begun = Start(encoder, list(card.lineage), read_seen(str(previous)), None)
    lineage, before = begun.lineage, begun.seen
    module = METHODS[stage.method](stage, begun.encoder, int(begun.encoder.num_features))  # type: ignore[arg-type]
    first_layers(module.projection, stage.keep_projection_layers)  # refused now rather than at the end
    if previous is not None:
        weights = safetensors.torch.load(previous.read(PROJECTION))
        if {k: v.shape for k, v in weights.items()} == {k: v.shape for k, v in module.projection.state_dict().items()}:
            load_weights(module.projection, weights, previous.file(PROJECTION), "projection head")
        else:
            say(f"{config.stage_name(number)}: the projection head has another shape and starts anew")
    lineage.append(
        {
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
    )
    # Only rank 0 writes it, and of a large dataset it takes much memory
    return module, lineage, seen_in(dataset, rows, before) if distributed.is_main() else None


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


def _refuse_broken_weights(module: nn.Module, name: str, step: int) -> None:
    """Raise InputError rather than probe weights that are not finite, or let them replace good checkpoints."""
    if not all(bool(torch.isfinite(p).all()) for p in module.parameters()):
        raise InputError(f"{name}: weights are not finite at step {step}; {DIVERGED}")


class _Meter:
    """Loss, speed and the share of time spent waiting for data, since the last flush."""

    def __init__(self, batch_size: int) -> None:
        self._batch_size = batch_size
        self._reset()

    def _reset(self) -> None:
        self._losses: list[torch.Tensor] = []
        self._waited = 0.0
        self._started = time.perf_counter()

    def begin(self) -> None:
        self._asked = time.perf_counter()

    def got_batch(self) -> None:
        self._waited += time.perf_counter() - self._asked

    def add(self, loss: torch.Tensor) -> None:
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
