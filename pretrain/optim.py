"""Optimisers, the parameters they leave alone, and the learning rate as a function of the step."""

import math
from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from clusters.config import Config


class OptimConfig(Config):
    """How weights are updated."""

    name: Literal["lars", "adamw", "sgd"] = Field(default="lars", description="LARS is SimCLR's own")
    lr: float = Field(default=0.3, gt=0, description="base learning rate, before scaling")
    lr_scaling: Literal["linear", "sqrt", "none"] = Field(
        default="linear", description="linear: lr x batch / 256; sqrt: lr x sqrt(batch); none: lr as it is"
    )
    weight_decay: float = Field(default=1e-6, ge=0, description="on weights, never on biases and normalisation")
    momentum: float = Field(default=0.9, ge=0, lt=1, description="of LARS and SGD")
    warmup: float = Field(default=0.1, ge=0, le=1, description="share of the steps over which the rate rises from 0")


def build_optimizer(
    module: nn.Module, config: OptimConfig, scale_of: Mapping[int, float] | None = None, spare: bool = True
) -> torch.optim.Optimizer:
    """The optimiser over a module, with biases and normalisation free of decay and of LARS's adaptation.

    So are what a network of timm's names as such: position embeddings and class tokens; with `spare=False` none is.
    `scale_of`, by a parameter's id, is its share of the learning rate, told as `lr_scale` of its group; 1 without.

    Where its attribute `found_inf` is a tensor of 1, a step changes nothing, without the host having to know: the
    contract of torch's fused optimisers, which ours keeps too.
    """
    spared = _not_decayed(module)
    named = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
    groups: list[dict[str, Any]] = []
    for scale in sorted({(scale_of or {}).get(id(p), 1.0) for _, p in named}):
        of_scale = [(name, p) for name, p in named if (scale_of or {}).get(id(p), 1.0) == scale]
        decayed = [p for name, p in of_scale if not spare or (p.ndim > 1 and name not in spared)]
        rest = [p for name, p in of_scale if spare and (p.ndim <= 1 or name in spared)]
        own = {} if scale_of is None else {"lr_scale": scale}
        groups.append({"params": decayed, "weight_decay": config.weight_decay, "adapt": True, **own})
        groups.append({"params": rest, "weight_decay": 0.0, "adapt": False, **own})
    optimizer: torch.optim.Optimizer
    if config.name == "lars":
        optimizer = LARS(groups, momentum=config.momentum)
    elif config.name == "adamw":
        optimizer = torch.optim.AdamW(groups, lr=0.0, fused=True)
    else:
        optimizer = torch.optim.SGD(groups, lr=0.0, momentum=config.momentum, fused=True)
        if config.momentum:
            # Else a first step that is not taken would leave them uninitialised (torch 2.15).
            for _, p in named:
                optimizer.state[p]["momentum_buffer"] = torch.zeros_like(p)
    optimizer.register_load_state_dict_post_hook(_restore_layout)
    return optimizer


def _not_decayed(module: nn.Module) -> set[str]:
    """Names of parameters that networks inside the module say should not be decayed."""
    return {
        f"{prefix}.{name}".removeprefix(".")
        for prefix, inner in module.named_modules()
        if callable(getattr(inner, "no_weight_decay", None))
        for name in inner.no_weight_decay()  # type: ignore[operator]
    }


@torch.no_grad()
def _restore_layout(optimizer: torch.optim.Optimizer) -> None:
    """Lay loaded buffers out in memory as their parameters are: fused steps go by memory, and do not check."""
    for parameter, state in optimizer.state.items():
        for name, value in state.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                state[name] = torch.empty_like(parameter).copy_(value)


def learning_rate(config: OptimConfig, step: int, total_steps: int, batch_size: int) -> float:
    """Linear warm-up, then a half cosine to zero, at a step from 0 to total_steps - 1."""
    scale = {"linear": batch_size / 256, "sqrt": math.sqrt(batch_size), "none": 1.0}[config.lr_scaling]
    warmup_steps = round(config.warmup * total_steps)
    if step < warmup_steps:
        return config.lr * scale * (step + 1) / warmup_steps
    progress = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    return config.lr * scale * 0.5 * (1 + math.cos(math.pi * progress))


class LARS(torch.optim.Optimizer):
    """Layer-wise adaptive rate scaling (You et al., 2017), as SimCLR uses it.

    The trust ratio is η·|w| / |g + λw|; the learning rate is multiplied into the momentum buffer (classic
    momentum). Groups with `adapt=False` take plain momentum steps. All arithmetic is on lists of
    tensors and none of it waits for the device.
    """

    found_inf: Tensor | None = None

    def __init__(self, groups: list[dict[str, Any]], momentum: float = 0.9, trust: float = 0.001) -> None:
        super().__init__(groups, {"lr": 0.0, "momentum": momentum, "trust": trust, "adapt": True, "weight_decay": 0.0})

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:  # type: ignore[override]
        """One update of every parameter that has a gradient."""
        loss = None if closure is None else closure()
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            if not parameters:
                continue
            updates = [p.grad for p in parameters]
            if group["weight_decay"]:
                updates = list(torch._foreach_add(updates, parameters, alpha=group["weight_decay"]))
            rates: list[Tensor] | float = group["lr"]
            if group["adapt"]:
                rates = list((self._ratios(parameters, updates, group["trust"]) * group["lr"]).unbind())
            if group["weight_decay"]:
                torch._foreach_mul_(updates, rates)  # they are ours; gradients stay as they are
            else:
                updates = list(torch._foreach_mul(updates, rates))
            self._move(parameters, updates, group["momentum"])
        return loss

    def _move(self, parameters: list[Tensor], updates: list[Tensor], momentum: float) -> None:
        """In one pass v ← m·v + u, w ← w - v; nothing where `found_inf` is 1."""
        torch._fused_sgd_(
            parameters, updates, [self._buffer(p) for p in parameters], weight_decay=0.0, momentum=momentum, lr=1.0,
            dampening=0.0, nesterov=False, maximize=False, is_first_step=False, found_inf=self.found_inf,
        )  # fmt: skip

    def _buffer(self, parameter: Tensor) -> Tensor:
        state = self.state[parameter]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(parameter)
        return state["momentum_buffer"]

    @staticmethod
    def _ratios(parameters: list[Tensor], updates: list[Tensor], trust: float) -> Tensor:
        weight_norms = torch.stack(torch._foreach_norm(parameters))
        update_norms = torch.stack(torch._foreach_norm(updates))
        return torch.where((weight_norms > 0) & (update_norms > 0), trust * weight_norms / update_norms, 1.0)
