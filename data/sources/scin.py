"""SCIN, Skin Condition Image Network: some 10,400 photographs that 5,033 web users took of their own skin.

Ward et al.: Creating an empirical dermatology dataset through crowdsourcing with web search advertisements, JAMA
Network Open 7 (2024). Raw layout as in the public bucket: `scin_cases.csv`, `scin_labels.csv` and `images/`, in
`dataset/` or given itself.

A case is one contribution: one to three photographs of one condition, close up, at an angle, at a distance, taken by
the same person on one occasion. Labels are the published differential diagnoses as soft labels, for dermatologists
disagree; two cases in five have none. No patient ids are published: a case counts as its own patient, except
that cases which share a photograph (the publishers know of 15 such) are one patient, so that they stand in one split.
"""

import ast
import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from statistics import median_low
from typing import Any

from pydantic import Field

from clusters.config import InputError
from clusters.storage import Folder
from data.cases import Case, RawDataset, SourceImage, one_hot
from data.config import ImportConfig
from data.published import ImageFolders, find_images, known, rows_by, sex, skin_type, with_left_out
from data.tables import Table, read_table, row_image

TITLE = "photographs of skin conditions by web users, 1 to 3 a case, soft labels, with skin types and tones"
LICENCE = "SCIN Data Use License"
CITATION = "Ward et al. 2024, doi:10.1001/jamanetworkopen.2024.46615"
CASE = (
    "one contribution: up to three photographs of one condition of one person on one occasion, "
    "close up, at an angle and at a distance"
)
CASES, LABELS = "scin_cases.csv", "scin_labels.csv"
DIFFERENTIAL = "weighted_skin_condition_label"
OTHER = "other"
AGES = {f"AGE_{low}_TO_{high}": f"{low}-{high}" for low, high in [(18, 29), (30, 39), (40, 49), (50, 59)]}
AGES |= {"AGE_60_TO_69": "60-69", "AGE_70_TO_79": "70-79", "AGE_80_OR_ABOVE": "80+"}
SITES = (
    "head_or_neck",
    "arm",
    "palm",
    "back_of_hand",
    "torso_front",
    "torso_back",
    "genitalia_or_groin",
    "buttocks",
    "leg",
    "foot_top_or_side",
    "foot_sole",
    "other",
)


class Options(ImportConfig):
    """SCIN as published."""

    min_cases: int = Field(
        default=20,
        ge=1,
        description="cases that a condition must lead to be a class, others become 'other'; "
        "20 leave about 4 for testing",
    )


def read(config: Options) -> RawDataset:
    """The contributions.

    Raises InputError for a missing table, column or folder, a case without a row of labels, a differential
    that is not a dictionary of weights.
    """
    folder = Folder(config.raw)
    if CASES not in folder.names() and (folder / "dataset").exists(CASES):
        folder = folder / "dataset"
    table, labels = read_table(folder, CASES), read_table(folder, LABELS)
    images = find_images(folder, ("images",))
    label_rows = rows_by(labels, "case_id")
    rows = rows_by(table, "case_id")
    files = {key: _files(table, row) for key, row in rows.items()}
    with_images = {key: row for key, row in rows.items() if files[key]}
    for key, row in with_images.items():
        if key not in label_rows:
            raise InputError(f"{table.row(row)}: its case has no row in {labels.where}; download both tables again")

    differentials = {key: _differential(labels, label_rows[key]) for key in with_images}
    names = _classes(list(differentials.values()), config.min_cases)
    contents = _contents(images, sorted({file for of_case in files.values() for file in of_case}))
    patients = _patients({key: [contents[file] for file in files[key]] for key in with_images})
    cases = []
    for key, row in with_images.items():
        about = _attributes(table, row) | _skin(labels, label_rows[key], table, row)
        found = _images(config, images, table, row, files[key], contents)
        cases.append(Case(key, patients[key], found, _soft(differentials[key], names), about))
    meaning = with_left_out(CASE, len(rows) - len(with_images), "cases without an image")
    return RawDataset(LICENCE, CITATION, "multiclass", names, cases, meaning, patient_unit="case")


def _files(table: Table, row: int) -> dict[str, str]:
    """File name → shot type of the up to three photographs of a case, in order."""
    found: dict[str, str] = {}
    for number in (1, 2, 3):
        path = known(table.column(f"image_{number}_path")[row])
        if path:
            found.setdefault(path.rsplit("/", 1)[-1], known(table.column(f"image_{number}_shot_type")[row]).lower())
    return found


def _images(
    config: Options, images: ImageFolders, table: Table, row: int, files: dict[str, str], contents: dict[str, str]
) -> tuple[SourceImage, ...]:
    """The photographs of a case; one that it has twice would be a pair that teaches nothing, and is taken once."""
    found: dict[str, SourceImage] = {}
    for number, (file, view) in enumerate(files.items(), start=1):
        image = row_image(config, images.of(file), row, file, {"view": view})
        found.setdefault(contents[file], replace(image, name=f"{image.name}, image {number}"))
    return tuple(found.values())


def _contents(images: ImageFolders, files: Sequence[str]) -> dict[str, str]:
    """What stands for the content of each file: files of one size are read and told apart by their hash."""
    sizes = {file: images.of(file).size(file) for file in files if file in images}
    common = {size for size, count in Counter(sizes.values()).items() if count > 1}
    contents = {}
    for file in files:
        alike = sizes.get(file) in common
        contents[file] = hashlib.sha256(images.of(file).read(file)).hexdigest() if alike else file
    return contents


def _patients(contents: dict[str, list[str]]) -> dict[str, str]:
    """Case → patient, named after its first case: cases that share a photograph, directly or in a chain, are one."""
    parent = {key: key for key in contents}

    def first(key: str) -> str:
        while parent[key] != key:
            key = parent[key]
        return key

    owner: dict[str, str] = {}
    for key, of_case in contents.items():
        for content in of_case:
            one, two = sorted((first(key), first(owner.setdefault(content, key))))
            parent[two] = one
    return {key: first(key) for key in contents}


def _differential(labels: Table, row: int) -> dict[str, float]:
    """Condition → weight, summing to 1; empty where nobody labelled the case. Raises InputError naming the row."""
    text = known(labels.column(DIFFERENTIAL)[row])
    if not text:
        return {}
    try:
        found = ast.literal_eval(text)  # builds literals only: nothing in a table is run
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        found = None
    if not isinstance(found, dict) or not _is_weighted(found):
        raise InputError(
            f"{labels.row(row)}: '{DIFFERENTIAL}' is not a dictionary of conditions and their weights, like "
            "{'Eczema': 0.6, 'Tinea': 0.4}; download the table again"
        )
    total = sum(found.values())
    return {name.strip(): weight / total for name, weight in found.items()}


def _is_weighted(found: dict[Any, Any]) -> bool:
    """Whether all keys are words and all values weights, some of them above 0; nothing at all is fine too."""
    if not all(isinstance(name, str) and name.strip() for name in found):
        return False
    weights = [weight for weight in found.values() if type(weight) in (int, float)]
    fine = len(weights) == len(found) and all(0 <= weight < 1e9 for weight in weights)
    return fine and (not found or sum(weights) > 0)


def _classes(differentials: Sequence[dict[str, float]], min_cases: int) -> tuple[str, ...]:
    """Conditions that lead, alone or with others, in enough cases; and `other` where some do not."""
    leads = Counter(name for found in differentials for name in found if found[name] == max(found.values()))
    frequent = {name for name, count in leads.items() if count >= min_cases}
    rare = {name for found in differentials for name in found} - frequent
    names = (*sorted(frequent - {OTHER}), *((OTHER,) if rare or OTHER in frequent else ()))
    if len(names) < 2:
        raise InputError(
            f"{len(frequent)} of {len(frequent | rare)} conditions in '{DIFFERENTIAL}' lead {min_cases} cases or more; "
            "lower min_cases"
        )
    return names


def _soft(differential: dict[str, float], names: tuple[str, ...]) -> dict[str, float]:
    """Soft labels over the classes, the rare conditions added up as `other`; NaN where unlabelled."""
    if not differential:
        return one_hot(None, names)
    labels = dict.fromkeys(names, 0.0)
    for name, weight in differential.items():
        labels[name if name in labels else OTHER] += weight
    return labels


def _attributes(table: Table, row: int) -> dict[str, str]:
    """What the contributor said: of several body parts none is known to be the one that is seen."""
    sites = [site for site in SITES if table.column(f"body_parts_{site}")[row].upper() == "YES"]
    return {
        "age": AGES.get(table.column("age_group")[row], ""),
        "sex": sex(table.column("sex_at_birth")[row]),
        "site": sites[0] if len(sites) == 1 else "several" if sites else "",
    }


def _skin(labels: Table, label_row: int, table: Table, row: int) -> dict[str, str]:
    """Skin type as dermatologists see it (the lower median of up to three) and as reported; Monk skin tones."""
    columns = [labels.column(f"dermatologist_fitzpatrick_skin_type_label_{number}") for number in (1, 2, 3)]
    seen = _filled(skin_type(column[label_row]) for column in columns)
    return {
        "skin_type": median_low(seen) if seen else "",
        "skin_type_reported": skin_type(table.column("fitzpatrick_skin_type")[row]),
        "skin_tone_india": _monk(labels.column("monk_skin_tone_label_india")[label_row]),
        "skin_tone_us": _monk(labels.column("monk_skin_tone_label_us")[label_row]),
    }


def _filled(values: Iterable[str]) -> list[str]:
    return [value for value in values if value]


def _monk(value: str) -> str:
    """A tone of the Monk scale, `1` to `10`; else empty."""
    tone = value.removesuffix(".0")
    return tone if tone in {str(number) for number in range(1, 11)} else ""
