"""What one rank computes and hands to collectives in a step, in order, without a GPU and without other ranks.

The stage's own module takes a step on fake tensors (as in footprint.py) within torch's fake process group, which sends
nothing; each collective that is called is noted with the work that was done before it. Nothing here knows the methods.
A step is counted at five small sizes: what is counted is the sum of a constant and of parts that grow with the samples
of a rank, with the ranks (whose statistics batch norm gathers), with both (whose projections the loss does) and with
the samples of a rank times those of all (the loss).
Shapes: V views, B samples on this rank, G kinds of group.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from clusters import distributed
from clusters.batch_norm import GlobalBatchNorm, RunningStatistics, global_batch_norm
from pretrain.compute import checkpoint_activations, ranks_per_group
from pretrain.config import PretrainConfig
from pretrain.footprint import module_without_numbers
from pretrain.health import MAX_ROWS
from pretrain.ledger import Ledger, num_bytes
from pretrain.meter import TIMES
from pretrain.methods.method import Method, Output
from pretrain.nonfinite import norm_of_gradients
from pretrain.optim import build_optimizer

Work = NDArray[np.float64]
"""(floating-point operations, bytes of memory traffic, kernels)."""
COUNTED_AT = ((8, 2), (16, 2), (8, 4), (16, 4), (32, 4))
"""(samples of a rank, ranks) of the steps that are counted."""
BUCKET_BYTES = (1 << 20, 25 << 20)
"""The first and the other buckets in which DistributedDataParallel averages gradients, by its defaults."""
SMALL_OBJECT_BYTES = 4
"""None or a bool, pickled, as the ranks tell each other."""
LOOK_BYTES = 16
"""What each rank tells the others when it looks, pickled: no problem, and no notice to leave."""
GRADIENT, BATCH_NORM, LOSS, METRICS = "gradient", "batch norm", "loss", "metrics"


@dataclass(frozen=True)
class Collective:
    """A collective over `num_ranks`, to which each of them gives so many bytes; `before` is the work done by then.

    A rank waits at once for one that is blocking, for others at the end of backward.
    """

    kind: str
    operation: str
    num_bytes: int
    num_ranks: int
    before: Work
    blocking: bool = True


@dataclass(frozen=True)
class StepTrace:
    """A step of one rank: its collectives in order, its work up to the end of backward and in all.

    `now_and_then` are those of one record of metrics, every tracking.every_steps steps.
    """

    collectives: list[Collective]
    backward: Work
    total: Work
    now_and_then: list[Collective]


@dataclass(frozen=True)
class _Count:
    """What was counted at one size; the widths are those of features and projections."""

    collectives: list[Collective]
    backward: Work
    total: Work
    statistics_bytes: int
    widths: tuple[int, int]


class StepTracer:
    """Counts a stage once, and gives the trace of a step of any size."""

    def __init__(self, config: PretrainConfig, number: int) -> None:
        self._config, self._where = config, f"stages.{number}"
        self._counts = [_count(config, number, *size) for size in COUNTED_AT]

    def trace(self, share: int, num_ranks: int) -> StepTrace:
        """A step of a rank that has `share` samples. Raises InputError where groups of batch norm do not come out."""
        samples = self._config.compute.batch_norm_group if num_ranks > 1 else None
        group = ranks_per_group(samples, share * num_ranks, num_ranks, self._where)
        first, *others = (count.collectives for count in self._counts)
        collectives = [
            replace(
                one,
                num_bytes=round(float(self._at([c.num_bytes for c in (one, *same)], share, num_ranks))),
                num_ranks=group if group is not None and one.kind == BATCH_NORM else num_ranks,
                before=self._at([c.before for c in (one, *same)], share, num_ranks),
            )
            for one, *same in zip(first, *others, strict=True)
        ]
        backward, total = (
            self._at([getattr(count, name) for count in self._counts], share, num_ranks)
            for name in ("backward", "total")
        )
        if group is not None:  # running statistics are averaged after backward
            statistics = self._counts[0].statistics_bytes
            collectives.append(Collective(BATCH_NORM, "all_reduce", statistics, num_ranks, backward))
        if num_ranks == 1:
            return StepTrace([], backward, total, [])
        return StepTrace(collectives, backward, total, self._record(share, num_ranks, total))

    def _at(self, counted: list[Any], share: int, num_ranks: int) -> Any:
        """A quantity at a size, from those that were counted."""
        parts = np.linalg.solve(np.array([_parts(*size) for size in COUNTED_AT]), np.array(counted, dtype=float))
        return _parts(share, num_ranks) @ parts

    def _record(self, share: int, num_ranks: int, total: Work) -> list[Collective]:
        """What saving, the meter, the health of features and Ray's report exchange once every tracking.every_steps."""
        rows = 2 * max(1, min(share, MAX_ROWS // (2 * num_ranks)))
        features, projected = self._counts[0].widths
        exchanged = [
            ("all_gather", 8),  # of an object first the size
            ("all_gather", LOOK_BYTES),
            ("all_gather", 4 * len(TIMES)),  # whose steps are slow
            ("all_reduce", 4),
            ("all_gather", 4 * rows * features),
            ("all_gather", 4 * rows * projected),
            ("broadcast", 8),
            ("broadcast", SMALL_OBJECT_BYTES),
        ]
        return [Collective(METRICS, operation, size, num_ranks, total) for operation, size in exchanged]


def _parts(share: int, num_ranks: int) -> Work:
    """What the parts of a quantity grow with."""
    return np.array([1, share, num_ranks, share * num_ranks, share**2 * num_ranks], dtype=float)


class _Recorder(Ledger):
    """A ledger that also notes collectives: what is handed to them, and the work until then."""

    def __init__(self) -> None:
        super().__init__(set())
        self.kinds, self.kernels = [LOSS], 0
        self.collectives: list[tuple[str, str, int, Work]] = []

    @property
    def work(self) -> Work:
        return np.array([self.flops, self.traffic, self.kernels], dtype=float)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "c10d":
            given = args[1] if "allgather" in func.__name__ else args[0]
            operation = "all_gather" if "allgather" in func.__name__ else "all_reduce"
            self.collectives.append((self.kinds[-1], operation, num_bytes(given), self.work))
            return func(*args, **(kwargs or {}))
        self.kernels += not func.is_view and func.namespace == "aten" and "empty" not in func.__name__
        return super().__torch_dispatch__(func, types, args, kwargs)


def _count(config: PretrainConfig, number: int, share: int, num_ranks: int) -> _Count:
    """One step of rank 0 of so many."""
    with ranks_without_network(num_ranks, torch.device("cpu")):  # where batch norms exchange what they do on GPUs
        module = module_without_numbers(config, number)
        global_batch_norm(module)
        if config.compute.checkpoint_activations:
            checkpoint_activations(module.encoder, config.encoder.name)
        with FakeTensorMode(allow_non_fake_inputs=True):
            module.to_empty(device="cpu")
            return _recorded(module, config, number, share, num_ranks)


def _recorded(module: Method, config: PretrainConfig, number: int, share: int, num_ranks: int) -> _Count:
    """The step itself, within a mode of fake tensors."""
    optimizer = build_optimizer(module, config.stages[number].optim)
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    for parameter in parameters:
        parameter.grad = torch.empty_like(parameter)
    optimizer.step()  # the first one makes its state
    optimizer.zero_grad(set_to_none=True)
    recorder, ready = _Recorder(), []
    _tell_batch_norm(module, recorder)
    for parameter in parameters:
        parameter.register_post_accumulate_grad_hook(lambda p: ready.append((p, recorder.work)))
    with recorder:
        output = _forward(module, config, number, share)
        recorder.kinds = [BATCH_NORM]  # the only ones in backward, besides the gradient's own
        output.loss.backward()
        backward = recorder.work
        norm_of_gradients(module.parameters())
        optimizer.step()
    noted = [Collective(*one[:3], num_ranks, one[3]) for one in recorder.collectives]
    return _Count(
        sorted([*noted, *_buckets(ready, num_ranks)], key=lambda one: one.before[2]),
        backward,
        recorder.work,
        num_bytes(RunningStatistics(module).copy()[:1]),
        (output.features_VBF.shape[-1], output.projected_VBD.shape[-1]),
    )


def _forward(module: Method, config: PretrainConfig, number: int, share: int) -> Output:
    size = config.stage_views(number).size_px
    views_NCHW = torch.empty(2 * share, config.encoder.channels, size, size)
    views_NCHW = views_NCHW.contiguous(memory_format=torch.channels_last)
    columns = 3 if getattr(config.stages[number], "patient_mask", False) else 1
    groups_VBG = torch.zeros(2, share, columns, dtype=torch.long)
    with torch.autocast("cpu", torch.bfloat16, enabled=config.precision == "bf16"):
        return module(views_NCHW.unflatten(0, (2, share)), groups_VBG)


def _tell_batch_norm(module: torch.nn.Module, recorder: _Recorder) -> None:
    """Have the collectives inside batch norms called by their kind, also where forward is run again in backward."""
    for layer in module.modules():
        if isinstance(layer, GlobalBatchNorm):
            layer.register_forward_pre_hook(lambda *_: recorder.kinds.append(BATCH_NORM))
            layer.register_forward_hook(lambda *_: recorder.kinds.pop() and None)


def _buckets(ready: list[tuple[Tensor, Work]], num_ranks: int) -> list[Collective]:
    """The gradients' all-reduces, each begun when the last gradient of its bucket is ready."""
    gradients = [parameter for parameter, _ in ready]
    cut = dist._compute_bucket_assignment_by_size(gradients, list(BUCKET_BYTES))[0]
    return [
        Collective(
            GRADIENT, "all_reduce", num_bytes(gradients[n] for n in bucket), num_ranks, ready[max(bucket)][1], False
        )
        for bucket in cut
    ]


@contextmanager
def ranks_without_network(num_ranks: int, device: torch.device) -> Iterator[None]:
    """Be rank 0 of so many that are not there; collectives end at once and give nothing."""
    from torch.testing._internal.distributed.fake_pg import FakeStore  # importing it makes the backend known

    before = distributed.device()
    distributed.use_device(device)
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=num_ranks)
    try:
        yield
    finally:
        dist.destroy_process_group()
        distributed.use_device(before)
