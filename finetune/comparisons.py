"""Differences between models on the same patients, with p-values that many comparisons do not spoil.

Shapes: N cases, R resamples.
"""

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np

from finetune.bootstrap import Key
from finetune.delong import delong
from finetune.metrics import OF_NUMBERS, ScoredCases
from finetune.reported import Reported, finite, one_case_each

COMPARED: tuple[Key, ...] = (("auroc",), ("auprc",), ("balanced_accuracy",), ("top1",), ("f1",), ("brier",))
SAME = 1e-12  # figures that differ by less differ by rounding
OF_PROBABILITIES = ("brier", "ece")
"""Figures that mean little of a model whose temperature is at its bound: they tell of the bound, not of the model."""


def comparisons(models: dict[str, Reported], uncalibrated: Collection[str] = ()) -> list[dict[str, Any]]:
    """The first model against each other one: macro figures, AUROC of each label where there are several, numbers.

    Of Brier score, MAE and RMSE a difference below 0 is for the first model, of all others one above. Holm's
    correction is of `p`, which belongs to the interval, over all rows of a figure; the rows of labels' AUROC, and those
    of each figure of numbers, are families of their own. `p_delong` stands beside it. Two that do not differ on any
    resample have a p of 1 and no interval. Models that are `uncalibrated` are compared in no figure of probabilities.
    """
    (name, one), *others = models.items()
    labels = one.cases.label_names if len(one.cases.label_names) > 1 else ()
    keys = [*(key for key in COMPARED if key in one.plain), *(("auroc", label) for label in labels)]
    keys += [key for key in one.plain if key[0] in OF_NUMBERS]
    rows = [_difference(name, one, baseline, other, key) for baseline, other in others for key in keys
            if key[0] not in OF_PROBABILITIES or not {name, baseline} & {*uncalibrated}]  # fmt: skip
    families = {(row["figure"], row["label"] is not None) for row in rows}
    for family in families:
        members = [row for row in rows if (row["figure"], row["label"] is not None) == family]
        corrected = holm([row["p"] for row in members])
        for row, p in zip(members, corrected):
            row["p_holm"] = p
    return rows


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Holm's (1979) correction: p-values that may all be read at one level; None stays and is not counted."""
    order = sorted((p, place) for place, p in enumerate(p_values) if p is not None)
    corrected: list[float | None] = [None] * len(p_values)
    largest = 0.0
    for rank, (p, place) in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - rank) * p))
        corrected[place] = largest
    return corrected


def _difference(name: str, one: Reported, baseline: str, other: Reported, key: Key) -> dict[str, Any]:
    """The paired difference of one figure: both models are resampled together."""
    found, differences_R = one.intervals.of_difference(key, (one.plain, one.values), (other.plain, other.values))
    defined_R = differences_R[np.isfinite(differences_R)]
    constant = bool(len(defined_R)) and float(np.ptp(defined_R)) < SAME
    alike = constant and abs(one.plain[key] - other.plain[key]) < SAME
    return {
        "model": name,
        "baseline": baseline,
        "figure": key[0],
        "label": key[1] if len(key) > 1 else None,
        "value": finite(one.plain[key] - other.plain[key]),
        "low": found.interval.low if found else None,
        "high": found.interval.high if found else None,
        "undefined_resamples": len(differences_R) - len(defined_R),
        "constant": constant,
        "p": found.p if found else 1.0 if alike else None,
        "p_delong": _delong_p(one.cases, other.cases, key),
        "p_holm": None,
        "detectable": found.detectable if found else None,
    }


def _delong_p(one: ScoredCases, other: ScoredCases, key: Key) -> float | None:
    """DeLong's paired test, where each patient has one case and the figure is the AUROC of one label."""
    if key[0] != "auroc" or (len(key) == 1 and len(one.label_names) > 1):
        return None
    k = one.label_names.index(key[1]) if len(key) > 1 else 0
    if not one_case_each(one, k):
        return None
    found = delong(one.truth_NK[:, k], np.stack([one.scores_NK[:, k], other.scores_NK[:, k]]))
    return found.p_of_difference(0, 1) if found else None
