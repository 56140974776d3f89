"""Bootstrap over patients against the loop that a script would write around scikit-learn.

Once with classes of which each case has one, and once as chest X-rays have them: 14 labels at once, 2 to 45 % positive,
a fifth of them unknown.
"""

import time
from collections.abc import Callable

import numpy as np
from sklearn.metrics import roc_auc_score

from finetune.bootstrap import Figures, bootstrap, patient_strata
from finetune.metrics import CaseFigures, RankFigures, ScoredCases

RESAMPLES, PEER_RESAMPLES = 1000, 40


def run() -> list[dict]:
    """1,000 resamples: of all figures, and of macro AUROC; the peer's loop is timed on 40 of them and scaled."""
    return [
        _measure(_classes(5000, 7), "all figures, 5000 cases, 7 classes", CaseFigures),
        _measure(_classes(20_000, 14), "macro AUROC, 20000 cases, 14 classes", _ranks),
        _measure(_labels(20_000, 14), "macro AUROC, 20000 cases, 14 labels at once", _ranks),
    ]


def _ranks(cases: ScoredCases) -> Figures:
    return RankFigures(cases, precision=False)


def _classes(num_cases: int, num_classes: int) -> ScoredCases:
    rng = np.random.default_rng(0)
    true = rng.integers(0, num_classes, num_cases)
    truth = np.eye(num_classes)[true]
    scores = truth + rng.normal(0, 2, truth.shape)
    names = tuple(str(k) for k in range(num_classes))
    return ScoredCases(truth, scores, true, scores.argmax(1), _patients(num_cases, rng), names, names)


def _labels(num_cases: int, num_labels: int) -> ScoredCases:
    rng = np.random.default_rng(0)
    truth = (rng.random((num_cases, num_labels)) < np.linspace(0.02, 0.45, num_labels)).astype(np.float64)
    scores = 1 / (1 + np.exp(-(truth + rng.normal(0, 2, truth.shape))))
    truth[rng.random(truth.shape) < 0.2] = np.nan
    names = tuple(str(k) for k in range(num_labels))
    none = np.zeros(num_cases, np.int64)  # of several labels at once there is no class
    return ScoredCases(truth, scores, none, none, _patients(num_cases, rng), names, ())


def _patients(num_cases: int, rng: np.random.Generator) -> np.ndarray:
    return np.unique(rng.integers(0, num_cases // 2, num_cases), return_inverse=True)[1]


def _measure(cases: ScoredCases, what: str, figures: Callable[[ScoredCases], Figures]) -> dict:
    truth, scores, patients = cases.truth_NK, cases.scores_NK, cases.patient_N
    known, rng = np.isfinite(truth), np.random.default_rng(1)

    started = time.perf_counter()
    values = bootstrap(figures(cases), patient_strata(truth, patients), RESAMPLES, seed=0)
    ours = time.perf_counter() - started
    assert np.isfinite(values["auroc",]).all()

    cases_of = [np.flatnonzero(patients == p) for p in range(patients.max() + 1)]
    num_peer = PEER_RESAMPLES if len(truth) <= 5000 else PEER_RESAMPLES // 4
    started = time.perf_counter()
    for _ in range(num_peer):
        drawn = np.concatenate([cases_of[p] for p in rng.integers(0, len(cases_of), len(cases_of))])
        rows = [drawn[known[drawn, k]] for k in range(truth.shape[1])]
        np.mean([roc_auc_score(truth[part, k], scores[part, k]) for k, part in enumerate(rows)])
    peer = (time.perf_counter() - started) * RESAMPLES / num_peer
    return {
        "name": f"bootstrap of {what}; peer macro AUROC",
        "ours": round(ours, 3),
        "peer": round(peer, 3),
        "unit": "s",
        "ratio": round(peer / ours, 1),
        "floor": 20,
        "goal": 100,
    }
