"""Mixtures are drawn by position alone and are what mixup's and cutmix's papers say."""

import numpy as np
import pytest
import torch

from finetune.full_config import AugmentationConfig
from finetune.mixing import draw_mixing, mix_images, mix_truth


def drawn(count: int = 400, size_px: int = 32, **config: float) -> np.ndarray:
    settings = AugmentationConfig.model_validate(config)
    return np.stack([draw_mixing(settings, 3, position, size_px) for position in range(count)])


def test_a_mixture_depends_on_seed_and_position_alone() -> None:
    config = AugmentationConfig(mixup=0.4, cutmix=1.0)
    assert (draw_mixing(config, 3, 17, 32) == drawn(18, mixup=0.4, cutmix=1.0)[17]).all()
    assert not (draw_mixing(config, 4, 17, 32) == draw_mixing(config, 3, 17, 32)).all()


def test_shares_of_mixup_are_of_its_beta_distribution() -> None:
    shares = drawn(mixup=0.4)[:, 0]
    # Mean 1/2 and variance 1 / (4 (2 alpha + 1))
    assert shares.mean() == pytest.approx(0.5, abs=0.06)
    assert shares.var() == pytest.approx(1 / (4 * 1.8), rel=0.1)


def test_the_share_of_cutmix_is_what_its_box_leaves() -> None:
    records = drawn(cutmix=1.0)
    share, top, left, height, width = records.T
    assert share == pytest.approx(1 - height * width / 32**2)
    assert ((top >= 0) & (left >= 0) & (top + height <= 32) & (left + width <= 32)).all()
    assert 0.5 < share.mean() < 0.7  # more than a half, since boxes are cut at the border


def test_both_take_half_of_the_images_each_and_none_leaves_them_alone() -> None:
    assert (drawn(mixup=0.4, cutmix=1.0)[:, 3] > 0).mean() == pytest.approx(0.5, abs=0.1)
    assert (drawn(5) == [1, 0, 0, 0, 0]).all()


def test_images_and_truth_are_mixed_by_the_record() -> None:
    own, other = torch.rand(2, 3, 3, 8, 8), torch.rand(2, 3, 3, 8, 8)
    records = torch.tensor([[0.25, 0, 0, 0, 0], [1 - 6 / 64, 5, 2, 2, 3], [1, 0, 0, 0, 0]], dtype=torch.float32)
    mixed = mix_images(own, other, records)
    torch.testing.assert_close(mixed[:, 0], 0.25 * own[:, 0] + 0.75 * other[:, 0])
    expected = own[:, 1].clone()
    expected[..., 5:7, 2:5] = other[:, 1, :, 5:7, 2:5]
    assert torch.equal(mixed[:, 1], expected)
    assert torch.equal(mixed[:, 2], own[:, 2])


def test_unknown_truth_stays_unknown_unless_its_share_is_nothing() -> None:
    nan = torch.nan
    truth, partner = torch.tensor([[1.0, nan, 0.0]] * 3), torch.tensor([[0.0, 1.0, nan]] * 3)
    mixed = mix_truth(truth, partner, torch.tensor([0.25, 1.0, 0.0]))
    expected = torch.tensor([[0.25, nan, nan], [1.0, nan, 0.0], [0.0, 1.0, nan]])
    torch.testing.assert_close(mixed, expected, equal_nan=True)
