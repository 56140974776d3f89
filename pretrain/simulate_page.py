"""The text of `python -m pretrain simulate`: a table by GPUs, what holds each up, and all that was assumed."""

from collections.abc import Iterator

from pretrain.cards import BANDWIDTH_SHARE, FLOPS_SHARE
from pretrain.cluster_model import START_US, TREE_HOP
from pretrain.plan import size_text
from pretrain.simulate import Outcome, Stage
from pretrain.simulate_config import SimulateConfig
from pretrain.step_trace import METRICS

TITLES = (
    ("", "samples", "compute", "exposed", "data", "", "", "GB a node", "from", "dataset"),
    ("GPUs", "a GPU", "ms", "ms", "wait ms", "samples/s", "efficiency", "and epoch", "cache", "read"),
)
WIDTHS = (6, 8, 9, 9, 9, 12, 11, 11, 8, 8)


def page(config: SimulateConfig, stage: Stage) -> Iterator[str]:
    """A stage, line by line."""
    first = stage.outcomes[0]
    yield f"{stage.name}: {config.encoder.name}, {config.precision}, {stage.num_samples:,} samples of two views"
    yield from (_row(*titles) for titles in TITLES)
    for one in stage.outcomes:
        efficiency = one.samples_per_s / one.gpus / (first.samples_per_s / first.gpus)
        yield _row(
            f"{one.gpus}", f"{one.share}", _ms(one.step.compute), _ms(one.step.total - one.step.compute),
            _ms(one.seconds - one.step.total), f"{one.samples_per_s:,.0f}", f"{100 * efficiency:.0f} %",
            f"{one.epoch_node_bytes / 1e9:,.3g}", f"{100 * one.cached_share:.0f} %", f"{one.read_times:.2f} x",
        )  # fmt: skip
    yield f"efficiency: samples/s a GPU as a share of those with {first.gpus}"
    yield "first bottleneck"
    for one in stage.outcomes:
        yield f"  {one.gpus:>4}  {one.bottleneck}"
    yield from _exchanged(stage.outcomes)
    yield from _assumed(config, stage)


def _exchanged(outcomes: list[Outcome]) -> Iterator[str]:
    """What a rank gives to collectives, counted, and what of their time shows."""
    yield "a rank gives to collectives, and waits for them, a step"
    for one in outcomes:
        for kind, (calls, num_bytes) in one.given.items():
            a_record = " a record" if kind == METRICS else ""
            waits = one.step.exposed.get(kind, 0.0)
            yield f"  {one.gpus:>4}  {kind:<11} {calls:>4} calls{a_record}, {size_text(num_bytes)}, {_ms(waits)} ms"


def _assumed(config: SimulateConfig, stage: Stage) -> Iterator[str]:
    """Each number that was not counted or replayed, and each thing that is left out."""
    machine, one = config.machine, stage.outcomes[-1]
    yield "assumptions (machine.…=, card=, step_s=)"
    yield f"  compute: {_compute_from(config)}; {machine.launch_us:g} µs to launch each kernel"
    yield (
        f"  network: {machine.gpus_per_node} GPUs a node; {machine.node_gb_per_s:g} GB/s and {machine.node_hop_us:g} "
        f"µs a hop within it, {machine.network_gb_per_s:g} GB/s and {machine.network_hop_us:g} µs"
    )
    yield (
        f"    between nodes (a tree's hop {TREE_HOP:g} times that), {START_US:g} µs a call: latencies of NCCL's tuning "
        "table, its fastest"
    )
    yield "    protocol, at full bandwidth; rings for gathers, the faster of ring and tree for sums, one after another"
    if not machine.beside:
        yield "    the cores that compute exchange the gradients too, not beside backward"
    yield f"  ranks differ by {100 * machine.jitter:.3g} % (a standard deviation) between two waits"
    yield "  probes, checkpoints and memory are left out (memory: python -m pretrain plan)"
    yield (
        f"  loader: {stage.loaded_per_core:,.0f} samples/s a core ({stage.loaded_from}), {machine.cores_per_gpu:g} "
        "cores a GPU; loading and reading go on beside the step"
    )
    if config.num_images is not None:
        yield (
            f"  dataset, as told: {config.num_images:,} images of {config.kb_per_image:g} kB, "
            f"{config.images_per_shard:,} a shard, {'a file system' if config.remote is False else 'over a network'}"
        )
    yield (
        f"  storage: {machine.storage_gb_per_s:g} GB/s a node, {machine.storage_total_gb_per_s:g} GB/s in all; "
        f"{one.steps_replayed:,} steps replayed at {one.gpus} GPUs, from empty caches"
    )
    yield (
        f"    of {config.loader.cache_gb:g} GB; a node as one process; GB and reads are of the first epoch, waits "
        "of steps with filled caches"
    )
    fill = max(stage.outcomes, key=lambda one: one.first_read_s)
    if fill.cached_share:
        yield (
            f"    cold fill: the first step reads {size_text(fill.first_read_bytes)} a node, which takes "
            f"{fill.first_read_s:,.1f} s at {fill.gpus} GPUs"
        )


def _compute_from(config: SimulateConfig) -> str:
    if config.step_s:
        return "as given by step_s"
    if config.measure:
        return "measured here, one process alone, random views"
    return (
        f"expected of {config.card}, {100 * BANDWIDTH_SHARE:.0f} % of its bandwidth and {100 * FLOPS_SHARE:.0f} % of "
        "its arithmetic"
    )


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:,.1f}"


def _row(*cells: str) -> str:
    return "".join(f"{cell:>{width}}" for cell, width in zip(cells, WIDTHS)).rstrip()
