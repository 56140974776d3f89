"""A training state copied at one moment, so that it can be written down while the training goes on."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Copy:
    """A nested state taken apart: `structure` is JSON in which names stand for the tensors in `tensors`.

    The tensors are contiguous, on the CPU, and hold the state's values once `wait` has returned.
    """

    structure: Any
    tensors: dict[str, Tensor]
    copied: torch.cuda.Event | None

    def wait(self) -> None:
        """Wait for copies that a GPU still makes."""
        if self.copied is not None:
            self.copied.synchronize()


class Snapshot:
    """Takes copies of states into memory that is used again: as much as one state has, from the first copy on.

    On a GPU the copies stand in its queue between two steps, into pinned memory, and the host waits for none. The
    next step's kernels do, which takes milliseconds; a second state on the GPU would be the price of sparing them.
    """

    def __init__(self) -> None:
        self._buffers: dict[str, Tensor] = {}

    @torch.no_grad()
    def take(self, state: Any) -> Copy:
        """Copy a nested dict or list of tensors, numbers, strings and None; the copy before this one is overwritten.

        Raises TypeError with the path of anything else.
        """
        tensors: dict[str, Tensor] = {}
        structure = _detach(state, "", tensors)
        self._buffers = {name: self._buffer(name, tensor) for name, tensor in tensors.items()}
        for name, tensor in tensors.items():
            self._buffers[name].copy_(tensor, non_blocking=tensor.is_cuda)
        copied = None
        if any(tensor.is_cuda for tensor in tensors.values()):
            copied = torch.cuda.Event()
            copied.record()
        return Copy(structure, dict(self._buffers), copied)

    def _buffer(self, name: str, tensor: Tensor) -> Tensor:
        there = self._buffers.get(name)
        if there is not None and there.shape == tensor.shape and there.dtype == tensor.dtype:
            return there
        return torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)


def _detach(value: Any, path: str, tensors: dict[str, Tensor]) -> Any:
    """Move tensors out of a nested state, leaving JSON with their names in their places."""
    if isinstance(value, Tensor):
        while path in tensors:  # of keys such as 1 and "1", or "a/b" and "a" with a "b" inside
            path += "'"
        tensors[path] = value.detach()
        return {"tensor": path}
    if isinstance(value, dict):
        return {"dict": [[key, _detach(item, f"{path}/{key}", tensors)] for key, item in value.items()]}
    if isinstance(value, (list, tuple)):
        return {"list": [_detach(item, f"{path}/{place}", tensors) for place, item in enumerate(value)]}
    if value is None or isinstance(value, (bool, int, float, str)):
        return {"value": value}
    raise TypeError(f"{path}: a {type(value).__name__} cannot be saved in a checkpoint")


def attach(structure: Any, tensors: dict[str, Tensor]) -> Any:
    """The nested state of a structure and its tensors; tuples have become lists."""
    kind, content = next(iter(structure.items()))
    if kind == "tensor":
        return tensors[content]
    if kind == "dict":
        return {key: attach(item, tensors) for key, item in content}
    if kind == "list":
        return [attach(item, tensors) for item in content]
    return content
