"""The methods: which samples and pairs they form, and laws that hold for all of them."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter

from clusters.config import load_config
from data.dataset import Dataset
from pretrain.batches import ViewBatches
from pretrain.config import PretrainConfig
from pretrain.methods import METHODS, AnyStage
from pretrain.methods.micle import MICLe
from pretrain.methods.simclr import SimCLR
from pretrain.stage import Samples
from pretrain.views import ViewConfig
from tests.ranks import Ranks
from tests.small_steps import small_step, small_training, two_steps

VIEWS = ViewConfig(size_px=32)
RECIPES = sorted((Path(__file__).parents[1] / "pretrain" / "recipes").glob("*.yaml"))


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
def test_loss_is_finite_and_its_gradient_reaches_every_layer(method: str) -> None:
    """Of what is trained, and the encoder is, whole. At the second step: residual branches begin at zero."""
    training = small_training(method)
    assert all(torch.isfinite(small_step(training, step)) for step in range(2))
    trained = {name: p for name, p in training.module.named_parameters() if p.requires_grad}
    for name, parameter in trained.items():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
    for name, _ in training.module.encoder.named_parameters(prefix="encoder"):
        assert trained[name].grad.abs().max() > 0, name  # type: ignore[union-attr]


@pytest.mark.parametrize("method", METHODS)
def test_two_processes_learn_what_one_does(method: str, ranks: Ranks) -> None:
    """Losses, gradients, weights, buffers; a sample that stands on both ranks included."""
    one, (two, other) = two_steps(method), ranks.run("two_steps", method)
    assert one.keys() == two.keys() == other.keys()
    for name, expected in one.items():
        assert torch.equal(two[name], other[name]), name
        apart = (two[name].float() - expected.float()).norm()
        assert apart <= 5e-4 * expected.float().norm() + 1e-6, f"{name}: {apart}"


@pytest.mark.parametrize("method", METHODS)
def test_a_saved_state_goes_on_as_if_never_interrupted(method: str) -> None:
    first = small_training(method)
    small_step(first, 0)
    saved = copy.deepcopy(first.state())
    expected = small_step(first, 1)
    second = small_training(method, seed=1)
    second.load_state(saved)
    assert torch.equal(small_step(second, 1), expected)
    resumed = second.module.state_dict()
    assert all(torch.equal(resumed[name], values) for name, values in first.module.state_dict().items())


@pytest.mark.parametrize("method", METHODS)
def test_the_encoder_that_is_handed_on_is_a_plain_timm_network_and_trained(method: str) -> None:
    training = small_training(method)
    small_step(training, 0)
    theirs = timm.create_model("test_resnet", num_classes=0)
    ours = training.module.encoder.state_dict()
    assert {k: v.shape for k, v in ours.items()} == {k: v.shape for k, v in theirs.state_dict().items()}
    optimised = {id(p) for group in training.optimizer.param_groups for p in group["params"]}
    assert optimised == {id(p) for p in training.module.parameters() if p.requires_grad}
    assert optimised >= {id(p) for p in training.module.encoder.parameters()}


@pytest.mark.parametrize("method", METHODS)
def test_a_collapsed_network_shows_the_loss_that_the_method_says(method: str) -> None:
    module = small_training(method).module.eval()  # batch norms would magnify the rounding of equal rows
    expected = module.collapsed_loss(8)
    if expected is None:
        pytest.skip("this loss does not tell a collapsed network")
    views = torch.randn(3, 32, 32).expand(2, 8, 3, 32, 32)
    loss = module(views, torch.arange(8).expand(2, 8)[:, :, None]).loss
    assert float(loss.detach()) == pytest.approx(expected, rel=1e-5)


def test_every_method_has_a_recipe() -> None:
    configs = [load_config(PretrainConfig, [str(path), "data=/none", "run=/none"]) for path in RECIPES]
    assert {stage.method for config in configs for stage in config.stages} == set(METHODS)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(1, 5), min_size=1, max_size=20))
def test_grouping_keeps_every_row_once(sizes: list[int]) -> None:
    groups = np.repeat(np.arange(len(sizes)), sizes)
    samples = Samples.group(np.arange(len(groups)), groups, groups // 3)
    assert [len(samples[n]) for n in range(len(samples))] == sizes
    assert samples.num_multiple == sum(size > 1 for size in sizes)
    assert samples.shard_sizes.sum() == len(sizes)
