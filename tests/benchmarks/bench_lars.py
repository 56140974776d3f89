"""How often an optimiser step of ResNet-50 waits for the device: LARS of ours and of lightly.

Every number or truth value that Python takes out of a tensor, and every nonzero, drains a GPU's queue. They are
counted as operations, which is the same on a CPU.
"""

from typing import Any

import timm
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from pretrain.optim import OptimConfig, build_optimizer

WAITING = ("aten::_local_scalar_dense", "aten::item", "aten::is_nonzero", "aten::nonzero", "aten::equal")


def run() -> list[dict[str, Any]]:
    """Waits in one step; the peer's number is what ours saves."""
    ours, peer = _waits(_ours), _waits(_peer)
    return [
        {
            "name": "LARS host synchronisations a step, ResNet-50; peer lightly, ratio: those that ours saves",
            "ours": ours,
            "peer": peer,
            "unit": "waits",
            "ratio": peer - ours,
            "floor": peer,
            "goal": peer,
        }
    ]


def _waits(make: Any) -> int:
    network = timm.create_model("resnet50", num_classes=0)
    optimizer = make(network)
    for parameter in network.parameters():
        parameter.grad = torch.full_like(parameter, 1e-3)
    optimizer.step()  # makes its state
    with _Waits() as waits:
        optimizer.step()
    return waits.count


def _ours(network: nn.Module) -> torch.optim.Optimizer:
    return build_optimizer(network, OptimConfig())


def _peer(network: nn.Module) -> torch.optim.Optimizer:
    from lightly.utils.lars import LARS

    weights = [p for p in network.parameters() if p.ndim > 1]
    others = [p for p in network.parameters() if p.ndim <= 1]
    groups = [{"params": weights, "weight_decay": 1e-6}, {"params": others, "weight_decay": 0.0}]
    return LARS(groups, lr=0.3, momentum=0.9)


class _Waits(TorchDispatchMode):
    """Counts the operations that hand a tensor's value to Python."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func.name().split(".")[0] in WAITING
        return func(*args, **(kwargs or {}))
