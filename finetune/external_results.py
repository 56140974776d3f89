"""The results of a model on another dataset, in the shape of a fine-tuning's results with one model.

Shapes: I images, N cases, K labels.
"""

import io
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from data.dataset import Dataset
from finetune.bootstrap import Floats, bootstrap, patient_strata
from finetune.evaluate import all_figures_of, calibration_of, scored
from finetune.foreign import Foreign
from finetune.intervals import HOW
from finetune.label_match import Matched
from finetune.metrics import CaseFigures, ScoredCases
from finetune.reported import OVERALL, Reported
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
    known = np.isfinite(matched.truth_IK[rows]).any(axis=1)
    cases, as_trained = _score(trained, dataset, matched, rows[known], logits_IK[known])
    strata = patient_strata(cases.truth_NK, cases.patient_N)
    values = bootstrap(CaseFigures(cases), strata, config.bootstrap.resamples, config.seed)
    reported = Reported(cases, values, config.bootstrap.confidence)
    attributes = case_attributes(dataset, rows[known])
    entry, manifest = trained.entry, dataset.manifest
    kept = ("title", "kind", "architecture", "fingerprint", "lineage", "head", "chosen", "temperature", "threshold")
    return {
        "task": trained.results["task"],
        "labels": list(cases.label_names),
        "classes": list(cases.class_names),
        "dataset": {**{k: getattr(manifest, k) for k in ("name", "source", "licence", "citation")},
                    "fingerprint": dataset.fingerprint},
        "trained_on": trained.results["dataset"],
        "trained_on_test": {name: entry["test"][name] for name in OVERALL if name in entry["test"]},
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
                "subgroups": subgroup_tables(cases, attributes, config.bootstrap, config.seed),
            },
        }},
        "comparisons": [],
        "operating": trained.results["operating"],
        "bootstrap": {**config.bootstrap.model_dump(mode="json"), "interval": HOW},
    }  # fmt: skip


def _score(
    trained: Trained, dataset: Dataset, matched: Matched, rows: Rows, logits_IK: Floats
) -> tuple[ScoredCases, Floats]:
    """Cases as the frozen model decides them, and their probabilities without its temperature."""
    model, case_I = trained.model, dataset.case_of[rows]
    _, scores_NK = model.pool(case_I, logits_IK)
    _, as_trained_NK = pool_cases(case_I, model.task.probabilities(logits_IK[:, : len(model.card.labels)]))
    first = rows[np.unique(case_I, return_index=True)[1]]
    cases = scored(model.task, matched.truth_IK[first], scores_NK, dataset.patient_of[first], trained.frozen())
    return cases, as_trained_NK


def predictions_of(
    trained: Trained, dataset: Dataset, matched: Matched, rows: Rows, logits_IK: Floats, foreign: Foreign | None
) -> bytes:
    """predictions.parquet: one row an image, with its truth in our labels and how foreign it is."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns: dict[str, Any] = {
        "model": pa.array([trained.name] * len(rows)),
        "split": pa.array(dataset.column("split")[rows].astype(str)),
        **{name: pa.array(dataset.column(name)[rows].astype(str)) for name in ("key", "patient", "member")},
        "unseen_condition": matched.unseen_I[rows],
    }
    probabilities_IK = trained.model.pool(np.arange(len(rows)), logits_IK)[1]
    for k, label in enumerate(trained.model.card.labels):
        columns[f"label.{label}"] = matched.truth_IK[rows, k]
        columns[f"probability.{label}"] = probabilities_IK[:, k]
    if foreign:
        columns |= {f"foreign.{name}": scores_I for name, scores_I in foreign.scores.items()}
    buffer = io.BytesIO()
    pq.write_table(pa.table(columns), buffer)
    return buffer.getvalue()
