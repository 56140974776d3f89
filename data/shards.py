"""Cases → tar shards + index + manifest, atomic, byte-identical for any number of processes or Ray tasks.

Each shard is written whole or not at all, with a record beside it in `.import/` by which an interrupted
import goes on. The manifest comes last.
"""

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from typing import Any

import cv2

from clusters.config import InputError, differences
from clusters.run_lock import run_lock
from clusters.storage import Folder
from data.cases import Case, RawDataset, RawFile
from data.config import ImportConfig
from data.identities import load_identities
from data.images import BURNED_IN
from data.index import build_manifest, count_duplicates, write_index
from data.manifest import INDEX, MANIFEST, FileRecord, Manifest, check_files, manifest_bytes, read_manifest
from data.plan import WORK, Plan, plan_import, shard_name
from data.processing import cut, segments
from data.progress import Progress
from data.records import ShardRecord, kept_records, row_of, rows_of, write_record
from data.segments import ABSENT, ABSENT_MEND, Processing, Segment, tar_end
from data.whois import write_whois

PART = re.compile(r"\..+\.[0-9a-f]{8}\.part")  # what a process that was killed had begun to write


@dataclass(frozen=True)
class Imported:
    """The outcome of an import. `reused`: the same dataset was already there."""

    manifest: Manifest
    reused: bool


def write_dataset(raw: RawDataset, config: ImportConfig, quiet: bool = True) -> Imported:
    """Write a dataset folder from a source's cases, or go on where an import was interrupted.

    Raises InputError for a folder that holds something else, ids that clash, a patient in two official splits,
    too many bad images, or the same pixels with two patients or in two splits; no manifest is written then.
    Whether the same import is already there is told by settings and case list, not by reading the raw images
    again. Raises OSError, naming the place, where it cannot be written to (disk full); the same call goes on.
    """
    identities = load_identities(config)
    plan = plan_import(raw, config, identities)
    out = Folder(config.out)
    if (there := _finished(out, plan)) is not None:
        write_whois(raw, plan, config, identities)
        return Imported(there, reused=True)
    _check_begun(out, plan)  # nothing is put into a folder that holds something else
    with run_lock(out / WORK):
        if not _check_begun(out, plan):
            out.write_json(f"{WORK}/plan.json", {"plan": plan.fingerprint, "settings": plan.settings})
        write_whois(raw, plan, config, identities)
        manifest = _write(out, raw, plan, config, quiet)
    for name in out.names():
        if name == WORK or PART.fullmatch(name):
            out.remove(name)
    return Imported(manifest, reused=False)


def _write(out: Folder, raw: RawDataset, plan: Plan, config: ImportConfig, quiet: bool) -> Manifest:
    # Shards, those of an interrupted import kept.
    if config.missing == "refuse":
        _refuse_absent(raw)
    records = kept_records(out, plan.shards, Processing.of(config))
    for record in _write_shards(out, plan, records, config, quiet):
        records[record.shard] = record
    done = [records[shard] for shard in range(len(plan.shards))]
    bad = [line for record in done for line in record.bad]
    if not any(record.num_rows for record in done):
        raise InputError(f"no usable image in {config.raw}; the first is {bad[0]}")

    # Index, then the manifest: only now is the folder a dataset.
    index, census = write_index(out, (rows_of(out, shard) for shard in range(len(done))), raw, plan)
    known = census.known()
    duplicates = count_duplicates(known, config, lambda image: row_of(out, done, image))
    files = {INDEX: index}
    for record in done:
        if record.num_rows:
            files[shard_name(record.shard)] = FileRecord(
                size=record.size, sha256=record.sha256, rest_sha256=record.rest_sha256
            )
    dropped = sum(record.dropped_cases for record in done)
    manifest = build_manifest(raw, config, plan, known, bad, dropped, duplicates, files)
    out.write(MANIFEST, manifest_bytes(manifest))
    return manifest


def write_shard(out: Folder, shard: int, parts: Iterable[Segment]) -> ShardRecord:
    """Join the segments of a shard into its tar, and write its record; nothing of it is there before the end."""
    rows: list[dict[str, Any]] = []
    bad: list[str] = []
    size = dropped = 0
    digest, rest = hashlib.sha256(), hashlib.sha256()
    with out.create(shard_name(shard)) as file:
        for part in parts:
            rows += [{**row, "shard": shard, "offset": row["offset"] + size} for row in part.rows]
            bad += part.bad
            dropped += part.dropped_cases
            size += len(part.content)
            digest.update(part.content)
            _hash_outside(rest, part.content, [(row["offset"], row["size"]) for row in part.rows])
            file.write(part.content)
        end = tar_end(size)
        digest.update(end)
        rest.update(end)
        file.write(end)
    if not rows:
        out.remove(shard_name(shard))
    record = ShardRecord(shard, size + len(end), digest.hexdigest(), rest.hexdigest(), len(rows), tuple(bad), dropped)
    write_record(out, record, rows)
    return record


def _hash_outside(digest: "hashlib._Hash", content: bytes, spans: Iterable[tuple[int, int]]) -> None:
    """Add to a hash what stands in `content` before, between and behind its images, given as (offset, size)."""
    whole, place = memoryview(content), 0
    for offset, size in sorted(spans):
        digest.update(whole[place:offset])
        place = offset + size
    digest.update(whole[place:])


def _write_shards(
    out: Folder, plan: Plan, kept: Mapping[int, ShardRecord], config: ImportConfig, quiet: bool
) -> Iterator[ShardRecord]:
    """Write the shards that are still to be done; yields the record of each.

    Raises InputError as soon as too many images of the dataset are bad.
    """
    todo = [shard for shard in range(len(plan.shards)) if shard not in kept]
    num_todo = sum(len(case.images) for shard in todo for case in plan.shards[shard])
    progress = Progress("import", plan.num_images, "images", quiet)
    progress.skip(plan.num_images - num_todo)
    watch = _Watch(progress, plan.num_images, config.max_bad_fraction)
    watch.count([line for record in kept.values() for line in record.bad], 0)
    if config.on_ray:
        from clusters.tasks import map_tasks

        tasks = (_ShardTask(out, shard, plan.shards[shard], Processing.of(config)) for shard in todo)
        for record in map_tasks(_write_whole_shard, tasks):
            watch.count(record.bad, sum(len(case.images) for case in plan.shards[record.shard]))
            yield record
    else:
        groups = {shard: cut(plan.shards[shard]) for shard in todo}
        everything = [group for shard in todo for group in groups[shard]]
        with closing(segments(everything, Processing.of(config), config.processes)) as parts:
            made = watch.over(parts)
            for shard in todo:
                yield write_shard(out, shard, islice(made, len(groups[shard])))
    progress.close()


@dataclass(frozen=True)
class _ShardTask:
    """All that a Ray task needs to write one shard."""

    out: Folder
    shard: int
    cases: tuple[Case, ...]
    processing: Processing


def _write_whole_shard(task: _ShardTask) -> ShardRecord:
    cv2.setNumThreads(1)  # Ray gives a task one core
    return write_shard(task.out, task.shard, segments(cut(task.cases), task.processing))


def refuse_too_many_bad(bad: Sequence[str], num_images: int, max_bad_fraction: float) -> None:
    """Raise InputError where more of a dataset's images are bad, told in a line each, than its import bears."""
    if len(bad) > max_bad_fraction * num_images:
        raise InputError(
            f"{len(bad):,} of {num_images:,} images {'is' if len(bad) == 1 else 'are'} bad, more than "
            f"max_bad_fraction={max_bad_fraction:g}; the first: {bad[0]}; mend them or raise max_bad_fraction"
        )


class _Watch:
    """Counts images as they are done, and stops an import in which too many are bad."""

    def __init__(self, progress: Progress, num_images: int, max_bad_fraction: float) -> None:
        self.progress, self.num_images, self.max_bad_fraction = progress, num_images, max_bad_fraction
        self.bad: list[str] = []

    def count(self, bad: Sequence[str], num_images: int) -> None:
        self.bad += [line for line in bad if not line.endswith((BURNED_IN, ABSENT))]  # left out on purpose
        refuse_too_many_bad(self.bad, self.num_images, self.max_bad_fraction)
        self.progress.advance(num_images)

    def over(self, parts: Iterable[Segment]) -> Iterator[Segment]:
        for part in parts:
            self.count(part.bad, part.num_images)
            yield part


def _refuse_absent(raw: RawDataset) -> None:
    """Refuse an import some of whose files are not there, before hours of work; those of a URL are missed when read."""
    images = [image for case in raw.cases for image in case.images]
    absent = [image for image in images if isinstance(image.read, RawFile) and image.read.is_absent()]
    if absent:
        number = f"{len(absent):,} of {len(images):,} images {'is' if len(absent) == 1 else 'are'}"
        raise InputError(f"{number} not there; the first: {absent[0].name}; {ABSENT_MEND}")


def _finished(out: Folder, plan: Plan) -> Manifest | None:
    """The manifest of the same import if it is there. Raises InputError where another dataset is."""
    names = out.names()
    if MANIFEST not in names:
        return None
    manifest = read_manifest(out)
    if manifest.plan != plan.fingerprint:
        changed = "; ".join(differences(manifest.settings, plan.settings)) or "other cases, images or ids"
        raise InputError(f"{out} already holds another dataset ({changed}); give another out= or remove it")
    check_files(out, manifest)
    if WORK in names:
        out.remove(WORK)
    return manifest


def _check_begun(out: Folder, plan: Plan) -> bool:
    """Whether this import was begun there. Raises InputError where something else lies in the folder."""
    others = [name for name in out.names() if name != WORK and not PART.fullmatch(name)]
    # One that was stopped before its first shard has nothing to go on with: its table may be corrected meanwhile.
    if not others and not any(name.startswith("shard-") for name in (out / WORK).names()):
        return False
    try:
        begun = out.read_json(f"{WORK}/plan.json")
    except (OSError, ValueError):
        raise InputError(f"{out} is not empty and not an unfinished import; give another out=") from None
    if begun.get("plan") != plan.fingerprint:
        changed = "; ".join(differences(begun.get("settings", {}), plan.settings)) or "other cases, images or ids"
        raise InputError(
            f"{out} holds an unfinished import with other settings ({changed}); "
            "repeat it with the old ones, give another out= or remove it"
        )
    return True
