"""The training loop of one stage, from its newest checkpoint to its encoder.

Shapes: V views, B samples on this rank, C colours, H and W pixels, G kinds of group.
"""

from functools import partial
from typing import Any

from clusters import checkpoint_files, distributed, termination
from clusters.checkpoint import Checkpoints
from clusters.storage import Folder
from clusters.tracking import Tracker, say
from data.combined import AnyDataset, parts_of, samples_of_parts, shares
from pretrain.config import PretrainConfig
from pretrain.export import export_encoder, origins, seen_in
from pretrain.feeding import fed_batches, keys_of_batch
from pretrain.heads import first_layers
from pretrain.initial_weights import Start
from pretrain.methods import METHODS
from pretrain.monitor import SCORES
from pretrain.nonfinite import NotFinite
from pretrain.saving import Saving
from pretrain.stage import Rows, Samples
from pretrain.training import Training, build_module, write_heads
from pretrain.watch import Watch


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

    # Model, from the seed or from the stage before, and steps from its newest intact checkpoint on
    restored = bool(checkpoint_files.names(folder / checkpoint_files.CHECKPOINTS))
    module, begun = build_module(config, number, previous, restored)
    training = Training(config, number, module, total_steps)
    saved = Checkpoints(folder, config.checkpoint, tracker.flush, config.cluster.timeout_s)
    with termination.heeding(), saved as checkpoints:
        _take_steps(config, number, folder, dataset, samples, training, tracker, checkpoints)

    # Encoder for the next stage and for everybody else
    if distributed.is_main():
        seen = seen_in(dataset, rows, begun.seen)
        lineage = [*begun.lineage, _lineage(config, number, begun, total_steps, dataset, rows)]
        views = config.stage_views(number)
        with training.averaged():
            heads = write_heads(module, folder)
            head = first_layers(module.projection, stage.keep_projection_layers)
            fingerprint = export_encoder(folder / "encoder", module.encoder, config, views, lineage, seen, head)
        folder.write_json("finished.json", {"steps": total_steps, "encoder": fingerprint, "heads": heads})
    distributed.barrier()


def _take_steps(
    config: PretrainConfig,
    number: int,
    folder: Folder,
    dataset: AnyDataset,
    samples: Samples,
    training: Training,
    tracker: Tracker,
    checkpoints: Checkpoints,
) -> None:
    """All steps that are not done yet, watched and saved."""
    name, total_steps = config.stage_name(number), training.total_steps
    keys_of = partial(keys_of_batch, config, number, dataset, samples)
    not_finite = NotFinite(name, config.compute.on_nonfinite, folder, tracker, keys_of)
    saving = Saving(name, training, not_finite, checkpoints)
    first_step = saving.restore()
    tracker.start_section(folder, name, SCORES, checkpoints.attempt.is_newest)
    tracker.rewind(first_step)

    watch = Watch(config, number, dataset, training, tracker, first_step, len(samples))
    batches = fed_batches(config, number, dataset, samples, first_step, total_steps)
    for step in range(first_step, total_steps):
        with watch.timing("data_wait"):
            views_VBCHW, groups_VBG = next(batches)
        with watch.timing("step"):
            output = training.step(step, views_VBCHW, groups_VBG)
        not_finite.add(step, training.health[1])
        done, leaves = step + 1, False
        alone = distributed.world_size() == 1 and termination.notice() is not None
        if done % config.tracking.every_steps == 0 or done == total_steps or alone:
            leaves = saving.look()
            not_finite.check()
        if leaves:
            saving.save(done)  # before all else: who told us may not wait long
        scores = watch.after_step(done, output)
        if leaves:
            saving.leave(done)
        if saving.due(done, scores):
            with watch.timing("checkpoint"):
                saving.save(done, scores)
    saving.wait()
    not_finite.end()  # also of a stage that was told to leave at its last step, and has none to take any more


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
