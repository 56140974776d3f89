"""A dataset folder, opened: the index as columns, and any image by its row number.

Only the bytes of one image are read at a time, straight from its place in the tar, and checked
against the hash in the index, so a damaged shard never shortens or alters a dataset in silence.
"""

import hashlib
import io
import os
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet

from clusters.config import InputError
from clusters.storage import Folder
from data.manifest import INDEX, Manifest, check_files, read_manifest


def open_dataset(location: str) -> "Dataset":
    """Open a dataset folder (local path or fsspec URL).

    Raises InputError naming the file: no manifest, an altered manifest or index, a shard missing or of
    another size. The bytes of the shards are checked as they are read, all at once by `verify`.
    """
    folder = Folder(location)
    manifest = read_manifest(folder)
    check_files(folder, manifest)
    content = folder.read(INDEX)
    if hashlib.sha256(content).hexdigest() != manifest.files[INDEX].sha256:
        raise InputError(f"{folder.file(INDEX)} was altered (its hash differs); copy the dataset again")
    index = parquet.read_table(io.BytesIO(content)).combine_chunks()
    return Dataset(folder.location, manifest, index)


class Dataset:
    """The read side of a dataset folder. Rows are images, in shard order, a case's rows adjacent.

    Can be pickled: each process opens the shards for itself.
    """

    def __init__(self, location: str, manifest: Manifest, index: pa.Table) -> None:
        self.location = location
        self.manifest = manifest
        self.index = index
        self._folder = Folder(location)
        self._files: dict[int, int] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {"location": self.location, "manifest": self.manifest, "index": self.index}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)

    def __del__(self) -> None:
        for file in getattr(self, "_files", {}).values():
            os.close(file)

    def __repr__(self) -> str:
        return f"Dataset({self.manifest.name}, {self.num_cases} cases, {self.num_images} images)"

    @property
    def fingerprint(self) -> str:
        """The manifest's own hash: the same dataset, byte for byte, wherever it lies."""
        return self.manifest.sha256

    @property
    def num_images(self) -> int:
        """Number of rows."""
        return self.index.num_rows

    @property
    def num_cases(self) -> int:
        """Number of cases."""
        return self.manifest.counts.cases

    @property
    def label_names(self) -> list[str]:
        """Names of the labels, in the order of the columns of `labels`."""
        return self.manifest.labels

    @property
    def task(self) -> str:
        """`multiclass`, `binary`, `multilabel` or `unlabelled`."""
        return self.manifest.task

    def column(self, name: str) -> np.ndarray:
        """A column of the index, `(num_images,)`; text columns are arrays of str objects.

        Raises InputError with the columns there are.
        """
        if name not in self.index.column_names:
            raise InputError(
                f"no column '{name}' in the index of {self.location}; there are {', '.join(self.index.column_names)}"
            )
        return self.index.column(name).to_numpy()

    def rows(self, splits: Sequence[str]) -> np.ndarray:
        """Row numbers in these splits, ascending int64. Raises InputError with the splits there are."""
        there = [split for split, counts in self.manifest.splits.items() if counts.images]
        for split in splits:
            if split not in there:
                raise InputError(f"no split '{split}' in {self.location}; there are {', '.join(there)}")
        return np.flatnonzero(np.isin(self.column("split").astype(str), list(splits))).astype(np.int64)

    @cached_property
    def labels(self) -> np.ndarray:
        """Labels, float32 `(num_images, num_labels)`, NaN where not labelled."""
        columns = [self.column(f"label.{name}") for name in self.label_names]
        return np.stack(columns, axis=1) if columns else np.zeros((self.num_images, 0), np.float32)

    @cached_property
    def case_of(self) -> np.ndarray:
        """Number of each row's case, int64 `(num_images,)`, 0 to num_cases - 1, ascending."""
        keys = self.column("key")
        return np.concatenate([[0], np.cumsum(keys[1:] != keys[:-1])]).astype(np.int64)

    @cached_property
    def shard_of(self) -> np.ndarray:
        """Number of each row's shard, int64 `(num_images,)`, ascending."""
        return self.column("shard").astype(np.int64)

    @cached_property
    def _places(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        return self.shard_of, self.column("offset"), self.column("size")

    def read(self, row: int) -> bytes:
        """The stored file of one image, checked. Raises InputError naming shard and member."""
        shards, offsets, sizes = self._places
        shard, offset, size = int(shards[row]), int(offsets[row]), int(sizes[row])
        content = self._read_at(shard, offset, size)
        if hashlib.sha256(content).hexdigest() != self.index.column("sha256")[int(row)].as_py():
            member = self.index.column("member")[int(row)].as_py()
            raise InputError(
                f"{self._folder.file(self.manifest.shards[shard])}: image {member} was altered (its hash "
                f"differs); copy the dataset again, or run python -m data verify {self.location}"
            )
        return content

    def _read_at(self, shard: int, offset: int, size: int) -> bytes:
        name = self.manifest.shards[shard]
        try:
            if self._folder.path is None:
                return self._folder.read_range(name, offset, size)
            if shard not in self._files:
                self._files[shard] = os.open(self._folder.path / name, os.O_RDONLY | os.O_CLOEXEC)
            return os.pread(self._files[shard], size, offset)
        except FileNotFoundError:
            raise InputError(f"{self._folder.file(name)} is missing; copy the dataset again") from None
