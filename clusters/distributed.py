"""Ranks and the collectives that make N workers compute what one process with the whole batch would.

Everything here works without a process group too (world size 1), so that one code path serves a
laptop, a test and a cluster. Shapes: N rows on this rank, W ranks, D features.
"""

import os
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn.parallel import DistributedDataParallel

from clusters.stopwatch import Stopwatch

M = TypeVar("M", bound=nn.Module)

# What is computed in 32 bits is so on a GPU too, whose convolutions would round to 19 (TF32) by themselves: figures are
# then a CPU's, whatever the size of a batch. Who wants speed has bf16.
torch.backends.cudnn.allow_tf32 = False

_device: torch.device | None = None
_stopwatch: Stopwatch | None = None
_last_are_ready = False


def rank() -> int:
    """The number of this worker, 0 to world_size() - 1."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """How many workers train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def workers_here() -> int:
    """How many workers of this run share this machine, as whoever started them says."""
    return max(1, int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def is_first_here() -> bool:
    """Whether this is the worker that speaks for its machine."""
    return os.environ.get("LOCAL_RANK", "0") == "0"


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


def device_memory() -> int | None:
    """Bytes of this worker's GPU; none where it works on a CPU."""
    return torch.cuda.get_device_properties(device()).total_memory if device().type == "cuda" else None


def time_collectives(stopwatch: Stopwatch | None) -> None:
    """From now on collectives count there as `communication`, the waiting for slower ranks included.

    In it are those of loss, metrics and our own global batch norm (on CPUs), and of the gradient's all-reduce what
    backward does not hide: from when the last gradients are ready until all are averaged. Most of it runs beside
    backward and takes no time of its own. Not in it are the exchange of torch's SyncBatchNorm, which its kernels on
    GPUs keep to themselves and which counts as forward and backward, and that of Python objects.
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


def stop_together(problem: Exception | None) -> None:
    """Raise on every rank what any of them has met, so that none waits for one that has gone. Every rank calls it."""
    met = [found for found in gather_objects(problem) if found is not None]
    if met:
        raise met[0]


def sum_over_ranks(tensor: Tensor) -> Tensor:
    """The sum over ranks, without gradient."""
    if world_size() == 1:
        return tensor.detach()
    total = tensor.detach().clone()
    with timed():
        dist.all_reduce(total)
    return total


def gather(local_N: Tensor) -> Tensor:
    """Every rank's rows in rank order, without gradient. All ranks must hold equally many."""
    if world_size() == 1:
        return local_N
    gathered = [torch.empty_like(local_N) for _ in range(world_size())]
    with timed():
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
        parallel = DistributedDataParallel(
            module,
            device_ids=[device()] if device().type == "cuda" else None,
            broadcast_buffers=False,  # batch statistics are global, so every rank computes the same ones
            gradient_as_bucket_view=True,
            static_graph=True,
        )
    parallel.register_comm_hook(None, _average)
    return parallel


@contextmanager
def averaging_gradients() -> Iterator[None]:
    """The block is the backward pass of a data-parallel module: once it has ended its gradients are averaged."""
    global _last_are_ready
    _last_are_ready = False
    yield
    if _last_are_ready and _stopwatch is not None:
        _stopwatch.stop("communication")


def _average(_: None, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
    """What DistributedDataParallel does by itself, with the time taken from the last bucket on."""
    global _last_are_ready
    if bucket.is_last() and _stopwatch is not None:
        _stopwatch.start("communication")
        _last_are_ready = True
    return allreduce_hook(dist.group.WORLD, bucket)  # type: ignore[arg-type]


def timed() -> AbstractContextManager[None]:
    """The block is a collective of our own, see `time_collectives`."""
    return nullcontext() if _stopwatch is None else _stopwatch.timing("communication")


class _GatherWithGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, local_ND: Tensor) -> Tensor:
        return gather(local_ND)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (all_ND,) = gradients
        total = all_ND.contiguous()
        with timed():
            dist.all_reduce(total)
        return total.chunk(world_size())[rank()]
