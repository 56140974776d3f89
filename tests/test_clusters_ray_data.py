"""Work by Ray Data, each test's driver a process of its own: what becomes of it is part of what is looked at."""

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from clusters import ray_data
from data.dataset import Dataset
from finetune.config import FinetuneConfig
from finetune.predict import run as run_predict
from tests.fault_runs import ROOT

pytestmark = pytest.mark.timeout(600)

PARTS = """
import os, sys, uuid
from pathlib import Path
from clusters.config import InputError
from clusters.ray_data import map_parts

marks = Path(sys.argv[1])

def make():
    (marks / f"actor-{uuid.uuid4().hex}").touch()

    def work(part):
        if part == 3 and not (marks / "died").exists():
            (marks / "died").touch()
            os._exit(1)
        if part == 100:
            raise InputError("part 100 is bad")
        if part == 200:
            (marks / f"met-{uuid.uuid4().hex}").touch()
            os._exit(1)
        return 10 * part

    return work

assert sorted(map_parts(make, range(12))) == list(range(0, 120, 10))
assert list(map_parts(make, [])) == []
for bad in (100, 200):
    try:
        list(map_parts(make, [1, bad]))
    except InputError as error:
        print(error)
"""

PREDICT = "import sys, finetune.predict as p; p.PART_IMAGES = 40; p.run(sys.argv[1:])"


def driven(code: str, *words: str) -> str:
    """What a driver prints that must end well."""
    environment = {**os.environ, "RAY_AUTH_MODE": "disabled", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-X", "faulthandler", "-c", code, *words],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=500,
    )  # fmt: skip
    assert done.returncode == 0, f"{done.returncode}: {done.stdout}{done.stderr}"
    return done.stdout


def test_parts_go_to_few_actors_and_those_of_one_that_dies_are_done_again(tmp_path: Path) -> None:
    said = driven(PARTS, str(tmp_path)).splitlines()  # Ray speaks there too
    assert "part 100 is bad" in said
    assert any(line.startswith("Ray actors died 4 times, most likely for want of memory") for line in said)
    assert (tmp_path / "died").exists()
    assert len(list(tmp_path.glob("met-*"))) == 4, "it is not tried without end"
    assert len(list(tmp_path.glob("actor-*"))) <= 12, "two and who came in their place, for each of three"


def test_predictions_by_ray_data_are_those_of_one_process(
    finetuned: FinetuneConfig, synthetic_dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also of what another command began: the parts that are there stay."""
    monkeypatch.setattr("finetune.predict.PART_IMAGES", 40)
    words = [finetuned.out, synthetic_dataset.location]
    run_predict([*words, f"out={tmp_path / 'here'}"])
    with monkeypatch.context() as patch:  # stopped after its first part
        patch.setattr("finetune.predict.Progress.line", stop)
        with pytest.raises(KeyboardInterrupt):
            run_predict([*words, f"out={tmp_path / 'ray'}", "batch_size=40"])
    said = driven(PREDICT, *words, f"out={tmp_path / 'ray'}", "on_ray=true")
    assert f"40 of {synthetic_dataset.num_images} images are there already" in said
    for name in ("predictions.csv", "cases.csv"):
        assert (tmp_path / "ray" / name).read_bytes() == (tmp_path / "here" / name).read_bytes()


def stop(*_: object) -> None:
    raise KeyboardInterrupt


@pytest.fixture
def threads() -> Iterator[list[tuple[threading.Thread, threading.Event]]]:
    """Two that work until their events are set."""
    made = []
    for number in range(2):
        event = threading.Event()
        thread = threading.Thread(target=event.wait, name=f"StreamingExecutor-{number}", daemon=True)
        thread.start()
        made.append((thread, event))
    yield made
    for thread, event in made:
        event.set()
        thread.join()


Threads = list[tuple[threading.Thread, threading.Event]]


def test_the_end_waits_for_a_thread_that_is_slow_and_not_for_those_of_others(
    threads: Threads, capsys: pytest.CaptureFixture[str]
) -> None:
    (others, _), (ours, event) = threads
    threading.Timer(0.3, event.set).start()
    ray_data._wait_for_executors([others], timeout_s=60)
    assert not ours.is_alive()
    assert others.is_alive()
    assert capsys.readouterr().err == ""


def test_a_thread_that_does_not_end_is_said(threads: Threads, capsys: pytest.CaptureFixture[str]) -> None:
    (others, _), (ours, _) = threads
    ray_data._wait_for_executors([others], timeout_s=0.1)
    assert ours.is_alive()
    assert "(StreamingExecutor-1) still works after 0.1 s" in capsys.readouterr().err
