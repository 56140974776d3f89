"""The laws of the order: each epoch has every sample once, and nothing but the arguments matters."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from data.loader import positions_of
from data.order import Order, keyed_permutation, keyed_uniforms

SIZES = st.lists(st.integers(0, 40), min_size=1, max_size=12).filter(lambda sizes: sum(sizes) > 0)


@settings(max_examples=200, deadline=None)
@given(SIZES, st.integers(0, 99), st.integers(1, 9), st.integers(1, 50))
def test_every_epoch_has_every_sample_once(sizes: list[int], seed: int, streams: int, block: int) -> None:
    order = Order(sizes, seed, streams, block)
    total = sum(sizes)
    for epoch in range(3):
        epoch_samples = order.at(np.arange(epoch * total, (epoch + 1) * total))
        assert sorted(epoch_samples.tolist()) == list(range(total))


@settings(max_examples=100, deadline=None)
@given(SIZES, st.integers(0, 99), st.integers(1, 9), st.integers(1, 50), st.randoms())
def test_a_position_does_not_depend_on_what_was_asked_before(sizes, seed, streams, block, random) -> None:
    positions = np.arange(2 * sum(sizes))
    expected = Order(sizes, seed, streams, block).at(positions)
    fresh, shuffled = Order(sizes, seed, streams, block), positions.copy()
    random.shuffle(shuffled)
    assert [int(fresh.at(np.array([p]))[0]) for p in shuffled] == expected[shuffled].tolist()


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 50), st.sampled_from([1, 2, 3, 4, 6, 12]), st.integers(1, 4))
def test_any_number_of_workers_takes_the_same_batch(step: int, world_size: int, times: int) -> None:
    batch_size = 12 * times
    taken = [positions_of(step, batch_size, rank, world_size) for rank in range(world_size)]
    assert {len(share) for share in taken} == {batch_size // world_size}
    assert sorted(np.concatenate(taken).tolist()) == list(range(step * batch_size, (step + 1) * batch_size))


def test_epochs_and_seeds_differ() -> None:
    order = Order([500, 500], seed=0)
    first, second = order.at(np.arange(1000)), order.at(np.arange(1000, 2000))
    assert (first == second).mean() < 0.02
    assert (first == Order([500, 500], seed=1).at(np.arange(1000))).mean() < 0.02


def test_neighbours_come_from_all_over_the_dataset() -> None:
    samples = Order([1000] * 10, seed=0).at(np.arange(10_000))
    assert abs(np.corrcoef(samples[:-1], samples[1:])[0, 1]) < 0.05


def test_a_worker_of_many_touches_few_shards_at_a_time() -> None:
    order = Order([100] * 64, seed=0, num_streams=8, block_samples=100)
    mine = order.at(np.arange(3, 6400, 8)[:100])
    assert len(set((mine // 100).tolist())) <= 2


def test_the_order_is_the_same_for_ever() -> None:
    """Golden values: a resumed run must find the order of the version that started it."""
    assert keyed_permutation(8, "golden", 1).tolist() == GOLDEN_PERMUTATION
    assert [round(float(u), 6) for u in keyed_uniforms(3, "golden", 1)] == GOLDEN_UNIFORMS
    assert Order([3, 4, 5], seed=7, num_streams=2, block_samples=3).at(np.arange(12)).tolist() == GOLDEN_ORDER


GOLDEN_PERMUTATION = [7, 1, 4, 2, 6, 0, 5, 3]
GOLDEN_UNIFORMS = [0.583423, 0.151149, 0.483206]
GOLDEN_ORDER = [4, 11, 5, 9, 3, 10, 6, 1, 8, 2, 7, 0]
