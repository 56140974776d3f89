"""Which weights are trained, how fast, and LoRA's in the place of an encoder's own.

Layers of an encoder are numbered from its input by timm's `group_matcher`: the stem is 0, then block by block (a
ResNet's residual blocks, a transformer's), the kept layers of a projection head above them, and the head on top.
"""

import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from timm.models import group_parameters
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from clusters.config import InputError
from finetune.full_config import FullConfig, FullOptimConfig
from finetune.heads import Classifier
from pretrain.heads import EncoderWithHead
from pretrain.optim import build_optimizer, learning_rate

ATTENTION_LAYERS = re.compile(r".*attn\.(qkv|q|k|v|proj)")
ADAPTER = "default"
STEPS_OF_A_TENTH = 4


@contextmanager
def drawn_by(seed: int) -> Iterator[None]:
    """Fresh weights that are made inside depend on the seed alone, and draw nothing from anybody else's numbers."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def choose_trained(model: Classifier, settings: FullConfig, name: str) -> None:
    """Freeze what `full.train` says, in place, and put LoRA's weights in. Raises InputError where that cannot be."""
    train = settings.train
    if train == "all":
        return
    model.encoder.requires_grad_(False)
    if train == "lora":
        _add_lora(model.encoder, settings, name)
    elif train.startswith("last_"):
        count, layer_of = int(train.removeprefix("last_")), layers(model)
        blocks = _num_blocks(model)
        if count > blocks:
            raise InputError(
                f"full.train: {train}, but {name} has {blocks} blocks above its stem; choose last_1 to "
                f"last_{blocks}, or all"
            )
        for parameter, layer in layer_of.items():
            model.get_parameter(parameter).requires_grad_(layer > blocks - count)


def train_mode(model: Classifier, settings: FullConfig) -> None:
    """Training mode, but for batch norms that are frozen: their statistics stay what they were pretrained to."""
    model.train()
    frozen = settings.train in ("head", "lora")
    for module in model.encoder.modules():
        own = [p.requires_grad for p in module.parameters()]
        if isinstance(module, _BatchNorm) and (frozen or (own and not any(own))):
            module.eval()


def layers(model: Classifier) -> dict[str, int]:
    """The layer of each parameter, by its name in the classifier; the head's is the highest."""
    kept = isinstance(model.encoder, EncoderWithHead)
    backbone, prefix = _backbone(model)
    matcher = getattr(backbone, "group_matcher", None)
    try:
        of_backbone = cast(dict[str, int], group_parameters(backbone, cast(Any, matcher)(coarse=False), reverse=True))
    except (TypeError, NotImplementedError, AssertionError):
        raise InputError(
            f"full: timm tells no layers of {type(backbone).__name__}; use train=all, head or lora, and layer_decay=1"
        ) from None
    top = max(of_backbone.values()) + 1
    found = {f"{prefix}.{name}": layer for name, layer in of_backbone.items()}
    for name, _ in model.named_parameters():
        if name not in found:
            found[name] = top if kept and name.startswith("encoder.") else top + kept
    return found


def make_optimizer(learner: nn.Module, model: Classifier, optim: FullOptimConfig) -> torch.optim.Optimizer:
    """The optimiser of what is trained; each of its groups has the share of the rate that is its own, `lr_scale`."""
    scale_of = {}
    if optim.layer_decay < 1:
        layer_of = layers(model)
        top = max(layer_of.values())
        scale_of = {
            id(parameter): optim.layer_decay ** (top - layer_of[name]) for name, parameter in model.named_parameters()
        }
    return build_optimizer(learner, optim, scale_of, spare=not optim.decay_biases)


def rate_at(optim: FullOptimConfig, step: int, total_steps: int, batch_size: int) -> float:
    """The learning rate at a step, before the groups' own shares."""
    warmup_steps = round(optim.warmup * total_steps)
    if optim.schedule == "cosine" or step < warmup_steps:
        return learning_rate(optim, step, total_steps, batch_size)
    # At the end of the warm-up the cosine stands at its top.
    top = learning_rate(optim, warmup_steps, total_steps, batch_size)
    return top * 0.1 ** math.floor(STEPS_OF_A_TENTH * step / total_steps)


def plain_weights(model: Classifier) -> dict[str, Tensor]:
    """The classifier's state on the host, LoRA's updates added to the weights that they are of: plain names only."""
    state = {name: tensor.detach() for name, tensor in model.state_dict().items()}
    for where, module in model.named_modules():
        if hasattr(module, "get_delta_weight"):
            weight = f"{where}.base_layer.weight"
            state[weight] = state[weight] + cast(Any, module).get_delta_weight(ADAPTER).detach()
    return {
        name.replace(".base_layer.", "."): tensor.cpu().contiguous().clone()
        for name, tensor in state.items()
        if ".lora_" not in name
    }


def _add_lora(encoder: nn.Module, settings: FullConfig, name: str) -> None:
    from peft import LoraConfig, inject_adapter_in_model

    targets = [n for n, m in encoder.named_modules() if isinstance(m, nn.Linear) and ATTENTION_LAYERS.fullmatch(n)]
    if not targets:
        raise InputError(
            f"full.train: lora adapts the attention of transformers, and {name} has none; use all or last_N, or an "
            "encoder such as vit_small_patch16_224"
        )
    lora = LoraConfig(r=settings.lora.rank, lora_alpha=settings.lora.alpha, target_modules=targets)  # type: ignore[arg-type]
    inject_adapter_in_model(lora, encoder, adapter_name=ADAPTER)


def _backbone(model: Classifier) -> tuple[nn.Module, str]:
    """The network of timm in a classifier, and what its parameters' names begin with."""
    if isinstance(model.encoder, EncoderWithHead):
        return model.encoder.encoder, "encoder.encoder"
    return model.encoder, "encoder"


def _num_blocks(model: Classifier) -> int:
    """The highest layer of timm's network, which are the blocks above its stem."""
    prefix = _backbone(model)[1] + "."
    return max(layer for name, layer in layers(model).items() if name.startswith(prefix))
