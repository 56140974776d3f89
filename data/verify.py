"""Reads a whole dataset again and compares everything with everything."""

import hashlib
import io
import tarfile
import time
from collections import Counter
from collections.abc import Iterator

import pyarrow as pa
import pyarrow.parquet as parquet

from clusters.config import InputError
from clusters.storage import Folder
from data.manifest import INDEX, Manifest, read_manifest


def verify(location: str) -> str:
    """Verify a dataset folder; returns one line that says so.

    Raises InputError with the number of problems and the first one, then a line for each. A problem
    names the file, and the images in it that differ.
    """
    begun = time.monotonic()
    folder = Folder(location)
    manifest = read_manifest(folder)
    problems = list(_problems(folder, manifest))
    if problems:
        number = f"{len(problems)} problem{'s' if len(problems) > 1 else ''}"
        lines = "".join(f"\n  {problem}" for problem in problems)
        raise InputError(f"{location} is damaged: {number}; copy it again or import again{lines}")
    counts = manifest.counts
    size = sum(record.size for record in manifest.files.values())
    return (
        f"OK: {location}: {counts.images:,} images of {counts.cases:,} cases of {counts.patients:,} patients "
        f"in {len(manifest.shards)} shards, {size / 1e6:,.1f} MB read in {time.monotonic() - begun:.1f} s, "
        f"{manifest.sha256[:12]}"
    )


def _problems(folder: Folder, manifest: Manifest) -> Iterator[str]:
    for name in folder.names():
        if name.endswith(".tar") and name not in manifest.files:
            yield f"{name} is not in the manifest"
    index, problem = _index(folder, manifest)
    if problem:
        yield problem
    for shard, name in manifest.shards.items():
        content = _content(folder, name)
        if content is None:
            yield f"{name} is missing"
            continue
        problem = _difference(content, manifest, name)
        details = [] if index is None else _rows_that_differ(content, _rows_of(index, shard))
        if problem or details:
            yield "; ".join(([problem] if problem else []) + details[:3])
    if index is None:
        return
    for name, found in _totals(index).items():
        stated = getattr(manifest.counts, name)
        if stated != found:
            yield f"{INDEX} has {found} {name}, the manifest says {stated}"
    pairs = set(zip(index.column("patient").to_pylist(), index.column("split").to_pylist()))
    num_splits = Counter(patient for patient, _ in pairs)
    for patient in sorted(patient for patient, number in num_splits.items() if number > 1)[:3]:
        yield f"{INDEX}: patient {patient} stands in two splits"


def _index(folder: Folder, manifest: Manifest) -> tuple[pa.Table | None, str]:
    content = _content(folder, INDEX)
    if content is None:
        return None, f"{INDEX} is missing"
    problem = _difference(content, manifest, INDEX)
    if problem:
        return None, problem
    return parquet.read_table(io.BytesIO(content)), ""


def _content(folder: Folder, name: str) -> bytes | None:
    try:
        return folder.read(name)
    except FileNotFoundError:
        return None


def _difference(content: bytes, manifest: Manifest, name: str) -> str:
    record = manifest.files[name]
    if len(content) != record.size:
        return f"{name} has {len(content):,} bytes, the manifest says {record.size:,}"
    if hashlib.sha256(content).hexdigest() != record.sha256:
        return f"{name} was altered (its hash differs)"
    return ""


def _rows_that_differ(content: bytes, rows: pa.Table) -> list[str]:
    """Images of a shard whose bytes or place are not those of the index."""
    places = {}
    try:
        with tarfile.open(fileobj=io.BytesIO(content)) as tar:
            places = {member.name: (member.offset_data, member.size) for member in tar}
    except tarfile.TarError:
        pass
    found = []
    for row in rows.select(["member", "offset", "size", "sha256"]).to_pylist():
        end = row["offset"] + row["size"]
        if hashlib.sha256(content[row["offset"] : end]).hexdigest() != row["sha256"]:
            found.append(f"image {row['member']} differs")
        elif places.get(row["member"]) != (row["offset"], row["size"]):
            found.append(f"image {row['member']} is not where the index says")
    return found


def _rows_of(index: pa.Table, shard: int) -> pa.Table:
    return index.filter(pa.array(index.column("shard").to_numpy() == shard))


def _totals(index: pa.Table) -> dict[str, int]:
    unique = {name: len(index.column(column).unique()) for name, column in (("cases", "key"), ("patients", "patient"))}
    return {"images": index.num_rows, **unique}
