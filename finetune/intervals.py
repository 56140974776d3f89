"""From resampled figures to intervals that hold what they promise, also where few patients have the disease.

The sizes of the strata are drawn as well (`finetune.bootstrap`): where the number of patients with the disease differs
from study to study, intervals of AUPRC, F1 and Brier score that took it as given held the truth in 90 to 92 % of them.

Percentile intervals of an AUROC that rests on 15 patients with a disease held the truth in 89 % of studies rather than
95 %, and a figure that is 1 in every resample has none (what ours hold: `python -m finetune coverage`). So the
bootstrap gives the variance alone. A bootstrap sample of n varies as if divided by n rather than n - 1, and a normal
quantile stands where Student's belongs (Hesterberg, 2015, Am. Stat. 69:371): both are mended. The interval is then
- of AUROC and of shares of patients: all values from which the figure is no further than t standard errors at that
  value (Wilson, 1927, for shares; Newcombe, 2006, Stat. Med. 25:559, method 5, for AUROC with the variance of Hanley &
  McNeil, 1982), times the design effect: by how much the bootstrap's variance is larger than that formula's;
- of other figures between bounds: Student's on the logit scale. Of a mean over labels it reaches no further than the
  mean of its parts' intervals, which is that of labels that go up and down as one: near a bound the logit scale would
  make far more of their variance. At a bound, where nothing shows how they vary together, it is that mean, and where a
  label rests on one patient, whose figure may lie anywhere in other studies;
- of mean errors of numbers, which have no largest value: Student's on the log scale;
- of differences: Student's; none of a mean where a label rests on one patient, and none where two models never differ
  on a resample, which does not show how often they would on other patients.
Shapes: R resamples.
"""

from collections.abc import Callable, Mapping
from typing import TypeAlias

import numpy as np
from scipy.stats import t as student

from finetune.bootstrap import Floats, Key
from finetune.interval_forms import (
    Difference,
    Interval,
    Spread,
    at_bound,
    hanley_variance,
    scored,
    student_difference,
    within,
)
from finetune.metrics import ScoredCases

Plain: TypeAlias = Mapping[Key, float]
Resamples: TypeAlias = Mapping[Key, Floats]

HOW = (
    "Student's intervals from the standard deviation over the resamples: of AUROC and of shares in the form of Wilson "
    "and Newcombe with a design effect, of other figures between bounds on the logit scale (of a mean over labels no "
    "wider than the mean of their intervals, and that mean where a label rests on one patient, whose figure may lie "
    "anywhere), of mean errors of numbers on the log scale"
)
ON_POSITIVES, ON_NEGATIVES = ("sensitivity", "confusion", "bin"), ("specificity",)
ON_ALL = ("brier", "top1", "top3", "mae", "rmse", "pearson", "spearman")
SHARES = (*ON_POSITIVES, *ON_NEGATIVES, "precision", "top1", "top3")
WITHOUT_INTERVAL = ("ece",)
BOUNDS = {"pearson": (-1.0, 1.0), "spearman": (-1.0, 1.0), "mae": (0.0, np.inf), "rmse": (0.0, np.inf)}
ROUNDING = 1e-12
"""Of the variance of two models' figures; their difference varies no more than this where they decide alike."""
HALF_A_PATIENT = 0.5
"""How many patients' variance the design effect is drawn towards 1 by, so that it is known where nobody errs."""


class Intervals:
    """Intervals of the figures of some scored cases; knows how many patients each rests on.

    Means are over the labels `mean_over`, or all.
    """

    def __init__(self, cases: ScoredCases, confidence: float, mean_over: tuple[str, ...] | None = None) -> None:
        self.confidence = confidence
        self._labels = cases.label_names if mean_over is None else mean_over
        self._exclusive = cases.exclusive
        self._known = {
            label: len(np.unique(cases.patient_N[np.isfinite(cases.truth_NK[:, k])]))
            for k, label in enumerate(cases.label_names)
        }
        self._all = len(np.unique(cases.patient_N))
        self._positive, self._negative = (
            {
                label: len(np.unique(cases.patient_N[cases.truth_NK[:, k] == side]))
                for k, label in enumerate(cases.label_names)
            }
            for side in (1, 0)
        )
        self._called = {
            label: len(np.unique(cases.patient_N[cases.decided_NK[:, k] & np.isfinite(cases.truth_NK[:, k])]))
            for k, label in enumerate(cases.label_names)
        }
        self._of_class = {
            name: len(np.unique(cases.patient_N[cases.true_class_N == c])) for c, name in enumerate(cases.class_names)
        }

    def of(self, key: Key, plain: Plain, values: Resamples, patients: int | None = None) -> Interval | None:
        """The interval of a figure; None where it is undefined, rests on one patient, or has none.

        `plain` and `values` hold every figure and its resamples; `patients` it rests on, where the key does not tell.
        """
        value, values_R = plain[key], values[key]
        defined = values_R[np.isfinite(values_R)]
        if not np.isfinite(value) or len(defined) * 2 <= len(values_R) or key[0] in WITHOUT_INTERVAL:
            return None
        if len(key) == 1 and len(self._labels) == 1 and (key[0], self._labels[0]) in values:
            key = (key[0], self._labels[0])
        if self._is_scored(key):
            ends = self._score_interval(key, value, float(defined.var()), patients)
        else:
            ends = self._student_interval(key, value, plain, values)
        return None if ends is None else Interval(*ends, len(values_R) - len(defined))

    def of_difference(
        self, key: Key, one: tuple[Plain, Resamples], other: tuple[Plain, Resamples]
    ) -> tuple[Difference | None, Floats]:
        """Of the difference between two models on the same draws, each with its figures and their resamples.

        Also the difference on each resample, (R,). Where the two figures vary more than resampling shows, as their
        own intervals know, so does their difference; where resampling shows nothing, as if they were independent. None
        where both vary and their difference does not: that nobody was decided differently says nothing of how far
        other patients would be.
        """
        (plain, values), (plain_other, values_other) = one, other
        differences = {k: values[k] - values_other[k] for k in {key, *self._parts(key)} & values.keys()}

        def corrected(part: Key, variance: float) -> float:
            raw = _variance(values[part]) + _variance(values_other[part])
            wider = self._corrected(part, plain[part], values[part]) + self._corrected(
                part, plain_other[part], values_other[part]
            )
            if raw == 0:
                return wider
            return variance * wider / raw if variance > ROUNDING * raw else 0.0

        values_R, difference = differences[key], plain[key] - plain_other[key]
        defined = values_R[np.isfinite(values_R)]
        spread = self._spread(key, differences, corrected)
        if not np.isfinite(difference) or len(defined) * 2 <= len(values_R) or spread is None or spread.variance <= 0:
            return None, values_R
        return student_difference(difference, spread, self.confidence, len(values_R) - len(defined)), values_R

    def spread_of(self, key: Key, plain: Plain, values: Resamples) -> Spread | None:
        """Variance of a figure between studies; None where one patient is all that it rests on, or a label of it."""
        return self._spread(key, values, lambda part, variance: self._corrected(part, plain[part], values[part]))

    def _is_scored(self, key: Key) -> bool:
        """Whether it is a share of patients or the AUROC of a label, whose variance has a formula."""
        name = key[0]
        return name.startswith((*SHARES, "auroc")) if len(key) > 1 else name in ("top1", "top3")

    def _score_interval(
        self, key: Key, value: float, variance: float, patients: int | None = None
    ) -> tuple[float, float] | None:
        num = self._patients(key) if patients is None else patients
        if num < 2:
            return None
        pairs = (self._positive[key[1]], self._negative[key[1]]) if key[0] == "auroc" else None

        def formula(place: float) -> float:
            return place * (1 - place) / num if pairs is None else hanley_variance(place, *pairs)

        known = HALF_A_PATIENT * formula(0.9) / num
        design = (variance * num / (num - 1) + known) / (formula(value) + known)
        reach = float(student.ppf((1 + self.confidence) / 2, num - 1)) ** 2 * design

        return scored(value, reach, formula)

    def _student_interval(self, key: Key, value: float, plain: Plain, values: Resamples) -> tuple[float, float] | None:
        spread = self._spread(key, values, lambda part, variance: self._corrected(part, plain[part], values[part]))
        if spread is None:
            return self._mean_of_ends(key, plain, values) if self._parts(key) != [key] else None
        half = float(student.ppf((1 + self.confidence) / 2, spread.degrees) * np.sqrt(spread.variance))
        bounds = bounds_of(key, self._exclusive)
        ends = within(bounds, value, half, spread, self.confidence)
        if ends is None or self._parts(key) == [key]:
            return ends
        means = self._mean_of_ends(key, plain, values)
        if means is None or at_bound(bounds, value):
            return means
        return max(ends[0], means[0]), min(ends[1], means[1])

    def _mean_of_ends(self, key: Key, plain: Plain, values: Resamples) -> tuple[float, float] | None:
        """Means of the low and of the high ends of the parts of a figure, taken as the figure's own mean is.

        A part that rests on one patient may lie anywhere; None where all do.
        """
        by_name: dict[str, list[tuple[float, float]]] = {}
        some_found = False
        for part in self._parts(key):
            if part in values and np.isfinite(plain[part]):
                found = self.of(part, plain, values)
                ends = (found.low, found.high) if found else bounds_of(part, self._exclusive)
                by_name.setdefault(part[0], []).append(ends)
                some_found |= found is not None
        if not some_found:
            return None
        low, high = np.mean([np.mean(ends, axis=0) for ends in by_name.values()], axis=0)
        return float(low), float(high)

    def _corrected(self, part: Key, value: float, values_R: Floats) -> float:
        """Variance of a figure: where it comes near a bound it varies little over resamples, but its score interval
        knows better.
        """
        variance = _variance(values_R)
        ends = self._score_interval(part, value, variance) if self._is_scored(part) and np.isfinite(value) else None
        if ends is None:
            return variance
        num = self._patients(part)
        reach = float(student.ppf((1 + self.confidence) / 2, num - 1))
        return max(variance, ((ends[1] - ends[0]) / 2 / reach) ** 2 * (num - 1) / num)

    def _spread(self, key: Key, values: Resamples, corrected: Callable[[Key, float], float]) -> Spread | None:
        """Of a mean it is that of all its parts: one that rests on one patient would look as if it did not vary."""
        parts = [(part, _variance(values[part]), self._patients(part)) for part in self._parts(key) if part in values]
        told = [(part, variance, num) for part, variance, num in parts if np.isfinite(variance)]
        fewest, before = min((num for _, _, num in told), default=0), sum(variance for _, variance, _ in told)
        if fewest < 2:
            return None
        after = [(corrected(part, variance) * num / (num - 1), num) for part, variance, num in told]
        total = sum(variance for variance, _ in after)
        if total <= 0:
            return Spread(0.0, fewest - 1, fewest)
        # Two patients who are decided alike seem not to vary, and Welch's degrees would be those of the other parts.
        degrees = total**2 / sum(variance**2 / (num - 1) for variance, num in after) if fewest > 2 else 1.0
        # The mean's own resamples know how its parts vary together; where they do not vary, its parts stand apart.
        whole = _variance(values[key]) * total / before if before > 0 else total / len(told) ** 2
        return Spread(whole, degrees, fewest)

    def _parts(self, key: Key) -> list[Key]:
        """The figures that one is the mean of."""
        name = key[0]
        if key == ("brier",) and not self._exclusive:  # of every label of which something is known
            return [("brier", label) for label in self._known]
        if len(key) > 1 or name in ON_ALL:
            return [key]
        names = (name,)
        if name == "balanced_accuracy":
            names = ("sensitivity",) if self._exclusive else ("sensitivity", "specificity")
        return [(name, label) for name in names for label in self._labels]

    def _patients(self, key: Key) -> int:
        """How many patients a figure rests on: those called, of precision; of the rarer side, where it needs both."""
        name, label = key[0], key[1] if len(key) > 1 else ""
        if name == "confusion":
            return self._of_class[label]
        if name == "brier" and label:
            return self._known[label]
        if name in ON_ALL or label not in self._positive:
            return self._all
        if name.startswith(ON_POSITIVES):
            return self._positive[label]
        if name == "precision":
            return self._called[label]
        if name.startswith(ON_NEGATIVES):
            return self._negative[label]
        return min(self._positive[label], self._negative[label])


def bounds_of(key: Key, exclusive: bool) -> tuple[float, float]:
    """Between which values a figure can lie."""
    if key == ("brier",) and exclusive:
        return 0.0, 2.0
    return BOUNDS.get(key[0], (0.0, 1.0))


def _variance(values_R: Floats) -> float:
    defined = values_R[np.isfinite(values_R)]
    return float(defined.var()) if len(defined) else float("nan")
