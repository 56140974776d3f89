"""The time of a step on a cluster that is not there: work, collectives in the code's order, links, loaders, storage.

All of the model stands on this page. A link costs a latency a hop and the bytes over its bandwidth (the alpha-beta
model); a collective goes round a ring or, where that is faster, up and down a tree; they follow one another as on one
NCCL communicator, beside the work until somebody waits for them.
"""

import math
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from statistics import NormalDist

from pydantic import ConfigDict, Field

from clusters.config import Config
from pretrain.cards import BANDWIDTH_SHARE, FLOPS_SHARE, Card
from pretrain.step_trace import BATCH_NORM, GRADIENT, LOSS, METRICS, Collective, StepTrace, Work

START_US = 4.0
"""Of a collective before its first hop, about what NCCL's own tuning model has (src/graph/tuning.cc: 3.6 to 4.4)."""
TREE_HOP = 1.85
"""A network hop of a tree over one of a ring (there: 5.0 and 2.7 µs)."""
SLOWER = "slower ranks"
"""What is waited for where ranks are not equally fast, in any collective."""
MUCH = 0.2
"""Share of a step from which on communication is called its bottleneck."""


class MachineConfig(Config):
    """What the cluster is made of: assumptions, all of them printed."""

    model_config = ConfigDict(allow_inf_nan=False)

    gpus_per_node: int = Field(default=8, ge=1, description="GPUs of a node, one worker each")
    node_gb_per_s: float = Field(
        default=300.0, gt=0, description="GB/s each way of a GPU to others of its node (NVLink of an A100; H100 450)"
    )
    network_gb_per_s: float = Field(
        default=50.0, gt=0, description="GB/s each way between a node and the others (400 Gb/s; DGX H100 has 8 of them)"
    )
    node_hop_us: float = Field(default=0.85, ge=0, description="µs a hop within a node (NCCL's tuning model, NVLink)")
    network_hop_us: float = Field(default=2.7, ge=0, description="µs a hop between nodes (there, InfiniBand)")
    beside: bool = Field(
        default=True, description="gradients are exchanged beside backward; false: by the cores that compute (gloo)"
    )
    jitter: float = Field(
        default=0.0,
        ge=0,
        description="how unequal ranks are: standard deviation of a rank's time between two waits, as a share of it",
    )
    launch_us: float = Field(default=5.0, ge=0, description="µs of the CPU for a kernel: no step takes fewer in all")
    cores_per_gpu: float = Field(default=8.0, gt=0, description="CPU cores a GPU that load, a loader process each")
    loaded_per_core: float | None = Field(
        default=None, gt=0, description="samples/s a core; none: measured on data=, else by the benchmark"
    )
    storage_gb_per_s: float = Field(default=2.0, gt=0, description="GB/s that a node reads from where the dataset lies")
    storage_total_gb_per_s: float = Field(default=100.0, gt=0, description="GB/s that it gives to all nodes together")

    def slower_s(self, seconds: float, num_ranks: int) -> float:
        """How much longer than their mean the slowest of so many ranks takes, each independently of the others.

        The largest of n normal numbers is expected at the quantile (n - 3/8) / (n + 1/4) (Blom, 1958).
        """
        return self.jitter * seconds * NormalDist().inv_cdf((num_ranks - 0.375) / (num_ranks + 0.25))

    def seconds(self, one: Collective) -> float:
        """Of one collective by itself.

        A ring of n ranks passes (n-1)·S bytes of an all-gather, 2(n-1)/n·S of an all-reduce, over each of its links.
        """
        ranks, nodes = one.num_ranks, -(-one.num_ranks // self.gpus_per_node)
        if ranks == 1:
            return 0.0
        slowest = min(self.node_gb_per_s, self.network_gb_per_s if nodes > 1 else math.inf) * 1e9
        ring_us = (ranks - nodes) * self.node_hop_us + (nodes - 1) * self.network_hop_us
        up_us = (-(-ranks // nodes) - 1) * self.node_hop_us + math.log2(nodes) * TREE_HOP * self.network_hop_us
        start, ring, up = (1e-6 * us for us in (START_US, ring_us, up_us))
        if one.operation == "all_gather":
            return start + ring + (ranks - 1) * one.num_bytes / slowest
        if one.operation == "broadcast":
            return start + up + one.num_bytes / slowest
        by_ring = 2 * ring + 2 * (ranks - 1) / ranks * one.num_bytes / slowest
        return start + min(by_ring, 2 * up + 2 * one.num_bytes / slowest)


def expected_seconds(card: Card, launch_us: float) -> Callable[[Work], float]:
    """Seconds of work as cards.py expects them (its high end), and no fewer than the kernels take to launch."""

    def seconds(work: Work) -> float:
        flops, traffic, kernels = work
        busy = flops / (FLOPS_SHARE * card.flops_per_s) + traffic / (BANDWIDTH_SHARE * card.bytes_per_s)
        return max(busy, kernels * launch_us * 1e-6)

    return seconds


@dataclass(frozen=True)
class StepTime:
    """Seconds of a step: what is computed, and what each kind of collective adds because it is waited for."""

    compute: float
    exposed: dict[str, float]

    @property
    def total(self) -> float:
        """Without waiting for data."""
        return self.compute + sum(self.exposed.values())


def step_time(
    trace: StepTrace, seconds: Callable[[Work], float], machine: MachineConfig, metrics_every: int
) -> StepTime:
    """Replay a step: collectives follow one another, gradients beside backward, all others while the rank waits."""
    exposed: defaultdict[str, float] = defaultdict(float)
    free = waited = 0.0  # when the last collective that was begun has ended; the work when ranks last met
    for one in trace.collectives:
        if one.blocking and machine.jitter:
            exposed[SLOWER] += machine.slower_s(seconds(one.before) - waited, one.num_ranks)
            waited = seconds(one.before)
        now = seconds(one.before) + sum(exposed.values())
        begins = max(now, free)
        free = begins + machine.seconds(one)
        if not (one.blocking or machine.beside):
            exposed[GRADIENT] += free - begins
        elif one.blocking:
            exposed[GRADIENT] += begins - now  # nothing else runs beside the work
            exposed[one.kind] += free - begins
    if trace.collectives and machine.jitter:
        exposed[SLOWER] += machine.slower_s(seconds(trace.total) - waited, trace.collectives[-1].num_ranks)
    exposed[GRADIENT] += max(0.0, free - seconds(trace.backward) - sum(exposed.values()))
    exposed[METRICS] = sum(map(machine.seconds, trace.now_and_then)) / metrics_every
    return StepTime(seconds(trace.total), dict(exposed))


def bottleneck(step: StepTime, load_s: float, read_s: float, facts: dict[str, str]) -> str:
    """What holds a step up first, in words, with the mend. `facts` are said of the loader and of storage."""
    slowest = max(step.total, load_s, read_s)
    if slowest == read_s and read_s > step.total:
        return f"storage: {facts['storage']}"
    if slowest == load_s and load_s > step.total:
        return f"loader: {facts['loader']}; more cores a GPU, augment=device, or smaller images"
    waits = sum(step.exposed.values())
    if waits < MUCH * step.total:
        return "compute: nothing else holds it up"
    kind = max(step.exposed, key=lambda name: step.exposed[name])
    return f"communication, {kind}: {1e3 * step.exposed[kind]:.3g} of {1e3 * step.total:.3g} ms; {MENDS[kind]}"


MENDS = {
    GRADIENT: "more samples a GPU, or a faster network",
    BATCH_NORM: "compute.batch_norm_group of a node's samples, or more samples a GPU",
    LOSS: "a narrower projection_dim, or a smaller global batch",
    METRICS: "a larger tracking.every_steps",
    SLOWER: "see which rank is slow (stragglers in the log), or compute.batch_norm_group of fewer",
}
