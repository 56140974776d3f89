"""WebDataset tars that already exist: adopted where they lie, without copying or changing them.

    python -m data import source=wds raw=DIR out=DIR patient=json:patient_id label=cls

`index.parquet` and `manifest.json` are written beside the tars. Nothing is done to the images, so what their
files tell (EXIF, comments) and the tars' own JSON stay as they are.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from clusters.config import InputError, nearest
from clusters.storage import Folder
from data.attributes import attribute
from data.cases import Case, RawDataset, SourceImage
from data.class_names import Whose
from data.config import ImportConfig
from data.labels import read_labels
from data.sources.table import SPLIT_NAMES
from data.tables import Table
from data.tars.scan import Member, Sample, Tar, TarImage, Wanted

TITLE = "WebDataset tars that already exist: indexed where they lie, nothing is copied; ids are keyed by default"
LICENCE = "not stated"
CITATION = ""
CASE = "one WebDataset sample with all its images, or the samples that share the field case="
JSON = "json:"
NOT_DONE = ("short_side_px", "jpeg_quality", "images_per_shard", "on_ray", "burned_in")


class Options(ImportConfig):
    """Tars to adopt. A place is `json:FIELD`, a field of each sample's .json member (`a.b` reaches inside)."""

    raw: str = Field(description="folder with the .tar files, also in sub-folders: local path or URL")
    out: str = Field(description="the same folder: index and manifest are written beside the tars")
    ids: Literal["source", "keyed"] = Field(default="keyed", description="keyed unless the ids are public")
    patient: str = Field(
        description="json:FIELD with the patient; key: each case is one patient; none: nobody knows, as key"
    )
    case: str = Field(default="key", description="key: each sample is a case; json:FIELD with the lesion or study")
    label: str = Field(
        default="",
        description="cls (the .cls member), or json:FIELD, or several fields with 1, 0, -1 (uncertain) or nothing: "
        "json:edema,effusion; empty: an unlabelled dataset",
    )
    attrs: tuple[str, ...] = Field(
        default=(), description="JSON fields to keep as attributes, held to what source=table says: attrs=sex,site"
    )
    split: str = Field(
        default="",
        description="json:FIELD with train, val or test; shard: the word in the tar's path; empty: by hash",
    )
    images: tuple[str, ...] = Field(
        default=(), description="extensions of the images to take: images=image.png (and no mask.png); empty: all"
    )

    @field_validator("attrs", "images", mode="before")
    @classmethod
    def _words(cls, value: object) -> object:
        return [word.strip() for word in value.split(",") if word.strip()] if isinstance(value, str) else value

    @field_validator("raw", "out", mode="before")
    @classmethod
    def _no_command(cls, location: object) -> object:
        if isinstance(location, str) and location.strip().lower().startswith("pipe:"):
            raise ValueError("pipe: would run a command; give a folder or the URL of one")
        return location

    @field_validator("patient", "case", "label", "split")
    @classmethod
    def _place(cls, value: str, info: Any) -> str:
        words = {"patient": ("key", "none"), "case": ("key",), "label": ("cls", ""), "split": ("shard", "")}
        if value not in words[info.field_name] and not value.removeprefix(JSON).strip(" ,"):
            raise ValueError("names no field; write json:FIELD")
        if value not in words[info.field_name] and not value.startswith(JSON):
            raise ValueError(f"is none of {', '.join(filter(None, words[info.field_name]))}; a field is json:{value}")
        return value

    @model_validator(mode="after")
    def _in_place(self) -> "Options":
        given = [name for name in NOT_DONE if name in self.model_fields_set]
        if given:
            raise ValueError(f"{given[0]} does nothing here: images and tars stay as they are; leave it out")
        if self.raw.rstrip("/") != self.out.rstrip("/"):
            raise ValueError(f"tars are adopted where they lie; give out={self.raw}")
        return self

    @property
    def wanted(self) -> Wanted:
        """What to take of the tars."""
        places = (self.patient, self.case, self.label, self.split)
        fields = [name for place in places if place.startswith(JSON) for name in field_names(place)]
        images = tuple(name.lower().lstrip(".") for name in self.images)
        return Wanted(images, tuple(dict.fromkeys([*fields, *self.attrs])), self.label == "cls", self.ids == "keyed")


def field_names(place: str) -> list[str]:
    """The fields that `json:a,b` names."""
    return [name.strip() for name in place.removeprefix(JSON).split(",") if name.strip()]


def read(config: Options) -> RawDataset:
    """The cases of the tars. Raises InputError naming tar and member."""
    from data.tars.adopt import scan_tars

    return cases_of(config, scan_tars(config, quiet=True))


def write(config: Options, quiet: bool = True) -> Any:
    """Adopt the tars: write index and manifest beside them; returns data.shards.Imported. Raises InputError."""
    from data.tars.adopt import adopt

    return adopt(config, quiet)


@dataclass(frozen=True)
class Samples(Table):
    """The fields of all samples as columns of text; a row is a sample, called by its tar and first member."""

    names: list[str] = field(default_factory=list)

    def column(self, name: str) -> list[str]:
        """A field of all samples. Raises InputError with the nearest one where no sample has it."""
        if name not in self.columns or len(self.columns[name]) != self.num_rows:
            known = [other for other in self.columns if other != name]
            where = (
                "has a .cls member" if name == "cls" else f"has the field '{name}' in its .json{nearest(name, known)}"
            )
            raise InputError(f"no sample in {self.where} {where}; check the name")
        return self.columns[name]

    def row(self, index: int) -> str:
        """How messages call a sample."""
        return self.names[index]

    def agreed(self, name: str, rows: Sequence[int]) -> str:
        """The one value of a field in the samples of a case; empty if all are. Raises InputError naming both."""
        values = self.column(name)
        filled = [row for row in rows if values[row]]
        for row in filled[1:]:
            if values[row] != values[filled[0]]:
                raise InputError(
                    f"{self.row(filled[0])} and {self.row(row)} are of one case but differ in '{name}'; "
                    "write one value or make them two cases"
                )
        return values[filled[0]] if filled else ""


def cases_of(config: Options, tars: Sequence[Tar]) -> RawDataset:
    """Samples as cases, in the order of the tars, the images of a case in one tar.

    Raises InputError naming tar and member: a case in two tars, a field that no sample has, a sample without
    patient, samples of a case that disagree, a label or split that cannot be one.
    """
    wanted = config.wanted
    samples = [(tar, sample) for tar in tars for sample in tar.samples]
    names = [wanted.where(tar.name, sample.first, sample.key) for tar, sample in samples]
    table = Samples(config.raw, _columns(tars, samples, wanted), len(samples), names=names)
    groups = _groups(config, table, samples)
    patients = _patients(config, table, groups)
    label = config.label if config.label == "cls" else ",".join(field_names(config.label))
    identifying = tuple(field_names(place)[0] for place in (config.patient, config.case) if place.startswith(JSON))
    whose = Whose(patients, identifying) if config.ids == "keyed" else None
    labels = read_labels(table, groups, label, whose=whose)
    patient_of = {row: patients[case_id] for case_id, rows in groups.items() for row in rows}
    of_rows = [patient_of[row] for row in range(len(patient_of))]
    attributes = {name: attribute(table, name, identifying, of_rows, config.ids == "keyed") for name in config.attrs}
    folder = Folder(config.raw)
    cases = []
    for key, rows in groups.items():
        images = tuple(
            _image(folder, samples[row][0], member, wanted, {name: values[row] for name, values in attributes.items()})
            for row in rows
            for member in samples[row][1].images
        )
        split = _split(config, table, samples[rows[0]][0], rows)
        doubtful = labels.uncertain.get(key, frozenset())
        cases.append(Case(key, patients[key], images, labels.of_case[key], {}, split, doubtful))
    unit = "case" if config.patient in ("key", "none") else "patient"
    return RawDataset(LICENCE, CITATION, labels.task, labels.names, cases, _meaning(config), patient_unit=unit)


def _columns(tars: Sequence[Tar], samples: Sequence[tuple[Tar, Sample]], wanted: Wanted) -> dict[str, list[str]]:
    """The wanted fields, as far as any sample has them; the names of the others are there to be hinted at."""
    seen = frozenset().union(*(tar.seen for tar in tars))
    asked = [*wanted.fields, *(["cls"] if wanted.cls else [])]
    there = {name for _, sample in samples for name, value in sample.fields.items() if value or name in seen}
    columns = {name: [sample.fields.get(name, "") for _, sample in samples] for name in asked if name in there}
    return {**columns, **{name: [] for name in sorted(seen) if name not in asked}}


def _groups(config: Options, table: Samples, samples: Sequence[tuple[Tar, Sample]]) -> dict[str, list[int]]:
    """Rows of each case. A sample without the field is a case of its own."""
    if config.case == "key":
        return {sample.key: [row] for row, (_, sample) in enumerate(samples)}
    name = field_names(config.case)[0]
    values = table.column(name)
    groups = table.group(value or f"key:{sample.key}" for value, (_, sample) in zip(values, samples))
    for rows in groups.values():
        for row in rows:
            if samples[row][0] is not samples[rows[0]][0]:
                raise InputError(
                    f"{table.row(rows[0])} and {table.row(row)} have the same '{name}' in two tars; a case must lie in "
                    "one: write the tars again sorted by it, or give case=key"
                )
    return groups


def _patients(config: Options, table: Samples, groups: dict[str, list[int]]) -> dict[str, str]:
    if config.patient in ("key", "none"):
        return {case: case for case in groups}
    name = field_names(config.patient)[0]
    values = table.column(name)
    for row, value in enumerate(values):
        if not value:
            raise InputError(
                f"{table.row(row)} has no patient in '{name}'; fill it in, for a patient must not stand in two splits"
            )
    return {case: table.agreed(name, rows) for case, rows in groups.items()}


def _split(config: Options, table: Samples, tar: Tar, rows: Sequence[int]) -> str | None:
    """The official split of a case, if there is one."""
    if not config.split:
        return None
    if config.split == "shard":
        words = tar.name.lower().replace("/", "-").replace("_", "-").replace(".", "-").split("-")
        found = {SPLIT_NAMES[word] for word in words if word in SPLIT_NAMES}
        if len(found) != 1:
            raise InputError(f"split=shard: {tar.name} has not one of the words train, val, test in its path")
        return found.pop()
    name = field_names(config.split)[0]
    value = table.agreed(name, rows).lower()
    if value and value not in SPLIT_NAMES:
        raise InputError(f"{table.row(rows[0])}: '{name}' is none of train, val, test")
    return SPLIT_NAMES[value] if value else None


def _image(folder: Folder, tar: Tar, member: Member, wanted: Wanted, attributes: dict[str, str]) -> SourceImage:
    read = TarImage(folder, tar.name, member)
    return SourceImage(wanted.where(tar.name, member.number, member.name), read, attributes, member.name)


def _meaning(config: Options) -> str:
    if config.case == "key":
        return "the images of one WebDataset sample, as whoever wrote the tars put them together"
    return f"the images of the samples of one tar with the same '{field_names(config.case)[0]}'"
