"""How good the features are while a run goes on: kNN on labelled cases."""

from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from clusters import distributed
from clusters.config import InputError
from data.combined import AnyDataset, CombinedDataset, parts_of
from data.loader import evaluation_batches
from pretrain.config import PretrainConfig
from pretrain.stage import Rows
from pretrain.views import ViewConfig, normalise

Features = NDArray[np.float32]


@torch.no_grad()
def extract_features(
    encoder: nn.Module,
    dataset: AnyDataset,
    rows: Rows,
    views: ViewConfig,
    precision: str,
    channels: int = 3,
    batch_size: int = 256,
) -> Features:
    """Features (len(rows), D) of whole images, each computed once by one rank, on every rank.

    Evaluation mode; the encoder's own mode is restored.
    """
    was_training = encoder.training
    encoder.eval()
    device = distributed.device()
    mine = np.arange(distributed.rank(), len(rows), distributed.world_size())
    parts = []
    for _, pixels_BCHW in evaluation_batches(dataset, rows[mine], views.size_px, batch_size):
        images = normalise(pixels_BCHW.to(device).float() / 255, views.mean, views.std, channels)
        images = images.contiguous(memory_format=torch.channels_last)
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
            parts.append(encoder(images).float().cpu().numpy())
    encoder.train(was_training)
    width = cast(int, encoder.num_features)
    features = np.empty((len(rows), width), dtype=np.float32)
    shares = distributed.gather_objects((mine, np.concatenate(parts) if parts else np.empty((0, width))))
    for places, values in shares:
        features[places] = values
    return features


def probe_dataset(dataset: AnyDataset, place: int | None) -> AnyDataset:
    """What the probe looks at: the dataset at a place or, without one, all labelled datasets if labels agree.

    Where they have other labels it is the first that has any. Raises InputError where a label of one name belongs
    to different tasks: nobody can tell whether it means the same.
    """
    parts = parts_of(dataset)
    if place is not None:
        return parts[place]
    labelled = [part for part in parts if part.label_names]
    if len(labelled) < 2:
        return labelled[0] if labelled else parts[0]
    first = labelled[0]
    for other in labelled[1:]:
        both = sorted(set(first.label_names) & set(other.label_names))
        if both and other.task != first.task:
            raise InputError(
                f"label '{both[0]}' is {first.task} in {first.location} and {other.task} in {other.location}, so the "
                f"two cannot be probed together; give probe.dataset={parts.index(first)} to probe on the first alone"
            )
    agree = all(set(part.label_names) == set(first.label_names) for part in labelled)
    return CombinedDataset(labelled) if agree else first


def probe(encoder: nn.Module, dataset: AnyDataset, config: PretrainConfig, views: ViewConfig) -> dict[str, float]:
    """Macro AUROC of a kNN vote of training images on validation images; empty without labels."""
    train, val = _labelled(dataset, "train", config), _labelled(dataset, "val", config)
    if not len(train) or not len(val):
        return {}
    rows = np.concatenate([train, val])
    features = extract_features(encoder, dataset, rows, views, config.precision, config.encoder.channels)
    if not distributed.is_main() or not np.isfinite(features).all():
        return {}  # a diverged run is stopped by its loss
    from sklearn.metrics import roc_auc_score
    from sklearn.neighbors import KNeighborsRegressor

    unit = features / np.linalg.norm(features, axis=1, keepdims=True).clip(1e-12)
    bank, queries = unit[: len(train)], unit[len(train) :]
    neighbours = KNeighborsRegressor(min(config.probe.neighbours, len(train)), metric="cosine")
    neighbours.fit(bank, dataset.labels[train])
    votes, truth = neighbours.predict(queries).reshape(len(val), -1), dataset.labels[val]
    scores = [
        roc_auc_score(truth[:, label] > 0.5, votes[:, label])
        for label in range(truth.shape[1])
        if 0 < (truth[:, label] > 0.5).sum() < len(val)
    ]
    return {"knn_auroc": float(np.mean(scores))} if scores else {}


def _labelled(dataset: AnyDataset, split: str, config: PretrainConfig) -> Rows:
    """Evenly chosen labelled rows of a split, at most probe.max_images."""
    if not dataset.label_names:
        return np.empty(0, dtype=np.int64)
    rows = np.flatnonzero(dataset.column("split").astype(str) == split)
    rows = rows[~np.isnan(dataset.labels[rows]).any(axis=1)]
    step = max(1, -(-len(rows) // config.probe.max_images))
    return rows[::step]
