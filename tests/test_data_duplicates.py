"""The same pixels, or nearly the same, in two cases."""

from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clusters.config import InputError
from data.cases import Case, RawDataset, SourceImage
from data.duplicates import MAX_BUCKET, NEAR_BITS, Known, duplicates_told, exact_copies, near_pairs
from data.hashes import difference_hash
from data.images import decode_stored, encode_jpeg, shrink
from data.shards import write_dataset
from tests.drawn_cases import Drawn, cases, config


def known(dhash: np.ndarray, case: np.ndarray, split: np.ndarray, pixels: np.ndarray | None = None) -> Known:
    pixels = np.arange(len(dhash)) if pixels is None else pixels
    whole = [values.astype(np.int64) for values in (case, case, split)]
    return Known(pixels.astype(np.uint64) // 3, pixels.astype(np.uint64) % 3, dhash.astype(np.uint64), *whole)


def test_the_same_pixels_in_two_splits_are_refused_unless_kept(tmp_path: Path) -> None:
    raw = cases(30, lambda seed: Drawn(0 if seed in (0, 10, 20, 40, 50, 60, 70, 80, 90) else seed))
    with pytest.raises(
        InputError, match=r"image \d.0 .case case-\d, \w+. and image \d.0 .* hold the same pixels in two splits; 8 "
    ):
        write_dataset(raw, config(tmp_path / "out"))
    manifest = write_dataset(raw, config(tmp_path / "out", duplicates="keep")).manifest
    assert manifest.duplicates["images"] == 8
    assert manifest.duplicates["across_splits"] > 0


def test_near_copies_differ_in_few_bits_of_the_perceptual_hash() -> None:
    rng = np.random.default_rng(0)
    noise = [rng.integers(0, 256, (12, 12, 3), dtype=np.uint8) for _ in range(2)]
    smooth = [np.asarray(cv2.resize(pixels, (300, 240)), np.uint8) for pixels in noise]
    copy = decode_stored(encode_jpeg(shrink(smooth[0], 100), 60))
    near, far = (difference_hash(other) ^ difference_hash(smooth[0]) for other in (copy, smooth[1]))
    assert near.bit_count() <= 4 < 12 <= far.bit_count()


def test_the_same_pixels_with_two_patients_of_one_split_are_refused_too(tmp_path: Path) -> None:
    images = [SourceImage(f"row {i}", Drawn(i % 3)) for i in range(4)]
    raw = RawDataset(
        "CC0", "nobody", "unlabelled", (), [Case(f"c{i}", f"p{i}", (images[i],), split="train") for i in range(4)], "x"
    )
    with pytest.raises(InputError, match=r"row [03] .case c\d, train. and row [03] .* in the cases of two patients"):
        write_dataset(raw, config(tmp_path / "out"))
    manifest = write_dataset(raw, config(tmp_path / "out", duplicates="keep")).manifest
    assert manifest.duplicates["images"] == manifest.duplicates["across_patients"] == 1
    assert manifest.duplicates["across_splits"] == 0
    assert duplicates_told(manifest.duplicates)[0].startswith("1 image is pixel for pixel another one")


def test_copies_within_a_patient_are_counted_and_let_through(tmp_path: Path) -> None:
    raw = cases(12, lambda seed: Drawn(seed // 20 * 20))  # the two cases of a patient have one picture
    manifest = write_dataset(raw, config(tmp_path / "out")).manifest
    assert manifest.duplicates["images"] == manifest.counts.images - 6
    assert manifest.duplicates["across_cases"] > 0 == manifest.duplicates["across_patients"]


@given(st.lists(st.integers(0, 8), min_size=1, max_size=40))
def test_every_copy_is_led_back_to_the_first_image_with_its_pixels(pixels: list[int]) -> None:
    values = np.array(pixels)
    copies = exact_copies(known(values, values, values, values))
    expected = [(pixels.index(value), place) for place, value in enumerate(pixels) if pixels.index(value) != place]
    assert list(zip(copies.first.tolist(), copies.later.tolist())) == expected


@given(st.integers(0, 2**32 - 1), st.integers(2, 60))
def test_no_near_pair_is_missed_or_counted_twice(seed: int, number: int) -> None:
    rng = np.random.default_rng(seed)
    roots = rng.integers(0, 2**64, 5, dtype=np.uint64)
    flips = [np.bitwise_or.reduce(np.uint64(1) << rng.integers(0, 64, 3, dtype=np.uint64)) for _ in range(number)]
    dhash = roots[rng.integers(0, 5, number)] ^ np.array(flips)
    case, split, pixels = rng.integers(0, number, number), rng.integers(0, 3, number), rng.integers(0, number, number)
    a, b = np.triu_indices(number, 1)
    near = (np.bitwise_count(dhash[a] ^ dhash[b]) <= NEAR_BITS) & (case[a] != case[b]) & (pixels[a] != pixels[b])
    found = near_pairs(known(dhash, case, split, pixels))
    assert (found.pairs, found.uncompared_images) == (near.sum(), 0)
    assert found.across_splits == (near & (split[a] != split[b])).sum()


def test_featureless_images_are_counted_but_not_compared_with_one_another() -> None:
    number = 100_000
    dhash = np.zeros(number, np.uint64)
    dhash[:2] = (0x0123456789ABCDEF, 0x0123456789ABCDEE)
    found = near_pairs(known(dhash, np.arange(number), np.zeros(number)))
    assert (found.pairs, found.uncompared_images) == (1, number - 2)
    assert number > MAX_BUCKET
    told = duplicates_told({"images": 0, "near_pairs": 1, "near_pairs_across_splits": 0, "near_uncompared_images": 5})
    assert len(told) == 2
