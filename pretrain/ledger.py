"""Memory, arithmetic and memory traffic of whatever torch does, kept as it does it; fake tensors will do."""

import weakref
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

READ_TWICE = ("aten.native_batch_norm", "aten.native_layer_norm", "aten.native_group_norm", "aten.cudnn_batch_norm")
"""Normalisation reads its input once for the statistics and once to apply them, forward and backward."""


class Ledger(TorchDispatchMode):
    """Bytes alive now and at the most, of all storages but those in `known`; operations done and bytes moved."""

    def __init__(self, known: set[int]) -> None:
        super().__init__()
        self.now = self.peak = self.flops = self.traffic = 0
        self._known = set(known)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func.overloadpacket in flop_registry:
            self.flops += flop_registry[func.overloadpacket](*args, **(kwargs or {}), out_val=result)
        made = [value for value in tree_leaves(result) if isinstance(value, Tensor)]
        for tensor in made:
            self._enter(tensor.untyped_storage())
        if made and not func.is_view and func.namespace != "prim" and "empty" not in func.__name__:
            read = [value for value in tree_leaves((args, kwargs)) if isinstance(value, Tensor)]
            times = 2 if str(func).startswith(READ_TWICE) else 1
            self.traffic += times * num_bytes(read) + num_bytes(made)
        return result

    def _enter(self, storage: torch.UntypedStorage) -> None:
        if storage._cdata in self._known:
            return
        self._known.add(storage._cdata)
        self.now += storage.nbytes()
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._leave, storage._cdata, storage.nbytes())

    def _leave(self, number: int, nbytes: int) -> None:
        self._known.discard(number)
        self.now -= nbytes


def num_bytes(tensors: Any) -> int:
    """Bytes of those of some values that are tensors."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors if isinstance(tensor, Tensor))
