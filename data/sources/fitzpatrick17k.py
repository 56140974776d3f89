"""Fitzpatrick17k: 16,577 clinical photographs of two atlases in 114 conditions, with Fitzpatrick skin types.

Groh et al.: Evaluating deep neural networks trained on clinical images in dermatology with the Fitzpatrick 17k
dataset, CVPR workshops (2021). Raw layout: `fitzpatrick17k.csv` and the images, `{md5hash}.jpg`, in `images/` or
`data/finalfitz17k/` (the authors' archive). Images are fetched from the atlases, and many links are dead:
missing=skip leaves these rows out.

Neither patients nor lesions are published, so each image is its own case. Many conditions are shown by near
copies and some labels are wrong (arXiv:2401.14497 has a cleaned selection): a hash split is optimistic here. What the
authors' own check calls wrongly labelled (`qc`) is kept as unlabelled.
"""

from typing import Literal

from pydantic import Field

from clusters.config import InputError
from clusters.storage import Folder
from data.cases import Case, RawDataset, one_hot
from data.config import ImportConfig
from data.published import find_images, known, rows_by, skin_type
from data.tables import Table, read_table, row_image

TITLE = "clinical photographs of two atlases, 114 conditions (or 9 or 3 groups), with skin types; no patient ids"
LICENCE = "CC BY-NC-SA 3.0"
CITATION = "Groh et al. 2021, arXiv:2104.09957"
CASE = "one photograph: which of them show one patient is not published"
TABLE = "fitzpatrick17k.csv"
IMAGE_FOLDERS = ("images", "data/finalfitz17k", "finalfitz17k")
COLUMNS = {"conditions": "label", "nine": "nine_partition_label", "three": "three_partition_label"}
CLASSES = {
    "nine": (
        "benign dermal",
        "benign epidermal",
        "benign melanocyte",
        "genodermatoses",
        "inflammatory",
        "malignant cutaneous lymphoma",
        "malignant dermal",
        "malignant epidermal",
        "malignant melanoma",
    ),
    "three": ("benign", "malignant", "non-neoplastic"),
}
WRONG = "3 Wrongly labelled"
ATLASES = ("dermaamin", "atlasdermatologico")


class Options(ImportConfig):
    """Fitzpatrick17k as published."""

    label_level: Literal["conditions", "nine", "three"] = Field(
        default="conditions", description="the 114 conditions, or the nine or three groups of them"
    )


def read(config: Options) -> RawDataset:
    """The photographs.

    Raises InputError for a missing table, column or folder, a row without label or with one outside the nine or
    three groups.
    """
    folder = Folder(config.raw)
    table = read_table(folder, TABLE)
    images = find_images(folder, IMAGE_FOLDERS)
    labels, classes = _labels(table, config.label_level)
    cases = []
    for key, row in rows_by(table, "md5hash").items():
        file = f"{key}.jpg"
        image = row_image(config, images.of(file), row, file, _attributes(table, row))
        cases.append(Case(key, key, (image,), one_hot(labels[row], classes)))
    return RawDataset(LICENCE, CITATION, "multiclass", classes, cases, CASE, patient_unit="image")


def _labels(table: Table, level: str) -> tuple[list[str | None], tuple[str, ...]]:
    """The label of each row, None where it is known to be wrong, and the classes of the whole table."""
    column, checks = COLUMNS[level], table.column("qc")
    labels = table.column(column)
    classes = CLASSES.get(level) or tuple(sorted(set(labels) - {""}))
    for row, label in enumerate(labels):
        if label not in classes:
            what = f"'{column}' is none of {', '.join(classes)}" if label else f"'{column}' is empty"
            raise InputError(f"{table.row(row)}: {what}; download the table again")
    return [None if check == WRONG else label for label, check in zip(labels, checks)], classes


def _attributes(table: Table, row: int) -> dict[str, str]:
    url = table.column("url")[row].lower()
    return {
        "skin_type": skin_type(table.column("fitzpatrick_scale")[row]),
        "skin_type_second": skin_type(table.column("fitzpatrick_centaur")[row]),
        "diagnosis": known(table.column("label")[row]),
        "quality": known(table.column("qc")[row]),
        "collection": next((atlas for atlas in ATLASES if atlas in url), ""),
    }
