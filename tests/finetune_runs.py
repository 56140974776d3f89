"""Small encoder folders as pretraining leaves them, small recipes, and runs of them on two processes."""

from pathlib import Path
from typing import Any

import torch
import torch.multiprocessing
from torch import nn

from clusters.storage import Folder
from data.combined import AnyDataset
from data.dataset import Dataset
from finetune.config import FinetuneConfig
from pretrain.config import PretrainConfig
from pretrain.encoder import EncoderConfig, create_encoder
from pretrain.export import export_encoder, origins, seen_in
from pretrain.views import ViewConfig

NAME = "test_resnet"


def write_encoder(
    folder: Path, dataset: AnyDataset, splits: list[str] | None = None, seed: int = 0, name: str = NAME
) -> str:
    """An encoder that has seen the training split (or others) of a dataset; returns its location."""
    torch.manual_seed(seed)
    config = PretrainConfig(data="/none", run="/none", encoder=EncoderConfig(name=name))
    encoder = create_encoder(config.encoder, 32)
    for module in encoder.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
    splits = splits or ["train"]
    rows = dataset.rows(splits)
    lineage: list[dict[str, Any]] = [
        {
            "stage": "1-simclr",
            "method": "simclr",
            "steps": 1,
            "batch_size": 2,
            "config": {},
            "seed": seed,
            "datasets": origins(dataset, rows, splits),
        }
    ]
    seen = seen_in(dataset, rows, None)
    export_encoder(Folder(folder / "encoder"), encoder, config, ViewConfig(size_px=32), lineage, seen)
    return str(folder)


def recipe(dataset: Dataset, encoder: str, out: Path, **changed: Any) -> FinetuneConfig:
    """A full recipe of a few steps, unless changed."""
    values: dict[str, Any] = {
        "data": dataset.location,
        "encoder": encoder,
        "out": str(out),
        "head": "full",
        "baselines": [],
        "full": {"epochs": 3, "batch_size": 24, "optim": {"name": "sgd", "lr": 0.05, "weight_decay": 1e-4}},
        "bootstrap": {"resamples": 50},
        "feature_batch_size": 64,
        "tracking": {"wandb": "disabled", "every_steps": 1},
        "checkpoint": {"every_steps": 2, "keep": 50},
    }
    return FinetuneConfig.model_validate(values | changed)
