"""HAM10000: 10,015 dermatoscopic photographs of 7,470 lesions in seven diagnoses.

Tschandl, Rosendahl, Kittler: The HAM10000 dataset, Scientific Data 5, 180161 (2018). Raw layout as
published (or as mirrored): `HAM10000_metadata`, `HAM10000_metadata.csv` or `.tab`, with or without the
column `dataset`, and the JPEGs in `HAM10000_images_part_1/` and `_part_2/`, or all in `images/`.

A case is a lesion. No patient id is published, so a lesion also counts as its own patient: two lesions
of one person may stand in different splits, and nobody outside the publishing clinics can know.
"""

from clusters.config import InputError
from clusters.storage import Folder
from data.cases import Case, RawDataset, SourceImage, age_band, one_hot
from data.config import ImportConfig
from data.published import ImageFolders, find_images, known, rows_by, sex
from data.tables import Table, read_table, row_image

TITLE = "skin lesions under the dermatoscope, seven diagnoses; no patient ids are published"
LICENCE = "CC BY-NC 4.0"
CITATION = "Tschandl, Rosendahl, Kittler 2018, doi:10.1038/sdata.2018.161"
CASE = "the photographs of one lesion: the same lesion at another magnification, angle or visit"
DIAGNOSES = ("akiec", "bcc", "bkl", "df", "mel", "nv", "vasc")
METADATA = ("HAM10000_metadata.csv", "HAM10000_metadata", "HAM10000_metadata.tab")
IMAGE_FOLDERS = ("images", "HAM10000_images_part_1", "HAM10000_images_part_2")


class Options(ImportConfig):
    """HAM10000 as published."""


def read(config: Options) -> RawDataset:
    """The lesions. Raises InputError for a missing table, column or folder, or an unknown diagnosis."""
    folder = Folder(config.raw)
    there = folder.names()
    metadata = next((name for name in METADATA if name in there), METADATA[0])
    table = read_table(folder, metadata)
    images = find_images(folder, IMAGE_FOLDERS)
    names, lesions = list(rows_by(table, "image_id")), table.column("lesion_id")
    cases = []
    for lesion, rows in table.group(lesions).items():
        if not lesion:
            raise InputError(f"{table.row(rows[0])}: lesion_id is empty")
        diagnosis = table.agreed("dx", rows)
        if diagnosis not in DIAGNOSES:
            raise InputError(f"{table.row(rows[0])}: dx is none of {', '.join(DIAGNOSES)}")
        found = tuple(_image(config, images, table, row, f"{names[row]}.jpg") for row in rows)
        cases.append(Case(lesion, lesion, found, one_hot(diagnosis, DIAGNOSES)))
    return RawDataset(LICENCE, CITATION, "multiclass", DIAGNOSES, cases, CASE, patient_unit="lesion")


def _image(config: Options, images: ImageFolders, table: Table, row: int, file: str) -> SourceImage:
    """One photograph; an absent one is looked for, and missed, when it is read."""
    attributes = {
        "age": age_band(table.column("age")[row]),
        "sex": sex(table.column("sex")[row]),
        "site": known(table.column("localization")[row]),
        "confirmed_by": known(table.column("dx_type")[row]),
    }
    if "dataset" in table.columns:
        attributes["collection"] = known(table.column("dataset")[row])
    return row_image(config, images.of(file), row, file, attributes)
