"""The methods: which samples and pairs they form, and laws that hold for all of them."""

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter

from clusters.config import InputError
from data.dataset import Dataset
from data.order import keyed_uniforms
from pretrain.batches import ViewBatches
from pretrain.encoder import EncoderConfig, create_encoder
from pretrain.methods import METHODS, AnyStage
from pretrain.methods.micle import MICLe
from pretrain.methods.simclr import SimCLR
from pretrain.stage import Samples
from pretrain.views import ViewConfig

VIEWS = ViewConfig(size_px=32)


def batches(dataset: Dataset, method: str, rank: int = 0, world_size: int = 1, batch_size: int = 8) -> ViewBatches:
    kind = METHODS[method]
    samples = kind.samples(dataset, dataset.rows(["train"]))
    return ViewBatches(dataset, samples, kind.pair, VIEWS, 0, 0, batch_size, rank, world_size, augment=True)


@settings(max_examples=200, deadline=None)
@given(st.integers(2, 9), st.integers(0, 10**9))
def test_micle_takes_two_distinct_images_of_a_case(count: int, position: int) -> None:
    rows = np.arange(100, 100 + count)
    first, second = MICLe.pair(rows, keyed_uniforms(4, "pair", 0, 0, position))
    assert first != second
    assert {first, second} <= set(rows.tolist())


def test_micle_takes_every_ordered_pair_equally_often() -> None:
    """Algorithm 1 of the paper: two images of the bag, drawn at random."""
    pairs = Counter(MICLe.pair(np.arange(4), keyed_uniforms(4, "pair", 0, 0, p)) for p in range(12_000))
    assert set(pairs) == {(a, b) for a in range(4) for b in range(4) if a != b}
    assert max(pairs.values()) / min(pairs.values()) < 1.2


def test_a_case_of_one_image_gives_two_views_of_it() -> None:
    assert MICLe.pair(np.array([7]), np.zeros(4)) == (7, 7)
    assert SimCLR.pair(np.array([7]), np.zeros(4)) == (7, 7)


def test_samples_are_images_for_simclr_and_cases_for_micle(synthetic_dataset: Dataset) -> None:
    rows = synthetic_dataset.rows(["train"])
    images, cases = SimCLR.samples(synthetic_dataset, rows), MICLe.samples(synthetic_dataset, rows)
    assert len(images) == len(rows)
    assert images.num_multiple == 0
    assert len(cases) == len(set(synthetic_dataset.case_of[rows].tolist()))
    keys = synthetic_dataset.column("key")
    for number in range(len(cases)):
        assert len(set(keys[cases[number]])) == 1
    assert np.array_equal(np.concatenate([cases[n] for n in range(len(cases))]), rows)


def test_micle_is_refused_where_no_case_has_two_images(synthetic_dataset: Dataset) -> None:
    rows = synthetic_dataset.rows(["train"])
    one_each = rows[np.unique(synthetic_dataset.case_of[rows], return_index=True)[1]]
    with pytest.raises(InputError, match="none of its"):
        MICLe.samples(synthetic_dataset, one_each)


def test_micle_batches_pair_images_of_one_case_once_a_batch(synthetic_dataset: Dataset) -> None:
    make = batches(synthetic_dataset, "micle")
    different = 0
    for step in range(4):
        first, second = make(step).rows_VB
        cases = synthetic_dataset.case_of[first.numpy()]
        assert np.array_equal(cases, synthetic_dataset.case_of[second.numpy()])
        assert len(set(cases.tolist())) == len(cases)
        sizes = np.array([(synthetic_dataset.case_of == case).sum() for case in cases])
        assert np.array_equal((first != second).numpy(), sizes > 1)
        different += int((first != second).sum())
    assert different > 0


@pytest.mark.parametrize("method", METHODS)
def test_both_views_are_augmented_and_differ(synthetic_dataset: Dataset, method: str) -> None:
    batch = batches(synthetic_dataset, method)(0)
    assert batch.crops_VBCHW.shape == (2, 8, 3, 32, 32)
    assert batch.crops_VBCHW.dtype == torch.uint8
    records = batch.records_VBK
    assert (records[0] != records[1]).any(dim=1).all()
    assert (records[:, :, 2:4] < 48).any()


@pytest.mark.parametrize("method", METHODS)
def test_ranks_share_one_global_batch(synthetic_dataset: Dataset, method: str) -> None:
    whole = batches(synthetic_dataset, method)(3)
    place = {sample: number for number, sample in enumerate(whole.samples_B.tolist())}
    assert len(place) == len(whole.samples_B)
    for world_size in (2, 4):
        taken = []
        for rank in range(world_size):
            part = batches(synthetic_dataset, method, rank, world_size)(3)
            mine = [place[sample] for sample in part.samples_B.tolist()]
            assert len(mine) == len(place) // world_size
            assert torch.equal(part.crops_VBCHW, whole.crops_VBCHW[:, mine])
            assert torch.equal(part.records_VBK, whole.records_VBK[:, mine])
            taken += mine
        assert sorted(taken) == list(range(len(place)))


@pytest.mark.parametrize("method", METHODS)
def test_loss_is_finite_and_its_gradient_reaches_every_layer(synthetic_dataset: Dataset, method: str) -> None:
    torch.manual_seed(0)
    stage = TypeAdapter(AnyStage).validate_python({"method": method, "epochs": 1, "projection_hidden": 16})
    module = METHODS[method](stage, create_encoder(EncoderConfig(name="resnet18")), 512)
    batch = batches(synthetic_dataset, method)(0)
    loss = module(batch.crops_VBCHW.float() / 255, batch.samples_B.expand(2, -1)[:, :, None]).loss
    loss.backward()
    assert torch.isfinite(loss)
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
    first = next(iter(module.encoder.parameters()))
    assert first.grad is not None
    assert first.grad.abs().max() > 0


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(1, 5), min_size=1, max_size=20))
def test_grouping_keeps_every_row_once(sizes: list[int]) -> None:
    groups = np.repeat(np.arange(len(sizes)), sizes)
    samples = Samples.group(np.arange(len(groups)), groups, groups // 3)
    assert [len(samples[n]) for n in range(len(samples))] == sizes
    assert samples.num_multiple == sum(size > 1 for size in sizes)
    assert samples.shard_sizes.sum() == len(sizes)
