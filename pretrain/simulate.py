"""What a recipe would do on clusters that are not there: `python -m pretrain simulate RECIPE`.

The order of the samples and the shard cache's decisions are replayed (shard_replay.py), a step's collectives are
counted from the code itself (step_trace.py), and their time is a model of one page (cluster_model.py).
"""

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from clusters.config import InputError, absolute
from clusters.storage import Folder
from data.combined import AnyDataset, open_datasets
from pretrain.cards import CARDS
from pretrain.cluster_model import MachineConfig, StepTime, bottleneck, expected_seconds, step_time
from pretrain.compute import ranks_per_group
from pretrain.leakage import pretraining_rows
from pretrain.loading_speed import LOADED_PER_CORE, measured_per_core
from pretrain.measured_step import measured_as, measured_step_s
from pretrain.methods import METHODS
from pretrain.run import check, check_recipe
from pretrain.shard_replay import DescribedDataset, Layout, layout, read_by_nodes
from pretrain.simulate_config import MOST_GB, SimulateConfig
from pretrain.step_trace import StepTrace, StepTracer, Work


@dataclass(frozen=True)
class Outcome:
    """What is expected of one cluster; seconds and bytes are of one step unless an epoch is named.

    `given` is (calls, bytes that a rank gives) a step of each kind of collective; `read_bytes` of the busiest node,
    `all_read_bytes` of all, once the caches are filled; the first step fills them with `first_read_bytes` of a node in
    `first_read_s`. `epoch_node_bytes` is a node's mean, `read_times` how often the nodes read the dataset, in the first
    epoch; `cached_share` the images that came out of the cache.
    """

    gpus: int
    nodes: int
    batch_size: int
    share: int
    step: StepTime
    given: dict[str, tuple[int, int]]
    load_s: float
    read_s: float
    read_bytes: float
    all_read_bytes: float
    first_read_bytes: int
    first_read_s: float
    epoch_node_bytes: float
    read_times: float
    cached_share: float
    steps_replayed: int
    bottleneck: str

    @property
    def seconds(self) -> float:
        """From step to step: loading and reading go on beside it."""
        return max(self.step.total, self.load_s, self.read_s)

    @property
    def samples_per_s(self) -> float:
        """Of all workers."""
        return self.batch_size / self.seconds


@dataclass(frozen=True)
class Stage:
    """A stage on each of the clusters; how fast a core loads, and whence that is known."""

    name: str
    num_samples: int
    loaded_per_core: float
    loaded_from: str
    outcomes: list[Outcome]


def simulate(config: SimulateConfig) -> Iterator[Stage]:
    """Each stage on each cluster. Raises InputError for what a run of the recipe would refuse."""
    if config.out:
        _out(config)
    config = config.model_copy(update={"encoder": config.encoder.model_copy(update={"weights": "none"})})
    for number in range(len(config.stages)):
        for gpus in config.gpus:
            batch_size(config, number, gpus)
    dataset = _dataset(config)
    for number in range(len(config.stages)):
        place = _layout(config, number, dataset)
        loaded, loaded_from = _loaded(config, number, place)
        tracer = StepTracer(config, number)
        outcomes = [_outcome(config, number, gpus, tracer, place, loaded) for gpus in config.gpus]
        yield Stage(config.stage_name(number), len(place.samples), loaded, loaded_from, outcomes)


def batch_size(config: SimulateConfig, number: int, gpus: int) -> int:
    """The global batch of a stage on so many GPUs. Raises InputError where it cannot be divided."""
    per_node = config.machine.gpus_per_node
    if gpus > per_node and gpus % per_node:
        raise InputError(f"gpus: {gpus} are no whole nodes of {per_node}; choose a multiple, or machine.gpus_per_node")
    size = config.stages[number].batch_size if config.samples_per_gpu is None else config.samples_per_gpu * gpus
    if size % gpus:
        raise InputError(
            f"stages.{number}.batch_size: {size} cannot be divided equally among {gpus} GPUs; choose a multiple, other "
            "gpus=[…], or samples_per_gpu=N for a batch that grows with them"
        )
    if size < 2:
        raise InputError(f"samples_per_gpu: a global batch of {size} has no negatives; give 2 or more")
    ranks_per_group(config.compute.batch_norm_group, size, gpus, f"stages.{number}")
    return size


def _dataset(config: SimulateConfig) -> AnyDataset | DescribedDataset:
    """The one that is there, checked as a run would check it, or the one that is told of."""
    largest = max(config.gpus)
    alone = config.model_copy(
        update={
            "cluster": config.cluster.model_copy(update={"num_workers": 0}),
            "compute": config.compute.model_copy(update={"batch_norm_group": None}),
            "stages": [
                stage.model_copy(update={"batch_size": batch_size(config, number, largest)})
                for number, stage in enumerate(config.stages)
            ],
        }
    )
    if config.num_images is not None:
        check_recipe(alone)
        size = round(1000 * config.kb_per_image)
        return DescribedDataset(config.num_images, config.images_per_case, config.images_per_shard, size)
    alone = alone.model_copy(update={"data": [absolute(location) for location in config.locations]})
    check(alone)
    return open_datasets(alone.locations, config.weights, config.loader.place)


def _layout(config: SimulateConfig, number: int, dataset: AnyDataset | DescribedDataset) -> Layout:
    """Where the samples of a stage lie. Raises InputError where a batch is more than there are."""
    stage = config.stages[number]
    told = isinstance(dataset, DescribedDataset)
    if told and getattr(stage, "pair_within", None):
        raise InputError(f"stages.{number}.pair_within: a dataset that is told of has no attributes; give data=DIR")
    rows = np.arange(dataset.num_images) if told else pretraining_rows(dataset, config)
    method = METHODS[stage.method]
    samples = method.samples(dataset, rows)  # type: ignore[arg-type]
    largest = max(batch_size(config, number, gpus) for gpus in config.gpus)
    if largest > len(samples):
        raise InputError(
            f"stages.{number}: a global batch of {largest} is more than the {len(samples)} samples; a sample would be "
            "its own negative. Choose a smaller batch, or more samples"
        )
    pair = method.pairing(stage, dataset, samples)  # type: ignore[arg-type]
    remote = config.remote if config.remote is not None else told or dataset.is_remote
    return layout(dataset, samples, pair, config.seed, number, remote and config.loader.cache_gb > 0)


def _loaded(config: SimulateConfig, number: int, place: Layout) -> tuple[float, str]:
    """Samples a second and core, and whence that is known."""
    if config.machine.loaded_per_core is not None:
        return config.machine.loaded_per_core, "as given"
    if not isinstance(place.dataset, DescribedDataset):
        return measured_per_core(config, number, place.dataset, place.samples), "measured here"
    return LOADED_PER_CORE["loader" if config.augment == "loader" else "device"], "by the benchmark"


def _outcome(
    config: SimulateConfig, number: int, gpus: int, tracer: StepTracer, place: Layout, loaded: float
) -> Outcome:
    size, machine = batch_size(config, number, gpus), config.machine
    share, nodes = size // gpus, max(1, gpus // machine.gpus_per_node)
    trace = tracer.trace(share, gpus)
    step = step_time(trace, _seconds(config, number, gpus, tracer), machine, config.tracking.every_steps)
    load_s = share / (loaded * machine.cores_per_gpu)

    # What the nodes read, later than what fills their caches at first
    paced, cache_bytes = max(step.total, load_s), int(min(config.loader.cache_gb, MOST_GB) * 1e9)
    read = read_by_nodes(place, size, nodes, config.steps, paced, cache_bytes)
    by_node, by_all = _read_s(machine, read.later)
    needs = {
        "storage": _storage_is_slow(machine, read.later, paced, by_node >= by_all, place.cached),
        "loader": f"a GPU takes {share / step.total:,.0f} samples/s and {machine.cores_per_gpu:g} cores load "
        f"{share / load_s:,.0f}",
    }
    read_s = max(by_node, by_all)
    return Outcome(
        gpus=gpus,
        nodes=nodes,
        batch_size=size,
        share=share,
        step=step,
        given=_given(trace),
        load_s=load_s,
        read_s=read_s,
        read_bytes=read.later.max(),
        all_read_bytes=read.later.sum(),
        first_read_bytes=int(read.first.max()),
        first_read_s=max(_read_s(machine, read.first)),
        epoch_node_bytes=read.first_epoch.mean(),
        read_times=read.first_epoch.sum() / float(place.shard_bytes.sum()),
        cached_share=read.cached_share,
        steps_replayed=read.num_steps,
        bottleneck=bottleneck(step, load_s, read_s, needs),
    )


def _seconds(config: SimulateConfig, number: int, gpus: int, tracer: StepTracer) -> Callable[[Work], float]:
    """Seconds of work: by the card's rates, scaled so that the step of which it is known takes as long as it did."""
    share = batch_size(config, number, gpus) // gpus
    card = next(card for card in CARDS if card.name == config.card)
    expected = expected_seconds(card, config.machine.launch_us)
    alone = 1
    if config.step_s:
        known = config.step_s[config.gpus.index(gpus)]
    elif config.measure:
        known, alone = measured_step_s(config, number, share, gpus), measured_as(gpus)
        share = max(2, share)
    else:
        return expected
    scale = known / expected(tracer.trace(share, alone).total)
    return lambda work: scale * expected(work)


def _given(trace: StepTrace) -> dict[str, tuple[int, int]]:
    """Calls and bytes of each kind of collective, of one rank; metrics each time that they are recorded."""
    every = [*trace.collectives, *trace.now_and_then]
    kinds = dict.fromkeys(one.kind for one in every)
    return {
        kind: (sum(one.kind == kind for one in every), sum(one.num_bytes for one in every if one.kind == kind))
        for kind in kinds
    }


def _read_s(machine: MachineConfig, read: np.ndarray) -> tuple[float, float]:
    """Seconds in which the busiest node reads its part of so many bytes, and storage gives all nodes theirs."""
    return read.max() / (machine.storage_gb_per_s * 1e9), read.sum() / (machine.storage_total_gb_per_s * 1e9)


def _storage_is_slow(machine: MachineConfig, rate: np.ndarray, seconds: float, by_node: bool, cached: bool) -> str:
    if by_node:
        what = f"the busiest node would read {rate.max() / seconds / 1e9:.3g} GB/s and has {machine.storage_gb_per_s:g}"
    else:
        what = f"all nodes would read {rate.sum() / seconds / 1e9:.3g} GB/s of {machine.storage_total_gb_per_s:g}"
    mend = "a larger loader.cache_gb" if cached else "remote=true (a cache on each node)"
    return f"{what}; {mend}, smaller images, or faster storage"


def write_json(stages: list[Stage], config: SimulateConfig) -> None:
    """All figures, with the assumptions, into `out`."""
    assumed = {"machine": config.machine.model_dump(mode="json"), "card": config.card, "step_s": config.step_s}
    values = [{**asdict(stage), "assumed": assumed} for stage in stages]
    for value, stage in zip(values, stages):
        for one, outcome in zip(value["outcomes"], stage.outcomes):
            one |= {"seconds": outcome.seconds, "samples_per_s": outcome.samples_per_s}
    folder, name = _out(config)
    folder.write_json(name, values)


def _out(config: SimulateConfig) -> tuple[Folder, str]:
    """Where the figures go. Raises InputError where that can be no file."""
    location = absolute(config.out)
    folder, _, name = location.rpartition("/")
    local = Path(location) if "://" not in location else None
    if not name or (local is not None and local.is_dir()):
        raise InputError(f"out={config.out}: that is a folder; name the JSON file to be written")
    if local is not None and (file := next((one for one in local.parents if one.is_file()), None)):
        raise InputError(f"out={config.out}: {file} is a file, no folder; name another place")
    return Folder(folder), name
