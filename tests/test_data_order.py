"""The laws of the order: each epoch has every sample once, and nothing but the arguments matters."""

import hashlib
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.loader import positions_of
from data.order import STREAM_VERSION, Order, keyed_permutation, keyed_uniforms

SIZES = st.lists(st.integers(0, 40), min_size=1, max_size=12).filter(lambda sizes: sum(sizes) > 0)


@settings(max_examples=200, deadline=None)
@given(SIZES, st.integers(0, 99), st.integers(1, 9), st.integers(1, 50))
def test_every_epoch_has_every_sample_once(sizes: list[int], seed: int, streams: int, block: int) -> None:
    order = Order(sizes, seed, streams, block)
    total = sum(sizes)
    for epoch in range(3):
        epoch_samples = order.at(np.arange(epoch * total, (epoch + 1) * total))
        assert sorted(epoch_samples.tolist()) == list(range(total))


@settings(max_examples=40, deadline=None)
@given(SIZES, st.integers(0, 99), st.integers(1, 9), st.integers(1, 50), st.randoms())
def test_a_position_does_not_depend_on_what_was_asked_before(sizes, seed, streams, block, random) -> None:
    positions = np.arange(2 * sum(sizes))
    expected = Order(sizes, seed, streams, block).at(positions)
    fresh, some = Order(sizes, seed, streams, block), random.choices(positions.tolist(), k=60)
    assert [int(fresh.at(np.array([p]))[0]) for p in some] == expected[some].tolist()


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 50), st.sampled_from([1, 2, 3, 4, 6, 12]), st.integers(1, 4), SIZES, st.booleans())
def test_any_number_of_workers_takes_the_same_batch(step, world_size, times, sizes, by_stream) -> None:
    batch_size = 12 * times
    order = Order(sizes, seed=0) if by_stream else None
    taken = [positions_of(step, batch_size, rank, world_size, order) for rank in range(world_size)]
    assert {len(share) for share in taken} == {batch_size // world_size}
    assert sorted(np.concatenate(taken).tolist()) == list(range(step * batch_size, (step + 1) * batch_size))


@settings(max_examples=40, deadline=None)
@given(SIZES, st.integers(0, 9))
def test_the_epoch_of_a_position_is_how_often_its_sample_stood_before(sizes: list[int], seed: int) -> None:
    order, seen = Order(sizes, seed), Counter[int]()
    positions = np.arange(3 * sum(sizes))
    for sample, epoch in zip(order.at(positions).tolist(), order.epoch_of(positions).tolist()):
        assert epoch == seen[sample]
        seen[sample] += 1


def test_epochs_and_seeds_differ() -> None:
    order = Order([500, 500], seed=0)
    first, second = order.at(np.arange(1000)), order.at(np.arange(1000, 2000))
    assert (first == second).mean() < 0.02
    assert (first == Order([500, 500], seed=1).at(np.arange(1000))).mean() < 0.02


SHARDS = [500] * 200
"""A dataset of 100,000 samples: 64 streams of about three shards."""


def small_blocks() -> Order:
    """Blocks as large in comparison with a shard as those of a large dataset (8,192 of shards of 8,192)."""
    return Order(SHARDS, seed=0, block_samples=500)


def test_neighbours_come_from_all_over_the_dataset() -> None:
    """A quarter of an epoch against a uniform shuffle: distance of neighbours, correlation at every short lag."""
    samples = small_blocks().at(np.arange(25_000)) / sum(SHARDS)
    assert np.abs(np.diff(samples)).mean() == pytest.approx(1 / 3, abs=0.02)
    for lag in (1, 2, 3, 63, 64, 65, 128):
        # Not below -1/63: a turn of the streams has each of them once.
        assert abs(np.corrcoef(samples[:-lag], samples[lag:])[0, 1]) < 0.06, lag


def test_batches_mix_classes_as_uniform_draws_do_even_where_shards_do_not() -> None:
    """The worst case: shards sorted by class, ten classes. A batch of 256 is as mixed as 256 uniform draws."""
    classes = np.repeat(np.arange(10), sum(SHARDS) // 10)
    order = small_blocks()
    batches = np.stack([classes[order.at(np.arange(256 * step, 256 * (step + 1)))] for step in range(390)])
    shares = np.stack([(batches == label).mean(axis=1) for label in range(10)])
    uniform = np.sqrt(0.1 * 0.9 / 256)
    assert np.abs(shares.mean(axis=1) - 0.1).max() < 0.005
    assert 0.5 * uniform < shares.std(axis=1).mean() < 2.5 * uniform


@pytest.mark.parametrize("num_nodes", [2, 3, 8])
def test_a_node_touches_few_shards_at_a_time(num_nodes: int) -> None:
    """Two ranks a node; also where the number of ranks does not divide the number of streams."""
    order, world_size, batch_size = small_blocks(), 2 * num_nodes, 48 * num_nodes
    for node in range(num_nodes):
        ranks = (2 * node, 2 * node + 1)
        positions = [positions_of(step, batch_size, rank, world_size, order) for step in range(40) for rank in ranks]
        shards = set((order.at(np.concatenate(positions)) // 500).tolist())
        # A stream is in two or three shards at a time; the streams at either end are shared with the next node.
        assert len(shards) <= 2.2 * (64 / num_nodes + 2), len(shards)


def test_the_number_of_streams_is_told_by_the_dataset_alone() -> None:
    assert [Order([9] * shards, 0).num_streams for shards in (1, 3, 64, 65, 1220)] == [1, 3, 64, 64, 64]
    assert Order([0, 9, 0], 0).num_streams == 1
    assert [Order([9] * shards, 0).block_samples for shards in (1, 16, 64, 1220)] == [65536, 32768, 8192, 8192]


def test_the_end_of_a_large_epoch_is_found_at_once() -> None:
    """Ten million samples, the last batch of the epoch: what is computed is bounded, whatever stands before it."""
    order = Order([8192] * 1220, seed=3)
    last = order.at(np.arange(order.num_samples - 4096, order.num_samples))
    assert len(set(last.tolist())) == 4096
    assert sum(len(shuffle) for _, shuffle in order._blocks.values()) <= 64 * 8192


def test_the_order_is_the_same_for_ever() -> None:
    """Golden values: a resumed run must find the order of the version that started it."""
    assert keyed_permutation(8, "golden", 1).tolist() == GOLDEN_PERMUTATION
    assert [round(float(u), 6) for u in keyed_uniforms(3, "golden", 1)] == GOLDEN_UNIFORMS
    assert Order([3, 4, 5], seed=7, num_streams=2, block_samples=3).at(np.arange(12)).tolist() == GOLDEN_ORDER


GOLDEN_PERMUTATION = [7, 1, 4, 2, 6, 0, 5, 3]
GOLDEN_UNIFORMS = [0.583423, 0.151149, 0.483206]
GOLDEN_ORDER = [4, 11, 9, 5, 10, 3, 1, 6, 8, 2, 7, 0]


def test_the_order_of_a_large_dataset_is_the_one_of_this_version() -> None:
    """With the defaults. If this fails, the order has changed: raise STREAM_VERSION and write the new digest here."""
    order = Order(np.arange(7000, 7150), seed=3)
    places = np.concatenate([np.arange(5000), np.arange(order.num_samples - 2500, order.num_samples + 2500)])
    digest = hashlib.sha256(order.at(places).astype("<i8").tobytes()).hexdigest()[:16]
    assert (STREAM_VERSION, digest) == (3, "a2c91ee0f389e646")
