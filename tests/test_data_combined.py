"""Several datasets as one: the laws of their interleaving, and the interface of one dataset over all of them."""

import itertools
import pickle
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clusters.config import InputError
from data.combined import BLOCK_POSITIONS, CombinedDataset, MixedOrder, Turns, open_datasets, order_of, shares
from data.dataset import Dataset, open_dataset
from data.loader import positions_of
from data.order import Order
from data.shards import write_dataset
from data.sources import read_raw, synthetic

WEIGHTS = st.lists(st.floats(0.01, 100), min_size=1, max_size=6)
SIZES = st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=5).filter(any), min_size=2, max_size=4)


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """30 other synthetic cases, in two shards; not to be altered."""
    out = tmp_path_factory.mktemp("other") / "dataset"
    config = synthetic.Options(
        source="synthetic", out=str(out), num_cases=30, size_px=32, seed=1, images_per_shard=40, num_processes=1
    )
    write_dataset(read_raw(config), config)
    return open_dataset(str(out))


@settings(max_examples=60, deadline=None)
@given(WEIGHTS, st.integers(0, 99), st.integers(0, 10**9))
def test_every_stretch_has_each_dataset_by_its_share(weights: list[float], seed: int, first_block: int) -> None:
    """In each block, and from the start to the end of any block, to less than the rounding of that many."""
    start = first_block * BLOCK_POSITIONS
    which, nth = Turns(weights, seed).at(np.arange(start, start + 5 * BLOCK_POSITIONS))
    for number, share in enumerate(np.array(weights) / np.sum(weights)):
        for block in which.reshape(5, BLOCK_POSITIONS):
            assert abs((block == number).sum() - share * BLOCK_POSITIONS) <= len(weights) + 1
        turns = nth[which == number]
        assert np.array_equal(turns, np.arange(turns[0], turns[0] + len(turns)) if len(turns) else turns)
        if len(turns):
            assert abs(turns[0] - share * start) <= (len(weights) + 1) / 2
            assert abs(turns[-1] + 1 - share * (start + 5 * BLOCK_POSITIONS)) <= (len(weights) + 1) / 2


@settings(max_examples=60, deadline=None)
@given(WEIGHTS, st.integers(0, 99))
def test_a_position_s_turn_is_what_counting_from_the_start_gives(weights: list[float], seed: int) -> None:
    positions = np.arange(7 * BLOCK_POSITIONS + 5)
    which, nth = Turns(weights, seed).at(positions)
    counts = [0] * len(weights)
    for dataset, turn in zip(which.tolist(), nth.tolist()):
        assert turn == counts[dataset]
        counts[dataset] += 1
    for position in positions[::29]:
        alone = Turns(weights, seed).at(np.array([position]))
        assert (int(alone[0][0]), int(alone[1][0])) == (which[position], nth[position])


@settings(max_examples=20, deadline=None)
@given(SIZES, st.lists(st.floats(0.1, 10), min_size=4, max_size=4), st.integers(0, 9))
def test_every_dataset_has_each_sample_once_in_each_of_its_epochs(sizes, weights, seed) -> None:
    totals = [sum(part) for part in sizes]
    order = MixedOrder([np.array(part) for part in sizes], weights[: len(sizes)], seed)
    samples = order.at(np.arange(600))
    starts = np.cumsum([0, *totals])
    for start, end in itertools.pairwise(starts):
        mine = samples[(samples >= start) & (samples < end)]
        whole = len(mine) // (end - start) * (end - start)
        for epoch in mine[:whole].reshape(-1, end - start):
            assert sorted(epoch.tolist()) == list(range(start, end))


@settings(max_examples=20, deadline=None)
@given(SIZES, st.integers(0, 9), st.integers(0, 10**11), st.randoms())
def test_a_position_does_not_depend_on_what_was_asked_before(sizes, seed, start, random) -> None:
    parts = [np.array(part) for part in sizes]
    weights = list(range(1, len(parts) + 1))
    positions = start + np.arange(200)
    order = MixedOrder(parts, weights, seed)
    expected, streams = order.at(positions), order.stream_of(positions)
    shuffled = np.arange(200)
    random.shuffle(shuffled)
    fresh = MixedOrder(parts, weights, seed)
    assert [int(fresh.at(positions[[p]])[0]) for p in shuffled[:40]] == expected[shuffled[:40]].tolist()
    assert np.array_equal(pickle.loads(pickle.dumps(fresh)).stream_of(positions), streams)
    assert 0 <= streams.min() <= streams.max() < order.num_streams


@settings(max_examples=20, deadline=None)
@given(SIZES, st.integers(0, 9))
def test_the_epoch_of_a_position_is_how_often_its_sample_stood_before(sizes, seed) -> None:
    order = MixedOrder([np.array(part) for part in sizes], list(range(1, len(sizes) + 1)), seed)
    positions, seen = np.arange(400), Counter[int]()
    for sample, epoch in zip(order.at(positions).tolist(), order.epoch_of(positions).tolist()):
        assert epoch == seen[sample]
        seen[sample] += 1
    some = positions[::-7]
    assert np.array_equal(order.epoch_of(some), order.epoch_of(positions)[some])


def test_by_size_an_epoch_of_all_has_every_sample_once() -> None:
    """The default weights: after as many positions as samples, each of them was there once."""
    sizes = [np.array([300, 340]), np.array([192]), np.array([64, 64])]
    total = sum(int(part.sum()) for part in sizes)
    assert total % BLOCK_POSITIONS == 0
    order = MixedOrder(sizes, [int(part.sum()) for part in sizes], seed=5)
    for epoch in range(3):
        assert sorted(order.at(np.arange(epoch * total, (epoch + 1) * total)).tolist()) == list(range(total))


def test_the_interleaving_is_the_same_for_ever() -> None:
    """Golden values: a resumed run must find the order of the version that started it."""
    which, nth = Turns([1, 2], seed=7).at(np.arange(63, 78))
    assert which.tolist() == GOLDEN_WHICH
    assert nth.tolist() == GOLDEN_NTH


def test_any_number_of_workers_takes_the_same_batch(synthetic_dataset: Dataset, other: Dataset) -> None:
    both = CombinedDataset([synthetic_dataset, other], [1, 3])
    sizes = np.bincount(both.shard_of[both.rows(["train"])])
    whole = order_of(both, sizes, 0).at(np.arange(5 * 24, 6 * 24))
    for world_size in (2, 3, 8):
        taken = [order_of(both, sizes, 0).at(positions_of(5, 24, rank, world_size)) for rank in range(world_size)]
        assert sorted(np.concatenate(taken).tolist()) == sorted(whole.tolist())
    assert shares(both, sizes).tolist() == [0.25, 0.75]


def test_one_dataset_has_the_order_it_always_had(synthetic_dataset: Dataset) -> None:
    assert open_datasets([synthetic_dataset.location], [3]).fingerprint == synthetic_dataset.fingerprint  # type: ignore[union-attr]
    sizes = np.bincount(synthetic_dataset.shard_of)
    alone = order_of(synthetic_dataset, sizes, 4)
    assert np.array_equal(alone.at(np.arange(500)), Order(sizes, 4).at(np.arange(500)))


def test_rows_stand_end_to_end(synthetic_dataset: Dataset, other: Dataset) -> None:
    both = pickle.loads(pickle.dumps(CombinedDataset([synthetic_dataset, other])))
    num = synthetic_dataset.num_images
    assert both.num_images == num + other.num_images
    assert both.num_cases == synthetic_dataset.num_cases + other.num_cases
    assert (np.diff(both.case_of) >= 0).all() and both.case_of[-1] == both.num_cases - 1
    assert (np.diff(both.shard_of) >= 0).all()
    assert both.rows(["train", "val"]).tolist() == [
        *synthetic_dataset.rows(["train", "val"]).tolist(),
        *(num + other.rows(["train", "val"])).tolist(),
    ]
    assert both.labels.shape == (both.num_images, len(synthetic_dataset.label_names))
    assert np.array_equal(both.column("pixel_sha256")[num:], other.column("pixel_sha256"))
    rows = np.array([num + 3, 0, num, num - 1])
    assert both.read_many(rows) == [both.read(int(row)) for row in rows]
    assert both.read(num + 3) == other.read(3)
    assert both.read(num - 1) == synthetic_dataset.read(num - 1)
    with pytest.raises(InputError, match="no split 'training'"):
        both.rows(["training"])


def test_a_dataset_that_stands_twice_is_refused(synthetic_dataset: Dataset, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="are the same dataset; give it once"):
        open_datasets([synthetic_dataset.location] * 2)


GOLDEN_WHICH = [1, 1, 1, 1, 1, 0, 1, 0, 1, 1, 1, 1, 1, 0, 0]
GOLDEN_NTH = [42, 43, 44, 45, 46, 21, 47, 22, 48, 49, 50, 51, 52, 23, 24]
