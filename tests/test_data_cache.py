"""Shards of a remote dataset in the cache of a machine: how often they are asked for, and that the bound holds."""

import hashlib
import multiprocessing
import os
import shutil
import threading
import time
from collections import Counter
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest

from clusters.config import InputError
from clusters.storage import Folder
from data.cache import CachePlace, ShardCache
from data.combined import tell_of_caches
from data.dataset import Dataset, open_dataset
from pretrain.batches import ViewBatches
from pretrain.methods.method import one_image
from pretrain.methods.simclr import SimCLR
from pretrain.views import ViewConfig

VIEWS = ViewConfig(size_px=16)


class Store:
    """A web server that counts what it is asked for: whole files and ranges."""

    def __init__(self, folder: Path) -> None:
        self.whole: Counter[str] = Counter()
        self.ranges: Counter[str] = Counter()
        store = self

        class Handler(SimpleHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def __init__(self, *given: Any) -> None:
                super().__init__(*given, directory=str(folder))

            def do_GET(self) -> None:
                asked = self.headers.get("Range")
                name = self.path.rsplit("/", 1)[-1]
                (store.ranges if asked else store.whole)[name] += 1
                if not asked:
                    return super().do_GET()
                first, last = (int(place) for place in asked.removeprefix("bytes=").split("-"))
                content = (folder / name).read_bytes()[first : last + 1]
                self.send_response(206)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"

    def shards(self) -> dict[str, int]:
        return {name: count for name, count in self.whole.items() if name.endswith(".tar")}


@pytest.fixture
def memory(synthetic_dataset: Dataset) -> Iterator[str]:
    """The synthetic dataset in fsspec's store in memory."""
    url = "memory://cache-test/dataset"
    Folder(url).remove()
    for path in Path(synthetic_dataset.location).iterdir():
        Folder(url).write(path.name, path.read_bytes())
    yield url
    Folder(url).remove()


def place(tmp_path: Path, size_gb: float = 1.0) -> CachePlace:
    return CachePlace(str(tmp_path / "cache"), size_gb)


@pytest.fixture(autouse=True)
def a_disk_with_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a full disk under the tests changes has a test of its own."""
    monkeypatch.setattr("data.cache.FREE_SHARE", 0.0)


def counted(monkeypatch: pytest.MonkeyPatch) -> tuple[Counter[str], Counter[str]]:
    """Downloads and ranged reads of remote files, by name."""
    whole: Counter[str] = Counter()
    ranges: Counter[str] = Counter()
    download, read_range = Folder.download, Folder.read_range

    def count_download(self: Folder, name: str, target: Path) -> None:
        whole[name] += 1
        download(self, name, target)

    def count_range(self: Folder, name: str, offset: int, size: int) -> bytes:
        ranges[name] += 1
        return read_range(self, name, offset, size)

    monkeypatch.setattr(Folder, "download", count_download)
    monkeypatch.setattr(Folder, "read_range", count_range)
    return whole, ranges


def batches_of(dataset: Dataset, rank: int = 0, world_size: int = 1) -> ViewBatches:
    samples = SimCLR.samples(dataset, np.arange(dataset.num_images))
    return ViewBatches(dataset, samples, one_image, VIEWS, 0, 0, 8, rank, world_size, True)


def test_two_epochs_ask_for_each_shard_once_and_give_the_local_batches(
    synthetic_dataset: Dataset, memory: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, ranges = counted(monkeypatch)
    make, local = batches_of(open_dataset(memory, place(tmp_path))), batches_of(synthetic_dataset)
    for step in range(2 * synthetic_dataset.num_images // 8):
        assert (make(step).crops_VBCHW == local(step).crops_VBCHW).all()
    assert dict(whole) == dict.fromkeys(("index.parquet", *synthetic_dataset.manifest.shards.values()), 1)
    assert not ranges
    again = batches_of(open_dataset(memory, place(tmp_path)))
    again(0)
    assert set(whole.values()) == {1}


def _read_everything(url: str, where: CachePlace, digest: Any) -> None:
    dataset = open_dataset(url, where)
    dataset.announce(np.arange(dataset.num_images), now=True)
    contents = dataset.read_many(np.arange(dataset.num_images))
    digest.put(hashlib.sha256(b"".join(contents)).hexdigest())


def test_all_processes_of_a_machine_download_a_shard_once(synthetic_dataset: Dataset, tmp_path: Path) -> None:
    store = Store(Path(synthetic_dataset.location))
    context = multiprocessing.get_context("fork")
    digest = context.Queue()
    started = [
        context.Process(target=_read_everything, args=(store.url, place(tmp_path), digest), daemon=True)
        for _ in range(2)
    ]
    for process in started:
        process.start()
    expected = b"".join(synthetic_dataset.read_many(np.arange(synthetic_dataset.num_images)))
    assert {digest.get(timeout=120) for _ in started} == {hashlib.sha256(expected).hexdigest()}
    assert store.shards() == dict.fromkeys(synthetic_dataset.manifest.shards.values(), 1)
    assert not store.ranges
    store.server.shutdown()


def test_what_nobody_announced_is_read_in_ranges(
    synthetic_dataset: Dataset, memory: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, ranges = counted(monkeypatch)
    dataset = open_dataset(memory, place(tmp_path))
    rows = np.arange(0, dataset.num_images, 9)
    assert dataset.read_many(rows) == synthetic_dataset.read_many(rows)
    assert set(whole) == {"index.parquet"}
    assert sum(ranges.values()) == len(rows)
    dataset.announce(rows[:1], least_share=0.5)  # one image is not half a shard
    dataset.read_many(rows)
    assert set(whole) == {"index.parquet"}


def test_without_a_cache_everything_is_read_in_ranges(
    synthetic_dataset: Dataset, memory: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, ranges = counted(monkeypatch)
    batch = batches_of(open_dataset(memory, place(tmp_path, size_gb=0)))(1)
    assert (batch.crops_VBCHW == batches_of(synthetic_dataset)(1).crops_VBCHW).all()
    assert set(whole) == {"index.parquet"}
    assert sum(ranges.values()) == 8


def shard_cache(url: str, dataset: Dataset, tmp_path: Path, shards: float, in_use_s: float) -> ShardCache:
    """A cache with room for so many of the dataset's largest shards."""
    sizes = {name: dataset.manifest.files[name].size for name in dataset.manifest.shards.values()}
    return ShardCache(
        Folder(url), dataset.fingerprint, sizes, place(tmp_path, shards * max(sizes.values()) / 1e9), in_use_s
    )


def cached(tmp_path: Path) -> dict[str, int]:
    folder = place(tmp_path).sub_folder("shards")
    return {path.name.split("-", 1)[1]: path.stat().st_size for path in folder.glob("*.tar")}


def test_eviction_keeps_the_bound_and_takes_what_was_not_read_for_longest(
    synthetic_dataset: Dataset, memory: str, tmp_path: Path
) -> None:
    cache = shard_cache(memory, synthetic_dataset, tmp_path, shards=2, in_use_s=0)
    first, second, third = list(synthetic_dataset.manifest.shards.values())[:3]
    for age, name in ((100, first), (50, second)):
        assert cache.fetch(name)
        path = cache._path(name)
        os.utime(path, (time.time() - age, time.time() - age))
    assert cache.read(first, 0, 10) is not None  # now it is the newer one
    assert cache.fetch(third)
    assert set(cached(tmp_path)) == {first, third}
    assert sum(cached(tmp_path).values()) <= cache._limit
    for _ in range(3):
        for name in synthetic_dataset.manifest.shards.values():
            assert cache.fetch(name)
            assert sum(cached(tmp_path).values()) <= cache._limit


def test_what_is_in_use_stays_and_the_newcomer_is_read_in_ranges(
    synthetic_dataset: Dataset, memory: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, ranges = counted(monkeypatch)
    largest = max(synthetic_dataset.manifest.files[n].size for n in synthetic_dataset.manifest.shards.values())
    dataset = open_dataset(memory, place(tmp_path, 1.2 * largest / 1e9))
    rows = np.arange(dataset.num_images)
    for _ in range(3):
        dataset.announce(rows, now=True)
        assert dataset.read_many(rows) == synthetic_dataset.read_many(rows)
        assert len(cached(tmp_path)) == 1
    assert sum(whole.values()) == 2  # the index and one shard, not one shard after another in turn
    assert set(ranges) == set(synthetic_dataset.manifest.shards.values()) - set(cached(tmp_path))


def test_a_damaged_copy_is_fetched_again_once(
    synthetic_dataset: Dataset, memory: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, _ = counted(monkeypatch)
    dataset = open_dataset(memory, place(tmp_path))
    rows = np.arange(dataset.num_images)
    dataset.announce(rows, now=True)
    expected = dataset.read_many(rows)
    (path, *_) = sorted(place(tmp_path).sub_folder("shards").glob("*.tar"))
    content = path.read_bytes()
    for damaged in (content[: len(content) // 2], bytes(len(content))):
        whole.clear()
        path.write_bytes(damaged)
        assert dataset.read_many(rows) == expected
        assert list(whole.values()) == [1]
        assert path.read_bytes() == content


def test_damage_at_the_source_is_named_after_one_more_try(
    synthetic_dataset: Dataset, memory: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, _ = counted(monkeypatch)
    name = synthetic_dataset.manifest.shards[0]
    Folder(memory).write(name, bytes(synthetic_dataset.manifest.files[name].size))
    dataset = open_dataset(memory, place(tmp_path))
    dataset.announce(np.array([0]), now=True)
    with pytest.raises(InputError, match=rf"{name}: image .*jpg was altered \(its hash differs\)"):
        dataset.read(0)
    assert whole[name] == 2


def test_a_shard_of_another_size_or_gone_is_named(synthetic_dataset: Dataset, memory: str, tmp_path: Path) -> None:
    dataset = open_dataset(memory, place(tmp_path))
    name = dataset.manifest.shards[0]
    Folder(memory).write(name, b"short")
    dataset.announce(np.array([0]), now=True)
    with pytest.raises(InputError, match=rf"{name}: (5 bytes came|image .* was altered)"):
        dataset.read(0)
    fsspec.filesystem("memory").rm(f"/cache-test/dataset/{name}")
    dataset.announce(np.array([0]), now=True)
    with pytest.raises(InputError, match=rf"{name} is missing"):
        dataset.read(0)
    assert not list(place(tmp_path).sub_folder("shards").glob("*.part"))


@pytest.mark.parametrize("size_gb", [0.0, 1.0])
def test_a_store_that_fails_for_a_moment_is_asked_again(
    synthetic_dataset: Dataset, memory: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size_gb: float
) -> None:
    pauses: list[float] = []
    failing = [2]
    download, read_range = Folder.download, Folder.read_range

    def stumble() -> None:
        failing[0] -= 1
        if failing[0] >= 0:
            raise TimeoutError("no answer\nin time")

    def stumbling_download(self: Folder, name: str, target: Path) -> None:
        stumble()
        download(self, name, target)

    def stumbling_range(self: Folder, name: str, offset: int, size: int) -> bytes:
        stumble()
        return read_range(self, name, offset, size)

    monkeypatch.setattr(Folder, "download", stumbling_download)
    monkeypatch.setattr(Folder, "read_range", stumbling_range)
    monkeypatch.setattr("data.cache.time.sleep", pauses.append)
    dataset = open_dataset(memory, place(tmp_path, size_gb))
    assert dataset.labels.shape[0] == dataset.num_images  # the index, by a download
    assert pauses == [0.2, 1.0]
    failing[0] = 2
    dataset.announce(np.array([0]), now=True)
    assert dataset.read(0) == synthetic_dataset.read(0)
    assert len(cached(tmp_path)) == (1 if size_gb else 0)

    failing[0] = 10**6
    last = dataset.num_images - 1
    dataset.announce(np.array([last]), now=True)
    name = dataset.manifest.shards[int(dataset.shard_of[last])]
    with pytest.raises(InputError, match=rf"{name} cannot be read \(no answer in time\); check the place"):
        dataset.read(last)
    other = open_dataset(memory, CachePlace(str(tmp_path / "other"), size_gb))
    with pytest.raises(InputError, match=r"index\.parquet cannot be read \(no answer in time\); check the place"):
        _ = other.labels
    assert not list(tmp_path.rglob("*.part"))


def test_what_a_dead_download_left_takes_no_room(synthetic_dataset: Dataset, memory: str, tmp_path: Path) -> None:
    cache = shard_cache(memory, synthetic_dataset, tmp_path, shards=1, in_use_s=0)
    first = synthetic_dataset.manifest.shards[0]
    left = place(tmp_path).sub_folder("shards") / f"other-{first}.{cache._limit}.12345678.part"
    left.write_bytes(b"half")
    assert cache.fetch(first)
    assert not left.exists()


def test_the_shards_of_later_steps_come_ahead(
    synthetic_dataset: Dataset, memory: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pretrain.batches.LOOK_AHEAD_SAMPLES", 16)
    make = batches_of(open_dataset(memory, place(tmp_path)))
    announced: list[tuple[set[int], bool]] = []
    announce = Dataset.announce

    def note(self: Dataset, rows: Any, now: bool = False, least_share: float = 0.0) -> None:
        announced.append((set(rows.tolist()), now))
        announce(self, rows, now, least_share)

    monkeypatch.setattr(Dataset, "announce", note)
    for step in range(4):
        make(step)
    needed, ahead = ([rows for rows, now in announced if now is wanted] for wanted in (True, False))
    assert ahead[:2] == needed[2:4]


def test_a_disk_too_full_for_the_cache_is_told_once_a_machine(
    synthetic_dataset: Dataset, memory: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    dataset = open_dataset(memory, place(tmp_path))
    tell_of_caches(dataset)
    assert not capsys.readouterr().out
    usage = shutil.disk_usage(tmp_path)._replace(total=10**9, free=5 * 10**7 + 1000)
    monkeypatch.setattr("data.cache.FREE_SHARE", 0.05)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    whole, ranges = counted(monkeypatch)
    rows = np.arange(dataset.num_images)
    dataset.announce(rows, now=True)
    assert dataset.read_many(rows) == synthetic_dataset.read_many(rows)
    assert ranges and not [name for name in whole if name.endswith(".tar")], "the shards are read in ranges instead"
    tell_of_caches(dataset)
    told = capsys.readouterr().out
    assert f"{tmp_path}" in told and "room for 1e-06 of" in told and "5% stays free" in told and "loader.cache" in told
    monkeypatch.setenv("LOCAL_RANK", "1")
    tell_of_caches(dataset)
    tell_of_caches(synthetic_dataset)
    assert not capsys.readouterr().out, "another worker of this machine; a dataset that lies on it"
