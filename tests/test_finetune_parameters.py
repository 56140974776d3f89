"""Which weights are trained, how fast, and that LoRA's merge into plain ones."""

import pytest
import torch
from torch import nn

from clusters.config import InputError
from finetune.full_config import FullConfig
from finetune.heads import Classifier
from finetune.parameters import choose_trained, layers, make_optimizer, plain_weights, rate_at, train_mode
from pretrain.encoder import EncoderConfig, create_encoder
from pretrain.heads import EncoderWithHead


def classifier(name: str) -> Classifier:
    torch.manual_seed(0)
    encoder = create_encoder(EncoderConfig(name=name), 32 if "vit" in name else None)
    return Classifier(encoder, int(encoder.num_features), 3)  # type: ignore[arg-type]


def full(**values: object) -> FullConfig:
    return FullConfig.model_validate(values)


def trained(model: nn.Module) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def test_layers_of_a_resnet_are_its_residual_blocks_and_of_a_transformer_its_blocks() -> None:
    of_resnet = layers(classifier("resnet18"))
    assert of_resnet["encoder.conv1.weight"] == of_resnet["encoder.bn1.bias"] == 0
    assert [of_resnet[f"encoder.layer{s}.{b}.conv2.weight"] for s in (1, 2, 3, 4) for b in (0, 1)] == [*range(1, 9)]
    assert of_resnet["head.weight"] == of_resnet["head.bias"] == 9
    of_vit, depth = layers(classifier("test_vit")), len(classifier("test_vit").encoder.blocks)  # type: ignore[arg-type]
    assert of_vit["encoder.pos_embed"] == of_vit["encoder.patch_embed.proj.weight"] == 0
    assert [of_vit[f"encoder.blocks.{b}.mlp.fc1.bias"] for b in range(depth)] == [*range(1, depth + 1)]
    assert of_vit["encoder.norm.weight"] == depth  # with the last block
    assert of_vit["head.weight"] == depth + 1


def test_kept_layers_of_a_projection_head_stand_between_blocks_and_head() -> None:
    inner = classifier("resnet18").encoder
    model = Classifier(EncoderWithHead(inner, nn.Sequential(nn.Linear(512, 6), nn.BatchNorm1d(6)), 6), 6, 3)
    found = layers(model)
    assert found["encoder.encoder.layer4.1.conv2.weight"] == 8
    assert found["encoder.head.0.weight"] == found["encoder.head.1.bias"] == 9
    assert found["head.weight"] == 10
    choose_trained(model, full(train="last_1"), "resnet18")
    assert trained(model) == {name for name, layer in found.items() if layer >= 8}


@pytest.mark.parametrize("name", ["resnet18", "test_vit"])
def test_layer_decay_multiplies_the_rate_from_block_to_block(name: str) -> None:
    model = classifier(name)
    optimizer = make_optimizer(model, model, full(optim={"layer_decay": 0.5}).optim)
    of = {id(p): group["lr_scale"] for group in optimizer.param_groups for p in group["params"]}
    layer_of = layers(model)
    top = max(layer_of.values())
    assert len(set(layer_of.values())) == top + 1
    for parameter, value in model.named_parameters():
        assert of[id(value)] == 0.5 ** (top - layer_of[parameter]), parameter
    for group in optimizer.param_groups:
        tokens = [getattr(model.encoder, token, None) for token in ("pos_embed", "cls_token", "reg_token")]
        spared = [p.ndim <= 1 or any(p is token for token in tokens) for p in group["params"]]
        assert all(spared) if group["weight_decay"] == 0 else not any(spared)


def test_biases_are_decayed_where_that_is_asked_for() -> None:
    model = classifier("resnet18")
    for decayed in (False, True):
        groups = make_optimizer(model, model, full(optim={"decay_biases": decayed}).optim).param_groups
        of = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
        assert of[id(model.head.weight)] == 0.05
        assert of[id(model.head.bias)] == (0.05 if decayed else 0.0)


def test_only_the_last_blocks_and_the_head_are_trained() -> None:
    model = classifier("resnet18")
    choose_trained(model, full(train="last_2"), "resnet18")
    assert {name.split(".")[1] for name in trained(model)} == {"layer4", "weight", "bias"}
    assert trained(model) == {name for name, layer in layers(model).items() if layer >= 7}
    with pytest.raises(InputError, match="last_9, but resnet18 has 8 blocks"):
        choose_trained(classifier("resnet18"), full(train="last_9"), "resnet18")


@pytest.mark.parametrize(("train", "moving"), [("all", "all"), ("last_1", "layer4.1"), ("head", "none")])
def test_frozen_batch_norms_keep_the_statistics_they_were_pretrained_to(train: str, moving: str) -> None:
    model, settings = classifier("resnet18"), full(train=train)
    choose_trained(model, settings, "resnet18")
    train_mode(model, settings)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model(torch.randn(2, 3, 32, 32))
    moved = {n for n, t in model.state_dict().items() if "running" in n and not torch.equal(t, before[n])}
    statistics = {n for n in before if "running" in n}
    assert moved == {n for n in statistics if moving == "all" or moving in n}
    assert trained(model) if moving != "none" else trained(model) == {"head.weight", "head.bias"}


def test_lora_begins_as_the_encoder_trains_little_and_merges_into_plain_weights() -> None:
    plain, model = classifier("test_vit"), classifier("test_vit")
    nn.init.normal_(plain.head.weight)
    model.load_state_dict(plain.state_dict())
    choose_trained(model, full(train="lora", lora={"rank": 2}), "test_vit")
    images = torch.randn(4, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(model(images), plain(images))
    names = trained(model)
    assert {name.split(".")[-3] for name in names if name.startswith("encoder")} == {"lora_A", "lora_B"}
    assert all(".attn." in name for name in names if name.startswith("encoder"))
    assert sum(model.get_parameter(name).numel() for name in names) < 0.2 * sum(p.numel() for p in plain.parameters())

    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        model(images).square().mean().backward()
        optimizer.step()
    merged = classifier("test_vit")
    merged.load_state_dict(plain_weights(model))  # every name and shape is the plain network's
    with torch.no_grad():
        assert (model(images) - plain(images)).abs().max() > 0.01
        torch.testing.assert_close(merged(images), model(images), rtol=1e-4, atol=1e-5)
    with pytest.raises(InputError, match="lora adapts the attention of transformers, and resnet18 has none"):
        choose_trained(classifier("resnet18"), full(train="lora"), "resnet18")


def test_layer_decay_reaches_lora() -> None:
    model = classifier("test_vit")
    choose_trained(model, full(train="lora"), "test_vit")
    of = layers(model)
    assert of["encoder.blocks.0.attn.qkv.lora_A.default.weight"] == 1
    assert of["encoder.blocks.1.attn.qkv.lora_B.default.weight"] == 2


def test_the_schedules_warm_up_alike_and_step_by_tenths() -> None:
    cosine, step = (full(optim={"schedule": name, "warmup": 0.1, "lr": 1.0}).optim for name in ("cosine", "step"))
    rates = [[rate_at(optim, at, 100, 256) for at in range(100)] for optim in (cosine, step)]
    assert rates[0][:11] == rates[1][:11]
    assert rates[1][10:25] == [1.0] * 15
    assert [rates[1][at] for at in (25, 50, 75, 99)] == pytest.approx([0.1, 0.01, 1e-3, 1e-3])
    assert rates[0][50] == pytest.approx(0.5868240888)
