"""Whatever storage does while a checkpoint is written, a whole one is there, and what is restored is exact."""

import errno
import os
import resource
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from clusters import checkpoint_files, checkpoint_writer, retries, tracking
from clusters.attempt import Superseded
from clusters.checkpoint import CheckpointConfig, Checkpoints
from clusters.config import InputError, Transient
from clusters.storage import Folder
from tests.faulty_storage import FaultyFolder, Script, fails

CONFIG = CheckpointConfig(keep=2, timeout_s=120)
ROOT = Path(__file__).parents[1]


def state(value: float) -> dict[str, Any]:
    weight = torch.full((5, 3), value)
    return {"weight": weight, "optimizer": {0: {"m": weight[0] + 0.5, "step": int(value)}}, "lr": value / 7}


def save(checkpoints: Checkpoints, *steps: int) -> None:
    for step in steps:
        checkpoints.save(step, state(float(step)))
    checkpoints.wait()


def failure_of(checkpoints: Checkpoints) -> str | None:
    """Why what was saved last is not on disk, once its writing has ended."""
    try:
        checkpoints.wait()
    except InputError as error:
        return str(error)
    return None


def restored_step(location: str) -> int:
    """The step that a new start restores, of which every value is checked."""
    restored = Checkpoints(Folder(location), CONFIG).restore()
    assert restored is not None
    expected = state(float(restored.step))
    assert torch.equal(restored.state["weight"], expected["weight"])
    assert torch.equal(restored.state["optimizer"][0]["m"], expected["optimizer"][0]["m"])
    assert restored.state["optimizer"][0]["step"] == restored.step and restored.state["lr"] == expected["lr"]
    return restored.step


@pytest.fixture(params=["local", "url"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path) if request.param == "local" else f"memory://{tmp_path.name}"


def test_a_full_disk_at_any_call_of_a_save_leaves_a_whole_checkpoint_and_the_next_save_works(place: str) -> None:
    call, outcomes = 0, set()
    while True:
        call += 1
        location, script = f"{place}/{call}", Script()
        checkpoints = Checkpoints(FaultyFolder(location, script), CONFIG)
        save(checkpoints, 1, 2)
        begun = Folder(location).read("attempt.json")
        script.at(call, fails())
        checkpoints.save(3, state(3.0))
        failure = failure_of(checkpoints)
        if failure is not None:
            assert "step 3 could not be written" in failure and "No space left" in failure
            assert restored_step(location) == 2
            assert "step-000000003" not in (Folder(location) / "checkpoints").names(), "what was begun takes room"
            outcomes.add("failed")
        else:
            assert restored_step(location) == 3
            outcomes.add("removing failed" if script.fired else "none")
        if not script.fired:
            break
        assert script.fired == 1
        script.at(0, fails())
        Folder(location).write("attempt.json", begun)  # as if nobody had looked
        save(checkpoints, 4)
        assert restored_step(location) == 4
    assert call > (10 if Folder(place).path else 8)
    assert outcomes == {"failed", "removing failed", "none"}


def test_a_real_limit_of_file_size_at_any_byte_leaves_a_whole_checkpoint(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The system's own refusal (EFBIG), of which Python's file and its flush know in different places."""
    unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
    largest = 0
    for limit in range(0, 4096, 61):
        location = str(tmp_path / str(limit))
        checkpoints = Checkpoints(Folder(location), CONFIG)
        save(checkpoints, 1)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, unlimited[1]))
        try:
            checkpoints.save(2, state(2.0))
            failure = failure_of(checkpoints)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
        if failure is None:
            break
        assert os.strerror(errno.EFBIG) in failure
        assert restored_step(location) == 1
        largest = limit
    assert largest > 200, "the limit was met within the largest file"
    assert restored_step(location) == 2
    assert "could not be written" in capsys.readouterr().out


def test_a_kill_at_any_call_of_a_save_leaves_a_whole_checkpoint(tmp_path: Path) -> None:
    call = 0
    while True:
        call += 1
        location = f"{tmp_path}/{call}"
        child = os.fork()
        if child == 0:
            try:
                script = Script()
                checkpoints = Checkpoints(FaultyFolder(location, script), CONFIG)
                save(checkpoints, 1, 2)
                script.at(call, lambda: os.kill(os.getpid(), signal.SIGKILL))
                save(checkpoints, 3)
                os._exit(0)
            finally:
                os._exit(3)
        _, status = os.waitpid(child, 0)
        if os.WIFEXITED(status):
            assert os.WEXITSTATUS(status) == 0
            break
        assert os.WTERMSIG(status) == signal.SIGKILL
        before = checkpoint_files.names(Folder(location) / "checkpoints")
        assert restored_step(location) == before[-1].step in (2, 3)
    assert call > 10


def test_training_goes_on_past_failed_saves_and_stops_after_the_third(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    script = Script()
    checkpoints = Checkpoints(FaultyFolder(str(tmp_path), script), CONFIG)
    save(checkpoints, 1)
    script.at(lambda _: True, fails())
    for step in (2, 3):
        checkpoints.save(step, state(0.0))
        assert checkpoints._writer.idle(60)
        assert checkpoints.problem() is None
        with pytest.raises(Transient, match=f"step {step} could not be written"):  # workers may be started again
            checkpoints.wait()
    said = capsys.readouterr().out
    assert said.count("the training goes on") == 2 and f"{tmp_path}/checkpoints: No space left on device" in said
    checkpoints.save(4, state(0.0))
    with pytest.raises(
        InputError, match=r"step 4 could not be written .* nor could the 2 before it; make room"
    ) as told:
        checkpoints.wait()
    assert "\n" not in str(told.value)
    assert type(checkpoints.problem()) is InputError
    assert restored_step(str(tmp_path)) == 1


def test_storage_that_fails_twice_and_then_works_is_said_and_costs_nothing(
    place: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(retries, "RETRY_AFTER_S", (0.0, 0.0, 0.0))
    script = Script()
    checkpoints = Checkpoints(FaultyFolder(place, script), CONFIG)
    script.at(lambda call: call in (2, 4), fails(errno.EIO))
    save(checkpoints, 1)
    assert script.fired == 2
    assert capsys.readouterr().out.count("trying again") in (1, 2)
    assert restored_step(place) == 1


def test_storage_that_stalls_holds_nobody_up_but_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(checkpoint_writer, "PATIENCE_S", 0.2)
    script, goes_on = Script(), threading.Event()
    config = CheckpointConfig(keep=2, every_steps=1, timeout_s=0.2)
    monkeypatch.setattr("clusters.checkpoint.ROUND_S", 0.1)
    checkpoints = Checkpoints(FaultyFolder(str(tmp_path), script), config)
    assert checkpoints.due(1)
    checkpoints.save(1, state(1.0))
    assert checkpoints._writer.idle(60)
    script.at(4, lambda: goes_on.wait(60))
    checkpoints.save(2, state(2.0))
    assert not checkpoints.due(3)
    assert not checkpoints.due(4)
    told = f"the checkpoint of step 2 is still being written to {tmp_path}/checkpoints"
    assert capsys.readouterr().out.count(told) == 1
    with pytest.raises(InputError, match=rf"{told}, .* checkpoint.timeout_s"):
        checkpoints.wait()
    assert script.fired == 1
    assert restored_step(str(tmp_path)) == 1
    goes_on.set()
    assert checkpoints._writer.idle(60)


def test_rank_0_keeps_the_others_waiting_for_half_as_long_as_they_do_at_most(tmp_path: Path) -> None:
    """Or slow storage would look like a dead rank, again after each restart."""
    script, goes_on = Script(), threading.Event()
    config = CheckpointConfig(keep=2, every_steps=1, timeout_s=3000)
    checkpoints = Checkpoints(FaultyFolder(str(tmp_path), script), config, collective_timeout_s=0.4)
    script.at(1, lambda: goes_on.wait(60))
    checkpoints.save(1, state(1.0))
    assert not checkpoints.due(2)
    checkpoints.save(2, state(2.0))
    assert script.fired == 1
    told = r"step 1 is still being written .* for which 0.2 s were waited; .* and cluster.timeout_s to twice as much"
    with pytest.raises(InputError, match=told):
        raise checkpoints.problem() or AssertionError
    goes_on.set()
    assert checkpoints._writer.idle(60)


def test_python_ends_though_storage_never_answers(tmp_path: Path) -> None:
    script = f"""
import threading, torch
from clusters.checkpoint import CheckpointConfig, Checkpoints
from tests.faulty_storage import FaultyFolder, Script
script = Script()
with Checkpoints(FaultyFolder({str(tmp_path)!r}, script), CheckpointConfig(timeout_s=0.1)) as checkpoints:
    script.at(2, lambda: threading.Event().wait())
    checkpoints.save(1, {{"weight": torch.ones(3)}})
    raise ValueError("a mistake in a step")
"""
    ended = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=280)
    assert ended.returncode == 1
    assert "the end waits for it" in ended.stdout
    assert ended.stderr.rstrip().endswith("a mistake in a step")
    assert Checkpoints(Folder(tmp_path), CONFIG).restore() is None


def test_what_is_saved_is_the_state_of_its_step_though_training_goes_on(tmp_path: Path) -> None:
    """Also where memory is used again for the next save; and an error in the training leaves a whole checkpoint."""
    script, goes_on = Script(), threading.Event()
    moving = state(1.0)
    checkpoints = Checkpoints(FaultyFolder(str(tmp_path), script), CONFIG)
    with pytest.raises(ArithmeticError), checkpoints:  # noqa: PT012
        script.at(1, lambda: goes_on.wait(60))
        for step in (1, 2):
            checkpoints.save(step, moving)
            moving["weight"] += 1
            moving["optimizer"][0]["m"] += 1
            moving["optimizer"][0]["step"] += 1
            moving["lr"] = state(step + 1.0)["lr"]
            goes_on.set()
        raise ArithmeticError
    assert script.fired == 1
    assert restored_step(str(tmp_path)) == 2
    (tmp_path / "checkpoints/step-000000002/state.json").unlink()
    assert restored_step(str(tmp_path)) == 1


def test_a_stalled_writer_that_wakes_beside_its_replacement_does_no_harm(place: str) -> None:
    """It wakes between the files of a checkpoint that its replacement has written meanwhile, of the same step."""
    script, goes_on = Script(), threading.Event()
    stalled = Checkpoints(FaultyFolder(place, script), CONFIG)
    save(stalled, 1)
    script.at(3, lambda: goes_on.wait(60))
    stalled.save(2, state(0.0))
    replacement = Checkpoints(Folder(place), CONFIG)
    assert replacement.restore() is not None
    save(replacement, 2, 3)
    goes_on.set()
    with pytest.raises(Superseded, match="attempt 2 of this run has taken over from attempt 1"):
        stalled.wait()
    assert script.fired == 1
    stalled.save(4, state(0.0))
    at = Folder(place) / "checkpoints"
    assert [str(name) for name in checkpoint_files.names(at)] == [
        "step-000000002-attempt-2",
        "step-000000003-attempt-2",
    ]
    assert [checkpoint_files.verify(at / str(name), name.step) for name in checkpoint_files.names(at)] == [None, None]
    assert restored_step(place) == 3


def test_a_writer_that_stalls_behind_its_commit_removes_nothing(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is old for it may be all that its replacement has."""
    committed, goes_on, write = threading.Event(), threading.Event(), checkpoint_files.write
    stalled = Checkpoints(Folder(place), CONFIG)
    save(stalled, 1, 2)

    def stalls(*given: Any) -> None:
        write(*given)
        committed.set()
        assert goes_on.wait(60)

    monkeypatch.setattr(checkpoint_files, "write", stalls)
    stalled.save(3, state(0.0))
    assert committed.wait(60)
    Checkpoints(Folder(place), CONFIG)
    goes_on.set()
    with pytest.raises(Superseded, match="attempt 2 of this run has taken over from attempt 1"):
        stalled.wait()
    assert [name.step for name in checkpoint_files.names(Folder(place) / "checkpoints")] == [1, 2, 3]


def test_names_and_not_file_times_say_which_checkpoint_is_the_newest(tmp_path: Path) -> None:
    save(Checkpoints(Folder(tmp_path), CONFIG), 1, 2, 3)
    for file in (tmp_path / "checkpoints").rglob("*"):
        os.utime(file, (1e9, 1e9))
    os.utime(tmp_path / "checkpoints/step-000000002/state.json", (2**31, 2**31))
    assert restored_step(str(tmp_path)) == 3


@pytest.mark.parametrize("kind", ["flipped", "truncated", "file missing", "MANIFEST missing"])
def test_two_ranks_pass_over_a_damaged_newest_and_the_log_names_both(tmp_path: Path, ranks, kind: str) -> None:
    save(Checkpoints(Folder(tmp_path), CONFIG), 1, 2)
    newest = tmp_path / "checkpoints/step-000000002"
    file = newest / "state.safetensors"
    content = bytearray(file.read_bytes())
    content[-3] ^= 4
    {
        "flipped": lambda: file.write_bytes(content),
        "truncated": lambda: file.write_bytes(content[:-1]),
        "file missing": file.unlink,
        "MANIFEST missing": (newest / "MANIFEST.json").unlink,
    }[kind]()
    assert ranks.run("agree_on_a_checkpoint", str(tmp_path)) == [(1, 1.0), (1, 1.0)]
    said = (tmp_path / tracking.LOG).read_text()
    assert "going on from step-000000001, passing over step-000000002" in said
    aside = [name.name for name in (tmp_path / "checkpoints").glob("damaged-step-000000002-attempt-2")]
    assert bool(aside) == (kind != "MANIFEST missing")
    assert all(name in said for name in aside)


def test_all_ranks_are_told_that_rank_0_could_not_save(tmp_path: Path, ranks) -> None:
    first, second = ranks.run("save_past_an_obstacle", str(tmp_path))
    assert first == second
    assert "the checkpoint of step 2 could not be written" in first
    assert ranks.run("agree_on_a_checkpoint", str(tmp_path)) == [(1, 1.0), (1, 1.0)]
