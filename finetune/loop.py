"""Full fine-tuning: encoder and a fresh linear head, end to end, resumed to the exact next batch.

Shapes: B images on this rank, C = 3 colours, H and W pixels, K labels.
"""

import hashlib
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor, nn

from clusters import distributed
from clusters.batch_norm import global_batch_norm
from clusters.checkpoint import Checkpoints
from clusters.config import InputError
from clusters.launch import report
from clusters.storage import Folder
from clusters.tracking import Progress, Tracker, say
from data.loader import evaluation_batches, training_batches
from finetune.bootstrap import Floats
from finetune.cohort import Cohort, Rows
from finetune.config import FinetuneConfig
from finetune.contenders import Contender, load
from finetune.linear import case_auroc
from finetune.task_weights import LearnedTaskWeights
from pretrain.batches import ViewBatches, finished_views
from pretrain.encoder_folder import EncoderCard
from pretrain.optim import build_optimizer, learning_rate
from pretrain.stage import Samples
from pretrain.views import ViewConfig, normalise

WEIGHTS, FINISHED = "model.safetensors", "finished.json"


class Classifier(nn.Module):
    """Normalised images (B, 3, H, W) to logits (B, K)."""

    def __init__(self, encoder: nn.Module, num_features: int, num_labels: int, num_tasks: int = 1) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = nn.Linear(num_features, num_labels)
        # Zero weights: the first predictions are even, whatever the scale of the features.
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)
        self.task_weights = LearnedTaskWeights(num_tasks) if num_tasks > 1 else None

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Logits."""
        return self.head(self.encoder(images_BCHW))


def train_full(
    contender: Contender, cohort: Cohort, config: FinetuneConfig, folder: Folder, tracker: Tracker
) -> tuple[Classifier, EncoderCard]:
    """Train one contender in its folder and return it with the weights of its best epoch.

    The best epoch is that of the highest case-level macro AUROC on validation, the first of equal ones.
    Leaves the weights and, last, `finished.json`; where that is there, nothing is trained. On every rank.
    """
    settings, device, title = config.full, distributed.device(), f"{contender.name}, full"
    model, card, views = _build(contender, cohort, config)
    channels = card.config.channels
    finished = folder.read_json(FINISHED) if folder.exists(FINISHED) else None
    if distributed.broadcast_object(finished) is not None:
        return _with_best_weights(model, folder), card
    global_batch_norm(model)
    model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = build_optimizer(model, settings.optim)

    # Batches and the length of an epoch
    batches_of = _batches(cohort, views, config)
    steps_per_epoch = max(1, round(len(cohort.train) / settings.batch_size))
    total_steps = settings.epochs * steps_per_epoch
    truth_of, weight_of = _targets(cohort, config.class_weighting)

    # Newest intact checkpoint
    checkpoints = Checkpoints(folder, config.checkpoint)
    restored = checkpoints.restore()
    first_step = restored.step if restored else 0
    best: dict[str, Any] = {"epoch": 0, "auroc": -1e30, "weights": {}}
    if restored:
        model.load_state_dict(restored.state["model"])
        optimizer.load_state_dict(restored.state["optimizer"])
        best = restored.state["best"]
        say(f"{title}: resumed at step {first_step} of {total_steps}")
    tracker.start_section(folder, contender.name)
    tracker.rewind(first_step)
    batches = training_batches(batches_of, first_step, total_steps, config.loader)
    parallel = distributed.data_parallel(model)
    progress = Progress(title, total_steps, config.tracking, first_step)
    losses: list[Tensor] = []

    for step in range(first_step, total_steps):
        batch = next(batches)
        rows_B = batch.rows_VB[0].numpy()
        rate = learning_rate(settings.optim, step, total_steps, settings.batch_size)
        for group in optimizer.param_groups:
            group["lr"] = rate
        model.train()
        with torch.autocast(device.type, torch.bfloat16, enabled=config.precision == "bf16"):
            logits_BK = parallel(finished_views(batch, views, device, _in_loader(), channels)[0])
        weight_B = torch.from_numpy(weight_of[rows_B]).to(device)
        losses_B = cohort.task.loss(logits_BK, torch.from_numpy(truth_of[rows_B]).to(device))
        if model.task_weights is not None:
            losses_B = model.task_weights(losses_B)
        # A weighted mean over the global batch; the data-parallel mean divides by the number of ranks.
        total_weight = distributed.sum_over_ranks(weight_B.sum())
        loss = (losses_B * weight_B).sum() / total_weight * distributed.world_size()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())

        done = step + 1
        logging = done % config.tracking.every_steps == 0 or done == total_steps
        validating = done % steps_per_epoch == 0
        # Rank 0 decides when it is time, so that all ranks look at the loss together
        saving = done == total_steps or distributed.broadcast_object(checkpoints.due(done))
        mean_loss = _finite_loss(losses, model, title, done) if logging or validating or saving else 0.0
        if logging:
            metrics = {"loss": mean_loss, "lr": rate, "epoch": done / steps_per_epoch}
            losses.clear()
            tracker.log(done, metrics)
            progress.line(done, metrics)
            report(metrics)
        if validating:
            auroc = case_auroc(cohort, cohort.val, predict(model, cohort, cohort.val, card, config))
            tracker.log(done, {"val_auroc": auroc})
            if auroc > best["auroc"]:
                weights = {n: t.detach().cpu().contiguous().clone() for n, t in model.state_dict().items()}
                best = {"epoch": done // steps_per_epoch, "auroc": auroc, "weights": weights}
        if saving:
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "best": best}
            checkpoints.save(done, state)

    # The best epoch's weights, for everybody
    say(f"{title}: epoch {best['epoch']} of {settings.epochs}, validation AUROC {best['auroc']:.4f}")
    if distributed.is_main():
        folder.write(WEIGHTS, safetensors.torch.save(best["weights"]))
        chosen = {"epoch": best["epoch"], "of": settings.epochs, "val_auroc": best["auroc"]}
        folder.write_json(FINISHED, {"chosen": chosen, "weights_sha256": _weights_hash(folder)})
    distributed.barrier()
    return _with_best_weights(_build(contender, cohort, config)[0], folder), card


@torch.no_grad()
def predict(model: nn.Module, cohort: Cohort, rows: Rows, card: EncoderCard, config: FinetuneConfig) -> Floats:
    """Logits (len(rows), K) in evaluation mode, each image on one rank, on every rank."""
    model.eval()
    compute = images_to_numbers(model, card, config)
    mine = np.arange(distributed.rank(), len(rows), distributed.world_size())
    size_px = config.size_px or card.size_px
    parts = [
        compute(pixels.numpy())
        for _, pixels in evaluation_batches(cohort.dataset, rows[mine], size_px, config.feature_batch_size)
    ]
    num_labels = len(cohort.task.label_names)
    values = np.concatenate(parts) if parts else np.empty((0, num_labels), dtype=np.float32)
    logits = np.empty((len(rows), num_labels), dtype=np.float32)
    for places, numbers in distributed.gather_objects((mine, values)):
        logits[places] = numbers
    return logits


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
    num_features, task = int(encoder.num_features), cohort.task  # type: ignore[arg-type]
    return Classifier(encoder, num_features, len(task.label_names), len(task.parts)), card, views


def _batches(cohort: Cohort, views: ViewConfig, config: FinetuneConfig) -> ViewBatches:
    """One view of each image; an epoch has every training image once."""
    samples = Samples.group(cohort.train, cohort.train, cohort.dataset.shard_of[cohort.train])
    return ViewBatches(
        cohort.dataset, samples, _the_image, views, config.seed, 0, config.full.batch_size,
        distributed.rank(), distributed.world_size(), augment=_in_loader(),
    )  # fmt: skip


def _in_loader() -> bool:
    """Without an accelerator, views are finished by the loader, in 8 bits: many times faster there."""
    return distributed.device().type == "cpu"


def _the_image(sample: int, rows: Rows, turn: int, uniforms: Any) -> tuple[int, ...]:
    return (int(rows[0]),)


def _targets(cohort: Cohort, class_weighting: str) -> tuple[Any, Any]:
    """Truth (I, K) and weight (I,) of each row of the dataset; weights are set for training rows only."""
    weight_of = np.zeros(cohort.dataset.num_images, dtype=np.float32)
    weight_of[cohort.train] = cohort.training_weights(class_weighting)
    return cohort.truth.astype(np.float32), weight_of


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
