"""What full fine-tuning trains: the classifier with its loss, and one optimiser step of it.

Shapes: V images of a sample, B samples on this rank, C channels, H and W pixels, K labels, D features.
"""

from typing import Any

import torch
from torch import Tensor, nn

from clusters import distributed
from clusters.batch_norm import global_batch_norm
from data.order import keyed_generator
from finetune.cohort import Cohort
from finetune.config import FinetuneConfig
from finetune.full_batches import MixedBatch, Targets, training_images
from finetune.heads import Classifier, pool_views
from finetune.losses import LABEL_KINDS, LabelLoss, TwoHeadsLoss, class_balance, supervised_contrastive
from finetune.parameters import drawn_by, make_optimizer, rate_at, train_mode
from pretrain.views import ViewConfig

PROJECTION_HIDDEN, PROJECTION_DIM = 512, 128


class Learner(nn.Module):
    """Images, truth and weights to the loss; everything that learns is in it.

    The supervised contrastive loss looks at the features through a projection of its own (Khosla et al., 2020,
    section 3.1), which is left behind after training. It stands beside the loss of the labels rather than before it,
    so that one training, one schedule and one choice of epoch do for both. Its positives are the other images of the
    class in the global batch.
    """

    def __init__(self, model: Classifier, criterion: nn.Module, config: FinetuneConfig) -> None:
        super().__init__()
        self.model, self.criterion, self._settings = model, criterion, config.full
        self._bf16 = config.precision == "bf16"
        width = model.head.in_features
        contrasts = config.full.loss.supcon_weight > 0
        self.projection = (
            nn.Sequential(nn.Linear(width, PROJECTION_HIDDEN), nn.ReLU(), nn.Linear(PROJECTION_HIDDEN, PROJECTION_DIM))
            if contrasts
            else None
        )

    def forward(self, images_VBCHW: Tensor, truth_BK: Tensor, weight_B: Tensor) -> Tensor:
        """The loss, whose mean over ranks is that of the global batch."""
        shape = images_VBCHW.shape[:2]
        with torch.autocast(images_VBCHW.device.type, torch.bfloat16, enabled=self._bf16):
            features_ND = self.model.encoder(images_VBCHW.flatten(0, 1))
            numbers_VBM = self.model.head(features_ND).unflatten(0, shape)
        loss = self.criterion(pool_views(numbers_VBM.float(), self._settings.pooling), truth_BK, weight_B)
        if self.projection is None:
            return loss
        class_N = _class_of(truth_BK).repeat(shape[0])
        contrast = supervised_contrastive(
            self.projection(features_ND.float()), class_N, self._settings.loss.supcon_temperature
        )
        return loss + self._settings.loss.supcon_weight * contrast


class Training:
    """A learner with its optimiser on this rank's device; a step is a function of state, batch and number alone."""

    def __init__(self, model: Classifier, cohort: Cohort, views: ViewConfig, channels: int, config: FinetuneConfig):
        self._config, self._views, self._channels = config, views, channels
        self._targets = Targets(cohort, config)
        with drawn_by(config.seed):
            self.learner = Learner(model, criterion_of(cohort, self._targets, config), config)
        self.model = model
        global_batch_norm(self.learner)
        self.learner.to(distributed.device(), memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._optimizer = make_optimizer(self.learner, model, config.full.optim)
        self._parallel = distributed.data_parallel(self.learner)

    def step(self, step: int, total_steps: int, batch: MixedBatch) -> tuple[Tensor, float]:
        """One update; the loss on this rank, which nobody waits for, and the learning rate."""
        settings = self._config.full
        # Networks that draw numbers (stochastic depth) draw the same after a resume
        key = ("full step", self._config.seed, step, distributed.rank())
        torch.manual_seed(int(keyed_generator(*key).random_raw() >> 1))
        rate = rate_at(settings.optim, step, total_steps, settings.batch_size)
        for group in self._optimizer.param_groups:
            group["lr"] = rate * group["lr_scale"]
        train_mode(self.model, settings)
        images_VBCHW = training_images(batch, self._views, self._channels, settings.augmentation.mixes)
        truth_BK, weight_B = (tensor.to(distributed.device()) for tensor in self._targets.of(batch))
        loss = self._parallel(images_VBCHW, truth_BK, weight_B)
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self._optimizer.step()
        return loss.detach(), rate

    def state(self) -> dict[str, Any]:
        """All that goes on from here depends on, but for the step's number."""
        return {"model": self.learner.state_dict(), "optimizer": self._optimizer.state_dict()}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a state."""
        self.learner.load_state_dict(state["model"])
        self._optimizer.load_state_dict(state["optimizer"])


def criterion_of(cohort: Cohort, targets: Targets, config: FinetuneConfig) -> nn.Module:
    """The loss of a task, called with (logits_BK, truth_BK, weight_B)."""
    task, settings = cohort.task, config.full.loss
    parts = getattr(task, "parts", (task,))
    labels = parts[0]
    balance_LC = None
    if settings.class_balanced_beta is not None:
        truth_IK = cohort.truth[cohort.train][:, : len(labels.label_names)]
        balance_LC = class_balance(truth_IK, cohort.training_weights("none"), labels.kind, settings.class_balanced_beta)
    criterion = LabelLoss(settings, labels.kind, balance_LC)
    return criterion if task.kind in LABEL_KINDS else TwoHeadsLoss(criterion, *parts)


def _class_of(truth_BK: Tensor) -> Tensor:
    """The likeliest class of each sample, (B,); -1 where it is not known."""
    known_B = truth_BK.isfinite().all(1)
    class_B = truth_BK.argmax(1) if truth_BK.shape[1] > 1 else (truth_BK[:, 0] >= 0.5).long()
    return torch.where(known_B, class_B, -1)
