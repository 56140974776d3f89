"""PAD-UFES-20: 2,298 smartphone photographs of 1,641 skin lesions of 1,373 patients in six diagnoses.

Pacheco et al., Data in Brief 32, 106221 (2020). Raw layout as published and unpacked: `metadata.csv` and the PNGs in
`images/imgs_part_1/` to `_3/` (on Kaggle `imgs_part_1/imgs_part_1/` …). `img_id` includes `.png`.

A case is a lesion. Of 26 columns only those are kept that evaluation needs: age band, sex, skin type, site and
whether a biopsy confirmed the diagnosis. Habits, ancestry and the water supply of patients are not.
"""

from clusters.config import InputError
from clusters.storage import Folder
from data.cases import Case, RawDataset, age_band, one_hot
from data.config import ImportConfig
from data.published import find_images, known, rows_by, sex, skin_type
from data.tables import Table, read_table, row_image

TITLE = "skin lesions photographed with smartphones, six diagnoses, with skin types"
LICENCE = "CC BY 4.0"
CITATION = "Pacheco et al. 2020, doi:10.1016/j.dib.2020.106221"
CASE = "the photographs of one lesion of one patient: the same lesion from another angle or distance"
DIAGNOSES = ("ACK", "BCC", "MEL", "NEV", "SCC", "SEK")
PARTS = ("imgs_part_1", "imgs_part_2", "imgs_part_3")
IMAGE_FOLDERS = ("images", *(f"images/{part}" for part in PARTS), *PARTS, *(f"{part}/{part}" for part in PARTS))
# The paper: cancers are proven by biopsy, the rest decided by several dermatologists.
CONFIRMED_BY = {"true": "histo", "false": "consensus"}


class Options(ImportConfig):
    """PAD-UFES-20 as published."""


def read(config: Options) -> RawDataset:
    """The lesions.

    Raises InputError for a missing table, column or folder, a row without patient, an unknown diagnosis, or
    two diagnoses of one lesion.
    """
    folder = Folder(config.raw)
    table = read_table(folder, "metadata.csv")
    images = find_images(folder, IMAGE_FOLDERS)
    files = list(rows_by(table, "img_id"))
    patients, lesions = table.column("patient_id"), table.column("lesion_id")
    keys = []
    for row, file in enumerate(files):
        if not patients[row]:
            raise InputError(f"{table.row(row)}: patient_id is empty; a patient must not stand in two splits")
        # Without a lesion nothing says which images belong together.
        keys.append(f"{patients[row]}_{lesions[row]}" if lesions[row] else file.rpartition(".")[0])

    cases = []
    for key, rows in table.group(keys).items():
        diagnosis = table.agreed("diagnostic", rows)
        if diagnosis not in DIAGNOSES:
            raise InputError(f"{table.row(rows[0])}: diagnostic is none of {', '.join(DIAGNOSES)}")
        found = tuple(
            row_image(config, images.of(files[row]), row, files[row], _attributes(table, row)) for row in rows
        )
        cases.append(Case(key, patients[rows[0]], found, one_hot(diagnosis, DIAGNOSES)))
    return RawDataset(LICENCE, CITATION, "multiclass", DIAGNOSES, cases, CASE)


def _attributes(table: Table, row: int) -> dict[str, str]:
    return {
        "age": age_band(table.column("age")[row]),
        "sex": sex(table.column("gender")[row]),
        "skin_type": skin_type(table.column("fitspatrick")[row]),
        "site": known(table.column("region")[row]).lower(),
        "confirmed_by": CONFIRMED_BY.get(table.column("biopsed")[row].lower(), ""),
    }
