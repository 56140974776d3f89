"""One model's figures as the results file has them: value, interval, and what else belongs to it.

Shapes: N cases, K labels, R resamples.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from finetune.bootstrap import Key
from finetune.calibration import (
    ece_by_chance,
    equal_mass_bins,
    reliability_table,
    slope_and_intercept,
)
from finetune.delong import delong
from finetune.intervals import Intervals, Plain, Resamples
from finetune.metrics import OF_NUMBERS, ScoredCases, confusion, figures_of
from finetune.thresholds import OperatingConfig

OVERALL = ("auroc", "auprc", "balanced_accuracy", "f1", "top1", "top3", "brier", "ece")
PER_LABEL = ("auroc", "auprc", "sensitivity", "specificity", "precision", "f1", "brier", "ece")


class Reported:
    """Figures of scored cases with the resamples of them, {key: (R,)}, ready to be written.

    `plain` replaces or adds to the figures of the cases; means are over `mean_over`, all labels without it.
    """

    def __init__(
        self,
        cases: ScoredCases,
        values: Resamples,
        confidence: float,
        plain: Plain | None = None,
        mean_over: tuple[str, ...] | None = None,
    ) -> None:
        self.cases, self.values, self.confidence = cases, values, confidence
        self.plain = {**figures_of(cases), **(plain or {})}
        self.intervals = Intervals(cases, confidence, mean_over)

    def figure(self, *key: str, patients: int | None = None) -> dict[str, Any]:
        """A figure with its interval; None where undefined (no positives, no negatives or no cases)."""
        value, values_R = self.plain[key], self.values[key]
        found = self.intervals.of(key, self.plain, self.values, patients)
        told = {
            "value": finite(value),
            "low": found.low if found else None,
            "high": found.high if found else None,
            "undefined_resamples": int((~np.isfinite(values_R)).sum()),
        }
        if key[0] == "auroc":
            told |= self._delong(key)
        if key[0] == "ece" and told["value"] is not None:
            told["by_chance"] = ece_by_chance(self.cases, key[1] if len(key) > 1 else None)
        return told

    def overall(self) -> dict[str, Any]:
        """The figures of all labels together, the confusion matrix, and those of each label."""
        cases = self.cases
        return {
            **{name: self.figure(name) for name in OVERALL if (name,) in self.plain},
            "auroc_leaves_out": [label for label in cases.label_names if np.isnan(self.plain["auroc", label])],
            "confusion": self._confusion() if cases.class_names else None,
        }

    def per_label(self, operating: OperatingConfig) -> dict[str, Any]:
        """Figures of each label against the rest."""
        return {label: self._label(k, label, operating) for k, label in enumerate(self.cases.label_names)}

    def numbers(self, num_known: Mapping[str, int]) -> dict[str, Any]:
        """Figures of predicted numbers, and how many cases have them."""
        return {
            name: {**{one: self.figure(one, name) for one in OF_NUMBERS}, "cases": cases}
            for name, cases in num_known.items()
        }

    def _label(self, k: int, label: str, operating: OperatingConfig) -> dict[str, Any]:
        cases, truth_N = self.cases, self.cases.truth_NK[:, k]
        positives, negatives = int((truth_N == 1).sum()), int((truth_N == 0).sum())
        return {
            "positives": positives,
            "patients": len(np.unique(cases.patient_N[truth_N == 1])),
            "negatives": negatives,
            "patients_without": len(np.unique(cases.patient_N[truth_N == 0])),
            "prevalence": positives / (positives + negatives) if positives + negatives else None,
            **{name: self.figure(name, label) for name in PER_LABEL},
            "at_specificity": self._operating("at_specificity", k, label, operating.specificity),
            "at_sensitivity": self._operating("at_sensitivity", k, label, operating.sensitivity),
            "calibration": self._calibration(k, label),
        }

    def _operating(self, name: str, k: int, label: str, target: float) -> dict[str, Any] | None:
        threshold = self.cases.operating[name][k] if name in self.cases.operating else np.nan
        if np.isnan(threshold):
            return None
        figures = {one: self.figure(f"{one}_{name}", label) for one in ("sensitivity", "specificity")}
        return {"target": target, "threshold": finite(threshold), **figures}

    def _calibration(self, k: int, label: str) -> dict[str, Any]:
        truth_N, scores_N = self.cases.truth_NK[:, k], self.cases.scores_NK[:, k]
        line = slope_and_intercept(truth_N, scores_N)
        known = np.isfinite(truth_N)
        place, _ = equal_mass_bins(scores_N[known])
        rows = reliability_table(truth_N, scores_N)
        for number, row in enumerate(rows):
            patients = len(np.unique(self.cases.patient_N[known][place == number]))
            found = self.figure("bin", label, str(number), patients=patients)
            row |= {"low": found["low"], "high": found["high"]}
        return {"slope": line[0] if line else None, "intercept": line[1] if line else None, "bins": rows}

    def _confusion(self) -> dict[str, Any]:
        names = self.cases.class_names
        shares = [[self.figure("confusion", truth, decided) for decided in names] for truth in names]
        return {"classes": list(names), "cases": confusion(self.cases).tolist(), "shares": shares}

    def _delong(self, key: Key) -> dict[str, Any]:
        """DeLong's interval, where it has one, each patient has one case, and the figure is of one label."""
        cases = self.cases
        if len(key) == 1 and len(cases.label_names) > 1:
            return {}
        k = cases.label_names.index(key[1]) if len(key) > 1 else 0
        found = delong(cases.truth_NK[:, k], cases.scores_NK[:, k][None]) if one_case_each(cases, k) else None
        ends = found.interval(0, self.confidence) if found else None
        return {"delong": {"low": ends[0], "high": ends[1]}} if ends else {}


def one_case_each(cases: ScoredCases, k: int) -> bool:
    """Whether no patient has several cases of which this label is known: then DeLong's variance applies."""
    patients = cases.patient_N[np.isfinite(cases.truth_NK[:, k])]
    return len(np.unique(patients)) == len(patients)


def finite(value: float) -> float | None:
    """A number for JSON: None where it is not finite."""
    return float(value) if np.isfinite(value) else None
