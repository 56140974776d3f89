"""The results of a model on another dataset, in the shape of a fine-tuning's results with one model.

Shapes: I images, N cases, K labels.
"""

import io
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from data.dataset import Dataset
from finetune.bootstrap import Figures, Floats, Key, bootstrap, patient_strata
from finetune.evaluate import all_figures_of, calibration_of, scored
from finetune.foreign import Foreign
from finetune.intervals import HOW
from finetune.label_map import Matched
from finetune.metrics import CaseFigures, ScoredCases
from finetune.patients import by_patient
from finetune.regression import NumberFigures, ScoredNumbers
from finetune.reported import OVERALL, Reported
from finetune.results import told_of
from finetune.subgroups import case_attributes, subgroup_tables
from finetune.tasks import pool_cases
from finetune.thresholds import OperatingConfig
from finetune.trained import Trained

if TYPE_CHECKING:
    from finetune.external import EvaluateConfig

Rows = NDArray[np.int64]


def results_of(
    trained: Trained, dataset: Dataset, matched: Matched, rows: Rows, logits_IK: Floats, config: "EvaluateConfig"
) -> dict[str, Any]:
    """Figures of the known cases, in the shape of a fine-tuning's results with one model."""
    operating = OperatingConfig.model_validate(trained.results["operating"])
    known = matched.known[rows]
    cases, as_trained, numbers = _score(trained, dataset, matched, rows[known], logits_IK[known])
    reported = _reported(cases, numbers, config)
    attributes = case_attributes(dataset, rows[known])
    entry = trained.entry
    kept = ("title", "kind", "architecture", "fingerprint", "lineage", "head", "chosen", "temperature", "threshold")
    return {
        "task": trained.results["task"],
        "labels": list(cases.label_names),
        "classes": list(cases.class_names),
        "pooling": trained.model.card.pooling,
        "dataset": told_of(dataset),
        "trained_on": trained.results["dataset"],
        "trained_on_test": {name: entry["test"][name] for name in OVERALL if name in entry["test"]},
        "trained_on_per_class": {
            label: {name: row[name]["value"] for name in ("auroc", "sensitivity", "specificity")}
            for label, row in entry["test"]["per_class"].items()
        },
        "cohort": {"external": {
            "images": int(known.sum()), "cases": len(cases.patient_N), "patients": len(np.unique(cases.patient_N)),
            "cases_per_class": {label: int((cases.truth_NK[:, k] == 1).sum())
                                for k, label in enumerate(cases.label_names)},
        }},
        "models": {trained.name: {
            **{name: entry[name] for name in (*kept, "thresholds", "thresholds_without_positives")},
            "tried": [],
            "validation": {},
            "test": {
                **all_figures_of(reported, operating),
                "calibration": {"before": calibration_of(cases, as_trained), "after": calibration_of(cases)},
                **({"numbers": reported.numbers(numbers.num_known)} if numbers else {}),
                "by_patient": by_patient(cases, config.bootstrap, config.seed),
                "subgroups": subgroup_tables(cases, attributes, config.bootstrap, config.seed, numbers),
            },
        }},
        "comparisons": [],
        "operating": trained.results["operating"],
        "bootstrap": {**config.bootstrap.model_dump(mode="json"), "interval": HOW},
    }  # fmt: skip


def _reported(cases: ScoredCases, numbers: ScoredNumbers | None, config: "EvaluateConfig") -> Reported:
    """All figures with their resamples, those of numbers among them."""
    parts: list[Figures] = [CaseFigures(cases)] + ([NumberFigures(numbers)] if numbers else [])

    def figures(counts_PR: NDArray[np.float32]) -> dict[Key, NDArray[np.float64]]:
        return {key: values for part in parts for key, values in part(counts_PR).items()}

    strata = patient_strata(cases.truth_NK, cases.patient_N)
    values = bootstrap(figures, strata, config.bootstrap.resamples, config.seed)
    ones = np.ones((cases.num_patients, 1), dtype=np.float32)
    plain = {key: float(values_R[0]) for key, values_R in figures(ones).items()}
    return Reported(cases, values, config.bootstrap.confidence, plain)


def _score(
    trained: Trained, dataset: Dataset, matched: Matched, rows: Rows, logits_IK: Floats
) -> tuple[ScoredCases, Floats, ScoredNumbers | None]:
    """Cases as the frozen model decides them, what it says without its temperature, and the numbers that are known."""
    model, case_I = trained.model, dataset.case_of[rows]
    labels = len(model.yes_or_no)
    _, scores_NK = model.pool(case_I, logits_IK)
    _, as_trained_NK = pool_cases(case_I, model.task.probabilities(model.pooled(case_I, logits_IK)))
    first = rows[np.unique(case_I, return_index=True)[1]]
    cases = scored(model.task, matched.truth[first], scores_NK, dataset.patient_of[first], trained.frozen())
    there = [k for k, name in enumerate(model.card.labels) if k >= labels and name not in matched.absent]
    names = tuple(model.card.labels[k] for k in there)
    numbers = ScoredNumbers(matched.truth[first][:, there], scores_NK[:, there], cases.patient_N, names)
    return cases, as_trained_NK[:, :labels], numbers if there else None


def predictions_of(
    trained: Trained, dataset: Dataset, matched: Matched, rows: Rows, logits_IK: Floats, foreign: Foreign | None
) -> bytes:
    """predictions.parquet: one row an image, with its truth in our labels and how foreign it is.

    A case's answer is the mean over its rows, as in a fine-tuning's predictions.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns: dict[str, Any] = {
        "model": pa.array([trained.name] * len(rows)),
        "split": pa.array(dataset.column("split")[rows].astype(str)),
        **{name: pa.array(dataset.column(name)[rows].astype(str)) for name in ("key", "patient", "member")},
        "unseen_condition": matched.unseen[rows],
    }
    model = trained.model
    answers_IK = model.probabilities(model.pooled(dataset.case_of[rows], logits_IK))
    for k, label in enumerate(model.card.labels):
        is_number = label in model.task.number_names
        columns[f"{'number' if is_number else 'label'}.{label}"] = matched.truth[rows, k]
        columns[f"{'predicted' if is_number else 'probability'}.{label}"] = answers_IK[:, k]
    if foreign:
        columns |= {f"foreign.{name}": scores_I for name, scores_I in foreign.scores.items()}
    buffer = io.BytesIO()
    pq.write_table(pa.table(columns), buffer)
    return buffer.getvalue()
