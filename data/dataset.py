"""A dataset folder, opened: its columns as arrays, and any image by its row number.

What training asks for is memory-mapped (see `compiled`); other columns are read from the index when somebody
asks. Only the bytes of one image are read at a time, straight from its place in the tar, and checked against
the hash in the index, so a damaged shard never shortens or alters a dataset in silence.
"""

import hashlib
import multiprocessing
import uuid
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
from numpy.typing import NDArray

from clusters.config import InputError
from clusters.storage import Folder
from data.cache import CachePlace, locked, patiently, short_of_disk
from data.compiled import compile_index, compiled_path
from data.manifest import INDEX, STEERS, Manifest, check_files, read_manifest
from data.mapped import Arrays, intact
from data.shard_bytes import ShardBytes, unreadable
from data.splits import SPLITS


def open_dataset(location: str, cache: CachePlace | None = None) -> "Dataset":
    """Open a dataset folder (local path or fsspec URL).

    Raises InputError naming the file: no manifest, an altered manifest or index, a shard missing or of
    another size. The bytes of the shards are checked as they are read, all at once by `verify`.
    """
    folder = Folder(location)
    manifest = read_manifest(folder)
    check_files(folder, manifest)
    dataset = Dataset(folder.location, manifest, cache)
    if folder.path is not None:
        dataset.index_file()
    return dataset


class Dataset:
    """The read side of a dataset folder. Rows are images, in shard order, a case's rows adjacent.

    Can be pickled, and is small then: each process maps the arrays and opens the shards for itself.
    """

    def __init__(self, location: str, manifest: Manifest, cache: CachePlace | None = None) -> None:
        self.location = location
        self.manifest = manifest
        self._cache = cache or CachePlace()
        self._folder = Folder(location)
        self._shards = ShardBytes(self._folder, manifest, self._cache)
        self._index_file: Path | None = None

    def __reduce__(self) -> tuple[object, ...]:
        return Dataset, (self.location, self.manifest, self._cache)

    def __repr__(self) -> str:
        return f"Dataset({self.manifest.name}, {self.num_cases} cases, {self.num_images} images)"

    @property
    def fingerprint(self) -> str:
        """The manifest's own hash: the same dataset, byte for byte, wherever it lies."""
        return self.manifest.sha256

    @property
    def cache(self) -> CachePlace:
        """Where the cache of this dataset lies, for what else its readers share."""
        return self._cache

    @property
    def is_remote(self) -> bool:
        """Whether the shards come over a network, so that saying ahead what will be read pays."""
        return self._folder.path is None

    def short_of_disk(self) -> str | None:
        """What to tell a person where this machine's disk has too little room for the dataset's cache."""
        if not self._shards.are_cached:
            return None
        sizes = [file.size for name, file in self.manifest.files.items() if name.endswith(".tar")]
        return short_of_disk(self._cache, sum(sizes))

    @property
    def num_images(self) -> int:
        """Number of rows."""
        return self.manifest.counts.images

    @property
    def num_cases(self) -> int:
        """Number of cases."""
        return self.manifest.counts.cases

    @property
    def label_names(self) -> list[str]:
        """Names of the labels, in the order of the columns of `labels`."""
        return self.manifest.labels

    @property
    def number_names(self) -> list[str]:
        """Names of the measurements: the columns `number.<name>` of the index, float32, NaN where unknown."""
        return [name.removeprefix("number.") for name in self.column_names if name.startswith("number.")]

    @property
    def task(self) -> str:
        """`multiclass`, `binary`, `multilabel` or `unlabelled`."""
        return self.manifest.task

    @cached_property
    def column_names(self) -> list[str]:
        """Names of the columns of the index."""
        return list(parquet.read_schema(self.index_file()).names)

    @property
    def index(self) -> pa.Table:
        """The whole index, read anew each time: for looking at a dataset, not for training."""
        return parquet.read_table(self.index_file())

    def column(self, name: str) -> np.ndarray:
        """A column of the index, `(num_images,)`; text columns are arrays of str objects.

        Raises InputError with the columns there are.
        """
        if name not in self.column_names:
            raise InputError(
                f"no column '{name}' in the index of {self.location}; there are {', '.join(self.column_names)}"
            )
        if name == "split":
            return np.array(SPLITS, dtype=object)[self._arrays["split"]]
        return parquet.read_table(self.index_file(), columns=[name]).column(name).to_numpy()

    def rows(self, splits: Sequence[str]) -> NDArray[np.int64]:
        """Row numbers in these splits, ascending int64. Raises InputError with the splits there are."""
        there = [split for split, counts in self.manifest.splits.items() if counts.images]
        for split in splits:
            if split not in there:
                raise InputError(f"no split '{split}' in {self.location}; there are {', '.join(there)}")
        return np.flatnonzero(np.isin(self._arrays["split"], [SPLITS.index(split) for split in splits]))

    @property
    def labels(self) -> NDArray[np.float32]:
        """Labels, float32 `(num_images, num_labels)`, NaN where not labelled; read-only."""
        return self._arrays["labels"]

    @property
    def case_of(self) -> NDArray[np.int32]:
        """Number of each row's case, int32 `(num_images,)`, 0 to num_cases - 1, ascending; read-only."""
        return self._arrays["case"]

    @property
    def patient_of(self) -> NDArray[np.int32]:
        """Number of each row's patient, int32 `(num_images,)`, as they come; read-only."""
        return self._arrays["patient"]

    @property
    def picture_of(self) -> NDArray[np.int64]:
        """64 bits of the hash of each row's pixels, int64 `(num_images,)`, 0 where the index has none."""
        return np.ascontiguousarray(self._arrays["pixel_sha256"][:, :8]).view("<i8")[:, 0]

    @property
    def shard_of(self) -> NDArray[np.int32]:
        """Number of each row's shard, int32 `(num_images,)`, ascending; read-only."""
        return self._arrays["shard"]

    def read(self, row: int) -> bytes:
        """The stored file of one image, checked. Raises InputError naming shard and member."""
        return self.read_many(np.array([row]))[0]

    def read_many(self, rows: NDArray[np.int64]) -> list[bytes]:
        """The stored files of some images, checked. Raises InputError naming shard and member."""
        arrays = self._arrays
        contents = self._shards.read(*(arrays[name][rows].tolist() for name in ("shard", "offset", "size")))
        digests = arrays["sha256"][rows].tobytes()
        for number, content in enumerate(contents):
            if hashlib.sha256(content).digest() != digests[32 * number : 32 * number + 32]:
                contents[number] = self._read_again(int(rows[number]))
        return contents

    def announce(self, rows: NDArray[np.int64], now: bool = False, least_share: float = 0.0) -> None:
        """Say which images will be read: of a remote dataset, their shards are downloaded in the background.

        `now`: their reader will wait for them. Shards of which a smaller share than `least_share` is asked for
        are left to ranged reads. Nothing happens for local datasets or where the cache is off.
        """
        if self._shards.are_cached:
            asked = np.bincount(self._arrays["shard"][rows], self._arrays["size"][rows])
            self._shards.announce(
                {shard: float(asked[shard]) for shard in np.flatnonzero(asked).tolist()}, now, least_share
            )

    def index_file(self) -> Path:
        """The index as a local file, checked; a remote one is copied into the cache.

        Raises InputError where its hash differs from the manifest's.
        """
        if self._index_file is None:
            local = self._folder.path
            self._index_file = self._copied_index() if local is None else self._checked_index(local / INDEX)
        return self._index_file

    def _checked_index(self, path: Path) -> Path:
        with path.open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != self.manifest.files[INDEX].sha256:
                raise InputError(f"{self._folder.file(INDEX)} was altered (its hash differs); copy the dataset again")
        if told := [name for name in parquet.read_schema(path).names if STEERS.search(name)]:  # terminals show them
            raise InputError(
                f"{self._folder.file(INDEX)}: {told[0]!r} is no name of a column; ask whoever made it for another"
            )
        return path

    def _copied_index(self) -> Path:
        path = self._cache.sub_folder("indexes") / f"{self.fingerprint[:32]}.parquet"
        with locked(path.parent / "copying.lock"):
            if path.exists():
                try:
                    return self._checked_index(path)
                except InputError:
                    path.unlink()
            part = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.part")
            try:
                patiently(lambda: self._folder.download(INDEX, part))
                self._checked_index(part).replace(path)
            except OSError as error:
                raise unreadable(self._folder, INDEX, error) from None
            finally:
                part.unlink(missing_ok=True)
        return path

    @cached_property
    def _arrays(self) -> Arrays:
        path = compiled_path(self._cache.sub_folder("indexes"), self.fingerprint)
        # A loader process leaves the check to the process that started it.
        check = multiprocessing.parent_process() is None
        return compile_index(path, self.index_file, self.label_names, check)

    def _read_again(self, row: int) -> bytes:
        """One more try for an image whose hash differs: the cache may be damaged and the dataset be whole."""
        path = compiled_path(self._cache.sub_folder("indexes"), self.fingerprint)
        if not intact(path):
            path.unlink(missing_ok=True)
            del self._arrays
        place = [[int(self._arrays[name][row])] for name in ("shard", "offset", "size")]
        digest = self._arrays["sha256"][row].tobytes()
        (content,) = self._shards.read(*place)
        (shard,) = place[0]
        if hashlib.sha256(content).digest() != digest and self._shards.fetch_again(shard):
            (content,) = self._shards.read(*place)
        if hashlib.sha256(content).digest() != digest:
            member = self.column("member")[row]
            raise InputError(
                f"{self._folder.file(self.manifest.shards[shard])}: image {member} was altered (its hash differs); "
                f"copy the dataset again, or run python -m data verify {self.location}"
            )
        return content
