"""Bootstrap over patients against the loop that a script would write around scikit-learn."""

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
        _measure(5000, 7, "all figures", CaseFigures),
        _measure(20_000, 14, "macro AUROC", lambda cases: RankFigures(cases, precision=False)),
    ]


def _measure(num_cases: int, num_classes: int, what: str, figures: Callable[[ScoredCases], Figures]) -> dict:
    rng = np.random.default_rng(0)
    true = rng.integers(0, num_classes, num_cases)
    truth = np.eye(num_classes)[true]
    scores = truth + rng.normal(0, 2, truth.shape)
    patients = np.unique(rng.integers(0, num_cases // 2, num_cases), return_inverse=True)[1]
    names = tuple(str(k) for k in range(num_classes))
    cases = ScoredCases(truth, scores, true, scores.argmax(1), patients, names, names)

    started = time.perf_counter()
    values = bootstrap(figures(cases), patient_strata(truth, patients), RESAMPLES, seed=0)
    ours = time.perf_counter() - started
    assert np.isfinite(values["auroc",]).all()

    cases_of = [np.flatnonzero(patients == p) for p in range(patients.max() + 1)]
    num_peer = PEER_RESAMPLES if num_cases <= 5000 else PEER_RESAMPLES // 4
    started = time.perf_counter()
    for _ in range(num_peer):
        drawn = np.concatenate([cases_of[p] for p in rng.integers(0, len(cases_of), len(cases_of))])
        np.mean([roc_auc_score(truth[drawn, k], scores[drawn, k]) for k in range(num_classes)])
    peer = (time.perf_counter() - started) * RESAMPLES / num_peer
    return {
        "name": f"bootstrap of {what}, {num_cases} cases, {num_classes} classes; peer macro AUROC",
        "ours": round(ours, 3),
        "peer": round(peer, 3),
        "unit": "s",
        "ratio": round(peer / ours, 1),
        "floor": 20,
        "goal": 100,
    }
