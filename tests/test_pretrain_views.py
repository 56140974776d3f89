"""Views: what the policies say, and what is drawn from them."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.transforms import RandomResizedCrop

from clusters.config import InputError, load_config
from pretrain.config import PretrainConfig
from pretrain.policies import PRESETS
from pretrain.views import BOX, COLUMNS, ORDERS, ViewConfig, draw

SIMCLR: dict[str, Any] = {
    "size_px": 224,
    "crop_area": (0.08, 1.0),
    "crop_aspect": (3 / 4, 4 / 3),
    "keep_centre": 0.0,
    "flip_horizontal": 0.5,
    "flip_vertical": 0.0,
    "quarter_turns": False,
    "rotation_deg": 0.0,
    "jitter": 0.8,
    "jitter_strength": 1.0,
    "brightness": 0.8,
    "contrast": 0.8,
    "saturation": 0.8,
    "hue": 0.2,
    "grey": 0.2,
    "blur": 0.5,
    "blur_sigma": (0.1, 2.0),
    "solarise": 0.0,
    "mean": (0.485, 0.456, 0.406),
    "std": (0.229, 0.224, 0.225),
}
CHEST: dict[str, Any] = SIMCLR | {
    "rotation_deg": 45.0,
    "jitter_strength": 0.5,
    "saturation": 0.0,
    "hue": 0.0,
    "grey": 1.0,
    "blur": 0.0,
    "mean": (0.5, 0.5, 0.5),
    "std": (0.25, 0.25, 0.25),
}
PATHOLOGY: dict[str, Any] = SIMCLR | {
    "crop_area": (0.2, 1.0),
    "flip_vertical": 0.5,
    "quarter_turns": True,
    "jitter_strength": 0.5,
    "mean": (0.703, 0.536, 0.661),
    "std": (0.217, 0.261, 0.207),
}
NUMBERS = {
    "natural": SIMCLR,
    "dermatology": SIMCLR | {"flip_vertical": 0.5},
    "chest_xray": CHEST,
    "pathology": PATHOLOGY,
}


def test_every_policy_has_its_numbers() -> None:
    """Written out here a second time: a change of one has to be meant."""
    assert list(PRESETS) == list(NUMBERS)
    for policy, numbers in NUMBERS.items():
        assert ViewConfig.model_validate({"policy": policy}).model_dump() == {"policy": policy, **numbers}
    assert ViewConfig().model_dump() == {"policy": "natural", **SIMCLR}


@pytest.mark.parametrize("policy", PRESETS)
def test_a_recipe_s_own_numbers_win_and_a_dump_gives_the_same_views(policy: str) -> None:
    own = {"flip_horizontal": 0.25, "grey": 0.125, "size_px": 96, "mean": (0.1, 0.2, 0.3)}
    config = ViewConfig.model_validate({"policy": policy, **own})
    assert config.model_dump() == {"policy": policy, **NUMBERS[policy], **own}
    assert ViewConfig.model_validate(config.model_dump()) == config
    assert ViewConfig.model_validate_json(config.model_dump_json()) == config


def test_a_recipe_names_the_policy(tmp_path: Any) -> None:
    words = ["data=/d", "run=/r", "views.policy=chest_xray", "views.flip_horizontal=0"]
    config = load_config(PretrainConfig, words)
    assert config.views.model_dump() == {"policy": "chest_xray", **CHEST, "flip_horizontal": 0.0}
    said = config.stage_identity(0, None, None)["views"]
    assert (said["policy"], said["rotation_deg"], said["blur"]) == ("chest_xray", 45.0, 0.0)
    for recipe in ("ham10000", "synthetic"):
        views = load_config(PretrainConfig, [f"pretrain/recipes/{recipe}.yaml", "data=/d", "run=/r"]).views
        assert (views.policy, views.flip_vertical, views.size_px) == ("dermatology", 0.5, 64)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["policy=xray"], ["'views.policy'", "'chest_xray' or 'pathology'", "xray"]),
        (["policy=[natural]"], ["'views.policy'"]),
        (["blur_sigma=[2,1]"], ["blur_sigma must go from low to high"]),
        (["crop_area=[0.5,1.5]"], ["crop_area", "at most 1"]),
        (["hue=0.5", "jitter_strength=1.25"], ["hue times jitter_strength is at most 0.5"]),
        (["std=[0.2,0,0.2]"], ["'views.std.1'", "greater than 0"]),
        (["rotation_deg=200"], ["'views.rotation_deg'", "180"]),
        (["solarise=2"], ["'views.solarise'"]),
        (["keep_centre=0.3333"], ["the middle 0.3333", "crop of 0.08 of the area", "begin crop_area at 0.148 or more"]),
        (["policy=pathology", "keep_centre=0.9"], ["narrow crop_aspect or lower keep_centre"]),
        (["policy=pathology", "keep_centre=0.3", "rotation_deg=10"], ["keep_centre", "set rotation_deg=0"]),
    ],
)
def test_impossible_views_are_refused_in_one_line(words: list[str], told: list[str]) -> None:
    with pytest.raises(InputError) as refusal:
        load_config(PretrainConfig, ["data=/d", "run=/r", *(f"views.{word}" for word in words)])
    assert "\n" not in str(refusal.value)
    for part in told:
        assert part in str(refusal.value)


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 900), st.integers(1, 900), st.integers(0, 10**9), st.integers(0, 10**12))
def test_crop_lies_inside_any_image(height: int, width: int, seed: int, position: int) -> None:
    for config in (ViewConfig(), ViewConfig(policy="pathology", keep_centre=0.3)):
        top, left, crop_height, crop_width = draw(config, (height, width), seed, 0, position, 0)[: len(BOX)]
        assert 0 <= top <= top + crop_height <= height
        assert 0 <= left <= left + crop_width <= width
        assert crop_height >= 1
        assert crop_width >= 1


@settings(max_examples=300, deadline=None)
@given(st.integers(1, 900), st.integers(1, 900), st.sampled_from([0.05, 1 / 3, 0.3333, 0.387]), st.integers(0, 10**12))
def test_crops_keep_the_middle(height: int, width: int, share: float, position: int) -> None:
    """Each pixel that the middle share of the sides touches, whatever the image's shape."""
    config = ViewConfig(policy="pathology", keep_centre=share)
    top, left, crop_height, crop_width = draw(config, (height, width), 0, 0, position, 0)[: len(BOX)]
    for begin, length, side in ((top, crop_height, height), (left, crop_width, width)):
        assert begin <= np.ceil(side * (1 - share) / 2 - 1e-3)
        assert begin + length >= np.floor(side * (1 + share) / 2 + 1e-3)


def test_crops_of_a_patch_keep_its_labelled_pixels_and_lie_all_over() -> None:
    """PatchCamelyon: the label is about the middle 32 px of 96 px; every place that holds them comes as often."""
    config = ViewConfig(policy="pathology", keep_centre=1 / 3)
    boxes = np.stack([draw(config, (96, 96), 0, 0, p, 0)[:4] for p in range(3000)]).astype(int)
    top, left, height, width = boxes.T
    assert (top <= 32).all() and (left <= 32).all()
    assert (top + height >= 64).all() and (left + width >= 64).all()
    free = [np.minimum(32, 96 - height) - np.maximum(0, 64 - height), top - np.maximum(0, 64 - height)]
    roomy = free[0] > 8
    assert (free[1] / free[0].clip(1))[roomy].mean() == pytest.approx(0.5, abs=0.03)
    assert (height * width).min() / 96**2 == pytest.approx(0.2, abs=0.02)
    unbound = np.stack([draw(ViewConfig(policy="pathology"), (96, 96), 0, 0, p, 0)[:4] for p in range(300)])
    assert not (unbound[:, 0] <= 32).all()


def test_a_view_depends_on_its_key_alone() -> None:
    first = draw(ViewConfig(), (200, 150), 1, 0, 77, 0)
    assert np.array_equal(first, draw(ViewConfig(), (200, 150), 1, 0, 77, 0))
    for other in [(2, 0, 77, 0), (1, 1, 77, 0), (1, 0, 78, 0), (1, 0, 77, 1)]:
        assert not np.array_equal(first, draw(ViewConfig(), (200, 150), *other))


CHANGES: dict[str, Any] = {
    "grey": 1.0,
    "rotation_deg": 45.0,
    "quarter_turns": True,
    "solarise": 1.0,
    "flip_vertical": 1.0,
    "flip_horizontal": 0.0,
    "hue": 0.1,
    "brightness": 0.1,
    "blur": 1.0,
    "jitter": 0.0,
}


@pytest.mark.parametrize("setting", CHANGES)
def test_changing_one_setting_leaves_other_draws_alone(setting: str) -> None:
    changed = set()
    for position in range(8):
        before = draw(ViewConfig(), (200, 150), 1, 0, position, 0)
        after = draw(ViewConfig.model_validate({setting: CHANGES[setting]}), (200, 150), 1, 0, position, 0)
        changed |= {name for name, a, b in zip(COLUMNS, before, after) if a != b}
    assert changed == {setting}


def test_draws_are_those_of_earlier_versions() -> None:
    """What stands at a position is a promise (STREAM_VERSION): these numbers were printed by the first version."""
    config = ViewConfig(policy="dermatology")
    drawn = dict(zip(COLUMNS, draw(config, (600, 450), 7, 1, 45, 1).tolist()))
    earlier = {"top": 16, "left": 82, "height": 269, "width": 277, "flip_horizontal": 0, "flip_vertical": 1}
    earlier |= {"jitter": 1, "order": 0, "brightness": 0.7106, "contrast": 1.7179, "saturation": 0.94, "hue": -0.0977}
    earlier |= {"grey": 1, "blur": 1.4078}
    assert {name: round(drawn[name], 4) for name in earlier} == earlier
    assert drawn.keys() - earlier.keys() == {"quarter_turns", "rotation_deg", "solarise"}


def test_frequencies_and_ranges_are_those_of_the_config() -> None:
    config = ViewConfig(size_px=224, quarter_turns=True, rotation_deg=30, solarise=0.3, flip_vertical=0.25)
    drawn = np.stack([draw(config, (256, 256), 0, 0, position, 0) for position in range(4000)])
    column = {name: drawn[:, number] for number, name in enumerate(COLUMNS)}
    shares = {"flip_horizontal": 0.5, "flip_vertical": 0.25, "jitter": 0.8, "grey": 0.2, "solarise": 0.3}
    for name, probability in shares.items():
        assert column[name].mean() == pytest.approx(probability, abs=0.03)
        assert set(column[name]) == {0, 1}
    assert (column["blur"] > 0).mean() == pytest.approx(0.5, abs=0.03)
    assert column["blur"].max() <= 2.0
    assert column["brightness"].min() >= 0.2
    assert column["brightness"].max() <= 1.8
    assert 0.19 < np.abs(column["hue"]).max() <= 0.2
    assert set(column["order"]) == set(range(len(ORDERS)))
    assert np.bincount(column["quarter_turns"].astype(int)) / 4000 == pytest.approx([0.25] * 4, abs=0.03)
    assert (column["rotation_deg"].min(), column["rotation_deg"].max()) == pytest.approx((-30, 30), abs=0.1)
    assert column["rotation_deg"].std() == pytest.approx(30 / np.sqrt(3), rel=0.03)
    independent = np.corrcoef(drawn[:, [COLUMNS.index(name) for name in (*shares, "quarter_turns", "rotation_deg")]].T)
    assert np.abs(independent - np.eye(7)).max() < 0.06


def test_crops_are_distributed_as_torchvision_s() -> None:
    config, image = ViewConfig(), torch.zeros(3, 150, 200)
    ours = np.stack([draw(config, (150, 200), 0, 0, position, 0)[:4] for position in range(4000)])
    torch.manual_seed(0)
    theirs = np.array([RandomResizedCrop.get_params(image, [0.08, 1.0], [3 / 4, 4 / 3]) for _ in range(4000)])
    for column in range(4):
        for quantile in (0.1, 0.5, 0.9):
            expected = np.quantile(theirs[:, column], quantile)
            assert np.quantile(ours[:, column], quantile) == pytest.approx(expected, abs=6)
