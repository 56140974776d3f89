"""VinDr-CXR: 18,000 frontal chest radiographs of two hospitals in Hanoi, read by radiologists.

Nguyen et al., Scientific Data 9, 429 (2022). Raw layout as published on PhysioNet: `train/<image_id>.dicom`,
`test/<image_id>.dicom`, `annotations/image_labels_train.csv` (one row an image and reader, three readers) and
`annotations/image_labels_test.csv` (one row an image, the consensus of five).

An image is its own case and its own patient, because no patient id is published: two radiographs of one person
may stand in different splits, and nobody outside the hospitals can know. The label of a training image is what
most of its readers say (`vote=majority`); with `vote=agreed` a finding on which they differ is NaN and marked
as uncertain. Sex and age stand in some DICOM headers only and are not taken over.
"""

from collections.abc import Sequence
from typing import Literal

from pydantic import Field

from clusters.config import InputError
from clusters.storage import Folder
from data.cases import Case, RawDataset
from data.config import ImportConfig
from data.tables import Table, read_table, row_image

TITLE = "frontal chest radiographs (DICOM) of two hospitals in Hanoi, 28 labels of three readers"
LICENCE = "PhysioNet Credentialed Health Data License 1.5.0"
CITATION = "Nguyen et al. 2022, doi:10.1038/s41597-022-01498-w"
CASE = "one radiograph; no patient ids are published, so nothing says which radiographs belong together"
FINDINGS = (
    "Aortic enlargement",
    "Atelectasis",
    "Calcification",
    "Cardiomegaly",
    "Clavicle fracture",
    "Consolidation",
    "Edema",
    "Emphysema",
    "Enlarged PA",
    "ILD",
    "Infiltration",
    "Lung Opacity",
    "Lung cavity",
    "Lung cyst",
    "Mediastinal shift",
    "Nodule/Mass",
    "Pleural effusion",
    "Pleural thickening",
    "Pneumothorax",
    "Pulmonary fibrosis",
    "Rib fracture",
    "Other lesion",
    "COPD",
    "Lung tumor",
    "Pneumonia",
    "Tuberculosis",
    "Other diseases",
    "No finding",
)
ALSO_CALLED = {"Other diseases": "Other disease"}  # so in the test table
PARTS = {"train": "train_val", "test": "test"}
VALUES = {"0": 0.0, "0.0": 0.0, "1": 1.0, "1.0": 1.0}


class Options(ImportConfig):
    """VinDr-CXR as published."""

    vote: Literal["majority", "any", "all", "agreed"] = Field(
        default="majority",
        description="how the readers of an image make one label: positive if more than half, any or all of them "
        "say so; agreed: not labelled, and uncertain, where they differ",
    )


def read(config: Options) -> RawDataset:
    """The radiographs.

    Raises InputError for a missing table, column or folder, a label that is neither 0 nor 1, a row without image,
    a reader with two rows for one image.
    """
    folder = Folder(config.raw)
    names = folder.names()
    annotations = folder / "annotations"
    listed = annotations.names()
    parts = [part for part in PARTS if f"image_labels_{part}.csv" in listed] or ["train"]
    cases = []
    for part in parts:
        name = f"image_labels_{part}.csv"
        table = read_table(annotations, name)
        if part not in names:
            raise InputError(f"{config.raw} has no folder {part}/ with the images of {name}; unpack it there")
        votes = {finding: _votes(table, finding) for finding in FINDINGS}
        images = table.column("image_id")
        _check_readers(table, images)
        for image, rows in table.group(images).items():
            labels = {finding: _label([votes[finding][row] for row in rows], config.vote) for finding in FINDINGS}
            uncertain = frozenset(finding for finding, value in labels.items() if value is None)
            values = {finding: float("nan") if value is None else value for finding, value in labels.items()}
            found = row_image(config, folder / part, rows[0], f"{image}.dicom", {"view": "pa"}, name)
            cases.append(Case(image, image, (found,), values, {}, PARTS[part], uncertain))
    return RawDataset(LICENCE, CITATION, "multilabel", FINDINGS, cases, CASE, patient_unit="image")


def _votes(table: Table, finding: str) -> list[float]:
    """What each row says of a finding."""
    other = ALSO_CALLED.get(finding, finding)
    column = table.column(other if other in table.columns else finding)
    for row, text in enumerate(column):
        if text not in VALUES:
            raise InputError(f"{table.row(row)}: '{finding}' is neither 0 nor 1")
    return [VALUES[text] for text in column]


def _check_readers(table: Table, images: Sequence[str]) -> None:
    """Each reader has one vote; the consensus of the test table counts as one reader."""
    readers = table.columns.get("rad_id") or [""] * table.num_rows
    seen: set[tuple[str, str]] = set()
    for row, vote in enumerate(zip(images, readers)):
        if not vote[0]:
            raise InputError(f"{table.row(row)}: 'image_id' is empty")
        if vote in seen:
            raise InputError(f"{table.row(row)}: the same reader has read this image in a row before; delete one")
        seen.add(vote)


def _label(votes: Sequence[float], vote: Literal["majority", "any", "all", "agreed"]) -> float | None:
    """One label of the votes of an image; None where the readers would have to agree and do not."""
    share = sum(votes) / len(votes)
    if vote == "agreed":
        return share if share in (0, 1) else None
    return float({"majority": share > 0.5, "any": share > 0, "all": share == 1}[vote])
