"""LARS against its equation, what it leaves alone, and the schedule by step."""

import math

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from pretrain.optim import LARS, OptimConfig, build_optimizer, learning_rate


def test_lars_follows_its_equation() -> None:
    """v ← m·v + lr·η·|w| / |g + λw| · (g + λw);  w ← w - v, in plain loops beside ours."""
    torch.manual_seed(0)
    weight, bias = nn.Parameter(torch.randn(4, 3)), nn.Parameter(torch.randn(4))
    groups = [
        {"params": [weight], "weight_decay": 0.01, "adapt": True},
        {"params": [bias], "weight_decay": 0.0, "adapt": False},
    ]
    ours = LARS(groups, momentum=0.9)
    w, b = weight.detach().clone(), bias.detach().clone()
    v_w, v_b = torch.zeros_like(w), torch.zeros_like(b)
    for step in range(4):
        rate = 0.5 / (step + 1)
        weight.grad, bias.grad = torch.randn(4, 3), torch.randn(4)
        decayed = weight.grad + 0.01 * w
        v_w = 0.9 * v_w + rate * 0.001 * w.norm() / decayed.norm() * decayed
        v_b = 0.9 * v_b + rate * bias.grad
        w, b = w - v_w, b - v_b
        for group in ours.param_groups:
            group["lr"] = rate
        ours.step()
        assert torch.allclose(weight, w, atol=1e-7)
        assert torch.allclose(bias, b, atol=1e-7)


def test_a_weight_of_zero_norm_still_learns() -> None:
    weight = nn.Parameter(torch.zeros(2, 2))
    weight.grad = torch.ones(2, 2)
    lars = LARS([{"params": [weight], "adapt": True}])
    lars.param_groups[0]["lr"] = 0.1
    lars.step()
    assert torch.allclose(weight, torch.full((2, 2), -0.1))


@pytest.mark.parametrize("name", ["lars", "adamw", "sgd"])
def test_biases_and_normalisation_are_free_of_decay(name: str) -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))
    optimizer = build_optimizer(network, OptimConfig(name=name, weight_decay=0.1))  # type: ignore[arg-type]
    decayed = {id(p) for group in optimizer.param_groups if group["weight_decay"] for p in group["params"]}
    for parameter_name, parameter in network.named_parameters():
        assert (id(parameter) in decayed) == (parameter_name in ("0.weight", "3.weight")), parameter_name
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(list(network.parameters()))


@pytest.mark.parametrize("name", ["lars", "adamw", "sgd"])
def test_what_a_vision_transformer_spares_is_free_of_decay_and_adaptation(name: str) -> None:
    network = nn.ModuleDict({"encoder": VisionTransformer(32, 16, num_classes=0, embed_dim=8, depth=1, num_heads=2)})
    groups = build_optimizer(network, OptimConfig(name=name, weight_decay=0.1)).param_groups  # type: ignore[arg-type]
    spared = {id(p) for group in groups if not group["weight_decay"] for p in group["params"]}
    for parameter_name in ("encoder.pos_embed", "encoder.cls_token"):
        parameter = network.get_parameter(parameter_name)
        assert parameter.ndim > 1
        assert id(parameter) in spared, parameter_name
    assert id(network.get_parameter("encoder.patch_embed.proj.weight")) not in spared
    assert all(group["adapt"] == bool(group["weight_decay"]) for group in groups)


def test_lars_takes_no_step_where_it_is_told_not_to() -> None:
    """By `found_inf`, on the device, as torch's fused optimisers are told."""
    weight = nn.Parameter(torch.randn(3, 2))
    lars = LARS([{"params": [weight], "adapt": True, "weight_decay": 0.1}])
    lars.param_groups[0]["lr"] = 0.1
    weight.grad = torch.ones(3, 2)
    lars.step()
    own, buffer = weight.detach().clone(), lars.state[weight]["momentum_buffer"].clone()
    weight.grad, lars.found_inf = torch.full((3, 2), torch.nan), torch.ones(())
    lars.step()
    assert torch.equal(weight, own)
    assert torch.equal(lars.state[weight]["momentum_buffer"], buffer)
    weight.grad, lars.found_inf = torch.ones(3, 2), torch.zeros(())
    lars.step()
    assert not torch.equal(weight, own)


def test_schedule_rises_then_falls_to_zero() -> None:
    config = OptimConfig(lr=0.3, lr_scaling="linear", warmup=0.1)
    rates = [learning_rate(config, step, 100, 512) for step in range(100)]
    assert rates[0] == pytest.approx(0.06)
    assert rates[9] == pytest.approx(0.6)
    assert max(rates) == pytest.approx(0.6)
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[55] == pytest.approx(0.3, abs=0.01)
    assert rates[-1] < 0.001


def test_scaling_rules_of_the_paper_meet_at_batch_4096() -> None:
    """Section B.1 of Chen et al. (2020): 0.3 x batch / 256 and 0.075 x sqrt(batch)."""
    linear, root = (
        OptimConfig(lr=0.3, lr_scaling="linear", warmup=0),
        OptimConfig(lr=0.075, lr_scaling="sqrt", warmup=0),
    )
    assert learning_rate(linear, 0, 10, 4096) == pytest.approx(learning_rate(root, 0, 10, 4096))
    assert learning_rate(linear, 0, 10, 4096) == pytest.approx(4.8)
    assert learning_rate(root, 0, 10, 256) == pytest.approx(0.075 * math.sqrt(256))
