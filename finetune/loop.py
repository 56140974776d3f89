"""Full fine-tuning: encoder and a fresh head, end to end or in part, resumed to the exact next batch.

Shapes: B images on this rank, C = 3 colours, H and W pixels, K labels, M numbers an image.
"""

import hashlib
import math
from typing import Any, cast

import numpy as np
import safetensors.torch
import torch
from torch import Tensor, nn

from clusters import distributed, termination
from clusters.checkpoint import Checkpoints
from clusters.config import InputError
from clusters.launch import report
from clusters.storage import Folder
from clusters.tracking import Progress, Tracker, say
from data.loader import evaluation_batches
from data.prefetch import training_batches
from finetune.bootstrap import Floats
from finetune.cohort import Cohort, Rows, case_auroc
from finetune.config import FinetuneConfig
from finetune.contenders import Contender, load
from finetune.full_batches import FullBatches
from finetune.heads import Classifier, pool_images
from finetune.learner import Training
from finetune.parameters import choose_trained, drawn_by, plain_weights
from finetune.tasks import Task, score_key
from pretrain.encoder_folder import EncoderCard
from pretrain.views import ViewConfig, normalise

WEIGHTS, FINISHED = "model.safetensors", "finished.json"


def train_full(
    contender: Contender, cohort: Cohort, config: FinetuneConfig, folder: Folder, tracker: Tracker
) -> tuple[Classifier, EncoderCard]:
    """Train one contender in its folder and return it with the weights of its best epoch.

    The best epoch is that of the highest figure on validation (`case_auroc`), the first of equal ones; it ends early
    by `full.patience`. Leaves the weights and, last, `finished.json`; where that is there, nothing is trained. On
    every rank. Raises Stopped on all of them, with the step saved, where one is told to leave.
    """
    settings, title = config.full, f"{contender.name}, full"
    model, card, views = _build(contender, cohort, config)
    finished = folder.read_json(FINISHED) if folder.exists(FINISHED) else None
    if distributed.broadcast_object(finished) is not None:
        return _with_best_weights(model, folder), card
    with drawn_by(config.seed):
        choose_trained(model, settings, card.architecture)
    training = Training(model, cohort, views, card.config.channels, config)
    saved = Checkpoints(folder, config.checkpoint, tracker.flush, config.cluster.timeout_s)
    tracker.start_section(folder, contender.name, permitted=saved.attempt.is_newest)
    with termination.heeding(), saved as checkpoints:
        best = _take_steps(
            training, FullBatches(cohort, views, config), title, card, cohort, config, tracker, checkpoints
        )
    _finish(best, settings.epochs, title, folder, cohort.task)
    return _with_best_weights(_build(contender, cohort, config)[0], folder), card


def _take_steps(
    training: Training,
    make_batch: FullBatches,
    title: str,
    card: EncoderCard,
    cohort: Cohort,
    config: FinetuneConfig,
    tracker: Tracker,
    checkpoints: Checkpoints,
) -> dict[str, Any]:
    """All steps that are not done yet, validated and saved; returns the best epoch, its score and its weights."""
    settings, model = config.full, training.model
    steps_per_epoch = max(1, round(len(make_batch.samples) / settings.batch_size))
    total_steps = settings.epochs * steps_per_epoch

    # Newest intact checkpoint
    first_step, best = _resumed(training, checkpoints)
    if first_step:
        say(f"{title}: resumed at step {first_step} of {total_steps}")
    tracker.rewind(first_step)
    batches = training_batches(make_batch, first_step, total_steps, config.loader, make_batch.num_bytes)
    progress = Progress(title, total_steps, config.tracking, first_step)
    losses: list[Tensor] = []

    done = first_step
    while done < total_steps and not _is_stopped(best, done, steps_per_epoch, settings.patience):
        loss, rate = training.step(done, total_steps, next(batches))
        losses.append(loss)
        done += 1
        logging = done % config.tracking.every_steps == 0 or done == total_steps
        validating = done % steps_per_epoch == 0
        saving, leaver = _to_save(checkpoints, done, total_steps)
        mean_loss = _finite_loss(losses, model, title, done) if logging or validating or saving else 0.0
        if logging:
            metrics = {"loss": mean_loss, "lr": rate, "epoch": done / steps_per_epoch}
            losses.clear()
            tracker.log(done, metrics)
            progress.line(done, metrics)
            report(metrics)
        if validating:
            score = case_auroc(cohort, cohort.val, predict(model, cohort, cohort.val, card, config))
            tracker.log(done, {score_key(cohort.task): score})
            best = _better(best, done // steps_per_epoch, score, model)
        if saving:
            checkpoints.save(done, {**training.state(), "best": best})
        if leaver and done < total_steps:
            checkpoints.wait()
            say(f"{title}: told to leave ({leaver}); saved at step {done} of {total_steps}")
            raise termination.Stopped
    checkpoints.wait()
    return best


def _to_save(checkpoints: Checkpoints, done: int, total_steps: int) -> tuple[bool, str | None]:
    """Whether all ranks save now, and the notice to leave that one of them has.

    Raises on all ranks what keeps rank 0 from saving.
    """
    # Rank 0 decides when it is time, so that all ranks look at the loss together
    told = distributed.gather_objects((checkpoints.due(done), termination.notice(), checkpoints.problem()))
    problem, leaver = (next((one[at] for one in told if one[at] is not None), None) for at in (2, 1))
    if problem is not None:
        raise problem
    return done == total_steps or told[0][0] or leaver is not None, leaver


def _resumed(training: Training, checkpoints: Checkpoints) -> tuple[int, dict[str, Any]]:
    """The step to go on from, with the training restored to it, and the best epoch until then."""
    restored = checkpoints.restore()
    if restored is None:
        return 0, {"epoch": 0, "score": -math.inf, "weights": {}}
    best = restored.state.pop("best")
    training.restore(restored.state)
    return restored.step, best


def _better(best: dict[str, Any], epoch: int, score: float, model: Classifier) -> dict[str, Any]:
    """The best epoch until now: a later one only if it is better, the first one whatever its score."""
    if score > best["score"] or not best["weights"]:
        return {"epoch": epoch, "score": score, "weights": plain_weights(model)}
    return best


def _is_stopped(best: dict[str, Any], done: int, steps_per_epoch: int, patience: int | None) -> bool:
    """Whether so many epochs have passed without a better one; the same wherever a run was resumed."""
    return patience is not None and bool(best["weights"]) and done // steps_per_epoch - best["epoch"] >= patience


def _finish(best: dict[str, Any], epochs: int, title: str, folder: Folder, task: Task) -> None:
    """The best epoch's weights, for everybody."""
    say(f"{title}: epoch {best['epoch']} of {epochs}, validation {task.score_name} {best['score']:.4f}")
    if distributed.is_main():
        folder.write(WEIGHTS, safetensors.torch.save(best["weights"]))
        chosen = {"epoch": best["epoch"], "of": epochs, score_key(task): best["score"]}
        folder.write_json(FINISHED, {"chosen": chosen, "weights_sha256": _weights_hash(folder)})
    distributed.barrier()


@torch.no_grad()
def predict(model: nn.Module, cohort: Cohort, rows: Rows, card: EncoderCard, config: FinetuneConfig) -> Floats:
    """Logits (len(rows), K) in evaluation mode, of each image or of its case (`full.pooling`), on every rank."""
    model.eval()
    compute = images_to_numbers(model, card, config)
    mine = np.arange(distributed.rank(), len(rows), distributed.world_size())
    size_px = config.size_px or card.size_px
    parts = [
        compute(pixels.numpy())
        for _, pixels in evaluation_batches(cohort.dataset, rows[mine], size_px, config.feature_batch_size)
    ]
    gathered = distributed.gather_objects((mine, np.concatenate(parts) if parts else None))
    found = [(places, values) for places, values in gathered if values is not None]
    numbers = np.empty((len(rows), found[0][1].shape[1]), dtype=np.float32)
    for places, values in found:
        numbers[places] = values
    return pool_images(numbers, cohort.dataset.case_of[rows], config.full.pooling)


def images_to_numbers(model: nn.Module, card: EncoderCard, config: FinetuneConfig) -> Any:
    """A function from uint8 (B, 3, H, W) to what the model makes of them, float32 (B, D).

    The model keeps the mode it is in; it must stand on this worker's device.
    """
    device = distributed.device()

    @torch.no_grad()
    def compute(pixels_BCHW: Any) -> Any:
        pixels = torch.from_numpy(pixels_BCHW).to(device).float() / 255
        images = normalise(pixels, card.mean, card.std, card.config.channels)
        with torch.autocast(device.type, torch.bfloat16, enabled=config.precision == "bf16"):
            numbers = model(images.contiguous(memory_format=torch.channels_last))
        return numbers.float().cpu().numpy()

    return compute


def _build(contender: Contender, cohort: Cohort, config: FinetuneConfig) -> tuple[Classifier, EncoderCard, ViewConfig]:
    encoder, card = load(contender, config)
    augmentation = config.full.augmentation
    views = ViewConfig(
        size_px=config.size_px or card.size_px,
        crop_area=augmentation.crop_area,
        flip_horizontal=augmentation.flip_horizontal,
        flip_vertical=augmentation.flip_vertical,
        jitter=0.8 if augmentation.jitter_strength else 0.0,
        jitter_strength=augmentation.jitter_strength,
        grey=0.0,
        blur=0.0,
        mean=card.mean,
        std=card.std,
    )
    num_features, num_labels = int(cast(Any, encoder).num_features), len(cohort.task.label_names)
    with drawn_by(config.seed):
        return Classifier(encoder, num_features, num_labels, config.full.pooling), card, views


def _finite_loss(losses: list[Tensor], model: nn.Module, title: str, step: int) -> float:
    """The mean of the losses over ranks. Raises InputError, on all ranks, where it or a weight is not finite."""
    mean = distributed.sum_over_ranks(torch.stack(losses).mean()) / distributed.world_size()
    whole = torch.stack([torch.isfinite(tensor).all() for tensor in model.state_dict().values()]).all()
    if not torch.isfinite(mean) or not whole:
        what = "the weights are not finite" if torch.isfinite(mean) else f"the loss is {float(mean)}"
        raise InputError(f"{title}: {what} at step {step}; lower full.optim.lr. The last checkpoint is kept")
    return float(mean)


def _with_best_weights(model: Classifier, folder: Folder) -> Classifier:
    if folder.read_json(FINISHED)["weights_sha256"] != _weights_hash(folder):
        raise InputError(f"{folder.file(WEIGHTS)}: altered; remove {folder.location} and run the command again")
    model.load_state_dict(safetensors.torch.load(folder.read(WEIGHTS)))
    return model.eval().to(distributed.device())


def _weights_hash(folder: Folder) -> str:
    return hashlib.sha256(folder.read(WEIGHTS)).hexdigest()
