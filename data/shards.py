"""Cases → tar shards + index + manifest, atomic, byte-identical for any number of processes.

Images are decoded in worker processes; this one writes the tars, each whole or not at all, with a
record beside it in `.import/` by which an interrupted import goes on. The manifest comes last.
"""

import hashlib
import io
import json
import math
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from clusters.config import InputError, differences
from clusters.storage import Folder
from data.cases import Case, RawDataset
from data.config import ImportConfig
from data.identities import load_identities
from data.images import StoredImage
from data.index import build_manifest, count_duplicates, index_bytes
from data.manifest import INDEX, MANIFEST, Manifest, check_files, manifest_bytes, read_manifest
from data.plan import Plan, plan_import, shard_name
from data.processing import processed
from data.progress import Progress

WORK = ".import"


@dataclass(frozen=True)
class Imported:
    """The outcome of an import. `reused`: the same dataset was already there."""

    manifest: Manifest
    reused: bool


def write_dataset(raw: RawDataset, config: ImportConfig, quiet: bool = True) -> Imported:
    """Write a dataset folder from a source's cases, or go on where an import was interrupted.

    Raises InputError for a folder that holds something else, ids that clash, a patient in two official
    splits, too many bad images, or the same pixels in two splits; no manifest is written then. Whether the
    same import is already there is told by settings and case list, not by reading the raw images again.
    """
    plan = plan_import(raw, config, load_identities(config))
    out = Folder(config.out)
    there = _finished(out, plan)
    if there is not None:
        return Imported(there, reused=True)

    # Shards, those of an interrupted import kept.
    records = [_kept_record(out, shard) for shard in range(len(plan.shards))]
    todo = [shard for shard, record in enumerate(records) if record is None]
    for record in _write_shards(out, plan, todo, config, quiet):
        records[record["shard"]] = record
    done = [record for record in records if record is not None]
    assert len(done) == len(plan.shards)

    # Index, then the manifest: only now is the folder a dataset.
    rows = [row for record in done for row in record["rows"]]
    if not rows:
        raise InputError(f"no usable image in {config.raw}; the first is {done[0]['bad'][0]}")
    duplicates = count_duplicates(rows, config)
    index = index_bytes(rows, raw)
    out.write(INDEX, index)
    manifest = build_manifest(raw, config, plan, done, rows, duplicates, index)
    out.write(MANIFEST, manifest_bytes(manifest))
    for name in out.names():
        if name == WORK or name.endswith(".part"):  # `.part`: what a killed process was writing
            out.remove(name)
    return Imported(manifest, reused=False)


def _write_shards(
    out: Folder, plan: Plan, todo: Sequence[int], config: ImportConfig, quiet: bool
) -> Iterator[dict[str, Any]]:
    """Write the shards that are still to be done; yields the record of each.

    Raises InputError as soon as too many images of the dataset are bad.
    """
    num_todo = sum(len(case.images) for shard in todo for case in plan.shards[shard])
    progress = Progress("import", plan.num_images, "images", quiet)
    progress.skip(plan.num_images - num_todo)
    results = processed([case for shard in todo for case in plan.shards[shard]], config)
    bad: list[str] = []
    for shard in todo:
        writer = _ShardWriter(shard)
        for case in plan.shards[shard]:
            outcome = next(results)
            bad += writer.add(case, outcome)
            if len(bad) > config.max_bad_fraction * plan.num_images:
                raise InputError(
                    f"{len(bad)} of {plan.num_images:,} images are bad, more than max_bad_fraction="
                    f"{config.max_bad_fraction:g}; the first: {bad[0]}; mend them or raise max_bad_fraction"
                )
            progress.advance(len(outcome))
        yield writer.finish(out)
    progress.close()


def _finished(out: Folder, plan: Plan) -> Manifest | None:
    """The manifest of the same import if it is there; else make sure that `out` may be written to."""
    names = out.names()
    if MANIFEST in names:
        manifest = read_manifest(out)
        if manifest.plan == plan.fingerprint:
            check_files(out, manifest)
            if WORK in names:
                out.remove(WORK)
            return manifest
        changed = "; ".join(differences(manifest.settings, plan.settings)) or "other cases, images or ids"
        raise InputError(f"{out} already holds another dataset ({changed}); give another out= or remove it")
    if not set(names) - {WORK} and not out.exists(f"{WORK}/plan.json"):
        out.write_json(f"{WORK}/plan.json", {"plan": plan.fingerprint, "settings": plan.settings})
        return None
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
    return None


def _kept_record(out: Folder, shard: int) -> dict[str, Any] | None:
    """The record of a shard that an interrupted import finished, if the shard is still what it says.

    A shard with bad images is done again: they may have been mended meanwhile.
    """
    try:
        record = out.read_json(f"{WORK}/{shard_name(shard)}.json")
        if record["bad"]:
            return None
        if record["rows"] and hashlib.sha256(out.read(shard_name(shard))).hexdigest() != record["sha256"]:
            return None
    except (OSError, ValueError, KeyError):
        return None
    return record


class _ShardWriter:
    """Collects one shard in memory and writes it whole."""

    def __init__(self, shard: int) -> None:
        from webdataset.writer import TarWriter  # imports torch, which the workers do not need

        self.shard = shard
        self.buffer = io.BytesIO()
        self.tar = TarWriter(self.buffer, user="manyview", group="manyview", mode=0o444, encoder=False, mtime=0)
        self.rows: list[dict[str, Any]] = []
        self.bad: list[str] = []
        self.dropped_cases = 0

    def add(self, case: Case, outcome: Sequence[StoredImage | str]) -> list[str]:
        """Append a case with those of its images that could be used; returns the others, with reasons."""
        usable = [(i, o) for i, o in zip(case.images, outcome) if isinstance(o, StoredImage)]
        bad = [f"{i.name}: {o}" for i, o in zip(case.images, outcome) if isinstance(o, str)]
        self.bad += bad
        if not usable:
            self.dropped_cases += 1
            return bad
        members: dict[str, Any] = {"__key__": case.key}
        told = []
        for number, (image, stored) in enumerate(usable):
            attributes = {**case.attributes, **image.attributes}
            members[f"{number}.jpg"] = stored.content
            told.append({"width": stored.width, "height": stored.height, "attributes": attributes})
            row = {
                "name": image.name,
                "key": case.key,
                "patient": case.patient,
                "split": case.split,
                "shard": self.shard,
                "member": f"{case.key}.{number}.jpg",
                "extension": "jpg",
                "width": stored.width,
                "height": stored.height,
                "sha256": hashlib.sha256(stored.content).hexdigest(),
                "pixel_sha256": stored.pixel_sha256,
                "dhash": stored.dhash,
                "uncertain": sorted(case.uncertain),
            }
            row |= {f"label.{name}": _or_none(value) for name, value in case.labels.items()}
            row |= {f"attr.{name}": value for name, value in attributes.items()}
            self.rows.append(row)
        labels = {name: _or_none(value) for name, value in case.labels.items()}
        story = {
            "key": case.key,
            "patient": case.patient,
            "split": case.split,
            "labels": labels,
            "uncertain": sorted(case.uncertain),
            "images": told,
        }
        members["json"] = json.dumps(story, sort_keys=True, separators=(",", ":")).encode()
        self.tar.write(members)
        return bad

    def finish(self, out: Folder) -> dict[str, Any]:
        """Write the shard and its record; returns the record."""
        self.tar.close()
        content = self.buffer.getvalue()
        places = _places(content)
        for row in self.rows:
            row["offset"], row["size"] = places[row["member"]]
        record = {
            "size": len(content),
            "sha256": hashlib.sha256(content).hexdigest(),
            "bad": self.bad,
            "dropped_cases": self.dropped_cases,
            "shard": self.shard,
            "rows": self.rows,
        }
        if self.rows:
            out.write(shard_name(self.shard), content)
        out.write(f"{WORK}/{shard_name(self.shard)}.json", json.dumps(record).encode())
        return record


def _places(content: bytes) -> dict[str, tuple[int, int]]:
    """Offset and size of every member, read back from the finished tar."""
    with tarfile.open(fileobj=io.BytesIO(content)) as tar:
        return {member.name: (member.offset_data, member.size) for member in tar}


def _or_none(value: float) -> float | None:
    return None if math.isnan(value) else value
