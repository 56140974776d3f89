"""The index of a dataset compiled into memory-mapped arrays: what training asks for, image by image.

Done once on each machine, named by the dataset's fingerprint, shared by all its processes; so a process that
opens ten million rows parses nothing and holds nothing of its own. Text stays in the parquet file.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as compute
import pyarrow.parquet as parquet

from clusters.config import InputError
from data.mapped import Arrays, Kinds, mapped_arrays
from data.splits import SPLITS

VERSION = 1
HASH_BYTES = 32
BATCH_ROWS = 1 << 18
CHECKED = ("shard", "case", "patient", "labels", "split")
"""Columns whose damage nothing else would show: a wrong place, size or hash of an image shows when it is read."""


def compiled_path(folder: Path, fingerprint: str) -> Path:
    """The file of a dataset's arrays in a cache folder."""
    return folder / f"{fingerprint[:32]}-{VERSION}.arrays"


def compile_index(path: Path, index_file: Callable[[], Path], labels: list[str], check: bool = False) -> Arrays:
    """The arrays of an index, read-only; made from `index_file()` where they are not there. N images, K labels:

    `shard`, `size`, `case`, `patient` int32 (N,), `offset` int64 (N,), `split` int8 (N,: place in SPLITS),
    `sha256` and `pixel_sha256` uint8 (N, 32), `labels` float32 (N, K). Cases and patients are numbered as they
    come. With `check` the columns of CHECKED are read whole, and the file is made anew where one is damaged.
    Raises InputError for an index that lacks a column, and where there is no room for the arrays.
    """
    return mapped_arrays(
        path,
        lambda: _kinds(index_file(), labels),
        lambda arrays: _fill(arrays, index_file(), labels),
        check=CHECKED if check else (),
    )


def _kinds(index: Path, labels: list[str]) -> Kinds:
    num_images = parquet.read_metadata(index).num_rows
    names = set(parquet.read_schema(index).names)
    wanted = {"key", "patient", "split", "shard", "offset", "size", "sha256", *(f"label.{name}" for name in labels)}
    if missing := sorted(wanted - names):
        raise InputError(f"{index} has no column '{missing[0]}'; import the dataset again")
    whole = dict.fromkeys(("shard", "size", "case", "patient"), ("<i4", (num_images,)))
    hashes = dict.fromkeys(("sha256", "pixel_sha256"), ("|u1", (num_images, HASH_BYTES)))
    return {
        "offset": ("<i8", (num_images,)),
        **whole,
        **hashes,
        "labels": ("<f4", (num_images, len(labels))),
        "split": ("|i1", (num_images,)),
    }


def _fill(arrays: Arrays, index: Path, labels: list[str]) -> None:
    file = parquet.ParquetFile(index)
    there = set(file.schema_arrow.names)
    hashes = [name for name in ("sha256", "pixel_sha256") if name in there]
    names = ["key", "split", "shard", "offset", "size", *hashes, *(f"label.{name}" for name in labels)]
    start, case, last_key = 0, -1, None
    for batch in file.iter_batches(BATCH_ROWS, columns=names):
        here = slice(start, start + batch.num_rows)
        keys = batch.column("key")
        new = np.ones(batch.num_rows, dtype=np.int32)
        new[1:] = compute.call_function("not_equal", [keys[1:], keys[:-1]]).to_numpy(zero_copy_only=False)
        new[0] = keys[0].as_py() != last_key
        arrays["case"][here] = case + np.cumsum(new)
        case, last_key = int(arrays["case"][here.stop - 1]), keys[-1].as_py()
        for name in ("shard", "offset", "size"):
            arrays[name][here] = batch.column(name).to_numpy()
        places = compute.call_function("index_in", [batch.column("split")], compute.SetLookupOptions(pa.array(SPLITS)))
        arrays["split"][here] = places.fill_null(-1).to_numpy()
        for name in hashes:
            arrays[name][here] = _from_hex(batch.column(name))
        for place, name in enumerate(labels):
            arrays["labels"][here, place] = batch.column(f"label.{name}").to_numpy(zero_copy_only=False)
        start = here.stop
    patients = file.read(columns=["patient"]).column("patient").combine_chunks().dictionary_encode()
    if len(patients):
        arrays["patient"][:] = patients.indices.to_numpy()


def _from_hex(hashes: Any) -> np.ndarray:
    """Hexadecimal SHA-256 as bytes, (N, 32); zeros where there is none."""
    text = bytes.fromhex("".join(hashes.fill_null("0" * 2 * HASH_BYTES).to_pylist()))
    return np.frombuffer(text, np.uint8).reshape(-1, HASH_BYTES)
