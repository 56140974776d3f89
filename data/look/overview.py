"""How much there is of what in a dataset: counted from its index alone, no image is read.

Shapes: N images, C cases, P patients, K labels, S splits, V values of an attribute.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from data.dataset import Dataset
from data.splits import SPLITS

Integers = NDArray[np.int64]
NOT_STATED = "not stated"
MAX_NAME = 48
POSITIVE, NEGATIVE, UNCERTAIN, UNLABELLED = range(4)


@dataclass(frozen=True)
class Coded:
    """A column of text as numbers: `names[codes[i]]` stands in row i."""

    codes: Integers
    names: list[str]


def shortened(name: str) -> str:
    """A name of the dataset as far as there is room for it."""
    return name if len(name) <= MAX_NAME else f"{name[: MAX_NAME - 1]}…"


def coded(column: np.ndarray) -> Coded:
    """A text column as numbers, its values sorted; an empty cell is `not stated`."""
    encoded = pa.array(column, pa.string()).dictionary_encode()
    names = [str(name or NOT_STATED) for name in encoded.dictionary.to_pylist()]
    order = np.argsort(np.array(names, dtype=object), kind="stable")
    place = np.empty(len(names), np.int64)
    place[order] = np.arange(len(names))
    return Coded(place[encoded.indices.to_numpy()], [names[number] for number in order])


def crossed(rows: Integers, num_rows: int, columns: Integers, num_columns: int) -> Integers:
    """How often each pair of codes occurs, `(num_rows, num_columns)`."""
    flat = np.bincount(rows * num_columns + columns, minlength=num_rows * num_columns)
    return flat.reshape(num_rows, num_columns).astype(np.int64)


class Overview:
    """A dataset's index in numbers. Cases are numbered as in the index, splits as in `splits`."""

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset
        self._columns: dict[str, np.ndarray] = {}
        there = set(self.column("split").tolist())
        self.splits = [split for split in SPLITS if split in there]

    def column(self, name: str) -> np.ndarray:
        """A column of the index, read once."""
        if name not in self._columns:
            self._columns[name] = self.dataset.column(name)
        return self._columns[name]

    @cached_property
    def case_of(self) -> Integers:
        """Case of each image, 0 to C - 1."""
        return np.asarray(self.dataset.case_of, dtype=np.int64)

    @cached_property
    def split_N(self) -> Integers:
        """Split of each image, as its place in `splits`."""
        known = coded(self.column("split"))
        place = np.array([self.splits.index(name) for name in known.names], dtype=np.int64)
        return place[known.codes]

    @cached_property
    def patient_N(self) -> Integers:
        """Patient of each image, 0 to P - 1."""
        return coded(self.column("patient")).codes

    @cached_property
    def pixels_N(self) -> Integers:
        """A number for each image that only pixel for pixel equal ones share."""
        return coded(self.column("pixel_sha256")).codes

    @cached_property
    def images_C(self) -> Integers:
        """Number of images of each case."""
        return np.bincount(self.case_of).astype(np.int64)

    @cached_property
    def first_C(self) -> Integers:
        """Row of the first image of each case; split, patient and labels of the case stand in it."""
        return np.concatenate([[0], np.cumsum(self.images_C)[:-1]]).astype(np.int64)

    @cached_property
    def split_C(self) -> Integers:
        """Split of each case."""
        return self.split_N[self.first_C]

    @cached_property
    def patient_C(self) -> Integers:
        """Patient of each case."""
        return self.patient_N[self.first_C]

    @cached_property
    def labels_CK(self) -> NDArray[np.float32]:
        """Labels of each case, NaN where not labelled."""
        return np.asarray(self.dataset.labels[self.first_C])

    @cached_property
    def state_CK(self) -> NDArray[np.int8]:
        """POSITIVE, NEGATIVE, UNCERTAIN or UNLABELLED; of several classes the likeliest is the positive one."""
        labels = self.labels_CK
        known = np.isfinite(labels)
        positive = labels > 0.5
        if self.dataset.task == "multiclass" and labels.size:
            best = np.where(known, labels, -1).argmax(axis=1)
            positive = known & (np.arange(labels.shape[1]) == best[:, None])
        state = np.where(known, np.where(positive, POSITIVE, NEGATIVE), UNLABELLED).astype(np.int8)
        there = set(self.dataset.column_names)
        for k, name in enumerate(self.dataset.label_names):
            if f"uncertain.{name}" in there:
                marked = np.asarray(self.column(f"uncertain.{name}")).astype(bool)[self.first_C]
                state[marked & ~known[:, k], k] = UNCERTAIN
        return state

    @cached_property
    def num_soft(self) -> int:
        """Cases whose label is spread over several classes."""
        return int(((self.labels_CK > 0) & (self.labels_CK < 1)).any(axis=1).sum())

    @cached_property
    def attributes(self) -> dict[str, Coded]:
        """Attributes of the images, by name."""
        names = [name for name in self.dataset.column_names if name.startswith("attr.")]
        return {name.removeprefix("attr."): coded(self.column(name)) for name in names}

    def by_split(self, cases_C: NDArray[np.bool_]) -> Integers:
        """How many of the cases of a mask stand in each split, `(S,)`."""
        return np.bincount(self.split_C[cases_C], minlength=len(self.splits)).astype(np.int64)

    def patients_by_split(self, cases_C: NDArray[np.bool_]) -> Integers:
        """How many patients the cases of a mask have in each split, `(S,)`."""
        found = np.unique(np.stack([self.split_C[cases_C], self.patient_C[cases_C]]), axis=1)
        return np.bincount(found[0], minlength=len(self.splits)).astype(np.int64)

    def exact_duplicates(self) -> list[Integers]:
        """Groups of rows that hold the same pixels, those across splits and patients first."""
        hashes = self.pixels_N
        again = np.flatnonzero(np.bincount(hashes)[hashes] > 1)
        again = again[np.argsort(hashes[again], kind="stable")]
        twice = np.split(again, np.flatnonzero(np.diff(hashes[again])) + 1) if len(again) else []
        return sorted(twice, key=lambda rows: (not self.crosses_splits(rows), not self.crosses_patients(rows), rows[0]))

    def crosses_splits(self, rows: Integers) -> bool:
        """Whether these rows stand in more than one split."""
        return len(set(self.split_N[rows].tolist())) > 1

    def crosses_patients(self, rows: Integers) -> bool:
        """Whether these rows are of more than one patient."""
        return len(set(self.patient_N[rows].tolist())) > 1
