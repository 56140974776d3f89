"""A folder of DICOM files as an archive exports it: any nesting, any file names, DICOMDIR and reports between.

    python -m data import source=dicom raw=DIR out=DIR [labels=TABLE.csv join=AccessionNumber label=COLUMN]

Files are known by what they hold, not by their names. Patient, case and a few attributes come from the tags:
sex, age band, view, laterality, modality and body part, of which only the values that the standard defines go
through, and with keyed ids none of those most of whose values are of one patient each. Everything else (names, dates,
UIDs, private tags) stays behind. Labels may come from a table that is joined by a tag.
"""

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Literal

from pydantic import Field, field_validator

from clusters.config import InputError, absolute
from clusters.storage import Folder
from data.attributes import of_one_patient_each
from data.cases import Case, RawDataset, SourceImage
from data.class_names import Whose
from data.config import ImportConfig
from data.dicom.headers import Header, Unreadable, header_of
from data.images import BURNED_IN_MEND
from data.labels import Labels, read_labels
from data.listing import file_image, file_name, list_files, say
from data.processing import in_processes
from data.tables import Table, read_table

TITLE = "any folder of DICOM files; patient, case and attributes from the tags, ids keyed by default"
LICENCE = "not stated"
CITATION = ""
CASE = "what case= says: the images of one study (or series), or each image by itself"
CASES = {
    "study": "the images of one study (StudyInstanceUID): one patient on one occasion",
    "series": "the images of one series (SeriesInstanceUID): one patient, one device, one protocol",
    "image": "one image (SOPInstanceUID)",
}
FILES_PER_TASK = 256  # with few of these, starting processes takes longer than reading headers
Join = Literal["AccessionNumber", "StudyInstanceUID", "PatientID", "SOPInstanceUID"]


class Options(ImportConfig):
    """A DICOM export."""

    raw: str = Field(description="the folder of DICOM files")
    ids: Literal["source", "keyed"] = Field(
        default="keyed", description="source would publish PatientID and UIDs: only for data that is public"
    )
    patient: Literal["PatientID", "none"] = Field(
        default="PatientID", description="none only where nobody knows: each case is then one patient"
    )
    case: Literal["study", "series", "image"] = Field(default="study", description="whose images show one condition")
    # Excluded from dumps: a place of this machine, which the manifest does not tell.
    labels: str = Field(
        default="", exclude=True, description="table with labels, .csv or .parquet; empty: an unlabelled dataset"
    )
    join: Join = Field(default="AccessionNumber", description="tag by which rows of the table belong to images")
    column: str = Field(default="", description="column of the table with the values of that tag; empty: its name")
    label: str = Field(default="", description="column of the table with the label, or several: label=edema,effusion")
    classes: tuple[str, ...] = Field(default=(), description="values that the label may have; empty: those that occur")
    positive: str = Field(default="", description="value that makes the label binary; empty: the second of two")

    @field_validator("labels")
    @classmethod
    def _absolute_table(cls, location: str) -> str:
        return absolute(location) if location else location

    @field_validator("classes", mode="before")
    @classmethod
    def _words(cls, value: object) -> object:
        return [word.strip() for word in value.split(",") if word.strip()] if isinstance(value, str) else value

    @field_validator("positive", "label", mode="before")
    @classmethod
    def _text(cls, value: object) -> object:
        if isinstance(value, (list, tuple)):
            return ",".join(map(str, value))
        return str(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else value


def read(config: Options) -> RawDataset:
    """The cases of an export.

    Raises InputError naming the file's number: no DICOM files, no PatientID, a study of two patients, pixels with
    burned-in text or a face, as the file says (unless burned_in= says otherwise); and for the table what
    `read_labels` raises.
    """
    if bool(config.labels) != bool(config.label):
        raise InputError("labels= (the table) and label= (its column) go together; give both or neither")
    folder = Folder(config.raw)
    headers, unreadable = _sorted_out(config, folder, list(_headers(config, folder)))
    _refuse_burned_in(config, headers)
    groups: dict[str, list[Header]] = {}
    for header in headers:
        groups.setdefault(_case_id(config, header), []).append(header)
    labels = _labels(config, groups)
    left_out = _telling(config, groups)
    cases = []
    for case_id, members in groups.items():
        kept = [{name: value for name, value in one.attributes.items() if name not in left_out} for one in members]
        images = tuple(file_image(config, folder, one.number, one.file, about) for one, about in zip(members, kept))
        patient = case_id if config.patient == "none" else _patient(config, members)
        doubtful = labels.uncertain.get(case_id, frozenset())
        cases.append(Case(case_id, patient, images, labels.of_case[case_id], {}, None, doubtful))
    # What cannot be read belongs to nobody; it is counted among the bad images, and its case dropped.
    for header in unreadable:
        name = file_name(config, header.number, header.file)
        image = SourceImage(name, Unreadable(header.reason), {}, header.file)
        # Not by its number, which changes with every other file that comes or goes.
        nobody = f"unreadable-{hashlib.sha256(header.file.encode('utf-8', 'surrogatepass')).hexdigest()[:20]}"
        cases.append(Case(nobody, nobody, (image,), dict.fromkeys(labels.names, float("nan"))))
    unit = "case" if config.patient == "none" else "patient"
    return RawDataset(LICENCE, CITATION, labels.task, labels.names, cases, CASES[config.case], patient_unit=unit)


def _headers(config: Options, folder: Folder) -> Iterator[Header]:
    """The headers of all files, in the order of their paths."""
    files = list(enumerate(list_files(folder)))
    parts = [files[start : start + FILES_PER_TASK] for start in range(0, len(files), FILES_PER_TASK)]
    for headers in in_processes(partial(_headers_of, folder, config.max_pixels), parts, config.processes):
        yield from headers


def _headers_of(folder: Folder, max_pixels: int, files: Sequence[tuple[int, str]]) -> list[Header]:
    return [header_of(folder, max_pixels, number, file) for number, file in files]


def _sorted_out(config: Options, folder: Folder, found: list[Header]) -> tuple[list[Header], list[Header]]:
    """The images and the unreadable files; what else lies there is counted and said."""
    all_images = [header for header in found if header.kind == "image"]
    images = _without_copies(folder, all_images)
    copies = len(all_images) - len(images)
    unreadable = [header for header in found if header.kind == "unreadable"]
    counts = {kind: sum(header.kind == kind for header in found) for kind in ("not DICOM", "without pixels")}
    if not images and not unreadable:
        raise InputError(
            f"{config.raw} has no DICOM images: {counts['not DICOM']:,} files are no DICOM, "
            f"{counts['without pixels']:,} have no pixels; raw= takes the folder of the export"
        )
    left_out = [f"{number:,} {kind}" for kind, number in counts.items() if number]
    left_out += [f"{copies:,} copies of an image"] if copies else []
    if left_out:
        say(config, f"{len(images):,} images; left out {', '.join(left_out)}")
    return images, unreadable


def _without_copies(folder: Folder, headers: list[Header]) -> list[Header]:
    """The files but those that lie there a second time, byte for byte.

    UIDs alone do not tell: some converters write the same one into every file. So only where they agree are files
    compared, by size and then by hash.
    """

    def uids(header: Header) -> tuple[str, ...]:
        return header.patient, header.study, header.series, header.instance or header.file

    times = Counter(map(uids, headers))
    sizes = {header.file: folder.size(header.file) for header in headers if times[uids(header)] > 1}
    alike = Counter((uids(header), sizes[header.file]) for header in headers if header.file in sizes)
    known = set()
    kept = []
    for header in headers:
        if header.file in sizes and alike[same := (uids(header), sizes[header.file])] > 1:
            content = (*same, folder.sha256(header.file))
            if content in known:
                continue
            known.add(content)
        kept.append(header)
    return kept


def _refuse_burned_in(config: Options, headers: list[Header]) -> None:
    flagged = [header for header in headers if header.burned_in]
    if flagged and config.burned_in == "refuse":
        raise InputError(
            f"{len(flagged):,} of {len(headers):,} images say that text is burned into their pixels or that somebody "
            "can be recognized in them, the first: "
            f"{file_name(config, flagged[0].number, flagged[0].file)}; {BURNED_IN_MEND}"
        )


def _case_id(config: Options, header: Header) -> str:
    """The UID of the case. Raises InputError where the file has none."""
    uid = {"study": header.study, "series": header.series, "image": header.instance or header.file}[config.case]
    if not uid:
        raise InputError(
            f"{file_name(config, header.number, header.file)} has no {config.case.title()}InstanceUID, so nothing says "
            "which images belong together; mend it or give case=image"
        )
    return "".join(letter if letter.isalnum() else "-" for letter in uid) if config.ids == "source" else uid


def _telling(config: Options, groups: dict[str, list[Header]]) -> set[str]:
    """The attributes that no import with keyed ids may have. They are left out, which is said: no attrs= lists them."""
    if config.ids == "source":
        return set()
    images = [(case_id, header) for case_id, members in groups.items() for header in members]
    patients = [case_id if config.patient == "none" else header.patient for case_id, header in images]
    left_out = set()
    for name in images[0][1].attributes if images else ():
        if told := of_one_patient_each([header.attributes[name] for _, header in images], patients):
            left_out.add(name)  # never age, which has ten bands
            say(config, f"left out {name}, which {told}")
    return left_out


def _patient(config: Options, members: list[Header]) -> str:
    """The one patient of a case."""
    for header in members:
        name = file_name(config, header.number, header.file)
        if not header.patient:
            raise InputError(
                f"{name} (in the order of the paths) has no PatientID; fill it in or take the file out, for a patient "
                "must not stand in two splits (patient=none only where nobody knows)"
            )
        if header.patient != members[0].patient:
            first = file_name(config, members[0].number, members[0].file)
            raise InputError(f"{first} and {name} are of one {config.case} but of two patients; mend their PatientID")
    return members[0].patient


def _labels(config: Options, groups: dict[str, list[Header]]) -> Labels:
    """The labels of each case, from the rows that a tag of its images joins."""
    if not config.labels:
        return read_labels(Table("", {}, 0), dict.fromkeys(groups, ()), "")
    parent, _, name = config.labels.rpartition("/")
    table = read_table(Folder(parent or "/"), name)
    column = config.column or config.join
    rows_of = table.group(table.column(column))
    rows = {
        case_id: sorted({row for one in members if (tag := one.tag(config.join)) for row in rows_of.get(tag, [])})
        for case_id, members in groups.items()
    }
    without = sum(not found for found in rows.values())
    if without == len(rows):
        raise InputError(
            f"no row of {table.where} joins an image: no '{column}' is the {config.join} of one; "
            "check join= and column= (a spreadsheet drops leading zeros)"
        )
    if without:
        say(config, f"{without:,} of {len(rows):,} cases have no row in the table and no label")
    patients = {case: case if config.patient == "none" else members[0].patient for case, members in groups.items()}
    whose = Whose(patients, (column,)) if config.ids == "keyed" else None
    return read_labels(table, rows, config.label, config.classes, config.positive, whose)
