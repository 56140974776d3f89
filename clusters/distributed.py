"""Ranks and the collectives that make N workers compute what one process with the whole batch would.

Everything here works without a process group too (world size 1), so that one code path serves a
laptop, a test and a cluster. Shapes: N rows on this rank, W ranks, D features, C channels.
"""

import warnings
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from clusters.config import InputError
from clusters.stopwatch import Stopwatch

M = TypeVar("M", bound=nn.Module)

_device: torch.device | None = None
_stopwatch: Stopwatch | None = None


def rank() -> int:
    """The number of this worker, 0 to world_size() - 1."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """How many workers train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main() -> bool:
    """Whether this worker writes files and prints."""
    return rank() == 0


def use_device(chosen: torch.device) -> None:
    """Set the device of this worker; without it, the first GPU if there is one."""
    global _device
    _device = chosen
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)


def device() -> torch.device:
    """The device of this worker."""
    if _device is not None:
        return _device
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")


def time_collectives(stopwatch: Stopwatch | None) -> None:
    """From now on the collectives of loss, global batch norm and metrics count there as `communication`.

    That includes waiting for slower ranks. The gradient's all-reduce, which runs beside the backward pass, and torch's
    own SyncBatchNorm are not in it.
    """
    global _stopwatch
    _stopwatch = stopwatch


def barrier() -> None:
    """Wait for every rank."""
    if world_size() > 1:
        dist.barrier()


def broadcast_object(value: Any) -> Any:
    """Rank 0's value, on every rank."""
    if world_size() == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def gather_objects(value: Any) -> list[Any]:
    """Every rank's value in rank order, on every rank."""
    if world_size() == 1:
        return [value]
    gathered: list[Any] = [None] * world_size()
    dist.all_gather_object(gathered, value)
    return gathered


def sum_over_ranks(tensor: Tensor) -> Tensor:
    """The sum over ranks, without gradient."""
    if world_size() == 1:
        return tensor.detach()
    total = tensor.detach().clone()
    with _timed():
        dist.all_reduce(total)
    return total


def gather(local_N: Tensor) -> Tensor:
    """Every rank's rows in rank order, without gradient. All ranks must hold equally many."""
    if world_size() == 1:
        return local_N
    gathered = [torch.empty_like(local_N) for _ in range(world_size())]
    with _timed():
        dist.all_gather(gathered, local_N.contiguous())
    return torch.cat(gathered)


def gather_with_gradient(local_ND: Tensor) -> Tensor:
    """Every rank's rows in rank order, shape (W·N, D), with the gradient of every rank's loss.

    Backward sums over ranks what each rank's loss says about these rows, so that after the data-parallel
    mean the gradient is that of the mean of the ranks' losses. All ranks must hold N equal rows.
    """
    if world_size() == 1:
        return local_ND
    return cast(Tensor, _GatherWithGradient.apply(local_ND))


def data_parallel(module: M) -> M | DistributedDataParallel:
    """Wrap a module so that gradients are averaged over ranks; itself where there is one rank."""
    if world_size() == 1:
        return module
    with warnings.catch_warnings():
        # torch renames broadcast_buffers; the old name is the one that all versions ≥ 2.11 know.
        warnings.simplefilter("ignore", FutureWarning)
        return DistributedDataParallel(
            module,
            device_ids=[device()] if device().type == "cuda" else None,
            broadcast_buffers=False,  # batch statistics are global, so every rank computes the same ones
            gradient_as_bucket_view=True,
            static_graph=True,
        )


def global_batch_norm(module: nn.Module) -> nn.Module:
    """Make every batch norm in the module use the statistics of the global batch, in place.

    The state dict's names and shapes stay those of the plain batch norm. Raises InputError for a layer that
    does more than normalise (timm's BatchNormAct2d holds an activation too): replaced by a plain global
    batch norm, the network would silently be another one.
    """
    if world_size() == 1:
        return module
    for name, child in module.named_children():
        if not isinstance(child, _BatchNorm):
            global_batch_norm(child)
        elif type(child) not in (nn.BatchNorm1d, nn.BatchNorm2d):
            raise InputError(
                f"this network's {type(child).__name__} has no global form yet; train it on one worker "
                "(cluster.num_workers=0), or choose an encoder with plain batch norm such as resnet50"
            )
        else:
            whole = (
                nn.SyncBatchNorm.convert_sync_batchnorm(child)
                if device().type == "cuda"
                else GlobalBatchNorm.like(child)
            )
            setattr(module, name, whole)
    return module


class GlobalBatchNorm(_BatchNorm):
    """Batch norm over all ranks' rows, for any backend (Ioffe & Szegedy, 2015, algorithm 1)."""

    @classmethod
    def like(cls, other: _BatchNorm) -> "GlobalBatchNorm":
        """The same layer, sharing its parameters and buffers."""
        new = cls(other.num_features, other.eps, other.momentum, other.affine, other.track_running_stats)
        new.load_state_dict(other.state_dict())
        new.weight, new.bias = other.weight, other.bias
        return new.train(other.training)

    def forward(self, x_NC: Tensor) -> Tensor:
        """Normalise (N, C, …) by the global batch's mean and variance when training."""
        if not self.training:
            return super().forward(x_NC)
        y_NC, mean_C, var_C, count = _GlobalNormalise.apply(x_NC, self.weight, self.bias, self.eps)  # type: ignore[misc]
        if self.track_running_stats and self.running_mean is not None and self.running_var is not None:
            assert self.num_batches_tracked is not None
            self.num_batches_tracked.add_(1)
            momentum = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
            with torch.no_grad():
                self.running_mean.lerp_(mean_C, momentum)
                self.running_var.lerp_(var_C * (count / (count - 1)), momentum)
        return y_NC

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(f"expected (N, C, …), got {tuple(input.shape)}")


def _timed() -> AbstractContextManager[None]:
    return nullcontext() if _stopwatch is None else _stopwatch.timing("communication")


class _GatherWithGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, local_ND: Tensor) -> Tensor:
        return gather(local_ND)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (all_ND,) = gradients
        total = all_ND.contiguous()
        with _timed():
            dist.all_reduce(total)
        return total.chunk(world_size())[rank()]


class _GlobalNormalise(torch.autograd.Function):
    """One gather of (mean, variance, count) forward, one all-reduce of two sums backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Any:
        dims = [0, *range(2, x.dim())]
        var_C, mean_C = torch.var_mean(x.float(), dim=dims, correction=0)
        local = torch.cat([mean_C, var_C, mean_C.new_tensor([x.numel() / x.shape[1]])])
        gathered = [torch.empty_like(local) for _ in range(world_size())]
        if world_size() > 1:
            with _timed():
                dist.all_gather(gathered, local)
        else:
            gathered = [local]
        stats = torch.stack(gathered)
        means, variances, counts = stats[:, : x.shape[1]], stats[:, x.shape[1] : -1], stats[:, -1:]
        count = counts.sum()
        mean_C = (means * counts).sum(0) / count
        # Combining centred moments keeps the precision that E[x²] - E[x]² would lose.
        var_C = ((variances + (means - mean_C) ** 2) * counts).sum(0) / count
        ctx.save_for_backward(x, weight, mean_C, torch.rsqrt(var_C + eps), count)
        ctx.mark_non_differentiable(mean_C, var_C, count)
        return F.batch_norm(x, mean_C, var_C, weight, bias, training=False, eps=eps), mean_C, var_C, count

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        x, weight, mean_C, invstd_C, count = ctx.saved_tensors
        gradient = gradients[0].float()
        dims = [0, *range(2, x.dim())]
        shape = [1, -1] + [1] * (x.dim() - 2)
        centred = (x.float() - mean_C.view(shape)) * invstd_C.view(shape)
        sum_gradient_C = gradient.sum(dims)
        sum_product_C = (gradient * centred).sum(dims)
        totals = torch.stack([sum_gradient_C, sum_product_C])
        if world_size() > 1:
            with _timed():
                dist.all_reduce(totals)
        scale_C = invstd_C if weight is None else invstd_C * weight.float()
        inner = gradient - (totals[0] / count).view(shape) - centred * (totals[1] / count).view(shape)
        gradient_x = (inner * scale_C.view(shape)).to(x.dtype)
        if weight is None:
            return gradient_x, None, None, None
        return gradient_x, sum_product_C.to(weight.dtype), sum_gradient_C.to(weight.dtype), None
