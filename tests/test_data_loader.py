"""Loader processes: they die with their parent, and what goes wrong in them is one line here."""

import functools
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch

from clusters import distributed
from clusters.config import InputError
from data import loader
from data.dataset import Dataset
from data.loader import LoaderConfig, crop_and_resize, evaluation_batches, loader_processes
from data.prefetch import training_batches
from pretrain.batches import ViewBatches
from pretrain.methods.method import one_image
from pretrain.stage import Samples
from pretrain.views import ViewConfig
from tests.loader_tasks import die, die_once, fail, pids, refuse, threads

ROOT = Path(__file__).parents[1]
TWO = LoaderConfig(num_processes=2, prefetch=1)


def test_processes_persist_and_batches_come_in_order() -> None:
    batches = [batch.tolist() for batch in training_batches(pids, 5, 25, TWO)]
    assert [step for step, _ in batches] == list(range(5, 25))
    assert len({pid for _, pid in batches}) == 2
    assert os.getpid() not in {pid for _, pid in batches}


def test_a_gpu_is_fed_by_the_cores_to_spare_as_far_as_shared_memory_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each process keeps three batches: two prepared and one in work."""
    usage = shutil.disk_usage(tmp_path)._replace(free=24_000)
    monkeypatch.setattr(loader, "num_cores", lambda: 12)
    monkeypatch.setattr(loader, "SHARED_MEMORY", tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    assert loader_processes(LoaderConfig(), 100) == 0, "a CPU has none to spare"
    monkeypatch.setattr(distributed, "_device", torch.device("cuda", 0))
    assert loader_processes(LoaderConfig(), 100) == 11
    assert loader_processes(LoaderConfig(), 1000) == 4, "12,000 bytes, half of what is free, are four times three"
    assert loader_processes(LoaderConfig(), 10_000) == 0
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    assert loader_processes(LoaderConfig(), 100) == 3, "four cores each"
    assert loader_processes(LoaderConfig(), 1000) == 1
    assert loader_processes(LoaderConfig(num_processes=7), 10_000) == 7, "who says a number gets it"


def test_a_loader_process_has_one_thread() -> None:
    assert next(training_batches(threads, 0, 1, TWO)).tolist() in ([1, 0], [1, 1])


@pytest.mark.parametrize("num_processes", [0, 1])
def test_a_refusal_in_a_loader_process_is_the_same_line_here(num_processes: int) -> None:
    batches = training_batches(refuse, 0, 9, LoaderConfig(num_processes=num_processes))
    with pytest.raises(InputError) as caught:
        list(batches)
    assert str(caught.value) == "shard-000001.tar: image a.0.jpg was altered; copy the dataset again"


def test_an_error_of_the_code_in_a_loader_process_keeps_its_traceback() -> None:
    with pytest.raises(RuntimeError, match="shapes do not fit") as caught:
        list(training_batches(fail, 1, 2, TWO))
    assert not isinstance(caught.value, InputError)
    assert 'raise RuntimeError("shapes do not fit")' in str(caught.value)


@pytest.mark.parametrize("num_processes", [0, 1])
def test_what_cannot_be_read_is_one_line_wherever_it_is_read(num_processes: int) -> None:
    told = []
    for step in (2, 3, 4):
        with pytest.raises(InputError) as caught:
            list(training_batches(fail, step, step + 1, LoaderConfig(num_processes=num_processes)))
        told.append(str(caught.value))
    assert told[0].startswith("/data/shard-000001.tar: Input/output error, while reading the batch of step 2; check")
    assert told[1].startswith("no answer from the store, while reading the batch of step 3; check")
    assert told[2].startswith("an image in the batch of step 4 cannot be used (not an image)")
    assert "\n" not in "".join(told)


def test_a_killed_loader_process_is_replaced_and_no_batch_is_lost_or_seen_twice(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for step in (4, 5, 120):
        (tmp_path / str(step)).touch()
    batches = training_batches(functools.partial(die_once, marks=str(tmp_path)), 2, 130, TWO)
    assert [int(batch) for batch in batches] == list(range(2, 130))
    assert not list(tmp_path.iterdir())
    said = capsys.readouterr().out.splitlines()
    assert 2 <= len(said) <= 3  # two processes may be killed at once
    assert all("its batches are loaded anew from step" in line for line in said)


def test_a_loader_process_that_is_killed_again_and_again_is_one_line_not_a_hang() -> None:
    with pytest.raises(
        InputError, match=r"a loader process was killed from outside .*lower loader\.num_processes"
    ) as e:
        list(training_batches(die, 0, 9, TWO))
    assert "\n" not in str(e.value)


def test_no_loader_process_outlives_a_killed_run() -> None:
    program = (
        "import sys\nfrom data.loader import LoaderConfig\nfrom data.prefetch import training_batches\n"
        "from tests.loader_tasks import pids\n"
        "if __name__ == '__main__':\n"
        "    batches = training_batches(pids, 0, 10**6, LoaderConfig(num_processes=2))\n"
        "    print(*{int(next(batches)[1]) for _ in range(8)}, flush=True)\n"
        "    sys.stdin.read()\n"
    )
    run = subprocess.Popen(
        [sys.executable, "-c", program], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert run.stdout is not None
    started = [psutil.Process(int(pid)) for pid in run.stdout.readline().split()]
    assert len(started) == 2
    everything = {*psutil.Process(run.pid).children(recursive=True), *started}
    run.kill()
    run.wait()
    _, alive = psutil.wait_procs(list(everything), timeout=20)
    assert not [process for process in alive if process.status() != psutil.STATUS_ZOMBIE]


def test_many_samples_travel_to_processes_as_the_name_of_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import pickle

    monkeypatch.setenv("MANYVIEW_CACHE", str(tmp_path))
    rows = np.arange(200_000)
    samples = Samples.group(rows, rows // 2, rows // 50_000)
    content = pickle.dumps(samples)
    assert len(content) < 1000
    again = pickle.loads(content)
    assert len(again) == 100_000
    assert again[77].tolist() == samples[77].tolist() == [154, 155]
    assert again.shard_sizes.tolist() == [25_000] * 4
    few = Samples.group(rows[:10], rows[:10], rows[:10])
    assert pickle.loads(pickle.dumps(few))[3].tolist() == [3]
    next(tmp_path.rglob("*.arrays")).unlink()
    with pytest.raises(InputError, match="is gone or damaged; leave the cache alone"):
        pickle.loads(content)


def test_samples_travel_by_the_cache_of_their_run(synthetic_dataset: Dataset, tmp_path: Path) -> None:
    import pickle

    place = LoaderConfig(cache=str(tmp_path / "given")).place
    dataset = Dataset(synthetic_dataset.location, synthetic_dataset.manifest, place)
    rows = np.arange(200_000)
    samples = Samples.group(rows, rows, rows // 50_000)
    made = ViewBatches(dataset, samples, one_image, ViewConfig(size_px=16), 0, 0, 8, 0, 1, True)
    again = pickle.loads(pickle.dumps(made))
    (path,) = (tmp_path / "given").rglob("samples/*.arrays")
    assert again._samples.rows.tolist() == rows.tolist()
    whole = path.read_bytes()
    start = whole.index(rows.tobytes())
    path.unlink()
    path.write_bytes(whole[:start] + b"damaged." + whole[start + 8 :])
    pickle.dumps(made)
    assert path.read_bytes() == whole


def test_the_cache_folder_is_absolute(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/elsewhere/someone")
    monkeypatch.delenv("RAY_JOB_CONFIG_JSON_ENV_VAR", raising=False)
    assert LoaderConfig(cache="~/cache").cache == "/elsewhere/someone/cache"
    assert LoaderConfig(cache="cache").cache == str(Path.cwd() / "cache")
    assert LoaderConfig().cache == ""
    with pytest.raises(ValueError, match="a folder of each machine, not a URL"):
        LoaderConfig(cache="s3://bucket/cache")
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    with pytest.raises(ValueError, match="'cache' is relative"):
        LoaderConfig(cache="cache")


def test_evaluation_reads_every_image_whole_and_in_order(synthetic_dataset: Dataset) -> None:
    rows = np.arange(3, 40, 2)
    passed = list(evaluation_batches(synthetic_dataset, rows, 24, 8))
    assert np.concatenate([some for some, _ in passed]).tolist() == rows.tolist()
    assert {tuple(pixels.shape[1:]) for _, pixels in passed} == {(3, 24, 24)}


def test_a_crop_may_be_written_in_place_and_is_averaged_only_where_it_shrinks_enough() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (60, 60, 3), dtype=np.uint8)
    out = np.zeros((2, 40, 40, 3), np.uint8)
    expected = crop_and_resize(pixels, [5, 5, 48, 48], 40)
    crop_and_resize(pixels, [5, 5, 48, 48], 40, out=out[1])
    assert (out[1] == expected).all() and not out[0].any()
    mild = crop_and_resize(pixels, [5, 5, 48, 48], 40, averaged_from=1.25)
    assert (mild != expected).any()
    strong = crop_and_resize(pixels, [0, 0, 60, 60], 40, averaged_from=1.25)
    assert (strong == crop_and_resize(pixels, [0, 0, 60, 60], 40)).all()
