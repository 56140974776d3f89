"""The probes: kNN and a linear head on cases, against scikit-learn."""

from typing import Any

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler

from data.dataset import Dataset
from pretrain.config import PretrainConfig
from pretrain.monitor import LINEAR_C, Pace, by_case, knn_scores, linear_scores, macro_auroc, probe
from tests.rank_tasks import probed

NAN = float("nan")


def cases(seed: int, num: int, unknown: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Features of very different scales and three labels that do not exclude each other, some unknown."""
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(num, 12))
    truth = (features[:, :3] + rng.normal(size=(num, 3)) > 0.3).astype(np.float32)
    truth[rng.random(truth.shape) < unknown] = NAN
    return (features * np.geomspace(0.1, 10, 12) + 3).astype(np.float32), truth


@pytest.mark.parametrize("unknown", [0.0, 0.3])
def test_the_linear_probe_is_a_logistic_regression_for_each_label_on_the_cases_that_know_it(unknown: float) -> None:
    (bank, truth), (queries, _) = cases(0, 200, unknown), cases(1, 80)
    scaler = StandardScaler().fit(bank)
    found = linear_scores(bank, truth, queries)
    for label in range(3):
        known = np.isfinite(truth[:, label])
        model = LogisticRegression(C=LINEAR_C, max_iter=1000).fit(scaler.transform(bank[known]), truth[known, label])
        assert found[:, label] == pytest.approx(model.decision_function(scaler.transform(queries)), abs=5e-3)


@pytest.mark.parametrize("unknown", [0.0, 0.3])
def test_knn_votes_are_scikit_learns_among_the_cases_that_know_the_label(unknown: float) -> None:
    (bank, truth), (queries, _) = cases(0, 120, unknown), cases(1, 50)
    found = knn_scores(bank, truth, queries, 7)
    for label in range(3):
        known = np.isfinite(truth[:, label])
        model = KNeighborsClassifier(7, metric="cosine").fit(bank[known], truth[known, label])
        assert found[:, label] == pytest.approx(model.predict_proba(queries)[:, 1], abs=1e-6)
    assert knn_scores(bank[:3], truth[:3] * 0, queries, 20).shape == (50, 3)


def test_auroc_leaves_out_what_is_unknown_or_has_one_class() -> None:
    truth = np.array([[0, 1, NAN], [1, 1, 0], [0, NAN, 1], [1, 1, NAN]], np.float32)
    scores = np.array([[0.1, 0.2, 0.9], [0.4, 0.1, 0.3], [0.5, 0.8, 0.2], [0.9, 0.3, 0.1]], np.float32)
    assert macro_auroc(truth, scores) == pytest.approx((roc_auc_score([0, 1, 0, 1], scores[:, 0]) + 0) / 2)
    assert macro_auroc(truth[:, 1:2], scores[:, 1:2]) is None


def test_a_case_counts_once_with_the_mean_of_its_images() -> None:
    features = np.arange(10, dtype=np.float32).reshape(5, 2)
    labels = np.array([[1], [1], [1], [0], [NAN]], np.float32)
    means, truth = by_case(features, labels, np.array([4, 4, 4, 7, 9]))
    assert means.tolist() == [[2, 3], [6, 7], [8, 9]]
    assert truth[:2].tolist() == [[1], [0]] and np.isnan(truth[2, 0])


def values(dataset: Dataset, **changed: Any) -> dict[str, Any]:
    return {"data": dataset.location, "run": "/none", "precision": "fp32", "encoder": {"name": "resnet18"},
            "views": {"size_px": 32}, **changed}  # fmt: skip


def test_the_probe_learns_on_train_and_asks_validation_only_on_one_rank_as_on_two(
    synthetic_dataset: Dataset, ranks: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[int] = []
    read_many = Dataset.read_many
    monkeypatch.setattr(Dataset, "read_many", lambda self, rows: read.extend(rows.tolist()) or read_many(self, rows))
    one = probed(values(synthetic_dataset))
    assert set(one) == {"probe/knn_auroc", "probe/linear_auroc"} and all(0 <= value <= 1 for value in one.values())
    assert sorted(read) == synthetic_dataset.rows(["train", "val"]).tolist()
    first, second = ranks.run("probed", values(synthetic_dataset))
    assert first == pytest.approx(one, abs=1e-3) and second == {}


def test_the_bound_keeps_whole_cases_of_both_splits(
    synthetic_dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    def features(encoder: Any, dataset: Dataset, rows: np.ndarray, *_: Any) -> np.ndarray:
        asked.extend(rows.tolist())
        return np.random.default_rng(0).normal(size=(len(rows), 4)).astype(np.float32)

    monkeypatch.setattr("pretrain.monitor.extract_features", features)
    config = PretrainConfig.model_validate(values(synthetic_dataset, probe={"max_images": 30}))
    probe(None, synthetic_dataset, config, config.views)  # type: ignore[arg-type]
    split, case = synthetic_dataset.column("split"), synthetic_dataset.case_of
    for name in ("train", "val"):
        rows = [row for row in asked if split[row] == name]
        assert 1 <= len(rows) <= 45
        assert set(rows) == set(np.flatnonzero(np.isin(case, case[rows])).tolist())
    assert set(split[asked]) == {"train", "val"}


def steps_probed(
    total_steps: int, step_s: float, probe_s: float, num_images: int, every_steps: int | None = None
) -> list[int]:
    """After which steps a stage is probed whose steps of 32 views and probes take so long."""
    pace, seconds, probed_after = Pace(every_steps, total_steps, 32, num_images), 0.0, []
    for done in range(1, total_steps + 1):
        seconds += step_s
        if pace.due(done, done, seconds):
            pace.took(probe_s)
            seconds += probe_s
            probed_after.append(done)
    return probed_after


def test_a_stage_is_probed_ten_times_at_most_and_at_its_end() -> None:
    assert steps_probed(1000, 1.0, 5.0, num_images=32) == list(range(100, 1001, 100))
    assert steps_probed(19, 1.0, 0.001, num_images=1) == [*range(2, 19, 2), 19]
    assert steps_probed(5, 1.0, 30.0, num_images=0, every_steps=2) == [2, 4, 5]


def test_probes_take_a_tenth_of_the_time_at_most_but_for_the_last() -> None:
    assert steps_probed(20, 1.0, 30.0, num_images=320) == [20]  # as the steps before tell, it would take 10 s
    seldom = steps_probed(1000, 1.0, 30.0, num_images=32)  # as none tells before the first one
    assert 2 < len(seldom) < 10
    assert 30.0 * (len(seldom) - 1) <= 0.1 * (1000 + 30.0 * len(seldom))
