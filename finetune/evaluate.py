"""Figures of every contender on the same test patients, and the differences between them.

Shapes: I images, N cases, K labels, P patients, R resamples.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from finetune.bootstrap import BootstrapConfig, Figures, Floats, Key, bootstrap, patient_strata
from finetune.calibration import fit_temperature, is_uncalibrated, negative_log_likelihood
from finetune.cohort import Cohort, Rows
from finetune.comparisons import comparisons
from finetune.contenders import Contender
from finetune.intervals import HOW
from finetune.metrics import CaseFigures, ScoredCases, figures_of
from finetune.patients import by_patient
from finetune.regression import NumberFigures, ScoredNumbers, score_numbers
from finetune.reported import OVERALL, Reported, finite
from finetune.subgroups import case_attributes, subgroup_tables
from finetune.tasks import Task, pool_cases, score_cases
from finetune.thresholds import OperatingConfig, Thresholds, choose_thresholds


@dataclass(frozen=True)
class Outcome:
    """What one contender says of each validation and test image, as logits, and how it was chosen.

    Logits, since a sigmoid is 1 from 37 on: what it was cannot be had back from it, and a temperature divides that.
    """

    contender: Contender
    chosen: dict[str, Any]
    tried: list[dict[str, Any]]
    val_logits: Floats
    test_logits: Floats


@dataclass(frozen=True)
class Judged:
    """An outcome by case: what validation froze (temperature and thresholds), and its scored cases.

    The probabilities are those at the temperature; `test_as_trained` (N, K) has them without it. `numbers` are those
    that a task predicts beside its labels, of the test cases.
    """

    outcome: Outcome
    temperature: float
    thresholds: Thresholds
    val: ScoredCases
    test: ScoredCases
    val_probabilities: Floats
    test_probabilities: Floats
    test_as_trained: Floats
    numbers: ScoredNumbers | None = None

    @property
    def threshold(self) -> float | None:
        """The decision threshold of a yes-or-no task."""
        labels = self.label_thresholds
        return next(iter(labels.values())) if labels and len(labels) == 1 else None

    @property
    def label_thresholds(self) -> dict[str, float] | None:
        """The decision threshold of each label; None where the largest probability decides."""
        if self.test.exclusive:
            return None
        return dict(zip(self.test.label_names, self.thresholds.decision_K.tolist()))


def frozen_temperature(cohort: Cohort, val_logits: Floats) -> tuple[float, Callable[[Floats], Floats]]:
    """The temperature that the validation images (I, K) suggest, and what makes any images' probabilities at it."""
    cases = _cases(cohort, cohort.val, cohort.task.probabilities(val_logits), None)
    num_labels, case_I = len(cases.label_names), cohort.dataset.case_of[cohort.val]
    temperature = fit_temperature(cases.exclusive, cases.truth_NK, case_I, val_logits[:, :num_labels])

    def probabilities(logits_IK: Floats) -> Floats:
        """At the temperature; numbers that a task predicts beside its labels, the last columns, have none."""
        divided_IK = logits_IK[:, :num_labels] / temperature
        return cohort.task.probabilities(np.concatenate([divided_IK, logits_IK[:, num_labels:]], axis=1))

    return temperature, probabilities


def judge(cohort: Cohort, outcome: Outcome, operating: OperatingConfig) -> Judged:
    """Pool the images of each case; temperature and thresholds come from validation, never from test."""
    temperature, probabilities = frozen_temperature(cohort, outcome.val_logits)
    val_probabilities, test_probabilities = probabilities(outcome.val_logits), probabilities(outcome.test_logits)
    val = _cases(cohort, cohort.val, val_probabilities, None)
    thresholds = choose_thresholds(val.truth_NK, val.scores_NK, val.label_names, operating)
    test = _cases(cohort, cohort.test, test_probabilities, thresholds)
    first = first_images(cohort, cohort.test)
    _, scores_NK = pool_cases(cohort.dataset.case_of[cohort.test], test_probabilities)
    numbers = score_numbers(cohort.task, cohort.truth[first], scores_NK, test.patient_N)
    return Judged(
        outcome=outcome,
        temperature=temperature,
        thresholds=thresholds,
        val=_cases(cohort, cohort.val, val_probabilities, thresholds),
        test=test,
        val_probabilities=val_probabilities,
        test_probabilities=test_probabilities,
        test_as_trained=_cases(cohort, cohort.test, cohort.task.probabilities(outcome.test_logits), None).scores_NK,
        numbers=numbers,
    )


def one_sided(item: Judged) -> list[str]:
    """A warning where validation had nothing to choose thresholds by."""
    labels = ", ".join(item.thresholds.one_sided)
    if not labels:
        return []
    how = "the largest probability decides all the same" if item.test.exclusive else "decided at 0.5"
    return [f"no threshold could be chosen for {labels}: validation has positives or negatives alone; {how}"]


def scored(
    task: Task, truth_NK: Floats, scores_NK: Floats, patient_N: NDArray[Any], thresholds: Thresholds | None
) -> ScoredCases:
    """Cases as the frozen thresholds decide them, or as the task does without any."""
    threshold = float(thresholds.decision_K[0]) if thresholds and len(task.class_names) == 2 else None
    cases = score_cases(task, truth_NK, scores_NK, patient_N, threshold)
    if thresholds is None:
        return cases
    return replace(cases, thresholds_K=thresholds.decision_K, operating=thresholds.operating)


def _cases(cohort: Cohort, rows: Rows, probabilities_IK: Floats, thresholds: Thresholds | None) -> ScoredCases:
    """The cases of these images."""
    _, scores_NK = pool_cases(cohort.dataset.case_of[rows], probabilities_IK)
    first = first_images(cohort, rows)
    return scored(cohort.task, cohort.truth[first], scores_NK, cohort.patient_of[first], thresholds)


def first_images(cohort: Cohort, rows: Rows) -> Rows:
    """The first image of each case, in the order of the cases of `ScoredCases`."""
    return rows[np.unique(cohort.dataset.case_of[rows], return_index=True)[1]]


def compare(
    cohort: Cohort, judged: list[Judged], config: BootstrapConfig, operating: OperatingConfig, seed: int
) -> dict[str, Any]:
    """The `models` and `comparisons` of the results: figures with intervals, and paired differences.

    All models are resampled together, so that a difference is taken between the same patients. Subgroups are those
    of the first model.
    """
    named = {item.outcome.contender.name: item for item in judged}
    values = resample(named, config, seed)
    reported = {name: report_figures(item, values[name], config.confidence) for name, item in named.items()}
    models = {name: describe(named[name], reported[name], operating) for name in named}
    for name, item in named.items():
        models[name]["test"]["by_patient"] = by_patient(item.test, config, seed)
    first = models[judged[0].outcome.contender.name]
    attributes = case_attributes(cohort.dataset, cohort.test)
    first["test"]["subgroups"] = subgroup_tables(judged[0].test, attributes, config, seed, judged[0].numbers)
    return {
        "models": models,
        "comparisons": comparisons(reported, [name for name in named if is_uncalibrated(named[name].temperature)]),
        "operating": operating.model_dump(mode="json"),
        "bootstrap": {**config.model_dump(mode="json"), "interval": HOW},
    }


class Answered(Protocol):
    """What a model said of the test cases, as far as figures need it: labels, and numbers where there are any."""

    @property
    def test(self) -> ScoredCases:
        """The cases with labels and decisions."""
        ...

    @property
    def numbers(self) -> ScoredNumbers | None:
        """The numbers beside them."""
        ...


def resample(
    named: Mapping[str, Answered], config: BootstrapConfig, seed: int
) -> dict[str, dict[Key, NDArray[np.float64]]]:
    """Every model's figures on the same resamples of the test patients, {model: {key: (R,)}}."""
    figures: list[tuple[str, Figures]] = [(name, CaseFigures(item.test)) for name, item in named.items()]
    figures += [(name, NumberFigures(item.numbers)) for name, item in named.items() if item.numbers is not None]

    def all_figures(counts_PR: NDArray[np.float32]) -> dict[Key, NDArray[np.float64]]:
        return {(name, *key): values for name, of in figures for key, values in of(counts_PR).items()}

    test = next(iter(named.values())).test
    found = bootstrap(all_figures, patient_strata(test.truth_NK, test.patient_N), config.resamples, seed)
    return {name: {key[1:]: values for key, values in found.items() if key[0] == name} for name in named}


def report_figures(item: Answered, values: dict[Key, NDArray[np.float64]], confidence: float) -> Reported:
    """A model's figures with their resamples, ready to be written."""
    more = {}
    if item.numbers is not None:
        ones = np.ones((item.test.num_patients, 1), dtype=np.float32)
        more = {key: float(values_R[0]) for key, values_R in NumberFigures(item.numbers)(ones).items()}
    return Reported(item.test, values, confidence, more)


def describe(item: Judged, reported: Reported, operating: OperatingConfig) -> dict[str, Any]:
    """All that the results say of one model."""
    validation = figures_of(item.val)
    numbers = reported.numbers(item.numbers.num_known) if item.numbers else {}
    return {
        **item.outcome.contender.describe(),
        "chosen": item.outcome.chosen,
        "tried": item.outcome.tried,
        "temperature": item.temperature,
        "threshold": item.threshold,
        "thresholds": item.label_thresholds,
        "thresholds_without_positives": list(item.thresholds.one_sided),
        "validation": {name: finite(validation[name,]) for name in OVERALL if (name,) in validation},
        "test": {
            **all_figures_of(reported, operating),
            "calibration": {
                "before": calibration_of(item.test, item.test_as_trained),
                "after": calibration_of(item.test),
            },
            **({"numbers": numbers} if numbers else {}),
            "subgroups": {},
        },
    }


def all_figures_of(reported: Reported, operating: OperatingConfig) -> dict[str, Any]:
    """All figures of one model on one dataset, over all labels and of each."""
    return {**reported.overall(), "per_class": reported.per_label(operating)}


def calibration_of(cases: ScoredCases, scores_NK: Floats | None = None) -> dict[str, float | None]:
    """How well the probabilities of some cases, or these in their place, are calibrated: plain figures."""
    cases = cases if scores_NK is None else replace(cases, scores_NK=scores_NK)
    found = figures_of(cases)
    likelihood = negative_log_likelihood(cases.exclusive, cases.truth_NK, cases.scores_NK)
    return {"nll": finite(likelihood), "brier": finite(found["brier",]), "ece": finite(found["ece",])}
