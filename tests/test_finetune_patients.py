"""Figures by patient: several cases of one person become one row."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, recall_score, roc_auc_score

from finetune.bootstrap import BootstrapConfig
from finetune.config import FinetuneConfig
from finetune.metrics import ScoredCases
from finetune.patients import by_patient, whole_patients
from finetune.report.patients import by_patient as section

FEW = BootstrapConfig(resamples=50)


def findings(truth, scores, patients, thresholds=(0.5, 0.5)) -> ScoredCases:
    truth, scores = np.array(truth, dtype=float), np.array(scores, dtype=float)
    nothing = np.zeros(len(truth), dtype=int)
    return ScoredCases(truth, scores, nothing, nothing, np.array(patients), ("a", "b"), (), np.array(thresholds))


def test_a_patient_is_the_likeliest_of_its_known_cases_by_hand():
    truth = [[0, np.nan], [1, 0], [0, 0], [0, np.nan], [np.nan, 1]]
    scores = [[0.9, 0.9], [0.4, 0.2], [0.3, 0.1], [0.1, 0.8], [0.7, 0.6]]
    patients = whole_patients(findings(truth, scores, [5, 5, 7, 7, 9]))
    assert patients.truth_NK.tolist()[:2] == [[1, 0], [0, 0]]
    assert np.isnan(patients.truth_NK[2, 0])
    assert patients.truth_NK[2, 1] == 1
    # What is said of a case whose label is unknown counts for nothing: patient 5 of label b has 0.2, not 0.9.
    assert patients.scores_NK.tolist() == [[0.9, 0.2], [0.3, 0.1], [0.0, 0.6]]


@given(st.lists(st.tuples(st.integers(0, 7), st.booleans(), st.integers(0, 20)), min_size=12, max_size=40))
@settings(max_examples=60, deadline=None)
def test_figures_are_scikit_learn_s_of_the_largest_by_patient(rows):
    patients, truth, scores = (np.array(column) for column in zip(*rows))
    scores = scores / 20
    of = {p: (truth[patients == p].max(), scores[patients == p].max()) for p in np.unique(patients)}
    true, largest = (np.array(column, dtype=float) for column in zip(*of.values()))
    twice = np.stack([truth, truth], axis=1)
    found = by_patient(findings(twice, np.stack([scores, scores], axis=1), patients), FEW, 0)
    assert found is not None
    assert found["patients"] == len(of)
    row = found["per_class"]["a"]
    assert (row["positives"], row["negatives"]) == (true.sum(), (1 - true).sum())
    if 0 < true.sum() < len(true):
        assert row["auroc"]["value"] == pytest.approx(roc_auc_score(true, largest))
        assert row["auprc"]["value"] == pytest.approx(average_precision_score(true, largest), abs=1e-6)
        assert row["sensitivity"]["value"] == pytest.approx(recall_score(true, largest >= 0.5))
        assert row["specificity"]["value"] == pytest.approx(recall_score(1 - true, largest < 0.5))
        assert found["auroc"]["value"] == pytest.approx(row["auroc"]["value"])
    else:
        assert row["auroc"]["value"] is None


def test_a_run_s_results_and_page_tell_what_its_predictions_give_by_patient(finetuned: FinetuneConfig):
    out = Path(finetuned.out)
    results = json.loads((out / "results.json").read_text())
    rows: Any = pd.read_parquet(out / "predictions.parquet")
    rows = rows[rows["split"] == "test"]
    assert "patients as wholes" in (out / "report.html").read_text()
    for name, model in results["models"].items():
        cases = rows[rows["model"] == name].groupby(["patient", "key"]).mean(numeric_only=True)
        patients = cases.groupby("patient").max()
        assert len(patients) < len(cases), "some have several cases"
        found = model["test"]["by_patient"]
        assert found["patients"] == len(patients)
        for label, row in found["per_class"].items():
            truth, scores = patients[f"label.{label}"], patients[f"probability.{label}"]
            assert row["positives"] == truth.sum()
            if truth.nunique() == 2:
                assert row["auroc"]["value"] == pytest.approx(roc_auc_score(truth, scores))
            else:
                assert row["auroc"]["value"] is None


def test_one_case_each_has_no_figures_by_patient():
    truth = np.tile([[0, 1], [1, 0]], (5, 1))
    assert by_patient(findings(truth, truth * 0.8, np.arange(10)), FEW, 0) is None


def test_exclusive_classes_are_ranked_by_patient_and_not_decided():
    """One with two lesions may have two classes, so that no one decision is right or wrong of a patient."""
    truth, scores = np.tile(np.eye(2), (6, 1)), np.random.default_rng(0).random((12, 2))
    cases = replace(
        findings(truth, scores, np.arange(12) // 2), class_names=("a", "b"), true_class_N=truth.argmax(axis=1)
    )
    found = by_patient(cases, FEW, 0)
    assert found is not None
    assert "sensitivity" not in found
    assert found["per_class"]["a"]["positives"] == 6  # every patient has both
    assert found["per_class"]["a"]["auroc"]["value"] is None


def test_the_page_tells_of_patients_where_some_have_several_cases():
    rng = np.random.default_rng(1)
    truth = (rng.random((60, 2)) < 0.4).astype(float)
    found = by_patient(findings(truth, truth * 0.3 + 0.7 * rng.random((60, 2)), np.arange(60) // 2), FEW, 0)
    models = {name: {"title": f"the {name}", "test": {"by_patient": found}} for name in ("first", "second")}
    results = {"models": models, "task": "multilabel", "labels": ["a", "b"], "classes": []}
    content, drawings = section(results)
    assert "The 30 patients as wholes" in content
    assert "called positive where any case is" in content
    assert "Macro AUROC by patient" in content
    assert [drawing.name for drawing in drawings] == ["patients-auroc"]
    for model in models.values():
        model["test"]["by_patient"] = None
    assert section(results) == ("", [])
