"""What an import knows of its finished shards, beside them in `.import/`, so that it can be interrupted and go on."""

import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields
from typing import Any

from clusters.storage import Folder
from data.cases import Case
from data.plan import WORK, shard_name
from data.segments import Processing, still_bad

READERS = 8  # threads that look through the shards of an interrupted import


@dataclass(frozen=True)
class ShardRecord:
    """One finished shard; its rows of the index stay in its file in `.import/`. Without images it has no tar."""

    shard: int
    size: int
    sha256: str
    rest_sha256: str
    num_rows: int
    bad: tuple[str, ...]
    dropped_cases: int


def write_record(out: Folder, record: ShardRecord, rows: Sequence[dict[str, Any]]) -> None:
    """Write the record of a shard that is there, with its rows."""
    out.write(_name(record.shard), json.dumps({**asdict(record), "rows": rows}).encode())


def rows_of(out: Folder, shard: int) -> list[dict[str, Any]]:
    """The rows of a finished shard."""
    return out.read_json(_name(shard))["rows"]


def row_of(out: Folder, records: Sequence[ShardRecord], image: int) -> dict[str, Any]:
    """The row of an image by its number in the index."""
    for record in records:
        if image < record.num_rows:
            return rows_of(out, record.shard)[image]
        image -= record.num_rows
    raise AssertionError(image)


def kept_records(out: Folder, shards: Sequence[Sequence[Case]], processing: Processing) -> dict[int, ShardRecord]:
    """By shard, the records of those that an interrupted import finished and that are still what they were."""
    there = {name.removeprefix(f"{WORK}/") for name in (out / WORK).sizes()}
    done = [shard for shard in range(len(shards)) if _name(shard).removeprefix(f"{WORK}/") in there]
    with ThreadPoolExecutor(READERS) as pool:
        found = pool.map(lambda shard: _kept(out, shard, shards[shard], processing), done)
        return {record.shard: record for record in found if record is not None}


def _kept(out: Folder, shard: int, cases: Sequence[Case], processing: Processing) -> ShardRecord | None:
    """None also for a shard in which a bad image is another one by now: it may have been mended meanwhile."""
    try:
        told = out.read_json(_name(shard))
        record = ShardRecord(**{field.name: told[field.name] for field in fields(ShardRecord)})
        if len(told["rows"]) != record.num_rows:
            return None
        if record.num_rows and out.sha256(shard_name(shard)) != record.sha256:
            return None
        return record if still_bad(cases, record.bad, processing) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _name(shard: int) -> str:
    return f"{WORK}/{shard_name(shard)}.json"
