"""Grad-CAM and attention rollout against plain restatements of their papers, on timm's own networks."""

from typing import Any

import numpy as np
import pytest
import timm
import torch
from torch import nn

from finetune.loop import Classifier
from finetune.saliency import Saliency, attention_rollout, saliency


def classifier(name: str, num_labels: int = 3, **options) -> Classifier:
    """A classifier of random weights, in evaluation mode, its encoder frozen as a linear head's is."""
    torch.manual_seed(0)
    encoder: Any = timm.create_model(name, num_classes=0, **options)
    model = Classifier(encoder, int(encoder.num_features), num_labels)
    nn.init.normal_(model.head.weight)
    encoder.requires_grad_(False)
    return model.eval()


def images(count: int, size_px: int) -> torch.Tensor:
    return torch.randn(count, 3, size_px, size_px, generator=torch.Generator().manual_seed(1))


def found(model: nn.Module, pixels: torch.Tensor, labels: list[int]) -> Saliency:
    maps = saliency(model, pixels, torch.tensor(labels))
    assert maps is not None
    return maps


def test_grad_cam_is_the_paper_s_sum_written_out():
    """Eq. 1 and 2 in loops, the gradient of one field at a time by finite differences of the rest of the network."""
    model, pixels = classifier("test_resnet").double(), images(1, 128).double()
    encoder: Any = model.encoder
    with torch.no_grad():
        maps = encoder.forward_features(pixels)

        def logit(of_maps: torch.Tensor) -> float:
            return float(model.head(encoder.forward_head(of_maps))[0, 2])

        _, channels, height, width = maps.shape
        expected = np.zeros((height, width))
        for channel in range(channels):
            weight = 0.0
            for row in range(height):
                for column in range(width):
                    step = torch.zeros_like(maps)
                    step[0, channel, row, column] = 1e-4
                    weight += (logit(maps + step) - logit(maps - step)) / 2e-4 / (height * width)
            expected += weight * maps[0, channel].numpy()
    expected = np.maximum(expected, 0)
    maps_of = found(model, pixels, [2])
    assert (maps_of.method, maps_of.layer, maps_of.of_class) == ("Grad-CAM", "layer4", True)
    assert maps_of.maps_BHW[0] == pytest.approx(expected / expected.max(), abs=1e-4)


def test_grad_cam_of_a_linear_head_on_pooled_features_is_cam():
    """Section 3.1: there it is the head's weights times the maps (Zhou et al., 2016), per image and label."""
    model, pixels = classifier("test_resnet"), images(3, 128)
    with torch.no_grad():
        encoder: Any = model.encoder
        maps = encoder.forward_features(pixels)
        cam = torch.relu(torch.einsum("bm,bmhw->bhw", model.head.weight[[0, 1, 2]], maps)).numpy()
    expected = cam / np.maximum(cam.max(axis=(1, 2), keepdims=True), 1e-30)
    assert found(model, pixels, [0, 1, 2]).maps_BHW == pytest.approx(expected, abs=1e-4)


def test_a_small_image_is_mapped_where_the_network_still_has_fields():
    model = classifier("test_resnet")
    assert found(model, images(1, 128), [0]).layer == "layer4"
    small = found(model, images(1, 64), [0])
    assert small.layer == "layer3" and small.maps_BHW.shape == (1, 4, 4)


def test_grad_cam_finds_what_decides():
    """A network that answers to brightness alone looks at the bright corner."""
    model = classifier("test_resnet", num_labels=1)
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.constant_(module.weight, 1 / module.weight[0].numel())
    nn.init.constant_(model.head.weight, 1.0)
    pixels = torch.zeros(1, 3, 128, 128)
    pixels[:, :, 96:, :32] = 5
    row, column = np.unravel_index(found(model, pixels, [0]).maps_BHW[0].argmax(), (4, 4))
    assert (row, column) == (3, 0)


@pytest.mark.parametrize("pooling", ["token", "avg"])
def test_rollout_is_the_product_of_attention_computed_by_hand(pooling):
    options = {"global_pool": pooling, "img_size": 64, "fc_norm": False}
    model, pixels = classifier("test_vit", **options), images(2, 64)
    encoder: Any = model.encoder
    tokens = encoder.norm_pre(encoder.patch_drop(encoder._pos_embed(encoder.patch_embed(pixels))))
    product = np.broadcast_to(np.eye(tokens.shape[1]), (2, tokens.shape[1], tokens.shape[1]))
    with torch.no_grad():
        for block in encoder.blocks:
            mixed = np.zeros_like(product)
            heads, width = block.attn.num_heads, block.attn.head_dim
            values = block.attn.qkv(block.norm1(tokens)).reshape(2, -1, 3, heads, width)
            for image in range(2):
                for head in range(heads):
                    query, key = values[image, :, 0, head].numpy(), values[image, :, 1, head].numpy()
                    powers = np.exp(query @ key.T / np.sqrt(width))
                    mixed[image] += powers / powers.sum(axis=1, keepdims=True) / heads
            product = (0.5 * mixed + 0.5 * np.eye(tokens.shape[1])) @ product
            tokens = block(tokens)
    read = product[:, 0, 1:] if pooling == "token" else product[:, 1:, 1:].mean(axis=1)
    expected = (read / read.max(axis=1, keepdims=True)).reshape(2, 4, 4)
    rolled = found(model, pixels, [0, 1])
    assert rolled.maps_BHW == pytest.approx(expected, abs=1e-4)
    assert (rolled.method, rolled.layer, rolled.of_class) == ("attention rollout", "6 layers", False)


def test_rollout_keeps_shares_that_sum_to_one():
    attention = [torch.rand(2, 3, 7, 7).softmax(-1) for _ in range(4)]
    assert attention_rollout(attention).sum(-1).numpy() == pytest.approx(1)


@pytest.mark.parametrize("name", ["test_resnet", "test_vit"])
def test_looking_leaves_the_model_as_it_was(name):
    model, pixels = classifier(name, **({"img_size": 64} if name == "test_vit" else {})), images(2, 64)
    before = model(pixels)
    fused = [module.fused_attn for module in model.modules() if hasattr(module, "fused_attn")]
    found(model, pixels, [0, 1])
    assert torch.equal(model(pixels), before)
    assert [module.fused_attn for module in model.modules() if hasattr(module, "fused_attn")] == fused
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize(("name", "size_px"), [("test_convnext", 96), ("test_efficientnet", 96)])
def test_other_families_have_maps_too(name, size_px):
    maps = found(classifier(name), images(1, size_px), [1])
    assert maps.method == "Grad-CAM" and maps.maps_BHW.shape[1] >= 3 and np.isfinite(maps.maps_BHW).all()


def test_a_network_without_maps_or_attention_has_none():
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 3))
    assert saliency(model, images(1, 8), torch.tensor([0])) is None
