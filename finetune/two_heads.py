"""Two heads on one encoder: classes, and numbers beside them.

Shapes: N cases or images, B batch, K columns: those of the classification, then the numbers; T = 2 tasks.
"""

from typing import TYPE_CHECKING, Any

import numpy as np

from finetune.bootstrap import Floats, Integers
from finetune.regression import Regression
from finetune.tasks import Task

if TYPE_CHECKING:
    from torch import Tensor


class TwoHeads:
    """A classification and a regression that share the encoder.

    What concerns classes (class of a row, threshold, decision) is the classification's. The two losses are weighted
    against each other by `finetune.task_weights.LearnedTaskWeights`.
    """

    kind = "two_heads"
    score_name = "mean of AUROC and R²"

    def __init__(self, labels: Task, numbers: Regression) -> None:
        self._labels, self._numbers = labels, numbers
        self.label_names = labels.label_names + numbers.label_names
        self.class_names, self.number_names = labels.class_names, numbers.label_names
        self._cut = len(labels.label_names)

    @property
    def parts(self) -> tuple[Task, ...]:
        """The classification and the regression."""
        return self._labels, self._numbers

    def fitted(self, truth_NK: Floats) -> "TwoHeads":
        """With the numbers on the scale of these rows."""
        return TwoHeads(self._labels, self._numbers.fitted(self.split(truth_NK)[1]))

    def split(self, values: Any) -> tuple[Any, Any]:
        """Columns of the classification and of the numbers."""
        return values[:, : self._cut], values[:, self._cut :]

    def usable(self, truth_NK: Floats, training: bool) -> Any:
        """In training what either can use; a case that is evaluated is known to both, so that patients are the same."""
        labels, numbers = (part.usable(t, training) for part, t in zip(self.parts, self.split(truth_NK)))
        return labels | numbers if training else labels & numbers

    def class_of(self, truth_NK: Floats) -> Integers:
        """The classification's."""
        return self._labels.class_of(self.split(truth_NK)[0])

    def hard(self, truth_NK: Floats) -> Floats:
        """Each part's."""
        return np.concatenate([part.hard(t) for part, t in zip(self.parts, self.split(truth_NK))], axis=1)

    def loss(self, logits_BK: "Tensor", truth_BK: "Tensor") -> "Tensor":
        """Both losses of each image, (B, 2)."""
        import torch

        parts = zip(self.parts, self.split(logits_BK), self.split(truth_BK))
        return torch.stack([part.loss(logits, truth) for part, logits, truth in parts], dim=1)

    def probabilities(self, logits_NK: Floats) -> Floats:
        """Probabilities, then predicted numbers."""
        return np.concatenate([part.probabilities(x) for part, x in zip(self.parts, self.split(logits_NK))], axis=1)

    def score(self, truth_NK: Floats, scores_NK: Floats) -> float:
        """The mean of macro AUROC and coefficient of determination."""
        columns = zip(self.parts, self.split(truth_NK), self.split(scores_NK))
        return float(np.mean([part.score(truth, scores) for part, truth, scores in columns]))

    def threshold(self, truth_NK: Floats, scores_NK: Floats) -> float | None:
        """The classification's."""
        return self._labels.threshold(self.split(truth_NK)[0], self.split(scores_NK)[0])

    def decide(self, scores_NK: Floats, threshold: float | None) -> Integers:
        """The classification's."""
        return self._labels.decide(self.split(scores_NK)[0], threshold)

    def describe(self) -> dict[str, Any]:
        """Both parts."""
        parts = [part.describe() for part in self.parts]
        return {"kind": self.kind, "labels": list(self.label_names), "parts": parts}
