"""Studies of made-up patients whose images resemble each other, and what a study without end would find.

Every kind of study has a title, the truth of its figures, and the intervals that one study of some patients gives.
Shapes: N cases (here one image each), C classes, P patients, R resamples.
"""

from dataclasses import dataclass, replace
from functools import cache
from typing import Protocol

import numpy as np

from finetune.bootstrap import BootstrapConfig, Floats, Integers, Key, bootstrap, patient_strata
from finetune.delong import delong
from finetune.intervals import Intervals
from finetune.metrics import CaseFigures, RankFigures, ScoredCases, figures_of
from finetune.patients import by_patient
from finetune.regression import NumberFigures, ScoredNumbers
from finetune.subgroups import subgroup_tables
from finetune.thresholds import threshold_at_specificity

RESEMBLANCE, MOST_IMAGES = 0.6, 5
PATIENTS_WITHOUT_END = 100_000
OPERATING_SPECIFICITY = 0.9
NAIVE, DIFFERENCE, BY_PATIENT = ("images as patients",), ("difference in auroc",), ("auroc by patient",)
SHOWN: tuple[Key, ...] = (
    ("auroc",), ("auprc",), ("balanced_accuracy",), ("sensitivity",), ("specificity",), ("f1",), ("top1",), ("brier",),
)  # fmt: skip
AT_SPECIFICITY = ("sensitivity_at_specificity", "class 1")
NUMBER = "number"
Ends = dict[Key, tuple[float, float]]


class Study(Protocol):
    """A kind of study."""

    @property
    def title(self) -> str:
        """What it is."""
        ...

    def truth(self) -> dict[Key, float]:
        """What a study without end would find."""
        ...

    def intervals(self, patients: int, config: BootstrapConfig, number: int) -> Ends:
        """Low and high end of each figure in one study; NaN where it has none."""
        ...


@dataclass(frozen=True)
class Setting:
    """Classes: the share of patients of each, how far apart they lie, and who was drawn.

    `mix_drawn`: the number of patients of a class is drawn, as where patients come by chance; otherwise every study
    has the same.
    """

    title: str
    shares: tuple[float, ...]
    strength: float
    mix_drawn: bool = True

    def truth(self) -> dict[Key, float]:
        """As of `Study`; of patients as wholes with as many images as they have in a study."""
        one, other = _without_end(self)
        found = figures_of(one)
        truth = {key: found[key] for key in (*SHOWN, _precision(self)) if key in found}
        truth[DIFFERENCE] = found["auroc",] - figures_of(other)["auroc",]
        if len(self.shares) == 2:
            truth[AT_SPECIFICITY] = float((one.scores_NK >= _threshold(self))[one.truth_NK == 1].mean())
            whole, _ = draw_study(self, PATIENTS_WITHOUT_END, np.random.default_rng(0))
            truth[BY_PATIENT] = _auroc_by_patient(whole, BootstrapConfig(resamples=20), 0)["value"]
            truth[NAIVE] = found["auroc",]
        return truth

    def intervals(self, patients: int, config: BootstrapConfig, number: int) -> Ends:
        """As of `Study`."""
        one, other = draw_study(self, patients, np.random.default_rng([1, number]))
        if len(self.shares) == 2:
            one = replace(one, operating={"at_specificity": np.array([_threshold(self)])})
        figures, others = CaseFigures(one), RankFigures(other, precision=False)
        intervals = Intervals(one, config.confidence)

        def both(counts_PR: np.ndarray) -> dict[Key, np.ndarray]:
            return figures(counts_PR) | {("other", *key): values for key, values in others(counts_PR).items()}

        values = bootstrap(both, patient_strata(one.truth_NK, one.patient_N), config.resamples, number)
        plain, values_other = figures_of(one), {key[1:]: v for key, v in values.items() if key[0] == "other"}
        found = {
            key: intervals.of(key, plain, values) for key in (*SHOWN, AT_SPECIFICITY, _precision(self)) if key in plain
        }
        difference, _ = intervals.of_difference(("auroc",), (plain, values), (figures_of(other), values_other))
        found[DIFFERENCE] = difference.interval if difference else None
        ends = {key: (one.low, one.high) if one else (np.nan, np.nan) for key, one in found.items()}
        if len(self.shares) == 2:
            ends[BY_PATIENT] = _ends(_auroc_by_patient(one, config, number))
            by_image = delong(one.truth_NK[:, 0], one.scores_NK.T)
            ends[NAIVE] = (by_image.interval(0, config.confidence) if by_image else None) or (np.nan, np.nan)
        return ends


@dataclass(frozen=True)
class TwoGroups:
    """Two groups of equally many patients, of whom a model tells one worse."""

    title: str
    better: Setting
    worse: Setting

    def truth(self) -> dict[Key, float]:
        """As of `Study`."""
        better, worse = (group.truth()["auroc",] for group in (self.better, self.worse))
        sensitivity = self.better.truth()["sensitivity",]
        return {("auroc of a group",): better, ("sensitivity of a group",): sensitivity, ("gap",): better - worse}

    def intervals(self, patients: int, config: BootstrapConfig, number: int) -> Ends:
        """As of `Study`."""
        rng = np.random.default_rng([2, number])
        one, other = (draw_study(group, patients // 2, rng)[0] for group in (self.better, self.worse))
        names = ("truth_NK", "scores_NK", "true_class_N", "decided_class_N")
        both = {name: np.concatenate([getattr(one, name), getattr(other, name)]) for name in names}
        patient_N = np.concatenate([one.patient_N, other.patient_N + one.num_patients])
        group_N = np.repeat(["better", "worse"], [len(one.patient_N), len(other.patient_N)])
        table = subgroup_tables(replace(one, **both, patient_N=patient_N), {"group": group_N}, config, number)["group"]
        row = table["groups"]["better"]
        figures = {"auroc of a group": row["auroc"], "sensitivity of a group": row["sensitivity"]}
        return {(name,): _ends(figure) for name, figure in (figures | {"gap": table["gaps"]["auroc"]}).items()}


@dataclass(frozen=True)
class Numbers:
    """A number that is predicted, the same for all images of a patient, and errors that resemble each other."""

    title: str

    def truth(self) -> dict[Key, float]:
        """As of `Study`."""
        numbers = self._draw(PATIENTS_WITHOUT_END, np.random.default_rng(0), most_images=1)
        ones = np.ones((PATIENTS_WITHOUT_END, 1), dtype=np.float32)
        return {key: float(values_R[0]) for key, values_R in NumberFigures(numbers)(ones).items()}

    def intervals(self, patients: int, config: BootstrapConfig, number: int) -> Ends:
        """As of `Study`."""
        numbers = self._draw(patients, np.random.default_rng([3, number]))
        figures, nothing_N = NumberFigures(numbers), np.zeros(len(numbers.patient_N), dtype=np.int64)
        low = (numbers.truth_NK < np.quantile(numbers.truth_NK, 0.3)).astype(float)  # labels beside it: the strata
        cases = ScoredCases(low, low, nothing_N, nothing_N, numbers.patient_N, ("low",), ())
        values = bootstrap(figures, patient_strata(low, numbers.patient_N), config.resamples, number)
        plain = {key: float(v[0]) for key, v in figures(np.ones((patients, 1), dtype=np.float32)).items()}
        found = {key: Intervals(cases, config.confidence).of(key, plain, values) for key in plain}
        return {key: (one.low, one.high) if one else (np.nan, np.nan) for key, one in found.items()}

    def _draw(self, patients: int, rng: np.random.Generator, most_images: int = MOST_IMAGES) -> ScoredNumbers:
        patient_N = np.repeat(np.arange(patients), rng.integers(1, most_images + 1, patients))
        truth_N = rng.normal(55, 12, patients)[patient_N]
        predicted_N = truth_N + 8 * _noise(rng, patient_N, 1)[:, 0]
        return ScoredNumbers(truth_N[:, None], predicted_N[:, None], patient_N, (NUMBER,))


STUDIES: tuple[Study, ...] = (
    Setting("yes or no, 30 % of patients positive", (0.7, 0.3), 1.2),
    Setting("yes or no, 5 % of patients positive", (0.95, 0.05), 1.8),
    Setting("five classes, the rarest 5 %", (0.5, 0.2, 0.15, 0.1, 0.05), 1.6),
    Setting("yes or no, in every study exactly 30 % positive", (0.7, 0.3), 1.2, mix_drawn=False),
    TwoGroups("two groups, 30 % positive", Setting("", (0.7, 0.3), 1.4), Setting("", (0.7, 0.3), 0.6)),
    Numbers("a number beside a label"),
)


def draw_study(
    setting: Setting, num_patients: int, rng: np.random.Generator, most_images: int = MOST_IMAGES
) -> tuple[ScoredCases, ScoredCases]:
    """What a model and a somewhat worse one say of some patients."""
    shares = np.array(setting.shares)
    if setting.mix_drawn:
        class_P = rng.choice(len(shares), num_patients, p=shares)
    else:
        class_P = np.searchsorted(np.cumsum(shares), (np.arange(num_patients) + 0.5) / num_patients)
    patient_N = np.repeat(np.arange(num_patients), rng.integers(1, most_images + 1, num_patients))
    true_N = class_P[patient_N]
    seen = setting.strength * np.eye(len(shares))[true_N] + _noise(rng, patient_N, len(shares))
    worse = seen + 0.5 * _noise(rng, patient_N, len(shares))
    return _scored(setting, seen, true_N, patient_N), _scored(setting, worse, true_N, patient_N)


def _precision(setting: Setting) -> Key:
    """That of the rarest class, which few patients are called."""
    return "precision", f"class {len(setting.shares) - 1}"


@cache
def _without_end(setting: Setting) -> tuple[ScoredCases, ScoredCases]:
    return draw_study(setting, PATIENTS_WITHOUT_END, np.random.default_rng(0), most_images=1)


@cache
def _threshold(setting: Setting) -> float:
    """That of the operating point, as a validation without end gives it."""
    one, _ = _without_end(setting)
    return threshold_at_specificity(one.truth_NK[:, 0], one.scores_NK[:, 0], OPERATING_SPECIFICITY)


def _noise(rng: np.random.Generator, patient_N: Integers, num_columns: int) -> Floats:
    """Of variance 1, of which images of one patient share a part."""
    of_patient = rng.normal(size=(int(patient_N.max()) + 1, num_columns))
    of_image = rng.normal(size=(len(patient_N), num_columns))
    return np.sqrt(RESEMBLANCE) * of_patient[patient_N] + np.sqrt(1 - RESEMBLANCE) * of_image


def _scored(setting: Setting, seen_NC: Floats, true_N: Integers, patient_N: Integers) -> ScoredCases:
    logits_NC = setting.strength * seen_NC + np.log(setting.shares)
    powers = np.exp(logits_NC - logits_NC.max(axis=1, keepdims=True))
    scores_NC = powers / powers.sum(axis=1, keepdims=True)
    names = tuple(f"class {c}" for c in range(len(setting.shares)))
    if len(names) == 2:
        scores = scores_NC[:, 1]
        decided_N = (scores >= setting.shares[1]).astype(np.int64)
        truth = (true_N == 1).astype(np.float64)
        return ScoredCases(truth[:, None], scores[:, None], true_N, decided_N, patient_N, names[1:], names)
    truth_NC = np.eye(len(names))[true_N]
    return ScoredCases(truth_NC, scores_NC, true_N, scores_NC.argmax(axis=1), patient_N, names, names)


def _auroc_by_patient(cases: ScoredCases, config: BootstrapConfig, seed: int) -> dict[str, float]:
    found = by_patient(cases, config, seed)
    assert found is not None
    return found["auroc"]


def _ends(figure: dict[str, float] | None) -> tuple[float, float]:
    if figure is None or figure["low"] is None:
        return np.nan, np.nan
    return figure["low"], figure["high"]
