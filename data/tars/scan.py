"""Tars that somebody else wrote, looked through without trusting them: members as bytes, never as code.

A WebDataset sample is all the members whose path agrees up to the first dot of the file name.
"""

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, BinaryIO, cast

from clusters.config import InputError
from clusters.storage import Folder
from data.tars.members import IMAGES, hash_of_rest, local_copy, members

MAX_TEXT_BYTES = 16 << 20
COMPRESSED = {b"\x1f\x8b": "gzip -d", b"BZh": "bzip2 -d", b"\xfd7zXZ": "xz -d", b"\x28\xb5\x2f\xfd": "zstd -d"}
# As WebDataset splits a path: everything up to the first dot of the file name is the key.
KEY_AND_EXTENSION = re.compile(r"((?:.*/)?[^./][^./]*)\.([^/]+)")


@dataclass(frozen=True)
class Member:
    """An image in a tar: its place among the members from 1 on, its name and where its bytes are."""

    number: int
    name: str
    offset: int
    size: int

    @property
    def extension(self) -> str:
        """What stands behind the last dot, in lower case."""
        return self.name.rpartition(".")[2].lower()


@dataclass(frozen=True)
class TarImage:
    """Reads one member of a tar."""

    folder: Folder
    tar: str
    member: Member

    def __call__(self) -> bytes:
        """The member's bytes."""
        return self.folder.read_range(self.tar, self.member.offset, self.member.size)


@dataclass
class Sample:
    """One WebDataset sample: its images, and the fields of its JSON and class members that were asked for."""

    key: str
    first: int
    images: list[Member] = field(default_factory=list)
    fields: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Tar:
    """One tar: size and hash of the file, hash of all but its images, samples, names of all JSON fields seen."""

    name: str
    size: int
    sha256: str
    rest_sha256: str
    samples: list[Sample]
    seen: frozenset[str]


@dataclass(frozen=True)
class Wanted:
    """What to take of a tar: extensions of images (empty: all), fields of the JSON, and whether the class.

    `discreet`: messages call a member by its number, for its name may tell a patient's.
    """

    images: tuple[str, ...]
    fields: tuple[str, ...]
    cls: bool
    discreet: bool

    def where(self, tar: str, number: int, name: str) -> str:
        """What messages call a member."""
        return f"{tar}: member {number}" if self.discreet else f"{tar}: member {number} ({ascii(name)[1:-1][:120]})"


def scan(folder: Folder, name: str, wanted: Wanted) -> Tar:
    """Look through one tar.

    Raises InputError, one line with the tar and the member: compressed, truncated or damaged, a member that is not
    on the list of what may be there, a name that leads out of the tar, a key that comes back, a sample without image.
    """
    with local_copy(folder, name) as file:
        start = file.read(8)
        for magic, command in COMPRESSED.items():
            if start.startswith(magic):
                raise InputError(f"{name} is compressed, and members cannot be read at their place; {command} it first")
        file.seek(0)
        digest = hashlib.file_digest(cast(Any, file), "sha256").hexdigest()
        size = file.seek(0, 2)
        samples, seen = _samples(file, size, name, wanted)
        rest = hash_of_rest(file, [(image.offset, image.size) for sample in samples for image in sample.images])
    for sample in samples:
        if not sample.images:
            raise InputError(
                f"{wanted.where(name, sample.first, sample.key)} belongs to a sample without image; "
                f"{'check images=, or ' if wanted.images else ''}write the tar again without it"
            )
    if not samples:
        raise InputError(f"{name} has no sample; remove it")
    return Tar(name, size, digest, rest, samples, frozenset(seen))


def _samples(file: BinaryIO, size: int, name: str, wanted: Wanted) -> tuple[list[Sample], set[str]]:
    samples: dict[str, Sample] = {}
    names: set[str] = set()
    seen: set[str] = set()
    current = ""
    for number, member in members(file, size, partial(wanted.where, name), name):
        where = wanted.where(name, number, member.name)
        key, extension = _key(member.name, where)
        if member.name in names:
            raise InputError(f"{where} is there twice; write the tar again with one of them")
        if key in samples and key != current:
            raise InputError(
                f"{where} has the key of an earlier sample, after others; a sample's members must stand together and "
                "keys differ: write the tar again"
            )
        names.add(member.name)
        current = key
        sample = samples.setdefault(key, Sample(key, number))
        kind = extension.rpartition(".")[2]
        if kind in IMAGES and (not wanted.images or extension in wanted.images):
            sample.images.append(Member(number, member.name, member.offset_data, member.size))
        elif (extension == "json" and wanted.fields) or (extension == "cls" and wanted.cls):
            if member.size > MAX_TEXT_BYTES:
                raise InputError(f"{where} has {member.size:,} bytes, more than a label or its JSON should")
            file.seek(member.offset_data)
            content = file.read(member.size)
            if extension == "cls":
                sample.fields["cls"] = _text(content, where)
            else:
                story = _story(content, where)
                seen |= story.keys()
                found = {field: _cell(story, field, where) for field in wanted.fields}
                sample.fields |= {field: value for field, value in found.items() if field != "cls" or not wanted.cls}
    return list(samples.values()), seen


def _key(name: str, where: str) -> tuple[str, str]:
    match = KEY_AND_EXTENSION.fullmatch(name)
    if match is None:
        raise InputError(f"{where} has no key before its first dot; write the tar again with names like KEY.jpg")
    return match[1].removeprefix("./"), match[2].lower()


def _text(content: bytes, where: str) -> str:
    try:
        return content.decode("utf-8-sig").strip()
    except UnicodeDecodeError:
        raise InputError(f"{where} is not UTF-8 text; a class is a number or a name") from None


def _story(content: bytes, where: str) -> dict[str, Any]:
    try:
        story = json.loads(content)
    except (ValueError, RecursionError):
        raise InputError(f"{where} is not readable JSON; write the tar again") from None
    if not isinstance(story, dict):
        raise InputError(f"{where} is no JSON object with fields; write the tar again")
    return story


def _cell(story: dict[str, Any], name: str, where: str) -> str:
    """A field as text; `a.b` reaches into an object."""
    value: Any = story
    for part in (name,) if name in story else name.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if not isinstance(value, (str, int, float)):
        raise InputError(f"{where}: the field '{name}' is neither text nor a number")
    return str(value).strip()


def repeated_keys(tars: Sequence[Tar], wanted: Wanted) -> None:
    """Raise InputError where a key stands in two tars: naming both, and whether one sample was cut in two."""
    first: dict[str, tuple[int, Sample]] = {}
    for number, tar in enumerate(tars):
        for place, sample in enumerate(tar.samples):
            before, other = first.setdefault(sample.key, (number, sample))
            if other is sample:
                continue
            cut = before == number - 1 and place == 0 and tars[before].samples[-1] is other
            raise InputError(
                f"{wanted.where(tars[before].name, other.first, other.key)} and "
                f"{wanted.where(tar.name, sample.first, sample.key)} have the same key; "
                + (
                    "one sample was cut between two tars: write them again with each sample whole"
                    if cut
                    else "keys must differ over all tars: write one of them again with other keys"
                )
            )
