"""From keyed ids back to those of the source: a table beside the keyring, and the answers from it.

A lab must be able to get back to its patients; whoever has only the dataset must not. So the table lies
where the keys lie, readable by the user alone, one parquet file for each import, named by its plan.
"""

import filecmp
import json
import os
import re
import secrets
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from pydantic import Field, field_validator, model_validator

from clusters.config import Config, InputError, absolute
from clusters.storage import Folder
from data.cases import RawDataset
from data.config import ImportConfig, local_keyring
from data.identities import Identities, keyring_path, read_keyring, whois_folder
from data.manifest import MANIFEST, read_manifest
from data.plan import WORK, Plan
from data.splits import salt_id

COLUMNS = ("kind", "id", "name", "source")
ROWS_PER_BATCH = 1 << 16
ABOUT = b"manyview"
# The key of a case, or the name of one of its members in a shard.
MEMBER = re.compile(r"([0-9a-f]{20})(\.\d+\.[a-z0-9]+|\.json)?")
# A name that images of every import have, as messages with keyed ids call them.
BARE = re.compile(r"(.* )?(row|file) [\d,]+", re.IGNORECASE)


class WhoisConfig(Config):
    """Where to look ids up."""

    keyring: str = Field(default="", description="the keyring of the import; empty: the user's own")
    data: str = Field(default="", description="only this dataset, finished or not; empty: all of the keyring")

    @model_validator(mode="before")
    @classmethod
    def _local_keyring(cls, values: object) -> object:
        return local_keyring(values)

    @field_validator("keyring", "data")
    @classmethod
    def _absolute(cls, location: str) -> str:
        return absolute(location) if location else location


def write_whois(raw: RawDataset, plan: Plan, config: ImportConfig, identities: Identities) -> None:
    """Write the table of an import, or mend it: patients, cases and images with what the source calls them.

    With published ids there is nothing to write. Raises InputError where the table cannot be written: an
    import that nobody can lead back to its patients is not begun.
    """
    if identities.keyring is None:
        return
    path = whois_folder(identities.keyring) / f"{plan.fingerprint[:12]}.parquet"
    about = {"name": config.name or config.source, "source": config.source, "raw": config.raw}
    try:
        _write_whole(path, _rows(raw, identities), about)
    except OSError as error:
        raise InputError(
            f"cannot write the table of source ids {path}: {error.strerror or type(error).__name__}; "
            "keep the keyring in a folder that you may write to"
        ) from None


def whois(words: Sequence[str], config: WhoisConfig) -> dict[str, list[str]]:
    """For each id (a patient, case or member) or image name (`row 17`) a line for each match, none if unknown.

    Raises InputError where there is no table to look in, and for an image name without data=: each import has its own
    row 17.
    """
    bare = [word for word in words if BARE.fullmatch(word)]
    if bare and not config.data:
        raise InputError(f"'{bare[0]}' is in every import; give data=DIR, the out= of the one that is meant")
    found: dict[str, list[str]] = {word: [] for word in words}
    for path in _tables(keyring_path(config.keyring), config):
        for word, lines in _matches(path, words).items():
            found[word] += lines
    return found


def _rows(raw: RawDataset, identities: Identities) -> Iterator[tuple[str, str, str, str]]:
    """Kind, keyed id, name in messages and source id of every patient, case and image; an image has its case's id."""
    patients = set()
    for case in raw.cases:
        key = identities.case(case.key)
        if case.patient not in patients:
            patients.add(case.patient)
            yield "patient", identities.patient(case.patient), "", case.patient
        yield "case", key, "", case.key
        for image in case.images:
            yield "image", key, image.name, image.file


def _write_whole(path: Path, rows: Iterator[tuple[str, str, str, str]], about: dict[str, str]) -> None:
    """Write a table for this user's eyes, whole or not at all, a batch of rows in memory at a time."""
    import pyarrow as pa
    import pyarrow.parquet as parquet

    schema = pa.schema([(name, pa.string()) for name in COLUMNS], {ABOUT: json.dumps(about).encode()})
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    if path.parent.stat().st_mode & 0o077:
        path.parent.chmod(0o700)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            with parquet.ParquetWriter(file, schema, compression="zstd") as writer:
                while batch := list(islice(rows, ROWS_PER_BATCH)):
                    columns = [pa.array([_text(row[place]) for row in batch]) for place in range(len(COLUMNS))]
                    writer.write_batch(pa.record_batch(columns, schema=schema))
            file.flush()
            os.fsync(file.fileno())
        kept = path.exists() and not path.stat().st_mode & 0o077 and filecmp.cmp(temporary, path, shallow=False)
        if not kept:
            temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _text(value: str) -> str:
    """What a file system calls a file is not always Unicode; parquet is."""
    return value if value.isascii() else value.encode("utf-8", "backslashreplace").decode()


def _tables(keyring: Path, config: WhoisConfig) -> list[Path]:
    """The tables to look in. Raises InputError where there is none."""
    folder = whois_folder(keyring)
    if not config.data:
        tables = sorted(folder.glob("*.parquet"))
        if not tables:
            raise InputError(
                f"{folder} has no table of source ids (an import with ids=keyed writes it); give keyring= of the import"
            )
        return tables
    path = folder / f"{_plan_of(Folder(config.data), keyring)[:12]}.parquet"
    if not path.exists():
        raise InputError(
            f"{path} is not there: the table of source ids of {config.data}; "
            "repeat the import's command, which writes it again, or give keyring= of the import"
        )
    return [path]


def _plan_of(dataset: Folder, keyring: Path) -> str:
    """The plan of a dataset, finished or not.

    Raises InputError where there is none yet, and where the dataset carries published ids or other keys.
    """
    if MANIFEST not in dataset.names() and dataset.exists(f"{WORK}/plan.json"):
        return str(dataset.read_json(f"{WORK}/plan.json")["plan"])
    if MANIFEST not in dataset.names():
        raise InputError(
            f"no import into {dataset} got so far that it wrote its table of source ids; look by hand: row N is that "
            "of the table raw= as a spreadsheet shows it, file N the Nth of the files (source=folder: of the images) "
            "in the order of their paths"
        )
    manifest = read_manifest(dataset)
    if manifest.ids == "source":
        raise InputError(f"{dataset} carries the ids as published; there is nothing to look up")
    theirs, ours = manifest.split["salt_id"], salt_id(read_keyring(keyring).salt)
    if theirs != ours:
        raise InputError(f"{dataset} was made with keyring {theirs}, {keyring} is {ours}; give keyring= of the import")
    return manifest.plan


def _matches(path: Path, words: Sequence[str]) -> dict[str, list[str]]:
    """The lines of one table, by the word that they answer."""
    import pyarrow as pa
    import pyarrow.dataset as dataset

    ids = {word: match[1] for word in words if (match := MEMBER.fullmatch(word.lower()))}
    wanted = pa.array(sorted(set(ids.values())), pa.string()), pa.array(sorted(set(words)), pa.string())
    try:
        table = dataset.dataset(path, format="parquet")
        rows = table.to_table(filter=dataset.field("id").isin(wanted[0]) | dataset.field("name").isin(wanted[1]))
        about = json.loads(table.schema.metadata[ABOUT])
    except (pa.ArrowException, OSError, ValueError, KeyError, TypeError):
        raise InputError(
            f"{path} is damaged; remove it and repeat the import's command, which writes it again"
        ) from None
    found: dict[str, list[str]] = {word: [] for word in words}
    for row in rows.to_pylist():
        for word in found:
            if row["name"] == word or row["id"] == ids.get(word):
                found[word].append(_line(row, about))
    return found


def _line(row: dict[str, Any], about: dict[str, str]) -> str:
    """One answer. What the source says is escaped: it could hold anything, a terminal's commands included."""
    source = row["source"] if row["source"].isprintable() else ascii(row["source"])
    name = f", {row['name']}" if row["name"] else ""
    return f"{row['id']}: {row['kind']} {source}{name} ({about['name']}, source={about['source']}, {about['raw']})"
