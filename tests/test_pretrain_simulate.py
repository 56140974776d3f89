"""The simulation against real runs: collectives of gloo processes, and what a real cache reads; its model by hand."""

import json
import os
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from clusters.config import InputError, load_config
from clusters.storage import Folder
from data.cache import CachePlace
from data.dataset import Dataset, open_dataset
from data.loader import positions_of
from data.order import Order
from data.shards import write_dataset
from data.sources import read_raw, synthetic
from pretrain.__main__ import _run
from pretrain.batches import ViewBatches
from pretrain.cluster_model import MachineConfig, step_time
from pretrain.methods.method import one_image
from pretrain.methods.simclr import SimCLR
from pretrain.shard_replay import DescribedDataset, Reads, _steps_to_replay, layout, lines_of_samples, replay
from pretrain.simulate import Outcome, simulate, write_json
from pretrain.simulate_config import SimulateConfig
from pretrain.simulate_page import page
from pretrain.step_trace import BATCH_NORM, GRADIENT, LOSS, Collective, StepTrace, StepTracer
from pretrain.views import ViewConfig
from tests.ranks import Ranks

SMALL = ["encoder.name=test_resnet", "views.size_px=32"]
TOLD = ["num_images=4096", "images_per_shard=64", "gpus=[2,8,16]"]
STAGE = {"steps": 6, "batch_size": 16, "optim": {"name": "adamw"}, "projection_hidden": 1024}
METHODS = [{"method": "simclr"}, {"method": "moco_v3", "projection_layers": 2}, {"method": "byol"}]


def config(*words: str) -> SimulateConfig:
    return load_config(SimulateConfig, [*SMALL, *words])


def outcomes(*words: str) -> list[Outcome]:
    (stage,) = simulate(config(*TOLD, *words))
    return stage.outcomes


@pytest.fixture(scope="module")
def tracer() -> StepTracer:
    return StepTracer(config("num_images=100"), 0)


@pytest.fixture
def counted(tracer: StepTracer, monkeypatch: pytest.MonkeyPatch) -> None:
    """The steps of SMALL are counted once for all tests."""
    monkeypatch.setattr("pretrain.simulate.StepTracer", lambda *_: tracer)


@pytest.fixture(scope="module", params=[2, 4])
def some_ranks(request: pytest.FixtureRequest) -> Iterator[tuple[int, Ranks]]:
    """So many real gloo processes."""
    started = Ranks(request.param, "tests.simulate_tasks")
    yield request.param, started
    started.close()


def test_collectives_are_those_of_real_processes(
    some_ranks: tuple[int, Ranks], synthetic_dataset: Dataset, tmp_path: Path
) -> None:
    """Calls and bytes, of every step once the buckets of the gradient are settled, and of every record of metrics."""
    num_ranks, started = some_ranks
    for place, method in enumerate(METHODS if num_ranks == 2 else METHODS[:1]):
        values = {
            "data": synthetic_dataset.location,
            "run": str(tmp_path / f"run-{place}"),
            "encoder": {"name": "test_resnet"},
            "views": {"size_px": 32},
            "stages": [{**STAGE, **method}],
            "tracking": {"wandb": "disabled", "every_steps": 3},
            "probe": {"every_steps": 6},
        }
        told = SimulateConfig.model_validate({**values, "data": "", "num_images": 100})
        trace = StepTracer(told, 0).trace(16 // num_ranks, num_ranks)
        expected = Counter((one.operation, one.num_bytes) for one in trace.collectives)
        for steps, records in started.run("collectives_of_a_run", values):
            assert len(steps) == 6
            assert steps[-3:] == [expected] * 3
            # At first the whole gradient is one bucket.
            assert [_gradient_bytes(step, trace) for step in steps] == [0] * 6
            # Two at each of steps 3 and 6, and one look at the end of the stage.
            assert sum(records[:2], Counter()) == Counter((c.operation, c.num_bytes) for c in trace.now_and_then)
            assert sum(records[2:4], Counter()) == sum(records[:2], Counter())


def _gradient_bytes(step: Counter[tuple[str, int]], trace: StepTrace) -> int:
    """Bytes of a step beyond those of the trace, whatever they are cut into."""
    return sum(size * times for (_, size), times in step.items()) - sum(one.num_bytes for one in trace.collectives)


def test_one_process_gives_nothing_to_collectives(tracer: StepTracer) -> None:
    alone = tracer.trace(16, 1)
    assert not alone.collectives and not alone.now_and_then
    assert step_time(alone, lambda work: work[0], MachineConfig(), 10).exposed == {GRADIENT: 0, "metrics": 0}


def test_the_gradient_and_the_loss_are_what_their_shapes_say(tracer: StepTracer) -> None:
    from pretrain.footprint import footprint

    needs, trace = footprint(config("num_images=100"), 0), tracer.trace(32, 64)
    given = {kind: [one for one in trace.collectives if one.kind == kind] for kind in (GRADIENT, BATCH_NORM, LOSS)}
    assert sum(one.num_bytes for one in given[GRADIENT]) == needs.gradients
    assert len(given[GRADIENT]) > 1
    # Rows of 128 float32, one int64 group each, one log-sum-exp each, of two views.
    assert sorted(one.num_bytes for one in given[LOSS]) == [2 * 32 * 4, 2 * 32 * 8, 2 * 32 * 128 * 4]
    # Forward mean, variance and count, backward two sums, of each layer.
    gathered, summed = (
        [one.num_bytes for one in given[BATCH_NORM] if one.operation == o] for o in ("all_gather", "all_reduce")
    )
    assert sum(gathered) == sum(summed) + 4 * len(gathered)
    assert len(gathered) == len(summed)


def test_work_of_a_larger_step_is_that_of_small_ones_continued(tracer: StepTracer) -> None:
    """Arithmetic, which grows with the samples of a rank and, in the loss, with these times those of all; traffic."""
    from pretrain.step_trace import _count

    for share, num_ranks in ((24, 3), (128, 64)):
        counted, trace = _count(config("num_images=100"), 0, share, num_ranks), tracer.trace(share, num_ranks)
        assert trace.total[0] == pytest.approx(counted.total[0], rel=1e-9)
        assert trace.backward[1] == pytest.approx(counted.backward[1], rel=0.005)


def test_batch_norm_groups_exchange_among_themselves() -> None:
    grouped = StepTracer(config("num_images=100", "compute.batch_norm_group=64"), 0)
    statistics = [one for one in grouped.trace(16, 32).collectives if one.kind == BATCH_NORM]
    assert [one.num_ranks for one in statistics[:-1]] == [4] * (len(statistics) - 1)
    assert statistics[-1].num_ranks == 32  # the running ones, averaged once
    with pytest.raises(InputError, match="batch_norm_group"):
        grouped.trace(5, 32)


def work(seconds: float) -> Any:
    return np.array([seconds, 0.0, 0.0])


def test_collectives_beside_backward_cost_what_they_outlast_it() -> None:
    """By hand, with 1 GB/s, no latency and two ranks: an all-reduce of S bytes takes S / (1 GB/s), a gather too."""
    machine = MachineConfig(node_gb_per_s=1, node_hop_us=0, gpus_per_node=2)
    start = 4e-6

    def seconds(*collectives: Collective) -> dict[str, float]:
        trace = StepTrace(list(collectives), work(9), work(10), [])
        found = step_time(trace, lambda done: done[0], machine, 10)
        assert found.compute == 10
        return found.exposed

    def bucket(at: float, gb: float) -> Collective:
        return Collective(GRADIENT, "all_reduce", int(gb * 1e9), 2, work(at), blocking=False)

    statistics = Collective(BATCH_NORM, "all_gather", 10**9, 2, work(6))
    assert seconds(bucket(5, 2), bucket(6, 1))[GRADIENT] == pytest.approx(0)
    assert seconds(bucket(5, 2), bucket(6, 3))[GRADIENT] == pytest.approx(1 + 2 * start)
    # A blocking one waits for its turn behind a bucket (1 s), then takes its own time; backward ends at 11.
    assert seconds(bucket(5, 2), statistics) == pytest.approx(
        {GRADIENT: 1 + start, BATCH_NORM: 1 + start, "metrics": 0}
    )
    assert seconds(bucket(5, 2), statistics, bucket(6, 4))[GRADIENT] == pytest.approx(2, abs=1e-4)


def test_gradients_without_cores_of_their_own_hold_up_the_work() -> None:
    machine = MachineConfig(node_gb_per_s=1, node_hop_us=0, gpus_per_node=2, beside=False)
    bucket = Collective(GRADIENT, "all_reduce", 2 * 10**9, 2, work(5), blocking=False)
    statistics = Collective(BATCH_NORM, "all_gather", 10**9, 2, work(6))
    found = step_time(StepTrace([bucket, statistics], work(9), work(10), []), lambda done: done[0], machine, 10)
    assert found.exposed == pytest.approx({GRADIENT: 2, BATCH_NORM: 1, "metrics": 0}, abs=1e-4)


@pytest.mark.parametrize("num_ranks", [2, 8, 1024])
def test_the_slowest_of_unequal_ranks_is_waited_for_each_time_that_they_meet(num_ranks: int) -> None:
    """Against drawn steps of ranks whose parts of a step take times of a normal distribution."""
    machine = MachineConfig(node_gb_per_s=1e6, node_hop_us=0, network_hop_us=0, network_gb_per_s=1e6, jitter=0.1)
    meetings = [Collective(BATCH_NORM, "all_gather", 0, num_ranks, work(at)) for at in (1, 3, 8)]
    found = step_time(StepTrace(meetings, work(9), work(10), []), lambda done: done[0], machine, 10)
    drawn = np.random.default_rng(0).normal(size=(400, 4, num_ranks)) * 0.1 + 1
    slowest = drawn.max(axis=2) @ np.array([1, 2, 5, 2])
    assert found.total == pytest.approx(slowest.mean(), rel=0.02)
    alone = step_time(StepTrace([], work(9), work(10), []), lambda done: done[0], machine, 10)
    assert alone.total == 10


def test_rings_and_trees_are_what_is_known_of_them() -> None:
    machine = MachineConfig(node_gb_per_s=100, network_gb_per_s=10, node_hop_us=1, network_hop_us=3)

    def seconds(operation: str, num_bytes: int, num_ranks: int) -> float:
        return machine.seconds(Collective(LOSS, operation, num_bytes, num_ranks, work(0)))

    assert seconds("all_reduce", 10**9, 1) == 0
    assert seconds("all_reduce", 8 * 10**9, 8) == pytest.approx(2 * 7 / 100, rel=1e-3)
    assert seconds("all_reduce", 64 * 10**9, 64) == pytest.approx(2 * 63 / 10, rel=1e-3)
    assert seconds("all_gather", 0, 64) == pytest.approx(1e-6 * (4 + 56 * 1 + 7 * 3))
    # Small sums go up and down a tree, whose depth grows with the logarithm of the nodes.
    assert seconds("all_reduce", 0, 1024) == pytest.approx(1e-6 * (4 + 2 * (7 + 7 * 1.85 * 3)))


def test_the_line_that_nodes_cut_is_the_loader_s() -> None:
    """For nodes of several ranks, whatever their number."""
    told = DescribedDataset(5000, 1, 100, 1000)
    samples = SimCLR.samples(told, np.arange(5000))  # type: ignore[arg-type]
    lines = lines_of_samples(layout(told, samples, one_image, 7, 0, True), 96)
    order = Order(samples.shard_sizes, seed=7)
    for step in range(60):  # into the second epoch
        line, turns = next(lines)
        for node, mine in enumerate(np.split(line, 4)):
            ranks = [positions_of(step, 96, rank, 12, order) for rank in range(3 * node, 3 * node + 3)]
            assert sorted(mine) == sorted(order.at(np.concatenate(ranks)))
        assert set(turns) <= {96 * step // 5000, (96 * step + 95) // 5000}


@pytest.fixture(scope="module")
def twelve_shards(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dataset]:
    """A dataset in fsspec's store in memory, with the local one's index."""
    out = tmp_path_factory.mktemp("twelve") / "dataset"
    options = synthetic.Options(
        source="synthetic", out=str(out), num_cases=60, size_px=32, images_per_shard=8, num_processes=1
    )
    write_dataset(read_raw(options), options)
    url = "memory://simulate-test/dataset"
    for path in out.iterdir():
        Folder(url).write(path.name, path.read_bytes())
    yield open_dataset(url, CachePlace(str(out.parent / "index")))
    Folder(url).remove()


class AtOnce:
    """A download that is over when it has begun: which of several in the background comes first is chance."""

    def __init__(self, target: Any, args: Any, daemon: bool) -> None:
        self._target, self._args = target, args

    def start(self) -> None:
        self._target(*self._args)


@pytest.mark.parametrize(("step_s", "num_shards"), [(12, 3.5), (12, 6.5), (40, 3.5), (40, 2.2), (40, 0.5)])
def test_a_replayed_cache_reads_what_the_real_one_reads(
    twelve_shards: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step_s: float, num_shards: float
) -> None:
    """Nodes whose caches hold some shards, over epochs: every download, every range, bytes and images, are equal."""
    simple = SimpleNamespace(Thread=AtOnce, Lock=threading.Lock, Semaphore=threading.Semaphore)
    monkeypatch.setattr("data.cache.threading", simple)
    monkeypatch.setattr("data.cache.FREE_SHARE", 0.0)  # whatever else lies on this disk
    monkeypatch.setattr("data.shard_bytes.NUM_REQUESTS", 1)
    monkeypatch.setattr("pretrain.batches.LOOK_AHEAD_SAMPLES", 24)
    rows = np.arange(twelve_shards.num_images)
    samples, largest = SimCLR.samples(twelve_shards, rows), 0
    place = layout(twelve_shards, samples, one_image, 0, 0, True)
    size_gb = num_shards * int(place.shard_bytes.max()) / 1e9
    num_steps = 3 * len(samples) // 6
    *_, replayed = replay(place, 6, 3, num_steps, step_s, int(size_gb * 1e9))
    for node in range(3):
        dataset = open_dataset(twelve_shards.location, CachePlace(str(tmp_path / f"{node}"), size_gb))
        batches = ViewBatches(dataset, samples, one_image, ViewConfig(size_px=16), 0, 0, 6, node, 3, True)
        real = _really_read(dataset, batches, num_steps, step_s, monkeypatch)
        assert real == replayed[node]
        largest = max(largest, real.num_shards)
        assert real.num_ranges or num_shards > 1  # what has no room is read in ranges
    assert largest > num_shards  # so some had to make room


def _really_read(
    dataset: Dataset, batches: ViewBatches, num_steps: int, step_s: float, monkeypatch: pytest.MonkeyPatch
) -> Reads:
    """What a real reader asks a store for, where `step_s` pass from step to step: its cache's files grow older."""
    reads, download, read_range = Reads(), Folder.download, Folder.read_range

    def count_download(self: Folder, name: str, target: Path) -> None:
        download(self, name, target)
        time.sleep(0.01)  # the clock of a file system has ticks
        if name.endswith(".tar"):
            reads.num_shards += 1
            reads.shard_bytes += target.stat().st_size

    def count_range(self: Folder, name: str, offset: int, size: int) -> bytes:
        reads.num_ranges += 1
        reads.range_bytes += size
        return read_range(self, name, offset, size)

    with monkeypatch.context() as patches:
        patches.setattr(Folder, "download", count_download)
        patches.setattr(Folder, "read_range", count_range)
        for step in range(num_steps):
            reads.num_cached += len(batches(step).rows_VB.unique())
            cache: Any = dataset._shards._cache
            for path in cache._folder.glob("*.tar"):
                os.utime(path, times=(0, path.stat().st_mtime - step_s))
            for times in (cache._touched, cache._refused):
                times.update({name: then - step_s for name, then in times.items()})
    reads.num_cached -= reads.num_ranges
    return reads


@pytest.mark.usefixtures("counted")
def test_more_nodes_than_streams_read_shards_several_times(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pretrain.batches.LOOK_AHEAD_SAMPLES", 64)
    read = outcomes("num_images=65536", "gpus=[8,512]", "samples_per_gpu=8", "machine.gpus_per_node=4")
    assert read[0].read_times == pytest.approx(1, abs=0.2)
    assert read[1].read_times > 1.8  # 128 nodes share 64 streams
    assert read[1].cached_share == 1


@pytest.mark.usefixtures("counted")
@pytest.mark.parametrize("words", [[], ["steps=1"], ["steps=200000"]])
def test_what_fills_the_caches_at_first_is_no_steady_rate(words: Sequence[str]) -> None:
    """Epochs of 156, 19 and one step, of a dataset that every node's cache holds."""
    told = ("num_images=10000", "images_per_shard=8192", "kb_per_image=100")
    for one in outcomes(*told, "gpus=[8,64,1024]", "samples_per_gpu=8", *words):
        assert one.read_bytes == one.all_read_bytes == one.read_s == 0
        assert not one.bottleneck.startswith("storage")
        assert one.seconds == one.step.total
        assert one.steps_replayed >= (1 << 17) // one.batch_size + 2
        assert one.cached_share == 1
        # each node has the whole dataset in the end, 1 GB at 2 GB/s, or at its share of 100 GB/s
        assert one.first_read_bytes == 10**9 and one.epoch_node_bytes == 10**9
        assert one.first_read_s == pytest.approx(max(0.5, one.nodes / 100))


@pytest.mark.usefixtures("counted")
def test_a_later_epoch_finds_what_the_cache_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 64 shards, a third of which has room: what no shard leaves within a minute, so the rest comes in ranges."""
    monkeypatch.setattr("pretrain.batches.LOOK_AHEAD_SAMPLES", 16)
    told = ("kb_per_image=100", "loader.cache_gb=0.14")
    (one,) = outcomes("gpus=[2]", "samples_per_gpu=8", *told, "machine.launch_us=1")
    assert one.steps_replayed == 2 * 256
    assert 256 * one.read_bytes == pytest.approx(4096 * 100_000 * 2 / 3, rel=0.05)
    assert one.cached_share == pytest.approx(1 / 3, abs=0.05)


def test_of_a_long_epoch_the_second_half_of_what_is_replayed_counts() -> None:
    assert _steps_to_replay(5000, 2000, 16) == (1000, 2000)
    assert _steps_to_replay(5000, 2001, 16) == (1000, 2001)
    assert _steps_to_replay(5000, 2000, 2048) == (2048, 4096)  # the loader looks further ahead
    assert _steps_to_replay(3000, 2000, 2048) == (3000, 6000)
    assert _steps_to_replay(300, 2000, 16) == (300, 600)
    assert _steps_to_replay(1, 2000, 16) == (16, 18)
    assert _steps_to_replay(1, 2000, 0) == (0, 1)  # without caches a step is like another


@pytest.mark.usefixtures("counted")
def test_ranges_read_each_image_once_an_epoch() -> None:
    for words in (["remote=false"], ["loader.cache_gb=0"]):
        for one in outcomes(*words, "samples_per_gpu=16"):
            assert one.read_times == pytest.approx(1)
            assert one.cached_share == 0


@pytest.mark.usefixtures("counted")
@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["machine.launch_us=1000"], "compute"),
        (["machine.loaded_per_core=1"], "loader: a GPU takes"),
        (["machine.storage_gb_per_s=1e-4", "remote=false"], "storage: the busiest node"),
        (["machine.storage_total_gb_per_s=1e-4", "remote=false"], "storage: all nodes"),
        (["machine.network_gb_per_s=0.01"], "communication, gradient"),
        (["machine.network_hop_us=1000"], "communication, batch norm"),
    ],
)
def test_the_first_bottleneck_is_the_one_that_was_made(words: Sequence[str], told: str) -> None:
    assert outcomes("samples_per_gpu=64", *words)[-1].bottleneck.startswith(told)


@pytest.mark.usefixtures("counted")
def test_a_known_step_is_taken_as_it_is() -> None:
    given = outcomes("step_s=[0.5,0.25,0.125]", "samples_per_gpu=16", "machine.launch_us=0")
    for one, alone_s in zip(given, (0.5, 0.25, 0.125)):
        assert alone_s < one.step.compute < 2 * alone_s  # the loss has more negatives
    measured = outcomes("measure=true", "gpus=[2]", "samples_per_gpu=2")
    assert 0 < measured[0].step.compute < 60


def test_the_page_says_all_that_was_assumed(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    out = tmp_path / "simulate.json"
    _run(["simulate", *SMALL, *TOLD, "samples_per_gpu=8", f"out={out}"])
    said = capsys.readouterr().out
    assert [line for line in said.splitlines() if len(line) > 120] == []
    for word in (
        "4,096 samples",
        "first bottleneck",
        "100 %",
        "GB/s",
        "A100 80 GB",
        "by the benchmark",
        "empty caches",
        "cold fill: the first step reads",
        "4,096 images of 31 kB, 64 a shard, over a network",
    ):
        assert word in said
    for value in MachineConfig().model_dump().values():
        assert value is None or f"{value:g}" in said
    (stage,) = json.loads(out.read_text())
    assert [one["gpus"] for one in stage["outcomes"]] == [2, 8, 16]
    assert stage["outcomes"][0]["samples_per_s"] > 0
    assert stage["assumed"]["machine"]["gpus_per_node"] == 8


@pytest.mark.usefixtures("counted")
def test_a_dataset_that_is_there_gives_its_shards_and_the_loader_s_speed(synthetic_dataset: Dataset) -> None:
    asked = config(f"data={synthetic_dataset.location}", "gpus=[2]", "samples_per_gpu=8")
    (stage,) = simulate(asked)
    assert stage.num_samples == len(synthetic_dataset.rows(["train"]))
    assert "measured here" in "\n".join(page(asked, stage))
    assert stage.outcomes[0].cached_share == 0  # files of this machine need no cache


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["gpus=[3]"], "stages.0.batch_size: 512 cannot be divided equally among 3 GPUs"),
        (["gpus=[12]"], "12 are no whole nodes of 8"),
        (["gpus=[1]", "samples_per_gpu=1"], "no negatives"),
        (["gpus=[8]", "samples_per_gpu=4096"], "more than the 4096 samples"),
        (["num_images=null"], "data=DIR or num_images=N"),
        (["data=/nowhere"], "data=DIR or num_images=N"),
        (["step_s=[1,2]"], "step_s: 2 for 3 sizes"),
        (["card=A1000"], "card"),
        (["num_images=1000000000000"], "'num_images' in the command line: Input should be less than or equal to 1000"),
        (["images_per_case=1000000000000000000000"], "'images_per_case'"),
        (["images_per_shard=1000000000000000000000"], "'images_per_shard'"),
        (["kb_per_image=1e300"], "'kb_per_image' in the command line: Input should be less than or equal to 1000000"),
        (["kb_per_image=1e-300"], "'kb_per_image'"),
        (["steps=1000000000000"], "'steps'"),
        (["gpus=[1000000000000]"], "'gpus.0'"),
        (["step_s=[1,1e300,1]"], "'step_s.1'"),
        (["machine.node_hop_us=.inf"], "'machine.node_hop_us' in the command line: Input should be a finite number"),
        (["stages=[{method: micle, epochs: 1}]"], "none of its 4096 cases has two images"),
    ],
)
def test_what_makes_no_cluster_is_one_line(words: Sequence[str], told: str) -> None:
    with pytest.raises(InputError) as refused:
        list(simulate(config(*TOLD, *words)))
    assert told in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.usefixtures("counted")
def test_a_cache_without_bounds_holds_every_dataset() -> None:
    (one,) = outcomes("gpus=[2]", "samples_per_gpu=16", "loader.cache_gb=1e300")
    assert one.cached_share == 1


@pytest.mark.parametrize(("out", "told"), [("", "that is a folder"), ("file/x.json", "file is a file, no folder")])
def test_figures_that_cannot_be_written_are_refused_at_once(tmp_path: Path, out: str, told: str) -> None:
    (tmp_path / "file").write_text("of another")
    with pytest.raises(InputError, match=told) as refused:
        next(simulate(config(*TOLD, f"out={tmp_path / out}")))
    assert "\n" not in str(refused.value)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_figures_go_to_a_url_too() -> None:
    asked = config(*TOLD, "out=memory://simulate-out/deep/x.json")
    write_json([], asked)
    assert Folder("memory://simulate-out/deep").read_json("x.json") == []
