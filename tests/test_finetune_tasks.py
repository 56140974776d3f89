import numpy as np
import pytest
import torch
from scipy.special import expit, softmax

from clusters.config import InputError
from finetune.metrics import figures_of
from finetune.tasks import Binary, MultiClass, pool_cases, score_cases, task_of


def test_probabilities_are_softmax_and_sigmoid_even_for_extreme_logits():
    logits = np.array([[1000.0, 0.0, -3.0], [0.5, 0.2, 0.1]])
    assert MultiClass(["a", "b", "c"]).probabilities(logits) == pytest.approx(softmax(logits, axis=1))
    single = np.array([[-1000.0], [0.0], [2.0], [1000.0]])
    assert Binary(["x"]).probabilities(single) == pytest.approx(expit(single))


def test_losses_are_minus_the_log_of_the_probability_of_the_truth():
    logits = np.random.default_rng(0).normal(size=(6, 3))
    classes = np.array([0, 1, 2, 2, 1, 0])
    task = MultiClass(["a", "b", "c"])
    found = task.loss(torch.from_numpy(logits), torch.from_numpy(classes))
    assert found.numpy() == pytest.approx(-np.log(task.probabilities(logits)[np.arange(6), classes]), rel=1e-5)
    binary, yes = Binary(["x"]), np.array([1, 0, 1, 0, 1, 0])
    found = binary.loss(torch.from_numpy(logits[:, :1]), torch.from_numpy(yes))
    p = binary.probabilities(logits[:, :1])[:, 0]
    assert found.numpy() == pytest.approx(-np.log(np.where(yes, p, 1 - p)), rel=1e-5)


def test_a_case_has_the_mean_probability_of_its_images():
    cases, means = pool_cases(np.array([4, 4, 9, 7]), np.array([[0.2], [0.6], [0.9], [0.1]]))
    assert cases.tolist() == [4, 7, 9]
    assert means[:, 0] == pytest.approx([0.4, 0.1, 0.9])


def test_binary_figures_at_the_threshold():
    task = Binary(["malignant"])
    truth, scores = np.array([[0.0], [0.0], [1.0], [1.0]]), np.array([[0.1], [0.4], [0.3], [0.9]])
    assert task.threshold(truth, scores) == 0.3
    figures = figures_of(score_cases(task, truth, scores, np.arange(4) + 10, 0.3))
    assert figures["sensitivity", "malignant"] == 1.0
    assert figures["specificity", "malignant"] == 0.5
    assert figures["balanced_accuracy",] == 0.75
    assert figures["auroc",] == 0.75
    assert ("top3",) not in figures


def test_a_task_without_labels_is_refused():
    with pytest.raises(InputError, match="its task is 'unlabelled'"):
        task_of("unlabelled", [], "/data")


def test_a_multilabel_task_names_the_way_to_one_label():
    with pytest.raises(InputError, match=r"/data: task multilabel is not supported by head=full; choose label=NAME"):
        task_of("multilabel", ["Edema", "Fracture"], "/data", "full")
