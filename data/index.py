"""`index.parquet` and the manifest of a finished import, from the rows of its shards."""

import hashlib
import io
import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

from clusters.config import InputError
from data.cases import RawDataset
from data.config import ImportConfig
from data.manifest import INDEX, Counts, FileRecord, Manifest, Quarantined, seal
from data.plan import SCHEMA_VERSION, Plan, shard_name
from data.splits import SPLITS


def count_duplicates(rows: Sequence[dict[str, Any]], config: ImportConfig) -> dict[str, int]:
    """Count images that are pixel for pixel another one; refuse those that stand in two splits."""
    first: dict[str, dict[str, Any]] = {}
    counts = {"images": 0, "across_patients": 0, "across_splits": 0}
    for row in rows:
        known = first.setdefault(row["pixel_sha256"], row)
        counts["images"] += known is not row
        counts["across_patients"] += known["patient"] != row["patient"]
        if known["split"] != row["split"]:
            counts["across_splits"] += 1
            if config.duplicates == "refuse":
                raise InputError(
                    f"cases {known['key']} ({known['split']}, {known['name']}) and {row['key']} ({row['split']}, "
                    f"{row['name']}) hold the same pixels in two splits; give both one patient in the raw table, "
                    "or duplicates=keep"
                )
    return counts


def index_bytes(rows: Sequence[dict[str, Any]], raw: RawDataset) -> bytes:
    """`index.parquet`: one row an image, in the order of the shards."""
    import pyarrow as pa
    import pyarrow.parquet as parquet

    text, whole = pa.string(), pa.int64()
    kinds = {"key": text, "patient": text, "split": text, "shard": whole, "member": text, "offset": whole}
    kinds |= {"size": whole, "extension": text, "width": whole, "height": whole}
    kinds |= {"sha256": text, "pixel_sha256": text, "dhash": pa.uint64()}
    columns = {name: pa.array([row[name] for row in rows], kind) for name, kind in kinds.items()}
    for name in raw.label_names:
        values = [row[f"label.{name}"] for row in rows]
        columns[f"label.{name}"] = pa.array([math.nan if value is None else value for value in values], pa.float32())
    for name in sorted({name for row in rows for name in row["uncertain"]}):
        columns[f"uncertain.{name}"] = pa.array([name in row["uncertain"] for row in rows], pa.bool_())
    for name in sorted({name for row in rows for name in row if name.startswith("attr.")}):
        columns[name] = pa.array([row.get(name, "") for row in rows], text)
    buffer = io.BytesIO()
    parquet.write_table(pa.table(columns), buffer, compression="zstd", row_group_size=1 << 20)
    return buffer.getvalue()


def build_manifest(
    raw: RawDataset,
    config: ImportConfig,
    plan: Plan,
    records: Sequence[dict[str, Any]],
    rows: Sequence[dict[str, Any]],
    duplicates: dict[str, int],
    index: bytes,
) -> Manifest:
    """The sealed manifest of a finished import."""
    files = {INDEX: FileRecord(size=len(index), sha256=hashlib.sha256(index).hexdigest())}
    for record in records:
        if record["rows"]:
            files[shard_name(record["shard"])] = FileRecord(size=record["size"], sha256=record["sha256"])
    bad = [line for record in records for line in record["bad"]]
    return seal(
        Manifest(
            schema_version=SCHEMA_VERSION,
            name=config.name or config.source,
            source=config.source,
            licence=config.licence or raw.licence,
            citation=raw.citation,
            task=raw.task,
            labels=list(raw.label_names),
            case=raw.case_meaning,
            counts=_counts(rows),
            splits={split: _counts([row for row in rows if row["split"] == split]) for split in SPLITS},
            images={
                "short_side_px": config.short_side_px,
                "resampling": "area",
                "format": "jpeg",
                "jpeg_quality": config.jpeg_quality,
                "chroma": "4:4:4",
            },
            ids=config.ids,
            split=plan.split,
            quarantined=Quarantined(
                count=len(bad),
                reasons=dict(sorted(Counter(line.rsplit(": ", 1)[1] for line in bad).items())),
                rows=bad[:100],
                dropped_cases=sum(record["dropped_cases"] for record in records),
            ),
            duplicates=duplicates,
            settings=plan.settings,
            plan=plan.fingerprint,
            files=files,
        )
    )


def _counts(rows: Sequence[dict[str, Any]]) -> Counts:
    return Counts(
        cases=len({row["key"] for row in rows}),
        images=len(rows),
        patients=len({row["patient"] for row in rows}),
    )
