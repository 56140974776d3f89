"""Which two images of a case are its pair in a turn: arithmetic on (seed, stage, case, turn), never a state.

Shapes: N images of the dataset, R rows, K images of a case, A attributes.
"""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from clusters.config import InputError, nearest
from data.cache import CachePlace
from data.combined import AnyDataset, parts_of
from pretrain.stage import Rows, Uniforms, reduced

PREFIX = "attr."


def two_images(sample: int, rows: Rows, turn: int, uniforms: Uniforms) -> tuple[int, int]:
    """Two distinct rows, or the one there is twice.

    The images stand in a line, shuffled, and are taken two at a time; after K turns, or two such lines, they are
    shuffled anew. So each is used twice in K turns, all of them in the first ⌈K/2⌉ and again in the last ⌈K/2⌉, and
    in each turn every ordered pair is equally likely.
    """
    count = len(rows)
    if count == 1:
        return int(rows[0]), int(rows[0])
    cycle, place = divmod(turn, count)
    first, second = np.argsort(uniforms(2 * count, sample, cycle).reshape(2, count), axis=1, kind="stable")
    if count % 2 and first[-1] == second[0]:  # the pair across the border of both
        second = np.roll(second, 1)
    line = np.concatenate([first, second])
    return int(rows[line[2 * place]]), int(rows[line[2 * place + 1]])


@dataclass(frozen=True)
class PairsWithin:
    """Pairs of images that agree or differ in some attributes (Vu et al., 2021: MedAug).

    A value that is not known neither agrees nor differs. In K turns each image of a case is the first of a pair once,
    in an order shuffled anew each time, and its partner is any of those that fit, all equally likely. An image
    that fits with no other gives two views of itself, so nothing is left unused; `num_partners` tells how many.

    `codes_NA` numbers the values of each attribute, -1 for an unknown one.
    """

    names: tuple[str, ...]
    same: tuple[bool, ...]
    codes_NA: NDArray[np.int32]
    cache: CachePlace = field(default_factory=CachePlace)

    @classmethod
    def of(cls, dataset: AnyDataset, within: Mapping[str, str]) -> "PairsWithin":
        """From `{attribute: same | different}`. Raises InputError for an attribute that no dataset has."""
        codes = [_codes(dataset, name) for name in within]
        same = tuple(kind == "same" for kind in within.values())
        return cls(tuple(within), same, np.stack(codes, axis=1), parts_of(dataset)[0].cache)

    def __str__(self) -> str:
        return " and ".join(f"{'the same' if s else 'another'} {n}" for n, s in zip(self.names, self.same))

    def __reduce__(self) -> tuple[object, ...]:
        return reduced(_Named(self.names, self.same), {"codes_NA": self.codes_NA}, self.cache)

    def __call__(self, sample: int, rows: Rows, turn: int, uniforms: Uniforms) -> tuple[int, int]:
        """The pair of a case, as `two_images` within the constraint."""
        cycle, place = divmod(turn, len(rows))
        draws = uniforms(2 * len(rows), sample, cycle)
        first = int(np.argsort(draws[: len(rows)], kind="stable")[place])
        partners = np.flatnonzero(self._fits(rows, first))
        if not len(partners):
            return int(rows[first]), int(rows[first])
        return int(rows[first]), int(rows[partners[int(draws[len(rows) + place] * len(partners))]])

    def _fits(self, rows: Rows, first: int) -> NDArray[np.bool_]:
        codes_KA = self.codes_NA[rows]
        known = (codes_KA >= 0) & (codes_KA[first] >= 0)
        fits = (known & ((codes_KA == codes_KA[first]) == self.same)).all(axis=1)
        fits[first] = False
        return fits

    def num_partners(self, rows_R: Rows, case_R: Rows) -> NDArray[np.int64]:
        """With how many images of its case each row fits, (R,): for all rows at once.

        Those that differ in all of some attributes are counted by inclusion and exclusion: all, less those that
        agree in one, and those that agree in two again.
        """
        partners = np.zeros(len(rows_R), np.int64)
        known = np.flatnonzero((self.codes_NA[rows_R] >= 0).all(axis=1))
        codes_RA, case_R = self.codes_NA[rows_R[known]], case_R[known]
        same = [place for place, is_same in enumerate(self.same) if is_same]
        others = [place for place, is_same in enumerate(self.same) if not is_same]
        for number in range(len(others) + 1):
            for some in itertools.combinations(others, number):
                alike = _num_alike(case_R, codes_RA[:, [*same, *some]])
                partners[known] += alike if number % 2 == 0 else -alike
        return partners if others else np.maximum(partners - 1, 0)  # each row agrees with itself


@dataclass(frozen=True)
class _Named:
    """What makes a `PairsWithin` again in another process, of arrays that it gets there."""

    names: tuple[str, ...]
    same: tuple[bool, ...]

    def __call__(self, codes_NA: NDArray[np.int32], cache: CachePlace) -> PairsWithin:
        return PairsWithin(self.names, self.same, codes_NA, cache)


def _num_alike(case_R: Rows, codes_RA: NDArray[np.int32]) -> NDArray[np.int64]:
    """How many rows of its case have the same codes as each row, itself among them, (R,)."""
    key = case_R.astype(np.int64)
    for codes_R in codes_RA.T:
        key = np.unique(key * (int(codes_R.max(initial=0)) + 1) + codes_R, return_inverse=True)[1]
    return np.bincount(key)[key] if len(key) else key


def _codes(dataset: AnyDataset, name: str) -> NDArray[np.int32]:
    """A number for each image's value of an attribute, (N,), -1 where it is empty or its dataset does not have it."""
    parts = parts_of(dataset)
    there = sorted({c.removeprefix(PREFIX) for part in parts for c in part.column_names if c.startswith(PREFIX)})
    if name not in there:
        raise InputError(
            f"pair_within: {dataset.location} has no attribute '{name}'{nearest(name, there)}; "
            f"there are {', '.join(there) or 'none'}"
        )
    columns = [
        pa.array(part.column(PREFIX + name), pa.string())
        if PREFIX + name in part.column_names
        else pa.nulls(part.num_images, pa.string())
        for part in parts
    ]
    texts = pa.chunked_array(columns).combine_chunks()
    numbers = texts.dictionary_encode()
    codes = numbers.indices.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int32)
    empty = numbers.dictionary.to_pylist()
    return np.where(codes == empty.index(""), -1, codes).astype(np.int32) if "" in empty else codes
