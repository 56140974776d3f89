"""Small encoder folders of any network, as pretraining leaves them."""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from clusters.storage import Folder
from data.dataset import Dataset
from pretrain.config import PretrainConfig
from pretrain.encoder import EncoderConfig, create_encoder
from pretrain.export import export_encoder, origins, seen_in
from pretrain.views import ViewConfig


def unsettle(module: nn.Module) -> None:
    """Give the norms' weights and statistics, and the biases, values of their own."""
    for tensor in module.state_dict().values():
        if tensor.ndim == 1 and tensor.is_floating_point():
            tensor.add_(torch.rand_like(tensor))


def export(
    folder: Path,
    dataset: Dataset,
    encoder: EncoderConfig,
    size_px: int = 32,
    splits: tuple[str, ...] = ("train",),
    head: nn.Module | None = None,
    **entry: Any,
) -> nn.Module:
    """Write `folder/encoder` of a network with random weights that has seen these splits; returns the network."""
    torch.manual_seed(1)
    model = create_encoder(encoder, size_px).eval()
    unsettle(model)
    config = PretrainConfig(data="/none", run="/none", encoder=encoder)
    rows = dataset.rows(list(splits))
    lineage = [
        {
            "stage": "1-simclr",
            "method": "simclr",
            "steps": 1,
            "batch_size": 2,
            "config": {},
            "seed": 0,
            "datasets": origins(dataset, rows, list(splits)),
            **entry,
        }
    ]
    views = ViewConfig(size_px=size_px)
    export_encoder(Folder(folder / "encoder"), model, config, views, lineage, seen_in(dataset, rows, None), head)
    return model
