"""CheXpert: 224,316 chest radiographs of 65,240 patients of Stanford Hospital with fourteen findings.

Irvin et al., AAAI 2019, arXiv:1901.07031. Raw layout as published (CheXpert-v1.0 or CheXpert-v1.0-small):
`train.csv` and `valid.csv` beside `train/` and `valid/`, images at `train/patient00001/study1/view1_frontal.jpg`;
the Path column repeats the name of the dataset, which is cut off. The test set, published later, is read where
its folder `test/` lies beside `test.csv` or `test_labels.csv` (the latter has no sex, age and view).

A case is a study. The labels are of the study's report (of three radiologists for `valid`, five for `test`):
1 is positive, 0 negative, -1 uncertain, and blank was not mentioned. Blank counts as negative, as in the paper,
unless `blank=unlabelled`; uncertain labels are NaN and marked as uncertain, and what they count as
(U-Ignore, U-Zeros, U-Ones) is decided at fine-tuning time.
"""

import re
from collections.abc import Sequence
from typing import Literal, NamedTuple

from pydantic import Field

from clusters.config import InputError
from clusters.storage import Folder
from data.cases import Case, RawDataset, age_band
from data.config import ImportConfig
from data.published import sex
from data.tables import Table, read_table, row_image

TITLE = "chest radiographs of Stanford Hospital, fourteen findings with uncertain ones marked"
LICENCE = "Stanford University Dataset Research Use Agreement"
CITATION = "Irvin et al. 2019, arXiv:1901.07031"
CASE = "the views of one study, frontal and lateral: the same chest at the same visit"
FINDINGS = (
    "No Finding",
    "Enlarged Cardiomediastinum",
    "Cardiomegaly",
    "Lung Opacity",
    "Lung Lesion",
    "Edema",
    "Consolidation",
    "Pneumonia",
    "Atelectasis",
    "Pneumothorax",
    "Pleural Effusion",
    "Pleural Other",
    "Fracture",
    "Support Devices",
)
TABLES = ("train.csv", "valid.csv", "test.csv", "test_labels.csv")
PATH = re.compile(r"(?:.*/)?((train|valid|test)/(patient\d+)/(study\d+)/[^/]+)")
VALUES = {"1": 1.0, "1.0": 1.0, "0": 0.0, "0.0": 0.0}
UNCERTAIN = ("-1", "-1.0")


class Options(ImportConfig):
    """CheXpert as published."""

    blank: Literal["zero", "unlabelled"] = Field(
        default="zero", description="what a finding that the report does not mention counts as"
    )
    valid_as: Literal["val", "test"] = Field(
        default="val", description="split of valid/ (234 images); with test, val is cut from train/ by the hash"
    )


class View(NamedTuple):
    """What the path of an image tells."""

    file: str
    part: str
    patient: str
    study: str


def read(config: Options) -> RawDataset:
    """The studies.

    Raises InputError for a missing table, column or folder, a path of another form, a label that is none of
    1, 0, -1 and blank, or rows of one study that disagree.
    """
    folder = Folder(config.raw)
    names = folder.names()
    tables = [name for name in TABLES if name in names] or ["train.csv"]
    splits = _splits(config, tables)
    cases = []
    for name in tables:
        table = read_table(folder, name)
        views = [_view(table, row, path) for row, path in enumerate(table.column("Path"))]
        for row, view in enumerate(views):
            if view.part not in names:
                raise InputError(f"{config.raw} has no folder {view.part}/, in which {table.row(row)} lies; unpack it")
        for study, rows in table.group(f"{view.patient}-{view.study}" for view in views).items():
            labels, uncertain = finding_labels(table, rows, config.blank)
            found = tuple(
                row_image(config, folder, row, views[row].file, _attributes(table, row, views[row].file), name)
                for row in rows
            )
            view = views[rows[0]]
            cases.append(Case(study, view.patient, found, labels, {}, splits[view.part], uncertain))
    return RawDataset(LICENCE, CITATION, "multilabel", FINDINGS, cases, CASE)


def finding_labels(
    table: Table, rows: Sequence[int], blank: Literal["zero", "unlabelled"]
) -> tuple[dict[str, float], frozenset[str]]:
    """Labels of a study as the CheXpert labeller writes them, and the names of the uncertain ones.

    Raises InputError for another value, or rows that disagree.
    """
    labels: dict[str, float] = {}
    uncertain: list[str] = []
    for finding in FINDINGS:
        text = table.agreed(finding, rows)
        if text in UNCERTAIN:
            uncertain.append(finding)
        elif text and text not in VALUES:
            raise InputError(f"{table.row(rows[0])}: '{finding}' is none of 1, 0, -1 and blank")
        labels[finding] = VALUES.get(text, 0.0 if not text and blank == "zero" else float("nan"))
    return labels, frozenset(uncertain)


def _splits(config: Options, tables: Sequence[str]) -> dict[str, str]:
    """Official part → split. Where no part serves as val, it is cut from train."""
    has_val = config.valid_as == "val" and "valid.csv" in tables
    return {"train": "train" if has_val else "train_val", "valid": config.valid_as, "test": "test"}


def _view(table: Table, row: int, path: str) -> View:
    match = PATH.fullmatch(path)
    if match is None:
        raise InputError(
            f"{table.row(row)}: 'Path' is not of the form …/train/patient00001/study1/view1_frontal.jpg "
            "(or valid/, test/)"
        )
    return View(*match.groups())


def _attributes(table: Table, row: int, file: str) -> dict[str, str]:
    """Sex, age and view. The table of the test labels holds no more than the path."""
    if table.where.endswith("test_labels.csv"):
        return {"view": "lateral" if "lateral" in file else "frontal"}
    age = table.column("Age")[row]
    kind = table.column("Frontal/Lateral")[row].lower()
    return {
        "sex": sex(table.column("Sex")[row]),
        # Adults only: 0 stands where the age is not known.
        "age": "" if age in ("0", "0.0") else age_band(age),
        "view": (table.column("AP/PA")[row].lower() or kind) if kind == "frontal" else kind,
    }
