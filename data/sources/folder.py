r"""A folder of image files, the class of each being the sub-folder that it lies in. For data without a table.

    python -m data import source=folder raw=DIR patient='(P\d+)_' out=DIR

`raw` holds `CLASS/…` with images at any depth, or, where it has exactly such folders, `train/CLASS/…`,
`val/CLASS/…` and `test/CLASS/…`: these are official splits then (without `val`, that is cut from `train` by the
hash; without `test`, which fine-tuning needs, rename `val` to `test`). Images that lie in no sub-folder, or
labels=none, make a dataset without labels.

Whose an image is stands nowhere but in its path: `patient=` is a regular expression with one group that finds the
patient in the path below raw (`train/nv/P0012_3.jpg`), `case=` one that finds the lesion or study.
"""

import re
from typing import Literal

from pydantic import Field, field_validator

from clusters.config import InputError
from clusters.storage import Folder
from data.cases import Case, RawDataset
from data.class_names import Whose
from data.config import ImportConfig
from data.labels import Labels, read_labels
from data.listing import file_image, file_name, is_hidden, left_out, list_files, say
from data.sources.table import SPLIT_NAMES
from data.tables import Table

TITLE = "any folder of images, one sub-folder a class; ids are keyed by default"
LICENCE = "not stated"
CITATION = ""
CASE = "what case= finds in a patient's paths: images of one lesion or study; without it each image is its own case"
SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".tif", ".tiff", ".bmp", ".webp", ".gif", ".jp2", ".j2k"),
    *(".pgm", ".ppm", ".pnm", ".dcm", ".dicom"),
)
CLASS = "class"
FEWEST_CHARACTERS = 3  # of a patient's id that cannot stand in a class's name by chance
NO_CLASSES = "give labels=none, or raw= a folder whose sub-folders are the classes, with the patients inside of them"


class Options(ImportConfig):
    """A folder of your own."""

    raw: str = Field(description="the folder: raw/CLASS/*.jpg, raw/train/CLASS/*.jpg or raw/*.jpg")
    ids: Literal["source", "keyed"] = Field(default="keyed", description="keyed unless the paths are public")
    patient: str = Field(
        description="regular expression with one group: the patient in an image's path below raw; 'none' only where "
        "nobody knows: each case is then one patient"
    )
    case: str = Field(
        default="", description="regular expression with one group: the lesion or study; empty: each image is its own"
    )
    labels: Literal["folders", "none"] = Field(default="folders", description="what the sub-folders are: classes or no")
    positive: str = Field(
        default="", description="class that makes the label binary (against the rest); empty: the second of two"
    )

    @field_validator("patient", "case")
    @classmethod
    def _one_group(cls, pattern: str) -> str:
        if pattern in ("", "none"):
            return pattern
        try:
            groups = re.compile(pattern).groups
        except re.error as error:
            raise ValueError(f"not a regular expression ({error})") from None
        if groups != 1:
            raise ValueError(r"needs exactly one group in ( ), such as '(P\d+)_'; (?: ) groups without finding")
        return pattern


def read(config: Options) -> RawDataset:
    """The images, by case.

    Raises InputError naming the file's number: no images, a path in which no patient is found, images in no class
    beside images in classes, a case in two classes, class folders that are patients or named after them, and with
    keyed ids ones that are dates, ids or free text.
    """
    folder = Folder(config.raw)
    files = _image_files(config, folder)
    splits, inside = _official_splits(config, files)
    classes = _classes(config, files, inside)
    groups: dict[tuple[str, str], list[int]] = {}
    for number, file in enumerate(files):
        case = _found(config, "case", number, file) if config.case else file
        patient = case if config.patient == "none" else _found(config, "patient", number, file)
        groups.setdefault((patient, case), []).append(number)
    _say_empty(config, folder, files, splits, classes)
    _check_classes(config, files, groups, classes)
    _check_names(config, files, inside, groups, classes)

    keys = {group: _key(config, group) for group in groups}
    patients = {key: key if config.patient == "none" else patient for (patient, _), key in keys.items()}
    whose = Whose(patients) if config.ids == "keyed" else None
    labels = _labels(config, classes, {keys[group]: numbers for group, numbers in groups.items()}, whose)
    cases = []
    for (patient, case), numbers in groups.items():
        images = tuple(file_image(config, folder, number, files[number]) for number in numbers)
        key = keys[patient, case]
        whose = key if config.patient == "none" else patient
        found = {splits[number] for number in numbers}
        if len(found) > 1:
            first, other = _two(config, files, numbers, splits)
            raise InputError(f"{first} and {other} are of one case and lie in two splits; put them in one")
        cases.append(Case(key, whose, images, labels.of_case[key], {}, found.pop()))
    unit = "case" if config.patient == "none" else "patient"
    return RawDataset(LICENCE, CITATION, labels.task, labels.names, cases, CASE, patient_unit=unit)


def _image_files(config: Options, folder: Folder) -> list[str]:
    """The images; what else lies there is counted."""
    there = list_files(folder)
    seen = [file for file in there if not is_hidden(file)]
    files = [file for file in seen if file.lower().endswith(SUFFIXES)]
    passed_over = left_out([file for file in seen if not file.lower().endswith(SUFFIXES)], len(there) - len(seen))
    if not files:
        raise InputError(f"{config.raw} has no images ({', '.join(SUFFIXES)}); there are {passed_over or 'no files'}")
    if passed_over:
        say(config, f"{len(files):,} images; left out {passed_over}")
    return files


def _official_splits(config: Options, files: list[str]) -> tuple[list[str | None], list[str]]:
    """The split of each file, and its path below the folder of the split."""
    tops = {file.partition("/")[0] if "/" in file else "" for file in files}
    named = {top: SPLIT_NAMES[top.lower()] for top in tops if top.lower() in SPLIT_NAMES}
    if "train" not in named.values() or len(named) < 2:
        return [None] * len(files), files
    if len(named) < len(tops):
        raise InputError(
            f"{config.raw} has {', '.join(sorted(named))} and {len(tops - named.keys())} other folders or images "
            "beside them; put each class inside train/, val/ and test/, or rename what are no splits"
        )
    if len(set(named.values())) < len(named):
        twice = [top for top in sorted(named) if list(named.values()).count(named[top]) > 1]
        raise InputError(f"{config.raw} has one split under two names ({', '.join(twice)}); make them one")
    if "val" not in named.values():
        named = {top: "train_val" if split == "train" else split for top, split in named.items()}
    return [named[file.partition("/")[0]] for file in files], [file.partition("/")[2] for file in files]


def _classes(config: Options, files: list[str], inside: list[str]) -> list[str]:
    """The class of each file; empty for all where there are none."""
    if config.labels == "none":
        return [""] * len(files)
    classes = [path.partition("/")[0] if "/" in path else "" for path in inside]
    loose = [number for number, name in enumerate(classes) if not name]
    if loose and len(loose) < len(files):
        raise InputError(
            f"{file_name(config, loose[0], files[loose[0]])} and {len(loose) - 1:,} more lie beside the class folders; "
            "move them into one, or give labels=none"
        )
    return classes


def _say_empty(config: Options, folder: Folder, files: list[str], splits: list[str | None], classes: list[str]) -> None:
    """Say how many sub-folders no class comes from. Not their names: the folder of a patient may be among them."""
    if folder.path is None or not any(classes):  # an object store has no empty folders
        return
    tops = {file.partition("/")[0] for file in files} if splits[0] else {""}
    places = [place for top in tops for place in (folder.path / top).iterdir() if place.is_dir()]
    empty = {place.name for place in places if not is_hidden(place.name)} - set(classes)
    if empty:
        number = "1 sub-folder holds" if len(empty) == 1 else f"{len(empty):,} sub-folders hold"
        say(config, f"{number} no image and {'makes' if len(empty) == 1 else 'make'} no class")


def _found(config: Options, what: Literal["patient", "case"], number: int, file: str) -> str:
    """What the pattern finds in a path."""
    match = re.search(getattr(config, what), file)
    if match is None or not match[1]:
        raise InputError(
            f"{what}= finds nothing in the path of {file_name(config, number, file)} (in the order of the paths); "
            "give a pattern that fits all images, or move this one out"
        )
    return match[1]


def _check_classes(
    config: Options, files: list[str], groups: dict[tuple[str, str], list[int]], classes: list[str]
) -> None:
    """Refuse a case in two classes, and folders that are patients: their names would become public as labels."""
    patients: dict[str, set[str]] = {}
    for (patient, _), numbers in groups.items():
        if len({classes[number] for number in numbers}) > 1:
            first, other = _two(config, files, numbers, classes)
            raise InputError(
                f"{first} and {other} are of one case and lie in two class folders; put them in one, "
                "or let case= tell them apart"
            )
        patients.setdefault(classes[numbers[0]], set()).add(patient)
    if config.patient == "none" or len(patients) < 2:
        return
    whose = {next(iter(found)) for found in patients.values() if len(found) == 1}
    if len(whose) == len(patients) or (len(whose) >= 3 and len(whose) > len(patients) / 2):
        many = "each" if len(whose) == len(patients) else f"{len(whose):,}"
        raise InputError(
            f"{many} of the {len(patients):,} sub-folders of {config.raw} holds one patient, so they seem to be "
            f"patients and not classes; {NO_CLASSES}"
        )


def _check_names(
    config: Options, files: list[str], inside: list[str], groups: dict[tuple[str, str], list[int]], classes: list[str]
) -> None:
    """Refuse, with keyed ids, a class whose name tells a patient in it: what patient= finds in the folder's name.

    Short finds elsewhere in the path are compared as a whole: a patient 1 in the class `grade1` says nothing.
    """
    if config.ids != "keyed" or config.patient == "none":
        return
    for (patient, _), numbers in groups.items():
        whose = patient.lower()
        for number in numbers:
            name, file = classes[number].lower(), files[number]
            if not name:
                continue
            match = re.search(config.patient, file)
            start = len(file) - len(inside[number])  # of the class's name, behind the folder of the split
            within = match is not None and match.start(1) < start + len(name) and match.end(1) > start
            if within or name == whose or (len(whose) >= FEWEST_CHARACTERS and whose in name):
                raise InputError(
                    f"patient= finds the patient of {file_name(config, number, file)} (in the order of the paths) in "
                    "the name of its sub-folder, and classes are published by name: it would tell who the patient is; "
                    f"{NO_CLASSES}"
                )


def _two(config: Options, files: list[str], numbers: list[int], values: list[str] | list[str | None]) -> list[str]:
    """The names of two files of a case that differ in these values."""
    other = next(number for number in numbers if values[number] != values[numbers[0]])
    return [file_name(config, number, files[number]) for number in (numbers[0], other)]


def _key(config: Options, group: tuple[str, str]) -> str:
    """The case's id: a case is counted within its patient, as lesion 1 of everybody."""
    patient, case = group
    if not config.case:  # the path of the image, for ids=source as a key can be
        return re.sub(r"[^A-Za-z0-9_-]+", "-", case.rpartition(".")[0]) if config.ids == "source" else case
    return case if config.patient == "none" else f"{patient}_{case}"


class Files(Table):
    """The class of each file, as a column."""

    def row(self, index: int) -> str:
        """How messages call a file where ids are keyed."""
        return f"file {index + 1}"


def _labels(config: Options, classes: list[str], groups: dict[str, list[int]], whose: Whose | None) -> Labels:
    """The classes as labels, as a table with one column would give them; `whose` are the cases where ids are keyed."""
    table = Files(config.raw, {CLASS: classes}, len(classes))
    if not any(classes):
        return read_labels(table, groups, "")
    if len(set(classes)) == 1:
        raise InputError(f"{config.raw} has one sub-folder, which tells no classes apart; give labels=none")
    return read_labels(table, groups, CLASS, tuple(sorted(set(classes))), config.positive, whose)
