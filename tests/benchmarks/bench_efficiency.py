"""A label-efficiency sweep of HAM10000's size: 5 shares, 5 draws, 2 encoders, on features that are there already.

10,015 images of 7,470 patients in seven classes as frequent as there; features of 2,048 numbers as a ResNet-50 gives,
with a falling spectrum, drawn. Everything from the features to the figures on test is timed; the peer is the time that
is allowed, 5 minutes on two cores.
"""

import time

import numpy as np

from finetune.cohort import Cohort, choose_patients
from finetune.config import FinetuneConfig
from finetune.efficiency import fit_point
from finetune.tasks import MultiClass

SHARES, DRAWS, ENCODERS, ALLOWED_S = (0.01, 0.03, 0.1, 0.3, 1.0), 5, 2, 300
IMAGES = {"nv": 6705, "mel": 1113, "bkl": 1099, "bcc": 514, "akiec": 327, "vasc": 142, "df": 115}


class Photographs:
    """Stands for a dataset: which case each image is of."""

    def __init__(self, case_of: np.ndarray) -> None:
        self.case_of = case_of


def run(num_features: int = 2048) -> list[dict]:
    """One row: seconds for the sweep."""
    cohort, features = _drawn(num_features)
    config = FinetuneConfig(data="/none", encoder="/none", out="/none")
    patients, looks = cohort.patient_of.astype(str), []
    started = time.perf_counter()
    for values in features:
        for share in SHARES:
            for draw in range(DRAWS if share < 1 else 1):
                chosen = choose_patients(patients[cohort.train], cohort.truth[cohort.train], share, draw)
                train = cohort.train[np.isin(patients[cohort.train], list(chosen))]
                some = Cohort(
                    cohort.dataset, cohort.task, cohort.truth, train, cohort.val, cohort.test, train, cohort.patient_of
                )
                point = fit_point(
                    some, lambda rows, values=values: values[rows], config, f"{share:g}", lambda: looks.append(1)
                )
                assert point["converged"], (share, draw)
    ours = time.perf_counter() - started
    assert len(looks) == ENCODERS * (DRAWS * (len(SHARES) - 1) + 1)
    return [
        {
            "name": f"label efficiency, {len(SHARES)} shares x {DRAWS} draws x {ENCODERS} encoders, {len(patients)} x "
            f"{num_features}; peer: the time allowed",
            "ours": round(ours, 1),
            "peer": ALLOWED_S,
            "unit": "s",
            "ratio": round(ALLOWED_S / ours, 1),
            "floor": 1,
            "goal": 5,
        }
    ]


def _drawn(num_features: int) -> tuple[Cohort, list[np.ndarray]]:
    """Splits of 70, 10 and 20 % of the patients, and the features of each encoder, the second one noisier."""
    rng = np.random.default_rng(0)
    classes_P = rng.permutation(np.repeat(np.arange(len(IMAGES)), [round(0.746 * n) for n in IMAGES.values()]))
    num_patients, num_images = len(classes_P), sum(IMAGES.values())
    patient_of = np.sort(np.append(np.arange(num_patients), rng.integers(0, num_patients, num_images - num_patients)))
    classes = classes_P[patient_of]
    turned = np.linalg.qr(rng.normal(size=(num_features, num_features)))[0].astype(np.float32)
    spectrum = (1 / np.arange(1, num_features + 1)).astype(np.float32)
    features = []
    for noise in (1.0, 2.0):
        centres = 4 * num_features**-0.5 * rng.normal(size=(len(IMAGES), num_features)) * spectrum
        drawn = rng.standard_normal((num_images, num_features), dtype=np.float32) * spectrum * noise
        features.append(((drawn + centres[classes]) @ turned).astype(np.float32))
    split = np.searchsorted([0.7, 0.8], rng.random(num_patients))[patient_of]
    rows = [np.flatnonzero(split == number) for number in range(3)]
    dataset, truth, task = Photographs(patient_of), np.eye(len(IMAGES))[classes], MultiClass(list(IMAGES))
    return Cohort(dataset, task, truth, *rows, rows[0], patient_of), features  # type: ignore[arg-type]


if __name__ == "__main__":
    import json
    import sys

    print(json.dumps(run(*map(int, sys.argv[1:])), indent=2))
