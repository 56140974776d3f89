"""Figures by patient, where patients have several cases: of two people, is the one with the condition told apart?

A patient has a condition where any case has it, is as likely to have it as the likeliest case, and is called positive
where any case is. Cases of which the label is unknown are left out of both sides.
Shapes: N cases, K labels, P patients.
"""

from typing import Any

import numpy as np

from data.manifest import Manifest
from finetune.bootstrap import BootstrapConfig, bootstrap, patient_strata
from finetune.metrics import CaseFigures, ScoredCases
from finetune.reported import Reported

RANKED, DECIDED = ("auroc", "auprc"), ("sensitivity", "specificity")


def unknown_patients(manifest: Manifest) -> list[str]:
    """A warning where nobody says who is who in a dataset: what counts as a patient may be one of several of theirs."""
    unit = manifest.patient_unit
    if unit == "patient":
        return []
    return [
        f"{manifest.name} tells of no patients: each {unit} counts as one, so {unit}s of one person may stand on both "
        "sides of a split, and intervals may be too narrow"
    ]


def by_patient(cases: ScoredCases, config: BootstrapConfig, seed: int) -> dict[str, Any] | None:
    """The `by_patient` of the results; None where every patient has one case.

    Of classes that exclude each other there are no decisions by patient: one with two lesions may have two of them.
    """
    if len(np.unique(cases.patient_N)) == len(cases.patient_N):
        return None
    patients = whole_patients(cases)
    strata = patient_strata(patients.truth_NK, patients.patient_N)
    values = bootstrap(CaseFigures(patients), strata, config.resamples, seed)
    reported = Reported(patients, values, config.confidence)
    names = RANKED if cases.exclusive else (*RANKED, *DECIDED)
    return {
        "patients": len(patients.patient_N),
        **{name: reported.figure(name) for name in names},
        "per_class": {
            label: {
                "positives": int((patients.truth_NK[:, k] == 1).sum()),
                "negatives": int((patients.truth_NK[:, k] == 0).sum()),
                **{name: reported.figure(name, label) for name in names},
            }
            for k, label in enumerate(patients.label_names)
        },
    }


def whole_patients(cases: ScoredCases) -> ScoredCases:
    """The same with one row a patient, whose labels do not exclude each other."""
    _, place_N = np.unique(cases.patient_N, return_inverse=True)
    shape = int(place_N.max()) + 1, len(cases.label_names)
    truth_PK, scores_PK = np.full(shape, np.nan), np.zeros(shape)
    np.fmax.at(truth_PK, place_N, cases.truth_NK)
    np.maximum.at(scores_PK, place_N, np.where(np.isfinite(cases.truth_NK), cases.scores_NK, 0.0))
    nothing_P = np.zeros(shape[0], dtype=np.int64)
    return ScoredCases(
        truth_PK, scores_PK, nothing_P, nothing_P, np.arange(shape[0]), cases.label_names, (), cases.thresholds_K
    )
