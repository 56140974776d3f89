"""Calibration, temperature and thresholds, against scikit-learn, planted truth and hand examples."""

import html
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit
from sklearn.metrics import brier_score_loss, log_loss

from finetune.bootstrap import draw_patients
from finetune.calibration import (
    NUM_DRAWS,
    ReliabilityFigures,
    ece_by_chance,
    equal_mass_bins,
    fit_temperature,
    negative_log_likelihood,
    reliability_table,
    slope_and_intercept,
    uncalibrated,
    with_temperature,
)
from finetune.compare import run as compare
from finetune.metrics import ScoredCases
from finetune.report.comparison import comparison
from finetune.run import finetune
from finetune.sealed import sealed
from finetune.thresholds import (
    OperatingConfig,
    choose_thresholds,
    threshold_at_sensitivity,
    threshold_at_specificity,
    youden_threshold,
)
from tests.test_finetune_metrics import multiclass


def softmax(logits):
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def binary(truth, scores, patients=None) -> ScoredCases:
    patients = np.arange(len(truth)) if patients is None else patients
    decided = (scores >= 0.5).astype(int)
    return ScoredCases(truth[:, None], scores[:, None], truth.astype(int), decided, patients, ("x",), ("not x", "x"))


def test_brier_and_ece_equal_plain_restatements_on_every_resample():
    rng = np.random.default_rng(0)
    scores = rng.random(400)
    truth = (rng.random(400) < scores**1.5).astype(float)
    patients = np.unique(rng.integers(0, 150, 400), return_inverse=True)[1]
    counts = draw_patients(np.zeros(patients.max() + 1, dtype=int), 3, "test")
    found = ReliabilityFigures(binary(truth, scores, patients))(counts)
    place, num = equal_mass_bins(scores)
    assert num == 10
    assert np.bincount(place).tolist() == [40] * 10
    for r in range(3):
        weights = counts[patients, r].astype(float)
        assert found["brier", "x"][r] == pytest.approx(brier_score_loss(truth, scores, sample_weight=weights), abs=1e-6)
        ece = 0.0
        for b in range(num):
            inside = place == b
            mean_score = np.average(scores[inside], weights=weights[inside])
            positive = np.average(truth[inside], weights=weights[inside])
            ece += weights[inside].sum() / weights.sum() * abs(mean_score - positive)
            assert found["bin", "x", str(b)][r] == pytest.approx(positive, abs=1e-6)
        assert found["ece", "x"][r] == pytest.approx(ece, abs=1e-6)


def test_multiclass_brier_sums_over_classes_and_ece_is_of_the_largest():
    cases = multiclass()
    scores = softmax(cases.scores_NK)
    cases = ScoredCases(
        cases.truth_NK, scores, cases.true_class_N, scores.argmax(1), cases.patient_N, cases.label_names,
        cases.class_names,
    )  # fmt: skip
    ones = np.ones((cases.num_patients, 1), dtype=np.float32)
    found = ReliabilityFigures(cases)(ones)
    assert found["brier",][0] == pytest.approx(((scores - cases.truth_NK) ** 2).sum(1).mean(), abs=1e-6)
    right = (scores.argmax(1) == cases.true_class_N).astype(float)
    rows = reliability_table(right, scores.max(1))
    expected = sum(row["cases"] * abs(row["mean_score"] - row["share_positive"]) for row in rows) / len(right)
    assert found["ece",][0] == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("truth_is_of", ["patients of one score", "patients", "cases"])
def test_what_a_calibrated_model_shows_by_chance_is_told_where_patients_have_several_cases(truth_is_of):
    observed, told = [], []
    for seed in range(30):
        rng = np.random.default_rng(seed)
        patients = np.repeat(np.arange(300), 3)
        if truth_is_of == "patients":  # each case shows something of its patient's truth, by Bayes' rule
            truth = (rng.random(300) < 0.3)[patients]
            seen = rng.normal(size=900) + 1.5 * truth
            scores = expit(np.log(0.3 / 0.7) + 1.5 * seen - 1.5**2 / 2)
        else:
            scores = rng.uniform(0.05, 0.95, 300)[patients]
            truth = (rng.random(300)[patients] if truth_is_of == "patients of one score" else rng.random(900)) < scores
        cases = binary(truth.astype(float), scores, patients)
        observed.append(ReliabilityFigures(cases)(np.ones((300, 1), dtype=np.float32))["ece", "x"][0])
        told.append(ece_by_chance(cases, "x"))
    assert np.mean(told) == pytest.approx(np.mean(observed), rel=0.08)


def test_where_each_patient_has_one_case_outcomes_are_drawn_one_by_one():
    scores = np.random.default_rng(1).random(200)
    truth = (np.random.default_rng(2).random(200) < scores).astype(float)
    bins = np.eye(10)[equal_mass_bins(scores)[0]]
    drawn = np.random.default_rng(0).random((NUM_DRAWS, 200)) < scores
    expected = np.abs((scores - drawn) @ bins).sum(axis=1).mean() / 200
    assert ece_by_chance(binary(truth, scores), "x") == pytest.approx(expected, abs=1e-12)


@given(st.lists(st.integers(0, 12), min_size=1, max_size=60))
@settings(max_examples=100, deadline=None)
def test_bins_are_ordered_nonempty_and_keep_ties_together(values):
    scores = np.array(values) / 12
    place, num = equal_mass_bins(scores)
    assert sorted(set(place.tolist())) == list(range(num))
    assert num <= 10
    order = np.argsort(scores, kind="stable")
    assert (np.diff(place[order]) >= 0).all()
    for value in set(values):
        assert len(set(place[np.array(values) == value])) == 1


def test_log_likelihood_equals_scikit_learn():
    cases = multiclass()
    scores = softmax(cases.scores_NK)
    found = negative_log_likelihood(True, cases.truth_NK, scores)
    assert found == pytest.approx(log_loss(cases.true_class_N, scores, labels=range(5)))
    truth = np.array([[1, np.nan], [0, 1], [0, 0.0]])
    said = np.array([[0.7, 0.1], [0.2, 0.6], [0.4, 0.3]])
    expected = -np.mean(np.log([0.7, 0.8, 0.6, 0.6, 0.7]))
    assert negative_log_likelihood(False, truth, said) == pytest.approx(expected)


@pytest.mark.parametrize("exclusive", [True, False])
def test_the_planted_temperature_is_found_and_the_logits_are_those_divided(exclusive):
    rng = np.random.default_rng(1)
    logits = rng.normal(0, 2, (6000, 4))
    if exclusive:
        true = np.array([rng.choice(4, p=p) for p in softmax(logits)])
        truth, expected = np.eye(4)[true], softmax(logits)
    else:
        truth = (rng.random((6000, 4)) < 1 / (1 + np.exp(-logits))).astype(float)
        truth[rng.random(truth.shape) < 0.2] = np.nan
        expected = 1 / (1 + np.exp(-logits))
    sure = 2.5 * logits
    assert with_temperature(exclusive, sure, 2.5) == pytest.approx(expected, abs=1e-12)
    found = fit_temperature(exclusive, truth, np.arange(6000), sure)
    assert found == pytest.approx(2.5, rel=0.05)
    before = negative_log_likelihood(exclusive, truth, with_temperature(exclusive, sure, 1.0))
    assert negative_log_likelihood(exclusive, truth, with_temperature(exclusive, sure, found)) < before


def test_without_both_sides_the_temperature_stays_one():
    assert fit_temperature(False, np.ones((5, 1)), np.arange(5), np.full((5, 1), 0.7)) == 1.0


@pytest.mark.parametrize("exclusive", [True, False])
def test_a_temperature_keeps_the_ranks_of_confident_answers(exclusive):
    """Also where a probability is 1e-300."""
    logits = np.sort(np.random.default_rng(3).uniform(-690, 5, (200, 1)), axis=0)
    logits = np.hstack([logits, np.zeros_like(logits)]) if exclusive else logits
    for temperature in (1.0, 4.19, 20.0):
        found = with_temperature(exclusive, logits, temperature)
        np.testing.assert_allclose(found, (softmax if exclusive else expit)(logits / temperature), rtol=1e-9)
        assert (np.diff(found[:, 0]) > 0).all()


@pytest.mark.parametrize("exclusive", [True, False])
def test_a_temperature_at_its_bound_is_told(exclusive):
    """Never wrong, so that surer is always likelier; wrong more often than right, so that no doubt is enough."""
    right = np.eye(2)[np.arange(40) % 2]
    found = {}
    for name, sure in (("sound", 0.8), ("never wrong", 0.6), ("sure and never wrong", 0.99), ("wrong", 0.3)):
        said = np.where(right == 1, sure, 1 - sure)
        if name == "sound":
            said[:4] = 1 - said[:4]
        logits = np.log(said) if exclusive else np.log(said / (1 - said))
        found[name] = fit_temperature(exclusive, right, np.arange(40), logits)
    assert 0.05 < found["sound"] < 1
    assert (found["never wrong"], found["sure and never wrong"], found["wrong"]) == (0.05, 0.05, 20.0)
    assert uncalibrated(found) == [
        "the temperature of never wrong (0.05) and of sure and never wrong (0.05) and of wrong (20) is at its bound: "
        "probabilities are not calibrated"
    ]
    assert uncalibrated({"sound": found["sound"]}) == []


def test_the_results_warn_of_a_temperature_at_its_bound(finetuned, tmp_path, monkeypatch):
    monkeypatch.setattr("finetune.evaluate.fit_temperature", lambda *_: 20.0)
    finetune(finetuned.model_copy(update={"out": str(tmp_path / "out")}))
    results = json.loads((tmp_path / "out/results.json").read_text())
    (name,) = results["models"]
    told = f"the temperature of {name} (20) is at its bound: probabilities are not calibrated"
    assert told in results["warnings"]
    page = html.unescape((tmp_path / "out/report.html").read_text())
    assert told in page and "calibrated on validation (temperature)" not in page
    assert all(f"{figure} (not calibrated)" in page for figure in ("ECE", "Brier score"))


def test_a_model_with_its_temperature_at_its_bound_is_compared_in_no_figure_of_probabilities(
    finetuned, tmp_path, monkeypatch, capsys
):
    """Whose Brier score tells of the bound: against a model like it, it had a difference with p below 0.001."""
    temperatures = iter([1.5, 1.5, 20.0])
    monkeypatch.setattr("finetune.evaluate.fit_temperature", lambda *_: next(temperatures))
    out = tmp_path / "out"
    finetune(finetuned.model_copy(update={"out": str(out), "baselines": ["untrained", "pca"]}))
    results = json.loads((out / "results.json").read_text())
    told = {(row["baseline"], row["figure"]): row for row in results["comparisons"] if row["label"] is None}
    assert ("pca", "auroc") in told and ("pca", "brier") not in told
    assert told["untrained", "brier"]["p_holm"] == told["untrained", "brier"]["p"]
    title = results["models"]["pca"]["title"]
    not_compared = f"Not calibrated, so not compared in Brier score: {title}."
    assert not_compared in (out / "report.html").read_text()

    earlier = {**told["untrained", "brier"], "baseline": "pca"}
    found = str(comparison({**results, "comparisons": [*results["comparisons"], earlier]})[0])
    assert found.count("Brier score (smaller is better)") == 1 and not_compared in found
    assert found.count(f"{title} (not calibrated)") == 2

    told = json.loads((out / "results.json").read_text())
    told["models"]["pretrained"]["temperature"] = 0.05
    (out / "results.json").write_text(json.dumps(sealed(told)))
    capsys.readouterr()
    compare([finetuned.out, str(out)])
    shown = capsys.readouterr().out
    assert "| AUROC |" in shown and "| Brier score |" not in shown
    assert f"{out} (0.05) is at its bound: probabilities are not calibrated" in shown


def test_a_model_that_says_a_half_of_all_keeps_its_temperature():
    assert fit_temperature(False, np.array([[0.0], [1.0]]), np.arange(2), np.zeros((2, 1))) == 1.0


def test_slope_and_intercept_of_scores_that_are_twice_too_sure():
    rng = np.random.default_rng(2)
    logits = rng.normal(0, 1.5, 20_000)
    truth = (rng.random(20_000) < 1 / (1 + np.exp(-logits))).astype(float)
    found = slope_and_intercept(truth, 1 / (1 + np.exp(-(2 * logits + 1))))
    assert found is not None
    slope, intercept = found
    assert slope == pytest.approx(0.5, abs=0.03)
    shifted = 1 / (1 + np.exp(-(2 * logits + 1 + intercept)))
    assert intercept < -0.5 and shifted.mean() == pytest.approx(truth.mean(), abs=1e-9), "in the large"
    right = slope_and_intercept(truth, 1 / (1 + np.exp(-(logits - 0.7))))
    assert right == pytest.approx((1.0, 0.7), abs=0.06)
    rare = slope_and_intercept(np.array([1.0, 0, 0, 0, 0]), np.array([0.5, 1 - 1e-9, 1e-12, 0.3, 0.2]))
    assert rare is not None and np.isfinite(rare[1])
    assert slope_and_intercept(np.ones(4), np.array([0.1, 0.2, 0.3, 0.4])) is None
    assert slope_and_intercept(np.array([0, 0, 1, 1.0]), np.array([0.1, 0.2, 0.3, 0.4])) is None
    assert slope_and_intercept(np.array([0, 1, 0, 1.0]), np.full(4, 0.3)) is None


def test_operating_points_by_hand():
    truth = np.array([0, 0, 0, 0, 0, 1, 1, 1, 1, 1.0])
    scores = np.array([0.1, 0.2, 0.3, 0.5, 0.8, 0.2, 0.5, 0.6, 0.7, 0.9])
    # From 0.6 on one of five negatives is called positive; from 0.5 on two are.
    # Thresholds lie halfway to the next lower score.
    assert threshold_at_specificity(truth, scores, 0.8) == pytest.approx(0.55)
    assert threshold_at_specificity(truth, scores, 0.9) == pytest.approx(0.85)
    assert threshold_at_sensitivity(truth, scores, 0.8) == pytest.approx(0.4)
    assert threshold_at_sensitivity(truth, scores, 0.9) == pytest.approx(0.15)
    assert threshold_at_specificity(np.array([0, 1.0]), np.array([0.9, 0.1]), 0.9) == np.inf


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 8)), min_size=2, max_size=50), st.floats(0.05, 0.95))
@settings(max_examples=200, deadline=None)
def test_operating_points_reach_their_target_and_no_other_threshold_is_better(data, target):
    truth, scores = np.array([float(row[0]) for row in data]), np.array([row[1] / 8 for row in data])
    if truth.min() == truth.max():
        return

    def judged(threshold):
        said = scores >= threshold
        return said[truth == 1].mean(), (~said)[truth == 0].mean()

    sensitivity, specificity = judged(threshold_at_specificity(truth, scores, target))
    assert specificity >= target - 1e-9
    others = [judged(t) for t in [*np.unique(scores), np.inf]]
    assert sensitivity == max(s for s, p in others if p >= target - 1e-9)
    sensitivity, specificity = judged(threshold_at_sensitivity(truth, scores, target))
    assert sensitivity >= target - 1e-9
    assert specificity == max(p for s, p in others if s >= target - 1e-9)


def test_a_label_without_positives_in_validation_is_decided_at_a_half_and_named():
    truth = np.array([[0, 0], [0, 1], [0, np.nan], [0, 1.0]])
    scores = np.array([[0.1, 0.2], [0.3, 0.9], [0.2, 0.95], [0.9, 0.8]])
    found = choose_thresholds(truth, scores, ("none", "some"), OperatingConfig())
    assert found.one_sided == ("none",)
    assert found.decision_K.tolist() == [0.5, 0.5]
    assert np.isnan(found.at_specificity_K[0])
    assert found.at_sensitivity_K[1] == 0.5


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 8)), min_size=2, max_size=50), st.integers(0, 1000))
@settings(max_examples=200, deadline=None)
def test_validation_is_decided_alike_where_its_scores_come_out_a_little_differently(data, seed):
    truth, scores = np.array([float(row[0]) for row in data]), np.array([(row[1] + 1) / 10 for row in data])
    if truth.min() == truth.max():
        return
    again = scores + np.random.default_rng(seed).choice([-1e-6, 1e-6], len(scores))
    for threshold in (
        youden_threshold(truth, scores),
        threshold_at_specificity(truth, scores, 0.8),
        threshold_at_sensitivity(truth, scores, 0.8),
    ):
        assert threshold > 0
        np.testing.assert_array_equal(again >= threshold, scores >= threshold)


def test_thresholds_stay_where_nothing_lies_between_two_scores():
    truth, close = np.array([0.0, 1.0]), np.array([np.nextafter(0.5, 0), 0.5])
    assert youden_threshold(truth, close) == 0.5
    assert youden_threshold(np.array([0.0, 1.0]), np.zeros(2)) == 0
    assert youden_threshold(np.array([0.0, 1.0]), np.array([-2.0, -2.0])) == -2
