"""Where no kernel holds a lock, as on object stores, a lease keeps a second run out; that of the dead is taken over."""

import errno
import fcntl
import functools
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from clusters import lease as leases
from clusters.attempt import Attempt
from clusters.config import InputError
from clusters.lease import LEASE, lease
from clusters.run_lock import run_lock
from clusters.storage import Folder
from data.dataset import Dataset
from pretrain.config import PretrainConfig
from pretrain.run import pretrain

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, seconds in {"RENEW_S": 0.2, "STALE_S": 2.0, "SETTLE_S": 0.1, "LOOK_S": 0.1}.items():
        monkeypatch.setattr(leases, name, seconds)


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Folder]:
    folder = Folder(f"memory://{tmp_path.name}")
    yield folder
    folder.remove()


def test_a_second_run_on_a_url_is_refused_while_the_first_lives(
    run: Folder, capsys: pytest.CaptureFixture[str]
) -> None:
    with run_lock(run):
        with pytest.raises(InputError, match=rf"another run is at work in this folder \(process {os.getpid()}, host "):
            run_lock(run).__enter__()
        assert "looking for 2 s whether it lives" in capsys.readouterr().out
        time.sleep(1)
        assert run.read_json(LEASE)["renewed"] >= 2
    assert run.names() == []
    began = time.monotonic()
    with run_lock(run, "strict"):
        assert time.monotonic() - began < leases.STALE_S, "nothing is waited for where no lease is left"
        assert set(run.read_json(LEASE)) == {"process", "token", "renewed"}


def test_who_lost_the_lease_takes_no_number_from_who_took_over(run: Folder, capsys: pytest.CaptureFixture[str]) -> None:
    """A run that stood still before its stage began wakes while another trains in its place."""
    stage = run / "1-simclr"
    begin = functools.partial(Attempt, stage, stage / "checkpoints", lambda write: write())
    with lease(run, {"process": 12}):
        assert begin().number == 1
        assert set(leases.held()) == {"MANYVIEW_LEASE"}
        run.write_json(LEASE, {"process": 13, "host": "lab4", "token": "theirs", "renewed": 0})
        theirs = stage.read_json("attempt.json")
        with pytest.raises(
            InputError, match="another run has taken it over \\(process 13, host lab4\\); leave the run"
        ):
            begin()
        assert stage.read_json("attempt.json") == theirs
    assert leases.held() == {}
    assert run.read_json(LEASE)["token"] == "theirs"


def test_pretraining_on_a_url_holds_its_folder(synthetic_dataset: Dataset, run: Folder) -> None:
    stages = [{"method": "simclr", "epochs": 1, "batch_size": 16}]
    values = {"data": synthetic_dataset.location, "run": run.location, "stages": stages, "cluster": {"num_workers": 0}}
    with lease(run, {"process": 12, "host": "lab3"}), pytest.raises(InputError, match="process 12, host lab3"):
        pretrain(PretrainConfig.model_validate(values))
    assert run.names() == []


def test_a_lease_of_a_run_that_was_killed_is_taken_over_on_s3(
    bucket: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """By the real protocol of S3, with a holder in a process of its own."""
    run = Folder(f"{bucket}/killed")
    program = (
        "import time; from clusters import lease; from clusters.storage import Folder; lease.RENEW_S = 0.2\n"
        f"with lease.lease(Folder({run.location!r}), {{'process': 1}}): print('held', flush=True); time.sleep(600)"
    )
    with subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE, text=True) as holder:
        try:
            assert holder.stdout is not None and holder.stdout.readline() == "held\n"
            with pytest.raises(InputError, match=r"another run is at work in this folder \(process 1\)"):
                run_lock(run).__enter__()
        finally:
            holder.send_signal(signal.SIGKILL)
    assert run.read_json(LEASE)["process"] == 1
    began = time.monotonic()
    with run_lock(run):
        assert time.monotonic() - began >= leases.STALE_S
        assert run.read_json(LEASE)["process"] == os.getpid()
    assert not run.exists(LEASE)


def test_of_many_that_begin_at_once_one_holds_it(run: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "SETTLE_S", 0.5)
    held, refused, start, end = [], [], threading.Barrier(8), threading.Event()

    def begin(number: int) -> None:
        start.wait()
        try:
            with lease(run, {"process": number}):
                held.append(number)
                end.wait()
        except InputError as error:
            refused.append(str(error))

    threads = [threading.Thread(target=begin, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + 20
    while len(held) + len(refused) < 8 and time.monotonic() < deadline:
        time.sleep(0.05)
    end.set()
    for thread in threads:
        thread.join()
    assert len(held) == 1 and len(refused) == 7
    assert all(f"(process {held[0]})" in line for line in refused)


def test_one_who_was_taken_over_leaves_the_lease_to_its_new_holder(run: Folder) -> None:
    with lease(run, {"process": 1}):
        run.write_json(LEASE, {"process": 2, "token": "another", "renewed": 0})
        time.sleep(1)
    assert run.read_json(LEASE) == {"process": 2, "token": "another", "renewed": 0}


def test_storage_that_fails_for_a_while_ends_no_lease(run: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    fails = threading.Event()
    read = Folder.read_json

    def reading(folder: Folder, name: str) -> Any:
        if fails.is_set():
            raise OSError(errno.EACCES, "storage says no")
        return read(folder, name)

    monkeypatch.setattr(Folder, "read_json", reading)
    with lease(run, {"process": 1}):
        fails.set()
        time.sleep(1)
        fails.clear()
        before = run.read_json(LEASE)["renewed"]
        time.sleep(1)
        assert run.read_json(LEASE)["renewed"] > before


def test_a_run_does_not_begin_where_the_lease_cannot_be_looked_at(run: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another may hold it."""

    def refusing(folder: Folder, name: str) -> Any:
        raise PermissionError(errno.EACCES, "storage says no")

    monkeypatch.setattr(Folder, "read_json", refusing)
    with pytest.raises(InputError, match=r"cannot be kept from other runs \(.*says no\); mend"):
        run_lock(run).__enter__()
    assert run.names() == []


def test_a_file_system_without_locks_has_a_lease(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_locks(*_: Any) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", no_locks)
    with run_lock(Folder(tmp_path)):
        assert json.loads((tmp_path / LEASE).read_text())["process"] == os.getpid()
        with pytest.raises(InputError, match="another run is at work"):
            run_lock(Folder(tmp_path)).__enter__()
    assert not (tmp_path / LEASE).exists()


def test_a_damaged_lease_is_somebody_s_until_it_is_stale(run: Folder) -> None:
    run.write(LEASE, b"{")
    with lease(run, {"process": 1}):
        assert run.read_json(LEASE)["process"] == 1


def test_a_run_does_not_begin_where_no_lease_can_be_written(run: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    def write(*_: Any) -> None:
        raise PermissionError(errno.EACCES, "denied")

    monkeypatch.setattr(Folder, "write", write)
    with pytest.raises(InputError, match="cannot be kept from other runs"):
        run_lock(run).__enter__()
