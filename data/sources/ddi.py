"""DDI, Diverse Dermatology Images: 656 biopsy-proven photographs of 570 patients, chosen to balance skin tones.

Daneshjou et al.: Disparities in dermatology AI performance on a diverse, curated clinical image set, Science
Advances 8, eabq6147 (2022). Raw layout as published: `ddi_metadata.csv` (its first column has no name) among the
PNGs in `ddidiversedermatologyimages/`, which may be given itself or as the folder around it.

Which images are of one patient or lesion is not published, so each image is its own case. The set is meant for
evaluation, so all of it is test; and as patients with several photographs cannot be told apart, `split=hash` may put
one patient into two splits.
"""

from typing import Literal

from pydantic import Field

from clusters.config import InputError
from clusters.storage import Folder
from data.cases import Case, RawDataset
from data.config import ImportConfig
from data.published import find_images, known, rows_by
from data.tables import read_table, row_image

TITLE = "photographs of skin disease in balanced skin tones, for evaluation; label: malignant"
LICENCE = "Stanford University DDI research use agreement: no commercial use, not to be passed on"
CITATION = "Daneshjou et al. 2022, doi:10.1126/sciadv.abq6147"
CASE = "one photograph: which of them show one lesion or patient is not published"
TABLE = "ddi_metadata.csv"
FOLDER = "ddidiversedermatologyimages"
LABEL = "malignant"
TRUTH = {"true": 1.0, "1": 1.0, "false": 0.0, "0": 0.0}
# Fitzpatrick types I-II, III-IV and V-VI, as published.
SKIN_TONES = ("12", "34", "56")


class Options(ImportConfig):
    """DDI as published."""

    split: Literal["official", "hash"] = Field(
        default="official", description="official: all of it is test, as its authors mean it; hash: ignore that"
    )


def read(config: Options) -> RawDataset:
    """The photographs.

    Raises InputError for a missing table, column or folder, an unknown skin tone, or a label that is not true or false.
    """
    folder = Folder(config.raw)
    if TABLE not in folder.names() and (folder / FOLDER).exists(TABLE):
        folder = folder / FOLDER
    table = read_table(folder, TABLE)
    images = find_images(folder, (".", FOLDER, "images"))
    tones, malignant, diseases = (table.column(name) for name in ("skin_tone", "malignant", "disease"))
    cases = []
    for file, row in rows_by(table, "DDI_file").items():
        label = TRUTH.get(malignant[row].lower())
        if label is None:
            raise InputError(f"{table.row(row)}: malignant is neither True nor False")
        tone = known(tones[row]).removesuffix(".0")
        if tone and tone not in SKIN_TONES:
            raise InputError(f"{table.row(row)}: skin_tone is none of {', '.join(SKIN_TONES)}")
        attributes = {"skin_type": tone, "diagnosis": known(diseases[row]), "confirmed_by": "histo"}
        image = row_image(config, images.of(file), row, file, attributes)
        key = file.rpartition(".")[0]
        cases.append(Case(key, key, (image,), {LABEL: label}, split="test" if config.split == "official" else None))
    return RawDataset(LICENCE, CITATION, "binary", (LABEL,), cases, CASE, patient_unit="image")
