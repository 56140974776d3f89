"""How foreign another dataset's images are to a model, against images of the dataset that it was trained on.

Shapes: I images, M images of reference, D features, N cases.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from clusters import distributed
from clusters.config import InputError, validate
from clusters.storage import Folder
from data.dataset import Dataset, open_dataset
from data.order import keyed_generator
from finetune.bootstrap import Floats, Integers
from finetune.cohort import choose_cohort
from finetune.config import FinetuneConfig
from finetune.features import cache_name, compute_parts, read_parts
from finetune.label_map import Matched
from finetune.ood import Reference, energy, told_apart
from finetune.study_checks import classified

if TYPE_CHECKING:
    from finetune.external import EvaluateConfig
    from finetune.model import Model
    from finetune.trained import Trained

MOST_REFERENCE_IMAGES = 5000


@dataclass(frozen=True)
class Foreign:
    """Scores of each image, (I,) by name, and what the results say of them."""

    scores: dict[str, Floats]
    figures: dict[str, Any]
    counts: dict[str, int]


@dataclass(frozen=True)
class Training:
    """What is known of the training dataset: the reference, and its test cases' scores and patients."""

    reference: Reference
    num_reference: int
    test_scores: dict[str, Floats]
    test_patient_N: Integers


def open_training_data(trained: "Trained", config: "EvaluateConfig") -> Dataset | None:
    """The dataset that the model was trained on; None where it is gone.

    A results folder may be anybody's: a URL in it is not gone to, with this user's keys, unless this user names it.
    Raises InputError where another dataset lies there.
    """
    location = config.training_data or trained.folder.read_json("config.json")["config"]["data"]
    plain = location.removeprefix("file://")
    is_url = "://" in plain or ("::" in plain and not Path(plain).exists())
    if not config.training_data and is_url:  # a driver may call as it is made
        return None
    try:
        dataset = open_dataset(location, config.loader.place)
    except (InputError, OSError):
        if config.training_data:
            raise
        return None
    if dataset.fingerprint != trained.results["dataset"]["fingerprint"]:
        raise InputError(
            f"{location}: not what {trained.folder} was trained on; give training_data=DIR, or foreign=false"
        )
    return dataset


def training_features(trained: "Trained", out: Folder, config: "EvaluateConfig") -> Training | None:
    """Features of training and test images of the dataset that the model was trained on; None where it is gone."""
    dataset = open_training_data(trained, config)
    if dataset is None:
        return None
    told = {**trained.folder.read_json("config.json")["config"], "data": dataset.location}
    cohort = choose_cohort(dataset, validate(FinetuneConfig, told, "config.json"))
    # One that only a number is known of would be taken for the first class.
    train = cohort.train[classified(cohort.task, cohort.truth[cohort.train])]
    if len(train) > MOST_REFERENCE_IMAGES:
        drawn = keyed_generator("reference", config.seed).random_raw(len(train))
        train = np.sort(train[np.argsort(drawn)[:MOST_REFERENCE_IMAGES]])
    rows = np.union1d(train, cohort.test)
    numbers = answers(trained.model, dataset, rows, out, config, "training dataset")
    features = numbers[:, -num_features_of(trained.model) :]
    place, test = np.searchsorted(rows, train), np.searchsorted(rows, cohort.test)
    reference = Reference(features[place], cohort.class_of(train))
    scores = _scores(trained.model, numbers[test], reference)
    _, first = np.unique(dataset.case_of[cohort.test], return_index=True)
    return Training(
        reference,
        len(train),
        {name: by_case(dataset.case_of[cohort.test], values) for name, values in scores.items()},
        cohort.patient_of[cohort.test[first]],
    )


def answers(
    model: "Model", dataset: Dataset, rows: NDArray[np.int64], out: Folder, config: "EvaluateConfig", title: str
) -> NDArray[np.float32]:
    """Logits and features of images side by side, (I, M + D), kept in files so that a stopped command goes on."""
    import torch

    device = distributed.device()
    model.to(device)

    @torch.inference_mode()
    def compute(pixels_B3HW: NDArray[np.uint8]) -> NDArray[np.float32]:
        features_BD = model.features(torch.from_numpy(pixels_B3HW).to(device).float() / 255)
        return torch.cat([model.head(features_BD), features_BD], dim=1).float().cpu().numpy()

    folder = out / "features" / cache_name(title, dataset, rows, model.card.fingerprint)
    compute_parts(folder, dataset, rows, model.card.size_px, config.batch_size, compute, title, config.tracking)
    return read_parts(folder, rows).astype(np.float32)


def scores_of(
    model: "Model", dataset: Dataset, matched: Matched, rows: NDArray[np.int64], numbers: Floats, training: Training,
    config: "EvaluateConfig",
) -> Foreign:  # fmt: skip
    """Scores of a dataset's images, and AUROC of known cases against it, and within it against unseen conditions."""
    scores = _scores(model, numbers, training.reference)
    case_I = dataset.case_of[rows]
    cases, first = np.unique(case_I, return_index=True)
    unseen_N, patient_N = matched.unseen[rows[first]], dataset.patient_of[rows[first]].astype(np.int64)
    apart_N = patient_N + 1 + int(training.test_patient_N.max(initial=0))
    figures = {}
    for name, values in scores.items():
        score_N, test_N = by_case(case_I, values), training.test_scores[name]
        known = score_N[~unseen_N], apart_N[~unseen_N]
        figures[name] = {
            "new_dataset": told_apart(test_N, training.test_patient_N, *known, config.bootstrap, config.seed),
            "unseen_condition": told_apart(*known, score_N[unseen_N], apart_N[unseen_N], config.bootstrap, config.seed),
        }
    counts = {
        "reference_images": training.num_reference,
        "training_test_cases": len(training.test_patient_N),
        "known_cases": int((~unseen_N).sum()),
        "unseen_cases": int(unseen_N.sum()),
    }
    assert len(cases) == len(unseen_N)
    return Foreign(scores, figures, counts)


def num_features_of(model: "Model") -> int:
    """D."""
    return int(model.head.in_features)


def by_case(case_I: Integers, values_I: Floats) -> Floats:
    """The mean over each case's images, (N,)."""
    place = np.unique(case_I, return_inverse=True)[1]
    return np.bincount(place, values_I) / np.bincount(place)


def _scores(model: "Model", numbers: Floats, reference: Reference) -> dict[str, Floats]:
    """Energy, nearest neighbours and Mahalanobis, of images."""
    features = numbers[:, -num_features_of(model) :]
    return {
        "energy": energy(numbers[:, : len(model.yes_or_no)], model.one_of_several),
        "knn": reference.knn(features),
        "mahalanobis": reference.mahalanobis(features),
    }
