"""What full fine-tuning cannot do with a study or an encoder, said before anything is started."""

import numpy as np
import torch

from clusters.config import InputError
from finetune.cohort import Cohort
from finetune.config import FinetuneConfig
from finetune.contenders import Contender, card_of
from finetune.heads import Classifier
from finetune.parameters import choose_trained, layers
from pretrain.encoder import create_encoder
from pretrain.encoder_folder import EncoderCard

CONTRASTED = ("multiclass", "binary")


def check_full(config: FinetuneConfig, cohort: Cohort, entrants: list[Contender]) -> None:
    """Raise InputError where head=full cannot train on these samples, with this loss, or these parts of an encoder."""
    if config.head != "full":
        return
    settings, pooled = config.full, config.full.pooling != "none"
    samples = len(np.unique(cohort.dataset.case_of[cohort.train])) if pooled else len(cohort.train)
    if settings.batch_size > samples:
        what = "cases" if pooled else "images"
        raise InputError(
            f"full.batch_size: {settings.batch_size} is more than the {samples} training {what} of "
            f"{cohort.dataset.location} at label_fraction={config.label_fraction:g}; choose {samples} or fewer"
        )
    if settings.loss.supcon_weight and cohort.task.kind not in CONTRASTED:
        raise InputError(
            f"full.loss.supcon_weight: the task is {cohort.task.kind}, whose images have no single class; set 0"
        )
    if settings.loss.class_balanced_beta is not None and config.class_weighting == "balanced":
        raise InputError(
            "full.loss.class_balanced_beta: class_weighting=balanced weighs the classes already; use one of them"
        )
    if settings.train == "lora" or settings.train.startswith("last_") or settings.optim.layer_decay < 1:
        for entrant in entrants:
            if entrant.head == "full":
                _check_layers(card_of(entrant, config), config)


def _check_layers(card: EncoderCard, config: FinetuneConfig) -> None:
    """Try it on a network without weights."""
    with torch.device("meta"):
        encoder = create_encoder(card.config, card.size_px)
        model = Classifier(encoder, int(encoder.num_features), 1)  # type: ignore[arg-type]
        choose_trained(model, config.full, card.architecture)
        if config.full.optim.layer_decay < 1:
            layers(model)
