"""COVID-19 Image Repository of Hannover Medical School: 243 chest radiographs of 71 patients.

Winther et al., doi:10.6084/m9.figshare.12275009. Raw layout: `data.csv` and the PNGs in `images/` (or
`png/`, as in the repository).

A case is a study: the radiographs of one patient on one day (`admission_offset`, in days) in one
projection. Days apart the lungs of these patients change, so images of different days do not show the
same condition. The projection belongs in the key because it is the label here: two projections of one
day would contradict each other.
"""

from clusters.config import InputError
from clusters.storage import Folder
from data.cases import Case, RawDataset, age_band
from data.config import ImportConfig
from data.tables import read_table, row_image

TITLE = "chest radiographs of COVID-19 patients; label: taken anterior-posterior (at the bedside)"
LICENCE = "CC BY 3.0"
CITATION = "Winther et al. 2020, doi:10.6084/m9.figshare.12275009"
CASE = "the radiographs of one patient on one day in one projection: the same lungs on the same day"


class Options(ImportConfig):
    """The repository as published."""


def read(config: Options) -> RawDataset:
    """The studies.

    Raises InputError for a missing table or column, or a row without patient or projection.
    """
    folder = Folder(config.raw)
    table = read_table(folder, "data.csv")
    images = folder / next((name for name in ("images", "png") if name in folder.names()), "images")
    patients, days = table.column("patient_id"), table.column("admission_offset")
    views, files = table.column("projection"), table.column("image_id")

    keys = []
    for row in range(table.num_rows):
        if not patients[row] or views[row] not in ("ap", "pa"):
            what = "projection is neither ap nor pa" if patients[row] else "patient_id is empty"
            raise InputError(f"{table.row(row)}: {what}")
        # Without a day nothing says which images belong together.
        keys.append(f"{patients[row]}_{f'day{days[row]}' if days[row] else files[row]}_{views[row]}")
    cases = []
    for key, rows in table.group(keys).items():
        found = tuple(
            row_image(
                config,
                images,
                row,
                f"{files[row]}.png",
                {
                    "sex": {"f": "female", "m": "male"}.get(table.column("sex")[row], ""),
                    "age": age_band(table.column("age")[row]),
                    "view": views[row],
                    "modality": table.column("modality")[row],
                },
            )
            for row in rows
        )
        cases.append(Case(key, patients[rows[0]], found, {"ap": float(views[rows[0]] == "ap")}))
    return RawDataset(LICENCE, CITATION, "binary", ("ap",), cases, CASE)
