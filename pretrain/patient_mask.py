"""Which images are no negatives of each other: those of one patient, and copies of one picture.

Two photographs of a patient mostly show the same skin and often the same condition; to push them apart would be
to unlearn it. Where a "patient" is a slide cut into patches the opposite holds: they show all that is in the tissue,
and an encoder that never tells the patches of a slide apart can win by knowing slides by their stain.

Shapes: N images, S samples, P patients.
"""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from clusters.config import InputError
from data.cache import CachePlace
from data.combined import AnyDataset, parts_of, samples_of_parts, shares
from data.dataset import Dataset
from pretrain.export import ids_scheme
from pretrain.leakage import numbered
from pretrain.stage import Rows, Samples, StageConfig, reduced

EVEN_SLIDES = "even_slides"
MAX_IMAGES = 100
"""Images of the patient of the median image: radiographs and photographs have fewer, slides and volumes more."""
MAX_SHARE = 0.05
"""Share of a sample's negatives that the mask may take away."""


@dataclass(frozen=True)
class PatientMask:
    """`mask(rows)`: the number of each row's patient and of its picture, int64, a new last axis of 2.

    Where there are many images, pickling writes the numbers into `cache`, from where each process maps them.
    """

    numbers_N2: Rows
    cache: CachePlace = field(default_factory=CachePlace)

    def __call__(self, rows: Rows) -> Rows:
        """The two numbers of each of some rows, of any shape."""
        return self.numbers_N2[rows]

    def __reduce__(self) -> tuple[object, ...]:
        return reduced(PatientMask, {"numbers_N2": self.numbers_N2}, self.cache)


def patient_mask(dataset: AnyDataset, stage: StageConfig) -> PatientMask | None:
    """The mask that a stage asks for; None where it is off or the method has no negatives."""
    if not _wanted(stage):
        return None
    parts = parts_of(dataset)
    return PatientMask(np.stack([_patients(parts), _pictures(parts)], axis=1), parts[0].cache)


def check_patient_mask(dataset: AnyDataset, samples: Samples, stage: StageConfig, where: str) -> None:
    """Raise InputError, with the numbers, where the mask would take too much away or patients are slides.

    `where` names the setting. Nothing is refused that the stage asks for by a second word.
    """
    wanted = _wanted(stage)
    if not wanted or wanted == EVEN_SLIDES:
        return
    patients_N = _patients(parts_of(dataset))
    per_patient_P = np.bincount(patients_N[samples.rows])
    median = int(np.median(per_patient_P[patients_N[samples.rows]]))
    share = _masked_share(dataset, samples, patients_N)
    mend = f"leave it off, or say {where}={EVEN_SLIDES} to have it all the same"
    if median > MAX_IMAGES:
        raise InputError(
            f"{where}: half of the {len(samples.rows):,} images are of patients with {median:,} images or more "
            f"({np.count_nonzero(per_patient_P):,} patients), as slides cut into patches are, and an encoder that "
            f"never tells the patches of a slide apart may learn the slides' stain instead; {mend}"
        )
    if share > MAX_SHARE:
        raise InputError(
            f"{where}: {100 * share:.3g} % of a sample's negatives are of its own patient and would be left out "
            f"({np.count_nonzero(per_patient_P):,} patients, {len(samples):,} samples); {mend}"
        )


def _wanted(stage: StageConfig) -> bool | str:
    return getattr(stage, "patient_mask", False)


def _masked_share(dataset: AnyDataset, samples: Samples, patients_N: Rows) -> float:
    """How likely it is that two samples of a batch are of one patient: the datasets' shares count."""
    sizes = [int(part.sum()) for part in samples_of_parts(dataset, samples.shard_sizes)]
    likely_S = np.repeat(shares(dataset, samples.shard_sizes) / sizes, sizes)
    of_patient_P = np.bincount(patients_N[samples.rows[samples.starts[:-1]]], likely_S)
    return float((of_patient_P**2).sum() - (likely_S**2).sum())


def _patients(parts: list[Dataset]) -> Rows:
    """A number for each row's patient, (N,); ids are comparable where their scheme is the same."""
    schemes = [ids_scheme(part) for part in parts]
    if len(set(schemes)) < len(schemes):
        return numbered([part.column("patient") for part in parts], schemes)
    starts = np.cumsum([0, *(int(part.patient_of.max(initial=-1)) + 1 for part in parts)])
    return np.concatenate([part.patient_of + start for part, start in zip(parts, starts)])


def _pictures(parts: list[Dataset]) -> NDArray[np.int64]:
    """64 bits of the hash of each row's pixels, (N,): equal for exact copies, in whichever dataset."""
    pictures_N = np.concatenate([part.picture_of for part in parts])
    unknown = pictures_N == 0  # an index without hashes
    return np.where(unknown, -1 - np.arange(len(pictures_N)), pictures_N)
