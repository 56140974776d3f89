"""Kermany: 5,856 chest radiographs of children (pneumonia or not), and 109,309 OCT scans in four classes.

Kermany et al., Cell 172, 1122 (2018), doi:10.17632/rscbjbr9sj. `raw` is the folder that holds `train/`, `test/`
and maybe `val/` (`chest_xray/`, or `OCT2017/` with `part=oct`), each with one folder a class. The copies of the
archive that lie within it (`chest_xray/chest_xray/`, `__MACOSX/`) are not read.

Patients are known by file names alone. `person7_bacteria_25.jpeg` and `person7_virus_30.jpeg` count as two
children: bacteria and virus are numbered apart, each from 1; read so, no child stands in both train/ and
test/, whereas the bare numbers would seem to cross. `IM-0115-0001.jpeg` and `NORMAL2-IM-0115-0001.jpeg` are two
series likewise; in `BACTERIA-1135262-0001.jpeg` and `CNV-1016042-1.jpeg` (another edition, and OCT) the first
number is the patient. None of this is documented by the authors. An image with another name is its own patient.

val/ has 16 radiographs, too few to choose anything by; `split=official` therefore keeps test/ and cuts val from
train/ and val/ together by the hash. Some radiographs are there twice under the names of two children, which is
refused unless `duplicates=keep`. OCT scans of one patient are slices of a volume and nearly alike (what that does
to test results: Tampu et al., Scientific Data 9, 580, 2022); an edition in which patients of train/ occur in
test/ again is refused, and `split=hash` mends it.
"""

import re
from typing import Literal

from pydantic import Field

from clusters.config import InputError
from clusters.storage import Folder
from data.cases import Case, RawDataset, RawFile, SourceImage, one_hot
from data.config import ImportConfig

TITLE = "chest radiographs of children, pneumonia or not (part=oct: OCT scans of the retina, four classes)"
LICENCE = "CC BY 4.0"
CITATION = "Kermany et al. 2018, doi:10.1016/j.cell.2018.02.010"
CASE = "the images of one patient with one diagnosis: the same disease, though nothing says on which day or eye"
FOLDERS = ("train", "val", "test")
CLASSES = {"xray": ("NORMAL", "PNEUMONIA"), "oct": ("CNV", "DME", "DRUSEN", "NORMAL")}
ENDINGS = (".jpeg", ".jpg", ".png")
NAMES = {
    "xray": (
        re.compile(r"(?P<patient>person\d+_(?P<cause>bacteria|virus))_\d+.*"),
        re.compile(r"(?P<patient>(?:normal\d*-)?im-\d+)-\d+.*"),
        re.compile(r"(?P<cause>bacteria|virus)-(?P<patient>\d+)-\d+.*"),
        re.compile(r"normal-(?P<patient>\d+)-\d+.*"),
    ),
    "oct": (re.compile(r"(?:cnv|dme|drusen|normal)-(?P<patient>\d+)-\d+.*"),),
}


class Options(ImportConfig):
    """The folders as published."""

    part: Literal["xray", "oct"] = Field(default="xray", description="chest radiographs or OCT scans")
    split: Literal["official", "folders", "hash"] = Field(
        default="official",
        description="official: test/ is test, val is cut from train/ and val/ by the hash; folders: as they lie; "
        "hash: all is cut by it",
    )


def read(config: Options) -> RawDataset:
    """The patients' images.

    Raises InputError for a folder that is missing, or one that is none of the classes.
    """
    raw = Folder(config.raw)
    folders = [name for name in FOLDERS if name in raw.names()]
    if "train" not in folders:
        raise InputError(f"{config.raw} has no folder train/; raw= takes the folder that holds train/ and test/")
    splits: dict[str, str | None] = {
        "official": {"train": "train_val", "val": "train_val", "test": "test"},
        "folders": {name: name for name in FOLDERS},
        "hash": dict.fromkeys(FOLDERS),
    }[config.split]
    classes = CLASSES[config.part]
    cases = []
    for folder in folders:
        _check_classes(raw / folder, classes)
        for kind in classes:
            for case_id, (patient, images) in _patients(config, raw, f"{folder}/{kind}").items():
                labels = one_hot(kind, classes)
                if config.part == "xray":
                    labels = {"pneumonia": labels["PNEUMONIA"]}
                key = f"{folder}-{kind.lower()}-{case_id}"
                cases.append(Case(key, patient, tuple(images), labels, {}, splits[folder]))
    if config.part == "xray":
        return RawDataset(LICENCE, CITATION, "binary", ("pneumonia",), cases, CASE)
    return RawDataset(LICENCE, CITATION, "multiclass", classes, cases, CASE)


def _check_classes(folder: Folder, classes: tuple[str, ...]) -> None:
    there = {name for name in folder.names() if "." not in name}
    missing = [name for name in classes if name not in there]
    if missing or there - set(classes):
        what = f"no folder {missing[0]}/" if missing else "a folder that is none of the classes"
        raise InputError(f"{folder} has {what}; the classes are {', '.join(classes)}")


def _patients(config: Options, raw: Folder, place: str) -> dict[str, tuple[str, list[SourceImage]]]:
    """Patient and images by what is the same in the names of one class: the patient and, in pneumonia, its cause."""
    folder = raw / place
    found: dict[str, tuple[str, list[SourceImage]]] = {}
    files = [name for name in folder.names() if name.lower().endswith(ENDINGS) and not name.startswith(".")]
    for number, file in enumerate(files, 1):
        patient, cause = _known_by_name(config.part, file)
        case_id = patient if cause in patient else f"{cause}-{patient}"
        name = f"{place}, file {number}" if config.ids == "keyed" else f"{place}/{file}"
        attributes = {"cause": cause} if config.part == "xray" else {}
        image = SourceImage(name, RawFile(folder, file), attributes, f"{place}/{file}")
        found.setdefault(case_id, (patient, []))[1].append(image)
    return found


def _known_by_name(part: str, file: str) -> tuple[str, str]:
    """Patient, and cause of the pneumonia, of a file name."""
    stem = file.rpartition(".")[0].lower()
    for pattern in NAMES[part]:
        match = pattern.fullmatch(stem)
        if match:
            return match["patient"], match.groupdict().get("cause") or ""
    return stem, ""
