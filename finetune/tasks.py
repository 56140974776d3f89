"""Tasks: what the label columns of a dataset mean for loss, probability and decision.

Shapes: N cases or images, B batch, K labels (outputs of the head), C classes to decide between.
"""

from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from scipy.special import expit

from finetune.bootstrap import Floats, Integers
from finetune.metrics import ScoredCases, macro_auroc, youden_threshold

if TYPE_CHECKING:
    from torch import Tensor


AUROC = "AUROC"


class Task(Protocol):
    """What the rest of the room asks of a task.

    `truth` holds 0 and 1, soft values between them where experts disagree or doubt is smoothed, and NaN where
    unknown; numbers are in their own units.
    """

    kind: str
    score_name: str  # what `score` is
    label_names: tuple[str, ...]
    class_names: tuple[str, ...]  # none where labels do not exclude each other
    number_names: tuple[str, ...]  # the labels that are numbers: the last columns

    @property
    def parts(self) -> "tuple[Task, ...]":
        """Itself, or the tasks of several heads, whose columns stand side by side."""
        ...

    def usable(self, truth_NK: Floats, training: bool) -> Any:
        """Whether a row can teach, or, not in training, be evaluated: bool (N,)."""
        ...

    def class_of(self, truth_NK: Floats) -> Integers:
        """Class number of each row, (N,): the likeliest, the first of equal ones; 0 where there are no classes."""
        ...

    def hard(self, truth_NK: Floats) -> Floats:
        """The truth that figures are computed against, (N, K): 0, 1 or NaN; numbers as they are."""
        ...

    def loss(self, logits_BK: "Tensor", truth_BK: "Tensor") -> "Tensor":
        """Loss of each image, (B,), to which what is unknown adds nothing; of several heads (B, T), one a part."""
        ...

    def probabilities(self, logits_NK: Floats) -> Floats:
        """Probability of each label, or the number predicted, (N, K)."""
        ...

    def score(self, truth_NK: Floats, scores_NK: Floats) -> float:
        """What models are chosen by on validation, larger is better; NaN where nothing can be said."""
        ...

    def threshold(self, truth_NK: Floats, scores_NK: Floats) -> float | None:
        """The decision threshold that validation cases suggest; None where none is needed."""
        ...

    def decide(self, scores_NK: Floats, threshold: float | None) -> Integers:
        """Class number decided for each row, (N,); 0 where there are no classes."""
        ...

    def describe(self) -> dict[str, Any]:
        """The task in JSON; `finetune.study.task_from` is the way back."""
        ...


class _Labels:
    """What tasks on labels of yes and no share."""

    kind: str
    score_name = AUROC
    label_names: tuple[str, ...]
    class_names: tuple[str, ...]
    number_names: tuple[str, ...] = ()

    @property
    def parts(self) -> tuple[Task, ...]:
        """Itself."""
        return (self,)  # type: ignore[return-value]

    def usable(self, truth_NK: Floats, training: bool) -> Any:
        """Where every label is known."""
        return np.isfinite(truth_NK).all(axis=1)

    def hard(self, truth_NK: Floats) -> Floats:
        """1 from a half on."""
        return np.where(np.isfinite(truth_NK), truth_NK >= 0.5, np.nan)

    def score(self, truth_NK: Floats, scores_NK: Floats) -> float:
        """Macro AUROC."""
        return macro_auroc(self.hard(truth_NK), scores_NK)

    def describe(self) -> dict[str, Any]:
        """Kind and labels."""
        return {"kind": self.kind, "labels": list(self.label_names)}


class MultiClass(_Labels):
    """One class of several: softmax and cross-entropy, decided by the largest probability.

    A soft label is learned as the distribution it is, and evaluated by its likeliest class.
    """

    kind = "multiclass"

    def __init__(self, label_names: list[str]) -> None:
        self.label_names = self.class_names = tuple(label_names)

    def class_of(self, truth_NK: Floats) -> Integers:
        """The column with the largest share."""
        return truth_NK.argmax(axis=1)

    def hard(self, truth_NK: Floats) -> Floats:
        """1 for the likeliest class."""
        known = np.isfinite(truth_NK).all(axis=1, keepdims=True)
        return np.where(known, np.eye(truth_NK.shape[1])[self.class_of(truth_NK)], np.nan)

    def loss(self, logits_BK: "Tensor", truth_BK: "Tensor") -> "Tensor":
        """Cross-entropy with the distribution over the classes."""
        from torch.nn.functional import cross_entropy

        known_B = truth_BK.isfinite().all(dim=1)
        losses_B = cross_entropy(logits_BK.float(), truth_BK.float().nan_to_num(), reduction="none")
        return losses_B.where(known_B, 0.0)

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


class MultiLabel(_Labels):
    """Labels that do not exclude each other, each of them unknown in some images: sigmoids and masked BCE."""

    kind = "multilabel"

    def __init__(self, label_names: list[str]) -> None:
        self.label_names, self.class_names = tuple(label_names), ()

    def usable(self, truth_NK: Floats, training: bool) -> Any:
        """Where any label is known; the others are masked one by one."""
        return np.isfinite(truth_NK).any(axis=1)

    def class_of(self, truth_NK: Floats) -> Integers:
        """No classes."""
        return np.zeros(len(truth_NK), dtype=np.int64)

    def loss(self, logits_BK: "Tensor", truth_BK: "Tensor") -> "Tensor":
        """Binary cross-entropy, summed over the known labels and divided by K: each known label weighs the same."""
        from torch.nn.functional import binary_cross_entropy_with_logits

        truth = truth_BK.float()
        losses_BK = binary_cross_entropy_with_logits(logits_BK.float(), truth.nan_to_num(), reduction="none")
        return losses_BK.where(truth.isfinite(), 0.0).mean(dim=1)

    def probabilities(self, logits_NK: Floats) -> Floats:
        """Sigmoid; of confident negatives too, which keep their ranks down to a logit of -700."""
        return expit(np.asarray(logits_NK, dtype=np.float64))

    def threshold(self, truth_NK: Floats, scores_NK: Floats) -> float | None:
        """No single one."""
        return None

    def decide(self, scores_NK: Floats, threshold: float | None) -> Integers:
        """No classes."""
        return np.zeros(len(scores_NK), dtype=np.int64)


class Binary(MultiLabel):
    """One label, yes or no: sigmoid, decided at the threshold of best Youden index on validation."""

    kind = "binary"

    def __init__(self, label_names: list[str]) -> None:
        (name,) = label_names
        self.label_names = (name,)
        self.class_names = (f"not {name}", name)

    def class_of(self, truth_NK: Floats) -> Integers:
        """1 where the label is, more likely than not."""
        return (truth_NK[:, 0] >= 0.5).astype(np.int64)

    def threshold(self, truth_NK: Floats, scores_NK: Floats) -> float:
        """Youden's."""
        return youden_threshold(truth_NK[:, 0], scores_NK[:, 0])

    def decide(self, scores_NK: Floats, threshold: float | None) -> Integers:
        """1 from the threshold on."""
        return (scores_NK[:, 0] >= (0.5 if threshold is None else threshold)).astype(np.int64)


def score_key(task: Task) -> str:
    """What the score on validation is called in results and logs."""
    return "val_auroc" if task.score_name == AUROC else "val_score"


TASKS = {"multiclass": MultiClass, "binary": Binary, "multilabel": MultiLabel}


def pool_cases(case_I: Integers, values_IK: Floats) -> tuple[Integers, Floats]:
    """Each case's number, (N,) ascending, and the mean over its images, (N, K)."""
    cases, place = np.unique(case_I, return_inverse=True)
    sums = np.zeros((len(cases), values_IK.shape[1]))
    np.add.at(sums, place, values_IK)
    return cases, sums / np.bincount(place)[:, None]


def score_cases(
    task: Task, truth_NK: Floats, scores_NK: Floats, patient_N: Integers, threshold: float | None
) -> ScoredCases:
    """A model's case-level answers, ready for figures; `patient_N` is any numbering of the patients.

    Of several heads, that of the classification; numbers have figures of their own.
    """
    assert np.isfinite(scores_NK).all()
    labels = task.parts[0]
    truth_NK, scores_NK = (values[:, : len(labels.label_names)] for values in (truth_NK, scores_NK))
    return ScoredCases(
        truth_NK=labels.hard(truth_NK),
        scores_NK=scores_NK,
        true_class_N=labels.class_of(truth_NK),
        decided_class_N=labels.decide(scores_NK, threshold),
        patient_N=np.unique(patient_N, return_inverse=True)[1],
        label_names=labels.label_names,
        class_names=labels.class_names,
    )
