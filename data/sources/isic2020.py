"""ISIC 2020 (SIIM-ISIC): 33,126 dermatoscopic photographs of 2,056 patients, 584 of them melanoma.

Rotemberg et al.: A patient-centric dataset of images and metadata for identifying melanomas using clinical context,
Scientific Data 8, 34 (2021). Raw layout as published: `ISIC_2020_Training_GroundTruth_v2.csv` (with lesion ids) or
`ISIC_2020_Training_GroundTruth.csv`, `ISIC_2020_Training_Duplicates.csv` and the JPEGs in `train/`; or as on Kaggle:
`train.csv` and `jpeg/train/`. The test set has no published labels and is not read.

A case is a lesion where its id is published (v2), else an image. A patient has some sixteen *different* lesions,
mostly one melanoma among nevi: they are never one case. The publishers list 425 pairs that are one photograph; the
second of each is left out, and the manifest says how many.
"""

from pydantic import Field

from clusters.config import InputError
from clusters.storage import Folder
from data.cases import Case, RawDataset, age_band
from data.config import ImportConfig
from data.published import find_images, known, rows_by, sex, with_left_out
from data.tables import Table, read_table, row_image

TITLE = "skin lesions under the dermatoscope; label: melanoma (1.8 %); many lesions of each patient"
LICENCE = "CC BY-NC 4.0"
CITATION = "Rotemberg et al. 2021, doi:10.1038/s41597-021-00815-z"
CASE = (
    "the photographs of one lesion where lesion ids are published (v2), else one photograph: "
    "the lesions of a patient are different ones and never one case"
)
TABLES = ("ISIC_2020_Training_GroundTruth_v2.csv", "ISIC_2020_Training_GroundTruth.csv", "train.csv")
DUPLICATES = "ISIC_2020_Training_Duplicates.csv"
IMAGE_FOLDERS = ("train", "ISIC_2020_Training_JPEG/train", "ISIC_2020_Training_JPEG", "jpeg/train")
LABEL = "melanoma"


class Options(ImportConfig):
    """The training set of ISIC 2020."""

    drop_duplicates: bool = Field(default=True, description=f"leave out the second image of each pair in {DUPLICATES}")


def read(config: Options) -> RawDataset:
    """The lesions.

    Raises InputError for a missing table, column or folder, a target other than 0 and 1, a row without patient,
    a lesion of two patients or two targets.
    """
    folder = Folder(config.raw)
    names = folder.names()
    table = read_table(folder, next((name for name in TABLES if name in names), TABLES[0]))
    images = find_images(folder, IMAGE_FOLDERS)
    dropped = _listed_duplicates(folder) if config.drop_duplicates else set()

    rows = rows_by(table, "image_name")
    lesions = table.columns.get("lesion_id", [""] * table.num_rows)
    kept = {name: row for name, row in rows.items() if name not in dropped}
    groups: dict[str, list[int]] = {}
    for name, row in kept.items():
        groups.setdefault(known(lesions[row]) or name, []).append(row)
    cases = []
    for key, of_case in groups.items():
        patient = table.agreed("patient_id", of_case)
        if not patient:
            raise InputError(f"{table.row(of_case[0])}: patient_id is empty; a patient must not stand in two splits")
        label = _melanoma(table, of_case)
        found = []
        for row in of_case:
            file = f"{table.column('image_name')[row]}.jpg"
            found.append(row_image(config, images.of(file), row, file, _attributes(table, row)))
        cases.append(Case(key, patient, tuple(found), {LABEL: label}))
    meaning = with_left_out(CASE, len(rows) - len(kept), f"images that {DUPLICATES} lists as copies")
    return RawDataset(LICENCE, CITATION, "binary", (LABEL,), cases, meaning)


def _listed_duplicates(folder: Folder) -> set[str]:
    if DUPLICATES not in folder.names():
        raise InputError(
            f"{folder} has no {DUPLICATES}; put it there (it is on the challenge's page), "
            "or keep the copies with drop_duplicates=false"
        )
    return set(read_table(folder, DUPLICATES).column("image_name_2"))


def _melanoma(table: Table, rows: list[int]) -> float:
    """The target that the rows of a lesion agree on."""
    value = table.agreed("target", rows)
    if value not in ("0", "1", "0.0", "1.0"):
        raise InputError(f"{table.row(rows[0])}: target is neither 0 nor 1")
    return float(value)


def _attributes(table: Table, row: int) -> dict[str, str]:
    return {
        "age": age_band(table.column("age_approx")[row]),
        "sex": sex(table.column("sex")[row]),
        "site": known(table.column("anatom_site_general_challenge")[row]),
        "diagnosis": known(table.column("diagnosis")[row]),
    }
