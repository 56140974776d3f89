"""Whether of the cases said to be 70 % sure, 70 % are so; and the temperature that mends it.

Shapes: I images, N cases, K labels, P patients, R resamples, B bins.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.optimize import brentq
from scipy.special import expit, softmax

from finetune.bootstrap import Floats, Integers, Key
from finetune.ranking import Counts, Values, share, sums_of

if TYPE_CHECKING:
    from finetune.metrics import ScoredCases

NUM_BINS, NUM_DRAWS = 10, 200
COLDEST, HOTTEST = 0.05, 20.0
SMALLEST = 1e-15
"""Probabilities closer to 0 or 1 than this count as this close in logarithms."""
NO_LIKELIER = 1e-12
"""Likelihoods that differ by less are the same but for rounding."""


class ReliabilityFigures:
    """("brier",), ("brier", label), ("ece",), ("ece", label), ("bin", label, number): positives in a bin of scores.

    Brier (1950): the mean squared error, of exclusive classes summed over them. Expected calibration error: the
    mean over bins, weighted by cases, of |mean score - share of positives| (Naeini et al., 2015); the bins are of
    equal mass on these cases (Nixon et al., 2019) and stay the same in all resamples. ("ece",) of exclusive classes
    is of the largest score and whether it is right (Guo et al., 2017), else the mean over labels.
    """

    def __init__(self, cases: "ScoredCases") -> None:
        self._labels, self._exclusive = cases.label_names, cases.exclusive
        self._of = [
            _Bins(cases.truth_NK[:, k], cases.scores_NK[:, k], cases.patient_N, cases.num_patients)
            for k in range(len(self._labels))
        ]
        self._largest = None
        if self._exclusive:
            right_N = (cases.scores_NK.argmax(axis=1) == cases.true_class_N).astype(np.float64)
            self._largest = _Bins(right_N, cases.scores_NK.max(axis=1), cases.patient_N, cases.num_patients)

    def __call__(self, counts_PR: Counts) -> dict[Key, Values]:
        """Every figure on every resample."""
        found: dict[Key, Values] = {}
        brier, ece = [], []
        for label, bins in zip(self._labels, self._of):
            found["brier", label], found["ece", label], shares_BR = bins(counts_PR)
            found |= {("bin", label, str(number)): shares_R for number, shares_R in enumerate(shares_BR)}
            if bins.num_known:
                brier.append(found["brier", label])
                ece.append(found["ece", label])
        undefined = np.full(counts_PR.shape[1], np.nan)
        found["brier",] = np.mean(brier, axis=0) if brier else undefined
        found["ece",] = np.mean(ece, axis=0) if ece else undefined
        if self._largest is not None:
            found["brier",] = np.sum(brier, axis=0)
            found["ece",] = self._largest(counts_PR)[1]
        return found


class _Bins:
    """Squared error and calibration error of one label."""

    def __init__(self, truth_N: Floats, scores_N: Floats, patient_N: Integers, num_patients: int) -> None:
        known = np.flatnonzero(np.isfinite(truth_N))
        truth, scores, patients = truth_N[known], scores_N[known], patient_N[known]
        self.num_known = len(known)
        place, num = equal_mass_bins(scores)
        parts = [np.ones(len(known)), scores - truth, truth, (scores - truth) ** 2]
        group = np.concatenate([number * num + place for number in range(len(parts))])
        every = np.tile(patients, len(parts))
        self._sums = sums_of(group, every, len(parts) * num, num_patients, np.concatenate(parts))
        self._num_bins = num

    def __call__(self, counts_PR: Counts) -> tuple[Values, Values, Values]:
        """Brier score (R,), ECE (R,), and the share of positives in each bin (B, R)."""
        sums = (self._sums @ counts_PR).astype(np.float64).reshape(4, self._num_bins, counts_PR.shape[1])
        num_BR, excess_BR, positive_BR, squared_BR = sums
        total_R = num_BR.sum(axis=0)
        ece_R = share(np.abs(excess_BR).sum(axis=0), total_R)
        return share(squared_BR.sum(axis=0), total_R), ece_R, share(positive_BR, num_BR)


def equal_mass_bins(scores_N: Floats) -> tuple[Integers, int]:
    """The bin of each score, (N,), ascending, and their number: ten with as many cases, fewer where scores tie."""
    if not len(scores_N):
        return np.zeros(0, dtype=np.int64), 0
    edges = np.quantile(scores_N, np.linspace(0, 1, NUM_BINS + 1)[1:-1])
    place = np.searchsorted(np.unique(edges), scores_N, "right")
    used, place = np.unique(place, return_inverse=True)
    return place, len(used)


def reliability_table(truth_N: Floats, scores_N: Floats) -> list[dict[str, float]]:
    """The bins of one label, ascending: their cases, mean score and share of positives."""
    known = np.isfinite(truth_N)
    truth, scores = truth_N[known], scores_N[known]
    place, num = equal_mass_bins(scores)
    return [
        {
            "cases": int((place == b).sum()),
            "mean_score": float(scores[place == b].mean()),
            "share_positive": float(truth[place == b].mean()),
        }
        for b in range(num)
    ]


def slope_and_intercept(truth_N: Floats, scores_N: Floats) -> tuple[float, float] | None:
    """How logit P(positive) depends on logit(score), after Cox (1958); a slope of 1 and an intercept of 0 are right.

    A slope below 1 says too sure of itself. The intercept is calibration in the large: with the slope held at 1, above
    0 where positives are more common than the scores say (Van Calster et al., 2019). None where a slope has no finite
    answer: one side only, all scores equal, or scores that separate the two sides perfectly.
    """
    known = np.isfinite(truth_N)
    truth, x = truth_N[known], logit(scores_N[known])
    if not (truth == 1).any() or not (truth == 0).any() or np.ptp(x) < 1e-12:
        return None
    low, high = x[truth == 0], x[truth == 1]
    if low.max() <= high.min() or high.max() <= low.min():
        return None
    from sklearn.linear_model import LogisticRegression

    centre, spread = x.mean(), x.std()
    fit = LogisticRegression(C=np.inf, tol=1e-10, max_iter=1000).fit(((x - centre) / spread)[:, None], truth)
    # Where the expected number of positives is the observed one: between shifts that make all unlikely, or likely
    reach = abs(x).max() + np.log(len(x)) + 1
    in_the_large: Any = brentq(lambda shift: expit(x + shift).sum() - truth.sum(), -reach, reach)
    return float(fit.coef_[0, 0] / spread), float(in_the_large)


def negative_log_likelihood(exclusive: bool, truth_NK: Floats, scores_NK: Floats) -> float:
    """Mean over cases of -log of the true class's probability, or over known labels of the binary cross-entropy."""
    if exclusive:
        return float(-np.log(np.maximum(scores_NK[truth_NK == 1], SMALLEST)).mean())
    known = np.isfinite(truth_NK)
    truth, scores = truth_NK[known], np.clip(scores_NK[known], SMALLEST, 1 - SMALLEST)
    return float(-(truth * np.log(scores) + (1 - truth) * np.log(1 - scores)).mean())


def with_temperature(exclusive: bool, logits_IK: Floats, temperature: float) -> Floats:
    """Softmax (exclusive classes) or sigmoid of logits / temperature, (I, K)."""
    divided_IK = np.asarray(logits_IK, dtype=np.float64) / temperature
    return softmax(divided_IK, axis=1) if exclusive else expit(divided_IK)


def fit_temperature(exclusive: bool, truth_NK: Floats, case_I: Integers, logits_IK: Floats) -> float:
    """The temperature at which cases are likeliest (Guo et al., 2017), a case's probability being its images' mean.

    `truth_NK` is by case, cases in the order of their numbers `case_I`. 1 where every case is of one kind, since
    then certainty would pay without end, and where nothing is likelier than 1. Between 0.05 and 20, and exactly a bound
    where nothing between them is likelier, as where validation has no mistake: `uncalibrated` says so.
    """
    from scipy.optimize import minimize_scalar

    from finetune.tasks import pool_cases

    if not len(truth_NK) or not any(_both_sides(truth_NK[:, k]) for k in range(truth_NK.shape[1])):
        return 1.0

    def loss(log_temperature: float) -> float:
        changed = with_temperature(exclusive, logits_IK, float(np.exp(log_temperature)))
        return negative_log_likelihood(exclusive, truth_NK, pool_cases(case_I, changed)[1])

    ends = (np.log(COLDEST), np.log(HOTTEST))
    found: Any = minimize_scalar(loss, bounds=ends, method="bounded", options={"xatol": 1e-4})
    as_likely = [place for place in (1.0, COLDEST, HOTTEST) if loss(float(np.log(place))) <= found.fun + NO_LIKELIER]
    return as_likely[0] if as_likely else float(np.exp(found.x))


def is_uncalibrated(temperature: float | None) -> bool:
    """Whether a temperature is at a bound, where it says nothing; results without any, as of numbers, are not."""
    return temperature in (COLDEST, HOTTEST)


def uncalibrated(temperature_of: Mapping[str, float]) -> list[str]:
    """A warning that names the models whose temperature is at a bound."""
    told = [f"{name} ({found:g})" for name, found in temperature_of.items() if is_uncalibrated(found)]
    if not told:
        return []
    return [f"the temperature of {' and of '.join(told)} is at its bound: probabilities are not calibrated"]


def logit(scores: Floats) -> Floats:
    """log(p / (1 - p)), of probabilities kept a little away from 0 and 1."""
    kept = np.clip(np.asarray(scores, dtype=np.float64), SMALLEST, 1 - SMALLEST)
    return np.log(kept) - np.log1p(-kept)


def _both_sides(truth_N: Floats) -> bool:
    return bool((truth_N == 1).any() and (truth_N == 0).any())


def ece_by_chance(cases: "ScoredCases", label: str | None) -> float:
    """The mean ECE that these scores would show if they were right, their outcomes drawn (Bröcker & Smith, 2007).

    ECE is above 0 by chance alone, the more so the fewer the cases; what exceeds this is miscalibration. Each outcome
    is drawn by its own score. Those of one patient are taken to depend on each other as much as the mistakes in these
    cases do: where all cases of a patient share one truth, there are hardly more outcomes than patients.
    """
    rng = np.random.default_rng(0)
    if label is None and cases.exclusive:
        right_N = (cases.scores_NK.argmax(axis=1) == cases.true_class_N).astype(np.float64)
        return _drawn_ece(right_N, cases.scores_NK.max(axis=1), cases.patient_N, rng)
    names = cases.label_names if label is None else (label,)
    columns = [cases.label_names.index(name) for name in names]
    known = [(k, np.isfinite(cases.truth_NK[:, k])) for k in columns]
    found = [
        _drawn_ece(cases.truth_NK[rows, k], cases.scores_NK[rows, k], cases.patient_N[rows], rng)
        for k, rows in known
        if rows.any()
    ]
    return float(np.mean(found))


def _drawn_ece(truth_N: Floats, scores_N: Floats, patient_N: Integers, rng: np.random.Generator) -> float:
    place, num = equal_mass_bins(scores_N)
    drawn_DN = rng.random((NUM_DRAWS, len(scores_N)))
    expected_N = np.sqrt(np.maximum(scores_N * (1 - scores_N), 0))
    alike = _alike_within_patients(truth_N - scores_N, expected_N, patient_N * num + place)
    if alike > 0:
        # Two cases are both drawn by their patient's number in that share of the draws.
        by_patient_DN = rng.random((NUM_DRAWS, int(patient_N.max()) + 1))[:, patient_N]
        drawn_DN = np.where(rng.random(drawn_DN.shape) < np.sqrt(alike), by_patient_DN, drawn_DN)
    in_bin_NB = np.eye(num)[place]
    return float(np.abs((scores_N - (drawn_DN < scores_N)) @ in_bin_NB).sum(axis=1).mean() / len(scores_N))


def _alike_within_patients(error_N: Floats, expected_N: Floats, cell_N: Integers) -> float:
    """The correlation, 0 to 1, of the errors of two cases of one patient in one bin; 0 where no bin has two.

    Only cases of one bin add up in an ECE. `expected_N` is the standard deviation of an error by its score.
    """
    _, place = np.unique(cell_N, return_inverse=True)
    products, most = (float((np.bincount(place, of_N) ** 2).sum() - (of_N**2).sum()) for of_N in (error_N, expected_N))
    return min(max(products / most, 0.0), 1.0) if np.bincount(place).max() > 1 and most > 0 else 0.0
