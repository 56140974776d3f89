"""How foreign an image is to a model: three scores, larger is more foreign, and how well they tell.

Shapes: I images, M images of reference, D features, K labels, N cases.
"""

from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from finetune.bootstrap import BootstrapConfig, Floats, Integers, bootstrap, patient_strata
from finetune.metrics import RankFigures, ScoredCases
from finetune.reported import Reported

NEIGHBOUR_SHARE = 0.01
BLOCK_IMAGES = 1024


def energy(logits_IK: Floats, exclusive: bool) -> Floats:
    """Free energy, (I,) (Liu et al., 2020); of yes-or-no labels the sum over them (Wang et al., 2021).

    A single label's two sides share its logit, so that sure negatives are as familiar as sure positives.
    """
    logits = np.asarray(logits_IK, dtype=np.float64)
    if exclusive:
        return -np.logaddexp.reduce(logits, axis=1)
    if logits.shape[1] == 1:
        return -np.logaddexp(logits[:, 0] / 2, -logits[:, 0] / 2)
    return -np.logaddexp(0.0, logits).sum(axis=1)


class Reference:
    """The features of training images, and how far from them others lie."""

    @threadpool_limits.wrap(limits=1)
    def __init__(self, features_MD: Floats, class_M: Integers) -> None:
        from sklearn.covariance import ledoit_wolf

        features = np.asarray(features_MD, dtype=np.float64)
        self._unit_MD = _unit(features).astype(np.float32)
        self._nearest = max(1, round(NEIGHBOUR_SHARE * len(features)))
        classes, place = np.unique(class_M, return_inverse=True)
        self._means_CD = np.stack([features[place == c].mean(axis=0) for c in range(len(classes))])
        covariance, _ = ledoit_wolf(features - self._means_CD[place], assume_centered=True)
        values, vectors = np.linalg.eigh(covariance)
        self._whitening_DD = vectors / np.sqrt(np.maximum(values, 1e-12 * max(values.max(), 1e-300)))

    @threadpool_limits.wrap(limits=1)
    def mahalanobis(self, features_ID: Floats) -> Floats:
        """Squared distance to the nearest class mean under the shared covariance, (I,) (Lee et al., 2018).

        The covariance is shrunk after Ledoit & Wolf (2004), so that fewer images than features will do.
        """
        white_ID = np.asarray(features_ID, dtype=np.float64) @ self._whitening_DD
        white_CD = self._means_CD @ self._whitening_DD
        return np.min([((white_ID - mean_D) ** 2).sum(axis=1) for mean_D in white_CD], axis=0)

    @threadpool_limits.wrap(limits=1)
    def knn(self, features_ID: Floats) -> Floats:
        """Distance to the k-th nearest training image, all features at length 1, (I,) (Sun et al., 2022); k is 1 %."""
        unit_ID = _unit(np.asarray(features_ID, dtype=np.float64)).astype(np.float32)
        found = []
        for start in range(0, len(unit_ID), BLOCK_IMAGES):
            alike_IM = unit_ID[start : start + BLOCK_IMAGES] @ self._unit_MD.T
            kth_I = -np.partition(-alike_IM, self._nearest - 1, axis=1)[:, self._nearest - 1]
            found.append(np.sqrt(np.maximum(0.0, 2 - 2 * kth_I.astype(np.float64))))
        return np.concatenate(found) if found else np.zeros(0)


def told_apart(
    known_N: Floats, known_patient_N: Integers, foreign_N: Floats, foreign_patient_N: Integers,
    config: BootstrapConfig, seed: int,
) -> dict[str, Any]:  # fmt: skip
    """AUROC of known cases (0) against foreign ones (1), with its interval; undefined where there are none.

    Equal patient numbers are the same patient.
    """
    truth = np.repeat([0.0, 1.0], [len(known_N), len(foreign_N)])
    if not len(known_N) or not len(foreign_N):
        return {"value": None, "low": None, "high": None, "undefined_resamples": 0}
    patient_N = np.unique(np.concatenate([known_patient_N, foreign_patient_N]), return_inverse=True)[1]
    scores = np.concatenate([known_N, foreign_N])
    class_N = truth.astype(np.int64)
    cases = ScoredCases(
        truth[:, None], scores[:, None], class_N, class_N, patient_N, ("foreign",), ("known", "foreign")
    )
    figures = RankFigures(cases, precision=False)
    values = bootstrap(figures, patient_strata(cases.truth_NK, patient_N), config.resamples, seed)
    return Reported(cases, values, config.confidence).figure("auroc", "foreign")


def _unit(features_ID: Floats) -> Floats:
    return features_ID / np.maximum(np.linalg.norm(features_ID, axis=1, keepdims=True), 1e-12)
