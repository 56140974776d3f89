"""NIH ChestX-ray14: 112,120 frontal chest radiographs of 30,805 patients with fourteen text-mined findings.

Wang et al., CVPR 2017, arXiv:1705.02315. Raw layout as published: `Data_Entry_2017_v2020.csv` (or the older
`Data_Entry_2017.csv`, with ages like 058Y), `train_val_list.txt`, `test_list.txt`, and the PNGs in
`images_001/images/` to `images_012/images/` or all in `images/`.

A case is one examination of a patient (Follow-up #), which in practice is one image. Findings are mined from the
reports; radiographs of one examination with different findings would be different cases. The official lists
leave the cut between train and val to the hash; without them all is cut by it. Ages above 120, of which there
are a few (411 and the like), are errors and left empty.
"""

import re
from typing import Literal

from pydantic import Field

from clusters.config import InputError, nearest
from clusters.storage import Folder
from data.cases import Case, RawDataset, age_band
from data.config import ImportConfig
from data.published import find_images, rows_by, sex
from data.tables import Table, read_table, row_image

TITLE = "frontal chest radiographs of the NIH, fourteen text-mined findings"
LICENCE = "NIH Clinical Center: open, with attribution"
CITATION = "Wang et al. 2017, arXiv:1705.02315"
CASE = "one examination of one patient: the same chest at the same visit"
FINDINGS = (
    "Atelectasis",
    "Cardiomegaly",
    "Effusion",
    "Infiltration",
    "Mass",
    "Nodule",
    "Pneumonia",
    "Pneumothorax",
    "Consolidation",
    "Edema",
    "Emphysema",
    "Fibrosis",
    "Pleural_Thickening",
    "Hernia",
)
NO_FINDING = "No Finding"
TABLES = ("Data_Entry_2017_v2020.csv", "Data_Entry_2017.csv")
LISTS = {"train_val_list.txt": "train_val", "test_list.txt": "test"}
MAX_AGE_YEARS = 120


class Options(ImportConfig):
    """ChestX-ray14 as published."""

    split: Literal["official", "hash"] = Field(
        default="official", description="official: by the two published lists where they lie in raw=; hash: ignore them"
    )


def read(config: Options) -> RawDataset:
    """The examinations.

    Raises InputError for a missing table, column or image folder, an unknown finding, a row without patient, an
    image in two rows, one list without the other, an image in both lists or in none.
    """
    folder = Folder(config.raw)
    names = folder.names()
    table = read_table(folder, next((name for name in TABLES if name in names), TABLES[0]))
    parts = [name for name in names if re.fullmatch(r"images(_\d+)?", name)] or ["images", "images_001"]
    place = find_images(folder, [where for part in parts for where in (part, f"{part}/images")])
    splits = _official(folder, names) if config.split == "official" else None

    files = list(rows_by(table, "Image Index"))
    patients, visits = table.column("Patient ID"), table.column("Follow-up #")
    found = [_findings(table, row, text) for row, text in enumerate(table.column("Finding Labels"))]
    for row, (file, patient) in enumerate(zip(files, patients)):
        if not patient:
            raise InputError(f"{table.row(row)}: 'Patient ID' is empty; a patient must not stand in two splits")
        if splits is not None and file not in splits:
            raise InputError(f"{table.row(row)}: image in neither {' nor '.join(LISTS)}; add it or give split=hash")
    cases = []
    examinations: dict[tuple[str, str, frozenset[str], str | None], list[int]] = {}
    for row in range(table.num_rows):
        split = None if splits is None else splits[files[row]]
        examinations.setdefault((patients[row], visits[row], found[row], split), []).append(row)
    for (_, _, positive, split), rows in examinations.items():
        images = tuple(
            row_image(config, place.of(files[row]), row, files[row], _attributes(table, row)) for row in rows
        )
        labels = {name: float(name in positive) for name in FINDINGS}
        stem = files[rows[0]].rpartition(".")[0] or files[rows[0]]
        cases.append(Case(stem, patients[rows[0]], images, labels, {}, split))
    return RawDataset(LICENCE, CITATION, "multilabel", FINDINGS, cases, CASE)


def _official(folder: Folder, names: list[str]) -> dict[str, str] | None:
    """Image file → official split; None where the lists are not there."""
    there = [name for name in LISTS if name in names]
    if not there:
        return None
    splits: dict[str, str] = {}
    for name, split in LISTS.items():
        if name not in there:
            raise InputError(f"{folder} has {there[0]} but no {name}; add it or give split=hash")
        for number, line in enumerate(folder.read(name).decode("utf-8-sig", errors="replace").splitlines(), 1):
            file = line.strip()
            if file and splits.setdefault(file, split) != split:
                raise InputError(f"{folder.file(name)}, line {number}: image stands in the other list too; delete one")
    return splits


def _findings(table: Table, row: int, text: str) -> frozenset[str]:
    """The findings of `A|B`; none of `No Finding`."""
    positive = frozenset(text.split("|")) - {NO_FINDING}
    unknown = sorted(positive - set(FINDINGS))
    if unknown or (positive and NO_FINDING in text.split("|")):
        hint = nearest(unknown[0], FINDINGS) if unknown else ""
        raise InputError(
            f"{table.row(row)}: 'Finding Labels' is neither '{NO_FINDING}' nor known findings joined by |{hint}"
        )
    return positive


def _attributes(table: Table, row: int) -> dict[str, str]:
    return {
        "sex": sex(table.column("Patient Gender" if "Patient Gender" in table.columns else "Patient Sex")[row]),
        "age": _age(table.column("Patient Age")[row]),
        "view": table.column("View Position")[row].lower(),
    }


def _age(text: str) -> str:
    """The band of an age in years, or of one like `058Y`, `011M`, `007D`; empty where it cannot be one."""
    match = re.fullmatch(r"(\d+)([YMWD]?)", text.upper())
    if match is None:
        return ""
    years = int(match[1]) // {"": 1, "Y": 1, "M": 12, "W": 52, "D": 365}[match[2]]
    return age_band(str(years)) if years <= MAX_AGE_YEARS else ""
