"""Figures of every contender on the same test patients, and the differences between them.

Shapes: N cases, K labels, R resamples.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from finetune.bootstrap import BootstrapConfig, Floats, Key, bootstrap, interval, patient_strata, two_sided_p
from finetune.cohort import Cohort, Rows
from finetune.contenders import Contender
from finetune.metrics import CaseFigures, ScoredCases, figures_of
from finetune.regression import FIGURES, NumberFigures, ScoredNumbers, score_numbers
from finetune.tasks import pool_cases, score_cases

Values = dict[Key, np.ndarray]
COMPARED: tuple[Key, ...] = (("auroc",), ("balanced_accuracy",), ("top1",))


@dataclass(frozen=True)
class Outcome:
    """What one contender says of each validation and test image, and how it was chosen."""

    contender: Contender
    chosen: dict[str, Any]
    tried: list[dict[str, Any]]
    val_probabilities: Floats
    test_probabilities: Floats


@dataclass(frozen=True)
class Judged:
    """An outcome by case: its decision threshold, taken from validation, and its scored cases."""

    outcome: Outcome
    threshold: float | None
    val: ScoredCases
    test: ScoredCases
    numbers: ScoredNumbers | None = None


def judge(cohort: Cohort, outcome: Outcome) -> Judged:
    """Pool the images of each case; the threshold comes from validation, never from test."""
    truth, scores, patients = _by_case(cohort, cohort.val, outcome.val_probabilities)
    threshold = cohort.task.threshold(truth, scores)
    val = score_cases(cohort.task, truth, scores, patients, threshold)
    truth, scores, patients = _by_case(cohort, cohort.test, outcome.test_probabilities)
    test = score_cases(cohort.task, truth, scores, patients, threshold)
    return Judged(outcome, threshold, val, test, score_numbers(cohort.task, truth, scores, test.patient_N))


def first_images(cohort: Cohort, rows: Rows) -> Rows:
    """The first image of each case, in the order of the cases of `ScoredCases`."""
    return rows[np.unique(cohort.dataset.case_of[rows], return_index=True)[1]]


def compare(judged: list[Judged], config: BootstrapConfig, seed: int) -> dict[str, Any]:
    """The `models` and `comparisons` of the results: figures with intervals, and paired differences.

    All models are resampled together, so that a difference is taken between the same patients.
    """
    figures = [(item.outcome.contender.name, CaseFigures(item.test)) for item in judged]
    figures += [(item.outcome.contender.name, NumberFigures(item.numbers)) for item in judged if item.numbers]

    def all_figures(counts: np.ndarray) -> Values:
        return {(name, *key): values for name, f in figures for key, values in f(counts).items()}

    first = judged[0].test
    values = bootstrap(all_figures, patient_strata(first.truth_NK, first.patient_N), config.resamples, seed)
    models = {item.outcome.contender.name: _model(item, values, config.confidence) for item in judged}
    comparisons = [
        _difference(judged[0], other, key, values, config.confidence)
        for other in judged[1:]
        for key in COMPARED
        if (judged[0].outcome.contender.name, *key) in values
    ]
    return {"models": models, "comparisons": comparisons}


def _by_case(cohort: Cohort, rows: Rows, probabilities_IK: Floats) -> tuple[Floats, Floats, Any]:
    """Truth (N, K), scores (N, K) and patient of each case."""
    _, scores = pool_cases(cohort.dataset.case_of[rows], probabilities_IK)
    first = first_images(cohort, rows)
    return cohort.truth[first], scores, cohort.patient_of[first]


def _model(item: Judged, values: Values, confidence: float) -> dict[str, Any]:
    name, test = item.outcome.contender.name, item.test
    plain = figures_of(test)
    if item.numbers:
        ones = np.ones((test.num_patients, 1), dtype=np.float32)
        plain |= {key: float(found[0]) for key, found in NumberFigures(item.numbers)(ones).items()}
    validation = figures_of(item.val)

    def figure(*key: str) -> dict[str, Any]:
        return _figure(plain.get(key, np.nan), values.get((name, *key), np.empty(0)), confidence)

    undefined = [label for label in test.label_names if np.isnan(plain["auroc", label])]
    per_class = {}
    for k, label in enumerate(test.label_names):
        positives = int((test.truth_NK[:, k] == 1).sum())
        per_class[label] = {
            "positives": positives,
            "patients": len(np.unique(test.patient_N[test.truth_NK[:, k] == 1])),
            "negatives": int((test.truth_NK[:, k] == 0).sum()),
            "auroc": figure("auroc", label),
            "sensitivity": figure("sensitivity", label),
            "specificity": figure("specificity", label),
        }
    overall = [name for name in ("auroc", "balanced_accuracy", "top1", "top3") if (name,) in plain]
    numbers = {n: {f: figure(f, n) for f in FIGURES} for n in (item.numbers.names if item.numbers else ())}
    return {
        **item.outcome.contender.describe(),
        "chosen": item.outcome.chosen,
        "tried": item.outcome.tried,
        "threshold": item.threshold,
        "validation": {name: _finite(validation[name,]) for name in overall},
        "test": {
            **{name: figure(name) for name in overall},
            "auroc_leaves_out": undefined,
            "per_class": per_class,
            **({"numbers": numbers} if numbers else {}),
            "confusion": {
                "classes": list(test.class_names),
                "cases": CaseFigures(test).confusion().tolist(),
                "shares": [[figure("confusion", t, d) for d in test.class_names] for t in test.class_names],
            },
        },
    }


def _difference(one: Judged, other: Judged, key: Key, values: Values, confidence: float) -> dict[str, Any]:
    names = one.outcome.contender.name, other.outcome.contender.name
    difference_R = values[(names[0], *key)] - values[(names[1], *key)]
    plain = figures_of(one.test)[key] - figures_of(other.test)[key]
    return {
        "model": names[0],
        "baseline": names[1],
        "figure": key[0],
        **_figure(plain, difference_R, confidence),
        "p": two_sided_p(difference_R) if np.isfinite(plain) else None,
    }


def _figure(value: float, values_R: Floats, confidence: float) -> dict[str, Any]:
    """A figure with its interval; None where undefined (no positives, no negatives or no cases)."""
    found = interval(values_R, confidence) if np.isfinite(value) else None
    return {
        "value": _finite(value),
        "low": found.low if found else None,
        "high": found.high if found else None,
        "undefined_resamples": found.num_undefined if found else len(values_R),
    }


def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
