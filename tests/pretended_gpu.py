"""A GPU that is pretended: its tensors have shapes and places but no values.

A tensor in the wrong place, or a wait for a value in the middle of a step, is an error there as it is on a real one.
What it cannot show: kernels, numbers, speed, and the inside of autograd's backward.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily
from torch.utils._pytree import tree_leaves, tree_map

from clusters import distributed

GPU = torch.device("cuda", 0)
_numpy = Tensor.numpy


@contextmanager
def pretended_gpu() -> Iterator[torch.device]:
    """Within, it is this process's device, and what is moved there is there."""
    replaced: list[tuple[Any, str, Any]] = [
        (distributed, "_device", GPU),
        (nn.Module, "to", _moved),
        (Tensor, "numpy", _numpy_of_the_host),
        (Tensor, "backward", _backward),
        (torch, "_fused_sgd_", _fused_step),
    ]
    with FakeTensorMode(allow_non_fake_inputs=True), ExitStack() as patches:
        for owner, name, value in replaced:
            patches.enter_context(mock.patch.object(owner, name, value))
        yield GPU


def places(value: Any) -> set[str]:
    """The types of device on which the tensors of something nested lie."""
    return {leaf.device.type for leaf in tree_leaves(value) if isinstance(leaf, Tensor)}


def as_read(state: Any) -> Any:
    """A state as a checkpoint gives it back: the same shapes, on the CPU."""

    def read(leaf: Any) -> Any:
        return torch.empty(leaf.shape, dtype=leaf.dtype) if isinstance(leaf, Tensor) else leaf

    return tree_map(read, state)


def _moved(module: nn.Module, device: torch.device, **_: Any) -> nn.Module:
    """`Module.to`, which refuses to turn a real weight into a pretended one."""
    for part in module.modules():
        for name, weight in part._parameters.items():
            if weight is not None:
                there = torch.empty(weight.shape, dtype=weight.dtype, device=device)
                part._parameters[name] = nn.Parameter(there, requires_grad=weight.requires_grad)
        for name, buffer in part._buffers.items():
            if buffer is not None:
                part._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype, device=device)
    return module


def _numpy_of_the_host(tensor: Tensor, **told: Any) -> Any:
    with unset_fake_temporarily():
        return _numpy(tensor, **told)


def _backward(loss: Tensor) -> None:
    """A gradient for each weight that the loss depends on; the engine itself would ask for a driver."""
    assert loss.device == GPU and loss.grad_fn is not None
    left, met = [loss.grad_fn], set()
    while left:
        node = left.pop()
        if node not in met:
            met.add(node)
            left += [before for before, _ in node.next_functions if before is not None]
            if (weight := getattr(node, "variable", None)) is not None:
                assert weight.device == GPU
                weight.grad = torch.zeros_like(weight)


def _fused_step(*given: Any, **told: Any) -> None:
    """The one kernel that has no pretended form."""
    assert {leaf.device for leaf in tree_leaves((given, told)) if isinstance(leaf, Tensor)} == {GPU}
