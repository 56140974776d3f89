"""Tasks: what the label columns of a dataset mean for loss, probability and decision.

Shapes: N cases or images, B batch, K labels (outputs of the head), C classes to decide between.
"""

from typing import TYPE_CHECKING, Protocol

import numpy as np

from clusters.config import InputError
from data.dataset import Dataset
from data.uncertain import Policy, labels_under_policy, no_such_label
from finetune.bootstrap import Floats, Integers
from finetune.metrics import ScoredCases, youden_threshold

if TYPE_CHECKING:
    from torch import Tensor


class Task(Protocol):
    """What the rest of the room asks of a task."""

    kind: str
    label_names: tuple[str, ...]
    class_names: tuple[str, ...]

    def class_of(self, truth_NK: Floats) -> Integers:
        """Class number of each labelled row, (N,)."""
        ...

    def loss(self, logits_BK: "Tensor", class_B: "Tensor") -> "Tensor":
        """Loss of each image, (B,)."""
        ...

    def probabilities(self, logits_NK: Floats) -> Floats:
        """Probability of each label, (N, K)."""
        ...

    def threshold(self, truth_NK: Floats, scores_NK: Floats) -> float | None:
        """The decision threshold that validation cases suggest; None where none is needed."""
        ...

    def decide(self, scores_NK: Floats, threshold: float | None) -> Integers:
        """Class number decided for each row, (N,)."""
        ...


class MultiClass:
    """One class of several: softmax and cross-entropy, decided by the largest probability."""

    kind = "multiclass"

    def __init__(self, label_names: list[str]) -> None:
        self.label_names = self.class_names = tuple(label_names)

    def class_of(self, truth_NK: Floats) -> Integers:
        """The column that is 1."""
        return truth_NK.argmax(axis=1)

    def loss(self, logits_BK: "Tensor", class_B: "Tensor") -> "Tensor":
        """Cross-entropy."""
        from torch.nn.functional import cross_entropy

        return cross_entropy(logits_BK.float(), class_B, reduction="none")

    def probabilities(self, logits_NK: Floats) -> Floats:
        """Softmax."""
        shifted = np.asarray(logits_NK, dtype=np.float64)
        powers = np.exp(shifted - shifted.max(axis=1, keepdims=True))
        return powers / powers.sum(axis=1, keepdims=True)

    def threshold(self, truth_NK: Floats, scores_NK: Floats) -> None:
        """None is needed."""
        return

    def decide(self, scores_NK: Floats, threshold: float | None) -> Integers:
        """The largest score; the first of equal ones."""
        return scores_NK.argmax(axis=1)


class Binary:
    """One label, yes or no: sigmoid, decided at the threshold of best Youden index on validation."""

    kind = "binary"

    def __init__(self, label_names: list[str]) -> None:
        (name,) = label_names
        self.label_names = (name,)
        self.class_names = (f"not {name}", name)

    def class_of(self, truth_NK: Floats) -> Integers:
        """1 where the label is."""
        return (truth_NK[:, 0] == 1).astype(np.int64)

    def loss(self, logits_BK: "Tensor", class_B: "Tensor") -> "Tensor":
        """Binary cross-entropy."""
        from torch.nn.functional import binary_cross_entropy_with_logits

        return binary_cross_entropy_with_logits(
            logits_BK[:, 0].float(), class_B.to(logits_BK.device).float(), reduction="none"
        )

    def probabilities(self, logits_NK: Floats) -> Floats:
        """Sigmoid, written so that no exponential overflows."""
        half = 0.5 * np.asarray(logits_NK, dtype=np.float64)
        return 0.5 * (1 + np.tanh(half))

    def threshold(self, truth_NK: Floats, scores_NK: Floats) -> float:
        """Youden's."""
        return youden_threshold(truth_NK[:, 0], scores_NK[:, 0])

    def decide(self, scores_NK: Floats, threshold: float | None) -> Integers:
        """1 from the threshold on."""
        return (scores_NK[:, 0] >= (0.5 if threshold is None else threshold)).astype(np.int64)


TASKS = {"multiclass": MultiClass, "binary": Binary}


def task_of(name: str, label_names: list[str], location: str, head: str = "linear") -> Task:
    """The task of a dataset. Raises InputError for one that cannot be fine-tuned on."""
    if name == "multilabel" and label_names:
        raise InputError(
            f"{location}: task multilabel is not supported by head={head}; choose label=NAME to fine-tune on one of "
            f"{', '.join(label_names)}"
        )
    if name not in TASKS or not label_names:
        raise InputError(
            f"{location}: its task is '{name}', and fine-tuning takes {' and '.join(TASKS)} labels; "
            "import it again with one label column"
        )
    return TASKS[name](label_names)


def study_of(dataset: Dataset, label: str | None, policy: Policy | dict[str, Policy], head: str) -> tuple[Task, Floats]:
    """The task and its truth, float (N, K) of 0 and 1 for all images of the dataset, NaN where unknown.

    The policy for doubtful labels holds in the training split; elsewhere they are unknown, since a figure must
    not rest on a guess. A soft multi-class label counts as its likeliest class, the first of equal ones. `label`
    picks one label, or sets one class against the rest. Raises InputError for a label that is not there.
    """
    truth = labels_under_policy(dataset, policy)
    elsewhere = dataset.column("split") != "train"
    truth[elsewhere] = dataset.labels[elsewhere]
    if dataset.task == "multiclass":
        known = np.isfinite(truth).all(axis=1)
        truth[known] = np.eye(truth.shape[1], dtype=truth.dtype)[truth[known].argmax(axis=1)]
    if label is None:
        return task_of(dataset.task, dataset.label_names, dataset.location, head), truth
    if label not in dataset.label_names:
        raise InputError(f"label: {no_such_label(dataset, label)}")
    return Binary([label]), truth[:, [dataset.label_names.index(label)]]


def pool_cases(case_I: Integers, values_IK: Floats) -> tuple[Integers, Floats]:
    """Each case's number, (N,) ascending, and the mean over its images, (N, K)."""
    cases, place = np.unique(case_I, return_inverse=True)
    sums = np.zeros((len(cases), values_IK.shape[1]))
    np.add.at(sums, place, values_IK)
    return cases, sums / np.bincount(place)[:, None]


def score_cases(
    task: Task, truth_NK: Floats, scores_NK: Floats, patient_N: Integers, threshold: float | None
) -> ScoredCases:
    """A model's case-level answers, ready for figures; `patient_N` is any numbering of the patients."""
    assert np.isfinite(scores_NK).all()
    return ScoredCases(
        truth_NK=truth_NK,
        scores_NK=scores_NK,
        true_class_N=task.class_of(truth_NK),
        decided_class_N=task.decide(scores_NK, threshold),
        patient_N=np.unique(patient_N, return_inverse=True)[1],
        label_names=task.label_names,
        class_names=task.class_names,
    )
