"""Any CSV or parquet table: its columns are named on the command line. For data without an importer.

    python -m data import source=table raw=labels.csv image=image patient=patient_id label=label out=DIR

`raw` is the table itself; paths in its image column are relative to the folder in which it lies.
"""

from typing import Literal

from pydantic import Field, field_validator

from clusters.config import InputError
from clusters.storage import Folder
from data.cases import Case, RawDataset, one_hot
from data.config import ImportConfig
from data.tables import Table, read_table, row_image

TITLE = "any CSV or parquet table with the columns named here; ids are keyed by default"
LICENCE = "not stated"
CITATION = ""
CASE = "what the column case= says: images of one lesion or study; without it each image is its own case"
MAX_CLASSES = 1000
SPLIT_NAMES = {"train": "train", "training": "train", "test": "test", "testing": "test"} | dict.fromkeys(
    ("val", "valid", "validate", "validation"), "val"
)


class Options(ImportConfig):
    """A table of your own."""

    raw: str = Field(description="the table: a .csv or .parquet file")
    ids: Literal["source", "keyed"] = Field(default="keyed", description="keyed unless the ids are public")
    image: str = Field(description="column with the path of each image, relative to the table's folder")
    patient: str = Field(
        description="column with the patient; 'none' only where nobody knows: each case is then one patient"
    )
    case: str = Field(default="", description="column with the lesion or study; empty: each image is its own case")
    label: str = Field(default="", description="column with the label; empty: an unlabelled dataset")
    positive: str = Field(
        default="",
        description="value that makes the label binary (against the rest); empty: the second of two values",
    )
    attrs: tuple[str, ...] = Field(default=(), description="columns to keep as attributes: attrs=sex,site")
    split: str = Field(default="", description="column with an official split (train, val, test); empty cells: by hash")

    @field_validator("attrs", mode="before")
    @classmethod
    def _words(cls, value: object) -> object:
        return [word.strip() for word in value.split(",") if word.strip()] if isinstance(value, str) else value

    @field_validator("positive", mode="before")
    @classmethod
    def _text(cls, value: object) -> object:
        return str(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else value


def read(config: Options) -> RawDataset:
    """The cases of a table.

    Raises InputError naming column and row: a column that is not there, a row without image or patient,
    rows of one case that disagree in patient, label or split, a label with one value or too many.
    """
    parent, _, name = config.raw.rpartition("/")
    folder = Folder(parent or "/")
    table = read_table(folder, name)
    files = table.column(config.image)
    for row, file in enumerate(files):
        if not file:
            raise InputError(f"{table.row(row)} has no image in '{config.image}'")

    case_ids = _case_ids(table, config, files)
    groups = table.group(case_ids)
    patients = _patients(table, config, groups)
    task, label_names, labels = _labels(table, config, groups)
    splits = _splits(table, config, groups)
    attributes = {name: table.column(name) for name in config.attrs}
    cases = []
    for case_id, rows in groups.items():
        images = tuple(
            row_image(config, folder, row, files[row], {name: values[row] for name, values in attributes.items()})
            for row in rows
        )
        cases.append(Case(case_id, patients[case_id], images, labels[case_id], {}, splits[case_id]))
    return RawDataset(LICENCE, CITATION, task, label_names, cases, CASE)


def _case_ids(table: Table, config: Options, files: list[str]) -> list[str]:
    """The case column; a row without one is a case of its own, named after its file."""
    named = table.column(config.case) if config.case else [""] * table.num_rows
    own = [file.rpartition(".")[0] or file for file in files]
    if config.ids == "source":
        own = [stem.strip("/").replace("/", "-") for stem in own]
    elif len(set(own)) != len(set(files)):
        own = files
    return [case or stem for case, stem in zip(named, own)]


def _patients(table: Table, config: Options, groups: dict[str, list[int]]) -> dict[str, str]:
    if config.patient == "none":
        return {case: case for case in groups}
    values = table.column(config.patient)
    for row, value in enumerate(values):
        if not value:
            raise InputError(
                f"{table.row(row)} has no patient in '{config.patient}'; fill it in, for a patient must not "
                "stand in two splits"
            )
    return {case: table.agreed(config.patient, rows) for case, rows in groups.items()}


def _labels(
    table: Table, config: Options, groups: dict[str, list[int]]
) -> tuple[str, tuple[str, ...], dict[str, dict[str, float]]]:
    """Task, label names and the labels of each case."""
    if not config.label:
        return "unlabelled", (), {case: {} for case in groups}
    found = {case: table.agreed(config.label, rows) for case, rows in groups.items()}
    classes = tuple(sorted({value for value in found.values() if value}))
    if not 2 <= len(classes) <= MAX_CLASSES:
        raise InputError(
            f"column '{config.label}' of {table.where} has {len(classes):,} different values; a label has 2 "
            f"to {MAX_CLASSES:,} (leave label= out for a dataset without labels)"
        )
    if config.positive and config.positive not in classes:
        raise InputError(f"positive={config.positive} does not occur in column '{config.label}' of {table.where}")
    if len(classes) > 2 and not config.positive:
        return "multiclass", classes, {case: one_hot(value or None, classes) for case, value in found.items()}
    positive = config.positive or max(classes)
    name = config.label if positive.lower() in ("1", "1.0", "true", "yes", "positive") else positive
    labels = {case: {name: float(value == positive) if value else float("nan")} for case, value in found.items()}
    return "binary", (name,), labels


def _splits(table: Table, config: Options, groups: dict[str, list[int]]) -> dict[str, str | None]:
    if not config.split:
        return dict.fromkeys(groups)
    splits: dict[str, str | None] = {}
    for case, rows in groups.items():
        value = table.agreed(config.split, rows)
        if value and value.lower() not in SPLIT_NAMES:
            raise InputError(f"{table.row(rows[0])}: '{config.split}' is none of train, val, test")
        splits[case] = SPLIT_NAMES[value.lower()] if value else None
    return splits
