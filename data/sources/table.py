"""Any CSV or parquet table: its columns are named on the command line. For data without an importer.

    python -m data import source=table raw=labels.csv image=image patient=patient_id label=label out=DIR

`raw` is the table itself; paths in its image column are relative to the folder in which it lies.
"""

from typing import Literal

from pydantic import Field, field_validator

from clusters.config import InputError
from clusters.storage import Folder
from data.attributes import attribute
from data.cases import Case, RawDataset
from data.class_names import Whose
from data.config import ImportConfig
from data.labels import read_labels, read_numbers
from data.published import UNKNOWN
from data.tables import Table, read_table, row_image

TITLE = "any CSV or parquet table with the columns named here; ids are keyed by default"
LICENCE = "not stated"
CITATION = ""
CASE = "what the column case= says: images of one lesion or study; without it each image is its own case"
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
    label: str = Field(
        default="",
        description="column with the label, or several with 1, 0, -1 (uncertain) or nothing: label=edema,effusion; "
        "empty: an unlabelled dataset; with keyed ids no names, ids, dates or free text, and no column most of whose "
        "values are of one patient each",
    )
    classes: tuple[str, ...] = Field(
        default=(), description="values that the label may have, in order: classes=nv,mel; empty: those that occur"
    )
    positive: str = Field(
        default="",
        description="value that makes the label binary (against the rest); empty: the second of two values",
    )
    attrs: tuple[str, ...] = Field(
        default=(),
        description="columns to keep as attributes: attrs=sex,site; cells are kept as they are (at most 100 different "
        "ones, no dates, ids or free text; with keyed ids no single years, titles or more than three words, and no "
        "columns most of whose values are of one patient each), but ages become bands",
    )
    numbers: tuple[str, ...] = Field(
        default=(),
        exclude=True,  # columns of the index tell them, and datasets without any stay what they were
        description="columns with a measurement each, to be predicted: numbers=ejection_fraction; empty cells: unknown",
    )
    split: str = Field(default="", description="column with an official split (train, val, test); empty cells: by hash")

    @field_validator("attrs", "classes", "numbers", mode="before")
    @classmethod
    def _words(cls, value: object) -> object:
        if isinstance(value, (int, float)) and not isinstance(value, bool):  # classes=1, as YAML reads it
            value = str(value)
        return [word.strip() for word in value.split(",") if word.strip()] if isinstance(value, str) else value

    @field_validator("label", mode="before")
    @classmethod
    def _one_text(cls, value: object) -> object:
        return ",".join(map(str, value)) if isinstance(value, (list, tuple)) else value

    @field_validator("positive", mode="before")
    @classmethod
    def _text(cls, value: object) -> object:
        return str(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else value


def read(config: Options) -> RawDataset:
    """The cases of a table.

    Raises InputError naming column and row: a column that is not there, a row without image or patient,
    rows of one case that disagree in patient, label or split, a label with one value or too many or outside the
    declared classes, an attribute or (where ids are keyed) a label that could tell people apart, names of images that
    make two cases one.
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
    identifying = (config.image, config.patient, config.case)
    whose = Whose(patients, identifying) if config.ids == "keyed" else None
    labels = read_labels(table, groups, config.label, config.classes, config.positive, whose)
    splits = _splits(table, config, groups)
    numbers = read_numbers(table, groups, config.numbers, identifying)
    patient_of = {row: patients[case_id] for case_id, rows in groups.items() for row in rows}
    of_rows = [patient_of[row] for row in range(len(patient_of))]
    attributes = {name: attribute(table, name, identifying, of_rows, config.ids == "keyed") for name in config.attrs}
    cases = []
    for case_id, rows in groups.items():
        images = tuple(
            row_image(config, folder, row, files[row], {name: values[row] for name, values in attributes.items()})
            for row in rows
        )
        found = labels.of_case[case_id]
        doubtful = labels.uncertain.get(case_id, frozenset())
        cases.append(Case(case_id, patients[case_id], images, found, {}, splits[case_id], doubtful, numbers[case_id]))
    unit = "case" if config.patient == "none" else "patient"
    return RawDataset(LICENCE, CITATION, labels.task, labels.names, cases, CASE, config.numbers, unit)


def _case_ids(table: Table, config: Options, files: list[str]) -> list[str]:
    """The case column; a row without one is a case of its own, named after its file.

    Raises InputError naming both rows where the file of such a row stands twice, or its name is already a case's.
    """
    named = table.column(config.case) if config.case else [""] * table.num_rows
    own = [file.rpartition(".")[0] or file for file in files]
    if config.ids == "source":
        own = [stem.strip("/").replace("/", "-") for stem in own]
    elif len(set(own)) != len(set(files)) or not set(own).isdisjoint(named):
        own = files
    _refuse_merged(table, config, files, named, own)
    return [case or stem for case, stem in zip(named, own)]


def _refuse_merged(table: Table, config: Options, files: list[str], named: list[str], own: list[str]) -> None:
    """Refuse a row without a case whose file stands in another row, or whose own name is the case of another."""
    if config.ids == "source":  # published ids are lower-cased in the end
        named, own = [case.lower() for case in named], [stem.lower() for stem in own]
    cases: dict[str, int] = {}
    for row, case in enumerate(named):
        if case:
            cases.setdefault(case, row)
    by_file: dict[str, int] = {}
    for row, (case, file, stem) in enumerate(zip(named, files, own)):
        first = by_file.setdefault(file, row)
        if first != row and not (case and named[first]):
            raise InputError(
                f"{table.row(first)} and row {row + 2} have the same file in '{config.image}' and no case= that they "
                "share; delete one of them"
            )
        if not case and cases.setdefault(stem, row) != row:
            raise InputError(
                f"{table.row(cases[stem])} and row {row + 2} would be one case: without case= an image's name is its "
                "case, and theirs is the same; rename one, give case= or ids=keyed"
            )


def _patients(table: Table, config: Options, groups: dict[str, list[int]]) -> dict[str, str]:
    if config.patient == "none":
        return {case: case for case in groups}
    values = table.column(config.patient)
    for row, value in enumerate(values):
        if value.lower() in UNKNOWN or value.lower() == "null":
            raise InputError(
                f"{table.row(row)} has no patient in '{config.patient}'; fill it in, for a patient must not "
                "stand in two splits"
            )
    return {case: table.agreed(config.patient, rows) for case, rows in groups.items()}


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
