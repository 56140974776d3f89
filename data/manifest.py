"""`manifest.json`: what a dataset is, what was done to its images, and the hash of each of its files.

It is written last, so a folder without a valid one is not a dataset.
"""

import hashlib
import json
import re
from collections.abc import Iterable
from typing import Any

from pydantic import Field, SerializerFunctionWrapHandler, ValidationError, model_serializer

from clusters.config import Config, InputError
from clusters.storage import Folder
from data.config import NAME
from data.plan import SCHEMA_VERSION

MANIFEST = "manifest.json"
INDEX = "index.parquet"

# What counts as a patient in datasets that were imported before their manifests told it.
WITHOUT_PATIENTS = {
    **{"ham10000": "lesion", "isic2019": "lesion", "scin": "case"},
    **dict.fromkeys(("ddi", "fitzpatrick17k", "vindr_cxr"), "image"),
}
STEERS = re.compile(r"[\x00-\x1f\x7f-\x9f]")
"""What is no character but a command to a terminal."""


class FileRecord(Config):
    """One file of the dataset."""

    size: int = Field(description="bytes")
    sha256: str
    rest_sha256: str | None = Field(
        default=None,
        description="of a shard's bytes that are no image of the index, in their order: with the hashes of the images "
        "it stands for the whole file, so that verifying hashes each byte once",
    )

    @model_serializer(mode="wrap")
    def _as_before(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Without a hash of the rest nothing is said of it: manifests from before there was one keep their bytes."""
        values = dump(self)
        return {name: value for name, value in values.items() if name != "rest_sha256" or value is not None}


class Counts(Config):
    """How much there is, in all or in one split."""

    cases: int
    images: int
    patients: int


class Quarantined(Config):
    """Raw images that could not be used and are not in the dataset."""

    count: int
    reasons: dict[str, int] = Field(description="number of images by reason")
    rows: list[str] = Field(description="the first 100, as 'name: reason'")
    dropped_cases: int = Field(description="cases left without an image")


class Manifest(Config):
    """The content of `manifest.json`; `sha256` is the hash of all the rest and the dataset's fingerprint."""

    schema_version: int
    name: str
    source: str
    licence: str
    citation: str
    task: str
    labels: list[str]
    case: str = Field(description="what a case is, and why two images of it show the same condition")
    counts: Counts
    splits: dict[str, Counts]
    images: dict[str, Any] = Field(description="how the images were processed")
    ids: str = Field(description="'source' (as published) or 'keyed' (HMAC-SHA256)")
    split: dict[str, Any] = Field(description="salt_id, fractions, and the unit where that is no patient")
    quarantined: Quarantined
    duplicates: dict[str, int] = Field(
        description="images whose pixels stand in the dataset before, and pairs of cases that look almost alike"
    )
    settings: dict[str, Any] = Field(description="the import's settings that determine the dataset")
    plan: str = Field(description="fingerprint of settings and case list, to know an import again")
    files: dict[str, FileRecord]
    sha256: str = ""

    @property
    def patient_unit(self) -> str:
        """What counts as a patient: `patient`, or where nobody says who is who `lesion`, `case`, `image`, `slide`."""
        return str(self.split.get("unit", WITHOUT_PATIENTS.get(self.source, "patient")))

    @property
    def shards(self) -> dict[int, str]:
        """File name of each shard by its number in the index."""
        return shard_numbers(self.files)


def shard_numbers(files: Iterable[str]) -> dict[int, str]:
    """Shards by number: that in the name of ours (one may be missing); adopted tars are counted as they are sorted."""
    names = sorted(name for name in files if name.endswith(".tar"))
    numbers = [int(match[1]) for name in names if (match := re.fullmatch(r"shard-(\d{6,})\.tar", name))]
    return dict(zip(numbers if len(numbers) == len(names) else range(len(names)), names))


def seal(manifest: Manifest) -> Manifest:
    """The manifest with its own hash."""
    return manifest.model_copy(update={"sha256": _own_hash(manifest.model_dump(mode="json"))})


def manifest_bytes(manifest: Manifest) -> bytes:
    """The one spelling of a manifest; any other byte in the file is damage."""
    return (json.dumps(manifest.model_dump(mode="json"), indent=2) + "\n").encode()


def read_manifest(folder: Folder) -> Manifest:
    """Read and check a manifest. Raises InputError where there is none or a byte of it was altered."""
    where = folder.file(MANIFEST)
    try:
        content = folder.read(MANIFEST)
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(
            f"{folder.location} has no {MANIFEST}: not a dataset folder, or its import did not finish; "
            "run python -m data import again"
        ) from None
    try:
        values = json.loads(content)
        version = values.get("schema_version")
        if version != SCHEMA_VERSION:
            raise InputError(f"{where} has schema_version {version}, this program reads {SCHEMA_VERSION}")
        manifest = Manifest.model_validate(values)
    except InputError:
        raise
    except (ValueError, AttributeError, ValidationError):
        raise InputError(f"{where} is damaged (not a manifest); copy it again or import again") from None
    if manifest.sha256 != _own_hash(values) or content != manifest_bytes(manifest):
        raise InputError(f"{where} was altered (its own hash differs); copy it again or import again")
    told = [manifest.name] if not NAME.fullmatch(manifest.name) else [*filter(STEERS.search, manifest.labels)]
    if told:
        raise InputError(f"{where}: {told[0]!r} is no name of a dataset or label; ask whoever made it for another")
    return manifest


def check_files(folder: Folder, manifest: Manifest) -> None:
    """Raise InputError for a file of the dataset that is missing or has another size; lists the folder, no more."""
    sizes = folder.sizes()
    for name, record in manifest.files.items():
        if name not in sizes:
            raise InputError(f"{folder.file(name)} is missing; copy the dataset or import it again")
        if sizes[name] != record.size:
            raise InputError(
                f"{folder.file(name)} has {sizes[name]:,} bytes, the manifest says {record.size:,}; "
                "copy the dataset or import it again"
            )


def _own_hash(values: dict[str, Any]) -> str:
    rest = {key: value for key, value in values.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
