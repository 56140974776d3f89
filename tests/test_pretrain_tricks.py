"""The variants of a ResNet from "Bag of Tricks for Image Classification" (He et al., 2019)."""

from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import timm
import torch
from torch import nn

from clusters.config import InputError
from pretrain.encoder import EncoderConfig, check_encoder, create_encoder
from pretrain.initial_weights import start
from pretrain.views import ViewConfig


def shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def made(**values: Any) -> nn.Module:
    with torch.device("meta"):
        return create_encoder(EncoderConfig.model_validate(values))


def test_a_resnet_with_deep_stem_and_averaged_shortcuts_is_timm_s_resnet_d() -> None:
    with torch.device("meta"):
        expected = timm.create_model("resnet50d", num_classes=0)
    both = made(name="resnet50", stem="deep", downsample="averaged")
    assert shapes(both) == shapes(expected)
    assert [type(m) for m in both.modules()] == [type(m) for m in expected.modules()]
    # C: the stem alone
    assert {n for n in shapes(made(name="resnet50", stem="deep")) if n.startswith("conv1")} == {
        n for n in shapes(expected) if n.startswith("conv1")
    }
    wide = shapes(made(name="resnet50_1x", stem="deep", downsample="averaged"))
    assert wide["stem.conv1.weight"] == (32, 3, 3, 3)
    # B, as timm's own: the 3x3 convolution halves the image.
    assert made(name="resnet50").layer2[0].conv2.stride == (2, 2)  # type: ignore[index, union-attr]


@pytest.mark.parametrize(("name", "last"), [("resnet18", "layer1.0.bn2.weight"), ("resnetv2_50", None)])
def test_zero_gamma_is_as_asked_and_by_default_as_timm_has_it(name: str, last: str | None) -> None:
    name, last = (name, last) if last else ("resnet50_1x", "stages.0.blocks.0.norm3.weight")
    of = {choice: create_encoder(EncoderConfig(name=name, zero_gamma=choice)) for choice in (None, True, False)}
    assert {choice: bool(model.state_dict()[last].any()) for choice, model in of.items()} == {
        None: name == "resnet50_1x", True: False, False: True,
    }  # fmt: skip


def test_what_is_not_asked_for_leaves_an_encoder_s_description_as_it_was() -> None:
    assert EncoderConfig(name="resnet18").structure() == {"name": "resnet18", "channels": 3, "stem": "standard"}
    changed = EncoderConfig(name="resnet18", downsample="averaged", zero_gamma=False)
    assert EncoderConfig(**changed.structure()) == changed


def test_other_networks_and_weights_of_another_architecture_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"'test_vit' does not take .*stem=deep"):
        check_encoder(EncoderConfig(name="test_vit", stem="deep"), 32)
    path = tmp_path / "plain.safetensors"
    safetensors.torch.save_file(timm.create_model("resnet18", num_classes=0).state_dict(), path)
    for changed in ({"stem": "deep"}, {"downsample": "averaged"}):
        config = EncoderConfig.model_validate({"name": "resnet18", "weights": str(path), **changed})
        with pytest.raises(InputError, match=r"has no (stem|downsample)=.*its architecture is fixed"):
            start(config, ViewConfig(size_px=32))
