"""The methods: which samples and pairs they form, and laws that hold for all of them."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter

from data.dataset import Dataset
from pretrain.batches import ViewBatches
from pretrain.encoder import EncoderConfig, create_encoder
from pretrain.methods import METHODS, AnyStage
from pretrain.methods.micle import MICLe
from pretrain.methods.simclr import SimCLR
from pretrain.stage import Samples
from pretrain.views import ViewConfig

VIEWS = ViewConfig(size_px=32)


def stage_of(method: str) -> Any:
    return TypeAdapter(AnyStage).validate_python({"method": method, "epochs": 1, "projection_hidden": 16})


def batches(dataset: Dataset, method: str, rank: int = 0, world_size: int = 1, batch_size: int = 8) -> ViewBatches:
    kind = METHODS[method]
    samples = kind.samples(dataset, dataset.rows(["train"]))
    pair = kind.pairing(stage_of(method), dataset, samples)
    return ViewBatches(dataset, samples, pair, VIEWS, 0, 0, batch_size, rank, world_size, augment=True)


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
    place = {sample: number for number, sample in enumerate(whole.groups_VBG[0, :, 0].tolist())}
    assert len(place) == whole.groups_VBG.shape[1]
    for world_size in (2, 4):
        taken = []
        for rank in range(world_size):
            part = batches(synthetic_dataset, method, rank, world_size)(3)
            mine = [place[sample] for sample in part.groups_VBG[1, :, 0].tolist()]
            assert len(mine) == len(place) // world_size
            assert torch.equal(part.crops_VBCHW, whole.crops_VBCHW[:, mine])
            assert torch.equal(part.records_VBK, whole.records_VBK[:, mine])
            taken += mine
        assert sorted(taken) == list(range(len(place)))


@pytest.mark.parametrize("method", METHODS)
def test_loss_is_finite_and_its_gradient_reaches_every_layer(synthetic_dataset: Dataset, method: str) -> None:
    torch.manual_seed(0)
    module = METHODS[method](stage_of(method), create_encoder(EncoderConfig(name="resnet18")), 512)
    batch = batches(synthetic_dataset, method)(0)
    loss = module(batch.crops_VBCHW.float() / 255, batch.groups_VBG)
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
