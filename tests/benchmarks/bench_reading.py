"""Reading by index: cases against webdataset on tars of its own, and what ten million rows cost a process.

Memory and restoring have no peer that could be run beside them in reason, so they are held against fixed bounds
(300 MB, 1 s): the ratio says how many times smaller ours is.
"""

import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from data.cache import VARIABLE
from data.compiled import compiled_path
from data.dataset import Dataset, open_dataset
from data.loader import LoaderConfig, positions_of
from data.manifest import FileRecord
from data.mapped import Arrays, mapped_arrays
from data.order import Order
from data.prefetch import training_batches
from data.splits import SPLITS
from pretrain.batches import ViewBatches
from pretrain.methods.method import one_image
from pretrain.methods.simclr import SimCLR
from pretrain.stage import Samples
from pretrain.views import ViewConfig
from tests.benchmarks.bench_loader import write_images

NUM_ROWS, NUM_SHARDS = 10_000_000, 1220
ROUNDS, PASSES = 5, 8
MEMORY_FLOOR_MB, RESTORE_FLOOR_S = 300, 1.0


def run() -> list[dict[str, Any]]:
    """The rows of the table, and lines on the order of a large dataset."""
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    with tempfile.TemporaryDirectory() as folder, _cache(folder):
        dataset = open_dataset(write_images(Path(folder)))
        ours, peer = _case_reading(dataset, Path(folder))
        large = _large_dataset(dataset, Path(folder))
        memory_mb = _private_memory_mb(large)
        restore_s = _restore_s(large)
    _say_about_order()
    return [
        _row("reading cases, no decode; peer webdataset on its own tars", ours, peer, "samples/s per core", 4, 8),
        _row("loader process, 10 M rows; peer the floor", memory_mb, MEMORY_FLOOR_MB, "MB private", 1, 3),
        _row("restoring the end of an epoch of 10 M; peer the floor", restore_s, RESTORE_FLOOR_S, "s", 1, 10),
    ]


def _row(name: str, ours: float, peer: float, unit: str, floor: float, goal: float) -> dict[str, Any]:
    ratio = ours / peer if unit.startswith("samples") else peer / ours
    return {
        "name": name,
        "ours": float(f"{ours:.4g}"),
        "peer": float(f"{peer:.4g}"),
        "unit": unit,
        "ratio": round(ratio, 1),
        "floor": floor,
        "goal": goal,
    }


@contextmanager
def _cache(folder: str) -> Iterator[None]:
    before = os.environ.get(VARIABLE)
    os.environ[VARIABLE] = f"{folder}/cache"
    try:
        yield
    finally:
        os.environ.pop(VARIABLE) if before is None else os.environ.update({VARIABLE: before})


def _case_reading(dataset: Dataset, folder: Path) -> tuple[float, float]:
    """Cases a second of CPU time: bytes and labels of each, the page cache warm; best of the rounds, interleaved.

    Ours come in the order of training and their hashes are checked; webdataset reads its tars from end to end.
    """
    from webdataset.compat import WebDataset
    from webdataset.writer import TarWriter

    tar = str(folder / "its-own.tar")
    with TarWriter(tar) as writer:
        for row, key in enumerate(dataset.column("key")):
            writer.write({"__key__": key, "jpg": dataset.read(row), "json": {"label": row}})
    rows = Order([dataset.num_images], seed=0).at(np.arange(dataset.num_images))

    def ours() -> int:
        for start in range(0, len(rows), 32):
            some = rows[start : start + 32]
            assert len(dataset.read_many(some)) == len(dataset.labels[some])
        return len(rows)

    def peer() -> int:
        samples: Any = WebDataset(tar, shardshuffle=False)
        return sum(1 for sample in samples if sample["jpg"] and sample["json"])

    best = [0.0, 0.0]
    for _ in range(ROUNDS):
        for place, work in enumerate((ours, peer)):
            started = time.thread_time()
            count = sum(work() for _ in range(PASSES))
            best[place] = max(best[place], count / (time.thread_time() - started))
    return best[0], best[1]


def _large_dataset(small: Dataset, folder: Path) -> Dataset:
    """Ten million rows in 1,220 shards, all of them links to one: the first image, as often as it takes."""
    location = folder / "large"
    location.mkdir()
    shard = folder / "dataset" / small.manifest.shards[0]
    names = [f"shard-{number:06d}.tar" for number in range(NUM_SHARDS)]
    for name in names:
        os.link(shard, location / name)
    counts = small.manifest.counts.model_copy(update={"images": NUM_ROWS, "cases": NUM_ROWS})
    record = FileRecord(size=shard.stat().st_size, sha256="0" * 64)
    changed = {"counts": counts, "files": dict.fromkeys(names, record), "sha256": "f" * 64, "labels": ["a"]}
    large = Dataset(str(location), small.manifest.model_copy(update=changed))

    def fill(arrays: Arrays) -> None:
        for name in ("offset", "size", "sha256", "pixel_sha256"):
            arrays[name][:] = small._arrays[name][0]
        arrays["shard"][:] = np.arange(NUM_ROWS) * NUM_SHARDS // NUM_ROWS
        arrays["case"][:] = arrays["patient"][:] = np.arange(NUM_ROWS)
        arrays["split"][:] = SPLITS.index("train")
        arrays["labels"][:] = 0

    shapes = {name: (array.dtype.str, (NUM_ROWS, *array.shape[1:])) for name, array in small._arrays.items()}
    shapes["labels"] = ("<f4", (NUM_ROWS, 1))
    mapped_arrays(compiled_path(large._cache.sub_folder("indexes"), large.fingerprint), lambda: shapes, fill)
    return large


def _private_memory_mb(large: Dataset) -> float:
    """The dirty private pages of a loader process after 20 batches, beyond those of one that made none.

    Clean pages of the mapped files are shared by all processes and dropped when memory is short.
    """
    samples = SimCLR.samples(large, np.arange(NUM_ROWS))
    batches = ViewBatches(large, samples, one_image, ViewConfig(size_px=64), 0, 0, 512, 0, 8, False)
    middle = NUM_ROWS // 512 // 2
    with_rows = max(_passed(_Measured(batches), middle, middle + 40))
    return with_rows - min(_passed(_Measured(None), 0, 4))


def _passed(make: Any, first: int, last: int) -> list[float]:
    return [float(mb) for mb in training_batches(make, first, last, LoaderConfig(num_processes=2))]


class _Measured:
    """Makes a batch and answers with the private memory of this process, in MB."""

    def __init__(self, batches: ViewBatches | None) -> None:
        self._batches = batches

    def __call__(self, step: int) -> torch.Tensor:
        if self._batches is not None:
            self._batches(step)
        lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
        (dirty_kb,) = (int(line.split()[1]) for line in lines if line.startswith("Private_Dirty:"))
        return torch.tensor(dirty_kb / 1024)


def _restore_s(large: Dataset) -> float:
    """From a dataset that was never opened here to the rows of the epoch's last batch; median of five."""
    samples = Samples.group(np.arange(NUM_ROWS), np.arange(NUM_ROWS), large.shard_of)
    times = []
    for _ in range(5):
        started = time.perf_counter()
        again = Dataset(large.location, large.manifest)
        order = Order(samples.shard_sizes, seed=0)
        last = order.at(positions_of(NUM_ROWS // 4096 - 1, 4096, 0, 1, order))
        rows = np.concatenate([samples[sample] for sample in last.tolist()])
        assert again._arrays["offset"][rows].any()
        times.append(time.perf_counter() - started)
    return sorted(times)[2]


def _say_about_order() -> None:
    """How well the order of a large dataset mixes, and how many shards a node reads: printed, not a row."""
    sizes, batch = [NUM_ROWS // NUM_SHARDS] * NUM_SHARDS, 4096
    order, total = Order(sizes, seed=0), NUM_ROWS // NUM_SHARDS * NUM_SHARDS
    samples = order.at(np.arange(200 * batch))
    places = samples / total
    apart = np.abs(np.diff(places)).mean()
    lag = max(abs(np.corrcoef(places[:-k], places[k:])[0, 1]) for k in (1, 2, 64, batch))
    sorted_classes = (places * 10).astype(int).reshape(200, batch)
    spread = np.stack([(sorted_classes == label).mean(axis=1) for label in range(10)]).std(axis=1).mean()
    print(
        f"order of 10 M: neighbours {apart:.3f} of the dataset apart (uniform 0.333), correlation at lags 1, 2, 64, "
        f"{batch} at most {lag:.3f}, spread of a tenth of the shards over batches {spread / np.sqrt(0.09 / batch):.2f} "
        "of that of uniform draws"
    )
    touched = [set[int](), set[int](), set[int]()]
    for step in range(1000):
        for number, world in ((0, 64), (1, 1)):
            positions = positions_of(step, batch, 0, world, order)
            if number == 0:
                positions = np.concatenate([positions_of(step, batch, rank, world, order) for rank in range(8)])
            shards = (order.at(positions) // sizes[0]).tolist()
            touched[number].update(shards)
            if number == 0 and step < 25:
                touched[2].update(shards)
    print(
        f"shards that node 1 of 8 (8 ranks each, batch {batch}) reads: {len(touched[2])} in 25 steps, "
        f"{len(touched[0])} in 1,000; one node alone {len(touched[1])} in 1,000; of {NUM_SHARDS}"
    )
