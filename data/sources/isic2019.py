"""ISIC 2019: 25,331 dermatoscopic photographs in eight diagnoses, of HAM10000, BCN20000 and MSK.

Raw layout as published: `ISIC_2019_Training_GroundTruth.csv` (one-hot), `ISIC_2019_Training_Metadata.csv` and the
JPEGs in `ISIC_2019_Training_Input/`, some of which are called `…_downsampled.jpg`. Where
`ISIC_2019_Test_GroundTruth.csv` (published years later) lies beside them with its metadata and images, they are
the test split and the training images are cut into train and val (`split=hash`: all are cut by the hash). `UNK` is
a class only where it is used, which is in the test set.

A case is a lesion. No patient ids are published, so a lesion also counts as its own patient, and an image
without a lesion id (MSK, the whole test set) as its own lesion: two of one person may stand in different splits.
HAM10000 is part of this set. Its lesions keep their ids, so that they stand in the split in which `source=ham10000`
puts them and leakage between the two sets is found by patient (with `ids=keyed`, under one keyring). Images
without a lesion id are recognised in another set only if their pixels are equal.
"""

from dataclasses import dataclass
from typing import Literal

from pydantic import Field

from clusters.config import InputError
from clusters.storage import Folder
from data.cases import Case, RawDataset, SourceImage, age_band, one_hot
from data.config import ImportConfig
from data.published import find_images, known, rows_by, sex
from data.tables import Table, read_table, row_image

TITLE = "skin lesions under the dermatoscope, eight diagnoses; contains HAM10000; no patient ids are published"
LICENCE = "CC BY-NC 4.0"
CITATION = (
    "Tschandl et al. 2018, doi:10.1038/sdata.2018.161; Codella et al. 2018, arXiv:1710.05006; "
    "Combalia et al. 2019, arXiv:1908.02288"
)
CASE = (
    "the photographs of one lesion in one diagnosis: the same lesion at another magnification, angle or visit; "
    "an image without a lesion id is its own case"
)
DIAGNOSES = ("MEL", "NV", "BCC", "AK", "BKL", "DF", "VASC", "SCC")
UNK = "UNK"


class Options(ImportConfig):
    """ISIC 2019 as published."""

    split: Literal["official", "hash"] = Field(
        default="official",
        description="official: the published test set, where it lies in raw=, is test; hash: ignore it",
    )


@dataclass(frozen=True)
class _Photograph:
    """One row: its image, its lesion (empty where none is named) and its diagnosis."""

    image: SourceImage
    own_id: str
    lesion: str
    diagnosis: str


def read(config: Options) -> RawDataset:
    """The lesions.

    Raises InputError for a missing table, column or folder, a row that is not one-hot, an image without metadata.
    """
    folder = Folder(config.raw)
    parts = {"Training": _photographs(config, folder, "Training")}
    if "ISIC_2019_Test_GroundTruth.csv" in folder.names():
        parts["Test"] = _photographs(config, folder, "Test")
    used = {photograph.diagnosis for part in parts.values() for photograph in part}
    names = (*DIAGNOSES, UNK) if UNK in used else DIAGNOSES
    cases = []
    for part, photographs in parts.items():
        official = len(parts) > 1 and config.split == "official"
        split = ("test" if part == "Test" else "train_val") if official else None
        cases += _cases(photographs, names, split)
    return RawDataset(LICENCE, CITATION, "multiclass", names, cases, CASE, patient_unit="lesion")


def _photographs(config: Options, folder: Folder, part: str) -> list[_Photograph]:
    """All rows of the training or the test set."""
    table = f"ISIC_2019_{part}_GroundTruth.csv"
    truth = read_table(folder, table)
    about = read_table(folder, f"ISIC_2019_{part}_Metadata.csv")
    inputs = f"ISIC_2019_{part}_Input"
    images = find_images(folder, (inputs, f"{inputs}/{inputs}"))
    about_rows = rows_by(about, "image")
    ages, sexes, sites = (about.column(name) for name in ("age_approx", "sex", "anatom_site_general"))
    lesions = about.column("lesion_id") if part == "Training" else [""] * about.num_rows
    found = []
    for name, row in rows_by(truth, "image").items():
        if name not in about_rows:
            raise InputError(f"{truth.row(row)}: its image has no row in {about.where}; download both tables again")
        other = about_rows[name]
        attributes = {"age": age_band(ages[other]), "sex": sex(sexes[other]), "site": known(sites[other])}
        file = f"{name}.jpg"
        image = row_image(config, images.of(file), row, file, attributes, table)
        found.append(_Photograph(image, name, known(lesions[other]), _diagnosis(truth, row)))
    return found


def _diagnosis(truth: Table, row: int) -> str:
    """The one class of a row of zeros and a one. Raises InputError naming the row."""
    values = {name: truth.column(name)[row] for name in (*DIAGNOSES, UNK)}
    try:
        weights = {name: float(value) for name, value in values.items()}
    except ValueError:
        weights = {}
    if sorted(weights.values()) != [0.0] * len(DIAGNOSES) + [1.0]:
        raise InputError(f"{truth.row(row)}: not one 1 and eight 0 in {', '.join(values)}; download the table again")
    return max(weights, key=lambda name: weights[name])


def _cases(photographs: list[_Photograph], names: tuple[str, ...], split: str | None) -> list[Case]:
    """Photographs by lesion; a lesion that was given two diagnoses is two cases of one patient."""
    diagnoses: dict[str, set[str]] = {}
    groups: dict[tuple[str, str], list[SourceImage]] = {}
    for photograph in photographs:
        lesion = photograph.lesion or photograph.own_id
        diagnoses.setdefault(lesion, set()).add(photograph.diagnosis)
        groups.setdefault((lesion, photograph.diagnosis), []).append(photograph.image)
    return [
        Case(
            key=lesion if len(diagnoses[lesion]) == 1 else f"{lesion}_{diagnosis}",
            patient=lesion,
            images=tuple(images),
            labels=one_hot(diagnosis, names),
            split=split,
        )
        for (lesion, diagnosis), images in groups.items()
    ]
