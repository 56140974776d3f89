"""The figures of a paper, as functions of how often each patient counts.

Everything is computed for many resamples at once: a figure is a sum over cases, so a sparse matrix that
sends patients to sums, times the drawn counts, gives all resamples in one product. The plain figure is
the resample in which each patient counts once.
Shapes: N cases, K labels, C classes (K of a multi-class task, 2 of a binary one), P patients, R resamples.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from finetune.bootstrap import Floats, Integers, Key

Counts = NDArray[np.float32]
Values = NDArray[np.float64]


@dataclass(frozen=True)
class ScoredCases:
    """A model's answer on a split, one row a case: what all figures are computed from.

    `truth_NK` is 0 or 1, NaN where unknown; `true_class_N` and `decided_class_N` are class numbers;
    `patient_N` numbers the patients 0 to P - 1.
    """

    truth_NK: Floats
    scores_NK: Floats
    true_class_N: Integers
    decided_class_N: Integers
    patient_N: Integers
    label_names: tuple[str, ...]
    class_names: tuple[str, ...]

    @property
    def num_patients(self) -> int:
        """P."""
        return int(self.patient_N.max()) + 1


class CaseFigures:
    """All figures of some scored cases, {key: (R,)}, for drawn counts (P, R).

    Keys: ("auroc",) macro, ("auroc", label), ("balanced_accuracy",), ("top1",), ("top3",) with more than
    three classes, ("sensitivity", label), ("specificity", label), ("confusion", true class, decided class):
    the share of a true class that was decided so. A figure that has no positives (or no negatives, or no
    cases) is NaN, undefined; the macro figures leave out classes that are undefined in the data.
    """

    def __init__(self, cases: ScoredCases) -> None:
        self._cases = cases
        patients, num = cases.patient_N, cases.num_patients
        self._auroc = {
            label: WeightedAuroc(cases.truth_NK[:, k], cases.scores_NK[:, k], patients, num)
            for k, label in enumerate(cases.label_names)
        }
        num_classes = max(1, len(cases.class_names))
        self._cells = _sums(cases.true_class_N * num_classes + cases.decided_class_N, patients,
                            num_classes**2, num)  # fmt: skip
        self._present = np.isin(np.arange(num_classes), cases.true_class_N)
        within_3 = _place_of_truth(cases) < 3
        self._within_3 = _sums(np.where(within_3, 0, 1), patients, 2, num) if num_classes > 3 else None

    def __call__(self, counts_PR: Counts) -> dict[Key, Values]:
        """Every figure on every resample."""
        found: dict[Key, Values] = {}
        aurocs = {label: auroc(counts_PR) for label, auroc in self._auroc.items()}
        defined = [aurocs[label] for label, auroc in self._auroc.items() if auroc.defined]
        undefined = np.full(counts_PR.shape[1], np.nan)
        found["auroc",] = np.mean(defined, axis=0) if defined else undefined
        found.update({("auroc", label): values for label, values in aurocs.items()})
        if self._cases.class_names:
            found.update(self._decisions(counts_PR))
        if self._within_3 is not None:
            hits_2R = self._within_3 @ counts_PR
            found["top3",] = _share(hits_2R[0], hits_2R.sum(axis=0))
        return found

    def confusion(self) -> NDArray[np.int64]:
        """Number of cases, (C, C): rows the truth, columns the decision."""
        names = self._cases.class_names
        if not names:
            return np.zeros((0, 0), dtype=np.int64)
        ones = np.ones((self._cases.num_patients, 1), dtype=np.float32)
        return np.rint(self._cells @ ones).astype(np.int64).reshape(len(names), len(names))

    def _decisions(self, counts_PR: Counts) -> dict[Key, Values]:
        names = self._cases.class_names
        cells_CCR = (self._cells @ counts_PR).astype(np.float64).reshape(len(names), len(names), -1)
        truth_CR, decided_CR, hits_CR = cells_CCR.sum(1), cells_CCR.sum(0), np.einsum("ccr->cr", cells_CCR)
        total_R = truth_CR.sum(axis=0)
        sensitivity_CR = _share(hits_CR, truth_CR)
        specificity_CR = _share(total_R - truth_CR - decided_CR + hits_CR, total_R - truth_CR)
        found: dict[Key, Values] = {
            ("balanced_accuracy",): sensitivity_CR[self._present].mean(axis=0),
            ("top1",): _share(hits_CR.sum(axis=0), total_R),
        }
        for label in self._cases.label_names:
            c = names.index(label)
            found["sensitivity", label], found["specificity", label] = sensitivity_CR[c], specificity_CR[c]
        for i, truth in enumerate(names):
            for j, decided in enumerate(names):
                found["confusion", truth, decided] = _share(cells_CCR[i, j], truth_CR[i])
        return found


class WeightedAuroc:
    """AUROC of one label on every resample at once, ties exact.

    AUROC is the share of (positive, negative) pairs in the right order, a tie counting half (Hanley &
    McNeil, 1982). The rarer side's distinct scores cut the other side into intervals; who falls where
    does not depend on the resample, only how often each counts does.
    """

    def __init__(self, truth_N: Floats, scores_N: Floats, patient_N: Integers, num_patients: int) -> None:
        positive, negative = np.flatnonzero(truth_N == 1), np.flatnonzero(truth_N == 0)
        self.defined = len(positive) > 0 and len(negative) > 0
        self._rare_is_positive = len(positive) <= len(negative)
        rare, other = (positive, negative) if self._rare_is_positive else (negative, positive)
        cuts, place = np.unique(scores_N[rare], return_inverse=True)
        # Interval 2i lies below cut i, interval 2i + 1 is a tie with it.
        below_or_at = np.searchsorted(cuts, scores_N[other], "left") + np.searchsorted(cuts, scores_N[other], "right")
        self._rare = _sums(place, patient_N[rare], max(1, len(cuts)), num_patients)
        self._other = _sums(below_or_at, patient_N[other], 2 * max(1, len(cuts)) + 1, num_patients)

    def __call__(self, counts_PR: Counts) -> Values:
        """AUROC on each resample, (R,); NaN where it has no positives or no negatives."""
        rare_UR, other_IR = self._rare @ counts_PR, self._other @ counts_PR
        up_to_IR = np.cumsum(other_IR, axis=0)
        beaten_UR = (up_to_IR[0:-1:2] + up_to_IR[1::2]) * np.float32(0.5)
        pairs_R = np.einsum("ur,ur->r", rare_UR, beaten_UR, dtype=np.float64)
        share_R = _share(pairs_R, rare_UR.sum(axis=0, dtype=np.float64) * up_to_IR[-1])
        return share_R if self._rare_is_positive else 1 - share_R


def figures_of(cases: ScoredCases) -> dict[Key, float]:
    """Every figure on the cases as they are; NaN where undefined."""
    ones = np.ones((cases.num_patients, 1), dtype=np.float32)
    return {key: float(values[0]) for key, values in CaseFigures(cases)(ones).items()}


def macro_auroc(truth_NK: Floats, scores_NK: Floats) -> float:
    """Mean one-vs-rest AUROC over the labels that have positives and negatives; NaN if none has."""
    ones, everyone = np.ones((len(truth_NK), 1), dtype=np.float32), np.arange(len(truth_NK))
    found = [
        WeightedAuroc(truth_NK[:, k], scores_NK[:, k], everyone, len(truth_NK))(ones)[0]
        for k in range(truth_NK.shape[1])
    ]
    return float(np.mean([v for v in found if np.isfinite(v)])) if np.isfinite(found).any() else float("nan")


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


def youden_threshold(truth_N: Floats, scores_N: Floats) -> float:
    """The score from which on to say positive: largest sensitivity + specificity (Youden, 1950).

    Of equally good ones the lowest, which misses fewest. 0.5 where only one class is there.
    """
    known = truth_N[np.isfinite(truth_N)]
    if not (known == 1).any() or not (known == 0).any():
        return 0.5
    false, true, scores = roc_curve(truth_N, scores_N)
    gain = np.round((true - false)[1:], 12)
    return float(scores[1:][np.flatnonzero(gain == gain.max())[-1]])


def _sums(group_N: Integers, patient_N: Integers, num_groups: int, num_patients: int) -> sparse.csr_matrix:
    """The (groups, P) matrix that sums cases of patients into groups."""
    ones = np.ones(len(group_N), dtype=np.float32)
    return sparse.csr_matrix((ones, (group_N, patient_N)), shape=(num_groups, num_patients))


def _share(part: Floats, whole: Floats) -> Values:
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(np.asarray(whole) > 0, np.asarray(part, dtype=np.float64) / whole, np.nan)


def _place_of_truth(cases: ScoredCases) -> Integers:
    """How many labels stand before the true one when sorted by score; ties in label order, as argmax does."""
    if len(cases.label_names) != len(cases.class_names):
        return np.zeros(len(cases.true_class_N), dtype=np.int64)
    order_NK = np.argsort(-cases.scores_NK, axis=1, kind="stable")
    return np.argmax(order_NK == cases.true_class_N[:, None], axis=1)
