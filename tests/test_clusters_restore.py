"""Restoring from storage that fails, lies to one rank or is shared by two starts: exact, together, or not at all."""

import errno
import os
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from fsspec.implementations.memory import MemoryFileSystem

from clusters import retries
from clusters.attempt import Superseded
from clusters.checkpoint import CheckpointConfig, Checkpoints
from clusters.storage import Folder
from tests.faulty_storage import Script, UnreliableFolder, fails

CONFIG = CheckpointConfig()


def save(checkpoints: Checkpoints, *steps: int) -> None:
    for step in steps:
        checkpoints.save(step, {"weight": torch.full((5, 3), float(step))})
    checkpoints.wait()


@pytest.fixture(params=["local", "url"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path) if request.param == "local" else f"memory://{tmp_path.name}"


def test_storage_that_fails_twice_at_every_look_of_a_restore_costs_nothing(
    place: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Above all nothing is taken for missing, and removed as unfinished, that is out of reach for a moment."""
    monkeypatch.setattr(retries, "RETRY_AFTER_S", (0.0, 0.0, 0.0))
    save(Checkpoints(Folder(place), CONFIG), 1, 2)
    script = Script()
    script.at(lambda call: call % 3 != 0, fails(errno.EIO))
    restored = Checkpoints(UnreliableFolder(place, script), CONFIG).restore()
    assert restored is not None and restored.step == 2
    assert script.fired >= 2 * 8
    said = capsys.readouterr().out
    assert {"read", "looked at", "listed", "looked for"} <= set(re.findall(r"could not be (.*) \(Input/output", said))
    assert (Folder(place) / "checkpoints").names() == ["step-000000001", "step-000000002"]


def test_a_local_file_that_storage_cannot_tell_of_is_not_taken_for_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The driver's own `exists`, and Python's, say that it is not there."""
    monkeypatch.setattr(retries, "RETRY_AFTER_S", (0.0, 0.0, 0.0))
    (tmp_path / "file").write_bytes(b"there")
    real, calls = os.stat, []

    def stale(path: Any, **options: Any) -> os.stat_result:
        if str(path).endswith("/file"):
            calls.append(path)
            if len(calls) < 3:
                raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), path)
        return real(path, **options)

    monkeypatch.setattr(os, "stat", stale)
    assert Folder(tmp_path).exists("file") and len(calls) == 3
    assert not Folder(tmp_path).exists("other") and not Folder(tmp_path).exists("file/below")


@pytest.mark.parametrize("number", [errno.EACCES, errno.EPERM, errno.ENOTCONN, errno.ESHUTDOWN, errno.ECONNRESET])
def test_a_checkpoint_that_may_not_be_looked_at_is_not_taken_for_unfinished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    monkeypatch.setattr(retries, "RETRY_AFTER_S", ())
    save(Checkpoints(Folder(tmp_path), CONFIG), 1, 2, 3)
    stat = Path.stat

    def refusing(path: Path, **options: Any) -> os.stat_result:
        if path.name == "MANIFEST.json":
            raise OSError(number, os.strerror(number), path)
        return stat(path, **options)

    again = Checkpoints(Folder(tmp_path), CONFIG)
    with monkeypatch.context() as storage:
        storage.setattr(Path, "stat", refusing)
        with pytest.raises(OSError, match=os.strerror(number)):
            again.restore()
    restored = again.restore()
    assert restored is not None and restored.step == 3


def test_a_url_whose_driver_fails_is_not_taken_for_empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Most drivers say `does not exist` of whatever they could not ask for."""
    monkeypatch.setattr(retries, "RETRY_AFTER_S", (0.0, 0.0))
    place = Folder(f"memory://{tmp_path.name}")
    save(Checkpoints(place, CONFIG), 1, 2)
    info = MemoryFileSystem.info

    def failing(driver: MemoryFileSystem, path: str, **options: Any) -> Any:
        if path.endswith("MANIFEST.json"):
            raise ConnectionResetError(errno.ECONNRESET, "reset")
        return info(driver, path, **options)

    again = Checkpoints(place, CONFIG)
    with monkeypatch.context() as storage:
        storage.setattr(MemoryFileSystem, "info", failing)
        with pytest.raises(ConnectionResetError):
            again.restore()
    restored = again.restore()
    assert restored is not None and restored.step == 2


def test_on_s3_a_damaged_checkpoint_is_set_aside_once_and_the_one_before_is_used(bucket: str) -> None:
    """A folder of a bucket is no object that could be renamed."""
    place = Folder(f"{bucket}/run")
    save(Checkpoints(place, CONFIG), 1, 2)
    tensors = "checkpoints/step-000000002/state.safetensors"
    content = bytearray(place.read(tensors))
    content[-1] ^= 1
    place.write(tensors, bytes(content))
    for _ in range(2):
        again = Checkpoints(place, CONFIG)
        restored = again.restore()
        assert restored is not None and restored.step == 1
        assert (place / "checkpoints").names() == ["damaged-step-000000002-attempt-2", "step-000000001"]
    assert sorted((place / "checkpoints/damaged-step-000000002-attempt-2").sizes()) == [
        "MANIFEST.json", "state.json", "state.safetensors",
    ]  # fmt: skip


def test_where_the_number_of_starts_is_gone_names_tell_it(place: str) -> None:
    """Also by what was set aside, whose name is taken."""
    folder = Folder(place)
    save(Checkpoints(folder, CONFIG), 1)
    save(Checkpoints(folder, CONFIG), 2)
    folder.remove("attempt.json")
    assert Checkpoints(folder, CONFIG).attempt.number == 3
    folder.write("checkpoints/step-000000002-attempt-2/state.json", b"{}")
    folder.write("checkpoints/damaged-step-000000002-attempt-2-attempt-4/state.json", b"{}")
    again = Checkpoints(folder, CONFIG)
    assert again.attempt.number == 4
    restored = again.restore()
    assert restored is not None and restored.step == 1
    assert folder.exists("checkpoints/damaged-step-000000002-attempt-2-attempt-4-again/MANIFEST.json")
    folder.remove("attempt.json")
    assert Checkpoints(folder, CONFIG).attempt.number == 5


def test_two_that_start_at_once_do_not_both_write(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second reads the attempt's number before the first has written its own, as it can where there is no lock."""
    second: list[Checkpoints] = []
    write = Folder.write_json

    def late(folder: Folder, name: str, value: Any) -> None:
        monkeypatch.setattr(Folder, "write_json", write)
        second.append(Checkpoints(Folder(place), CONFIG))
        folder.write_json(name, value)

    monkeypatch.setattr(Folder, "write_json", late)
    first = Checkpoints(Folder(place), CONFIG)
    assert first.attempt.number == second[0].attempt.number == 1
    save(first, 1)
    with pytest.raises(Superseded, match="attempt 1 of this run has taken over from attempt 1 of the same moment"):
        save(second[0], 2)
    assert (Folder(place) / "checkpoints").names() == ["step-000000001"]


@pytest.mark.parametrize("how", ["flipped", "error"])
@pytest.mark.parametrize("rank", [0, 1])
def test_ranks_agree_where_one_of_them_cannot_read_what_is_whole(tmp_path: Path, ranks, how: str, rank: int) -> None:
    save(Checkpoints(Folder(tmp_path), CONFIG), 1, 2)
    values = {"location": str(tmp_path), "how": how, "rank": rank}
    first, second = ranks.run("restore_where_storage_fails", values)
    assert first == second
    kind, told = first
    if (how, rank) == ("error", 0):
        assert kind == "OSError" and "Input/output error" in told
    else:
        reason = "what was read does not match its hash" if how == "flipped" else "Input/output error"
        assert kind == "Transient" and f"rank {rank} could not read it ({reason})" in told and "\n" not in told
    assert (Folder(tmp_path) / "checkpoints").names() == ["step-000000001", "step-000000002"], "nothing is set aside"
    answers = ranks.run("restore_where_storage_fails", {**values, "how": "error", "times": 3})
    assert answers == [("restored", (2, 2.0))] * 2
