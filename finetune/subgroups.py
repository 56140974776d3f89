"""Figures of groups of patients (by sex, age, skin type, site, …), and the gap between the best and the worst.

Groups are resampled as parts of the whole test split. A group of fewer than ten patients is not shown: its figures
would say little of it and might say something of somebody. Those of whom an attribute is not known, or whose images
differ in it, are shown and are no group: nothing is compared with them.
Shapes: N cases, K labels or numbers, P patients, R resamples.
"""

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.dataset import Dataset
from finetune.bootstrap import BootstrapConfig, Floats, Integers, Key, bootstrap, patient_strata
from finetune.interval_forms import Spread, student_difference
from finetune.metrics import DecisionFigures, RankFigures, ScoredCases
from finetune.ranking import share
from finetune.regression import ScoredNumbers
from finetune.reported import Reported

FEWEST_PATIENTS = 10
FEWEST_OF_A_SIDE = 3
"""Patients with a condition, and without it, of whom a group's figures of it are compared with another's."""
UNKNOWN, MIXED = "unknown", "mixed"
NO_GROUPS = (UNKNOWN, MIXED)
FIGURES = ("auroc", "sensitivity", "specificity")
ERROR = "mae"
"""The figure of a predicted number; the smallest is the best."""
PREFIX = "attr."
GAP = (
    "the best and the worst group are found in these very patients, so that by chance alone a gap is above 0 and its "
    "interval too high: a gap to act on is one that two groups named beforehand show in new patients"
)


def case_attributes(dataset: Dataset, rows: NDArray[np.int64]) -> dict[str, NDArray[Any]]:
    """Every attribute of each case of these ascending rows, {name: (N,) text}: `mixed` where its images differ."""
    _, place = np.unique(dataset.case_of[rows], return_inverse=True)
    found = {}
    for column in dataset.column_names:
        if column.startswith(PREFIX):
            texts = dataset.column(column)[rows].astype(str)
            values, number = np.unique(np.where(texts == "", UNKNOWN, texts), return_inverse=True)
            low, high = np.full(place.max() + 1, len(values)), np.full(place.max() + 1, -1)
            np.minimum.at(low, place, number)
            np.maximum.at(high, place, number)
            found[column.removeprefix(PREFIX)] = np.where(low == high, values[low], MIXED)
    return found


def subgroup_tables(
    cases: ScoredCases,
    attributes: dict[str, NDArray[Any]],
    config: BootstrapConfig,
    seed: int,
    numbers: ScoredNumbers | None = None,
) -> dict[str, Any]:
    """The `subgroups` of the results: a table for each attribute; with the errors of `numbers` of the same cases."""
    return {name: _table(cases, numbers, group_N, config, seed) for name, group_N in attributes.items()}


def _table(
    cases: ScoredCases, numbers: ScoredNumbers | None, group_N: NDArray[Any], config: BootstrapConfig, seed: int
) -> dict[str, Any]:
    names = np.unique(group_N).tolist()
    shown = [name for name in names if len(np.unique(cases.patient_N[group_N == name])) >= FEWEST_PATIENTS]
    groups = {name: _part(cases, group_N == name) for name in shown}
    common = _common(groups)
    figures = {name: _GroupFigures(part, common, _some(numbers, group_N == name)) for name, part in groups.items()}
    measured = numbers.names if numbers else ()
    patients_of = {name: np.unique(cases.patient_N[group_N == name]) for name in names if name not in NO_GROUPS}

    def gap(*key: str) -> dict[str, Any] | None:
        return _gap(reported, key, patients_of)

    def all_figures(counts_PR: NDArray[np.float32]) -> dict[Key, NDArray[np.float64]]:
        return {(name, *key): values for name, of in figures.items() for key, values in of(counts_PR).items()}

    reported = {}
    if groups:
        found = bootstrap(all_figures, patient_strata(cases.truth_NK, cases.patient_N), config.resamples, seed)
        ones = np.ones((cases.num_patients, 1), dtype=np.float32)
        for name, part in groups.items():
            values = {key[1:]: values_R for key, values_R in found.items() if key[0] == name}
            plain = {key: float(values_R[0]) for key, values_R in figures[name](ones).items()}
            reported[name] = Reported(part, values, config.confidence, plain, common)
    return {
        "groups": {name: _row(one, measured) for name, one in reported.items()},
        "hidden_groups": len(names) - len(shown),
        "macro_over": list(common),
        "gaps_are": GAP,
        "gaps": {
            **{figure: gap(figure) for figure in FIGURES},
            "labels": {label: {figure: gap(figure, label) for figure in FIGURES} for label in cases.label_names},
            **({"numbers": {name: {ERROR: gap(ERROR, name)} for name in measured}} if measured else {}),
        },
    }


class _GroupFigures:
    """AUROC, sensitivity and specificity of each label in a group, and their means over the common labels; and the
    mean absolute error of each number.

    No mean where it cannot be judged on one of them: it would be one over other labels than the others' are.
    """

    def __init__(self, cases: ScoredCases, common: tuple[str, ...], numbers: ScoredNumbers | None) -> None:
        self._numbers = numbers
        self._parts = (RankFigures(cases, precision=False), DecisionFigures(cases))
        self._common = common if all(_is_judged(cases, label) for label in common) else ()

    def __call__(self, counts_PR: NDArray[np.float32]) -> dict[Key, NDArray[np.float64]]:
        found = _errors(self._numbers, counts_PR) if self._numbers else {}
        for part in self._parts:
            found |= {key: values for key, values in part(counts_PR).items() if key[0] in FIGURES and len(key) > 1}
        for figure in FIGURES:
            values = [found[figure, label] for label in self._common]
            found[figure,] = np.mean(values, axis=0) if values else np.full(counts_PR.shape[1], np.nan)
        return found


def _part(cases: ScoredCases, inside_N: NDArray[np.bool_]) -> ScoredCases:
    """Some of the cases; patients keep their numbers, so that they are drawn as in the whole."""
    return replace(
        cases,
        truth_NK=cases.truth_NK[inside_N],
        scores_NK=cases.scores_NK[inside_N],
        true_class_N=cases.true_class_N[inside_N],
        decided_class_N=cases.decided_class_N[inside_N],
        patient_N=cases.patient_N[inside_N],
        patients=cases.num_patients,
    )


def _some(numbers: ScoredNumbers | None, inside_N: NDArray[np.bool_]) -> ScoredNumbers | None:
    """The numbers of some of the cases."""
    if numbers is None:
        return None
    predicted_NK, patient_N = numbers.predicted_NK[inside_N], numbers.patient_N[inside_N]
    return replace(numbers, truth_NK=numbers.truth_NK[inside_N], predicted_NK=predicted_NK, patient_N=patient_N)


def _errors(numbers: ScoredNumbers, counts_PR: NDArray[np.float32]) -> dict[Key, NDArray[np.float64]]:
    """Mean absolute error of each number on each resample; without the ranks that `NumberFigures` takes as well."""
    counts_NR = counts_PR[numbers.patient_N].astype(np.float64)
    error_NK = np.abs(numbers.predicted_NK.astype(np.float64) - numbers.truth_NK.astype(np.float64))
    mean_KR = share(error_NK.T @ counts_NR, counts_NR.sum(axis=0))
    return {(ERROR, name): mean_R for name, mean_R in zip(numbers.names, mean_KR)}


def _common(groups: dict[str, ScoredCases]) -> tuple[str, ...]:
    """The labels that means are over: those that the largest groups, two or more, can all be judged on.

    Of how many groups these are is what makes most of labels times patients, so that a rare label takes the mean from
    no group that has hardly anybody of it, nor a small group a label from the mean of all others.
    """
    named = [part for name, part in groups.items() if name not in NO_GROUPS] or list(groups.values())
    largest = sorted(named, key=lambda part: -len(np.unique(part.patient_N)))
    sizes = [len(np.unique(part.patient_N)) for part in largest]
    judged = [{label for label in part.label_names if _is_judged(part, label)} for part in largest]
    chosen, most = set[str](), 0
    for num in range(min(2, len(largest)), len(largest) + 1):
        common = set.intersection(*judged[:num]) if num else set[str]()
        told = len(common) * sum(size for size, labels in zip(sizes, judged) if common <= labels)
        chosen, most = (common, told) if told > most else (chosen, most)
    return tuple(label for label in named[0].label_names if label in chosen) if named else ()


def _is_judged(part: ScoredCases, label: str) -> bool:
    """Whether a group has a few patients with a condition, and without it."""
    truth_N = part.truth_NK[:, part.label_names.index(label)]
    sides = [len(np.unique(part.patient_N[truth_N == side])) for side in (0, 1)]
    return min(sides) >= FEWEST_OF_A_SIDE


def _row(one: Reported, measured: tuple[str, ...]) -> dict[str, Any]:
    cases = one.cases
    errors = {name: {ERROR: one.figure(ERROR, name)} for name in measured}
    return {
        "patients": len(np.unique(cases.patient_N)),
        "cases": len(cases.patient_N),
        **{figure: one.figure(figure) for figure in FIGURES},
        "labels": {
            label: {
                "positives": int((cases.truth_NK[:, k] == 1).sum()),
                **{figure: one.figure(figure, label) for figure in FIGURES},
            }
            for k, label in enumerate(cases.label_names)
        },
        **({"numbers": errors} if errors else {}),
    }


def _gap(groups: dict[str, Reported], key: Key, patients_of: dict[str, Integers]) -> dict[str, Any] | None:
    """The best group less the worst; of errors, the worst less the best. None where fewer than two can be judged by it.

    The two are chosen for being so, which their interval does not know: it is of these two groups' difference. With it
    stands of how many groups, of all that there are, and how many patients the others have.
    """
    labels = () if key[0] == ERROR else key[1:]
    found = {
        name: one.plain[key]
        for name, one in groups.items()
        if name not in NO_GROUPS
        and np.isfinite(one.plain[key])
        and all(_is_judged(one.cases, label) for label in labels)
    }
    if len(found) < 2:
        return None
    high, low = max(found, key=lambda name: found[name]), min(found, key=lambda name: found[name])
    if found[high] == found[low]:
        high, low = list(found)[:2]
    one, other = groups[high], groups[low]
    difference_R = one.values[key] - other.values[key]
    spreads = [g.intervals.spread_of(key, g.plain, g.values) for g in (one, other)]
    told = {
        "value": found[high] - found[low],
        "low": None,
        "high": None,
        "undefined_resamples": int((~np.isfinite(difference_R)).sum()),
        "best": low if key[0] == ERROR else high,
        "worst": high if key[0] == ERROR else low,
        "groups": len(found),
        "of_groups": len(patients_of),
        "patients_in_others": _together([who for name, who in patients_of.items() if name not in found]),
    }
    if all(spread is not None for spread in spreads) and told["undefined_resamples"] * 2 < len(difference_R):
        spread = _sum_of([s for s in spreads if s is not None])
        if len(np.intersect1d(one.cases.patient_N, other.cases.patient_N)):
            spread = _of_shared(spread, one.values[key], other.values[key])
        if spread.variance > 0:
            interval = student_difference(told["value"], spread, one.confidence, 0).interval
            told |= {"low": interval.low, "high": interval.high}
    return told


def _together(patients: list[Integers]) -> int:
    """How many patients some groups have, those of several groups once."""
    return len(np.unique(np.concatenate(patients))) if patients else 0


def _of_shared(spread: Spread, one_R: Floats, other_R: Floats) -> Spread:
    """Of groups that share patients, whose figures vary together."""
    known_R = np.isfinite(one_R) & np.isfinite(other_R)
    apart = float(one_R[known_R].var() + other_R[known_R].var())
    together = float((one_R - other_R)[known_R].var())
    return replace(spread, variance=spread.variance * together / apart) if apart > 0 else spread


def _sum_of(spreads: list[Spread]) -> Spread:
    """Of the difference between two groups of different patients (Welch, 1947)."""
    total = sum(spread.variance for spread in spreads)
    fewest = min(spread.patients for spread in spreads)
    parts = sum(spread.variance**2 / spread.degrees for spread in spreads)
    return Spread(total, total**2 / parts if parts > 0 else fewest - 1, fewest)
