"""A real run's collectives, noted call by call: what the tests of the simulation hold its counts against."""

from collections import Counter
from typing import Any
from unittest import mock

import torch.distributed as dist
from torch import Tensor

from pretrain.config import PretrainConfig
from pretrain.run import train
from pretrain.saving import Saving
from pretrain.training import Training
from pretrain.watch import Watch

Calls = Counter[tuple[str, int]]
CALLS = (
    ("all_reduce", "all_reduce", 0),
    ("all_gather", "all_gather", 1),
    ("all_gather_single", "all_gather", 1),  # of objects, by newer versions of torch
    ("broadcast", "broadcast", 0),
)
"""The function, what it is, and which of its arguments is this rank's own."""


def collectives_of_a_run(values: dict[str, Any]) -> tuple[list[Calls], list[Calls]]:
    """(operation, bytes that this rank gives) of each step, and of each record of metrics, of a run of a recipe."""
    noted: dict[str, list[Calls]] = {"step": [], "record": []}
    now: list[Calls] = [Counter()]

    def noting(name: str, operation: str, given: int) -> Any:
        original = getattr(dist, name)

        def call(*tensors: Any, **rest: Any) -> Any:
            tensor: Tensor = tensors[given]
            now[-1][operation, tensor.numel() * tensor.element_size()] += 1
            return original(*tensors, **rest)

        return call

    def within(part: str, function: Any) -> Any:
        def call(*arguments: Any) -> Any:
            now.append(Counter())
            result = function(*arguments)
            noted[part].append(now.pop())
            return result

        return call

    patches = [
        mock.patch.object(place, name, noting(name, operation, given))
        for name, operation, given in CALLS
        for place in (dist, dist.distributed_c10d)
        if hasattr(dist, name)
    ]
    patches += [
        mock.patch.object(Training, "step", within("step", Training.step)),
        mock.patch.object(Saving, "look", within("record", Saving.look)),
        mock.patch.object(Watch, "_log", within("record", Watch._log)),
    ]
    for patch in patches:
        patch.start()
    try:
        train(PretrainConfig.model_validate(values))
    finally:
        mock.patch.stopall()
    return noted["step"], noted["record"]
