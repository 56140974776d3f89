"""How good the features are while a run goes on: kNN and a linear head on labelled cases.

Shapes: I images, N training cases, M validation cases, D features, K labels.
"""

from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from clusters import distributed
from clusters.config import InputError
from data.combined import AnyDataset, CombinedDataset, parts_of
from data.loader import evaluation_batches
from pretrain.config import PretrainConfig
from pretrain.stage import Rows
from pretrain.views import ViewConfig, normalise

Features = NDArray[np.float32]
SCORES = ("probe/knn_auroc", "probe/linear_auroc")
LINEAR_C = 0.01
"""scikit-learn's C on standardised features: strong, since a probe has hundreds of features and few cases."""
LINEAR_STEPS = 100
MOST_PROBES = 10
PROBE_SHARE = 0.1


@torch.no_grad()
def encode(
    encoder: nn.Module,
    dataset: AnyDataset,
    rows: Rows,
    views: ViewConfig,
    precision: str,
    channels: int = 3,
    batch_size: int = 256,
) -> Features:
    """Features (len(rows), D) of whole images, computed on this rank's device.

    Evaluation mode; the encoder's own mode is restored.
    """
    was_training = encoder.training
    encoder.eval()
    device = distributed.device()
    parts = [np.empty((0, cast(int, encoder.num_features)), dtype=np.float32)]
    for _, pixels_BCHW in evaluation_batches(dataset, rows, views.size_px, batch_size):
        images = normalise(pixels_BCHW.to(device).float() / 255, views.mean, views.std, channels)
        images = images.contiguous(memory_format=torch.channels_last)
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
            parts.append(encoder(images).float().cpu().numpy())
    encoder.train(was_training)
    return np.concatenate(parts)


def extract_features(
    encoder: nn.Module, dataset: AnyDataset, rows: Rows, views: ViewConfig, precision: str, channels: int = 3
) -> Features:
    """The same, each image computed once by one rank, on every rank."""
    mine = np.arange(distributed.rank(), len(rows), distributed.world_size())
    shares = distributed.gather_objects((mine, encode(encoder, dataset, rows[mine], views, precision, channels)))
    features = np.empty((len(rows), cast(int, encoder.num_features)), dtype=np.float32)
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
    """Macro AUROC on validation cases of two readers of training cases: a kNN vote and a linear head.

    A case's features are the mean of its images', so that a case with many images counts once. On rank 0; empty
    without labels, and on other ranks.
    """
    train, val = _labelled(dataset, "train", config), _labelled(dataset, "val", config)
    if not len(train) or not len(val):
        return {}
    rows = np.concatenate([train, val])
    features = extract_features(encoder, dataset, rows, views, config.precision, config.encoder.channels)
    if not distributed.is_main() or not np.isfinite(features).all():
        return {}  # a diverged run is stopped by its loss
    labels, cases = dataset.labels, dataset.case_of
    bank_ND, bank_truth = by_case(features[: len(train)], labels[train], cases[train])
    queries_MD, truth = by_case(features[len(train) :], labels[val], cases[val])
    votes_MK = knn_scores(bank_ND, bank_truth, queries_MD, config.probe.neighbours)
    logits_MK = linear_scores(bank_ND, bank_truth, queries_MD)
    found = {name: macro_auroc(truth, scores) for name, scores in zip(SCORES, (votes_MK, logits_MK))}
    return {name: value for name, value in found.items() if value is not None}


def num_probed(dataset: AnyDataset, config: PretrainConfig) -> int:
    """How many images a probe looks at."""
    return len(_labelled(dataset, "train", config)) + len(_labelled(dataset, "val", config))


class Pace:
    """When a stage is probed: every so many steps or, where none are given, ten times at most, at its end always.

    Without `every_steps`, probes before the end are left out where they would take more than a tenth of the time.
    Until one was timed, an image is thought to take as long as a view of a step does, which is about three times what
    a forward pass alone takes.
    """

    def __init__(self, every_steps: int | None, total_steps: int, num_views: int, num_images: int) -> None:
        self.every_steps = every_steps or -(-total_steps // MOST_PROBES)
        self._rationed, self._total_steps = every_steps is None, total_steps
        self._images_per_view = num_images / num_views
        self._spent = self._last = 0.0

    def due(self, done: int, num_steps: int, seconds: float) -> bool:
        """Whether to probe after so many steps, of which `num_steps` took these seconds, probes included."""
        if done == self._total_steps or not self._rationed:
            return done == self._total_steps or done % self.every_steps == 0
        expected = self._last or self._images_per_view * (seconds - self._spent) / num_steps
        return done % self.every_steps == 0 and self._spent + expected <= PROBE_SHARE * seconds

    def took(self, seconds: float) -> None:
        """A probe has taken so long."""
        self._last, self._spent = seconds, self._spent + seconds


def by_case(features_ID: Features, labels_IK: Features, case_I: NDArray[np.integer]) -> tuple[Features, Features]:
    """Mean features (N, D) and the labels (N, K) of cases, from those of their images; a case's rows are adjacent."""
    first_N = np.flatnonzero(np.diff(case_I, prepend=-1))
    sizes_N = np.diff(np.append(first_N, len(case_I)))
    sums_ND = np.add.reduceat(features_ID, first_N, axis=0)
    return (sums_ND / sizes_N[:, None]).astype(np.float32), labels_IK[first_N]


def knn_scores(bank_ND: Features, truth_NK: Features, queries_MD: Features, neighbours: int) -> Features:
    """Share of positives among the nearest training cases by cosine, (M, K).

    Where a label is unknown (NaN) in a training case, the neighbours that vote on it are the nearest that know it.
    """
    bank, queries = (F.normalize(torch.from_numpy(x), dim=1) for x in (bank_ND, queries_MD))
    votes_MK = np.full((len(queries_MD), truth_NK.shape[1]), np.nan, dtype=np.float32)
    known_NK = np.isfinite(truth_NK)
    for pattern in np.unique(known_NK, axis=1).T:  # labels that are known of the same cases share their neighbours
        same = np.flatnonzero((known_NK == pattern[:, None]).all(axis=0))
        if not pattern.any():
            continue
        nearest = (queries @ bank[torch.from_numpy(pattern)].T).topk(min(neighbours, int(pattern.sum())), dim=1).indices
        votes_MK[:, same] = (truth_NK[pattern][:, same] > 0.5)[nearest.numpy()].mean(axis=1)
    return votes_MK


def linear_scores(bank_ND: Features, truth_NK: Features, queries_MD: Features) -> Features:
    """Logits (M, K) of a logistic regression for each label, on standardised features of the cases that know it.

    All labels are fitted together by L-BFGS, each against the rest; the strength is fixed, so that nothing is chosen
    on validation.
    """
    device = distributed.device()
    bank, truth, queries = (torch.from_numpy(x).to(device) for x in (bank_ND, truth_NK, queries_MD))
    std_D, mean_D = torch.std_mean(bank, dim=0, correction=0)
    scale_D = torch.where(std_D > 1e-6 * std_D.max(), std_D, torch.ones_like(std_D))
    bank, queries = (bank - mean_D) / scale_D, (queries - mean_D) / scale_D
    known, target = truth.isfinite(), (truth > 0.5).float()
    weight_DK = torch.zeros(bank.shape[1], truth.shape[1], device=device, requires_grad=True)
    bias_K = torch.zeros(truth.shape[1], device=device, requires_grad=True)
    solver = torch.optim.LBFGS(
        [weight_DK, bias_K], max_iter=LINEAR_STEPS, tolerance_grad=1e-4, line_search_fn="strong_wolfe"
    )

    def loss() -> Tensor:
        solver.zero_grad()
        misfit = F.binary_cross_entropy_with_logits(bank @ weight_DK + bias_K, target, weight=known, reduction="sum")
        value = misfit + weight_DK.square().sum() / (2 * LINEAR_C)
        value.backward()
        return value

    with torch.enable_grad():
        solver.step(loss)  # type: ignore[arg-type]
    return (queries @ weight_DK + bias_K).detach().cpu().numpy()


def macro_auroc(truth_MK: Features, scores_MK: Features) -> float | None:
    """Mean AUROC over the labels that have positives and negatives among the cases that know them; None if none has."""
    from sklearn.metrics import roc_auc_score

    found = []
    for truth, scores in zip(truth_MK.T, scores_MK.T):
        known = np.isfinite(truth) & np.isfinite(scores)
        positive = truth[known] > 0.5
        if 0 < positive.sum() < len(positive):
            found.append(roc_auc_score(positive, scores[known]))
    return float(np.mean(found)) if found else None


def _labelled(dataset: AnyDataset, split: str, config: PretrainConfig) -> Rows:
    """All images of evenly chosen cases of a split that have a label, about probe.max_images at most."""
    if not dataset.label_names:
        return np.empty(0, dtype=np.int64)
    rows = np.flatnonzero(dataset.column("split").astype(str) == split)
    rows = rows[np.isfinite(dataset.labels[rows]).any(axis=1)]
    _, place = np.unique(dataset.case_of[rows], return_inverse=True)
    return rows[place % max(1, -(-len(rows) // config.probe.max_images)) == 0]
