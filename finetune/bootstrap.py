"""Bootstrap over patients: how sure a figure is when the patients, not the images, were drawn by chance.

A patient's cases and images resemble each other, so they are resampled together: whole patients are drawn
with replacement, and a case counts as often as its patient was drawn (Rutter, 2000, Acad. Radiol. 7:413;
Davison & Hinkley, 1997, section 3.8). `intervals` makes intervals of it.
Shapes: N cases, K labels, P patients, R resamples.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from scipy.special import ndtri

from clusters.config import Config
from data.config import num_cores
from data.order import keyed_generator

Floats = NDArray[np.floating]
Integers = NDArray[np.integer]
Key = tuple[str, ...]
Figures = Callable[[NDArray[np.float32]], dict[Key, NDArray[np.float64]]]

SIZE_STEP = np.float32(0.1)
"""Relative change of a stratum's size from which slopes are taken."""
ROUNDING = 1e-5
"""Smaller slopes are those of sums in single precision."""
BLOCK_RESAMPLES = 256
"""Resamples computed together; part of what the draws depend on."""


class BootstrapConfig(Config):
    """Intervals by resampling patients."""

    resamples: int = Field(default=1000, ge=20, description="how often the test patients are drawn again")
    confidence: float = Field(default=0.95, gt=0.5, lt=1, description="of the intervals")


def patient_strata(truth_NK: Floats, patient_N: Integers) -> Integers:
    """Stratum of each patient, (P,): the rarest label that any of its cases has, -1 where none has any.

    Drawing within strata keeps the number of patients of each kind, so that a rare class does not vanish
    from a resample. The rarest label stands for the patient's whole set of labels: strata by the full set
    would often hold one patient each, who would then be in every resample exactly once.
    """
    num_patients = int(patient_N.max()) + 1
    has_PK = np.zeros((num_patients, truth_NK.shape[1]), dtype=bool)
    for label in range(truth_NK.shape[1]):
        has_PK[patient_N[truth_NK[:, label] == 1], label] = True
    by_rarity = np.argsort(has_PK.sum(axis=0), kind="stable")
    ordered_PK = has_PK[:, by_rarity]
    return np.where(ordered_PK.any(axis=1), by_rarity[ordered_PK.argmax(axis=1)], -1)


def bootstrap(figures: Figures, strata_P: Integers, num_resamples: int, seed: int) -> dict[Key, NDArray[np.float64]]:
    """Every figure on every resample, {key: (R,)}.

    `figures` takes how often each patient counts, float32 (P, R). Give it several models' figures at
    once to compare them on the same draws. Depends on the seed alone, whatever the number of cores.

    Patients are drawn within strata, and then the sizes of the strata too, as they would differ from study to study:
    AUPRC, F1, accuracy and Brier score depend on how common a disease is among those who happened to come. That part is
    added to first order, figure + Σ slope · deviation, since a rare class would vanish from draws without strata.
    """
    starts = range(0, num_resamples, BLOCK_RESAMPLES)

    def block(start: int) -> dict[Key, NDArray[np.float64]]:
        count = min(BLOCK_RESAMPLES, num_resamples - start)
        return figures(draw_patients(strata_P, count, "bootstrap", seed, start))

    with ThreadPoolExecutor(num_cores()) as threads:
        blocks = list(threads.map(block, starts))
    slopes = _slopes(figures, strata_P)
    deviation_SR = _size_deviations(strata_P, num_resamples, seed)
    return {key: np.concatenate([b[key] for b in blocks]) + slopes[key] @ deviation_SR for key in blocks[0]}


def _slopes(figures: Figures, strata_P: Integers) -> dict[Key, NDArray[np.float64]]:
    """By how much each figure changes with the relative size of each stratum, {key: (S,)}; 0 where undefined."""
    inside_PS = (strata_P[:, None] == np.unique(strata_P)).astype(np.float32)
    found = figures(np.concatenate([1 + SIZE_STEP * inside_PS, 1 - SIZE_STEP * inside_PS], axis=1))
    larger_smaller = {key: np.split(values, 2) for key, values in found.items()}
    slopes = {key: np.nan_to_num((up_S - down_S) / (2 * SIZE_STEP)) for key, (up_S, down_S) in larger_smaller.items()}
    return {key: np.where(np.abs(slope_S) > ROUNDING, slope_S, 0.0) for key, slope_S in slopes.items()}


def _size_deviations(strata_P: Integers, num_resamples: int, seed: int) -> NDArray[np.float64]:
    """Relative deviations of the strata's sizes, (S, R): of counts that are drawn independently, as people come."""
    sizes_S = np.unique(strata_P, return_counts=True)[1]
    raw = keyed_generator("sizes of strata", seed).random_raw(len(sizes_S) * num_resamples)
    uniform_SR = ((raw >> 11).astype(np.float64) + 0.5) / (1 << 53)
    return ndtri(uniform_SR).reshape(len(sizes_S), num_resamples) / np.sqrt(sizes_S)[:, None]


def draw_patients(strata_P: Integers, num_resamples: int, *key: int | str) -> NDArray[np.float32]:
    """How often each patient is drawn, float32 (P, R): as many from each stratum as it has."""
    num_patients = len(strata_P)
    members = [np.flatnonzero(strata_P == stratum) for stratum in np.unique(strata_P)]
    raw = keyed_generator(*key).random_raw((num_resamples * num_patients + 1) // 2)
    words_RP = raw.view(np.uint32)[: num_resamples * num_patients].reshape(num_resamples, num_patients)
    counts_RP = np.empty((num_resamples, num_patients), dtype=np.float32)
    ends = np.cumsum([len(patients) for patients in members])
    for row, words_P in enumerate(words_RP):
        # A 32-bit word times the size, without its lower half, is a number below the size.
        drawn = [
            patients[(words_P[end - len(patients) : end].astype(np.uint64) * len(patients)) >> 32]
            for patients, end in zip(members, ends)
        ]
        counts_RP[row] = np.bincount(np.concatenate(drawn), minlength=num_patients)
    return np.ascontiguousarray(counts_RP.T)
