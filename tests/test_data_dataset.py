"""The compiled index: made once for all processes, checked when opened, made anew where it is damaged."""

import errno
import hashlib
import multiprocessing
import os
import pickle
import shutil
import stat
from pathlib import Path

import numpy as np
import pytest

from clusters import retries
from clusters.config import InputError, Transient
from data import compiled, mapped
from data.cache import CachePlace, cache_folder
from data.dataset import Dataset, open_dataset
from data.mapped import intact, mapped_arrays, open_arrays, share_arrays


@pytest.fixture
def place(tmp_path: Path) -> CachePlace:
    return CachePlace(str(tmp_path / "cache"))


def array_files(place: CachePlace) -> list[Path]:
    return sorted(place.sub_folder("indexes").glob("*.arrays"))


def test_the_arrays_say_what_the_index_says(synthetic_dataset: Dataset, place: CachePlace) -> None:
    dataset = open_dataset(synthetic_dataset.location, place)
    table = dataset.index.to_pydict()
    assert dataset.shard_of.tolist() == table["shard"]
    assert dataset.column("split").tolist() == table["split"]
    assert dataset.column("key").tolist() == table["key"]
    assert [digest.tobytes().hex() for digest in dataset._arrays["sha256"]] == table["sha256"]
    assert [digest.tobytes().hex() for digest in dataset._arrays["pixel_sha256"]] == table["pixel_sha256"]
    for numbers, names in ((dataset.case_of, table["key"]), (dataset.patient_of, table["patient"])):
        assert len(set(zip(numbers.tolist(), names))) == len(set(names)) == numbers.max() + 1
    expected = np.stack([table[f"label.{name}"] for name in dataset.label_names], axis=1)
    assert np.array_equal(dataset.labels, expected, equal_nan=True)
    for split in ("train", "val", "test"):
        assert dataset.rows([split]).tolist() == [row for row, name in enumerate(table["split"]) if name == split]
    for row in range(dataset.num_images):
        assert hashlib.sha256(dataset.read(row)).hexdigest() == table["sha256"][row]
    rows = np.array([5, 3, 3, 40])
    assert dataset.read_many(rows) == [dataset.read(int(row)) for row in rows]


def test_rows_in_several_batches_are_numbered_on(
    synthetic_dataset: Dataset, place: CachePlace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiled, "BATCH_ROWS", 7)
    dataset = open_dataset(synthetic_dataset.location, place)
    assert np.array_equal(dataset.case_of, synthetic_dataset.case_of)
    assert np.array_equal(dataset.labels, synthetic_dataset.labels, equal_nan=True)


def test_a_pickled_dataset_is_small_and_maps_the_same_file(synthetic_dataset: Dataset, place: CachePlace) -> None:
    dataset = open_dataset(synthetic_dataset.location, place)
    content = pickle.dumps(dataset)
    assert len(content) < 6000
    again = pickle.loads(content)
    assert again.read(7) == dataset.read(7)
    assert len(array_files(place)) == 1
    with pytest.raises(ValueError, match="read-only"):
        again.labels[0] = 1


def test_opening_a_compiled_dataset_parses_no_index(
    synthetic_dataset: Dataset, place: CachePlace, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_dataset(synthetic_dataset.location, place).read(0)

    def fail(*_: object, **__: object) -> None:
        raise AssertionError("the index was parsed")

    for name in ("read_table", "ParquetFile"):
        monkeypatch.setattr(f"pyarrow.parquet.{name}", fail)
    dataset = open_dataset(synthetic_dataset.location, place)
    assert len(dataset.rows(["train"])) and dataset.labels.shape[0] == dataset.num_images
    assert dataset.read(3)


@pytest.mark.parametrize("damage", ["cut", "header", "empty", "other"])
def test_a_damaged_file_of_arrays_is_made_anew(synthetic_dataset: Dataset, place: CachePlace, damage: str) -> None:
    before = open_dataset(synthetic_dataset.location, place).labels.copy()
    (path,) = array_files(place)
    content = path.read_bytes()
    flipped = content[:70] + bytes([content[70] ^ 1]) + content[71:]
    path.write_bytes({"cut": content[:-1], "header": flipped, "empty": b"", "other": b"x" * len(content)}[damage])
    dataset = open_dataset(synthetic_dataset.location, place)
    assert np.array_equal(dataset.labels, before, equal_nan=True)
    assert path.read_bytes() == content


def test_damage_inside_the_arrays_is_found_by_the_hash_of_an_image(
    synthetic_dataset: Dataset, place: CachePlace
) -> None:
    dataset = open_dataset(synthetic_dataset.location, place)
    expected = [dataset.read(row) for row in range(3)]
    (path,) = array_files(place)
    whole = path.read_bytes()
    start = whole.index(dataset._arrays["offset"].tobytes())
    path.unlink()
    path.write_bytes(whole[: start + 8] + bytes(16) + whole[start + 24 :])
    assert not intact(path)
    again = open_dataset(synthetic_dataset.location, place)
    assert again.read_many(np.arange(3)) == expected
    assert path.read_bytes() == whole


@pytest.mark.parametrize("name", ["shard", "offset", "size", "case", "patient", "labels", "split", "sha256"])
def test_damage_in_any_array_is_found_and_mended(synthetic_dataset: Dataset, place: CachePlace, name: str) -> None:
    dataset = open_dataset(synthetic_dataset.location, place)
    expected = {name: array.tobytes() for name, array in dataset._arrays.items()}
    (path,) = array_files(place)
    whole = path.read_bytes()
    start = whole.index(expected[name])
    last = start + dataset._arrays[name].itemsize - 1  # the highest byte of the first number
    for place_, bit in ((start, 1), (last, 128)):
        path.unlink()
        path.write_bytes(whole[:place_] + bytes([whole[place_] ^ bit]) + whole[place_ + 1 :])
        again = open_dataset(synthetic_dataset.location, place)
        assert again.read_many(np.arange(3)) == dataset.read_many(np.arange(3))
        assert {name: array.tobytes() for name, array in again._arrays.items()} == expected
        assert path.read_bytes() == whole


def test_loader_processes_leave_the_check_to_the_run(
    synthetic_dataset: Dataset, place: CachePlace, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_dataset(synthetic_dataset.location, place).read(0)
    hashed: list[int] = []
    digest = mapped._digest
    monkeypatch.setattr(mapped, "_digest", lambda array: hashed.append(array.size) or digest(array))
    monkeypatch.setattr(multiprocessing, "parent_process", lambda: object())
    assert len(open_dataset(synthetic_dataset.location, place).labels) == synthetic_dataset.num_images
    assert not hashed


def test_a_local_shard_that_cannot_be_read_is_named(
    synthetic_dataset: Dataset, place: CachePlace, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> bytes:
        raise OSError(5, "Input/output error")

    dataset = open_dataset(synthetic_dataset.location, place)
    assert len(dataset.labels)
    monkeypatch.setattr(os, "pread", broken)
    monkeypatch.setattr(retries, "RETRY_AFTER_S", ())
    with pytest.raises(Transient, match=rf"{dataset.manifest.shards[0]} cannot be read \(Input/output error\); check"):
        dataset.read(0)


@pytest.mark.parametrize(("code", "passes"), [(errno.ESTALE, True), (errno.EACCES, False)])
def test_a_read_that_fails_once_is_made_again_where_that_may_help(
    synthetic_dataset: Dataset, place: CachePlace, monkeypatch: pytest.MonkeyPatch, code: int, passes: bool
) -> None:
    """Of a file that is opened anew: an open one may stay bad after its storage has come back."""
    pread, opened = os.pread, list[int]()

    def fails_once(file: int, size: int, offset: int) -> bytes:
        opened.append(os.fstat(file).st_ino)
        if len(opened) == 1:
            raise OSError(code, os.strerror(code))
        return pread(file, size, offset)

    expected, dataset = synthetic_dataset.read(0), open_dataset(synthetic_dataset.location, place)
    assert len(dataset.labels)
    monkeypatch.setattr(os, "pread", fails_once)
    monkeypatch.setattr(retries, "RETRY_AFTER_S", (0.0,))
    if passes:
        assert dataset.read(0) == expected and len(opened) == 2
    else:
        with pytest.raises(InputError, match=r"cannot be read \(Permission denied\)") as refused:
            dataset.read(0)
        assert not isinstance(refused.value, Transient) and len(opened) == 1


def _open(location: str, place: CachePlace, queue: "multiprocessing.Queue[list[int]]") -> None:
    queue.put(open_dataset(location, place).case_of.tolist())


def test_many_processes_at_once_make_one_file(synthetic_dataset: Dataset, place: CachePlace) -> None:
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    started = [
        context.Process(target=_open, args=(synthetic_dataset.location, place, queue), daemon=True) for _ in range(6)
    ]
    for process in started:
        process.start()
    answers = [queue.get(timeout=60) for _ in started]
    assert all(answer == synthetic_dataset.case_of.tolist() for answer in answers)
    (path,) = array_files(place)
    assert {p.name for p in path.parent.iterdir()} == {path.name, "making.lock"}


def test_an_interrupted_making_leaves_nothing(tmp_path: Path) -> None:
    def stop(_: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        mapped_arrays(tmp_path / "a.arrays", lambda: {"a": ("<i4", (3,))}, stop)
    assert [path.name for path in tmp_path.iterdir()] == ["making.lock"]


def test_a_full_disk_is_said_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(
        InputError, match=r"a\.arrays: cannot be written \(No space left on device\); set MANYVIEW_CACHE"
    ):
        mapped_arrays(tmp_path / "a.arrays", lambda: {"a": ("<i4", (3,))}, lambda _: None)
    assert open_arrays(tmp_path / "a.arrays") is None


def test_shared_arrays_come_back_and_unused_ones_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arrays = {"a": np.arange(5), "b": np.ones((2, 0), np.float32), "c": np.zeros((0,), np.int8)}
    path = share_arrays(tmp_path, arrays)
    assert path == share_arrays(tmp_path, arrays)
    read = open_arrays(path)
    assert read is not None and intact(path)
    assert all(np.array_equal(read[name], array) and read[name].shape == array.shape for name, array in arrays.items())
    monkeypatch.setattr(mapped, "UNUSED_S", -10.0)
    (tmp_path / "held.lock").touch()
    other = share_arrays(tmp_path, {"a": np.arange(6)})
    assert other.exists() and not path.exists()
    assert (tmp_path / "held.lock").exists() and (tmp_path / "making.lock").exists()
    assert read["a"].tolist() == [0, 1, 2, 3, 4]  # who has it mapped keeps it


def test_the_cache_is_the_user_s_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MANYVIEW_CACHE", str(tmp_path / "there"))
    folder = cache_folder()
    assert folder.parent == tmp_path / "there"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    folder.chmod(0o755)
    assert stat.S_IMODE(cache_folder().stat().st_mode) == 0o700
    assert cache_folder(str(tmp_path / "given")).parent == tmp_path / "given"
    monkeypatch.delenv("MANYVIEW_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder().parent == tmp_path / "xdg"
    shutil.rmtree(tmp_path / "xdg")
    (tmp_path / "xdg").mkdir()
    (tmp_path / "xdg" / folder.name).symlink_to(tmp_path)
    with pytest.raises(InputError, match="a cache of somebody else"):
        cache_folder()
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(InputError, match=r"no cache can be made there .*set MANYVIEW_CACHE"):
        cache_folder(str(tmp_path / "file"))
    given = CachePlace(str(tmp_path / "given"))
    (cache_folder(given.folder) / "indexes").write_bytes(b"")
    with pytest.raises(InputError, match=r"indexes: no cache can be made there \(File exists\); set MANYVIEW_CACHE"):
        given.sub_folder("indexes")


def test_a_cache_that_is_mounted_read_only_is_read(
    synthetic_dataset: Dataset, place: CachePlace, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_dataset(synthetic_dataset.location, place).read(0)

    def refuse(*_: object) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(os, "utime", refuse)
    assert open_dataset(synthetic_dataset.location, place).read(0) == synthetic_dataset.read(0)


def test_few_files_are_open_at_a_time(
    synthetic_dataset: Dataset, place: CachePlace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("data.shard_bytes.MAX_OPEN_FILES", 2)
    dataset = open_dataset(synthetic_dataset.location, place)
    assert len(set(dataset.shard_of.tolist())) > 2
    for row in np.random.default_rng(0).permutation(dataset.num_images).tolist():
        assert dataset.read(row) == synthetic_dataset.read(row)
        assert len(dataset._shards._files) <= 2
