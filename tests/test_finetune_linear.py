import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from clusters.config import InputError
from finetune.cohort import Cohort, case_auroc, choose_cohort
from finetune.config import FinetuneConfig, LinearConfig
from finetune.linear import NEVER, fit_linear
from finetune.tasks import Binary, MultiClass


class Features:
    """A stand-in for a dataset: labels and cases, no images. Each case has one image."""

    def __init__(self, labels: np.ndarray) -> None:
        self.labels, self.case_of = labels, np.arange(len(labels))


def features_cohort(num_classes: int, binary: bool = False, absent: int | None = None, seed: int = 0):
    rng = np.random.default_rng(seed)
    classes = rng.integers(0, num_classes, 400)
    if absent is not None:
        classes[classes == absent] = 0
    features = rng.normal(size=(num_classes, 12))[classes] + rng.normal(size=(400, 12)) * 2
    features = features * np.geomspace(0.01, 100, 12) + 5
    labels = (classes == 1).astype(float)[:, None] if binary else np.eye(num_classes)[classes]
    names = ["x"] if binary else [f"c{k}" for k in range(num_classes)]
    train, val, test = np.split(np.arange(400), [250, 320])
    task = Binary(names) if binary else MultiClass(names)
    cohort = Cohort(Features(labels), task, labels, train, val, test, train, np.arange(400))  # type: ignore[arg-type]
    return cohort, features


@pytest.mark.parametrize(("num_classes", "binary"), [(4, False), (2, False), (2, True)])
def test_the_head_gives_the_probabilities_of_scikit_learns_pipeline(num_classes, binary):
    cohort, features = features_cohort(num_classes, binary)
    train, test = features[cohort.train], features[cohort.test]
    choice = fit_linear(cohort, train, features[cohort.val], "none", LinearConfig(strengths=[0.05]), "test")
    pipeline = make_pipeline(StandardScaler(), LogisticRegression(C=0.05))
    expected = pipeline.fit(train, cohort.class_of(cohort.train)).predict_proba(test)
    expected = expected[:, 1:] if binary else expected
    found = cohort.task.probabilities(choice.head.logits(test))
    assert found == pytest.approx(expected, abs=2e-3)


def test_the_strength_with_the_best_validation_auroc_is_kept_and_test_is_not_looked_at():
    cohort, features = features_cohort(3)
    config = LinearConfig(strengths=[10.0, 1e-4, 1e-2])
    choice = fit_linear(cohort, features[cohort.train], features[cohort.val], "none", config, "test")
    assert [row["C"] for row in choice.tried] == [1e-4, 1e-2, 10.0]
    assert choice.chosen["val_auroc"] == max(row["val_auroc"] for row in choice.tried)
    again = case_auroc(cohort, cohort.val, choice.head.logits(features[cohort.val]))
    assert again == pytest.approx(choice.chosen["val_auroc"])


def test_balanced_weighting_finds_the_rare_class_more_often():
    cohort, features = features_cohort(4, binary=True)
    config, train = LinearConfig(strengths=[1.0]), features[cohort.train]
    shares = []
    for weighting in ("none", "balanced"):
        head = fit_linear(cohort, train, features[cohort.val], weighting, config, "test").head
        shares.append((head.logits(features[cohort.test]) > 0).mean())
    assert shares[1] > shares[0]


def test_a_class_that_is_nowhere_in_training_is_never_said():
    cohort, features = features_cohort(4, absent=2)
    config, train = LinearConfig(strengths=[0.1]), features[cohort.train]
    head = fit_linear(cohort, train, features[cohort.val], "balanced", config, "test").head
    assert head.bias_K[2] == NEVER
    assert np.allclose(cohort.task.probabilities(head.logits(features[cohort.test]))[:, 2], 0)


def test_photographs_of_one_case_count_as_one(synthetic_dataset):
    config = FinetuneConfig(data=synthetic_dataset.location, encoder="/none", out="/none")
    cohort = choose_cohort(synthetic_dataset, config)
    rng = np.random.default_rng(0)
    per_case = rng.normal(size=(synthetic_dataset.num_cases, 6))
    features = per_case[synthetic_dataset.case_of]
    config = LinearConfig(strengths=[0.1])
    head = fit_linear(cohort, features[cohort.train], features[cohort.val], "none", config, "test").head
    first = np.unique(synthetic_dataset.case_of[cohort.train], return_index=True)[1]
    once = Cohort(
        synthetic_dataset, cohort.task, cohort.truth, cohort.train[first], cohort.val, cohort.test,
        cohort.all_train, cohort.patient_of,
    )  # fmt: skip
    expected = fit_linear(once, features[once.train], features[once.val], "none", config, "test").head
    assert head.weight_KD == pytest.approx(expected.weight_KD, abs=1e-3)


def test_features_that_are_not_finite_are_told_with_their_image():
    cohort, features = features_cohort(3)
    features[17, 5] = np.nan
    with pytest.raises(InputError, match="test: image 17 of the dataset has features that are not finite"):
        fit_linear(cohort, features[cohort.train], features[cohort.val], "none", LinearConfig(), "test")
