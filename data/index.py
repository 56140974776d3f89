"""`index.parquet` and the manifest of a finished import, from the records of its shards, one after another.

Rows are never held all at once: of each image a few numbers stay in memory, for counts and duplicates.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from clusters.config import InputError
from clusters.storage import Folder
from data.cases import RawDataset
from data.config import ImportConfig
from data.duplicates import Copies, Known, exact_copies, near_pairs
from data.manifest import INDEX, Counts, FileRecord, Manifest, Quarantined, seal
from data.plan import SCHEMA_VERSION, Plan
from data.splits import SPLITS

Rows = Sequence[dict[str, Any]]
ROWS_PER_GROUP = 1 << 18


class Census:
    """A few numbers of every image, shard by shard: what counts and duplicates are told from."""

    def __init__(self) -> None:
        self._patients: dict[str, int] = {}
        self._num_cases = 0
        self._parts: list[np.ndarray] = []

    def add(self, rows: Rows) -> None:
        """Take in the rows of a shard; a case stands in one shard, its rows one after another."""
        part = np.empty((6, len(rows)), np.uint64)
        last = None
        for place, row in enumerate(rows):
            self._num_cases += row["key"] != last
            last = row["key"]
            patient = self._patients.setdefault(row["patient"], len(self._patients))
            high, low = int(row["pixel_sha256"][:16], 16), int(row["pixel_sha256"][16:32], 16)
            part[:, place] = (high, low, row["dhash"], self._num_cases, patient, SPLITS.index(row["split"]))
        self._parts.append(part)

    def known(self) -> Known:
        """The numbers of all images."""
        whole = np.concatenate(self._parts, axis=1)
        return Known(whole[0], whole[1], whole[2], *(whole[place].astype(np.int64) for place in (3, 4, 5)))


def write_index(out: Folder, rows_of_shards: Iterable[Rows], raw: RawDataset, plan: Plan) -> tuple[FileRecord, Census]:
    """Write `index.parquet`, one row an image, in the order of the shards; returns its record and the census."""
    import pyarrow as pa
    import pyarrow.parquet as parquet

    schema = _schema(raw, plan)
    census = Census()
    tables: list[pa.Table] = []
    with out.create(INDEX) as file, parquet.ParquetWriter(file, schema, compression="zstd") as writer:

        def write() -> None:
            writer.write_table(pa.concat_tables(tables).combine_chunks(), ROWS_PER_GROUP)
            tables.clear()

        for rows in rows_of_shards:
            census.add(rows)
            tables.append(pa.table([_column(rows, name) for name in schema.names], schema=schema))
            if sum(table.num_rows for table in tables) >= ROWS_PER_GROUP:
                write()
        if tables:
            write()
    return FileRecord(size=out.size(INDEX), sha256=out.sha256(INDEX)), census


def _schema(raw: RawDataset, plan: Plan) -> Any:
    """The columns, told by the plan, so that they are the same whatever images turn out bad."""
    import pyarrow as pa

    text, whole = pa.string(), pa.int64()
    kinds = {"key": text, "patient": text, "split": text, "shard": whole, "member": text, "offset": whole}
    kinds |= {"size": whole, "extension": text, "width": whole, "height": whole}
    kinds |= {"sha256": text, "pixel_sha256": text, "dhash": pa.uint64()}
    kinds |= {f"label.{name}": pa.float32() for name in raw.label_names}
    kinds |= {f"number.{name}": pa.float32() for name in raw.number_names}
    cases = [case for shard in plan.shards for case in shard]
    kinds |= {f"uncertain.{name}": pa.bool_() for name in sorted({name for case in cases for name in case.uncertain})}
    attributes = {name for case in cases for part in (case, *case.images) for name in part.attributes}
    kinds |= {f"attr.{name}": text for name in sorted(attributes)}
    return pa.schema(kinds)


def _column(rows: Rows, name: str) -> list[Any]:
    kind, _, rest = name.partition(".")
    if kind in ("label", "number"):
        return [math.nan if row[name] is None else row[name] for row in rows]
    if kind == "uncertain":
        return [rest in row["uncertain"] for row in rows]
    return [row.get(name, "") for row in rows] if kind == "attr" else [row[name] for row in rows]


def count_duplicates(known: Known, config: ImportConfig, row_of: Callable[[int], dict[str, Any]]) -> dict[str, int]:
    """Count exact and near duplicates; refuse exact ones across patients or splits, unless they are to be kept.

    `row_of` finds the row of an image for the message, which calls it by its name: that is a row number where ids
    are keyed.
    """
    copies = exact_copies(known)
    patients, splits = copies.across(known.patient), copies.across(known.split)
    if len(patients.later) + len(splits.later) and config.duplicates == "refuse":
        raise InputError(_refusal(patients, splits, row_of, adopted=config.source == "wds"))
    near = near_pairs(known)
    return {
        "images": len(copies.later),
        "across_cases": len(copies.across(known.case).later),
        "across_patients": len(patients.later),
        "across_splits": len(splits.later),
        "near_pairs": near.pairs,
        "near_pairs_across_splits": near.across_splits,
        "near_uncompared_images": near.uncompared_images,
    }


def _refusal(patients: Copies, splits: Copies, row_of: Callable[[int], dict[str, Any]], adopted: bool) -> str:
    worst, where = (splits, "two splits") if len(splits.later) else (patients, "the cases of two patients")
    first, later = (row_of(int(place[0])) for place in (worst.first, worst.later))
    told = [f"{row['name']} (case {row['key']}, {row['split']})" for row in (first, later)]
    number = len(np.union1d(patients.later, splits.later))
    more = f"; {number:,} images are such copies" if number > 1 else ""
    mend = (
        "write the tars again without one of them or with one patient for both"
        if adopted
        else "leave one out or give both one patient in the raw table"
    )
    return (
        f"{told[0]} and {told[1]} hold the same pixels in {where}{more}; {mend}, or let them stand with duplicates=keep"
    )


def build_manifest(
    raw: RawDataset,
    config: ImportConfig,
    plan: Plan,
    known: Known,
    bad: Sequence[str],
    dropped_cases: int,
    duplicates: dict[str, int],
    files: dict[str, FileRecord],
) -> Manifest:
    """The sealed manifest of a finished import. `bad`: the images that were left out, as 'name: reason'."""
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
            counts=_counts(known, np.ones(len(known.split), bool)),
            splits={split: _counts(known, known.split == number) for number, split in enumerate(SPLITS)},
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
                rows=list(bad[:100]),
                dropped_cases=dropped_cases,
            ),
            duplicates=duplicates,
            settings=plan.settings,
            plan=plan.fingerprint,
            files=files,
        )
    )


def _counts(known: Known, where: np.ndarray) -> Counts:
    return Counts(
        cases=len(np.unique(known.case[where])),
        images=int(where.sum()),
        patients=len(np.unique(known.patient[where])),
    )
