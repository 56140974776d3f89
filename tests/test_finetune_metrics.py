import os
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import (
    average_precision_score,
    balanced_accuracy_score,
    confusion_matrix,
    f1_score,
    precision_recall_fscore_support,
    recall_score,
    roc_auc_score,
    top_k_accuracy_score,
)

from finetune.bootstrap import bootstrap, draw_patients, patient_strata
from finetune.metrics import CaseFigures, ScoredCases, confusion, figures_of
from finetune.ranking import Ranking, macro_auroc, roc_curve
from finetune.thresholds import youden_threshold


def multiclass(num_cases=300, num_classes=5, num_patients=120, seed=0, ties=True) -> ScoredCases:
    rng = np.random.default_rng(seed)
    true = rng.integers(0, num_classes, num_cases)
    truth = np.eye(num_classes)[true]
    scores = truth + rng.normal(0, 1.2, truth.shape)
    scores = np.round(scores, 1) if ties else scores
    patients = np.unique(rng.integers(0, num_patients, num_cases), return_inverse=True)[1]
    names = tuple(f"class {k}" for k in range(num_classes))
    return ScoredCases(truth, scores, true, scores.argmax(axis=1), patients, names, names)


@given(
    data=st.lists(
        st.tuples(st.booleans(), st.integers(0, 6), st.integers(0, 9), st.integers(0, 3)),
        min_size=2,
        max_size=40,
    )
)
@settings(max_examples=200, deadline=None)
def test_auroc_with_ties_and_weights_equals_scikit_learn(data):
    truth = np.array([float(row[0]) for row in data])
    scores = np.array([row[1] / 3 for row in data])
    patients = np.unique([row[2] for row in data], return_inverse=True)[1]
    counts = np.array([row[3] for row in data], dtype=np.float32)[: patients.max() + 1]
    weights = counts[patients]
    found = Ranking(truth, scores, patients, len(counts)).auroc(counts[:, None])[0]
    if weights[truth == 1].sum() and weights[truth == 0].sum():
        assert found == pytest.approx(roc_auc_score(truth, scores, sample_weight=weights), abs=1e-12)
    else:
        assert np.isnan(found)


def test_auroc_by_hand():
    # Positives 0.8, 0.4; negatives 0.4, 0.1: pairs won 1, 1, tie ½, won 1.
    truth, scores = np.array([1.0, 1.0, 0.0, 0.0]), np.array([0.8, 0.4, 0.4, 0.1])
    assert macro_auroc(truth[:, None], scores[:, None]) == 3.5 / 4
    # The first positive's patient drawn three times: (3·2 + ½ + 1) / (4·2).
    counts = np.array([3, 1, 1, 1], dtype=np.float32)
    assert Ranking(truth, scores, np.arange(4), 4).auroc(counts[:, None])[0] == 7.5 / 8


def test_figures_equal_scikit_learn_on_every_resample():
    cases = multiclass()
    counts = draw_patients(patient_strata(cases.truth_NK, cases.patient_N), 4, "test")
    found = CaseFigures(cases)(counts)
    for r in range(4):
        weights = counts[cases.patient_N, r].astype(float)
        true, decided, labels = cases.true_class_N, cases.decided_class_N, range(5)
        aurocs = [roc_auc_score(cases.truth_NK[:, k], cases.scores_NK[:, k], sample_weight=weights) for k in labels]
        matrix = confusion_matrix(true, decided, sample_weight=weights)
        others = matrix.sum() - matrix.sum(0) - matrix.sum(1) + np.diag(matrix)
        expected = {
            ("auroc",): np.mean(aurocs),
            ("auroc", "class 3"): aurocs[3],
            ("balanced_accuracy",): balanced_accuracy_score(true, decided, sample_weight=weights),
            ("top1",): (weights * (true == decided)).sum() / weights.sum(),
            ("sensitivity", "class 2"): matrix[2, 2] / matrix[2].sum(),
            ("specificity", "class 2"): others[2] / (matrix.sum() - matrix[2].sum()),
            ("confusion", "class 1", "class 4"): matrix[1, 4] / matrix[1].sum(),
        }
        for key, value in expected.items():
            assert found[key][r] == pytest.approx(value, abs=1e-9), key
    untied = multiclass(ties=False)
    top3 = top_k_accuracy_score(untied.true_class_N, untied.scores_NK, k=3)
    assert figures_of(untied)["top3",] == pytest.approx(top3)
    assert (confusion(cases) == confusion_matrix(cases.true_class_N, cases.decided_class_N)).all()


def test_top_1_follows_the_decision_where_scores_tie():
    names = ("a", "b", "c", "d")
    scores, true = np.full((4, 4), 0.25), np.arange(4)
    cases = ScoredCases(np.eye(4)[true], scores, true, scores.argmax(1), np.arange(4), names, names)
    figures = figures_of(cases)
    assert figures["top1",] == 0.25
    assert figures["top3",] == 0.75


def test_a_class_without_positives_is_undefined_and_left_out_of_the_macro():
    names = ("a", "b", "c")
    true = np.array([0, 0, 1, 1])
    scores = np.array([[0.8, 0.1, 0.1], [0.3, 0.6, 0.1], [0.2, 0.7, 0.1], [0.4, 0.5, 0.1]])
    cases = ScoredCases(np.eye(3)[true], scores, true, scores.argmax(1), np.arange(4), names, names)
    figures = figures_of(cases)
    assert np.isnan(figures["auroc", "c"])
    assert np.isnan(figures["sensitivity", "c"])
    assert figures["auroc",] == pytest.approx((3 / 4 + 3 / 4) / 2)
    assert figures["balanced_accuracy",] == pytest.approx((0.5 + 1.0) / 2)


def test_missing_labels_do_not_count():
    truth, scores = np.array([1.0, 0.0, np.nan]), np.array([0.9, 0.1, 0.99])
    assert macro_auroc(truth[:, None], scores[:, None]) == 1.0


def test_draws_keep_the_number_of_patients_of_each_stratum():
    strata = np.array([2, 2, 2, 0, 0, -1, 2, 1])
    counts = draw_patients(strata, 500, "seed", 1)
    for stratum in np.unique(strata):
        assert (counts[strata == stratum].sum(axis=0) == (strata == stratum).sum()).all()
    # Each patient is drawn once on average, and with the variance of a multinomial.
    assert counts.mean(axis=1) == pytest.approx(np.ones(8), abs=0.15)
    assert counts[strata == 2].var(axis=1) == pytest.approx(np.full(4, 3 / 4), abs=0.2)
    assert (counts == draw_patients(strata, 500, "seed", 1)).all()
    assert (counts != draw_patients(strata, 500, "seed", 2)).any()


def test_a_patient_stands_in_the_stratum_of_its_rarest_label():
    truth = np.array([[1, 0], [1, 0], [1, 0], [0, 1], [0, 0]], dtype=float)
    patients = np.array([0, 1, 2, 2, 3])
    assert patient_strata(truth, patients).tolist() == [0, 0, 1, -1]


def test_bootstrap_is_the_same_for_the_same_seed_and_keeps_models_paired():
    good, bad = multiclass(seed=1), multiclass(seed=2)
    bad = ScoredCases(
        good.truth_NK, bad.scores_NK, good.true_class_N, bad.decided_class_N, good.patient_N,
        good.label_names, good.class_names,
    )  # fmt: skip
    one, other = CaseFigures(good), CaseFigures(bad)
    strata = patient_strata(good.truth_NK, good.patient_N)

    def both(counts):
        return {("good", *k): v for k, v in one(counts).items()} | {("bad", *k): v for k, v in other(counts).items()}

    values = bootstrap(both, strata, 300, seed=0)
    assert (values["good", "auroc"] == bootstrap(one, strata, 300, seed=0)["auroc",]).all()
    difference = values["good", "auroc"] - values["bad", "auroc"]
    plain = figures_of(good)["auroc",] - figures_of(bad)["auroc",]
    assert difference.mean() == pytest.approx(plain, abs=3 * difference.std() / np.sqrt(300) + 0.003)
    assert difference.std() < values["good", "auroc"].std() + values["bad", "auroc"].std()


def test_the_bootstrap_runs_where_the_system_does_not_tell_the_cores(monkeypatch):
    def draw():
        return bootstrap(lambda drawn_PR: {("total",): drawn_PR.sum(axis=0)}, np.zeros(5, dtype=int), 10, 0)

    expected = draw()
    monkeypatch.delattr(os, "sched_getaffinity")
    assert (draw()["total",] == expected["total",]).all()


def test_roc_curve_and_youden_by_hand():
    truth, scores = np.array([0, 0, 1, 1, 1.0]), np.array([0.1, 0.5, 0.5, 0.7, 0.9])
    false, true, cuts = roc_curve(truth, scores)
    assert false.tolist() == [0, 0, 0, 0.5, 1]
    assert true == pytest.approx([0, 1 / 3, 2 / 3, 1, 1])
    assert cuts.tolist() == [np.inf, 0.9, 0.7, 0.5, 0.1]
    assert youden_threshold(truth, scores) == pytest.approx(0.6)  # from 0.7 on, halfway to 0.5
    assert youden_threshold(np.zeros(3), np.array([0.1, 0.2, 0.3])) == 0.5


def test_precision_recall_and_f1_equal_scikit_learn_on_every_resample():
    cases = multiclass()
    counts = draw_patients(patient_strata(cases.truth_NK, cases.patient_N), 3, "test")
    found = CaseFigures(cases)(counts)
    for r in range(3):
        weights = counts[cases.patient_N, r].astype(float)
        average = [
            average_precision_score(cases.truth_NK[:, k], cases.scores_NK[:, k], sample_weight=weights)
            for k in range(5)
        ]
        told: Any = precision_recall_fscore_support(cases.true_class_N, cases.decided_class_N, sample_weight=weights)
        precision, _, f1, _ = told
        assert found["auprc", "class 2"][r] == pytest.approx(average[2], abs=1e-6)
        assert found["auprc",][r] == pytest.approx(np.mean(average), abs=1e-6)
        assert found["precision", "class 1"][r] == pytest.approx(precision[1], abs=1e-9)
        assert found["f1", "class 1"][r] == pytest.approx(f1[1], abs=1e-9)
        assert found["f1",][r] == pytest.approx(f1.mean(), abs=1e-9)


def test_multi_label_figures_leave_out_what_is_unknown_label_by_label():
    rng = np.random.default_rng(4)
    truth = rng.integers(0, 2, (200, 3)).astype(float)
    truth[rng.random(truth.shape) < 0.3] = np.nan
    truth[:, 2] = np.where(np.isfinite(truth[:, 2]), 0.0, np.nan)
    scores = np.clip(np.nan_to_num(truth, nan=0.5) * 0.3 + rng.random(truth.shape) * 0.7, 0, 1)
    nobody = np.zeros(200, dtype=int)
    thresholds = np.array([0.4, 0.6, 0.5])
    cases = ScoredCases(
        truth, scores, nobody, nobody, np.arange(200), ("a", "b", "never"), (), thresholds,
        {"at_specificity": np.array([0.7, np.nan, np.nan])},
    )  # fmt: skip
    found = figures_of(cases)
    for k, label in enumerate(("a", "b")):
        known = np.isfinite(truth[:, k])
        true, said = truth[known, k], scores[known, k] >= thresholds[k]
        assert found["auroc", label] == pytest.approx(roc_auc_score(true, scores[known, k]))
        assert found["auprc", label] == pytest.approx(average_precision_score(true, scores[known, k]), abs=1e-6)
        assert found["sensitivity", label] == pytest.approx(recall_score(true, said))
        assert found["specificity", label] == pytest.approx(recall_score(1 - true, ~said))
        assert found["f1", label] == pytest.approx(f1_score(true, said))
    assert np.isnan(found["auroc", "never"])
    assert np.isnan(found["f1", "never"])
    assert found["auroc",] == pytest.approx((found["auroc", "a"] + found["auroc", "b"]) / 2)
    known = truth[:, 0] == 1
    assert found["sensitivity_at_specificity", "a"] == pytest.approx((scores[known, 0] >= 0.7).mean())
    assert np.isnan(found["sensitivity_at_specificity", "b"])
    assert ("top1",) not in found
    assert not any(key[0] == "confusion" for key in found)


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 4), st.integers(0, 3)), min_size=2, max_size=30))
@settings(max_examples=100, deadline=None)
def test_average_precision_with_ties_and_weights_equals_scikit_learn(data):
    truth, scores = np.array([float(row[0]) for row in data]), np.array([row[1] / 4 for row in data])
    weights = np.array([row[2] for row in data], dtype=np.float32)
    found = Ranking(truth, scores, np.arange(len(data)), len(data)).both(weights[:, None])[1][0]
    if weights[truth == 1].sum() and weights[truth == 0].sum():
        expected = average_precision_score(truth, scores, sample_weight=weights)
        assert found == pytest.approx(expected, abs=1e-6)
    else:
        assert np.isnan(found)


def test_figures_do_not_depend_on_the_cut_into_blocks(monkeypatch):
    cases = multiclass()
    counts = draw_patients(patient_strata(cases.truth_NK, cases.patient_N), 20, "test")
    whole = CaseFigures(cases)(counts)
    monkeypatch.setattr("finetune.ranking.BLOCK_NUMBERS", 1)
    for key, values in CaseFigures(cases)(counts).items():
        assert np.array_equal(values, whole[key], equal_nan=True), key
