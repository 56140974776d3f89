"""Networks by name: SimCLR's ResNets, timm's backbones, image sizes and channels that they take or refuse."""

import re
from typing import Any

import pytest
import timm
import torch

from clusters.config import InputError
from pretrain.encoder import SIMCLR_RESNETS, EncoderConfig, check_encoder, create_encoder
from pretrain.views import normalise


def num_parameters(name: str) -> int:
    with torch.device("meta"):
        return sum(p.numel() for p in create_encoder(EncoderConfig(name=name)).parameters())


@pytest.mark.parametrize(
    ("name", "millions", "width"),
    [
        ("resnet50_1x", 24, 2048),
        ("resnet50_2x", 94, 4096),
        ("resnet50_4x", 375, 8192),
        ("resnet152_1x", 58, 2048),
        ("resnet152_2x", 232, 4096),
        ("timm:resnet50", 24, 2048),
    ],
)
def test_networks_have_the_published_parameters(name: str, millions: int, width: int) -> None:
    """SimCLR (2020), table 7 and SimCLR v2 (2020), table 1, in whole millions."""
    assert round(num_parameters(name) / 1e6) == millions
    with torch.device("meta"):
        assert create_encoder(EncoderConfig(name=name)).num_features == width


def test_every_layer_is_widened() -> None:
    """Twice the width: each convolution has twice the outputs; wide_resnet50_2 has 66.8 M parameters."""
    with torch.device("meta"):
        one, two = (create_encoder(EncoderConfig(name=f"resnet50_{k}x")).state_dict() for k in (1, 2))
    assert one.keys() == two.keys()
    for name, tensor in one.items():
        if tensor.ndim:
            assert two[name].shape[0] == 2 * tensor.shape[0], name
    assert set(SIMCLR_RESNETS).isdisjoint(timm.list_models())


def test_resnet50_1x_computes_what_resnet50_does() -> None:
    """The same network under other names: post-activation, stride in the 3x3 convolution."""
    torch.manual_seed(0)
    ours = create_encoder(EncoderConfig(name="resnet50_1x")).eval()
    theirs = create_encoder(EncoderConfig(name="resnet50")).eval()
    # In both, a block's norms have the numbers of its convolutions.
    renamed = {}
    for name, tensor in theirs.state_dict().items():
        name = re.sub(r"^layer(\d)\.", lambda m: f"stages.{int(m[1]) - 1}.blocks.", name)
        name = re.sub(r"downsample\.0", "downsample.conv", re.sub(r"downsample\.1", "downsample.norm", name))
        name = re.sub(r"^(conv|bn)1", lambda m: "stem." + {"conv": "conv", "bn": "norm"}[m[1]], name)
        renamed[re.sub(r"\.bn(\d)", r".norm\1", name)] = tensor
    ours.load_state_dict(renamed)
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(ours(images), theirs(images))


def test_a_name_may_say_timm_and_weights() -> None:
    assert EncoderConfig(name="timm:vit_tiny_patch16_224") == EncoderConfig(name="vit_tiny_patch16_224")
    assert EncoderConfig(name="resnet50.tv_in1k").timm_name == "resnet50"
    assert num_parameters("timm:vit_small_patch16_224") == num_parameters("vit_small_patch16_224")


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("resnet50_3x", r"no 'resnet50_3x' \(nearest: resnet50_4x, resnet50_2x, resnet50_1x\)"),
        ("timm:vit_smal_patch16_224", "nearest: vit_small_patch16_224"),
        ("resnet50.tv_in", r"no weights 'resnet50\.tv_in' \(nearest: .*resnet50\.tv_in1k"),
        ("local-dir:/tmp", "timm has no 'local-dir:/tmp'"),
    ],
)
def test_an_unknown_name_is_refused_with_the_nearest(name: str, told: str) -> None:
    with pytest.raises(InputError, match=told):
        create_encoder(EncoderConfig(name=name))


@pytest.mark.parametrize("name", ["resnet50_1x", "vit_tiny_patch16_224", "swin_tiny_patch4_window7_224"])
def test_networks_take_the_views_size(name: str) -> None:
    """What the check lets pass computes features of images of that size."""
    for size_px, config in ((32, EncoderConfig(name=name)), (96, EncoderConfig(name=name, channels=1))):
        check_encoder(config, size_px)
        with torch.device("meta"):
            encoder = create_encoder(config, size_px).eval()
            assert encoder(torch.empty(2, config.channels, size_px, size_px)).shape == (2, encoder.num_features)


@pytest.mark.parametrize(
    ("name", "size_px", "told"),
    [
        ("vit_tiny_patch16_224", 40, r"patches of 16 px .* views\.size_px=32 or 48"),
        ("vit_tiny_patch16_224", 8, r"views\.size_px=16 or 32"),
        ("inception_v3", 64, "'inception_v3' does not take images of 64 px .*Kernel size"),
        ("crossvit_9_240", 64, "'crossvit_9_240' does not take images of 64 px"),
    ],
)
def test_an_image_size_that_the_network_cannot_take_is_refused(name: str, size_px: int, told: str) -> None:
    with pytest.raises(InputError, match=told) as refusal:
        check_encoder(EncoderConfig(name=name), size_px)
    assert "\n" not in str(refusal.value)


def test_a_grey_encoder_sees_the_luminance() -> None:
    encoder = create_encoder(EncoderConfig(name="test_resnet", channels=1)).eval()
    red = torch.zeros(1, 3, 32, 32)
    red[:, 0] = 1
    grey = normalise(red, (0.5, 0.1, 0.1), (0.25, 1.0, 1.0), channels=1)
    assert grey.shape == (1, 1, 32, 32)
    torch.testing.assert_close(grey, torch.full_like(grey, (0.299 - 0.5) / 0.25))
    assert encoder(grey).shape == (1, encoder.num_features)


@pytest.mark.parametrize("name", ["resnet18", "resnet50_1x"])
def test_a_small_stem_keeps_the_size(name: str) -> None:
    with torch.device("meta"):
        small: Any = create_encoder(EncoderConfig(name=name, stem="small", channels=1)).eval()
        standard: Any = create_encoder(EncoderConfig(name=name)).eval()
        sides = [net.forward_features(torch.zeros(1, c, 32, 32)).shape[-1] for net, c in ((small, 1), (standard, 3))]
    assert sides == [4, 1]
    with pytest.raises(InputError, match=r"encoder\.stem: 'test_vit' has no ResNet stem"):
        create_encoder(EncoderConfig(name="test_vit", stem="small"))


def test_weights_come_from_the_seed() -> None:
    def weights(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        return torch.cat([p.flatten() for p in create_encoder(EncoderConfig(name="test_vit"), 32).parameters()])

    assert torch.equal(weights(1), weights(1))
    assert not torch.equal(weights(1), weights(2))


@pytest.mark.parametrize("name", ["mobilenetv3_small_050", "vgg11", "test_efficientnet"])
def test_num_features_is_what_comes_out(name: str) -> None:
    with torch.device("meta"):
        model = create_encoder(EncoderConfig(name=name)).eval()
        assert model(torch.zeros(1, 3, 64, 64)).shape == (1, model.num_features)
