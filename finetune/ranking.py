"""How well scores rank positives before negatives: AUROC and average precision of many resamples at once.

Shapes: N cases, P patients, R resamples, U distinct scores of positives, I intervals between them.
"""

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from finetune.bootstrap import Floats, Integers

Counts = NDArray[np.float32]
Values = NDArray[np.float64]

BLOCK_NUMBERS = 1 << 21
"""Numbers held at a time, so that a label with many positives does not fill the memory."""


class Ranking:
    """One label's AUROC and average precision on every resample at once, ties exact.

    AUROC is the share of (positive, negative) pairs in the right order, a tie counting half (Hanley & McNeil, 1982).
    Average precision is the mean over positives of the precision among all that score as much or more: the area
    under the precision-recall steps, without interpolation (Davis & Goadrich, 2006). The positives' distinct scores
    cut the negatives into intervals; who falls where does not depend on the resample, only how often each counts.
    """

    def __init__(self, truth_N: Floats, scores_N: Floats, patient_N: Integers, num_patients: int) -> None:
        positive, negative = np.flatnonzero(truth_N == 1), np.flatnonzero(truth_N == 0)
        self.defined = len(positive) > 0 and len(negative) > 0
        cuts, place = np.unique(scores_N[positive], return_inverse=True)
        scores = scores_N[negative]
        # Interval 2u lies below cut u, interval 2u + 1 is a tie with it.
        below_or_at = np.searchsorted(cuts, scores, "left") + np.searchsorted(cuts, scores, "right")
        self._positive = sums_of(place, patient_N[positive], max(1, len(cuts)), num_patients)
        self._num_intervals = 2 * max(1, len(cuts)) + 1
        self._negative = sums_of(below_or_at, patient_N[negative], self._num_intervals, num_patients)

    def auroc(self, counts_PR: Counts) -> Values:
        """AUROC on each resample, (R,); NaN where it has no positives or no negatives."""
        return self._blocks(counts_PR, precision=False)[0]

    def both(self, counts_PR: Counts) -> tuple[Values, Values]:
        """AUROC and average precision on each resample, (R,) each; NaN as in `auroc`."""
        auroc_R, precision_R = self._blocks(counts_PR, precision=True)
        return auroc_R, precision_R

    def _blocks(self, counts_PR: Counts, precision: bool) -> tuple[Values, ...]:
        step = max(1, BLOCK_NUMBERS // self._num_intervals)
        starts = range(0, counts_PR.shape[1], step)
        found = [self._block(counts_PR[:, start : start + step], precision) for start in starts]
        return tuple(np.concatenate(values) for values in zip(*found))

    def _block(self, counts_PR: Counts, precision: bool) -> tuple[Values, ...]:
        positive_UR, negative_IR = self._positive @ counts_PR, self._negative @ counts_PR
        up_to_IR = np.cumsum(negative_IR, axis=0, out=negative_IR)
        num_positive_R, num_negative_R = positive_UR.sum(axis=0, dtype=np.float64), up_to_IR[-1].astype(np.float64)
        below_UR, up_to_UR = up_to_IR[0:-1:2], up_to_IR[1::2]
        pairs_R = np.einsum("ur,ur->r", positive_UR, (below_UR + up_to_UR) * np.float32(0.5), dtype=np.float64)
        auroc_R = share(pairs_R, num_positive_R * num_negative_R)
        if not precision:
            return (auroc_R,)
        from_here_UR = np.cumsum(positive_UR[::-1], axis=0)[::-1]
        said_positive_UR = from_here_UR + (up_to_IR[-1] - below_UR)
        precision_UR = from_here_UR / np.maximum(said_positive_UR, np.float32(0.5))
        gained_R = np.einsum("ur,ur->r", positive_UR, precision_UR, dtype=np.float64)
        return auroc_R, np.where(num_negative_R > 0, share(gained_R, num_positive_R), np.nan)


def macro_auroc(truth_NK: Floats, scores_NK: Floats) -> float:
    """Mean one-vs-rest AUROC over the labels that have positives and negatives; NaN if none has."""
    ones, everyone = np.ones((len(truth_NK), 1), dtype=np.float32), np.arange(len(truth_NK))
    rankings = [Ranking(truth_NK[:, k], scores_NK[:, k], everyone, len(truth_NK)) for k in range(truth_NK.shape[1])]
    found = [ranking.auroc(ones)[0] for ranking in rankings if ranking.defined]
    return float(np.mean(found)) if found else float("nan")


def roc_curve(truth_N: Floats, scores_N: Floats) -> tuple[Values, Values, Values]:
    """False-positive rate, true-positive rate and the score from which on a case counts as positive.

    Begins at (0, 0) with an infinite score; needs positives and negatives.
    """
    known = np.isfinite(truth_N)
    order = np.argsort(-scores_N[known], kind="stable")
    truth, scores = truth_N[known][order], scores_N[known][order]
    last_of_ties = np.append(np.flatnonzero(np.diff(scores)), len(scores) - 1)
    true, false = np.cumsum(truth == 1)[last_of_ties], np.cumsum(truth == 0)[last_of_ties]
    start = np.zeros(1)
    return (
        np.concatenate([start, false / false[-1]]),
        np.concatenate([start, true / true[-1]]),
        np.concatenate([[np.inf], scores[last_of_ties]]).astype(np.float64),
    )


def sums_of(
    group_N: Integers, patient_N: Integers, num_groups: int, num_patients: int, values_N: Floats | None = None
) -> sparse.csr_matrix:
    """The (groups, P) matrix that sums cases of patients into groups: their number, or some value of each."""
    values = np.ones(len(group_N)) if values_N is None else values_N
    return sparse.csr_matrix((values.astype(np.float32), (group_N, patient_N)), shape=(num_groups, num_patients))


def share(part: Floats, whole: Floats) -> Values:
    """A part of a whole; NaN where the whole is nothing."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(np.asarray(whole) > 0, np.asarray(part, dtype=np.float64) / whole, np.nan)
