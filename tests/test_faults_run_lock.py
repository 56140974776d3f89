"""A run folder has one run at a time, and a lock never outlives its holder."""

import errno
import fcntl
import importlib
import json
import os
import signal
import socket
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from clusters.config import InputError
from clusters.run_lock import LOCK, run_lock
from clusters.storage import Folder
from data.dataset import Dataset
from finetune.__main__ import COMMANDS
from finetune.config import FinetuneConfig


def test_a_second_run_is_refused_with_the_holder_s_name(tmp_path: Path) -> None:
    run = Folder(tmp_path / "run")
    with run_lock(run):
        with pytest.raises(InputError) as caught, run_lock(run):
            pass
        assert f"(process {os.getpid()}, host {socket.gethostname()})" in str(caught.value)
        assert "\n" not in str(caught.value)
    with run_lock(run):
        assert json.loads((tmp_path / "run" / LOCK).read_text())["process"] == os.getpid()
    assert not (tmp_path / "run" / LOCK).exists()


@pytest.fixture
def umask() -> Iterator[None]:
    """As it was before, also where strict privacy has narrowed it."""
    before = os.umask(0o022)
    yield
    os.umask(before)


@pytest.mark.usefixtures("umask")
def test_where_privacy_is_strict_no_host_is_named(tmp_path: Path) -> None:
    run = Folder(tmp_path)
    with run_lock(run, "strict"):
        assert stat.S_IMODE((tmp_path / LOCK).stat().st_mode) == 0o600
        assert socket.gethostname() not in (tmp_path / LOCK).read_text()
        assert stat.S_IMODE(tmp_path.stat().st_mode) == 0o700
        with pytest.raises(InputError, match=rf"\(process {os.getpid()}\)"), run_lock(run, "strict"):
            pass


@pytest.mark.usefixtures("umask")
def test_where_privacy_is_strict_a_folder_that_stays_open_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another user's, say."""

    def chmod(*_: Any) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    tmp_path.chmod(0o755)
    monkeypatch.setattr(Path, "chmod", chmod)
    with pytest.raises(InputError, match="others can look into it, and it cannot be made 0700 by this user"):
        run_lock(Folder(tmp_path), "strict").__enter__()
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_takes_the_holder_s_name_and_not_the_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "write", full)
    begun = r"another run is at work in this folder \(it has just begun\)"
    with run_lock(Folder(tmp_path)), pytest.raises(InputError, match=begun):
        run_lock(Folder(tmp_path)).__enter__()
    monkeypatch.setattr(os, "open", full)
    with pytest.raises(InputError, match=r"cannot be kept from other runs .*No space left on device.*; mend"):
        run_lock(Folder(tmp_path)).__enter__()


@pytest.mark.parametrize("command", ["predict", "evaluate", "search", "efficiency"])
def test_a_command_of_fine_tuning_leaves_a_folder_at_work_alone(
    command: str, finetuned: FinetuneConfig, synthetic_dataset: Dataset, tmp_path: Path
) -> None:
    data, encoder, out = synthetic_dataset.location, finetuned.encoder, tmp_path / "out"
    words = {
        "predict": [finetuned.out, data, f"out={out}"],
        "evaluate": [finetuned.out, f"data=[{data}]", f"out={out}", "splits=[test]", "foreign=false"],
        "search": [f"data={data}", f"encoder={encoder}", f"out={out}"],
        "efficiency": [f"data={data}", f"encoders=[{encoder}]", f"out={out}", "fractions=[1]"],
    }
    written = out / f"synthetic-{synthetic_dataset.fingerprint[:8]}" if command == "evaluate" else out
    with run_lock(Folder(written)):
        with pytest.raises(InputError, match="another run is at work in this folder"):
            importlib.import_module(COMMANDS[command]).run(words[command])
        assert [path.name for path in written.iterdir()] == [LOCK]


def test_another_user_s_lock_is_one_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a folder in which both may write, with a lock that only its owner may: refused as the system does it."""
    run, opened = Folder(tmp_path), os.open

    def refusing(path: Any, flags: int, *mode: Any, **more: Any) -> int:
        if str(path).endswith(LOCK) and flags & os.O_RDWR and (tmp_path / LOCK).exists():
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
        return opened(path, flags, *mode, **more)

    with run_lock(run):
        monkeypatch.setattr(os, "open", refusing)
        with pytest.raises(InputError, match=rf"another run is at work in this folder \(process {os.getpid()}"):
            run_lock(run).__enter__()
    (tmp_path / LOCK).write_text('{"process": 1, "host": "of another who was killed"}')
    with run_lock(run):
        assert json.loads((tmp_path / LOCK).read_text())["process"] == os.getpid()
        with pytest.raises(InputError, match=f"process {os.getpid()}"):
            run_lock(run).__enter__()


@pytest.mark.parametrize("end", [signal.SIGKILL, None])
def test_a_lock_dies_with_its_holder(tmp_path: Path, end: signal.Signals | None) -> None:
    run, (reader, writer) = Folder(tmp_path), os.pipe()
    holder = os.fork()
    if holder == 0:
        with run_lock(run):
            os.write(writer, b"held")
            if end is None:
                os._exit(0)
            signal.pause()
    assert os.read(reader, 4) == b"held"
    if end is not None:
        with pytest.raises(InputError, match=f"process {holder}"), run_lock(run):
            pass
        os.kill(holder, end)
    os.waitpid(holder, 0)
    with run_lock(run):
        pass


def test_a_lock_that_was_removed_while_it_was_opened_is_not_held(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The holder before ends between our opening of its file and our locking of it."""
    flock, holders_ends = fcntl.flock, [True]

    def flock_late(file: Any, how: int) -> None:
        if holders_ends.pop() if holders_ends else False:
            (tmp_path / LOCK).unlink()
        flock(file, how)

    monkeypatch.setattr(fcntl, "flock", flock_late)
    run = Folder(tmp_path)
    with run_lock(run):
        assert (tmp_path / LOCK).exists()
        with pytest.raises(InputError, match="another run is at work"), run_lock(run):
            pass
