"""Tars that already exist become a dataset where they lie: an index and a manifest are written beside them.

Every tar is read once for its hash and its members, every image decoded once for its size and hashes, in
processes. The tars are opened for reading only.
"""

import hashlib
import json
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import islice
from typing import Any

from clusters.config import InputError, differences
from clusters.storage import Folder
from data.cases import Case, RawDataset, SourceImage
from data.identities import Identities, load_identities
from data.index import build_manifest, count_duplicates, write_index
from data.manifest import (
    INDEX,
    MANIFEST,
    FileRecord,
    Manifest,
    check_files,
    manifest_bytes,
    read_manifest,
    seal,
    shard_numbers,
)
from data.plan import WORK, Plan, plan_import
from data.processing import in_processes
from data.progress import Progress
from data.shards import Imported, refuse_too_many_bad
from data.sources.wds import NOT_DONE, Options, cases_of
from data.tars.facts import Facts, read_facts
from data.tars.members import hash_of_rest, local_copy
from data.tars.scan import Member, Tar, TarImage, repeated_keys, scan
from data.whois import write_whois

IMAGES_PER_TASK = 64
COMPRESSED = re.compile(r"\.(tar\.(gz|bz2|xz|zst)|tgz|tbz2?|txz)$", re.IGNORECASE)
AS_ADOPTED = "as adopted: the stored bytes are not Manyview's; metadata inside the images was not removed"


def adopt(config: Options, quiet: bool = True) -> Imported:
    """Write index and manifest of the tars in a folder, or find that they are there and still true.

    Raises InputError, naming tar and member: what `scan` and `cases_of` refuse, ids that clash, a patient in two
    official splits, too many bad images, the same pixels with two patients or in two splits, a tar that was changed
    since it was adopted. No manifest is written then, and no tar is ever touched.
    """
    folder = Folder(config.raw)
    there = _manifest(folder)
    _refuse_half_written(folder)
    tars = scan_tars(config, quiet)
    files = {tar.name: FileRecord(size=tar.size, sha256=tar.sha256) for tar in tars}
    if there is not None:
        _check_unchanged(there, files)
    identities = load_identities(config)
    raw = cases_of(config, tars)
    plan = _plan(raw, config, identities, files)
    if there is not None and there.plan != plan.fingerprint:
        changed = "; ".join(differences(there.settings, plan.settings)) or "other ids"
        raise InputError(
            f"{folder} was adopted with other settings ({changed}); repeat them, or remove its {INDEX} and {MANIFEST}"
        )
    write_whois(raw, plan, config, identities)
    if there is not None:
        check_files(folder, there)
        return Imported(there, reused=True)
    if folder.exists(INDEX) and not folder.exists(f"{WORK}/plan.json"):
        raise InputError(f"{folder} has an {INDEX} that no adoption has written; move it away")
    folder.write_json(f"{WORK}/plan.json", {"plan": plan.fingerprint, "settings": plan.settings})

    try:
        manifest = _written(folder, raw, plan, _laid_out(raw, plan, identities), config, tars, quiet)
    except BaseException:  # the folder is somebody's own: nothing of an adoption that failed stays in it
        folder.remove(INDEX)
        raise
    finally:
        folder.remove(WORK)
    return Imported(manifest, reused=False)


def _written(
    folder: Folder,
    raw: RawDataset,
    plan: Plan,
    cases: Sequence[Case],
    config: Options,
    tars: Sequence[Tar],
    quiet: bool,
) -> Manifest:
    """Read every image once, write the index, and last the manifest."""
    rows, bad, dropped = _rows(cases, [tar.name for tar in tars], config, quiet)
    record, known = write_index(folder, rows, raw, plan)
    flat = [row for shard in rows for row in shard]
    duplicates = count_duplicates(known.known(), config, lambda image: flat[image])
    told: dict[str, FileRecord] = {INDEX: record}
    for tar, images in zip(tars, rows, strict=True):
        rest = tar.rest_sha256
        if len(images) != sum(len(sample.images) for sample in tar.samples):  # some are not in the index
            with local_copy(folder, tar.name) as file:
                rest = hash_of_rest(file, [(row["offset"], row["size"]) for row in images])
        told[tar.name] = FileRecord(size=tar.size, sha256=tar.sha256, rest_sha256=rest)
    manifest = build_manifest(raw, config, plan, known.known(), bad, dropped, duplicates, told)
    manifest = seal(manifest.model_copy(update={"images": {"format": AS_ADOPTED}, "sha256": ""}))
    folder.write(MANIFEST, manifest_bytes(manifest))
    return manifest


def scan_tars(config: Options, quiet: bool) -> list[Tar]:
    """All tars of the folder, sorted by name. Raises InputError for none, compressed ones, and what `scan` refuses."""
    folder = Folder(config.raw)
    names = [name for name in sorted(folder.sizes()) if not name.startswith(f"{WORK}/")]
    for name in names:
        if COMPRESSED.search(name):
            raise InputError(f"{name} is compressed, and members cannot be read at their place; unpack it to a .tar")
        if name.endswith(".tar") and (":" in name or not name.isprintable()):
            raise InputError(f"{name!a} in {folder}: readers would take it for a URL; rename it")
    names = [name for name in names if name.endswith(".tar")]
    if not names:
        raise InputError(f"{folder} has no .tar; raw= takes the folder in which they lie")
    progress = Progress("look through tars", len(names), "tars", quiet)
    tars = []
    with ThreadPoolExecutor(config.processes) as pool:  # threads: hashing leaves Python's lock to the others
        for tar in pool.map(lambda name: scan(folder, name, config.wanted), names):
            tars.append(tar)
            progress.advance(1)
    progress.close()
    repeated_keys(tars, config.wanted)
    return tars


def _manifest(folder: Folder) -> Manifest | None:
    """The manifest that is there, if it is of an adoption."""
    if not folder.exists(MANIFEST):
        return None
    manifest = read_manifest(folder)
    if manifest.source != "wds":
        raise InputError(f"{folder} is a dataset already (source {manifest.source}); use it as it is")
    return manifest


def _refuse_half_written(folder: Folder) -> None:
    """Refuse the folder of an import that has not ended: its shards are not all there, and it would go on with them."""
    if not folder.exists(f"{WORK}/plan.json"):
        return
    try:
        begun = folder.read_json(f"{WORK}/plan.json")["settings"]["source"]
    except (ValueError, KeyError, TypeError):
        begun = "unknown"
    if begun != "wds":
        raise InputError(
            f"{folder} holds an unfinished import (source={begun}), not tars to adopt; give the command of that import "
            f"again, or remove the folder's {WORK} where its tars are whole"
        )


def _told_of(record: FileRecord | None) -> tuple[int, str] | None:
    return None if record is None else (record.size, record.sha256)


def _check_unchanged(manifest: Manifest, files: dict[str, FileRecord]) -> None:
    before = {name: record for name, record in manifest.files.items() if name != INDEX}
    for name in sorted(before.keys() | files.keys()):
        if _told_of(before.get(name)) != _told_of(files.get(name)):
            what = "is gone" if name not in files else "is new" if name not in before else "was changed"
            raise InputError(
                f"{name} {what} since this folder was adopted; bring back what was there, or remove {INDEX} and "
                f"{MANIFEST} and adopt it again"
            )


def _plan(raw: RawDataset, config: Options, identities: Identities, files: dict[str, FileRecord]) -> Plan:
    """Ids and splits as in any import; what stands for the images are the tars themselves."""
    plan = plan_import(raw, config, identities)
    hashes = [plan.fingerprint, {name: record.sha256 for name, record in files.items()}]
    fingerprint = hashlib.sha256(json.dumps(hashes, sort_keys=True).encode()).hexdigest()
    kept = {name: value for name, value in plan.settings.items() if name not in NOT_DONE}
    return replace(plan, settings=kept, fingerprint=fingerprint)


def _laid_out(raw: RawDataset, plan: Plan, identities: Identities) -> list[Case]:
    """The cases with their final ids and splits, in the order of the tars and not of the plan."""
    planned = {case.key: case for shard in plan.shards for case in shard}
    return [planned[identities.case(case.key)] for case in raw.cases]


def _rows(
    cases: Sequence[Case], tars: Sequence[str], config: Options, quiet: bool
) -> tuple[list[list[dict[str, Any]]], list[str], int]:
    """Rows of the index by shard, the images that cannot be used with reasons, and how many cases are left empty.

    Raises InputError as soon as too many images are bad.
    """
    number_of = {name: number for number, name in shard_numbers(tars).items()}
    rows: dict[int, list[dict[str, Any]]] = {number: [] for number in sorted(number_of.values())}
    images = [image for case in cases for image in case.images]
    tasks = [
        ([i.read for i in images[k : k + IMAGES_PER_TASK]], config.max_pixels)
        for k in range(0, len(images), IMAGES_PER_TASK)
    ]
    outcomes = (found for part in in_processes(read_facts, tasks, config.processes) for found in part)
    progress = Progress("adopt", len(images), "images", quiet)
    bad: list[str] = []
    dropped = 0
    for case in cases:
        usable = 0
        for image, facts in zip(case.images, islice(outcomes, len(case.images))):
            progress.advance(1)
            if isinstance(facts, str):
                bad.append(f"{image.name}: {facts}")
                refuse_too_many_bad(bad, len(images), config.max_bad_fraction)
                continue
            assert isinstance(image.read, TarImage)
            shard, member = number_of[image.read.tar], image.read.member
            # The index goes further than the tars, into results and messages: with keyed ids no name of theirs with it.
            name = f"{case.key}.{usable}.{member.extension}" if config.ids == "keyed" else member.name
            rows[shard].append({**_row(case, image, member, facts), "member": name, "shard": shard})
            usable += 1
        dropped += not usable
    progress.close()
    if not any(rows.values()):
        raise InputError(f"no usable image in {config.raw}; the first is {bad[0]}")
    return list(rows.values()), bad, dropped


def _row(case: Case, image: SourceImage, member: Member, facts: Facts) -> dict[str, Any]:
    return {
        "name": image.name,
        "key": case.key,
        "patient": case.patient,
        "split": case.split,
        "offset": member.offset,
        "size": member.size,
        "extension": member.extension,
        "width": facts.width,
        "height": facts.height,
        "sha256": facts.sha256,
        "pixel_sha256": facts.pixel_sha256,
        "dhash": facts.dhash,
        "uncertain": sorted(case.uncertain),
        **{f"label.{label}": value for label, value in case.labels.items()},
        **{f"attr.{attribute}": value for attribute, value in image.attributes.items()},
    }
