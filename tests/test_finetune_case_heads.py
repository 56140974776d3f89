"""Heads that learn a case as a whole from cached features."""

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from clusters.config import InputError, validate
from finetune.cohort import Cohort, case_auroc
from finetune.config import FinetuneConfig, LinearConfig
from finetune.full_config import Pooling
from finetune.linear import fit_linear
from finetune.linear_head import LinearHead
from finetune.predict import run as run_predict
from finetune.regression import Regression
from finetune.run import finetune
from finetune.search import SearchConfig
from finetune.tasks import Binary, MultiClass, Task
from finetune.two_heads import TwoHeads
from tests.finetune_runs import recipe, write_encoder

TRAINED: list[Pooling] = ["max", "attention"]


class Images:
    """A stand-in for a dataset: cases and their images, shuffled."""

    def __init__(self, case_of: np.ndarray) -> None:
        self.case_of = case_of


def study(task: Task, truth_NK: np.ndarray, features_ID: np.ndarray, case_of: np.ndarray, seed: int = 0) -> tuple:
    """A cohort of half of the cases to train on and a quarter to choose and to test on; images in a drawn order."""
    order = np.random.default_rng(seed).permutation(len(case_of))
    case_of, features_ID = case_of[order], features_ID[order]
    num_cases = len(truth_NK)
    ends = (0, num_cases // 2, 3 * num_cases // 4, num_cases)
    rows = [np.flatnonzero((case_of >= low) & (case_of < high)) for low, high in pairwise(ends)]
    cohort = Cohort(Images(case_of), task, truth_NK[case_of], *rows, rows[0], case_of)  # type: ignore[arg-type]
    return cohort, features_ID


def one_telling_image(task: Task, num_cases: int = 600) -> tuple:
    """Cases of 2 to 6 images, one of which, marked in the last column, tells the class; the others tell any."""
    rng = np.random.default_rng(0)
    case_of = np.repeat(np.arange(num_cases), rng.integers(2, 7, num_cases))
    num_classes = max(2, len(task.label_names))
    class_N, said_I = rng.integers(0, num_classes, num_cases), rng.integers(0, num_classes, len(case_of))
    telling_I = np.append(True, np.diff(case_of) > 0)
    said_I = np.where(telling_I, class_N[case_of], said_I)
    features = 2 * np.eye(num_classes)[said_I] + rng.normal(size=(len(case_of), num_classes))
    features = np.column_stack([features, 3 * telling_I + rng.normal(size=len(case_of))])
    truth = np.eye(num_classes)[class_N] if len(task.label_names) > 1 else (class_N == 1).astype(float)[:, None]
    return study(task, truth, 7 + features * np.geomspace(0.1, 30, features.shape[1]), case_of)


def fit(cohort: Cohort, features: np.ndarray, pooling: Pooling, seed: int = 0, **settings):
    config = LinearConfig(pooling=pooling, **settings)
    return fit_linear(cohort, features[cohort.train], features[cohort.val], "none", config, "test", seed)


def score_on_test(cohort: Cohort, features: np.ndarray, head: LinearHead) -> float:
    logits = head.logits(features[cohort.test], cohort.dataset.case_of[cohort.test])
    return case_auroc(cohort, cohort.test, logits)


def test_the_mean_is_logistic_regression_on_mean_features():
    cohort, features = one_telling_image(MultiClass(["a", "b", "c"]))
    head = fit(cohort, features, "mean", strengths=[0.05]).head
    cases = cohort.dataset.case_of

    def means(rows: np.ndarray) -> np.ndarray:
        return np.stack([features[rows[cases[rows] == case]].mean(axis=0) for case in np.unique(cases[rows])])

    first = cohort.train[np.unique(cases[cohort.train], return_index=True)[1]]
    pipeline = make_pipeline(StandardScaler(), LogisticRegression(C=0.05))
    expected = pipeline.fit(means(cohort.train), cohort.class_of(first)).predict_proba(means(cohort.test))
    found = cohort.task.probabilities(head.logits(features[cohort.test], cases[cohort.test]))
    place = np.unique(cases[cohort.test], return_inverse=True)[1]
    assert found == pytest.approx(expected[place], abs=2e-3)


@pytest.mark.parametrize("task", [MultiClass(["a", "b", "c"]), Binary(["b"])], ids=["classes", "yes or no"])
def test_attention_finds_the_image_that_tells(task: Task):
    cohort, features = one_telling_image(task)
    mean, attention = (fit(cohort, features, pooling, strengths=[0.1, 10.0]) for pooling in ("mean", "attention"))
    scores = [score_on_test(cohort, features, choice.head) for choice in (mean, attention)]
    assert scores[1] > scores[0] + 0.03
    assert attention.chosen["step"] > 0
    assert [row["C"] for row in attention.tried] == [0.1, 10.0]


def test_the_largest_logit_finds_what_one_of_many_images_shows():
    """A case is positive where any of its images shows it: what multiple-instance learning takes the maximum for."""
    rng = np.random.default_rng(1)
    case_of = np.repeat(np.arange(600), rng.integers(1, 9, 600))
    shows_I = rng.random(len(case_of)) < 0.12
    truth = np.bincount(case_of, shows_I)[:, None] > 0
    features = rng.normal(size=(len(case_of), 5)) + np.outer(shows_I, [3, 0, 0, 0, 0])
    cohort, features = study(Binary(["x"]), truth.astype(float), features, case_of)
    scores = [score_on_test(cohort, features, fit(cohort, features, p, strengths=[1.0]).head) for p in ("mean", "max")]
    assert scores[1] > scores[0] + 0.02


@pytest.mark.parametrize("pooling", TRAINED)
def test_it_depends_on_the_seed_alone_and_on_validation_is_no_worse_than_its_start(pooling: Pooling):
    cohort, features = one_telling_image(MultiClass(["a", "b"]), 100)
    one, again, other = (fit(cohort, features, pooling, seed, strengths=[1.0]) for seed in (3, 3, 4))
    for name, values in one.head.weights().items():
        assert np.array_equal(values, again.head.weights()[name]), name
    assert not np.array_equal(one.head.weight_KD, other.head.weight_KD)
    mean = fit(cohort, features, "mean", strengths=[1.0]).head
    start = replace(mean, pooling=pooling) if pooling == "max" else mean
    val = features[cohort.val]
    before = case_auroc(cohort, cohort.val, start.logits(val, cohort.dataset.case_of[cohort.val]))
    assert one.chosen["val_auroc"] >= before - 1e-6


def test_the_order_of_images_does_not_matter_and_a_case_has_one_answer():
    cohort, features = one_telling_image(MultiClass(["a", "b"]), 80)
    head = fit(cohort, features, "attention", strengths=[0.1]).head
    case_I = cohort.dataset.case_of[cohort.test]
    logits = head.logits(features[cohort.test], case_I)
    turned = head.logits(features[cohort.test][::-1], case_I[::-1])[::-1]
    assert turned == pytest.approx(logits, abs=1e-9)
    assert all((logits[case_I == case] == logits[case_I == case][0]).all() for case in np.unique(case_I))


def test_labels_and_numbers_share_their_attention():
    rng = np.random.default_rng(2)
    case_of = np.repeat(np.arange(200), 3)
    values = rng.normal(size=200)
    telling = np.tile([True, False, False], 200)
    signal = np.where(telling, values[case_of], rng.normal(size=600))
    features = np.column_stack([signal, 3.0 * telling, rng.normal(size=600)])
    truth = np.column_stack([(values > 0).astype(float), 60 + 10 * values])
    truth[rng.random(200) < 0.1, 1] = np.nan
    task = TwoHeads(Binary(["x"]), Regression(["ef"]))
    cohort, features = study(task, truth, features, case_of)
    cohort = replace(cohort, task=task.fitted(cohort.truth[cohort.train]))
    val, test = (rows[np.isfinite(cohort.truth[rows]).all(axis=1)] for rows in (cohort.val, cohort.test))
    known = replace(cohort, val=val, test=test)
    mean, attention = (fit(known, features, pooling, strengths=[1.0]) for pooling in ("mean", "attention"))
    assert "val_auroc" not in attention.chosen, "the mean of AUROC and R² is no AUROC"
    assert attention.chosen["val_score"] > mean.chosen["val_score"] + 0.05
    assert score_on_test(known, features, attention.head) > score_on_test(known, features, mean.head) + 0.05


@pytest.mark.parametrize("pooling", ["mean", "max", "attention"])
def test_a_run_hands_on_what_it_judged(synthetic_dataset, tmp_path: Path, pooling: Pooling):
    """The model folder says how a case is answered, and `predict` answers cases as the run did."""
    encoder = write_encoder(tmp_path / "encoder", synthetic_dataset)
    linear = {"pooling": pooling, "strengths": [0.01, 1.0]}
    config = recipe(synthetic_dataset, encoder, tmp_path / "out", head="linear", linear=linear)
    finetune(config)
    run_predict([config.out, synthetic_dataset.location, f"out={tmp_path / 'predictions'}"])
    judged = pq.read_table(tmp_path / "out" / "predictions.parquet").to_pandas()
    judged = judged[judged.split == "test"].groupby("key").mean(numeric_only=True)
    found = pq.read_table(tmp_path / "predictions" / "cases.parquet").to_pandas().set_index("case").loc[judged.index]
    columns = [column for column in judged if column.startswith("probability.")]
    assert found[columns].to_numpy() == pytest.approx(judged[columns].to_numpy(), abs=1e-5)


def test_what_goes_by_images_is_refused(tmp_path: Path):
    with pytest.raises(InputError, match=r"linear.sgd learns images one by one; set linear.pooling to none"):
        validate(LinearConfig, {"pooling": "max", "sgd": {}}, "linear")
    values = {"data": "/d", "encoder": "/e", "out": "/o", "linear": {"pooling": "mean"}}
    with pytest.raises(InputError, match=r"linear.pooling: a search trains linear heads by SGD"):
        validate(SearchConfig, values, "recipe")
    assert validate(SearchConfig, values | {"head": "full"}, "recipe").pooling == "none"
    assert validate(FinetuneConfig, values, "recipe").pooling == "mean"
