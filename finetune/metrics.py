"""The figures of a paper, as functions of how often each patient counts.

Everything is computed for many resamples at once: a figure is made of sums over cases, so a sparse matrix that
sends patients to sums, times the drawn counts, gives all resamples in one product. The plain figure is the resample
in which each patient counts once. A figure without the cases it needs is NaN, undefined.
Shapes: N cases, K labels, C classes (K of a multi-class task, 2 of a binary one, 0 of a multi-label one), P patients,
R resamples.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from finetune.bootstrap import Floats, Integers, Key
from finetune.calibration import ReliabilityFigures
from finetune.ranking import Counts, Ranking, Values, macro_auroc, roc_curve, share, sums_of
from finetune.thresholds import youden_threshold

OF_NUMBERS = ("mae", "rmse", "pearson", "spearman")
"""The figures of predicted numbers."""

__all__ = ["CaseFigures", "RankFigures", "ScoredCases", "figures_of", "macro_auroc", "roc_curve", "youden_threshold"]


@dataclass(frozen=True)
class ScoredCases:
    """A model's answer on a split, one row a case: what all figures are computed from.

    `truth_NK` is 0 or 1, NaN where unknown; `true_class_N` and `decided_class_N` are class numbers, of which a
    multi-label task has none (`class_names` is empty); `patient_N` numbers the patients 0 to P - 1. Labels are
    decided on by `thresholds_K`, or else by class. `operating` are further thresholds (K,) to judge, by name, NaN
    where there is none.
    """

    truth_NK: Floats
    scores_NK: Floats
    true_class_N: Integers
    decided_class_N: Integers
    patient_N: Integers
    label_names: tuple[str, ...]
    class_names: tuple[str, ...]
    thresholds_K: Floats | None = None
    operating: Mapping[str, Floats] = field(default_factory=dict)
    patients: int | None = None

    @property
    def num_patients(self) -> int:
        """P; told where the cases are some of a larger whole."""
        return self.patients if self.patients is not None else int(self.patient_N.max()) + 1

    @property
    def decided_NK(self) -> NDArray[np.bool_]:
        """Which labels are said of each case."""
        if self.class_names:
            numbers = [self.class_names.index(label) for label in self.label_names]
            return self.decided_class_N[:, None] == np.array(numbers)
        thresholds_K = np.full(len(self.label_names), 0.5) if self.thresholds_K is None else self.thresholds_K
        return self.scores_NK >= thresholds_K

    @property
    def exclusive(self) -> bool:
        """Whether each label is a class and a case has one."""
        return len(self.class_names) == len(self.label_names)


class CaseFigures:
    """All figures of some scored cases, {key: (R,)}, for drawn counts (P, R): those of the classes below together."""

    def __init__(self, cases: ScoredCases) -> None:
        self._parts = [RankFigures(cases), DecisionFigures(cases), ReliabilityFigures(cases)]
        self._parts += [OperatingFigures(cases, name) for name in cases.operating]
        self._classes = ClassFigures(cases) if cases.class_names else None

    def __call__(self, counts_PR: Counts) -> dict[Key, Values]:
        """Every figure on every resample."""
        found: dict[Key, Values] = {}
        for part in (*self._parts, self._classes):
            if part is not None:
                found.update(part(counts_PR))
        return found


class RankFigures:
    """("auroc",) and ("auprc",) macro; ("auroc", label), ("auprc", label).

    The macro figures leave out labels that have no positives or no negatives in the data.
    """

    def __init__(self, cases: ScoredCases, precision: bool = True) -> None:
        self._precision = precision
        self._of = {
            label: Ranking(cases.truth_NK[:, k], cases.scores_NK[:, k], cases.patient_N, cases.num_patients)
            for k, label in enumerate(cases.label_names)
        }

    def __call__(self, counts_PR: Counts) -> dict[Key, Values]:
        """Every figure on every resample."""
        found: dict[Key, Values] = {}
        for label, ranking in self._of.items():
            if self._precision:
                found["auroc", label], found["auprc", label] = ranking.both(counts_PR)
            else:
                found["auroc", label] = ranking.auroc(counts_PR)
        undefined = np.full(counts_PR.shape[1], np.nan)
        for name in ("auroc", "auprc") if self._precision else ("auroc",):
            defined = [found[name, label] for label, ranking in self._of.items() if ranking.defined]
            found[name,] = np.mean(defined, axis=0) if defined else undefined
        return found


class DecisionFigures:
    """("sensitivity", label), ("specificity", label), ("f1", label) and macro; ("precision", label).

    The macro figures leave out labels that are undefined in the data; ("balanced_accuracy",) is the mean
    sensitivity of classes, or of yes-or-no labels the mean of their sensitivity and specificity.
    """

    def __init__(self, cases: ScoredCases) -> None:
        self._cases = cases
        self._cells = LabelCells(cases, cases.decided_NK)

    def __call__(self, counts_PR: Counts) -> dict[Key, Values]:
        """Every figure on every resample."""
        by_label = self._cells(counts_PR)
        found: dict[Key, Values] = {}
        for name, values_KR in by_label.items():
            found |= {(name, label): values_R for label, values_R in zip(self._cases.label_names, values_KR)}
            if name != "precision":  # of a label that is never said there is none
                found[name,] = self._mean(values_KR, name)
        if self._cases.exclusive:
            found["balanced_accuracy",] = found["sensitivity",]
        else:
            both_R = np.stack([found["sensitivity",], found["specificity",]])
            defined = [row for row, has in zip(both_R, self._sides()) if has]
            found["balanced_accuracy",] = np.mean(defined, axis=0) if defined else both_R[0]
        return found

    def _sides(self) -> tuple[bool, bool]:
        return bool(self._cells.has_positives_K.any()), bool(self._cells.has_negatives_K.any())

    def _mean(self, values_KR: Values, name: str) -> Values:
        has_K = self._cells.has_negatives_K if name == "specificity" else self._cells.has_positives_K
        return values_KR[has_K].mean(axis=0) if has_K.any() else np.full(values_KR.shape[1], np.nan)


class OperatingFigures:
    """(f"sensitivity_{name}", label) and (f"specificity_{name}", label) at further thresholds."""

    def __init__(self, cases: ScoredCases, name: str) -> None:
        self._name, self._labels = name, cases.label_names
        self._known_K = ~np.isnan(cases.operating[name])  # infinite: nobody is positive
        self._cells = LabelCells(cases, cases.scores_NK >= cases.operating[name])

    def __call__(self, counts_PR: Counts) -> dict[Key, Values]:
        """Every figure on every resample; NaN where validation gave no threshold."""
        by_label = self._cells(counts_PR)
        return {
            (f"{figure}_{self._name}", label): by_label[figure][k] if self._known_K[k] else by_label[figure][k] * np.nan
            for figure in ("sensitivity", "specificity")
            for k, label in enumerate(self._labels)
        }


class LabelCells:
    """The four cells of each label, truth against decision, and what is read off them."""

    def __init__(self, cases: ScoredCases, decided_NK: NDArray[np.bool_]) -> None:
        case, label = np.nonzero(np.isfinite(cases.truth_NK))
        true = cases.truth_NK[case, label] == 1
        cell = 4 * label + 2 * true + decided_NK[case, label]
        self._num_labels = len(cases.label_names)
        self._cells = sums_of(cell, cases.patient_N[case], 4 * self._num_labels, cases.num_patients)
        self.has_positives_K = (cases.truth_NK == 1).any(axis=0)
        self.has_negatives_K = (cases.truth_NK == 0).any(axis=0)

    def __call__(self, counts_PR: Counts) -> dict[str, Values]:
        """Figures by name, (K, R) each."""
        cells_K4R = (self._cells @ counts_PR).astype(np.float64).reshape(self._num_labels, 4, -1)
        rejected, wrong, missed, hit = np.moveaxis(cells_K4R, 1, 0)
        return {
            "sensitivity": share(hit, hit + missed),
            "specificity": share(rejected, rejected + wrong),
            "precision": share(hit, hit + wrong),
            "f1": np.where(hit + missed > 0, share(2 * hit, 2 * hit + missed + wrong), np.nan),
        }


class ClassFigures:
    """("top1",), ("top3",) with more than three classes, and ("confusion", true class, decided class).

    The last is the share of a true class that was decided so.
    """

    def __init__(self, cases: ScoredCases) -> None:
        self._cases = cases
        num = len(cases.class_names)
        cell = cases.true_class_N * num + cases.decided_class_N
        self._cells = sums_of(cell, cases.patient_N, num**2, cases.num_patients)
        within_3 = _place_of_truth(cases) < 3
        self._within_3 = sums_of(np.where(within_3, 0, 1), cases.patient_N, 2, cases.num_patients) if num > 3 else None

    def __call__(self, counts_PR: Counts) -> dict[Key, Values]:
        """Every figure on every resample."""
        names = self._cases.class_names
        cells_CCR = (self._cells @ counts_PR).astype(np.float64).reshape(len(names), len(names), -1)
        truth_CR = cells_CCR.sum(axis=1)
        found: dict[Key, Values] = {("top1",): share(np.einsum("ccr->r", cells_CCR), truth_CR.sum(axis=0))}
        if self._within_3 is not None:
            hits_2R = self._within_3 @ counts_PR
            found["top3",] = share(hits_2R[0], hits_2R.sum(axis=0))
        for i, truth in enumerate(names):
            for j, decided in enumerate(names):
                found["confusion", truth, decided] = share(cells_CCR[i, j], truth_CR[i])
        return found


def confusion(cases: ScoredCases) -> NDArray[np.int64]:
    """Number of cases, (C, C): rows the truth, columns the decision."""
    found = np.zeros((len(cases.class_names),) * 2, dtype=np.int64)
    np.add.at(found, (cases.true_class_N, cases.decided_class_N), 1)
    return found


def figures_of(cases: ScoredCases) -> dict[Key, float]:
    """Every figure on the cases as they are; NaN where undefined."""
    ones = np.ones((cases.num_patients, 1), dtype=np.float32)
    return {key: float(values[0]) for key, values in CaseFigures(cases)(ones).items()}


def _place_of_truth(cases: ScoredCases) -> Integers:
    """How many labels stand before the true one when sorted by score; ties in label order, as argmax does."""
    if not cases.exclusive:
        return np.zeros(len(cases.true_class_N), dtype=np.int64)
    order_NK = np.argsort(-cases.scores_NK, axis=1, kind="stable")
    return np.argmax(order_NK == cases.true_class_N[:, None], axis=1)
