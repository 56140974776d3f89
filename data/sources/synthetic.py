"""Procedural skin-lesion cases: 1 to 4 photographs of the same lesion. Needs no data and no licence.

What tells the classes apart is described in `data/synthetic/lesions.py`. Patients have several cases, possibly
of different classes; patient, lesion and photograph are each drawn from the seed and their numbers.
"""

from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np
from pydantic import Field

from data.cases import Case, RawDataset, SourceImage, one_hot
from data.config import ImportConfig
from data.synthetic.lesions import CLASSES, Lesion, draw_lesion
from data.synthetic.photography import draw_skin, photograph

TITLE = "procedural skin-lesion cases, for demonstrations and tests"
LICENCE = "CC0 1.0"
CITATION = "Manyview, procedural skin-lesion cases"
CASE = "the photographs of one procedural lesion: same lesion, other light, pose and framing"
SITES = ("face", "neck", "trunk", "back", "upper extremity", "lower extremity")


class Options(ImportConfig):
    """Procedural cases: no raw data."""

    raw: str = Field(default="", description="not used")
    num_cases: int = Field(default=600, ge=1, description="cases")
    size_px: int = Field(default=96, ge=32, le=1024, description="px, side of the photographs")
    seed: int = Field(default=0, ge=0, description="another seed gives other lesions")


@dataclass(frozen=True)
class DrawnImage:
    """Draws one photograph of one lesion when it is read."""

    seed: int
    patient: int
    case: int
    photograph: int
    kind: str
    size_px: int

    def __call__(self) -> bytes:
        """The photograph as a PNG file."""
        skin, _ = draw_skin(np.random.default_rng([self.seed, 1, self.patient]))
        hairiness = np.random.default_rng([self.seed, 2, self.patient]).exponential(2.5)
        lesion = _lesion(self.kind, self.seed, self.case, self.size_px)
        rng = np.random.default_rng([self.seed, 4, self.case, self.photograph])
        pixels = photograph(lesion, skin, hairiness, rng, self.size_px)
        return cv2.imencode(".png", pixels[:, :, ::-1], [cv2.IMWRITE_PNG_COMPRESSION, 1])[1].tobytes()


@lru_cache(maxsize=4)  # the photographs of a case are taken one after the other
def _lesion(kind: str, seed: int, case: int, size_px: int) -> Lesion:
    return draw_lesion(kind, np.random.default_rng([seed, 3, case]), size_px)


def read(config: Options) -> RawDataset:
    """The cases of a seed."""
    rng = np.random.default_rng([config.seed, 0])
    cases: list[Case] = []
    patient = -1
    left = 0
    for number in range(config.num_cases):
        if left == 0:
            patient, left = patient + 1, int(rng.choice([1, 2, 3, 4], p=[0.4, 0.3, 0.2, 0.1]))
        left -= 1
        kind = CLASSES[int(rng.choice(len(CLASSES), p=[0.28, 0.18, 0.20, 0.18, 0.16]))]
        key = f"lesion-{number:06d}"
        num_images = int(rng.choice([1, 2, 3, 4], p=[0.25, 0.3, 0.25, 0.2]))
        images = tuple(
            SourceImage(f"{key}, photograph {k}", DrawnImage(config.seed, patient, number, k, kind, config.size_px))
            for k in range(num_images)
        )
        attributes = {**_about(config.seed, patient), "site": str(rng.choice(SITES))}
        cases.append(Case(key, f"patient-{patient:06d}", images, one_hot(kind, CLASSES), attributes))
    return RawDataset(LICENCE, CITATION, "multiclass", CLASSES, cases, CASE)


def _about(seed: int, patient: int) -> dict[str, str]:
    """A patient's attributes, the same in each of its cases."""
    rng = np.random.default_rng([seed, 5, patient])
    decade = int(rng.integers(2, 9)) * 10
    _, skin_type = draw_skin(np.random.default_rng([seed, 1, patient]))
    return {
        "sex": str(rng.choice(["female", "male"])),
        "age": f"{decade}-{decade + 9}",
        "skin_type": skin_type,
    }
