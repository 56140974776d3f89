import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from scipy.special import expit, softmax
from sklearn.metrics import roc_auc_score

from finetune.metrics import figures_of
from finetune.regression import Regression
from finetune.study import task_from
from finetune.tasks import Binary, MultiClass, MultiLabel, Task, pool_cases, score_cases
from finetune.two_heads import TwoHeads


def tensors(*values: np.ndarray) -> list[torch.Tensor]:
    return [torch.from_numpy(np.asarray(value, dtype=np.float64)) for value in values]


def test_probabilities_are_softmax_and_sigmoid_even_for_extreme_logits():
    logits = np.array([[1000.0, 0.0, -3.0], [0.5, 0.2, 0.1]])
    assert MultiClass(["a", "b", "c"]).probabilities(logits) == pytest.approx(softmax(logits, axis=1))
    single = np.array([[-1000.0], [0.0], [2.0], [1000.0]])
    assert Binary(["x"]).probabilities(single) == pytest.approx(expit(single))


@pytest.mark.parametrize("task", [Binary(["x"]), MultiLabel(["x"])])
def test_confident_negatives_keep_their_ranks(task: Task):
    """One plus a tanh is exactly 0 from -38 on, so that all of them would tie."""
    rng = np.random.default_rng(0)
    truth = np.repeat([[0.0], [1.0]], 100, axis=0)
    logits = np.where(truth == 1, -40.0, -45.0) + rng.normal(0, 5, truth.shape)
    found = task.probabilities(logits)
    np.testing.assert_allclose(found, expit(logits), rtol=1e-12)
    assert len(np.unique(found)) == len(found)
    assert task.score(truth, found) == pytest.approx(roc_auc_score(truth, logits))
    assert task.score(truth, found) < 0.95
    assert (task.probabilities(np.array([[-700.0], [-80.0]])) > 0).all()


def test_losses_are_minus_the_log_of_the_probability_of_the_truth():
    logits = np.random.default_rng(0).normal(size=(6, 3))
    classes = np.array([0, 1, 2, 2, 1, 0])
    task = MultiClass(["a", "b", "c"])
    found = task.loss(*tensors(logits, np.eye(3)[classes]))
    assert found.numpy() == pytest.approx(-np.log(task.probabilities(logits)[np.arange(6), classes]), rel=1e-5)
    binary, yes = Binary(["x"]), np.array([1, 0, 1, 0, 1, 0])
    found = binary.loss(*tensors(logits[:, :1], yes[:, None]))
    p = binary.probabilities(logits[:, :1])[:, 0]
    assert found.numpy() == pytest.approx(-np.log(np.where(yes, p, 1 - p)), rel=1e-5)


def test_a_soft_label_is_learned_as_a_distribution_and_counted_as_its_likeliest_class():
    """Experts that disagree: at the distribution itself the gradient is zero, not at the likeliest class."""
    task = MultiClass(["eczema", "psoriasis", "tinea"])
    share = np.array([[0.5, 0.3, 0.2], [0.1, 0.45, 0.45], [np.nan] * 3])
    logits = torch.from_numpy(np.log(np.where(np.isfinite(share), share, 1.0))).requires_grad_()
    losses = task.loss(logits, torch.from_numpy(share))
    losses.sum().backward()
    assert logits.grad is not None and logits.grad.abs().max() < 1e-6
    entropy = -(share[:2] * np.log(share[:2])).sum(axis=1)
    assert losses.detach().numpy() == pytest.approx([*entropy, 0.0], rel=1e-5)
    assert task.hard(share)[:2].tolist() == [[1, 0, 0], [0, 1, 0]] and np.isnan(task.hard(share)[2]).all()
    assert task.usable(share, training=True).tolist() == [True, True, False]


VALUES = st.sampled_from([0.0, 1.0, math.nan, 0.7, 0.2])


@given(arrays.arrays(float, (7, 3), elements=VALUES), st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_an_unknown_label_teaches_nothing_and_the_known_ones_weigh_alike(truth: np.ndarray, seed: int):
    logits = np.random.default_rng(seed).normal(size=truth.shape)
    given = torch.from_numpy(logits).requires_grad_()
    losses = MultiLabel(["a", "b", "c"]).loss(given, torch.from_numpy(truth))
    losses.sum().backward()
    known = np.isfinite(truth)
    p = expit(logits)
    assert given.grad is not None
    # The gradient of BCE is p - t, also for a soft t; each of the K labels weighs 1 / K.
    assert given.grad.numpy() == pytest.approx(np.where(known, (p - np.nan_to_num(truth)) / 3, 0.0), abs=1e-6)
    without = -np.where(known, np.nan_to_num(truth) * np.log(p) + (1 - np.nan_to_num(truth)) * np.log(1 - p), 0.0)
    assert losses.detach().numpy() == pytest.approx(without.mean(axis=1), rel=1e-5, abs=1e-7)


@given(arrays.arrays(float, (9, 2), elements=VALUES))
@settings(max_examples=60, deadline=None)
def test_multilabel_truth_is_masked_label_by_label(truth: np.ndarray):
    task = MultiLabel(["a", "b"])
    hard = task.hard(truth)
    assert (np.isnan(hard) == np.isnan(truth)).all()
    assert set(hard[np.isfinite(hard)].tolist()) <= {0.0, 1.0}
    assert (hard[truth == 0.7] == 1).all() and (hard[truth == 0.2] == 0).all()
    assert task.usable(truth, training=False).tolist() == np.isfinite(truth).any(axis=1).tolist()


def test_a_case_has_the_mean_probability_of_its_images():
    cases, means = pool_cases(np.array([4, 4, 9, 7]), np.array([[0.2], [0.6], [0.9], [0.1]]))
    assert cases.tolist() == [4, 7, 9]
    assert means[:, 0] == pytest.approx([0.4, 0.1, 0.9])


def test_binary_figures_at_the_threshold():
    task = Binary(["malignant"])
    truth, scores = np.array([[0.0], [0.0], [1.0], [1.0]]), np.array([[0.1], [0.4], [0.3], [0.9]])
    assert task.threshold(truth, scores) == pytest.approx(0.2)  # from 0.3 on, halfway to 0.1
    figures = figures_of(score_cases(task, truth, scores, np.arange(4) + 10, 0.3))
    assert figures["sensitivity", "malignant"] == 1.0
    assert figures["specificity", "malignant"] == 0.5
    assert figures["balanced_accuracy",] == 0.75
    assert figures["auroc",] == 0.75
    assert ("top3",) not in figures


def test_top_1_and_top_3_of_soft_labels_count_the_likeliest_class():
    task = MultiClass(list("abcd"))
    truth = np.array([[0.4, 0.6, 0.0, 0.0], [0.7, 0.0, 0.3, 0.0], [0.1, 0.2, 0.3, 0.4]])
    scores = np.array([[0.4, 0.3, 0.2, 0.1], [0.6, 0.2, 0.1, 0.1], [0.4, 0.3, 0.2, 0.1]])
    figures = figures_of(score_cases(task, truth, scores, np.arange(3), None))
    assert figures["top1",] == pytest.approx(1 / 3)
    assert figures["top3",] == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    "task",
    [
        MultiClass(["a", "b", "c"]),
        Binary(["x"]),
        MultiLabel(["a", "b"]),
        TwoHeads(MultiLabel(["a", "b"]), Regression(["EF", "EDV"], [55.0, 110.0], [10.0, 40.0])),
    ],
)
def test_a_task_is_made_again_from_its_description(task: Task):
    again = task_from(task.describe())
    assert type(again) is type(task) and again.describe() == task.describe()
    assert (again.label_names, again.class_names, again.number_names) == (
        task.label_names,
        task.class_names,
        task.number_names,
    )
    logits = np.random.default_rng(0).normal(size=(5, len(task.label_names)))
    assert np.array_equal(again.probabilities(logits), task.probabilities(logits))
