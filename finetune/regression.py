"""Numbers to be predicted, such as an ejection fraction: the task, and its figures with intervals.

Shapes: N cases or images, B batch, K numbers, P patients, R resamples.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from finetune.bootstrap import Floats, Integers, Key
from finetune.ranking import share
from finetune.tasks import Task

if TYPE_CHECKING:
    from torch import Tensor

Counts = NDArray[np.float32]
Values = NDArray[np.float64]


class Regression:
    """Numbers, each predicted on the scale of its training cases: mean 0, standard deviation 1.

    So that one learning rate suits millilitres and percent alike, and a fresh head begins at the mean.
    """

    kind = "regression"
    score_name = "R²"
    class_names: tuple[str, ...] = ()

    def __init__(self, names: Sequence[str], mean_K: Sequence[float] = (), scale_K: Sequence[float] = ()) -> None:
        self.label_names = self.number_names = tuple(names)
        self.mean_K = np.array(mean_K or [0.0] * len(names))
        self.scale_K = np.array(scale_K or [1.0] * len(names))

    @property
    def parts(self) -> tuple[Task, ...]:
        """Itself."""
        return (self,)

    def fitted(self, truth_NK: Floats) -> "Regression":
        """With mean and standard deviation of these rows; a number that is always the same keeps scale 1."""
        scale_K = np.nanstd(truth_NK.astype(np.float64), axis=0)
        mean_K = np.nanmean(truth_NK.astype(np.float64), axis=0)
        return Regression(self.label_names, mean_K.tolist(), np.where(scale_K > 0, scale_K, 1.0).tolist())

    def standardised(self, truth_NK: Floats) -> Floats:
        """The numbers on the scale of the logits."""
        return (truth_NK - self.mean_K) / self.scale_K

    def usable(self, truth_NK: Floats, training: bool) -> Any:
        """In training where any number is known, else where all are."""
        known_NK = np.isfinite(truth_NK)
        return known_NK.any(axis=1) if training else known_NK.all(axis=1)

    def class_of(self, truth_NK: Floats) -> Integers:
        """No classes."""
        return np.zeros(len(truth_NK), dtype=np.int64)

    def hard(self, truth_NK: Floats) -> Floats:
        """The numbers as they are."""
        return truth_NK

    def loss(self, logits_BK: "Tensor", truth_BK: "Tensor") -> "Tensor":
        """Squared error on the scale of training, summed over the known numbers and divided by K."""
        truth = truth_BK.float()
        wanted_BK = (truth - truth.new_tensor(self.mean_K)) / truth.new_tensor(self.scale_K)
        errors_BK = logits_BK.float() - wanted_BK.nan_to_num()
        return errors_BK.square().where(truth_BK.isfinite(), 0.0).mean(dim=1)

    def probabilities(self, logits_NK: Floats) -> Floats:
        """The predicted numbers in their units."""
        return np.asarray(logits_NK, dtype=np.float64) * self.scale_K + self.mean_K

    def score(self, truth_NK: Floats, scores_NK: Floats) -> float:
        """Mean coefficient of determination over the numbers; NaN where one of them does not vary."""
        known_NK = np.isfinite(truth_NK)
        errors_K = np.sum(np.where(known_NK, truth_NK - scores_NK, 0.0) ** 2, axis=0, dtype=np.float64)
        spread_K = np.sum((truth_NK - np.nanmean(truth_NK, axis=0)) ** 2, axis=0, dtype=np.float64, where=known_NK)
        return float(np.mean(1 - errors_K / spread_K)) if (spread_K > 0).all() else float("nan")

    def threshold(self, truth_NK: Floats, scores_NK: Floats) -> None:
        """None is needed."""
        return

    def decide(self, scores_NK: Floats, threshold: float | None) -> Integers:
        """No classes."""
        return np.zeros(len(scores_NK), dtype=np.int64)

    def describe(self) -> dict[str, Any]:
        """Kind, names, and the scale that the head's output is on."""
        scales = {"mean": self.mean_K.tolist(), "scale": self.scale_K.tolist()}
        return {"kind": self.kind, "labels": list(self.label_names), **scales}


def upper_half(numbers_NK: Floats) -> Floats:
    """1 where a number is above the median of those known, 0 where it is not, NaN where it is unknown, (N, K).

    One that varies has both: a median above which there is nothing counts as above.
    """
    half_NK = np.full(numbers_NK.shape, np.nan)
    for k, number_N in enumerate(numbers_NK.T):
        known_N = np.isfinite(number_N)
        values = number_N[known_N]
        if len(values):
            median = np.median(values)
            half_NK[known_N, k] = values > median if (values > median).any() else values >= median
    return half_NK


@dataclass(frozen=True)
class ScoredNumbers:
    """Numbers and predictions of each case of a split, both in their units; patients are numbered 0 to P - 1."""

    truth_NK: Floats
    predicted_NK: Floats
    patient_N: Integers
    names: tuple[str, ...]

    @property
    def num_known(self) -> dict[str, int]:
        """How many cases have each number."""
        return dict.fromkeys(self.names, len(self.truth_NK))


def score_numbers(task: Task, truth_NK: Floats, scores_NK: Floats, patient_N: Integers) -> ScoredNumbers | None:
    """The numbers among the columns of a task, ready for figures; None where it has none."""
    first = len(task.label_names) - len(task.number_names)
    if not task.number_names:
        return None
    return ScoredNumbers(truth_NK[:, first:], scores_NK[:, first:], patient_N, task.number_names)


class NumberFigures:
    """Figures of predicted numbers, {(figure, name): (R,)}, for how often each patient was drawn (P, R).

    `mae` and `rmse` in the units of the number; `pearson` and `spearman` are NaN, undefined, where truth or prediction
    does not vary.
    """

    def __init__(self, numbers: ScoredNumbers) -> None:
        self._numbers = numbers

    def __call__(self, counts_PR: Counts) -> dict[Key, Values]:
        """Every figure on every resample: a case counts as often as its patient was drawn."""
        counts_NR = counts_PR[self._numbers.patient_N].astype(np.float64)
        found: dict[Key, Values] = {}
        for k, name in enumerate(self._numbers.names):
            truth_N = self._numbers.truth_NK[:, k].astype(np.float64)
            predicted_N = self._numbers.predicted_NK[:, k].astype(np.float64)
            error_N, total_R = predicted_N - truth_N, counts_NR.sum(axis=0)
            found["mae", name] = share(np.abs(error_N) @ counts_NR, total_R)
            found["rmse", name] = np.sqrt(share(error_N**2 @ counts_NR, total_R))
            found["pearson", name] = _correlation(truth_N[:, None], predicted_N[:, None], counts_NR)
            ranks = _ranks(truth_N, counts_NR), _ranks(predicted_N, counts_NR)
            found["spearman", name] = _correlation(*ranks, counts_NR)
        return found


def _ranks(values_N: Values, counts_NR: Values) -> Values:
    """Rank of each case among all, each as often as it counts, (N, R); equal ones share the mean of their ranks."""
    levels, level_N = np.unique(values_N, return_inverse=True)
    counts_LR = np.zeros((len(levels), counts_NR.shape[1]))
    np.add.at(counts_LR, level_N, counts_NR)
    return (np.cumsum(counts_LR, axis=0) - (counts_LR - 1) / 2)[level_N]


def _correlation(one: Values, other: Values, counts_NR: Values) -> Values:
    """Pearson's, of (N, 1) or (N, R) values, on each resample, (R,); NaN where one of them does not vary."""
    total_R = counts_NR.sum(axis=0)
    # What differs in the last digits only does not vary: a mean of equal numbers may not be quite that number.
    least = [total_R * (1e-9 * np.abs(values).max(axis=0)) ** 2 for values in (one, other)]
    one = one - share((one * counts_NR).sum(axis=0), total_R)
    other = other - share((other * counts_NR).sum(axis=0), total_R)
    squares = [(values**2 * counts_NR).sum(axis=0) for values in (one, other)]
    varies_R = (squares[0] > least[0]) & (squares[1] > least[1])
    product_R = (one * other * counts_NR).sum(axis=0)
    return np.where(varies_R, share(product_R, np.sqrt(squares[0] * squares[1])), np.nan)
