"""Batch norm over all workers' rows, or over those of a group of workers, and its running statistics.

Shapes: N rows on this rank, C channels.
"""

from typing import Any

import torch
import torch.distributed as dist
from timm.layers import BatchNormAct2d, convert_sync_batchnorm
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from clusters.config import InputError
from clusters.distributed import device, timed, world_size

PLAIN = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def global_batch_norm(module: nn.Module, ranks_per_group: int | None = None) -> nn.Module:
    """Make every batch norm in the module use the statistics of the global batch, in place.

    With `ranks_per_group`, those of so many consecutive ranks, which must divide the number of ranks. Running
    statistics then differ between groups until `RunningStatistics.average` makes them one.

    The state dict's names and shapes stay those of the plain layers; timm's BatchNormAct2d keeps its activation
    and drop. Raises InputError for any other layer that does more than normalise: replaced by a plain global batch
    norm, the network would silently be another one.
    """
    if world_size() == 1:
        return module
    whole = ranks_per_group is None or ranks_per_group == world_size()
    group = None if whole else dist.new_subgroups(ranks_per_group)[0]
    for parent in list(module.modules()):
        for name, child in parent.named_children():
            if isinstance(child, _BatchNorm):
                setattr(parent, name, _over_ranks(child, group))
    return module


def _over_ranks(layer: _BatchNorm, group: dist.ProcessGroup | None) -> nn.Module:
    if type(layer) not in (*PLAIN, BatchNormAct2d):
        raise InputError(
            f"this network's {type(layer).__name__} has no global form; train it on one worker "
            "(cluster.num_workers=0), or choose an encoder with plain batch norm such as resnet50"
        )
    if device().type == "cuda":
        # torch's own kernels, which wait for the device once a layer to drop empty ranks, of which there are none
        return convert_sync_batchnorm(layer, group).train(layer.training)
    kind = GlobalBatchNormAct if isinstance(layer, BatchNormAct2d) else GlobalBatchNorm
    return kind(layer, group)


class GlobalBatchNorm(_BatchNorm):
    """Batch norm over the rows of all ranks, or a group's, for any backend (Ioffe & Szegedy, 2015, algorithm 1).

    The same layer as `other`, sharing its parameters and buffers.
    """

    def __init__(self, other: _BatchNorm, group: dist.ProcessGroup | None = None) -> None:
        super().__init__(other.num_features, other.eps, other.momentum, other.affine, other.track_running_stats)
        self.weight, self.bias = other.weight, other.bias
        self.running_mean, self.running_var = other.running_mean, other.running_var
        self.num_batches_tracked = other.num_batches_tracked
        self.group = group
        self.train(other.training)

    @torch.compiler.disable  # its collectives stand between the graphs
    def forward(self, x_NC: Tensor) -> Tensor:
        """Normalise (N, C, …) by the ranks' mean and variance when training."""
        if not self.training:
            return super().forward(x_NC)
        normalised = _GlobalNormalise.apply(x_NC, self.weight, self.bias, self.eps, self.group)
        y_NC, mean_C, var_C, count = normalised  # type: ignore[misc]
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


class GlobalBatchNormAct(GlobalBatchNorm):
    """timm's BatchNormAct2d, a batch norm with its dropping and activation, over ranks."""

    def __init__(self, other: _BatchNorm, group: dist.ProcessGroup | None = None) -> None:
        super().__init__(other, group)
        self.drop: Any = other.drop
        self.act: Any = other.act

    def forward(self, x_NC: Tensor) -> Tensor:
        """Normalise (N, C, H, W), drop, activate."""
        y_NC = super().forward(x_NC)  # type: ignore[call-arg]
        return self.act(self.drop(y_NC))


class RunningStatistics:
    """The running statistics of all batch norms in a module, which forward changes before anything is known of a step.

    Copied, averaged and put back as one vector each of floats and of counters, so that few kernels are launched
    and none is waited for.
    """

    def __init__(self, module: nn.Module) -> None:
        layers = [m for m in module.modules() if isinstance(m, _BatchNorm) and m.running_mean is not None]
        floats: list[Any] = [b for layer in layers for b in (layer.running_mean, layer.running_var)]
        counters: list[Any] = [layer.num_batches_tracked for layer in layers]
        self._buffers = [floats, counters] if layers else []

    def copy(self) -> list[Tensor]:
        """Their present values."""
        return [torch.cat([buffer.flatten() for buffer in buffers]) for buffers in self._buffers]

    def restore(self, before: list[Tensor]) -> None:
        """Put a copy back."""
        for buffers, then in zip(self._buffers, before):
            _spread(then, buffers)

    def restore_unless(self, good: Tensor, before: list[Tensor]) -> None:
        """Put a copy back where `good`, a boolean on the device, is false; leave all as it is where it is true."""
        for buffers, now, then in zip(self._buffers, self.copy(), before):
            _spread(torch.where(good, now, then), buffers)

    def average(self) -> None:
        """Make them their mean over ranks: where groups of ranks have their own, those of the mean of the groups.

        As each step moves them by a share of the batch's, this is the mean of the groups' batch statistics.
        """
        if not self._buffers:
            return
        mean = torch.cat([buffer.flatten() for buffer in self._buffers[0]])
        with timed():
            dist.all_reduce(mean)
        _spread(mean.div_(world_size()), self._buffers[0])


def _spread(flat: Tensor, buffers: list[Any]) -> None:
    parts = flat.split([buffer.numel() for buffer in buffers])
    torch._foreach_copy_(buffers, [part.view_as(buffer) for part, buffer in zip(parts, buffers)])


class _GlobalNormalise(torch.autograd.Function):
    """One gather of (mean, variance, count) forward, one all-reduce of two sums backward."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, group: dist.ProcessGroup | None
    ) -> Any:
        dims = [0, *range(2, x.dim())]
        var_C, mean_C = torch.var_mean(x.float(), dim=dims, correction=0)
        local = torch.cat([mean_C, var_C, mean_C.new_tensor([x.numel() / x.shape[1]])])
        gathered = [torch.empty_like(local) for _ in range(dist.get_world_size(group))]
        with timed():
            dist.all_gather(gathered, local, group=group)
        stats = torch.stack(gathered)
        means, variances, counts = stats[:, : x.shape[1]], stats[:, x.shape[1] : -1], stats[:, -1:]
        count = counts.sum()
        mean_C = (means * counts).sum(0) / count
        # Combining centred moments keeps the precision that E[x²] - E[x]² would lose.
        var_C = ((variances + (means - mean_C) ** 2) * counts).sum(0) / count
        ctx.save_for_backward(x, weight, mean_C, torch.rsqrt(var_C + eps), count)
        ctx.group = group
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
        with timed():
            dist.all_reduce(totals, group=ctx.group)
        scale_C = invstd_C if weight is None else invstd_C * weight.float()
        inner = gradient - (totals[0] / count).view(shape) - centred * (totals[1] / count).view(shape)
        gradient_x = (inner * scale_C.view(shape)).to(x.dtype)
        if weight is None:
            return gradient_x, None, None, None, None
        return gradient_x, sum_product_C.to(weight.dtype), sum_gradient_C.to(weight.dtype), None, None
