"""Views: what is drawn, and that applying a record equals torchvision's functions."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.transforms import RandomResizedCrop
from torchvision.transforms.v2 import functional as tv

from pretrain.views import BOX, COLUMNS, ORDERS, ViewConfig, apply, draw
from pretrain.views_uint8 import apply_uint8

NEUTRAL = ViewConfig(size_px=48, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
IDENTITY = {"order": 0, "brightness": 1, "contrast": 1, "saturation": 1}


def record(**values: float) -> torch.Tensor:
    named = dict.fromkeys(COLUMNS, 0.0) | IDENTITY | values
    return torch.tensor([[float(named[name]) for name in COLUMNS]])


def random_crops(count: int, size: int = 48) -> torch.Tensor:
    return torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(3))


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 900), st.integers(1, 900), st.integers(0, 10**9), st.integers(0, 10**12))
def test_crop_lies_inside_any_image(height: int, width: int, seed: int, position: int) -> None:
    top, left, crop_height, crop_width = draw(ViewConfig(), (height, width), seed, 0, position, 0)[: len(BOX)]
    assert 0 <= top <= top + crop_height <= height
    assert 0 <= left <= left + crop_width <= width
    assert crop_height >= 1
    assert crop_width >= 1


def test_a_view_depends_on_its_key_alone() -> None:
    first = draw(ViewConfig(), (200, 150), 1, 0, 77, 0)
    assert np.array_equal(first, draw(ViewConfig(), (200, 150), 1, 0, 77, 0))
    for other in [(2, 0, 77, 0), (1, 1, 77, 0), (1, 0, 78, 0), (1, 0, 77, 1)]:
        assert not np.array_equal(first, draw(ViewConfig(), (200, 150), *other))


def test_changing_one_setting_leaves_other_draws_alone() -> None:
    before = draw(ViewConfig(), (200, 150), 1, 0, 5, 0)
    after = draw(ViewConfig(grey=1.0), (200, 150), 1, 0, 5, 0)
    changed = [name for name, a, b in zip(COLUMNS, before, after) if a != b]
    assert changed in ([], ["grey"])


def test_frequencies_and_ranges_are_those_of_the_config() -> None:
    config = ViewConfig(size_px=224)
    drawn = np.stack([draw(config, (256, 256), 0, 0, position, 0) for position in range(4000)])
    column = {name: drawn[:, number] for number, name in enumerate(COLUMNS)}
    for name, probability in [("flip_horizontal", 0.5), ("jitter", 0.8), ("grey", 0.2)]:
        assert column[name].mean() == pytest.approx(probability, abs=0.03)
    assert (column["blur"] > 0).mean() == pytest.approx(0.5, abs=0.03)
    assert column["blur"].max() <= 2.0
    assert column["brightness"].min() >= 0.2
    assert column["brightness"].max() <= 1.8
    assert np.abs(column["hue"]).max() <= 0.2
    assert set(column["order"]) == set(range(len(ORDERS)))


def test_crops_are_distributed_as_torchvision_s() -> None:
    config, image = ViewConfig(), torch.zeros(3, 150, 200)
    ours = np.stack([draw(config, (150, 200), 0, 0, position, 0)[:4] for position in range(4000)])
    torch.manual_seed(0)
    theirs = np.array([RandomResizedCrop.get_params(image, [0.08, 1.0], [3 / 4, 4 / 3]) for _ in range(4000)])
    for column in range(4):
        for quantile in (0.1, 0.5, 0.9):
            expected = np.quantile(theirs[:, column], quantile)
            assert np.quantile(ours[:, column], quantile) == pytest.approx(expected, abs=6)


def test_orientation_and_grey_equal_torchvision() -> None:
    crops = random_crops(1)
    assert torch.equal(apply(NEUTRAL, crops, record(flip_horizontal=1)), tv.hflip(crops) / 255)
    assert torch.equal(apply(NEUTRAL, crops, record(flip_vertical=1)), tv.vflip(crops) / 255)
    expected = tv.rgb_to_grayscale(crops / 255, num_output_channels=3)
    assert torch.allclose(apply(NEUTRAL, crops, record(grey=1)), expected, atol=1e-3)


@pytest.mark.parametrize("order", range(len(ORDERS)))
def test_colour_jitter_equals_torchvision_in_every_order(order: int) -> None:
    crops = random_crops(1)
    values = {"brightness": 1.4, "contrast": 0.5, "saturation": 1.6, "hue": -0.13}
    expected = crops / 255
    functions = [tv.adjust_brightness, tv.adjust_contrast, tv.adjust_saturation, tv.adjust_hue]
    for turn in ORDERS[order]:
        expected = functions[turn](expected, list(values.values())[turn])
    got = apply(NEUTRAL, crops, record(jitter=1, order=order, **values))
    assert torch.allclose(got, expected, atol=2e-3)


@pytest.mark.parametrize("sigma", [0.1, 0.7, 2.0])
def test_blur_equals_torchvision(sigma: float) -> None:
    crops = random_crops(1)
    expected = tv.gaussian_blur(crops / 255, kernel_size=[5, 5], sigma=[sigma, sigma])
    assert torch.allclose(apply(NEUTRAL, crops, record(blur=sigma)), expected, atol=1e-5)


def test_uint8_path_gives_the_views_of_the_float_path() -> None:
    """Stated tolerance, in levels of 255 on smooth images: mean under 1.5, 99 % of pixels under 6."""
    config = NEUTRAL.model_copy(update={"size_px": 64})
    small = torch.rand(64, 3, 6, 6, generator=torch.Generator().manual_seed(1))
    crops = (torch.nn.functional.interpolate(small, size=64, mode="bicubic").clamp(0, 1) * 255).byte()
    records = torch.stack([torch.from_numpy(draw(config, (64, 64), 0, 0, p, 0)) for p in range(64)])
    expected = apply(config, crops, records) * 255
    got = torch.stack(
        [
            torch.from_numpy(apply_uint8(config, crop.permute(1, 2, 0).numpy().copy(), record.numpy()))
            for crop, record in zip(crops, records)
        ]
    ).permute(0, 3, 1, 2)
    difference = (got.float() - expected).abs()
    ninety_nine = difference.flatten().quantile(0.99)
    print(f"mean {difference.mean():.2f}, 99 % {ninety_nine:.2f}, max {difference.max():.1f}")
    assert difference.mean() < 1.5
    assert (difference < 6).float().mean() > 0.99


def test_each_view_of_a_batch_keeps_its_own_numbers() -> None:
    config = ViewConfig(size_px=48)
    crops = random_crops(12)
    records = torch.stack([torch.from_numpy(draw(config, (48, 48), 0, 0, position, 0)) for position in range(12)])
    together = apply(config, crops, records)
    alone = torch.cat([apply(config, crops[i : i + 1], records[i : i + 1]) for i in range(12)])
    assert torch.allclose(together, alone, atol=1e-5)
