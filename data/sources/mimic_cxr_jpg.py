"""MIMIC-CXR-JPG: 377,110 chest radiographs of 227,827 studies of Beth Israel Deaconess Medical Center.

Johnson et al., arXiv:1901.07042, PhysioNet doi:10.13026/jsn5-t979. Raw layout as published:
`mimic-cxr-2.0.0-split.csv.gz`, `-metadata.csv.gz` and `-chexpert.csv.gz` (or `-negbio.csv.gz`; each also
unpacked, without `.gz`), and the images at `files/p10/p10000032/s50414267/<dicom_id>.jpg`.

A case is a study. Labels, and what blank and uncertain mean, are as in CheXpert; a study whose report could
not be labelled is unlabelled. Sex and age are not part of this dataset (they are in MIMIC-IV).
"""

from typing import Literal

from pydantic import Field

from clusters.config import InputError
from clusters.storage import Folder
from data.cases import Case, RawDataset
from data.config import ImportConfig
from data.published import rows_by
from data.sources.chexpert import FINDINGS, finding_labels
from data.tables import Table, read_table, row_image

TITLE = "chest radiographs of Beth Israel Deaconess, fourteen findings as in CheXpert"
LICENCE = "PhysioNet Credentialed Health Data License 1.5.0"
CITATION = "Johnson et al. 2019, arXiv:1901.07042, doi:10.13026/jsn5-t979"
CASE = "the views of one study: the same chest at the same visit"
SPLITS = {"train": "train", "validate": "val", "test": "test"}


class Options(ImportConfig):
    """MIMIC-CXR-JPG as published."""

    labeller: Literal["chexpert", "negbio"] = Field(
        default="chexpert", description="which of the two published label tables is read"
    )
    blank: Literal["zero", "unlabelled"] = Field(
        default="zero", description="what a finding that the report does not mention counts as"
    )


def read(config: Options) -> RawDataset:
    """The studies.

    Raises InputError for a missing table, column or folder, an id that is no number, a split or label of
    another name, a study in two splits or of two patients, or a study or image that is listed twice.
    """
    folder = Folder(config.raw)
    names = folder.names()
    table = _table(folder, names, "split")
    views = _views(_table(folder, names, "metadata"))
    labelled = _table(folder, names, config.labeller)
    label_rows = rows_by(labelled, "study_id")
    if "files" not in names:
        raise InputError(f"{config.raw} has no folder files/ with the images; unpack them there")

    images, files = folder / "files", list(rows_by(table, "dicom_id"))
    cases = []
    for study, rows in table.group(table.column("study_id")).items():
        subject, split = table.agreed("subject_id", rows), table.agreed("split", rows)
        if not (subject.isdigit() and study.isdigit()):  # they make up the path of the images
            raise InputError(f"{table.row(rows[0])}: subject_id or study_id is not a whole number")
        if split not in SPLITS:
            raise InputError(f"{table.row(rows[0])}: 'split' is none of {', '.join(SPLITS)}")
        labels: dict[str, float] = {finding: float("nan") for finding in FINDINGS}
        uncertain: frozenset[str] = frozenset()
        if study in label_rows:
            labels, uncertain = finding_labels(labelled, [label_rows[study]], config.blank)
        place = f"p{subject[:2]}/p{subject}/s{study}"
        found = tuple(
            row_image(config, images, row, f"{place}/{files[row]}.jpg", {"view": views.get(files[row], "")})
            for row in rows
        )
        cases.append(Case(f"s{study}", f"p{subject}", found, labels, {}, SPLITS[split], uncertain))
    return RawDataset(LICENCE, CITATION, "multilabel", FINDINGS, cases, CASE)


def _table(folder: Folder, names: list[str], what: str) -> Table:
    """A published table, packed or unpacked."""
    plain = f"mimic-cxr-2.0.0-{what}.csv"
    return read_table(folder, plain if plain in names else f"{plain}.gz")


def _views(metadata: Table) -> dict[str, str]:
    """View of each image; a left lateral (LL) is a lateral."""
    views = (view.lower() for view in metadata.column("ViewPosition"))
    return dict(zip(metadata.column("dicom_id"), ("lateral" if view == "ll" else view for view in views)))
