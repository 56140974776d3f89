"""Told to leave, a run saves its step; killed, it leaves no process behind. The same command goes on."""

import functools
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
import yaml

from clusters import launch, leaving, scaling, termination
from clusters.config import InputError
from clusters.storage import Folder
from data.dataset import Dataset
from pretrain.config import PretrainConfig
from pretrain.run import pretrain
from pretrain.training import Training
from tests.fault_runs import ROOT, assert_same_state, last_state, recipe, wait_for


def ended(values: dict[str, Any]) -> None:
    pretrain(PretrainConfig.model_validate(values))


@pytest.fixture(scope="module")
def undisturbed(synthetic_dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("undisturbed") / "run"
    ended(recipe(synthetic_dataset, run, num_workers=0, steps=40))
    return run


def start(values: dict[str, Any], folder: Path) -> subprocess.Popen[str]:
    (folder / "recipe.yaml").write_text(yaml.safe_dump(values))
    command = [sys.executable, "-m", "pretrain", str(folder / "recipe.yaml")]
    alone = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, cwd=ROOT, env=alone, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, process_group=0,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),  # or the shell may have it ignored
    )  # fmt: skip


def test_a_run_that_is_told_to_leave_saves_its_step_and_ends_with_143(
    synthetic_dataset: Dataset, undisturbed: Path, tmp_path: Path
) -> None:
    """`kill PID`, in the middle of steps that leave no checkpoint by themselves."""
    run = tmp_path / "run"
    values = recipe(synthetic_dataset, run, num_workers=0, steps=40, checkpoint={"every_s": 1e6})
    process = start(values, tmp_path)
    wait_for(lambda: (run / "1-simclr/metrics.jsonl").exists(), "the first record")
    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=240)
    assert process.returncode == 143, said
    (saved,) = (run / "1-simclr/checkpoints").glob("step-*")
    step, total = int(saved.name[5:]), values["stages"][0]["steps"]
    assert 0 < step < total, "it was told too late"
    assert f"1-simclr: told to leave (rank 0: SIGTERM); saved at step {step} of {total}" in said
    assert "Traceback" not in said
    ended(values)
    assert_same_state(run, undisturbed)
    records = [json.loads(line) for line in (run / "1-simclr/metrics.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records if "loss" in record] == list(range(1, total + 1))


def test_a_killed_run_leaves_no_process_and_no_lock(
    synthetic_dataset: Dataset, undisturbed: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    values = recipe(synthetic_dataset, run, num_workers=0, steps=40, loader={"num_processes": 1})
    process = start(values, tmp_path)
    wait_for(lambda: any((run / "1-simclr/checkpoints").glob("step-*/MANIFEST.json")), "a checkpoint")
    with pytest.raises(InputError, match=f"another run is at work in this folder .process {process.pid}, host"):
        ended(values)
    family = psutil.Process(process.pid).children(recursive=True)
    assert family, "there is no loader process"
    process.kill()
    process.communicate()
    _, alive = psutil.wait_procs(family, timeout=30)
    assert not [member for member in alive if member.status() != psutil.STATUS_ZOMBIE]
    assert last_state(run).step < values["stages"][0]["steps"], "it was killed too late"
    ended(values)
    assert_same_state(run, undisturbed)


def test_two_ranks_leave_after_the_same_step_where_one_is_told(
    synthetic_dataset: Dataset, tmp_path: Path, ranks
) -> None:
    values = recipe(synthetic_dataset, tmp_path / "run", num_workers=0, checkpoint={"every_s": 1e6}, steps=9)
    values["tracking"]["every_steps"] = 4
    assert ranks.run("told_to_leave", values) == [143, 143]
    assert last_state(tmp_path / "run").step == 4, "the first step at which ranks look together"


def test_told_to_leave_at_its_last_step_a_stage_of_which_most_was_left_out_still_hands_nothing_on(
    synthetic_dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is left to do when it is started again, and it must know what was done."""
    values = recipe(synthetic_dataset, tmp_path / "run", num_workers=0, steps=4, compute={"on_nonfinite": "skip"})
    step_of = Training.step

    def step(training: Training, number: int, views: torch.Tensor, *groups: torch.Tensor) -> Any:
        if number == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return step_of(training, number, views * (1.0 if number == 1 else torch.nan), *groups)

    with monkeypatch.context() as at_first:
        at_first.setattr(termination, "_notice", None)
        at_first.setattr(Training, "step", step)
        with pytest.raises(termination.Stopped):
            ended(values)
    assert last_state(tmp_path / "run").step == 4
    for _ in range(2):
        with pytest.raises(InputError, match="3 of 4 steps were not finite and left out"):
            ended(values)
    assert not (tmp_path / "run/1-simclr/encoder").exists()


def test_outside_of_training_sigterm_does_what_it_did(monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _: heard.append(number))
    try:
        monkeypatch.setattr(termination, "_notice", None)
        with termination.heeding():
            os.kill(os.getpid(), signal.SIGTERM)
            assert termination.notice() == "SIGTERM" and not heard
        os.kill(os.getpid(), signal.SIGTERM)
        assert heard == [signal.SIGTERM]
        termination.listen()
        os.kill(os.getpid(), signal.SIGTERM)
        assert heard == [signal.SIGTERM] * 2, "listened to, not heeded"
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_driver_passes_its_notice_on_by_the_run_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first to the workers, whose rank 0 finds it; the second ends the driver."""
    monkeypatch.setattr(termination, "_notice", None)
    monkeypatch.setattr(leaving, "LOOK_EVERY_S", 0.01)
    run, before = Folder(tmp_path), signal.getsignal(signal.SIGTERM)
    again: list[int] = []
    leaving.start(run, "launch-1")

    def told_twice() -> None:
        with leaving.passing_on(run, "launch-1", heeded=True):
            os.kill(os.getpid(), signal.SIGTERM)
            wait_for(lambda: termination.notice() == "SIGTERM", "the note to be found")
            assert leaving.told_to_leave(run, "launch-1") == "SIGTERM" and not leaving.told_to_leave(run, "launch-2")
            os.kill(os.getpid(), signal.SIGTERM)  # the same again, as one that stands between passes it on
            monkeypatch.setattr(leaving, "SAME_NOTICE_S", 0.0)
            again.append(signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(termination.Stopped) as stopped:
        told_twice()
    assert stopped.value.code == 143 and again
    assert signal.getsignal(signal.SIGTERM) == before
    leaving.leave(run, "launch-1")  # returns: all ranks do, and the driver ends


def test_a_worker_that_left_as_it_was_told_is_no_failure(tmp_path: Path) -> None:
    """Once for each note: what fails after it counts."""
    from ray.train import FailureConfig
    from ray.train.v2._internal.execution.failure_handling import FailureDecision
    from ray.train.v2.api.exceptions import WorkerGroupError

    run = Folder(tmp_path)
    policy = leaving.failure_policy(run, "launch-1", FailureConfig(max_failures=1))
    gone = WorkerGroupError("gone", {1: RuntimeError("gone")})
    for _ in range(3):
        leaving.notes(run).write(leaving.left("launch-1"), b"")
        assert policy.make_decision(gone) == FailureDecision.RETRY
    leaving.notes(run).write(leaving.left("launch-2"), b"")
    assert [policy.make_decision(gone) for _ in range(2)] == [FailureDecision.RETRY, FailureDecision.RAISE]
    told = "failed on rank 1: gone; the workers are started again (restart 1 of 1 without a newer checkpoint)"
    assert (tmp_path / "log.txt").read_text() == f"{told}\n"


def test_failures_are_counted_since_the_newest_checkpoint(tmp_path: Path) -> None:
    """One that a later start has only written again is no newer one."""
    from ray.train import FailureConfig
    from ray.train.v2._internal.execution.failure_handling import FailureDecision
    from ray.train.v2.api.exceptions import WorkerGroupError

    run = Folder(tmp_path)
    policy = leaving.failure_policy(run, "launch-1", FailureConfig(max_failures=2))
    gone = WorkerGroupError("gone", {1: RuntimeError("gone")})
    saved = "1-simclr/checkpoints/step-000000100", "training/untrained/checkpoints/step-000000100"
    for stage in saved:
        assert [policy.make_decision(gone) for _ in range(2)] == [FailureDecision.RETRY] * 2
        run.write(f"{stage}/MANIFEST.json", b"{}")
    assert policy.make_decision(gone) == FailureDecision.RETRY
    run.write(f"{saved[0]}-attempt-2/MANIFEST.json", b"{}")
    run.write("1-simclr/checkpoints/step-000000200/state.json", b"{}")  # not committed
    assert [policy.make_decision(gone) for _ in range(2)] == [FailureDecision.RETRY, FailureDecision.RAISE]
    said = [line.split(" (")[1] for line in (tmp_path / "log.txt").read_text().splitlines()]
    assert said == [f"restart {n} of 2 without a newer checkpoint)" for n in (1, 2, 1, 2, 1, 2)]


def test_a_drained_node_is_heard_of_while_the_storage_does_not_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def told_to_leave(*_: object) -> str:
        raise OSError("slow down")

    kept: list[str] = []
    for name, value in {"LOOK_EVERY_S": 0.01, "DRAIN_EVERY_S": 0.0, "told_to_leave": told_to_leave}.items():
        monkeypatch.setattr(leaving, name, value)
    monkeypatch.setattr(leaving, "_is_drained", lambda: True)
    monkeypatch.setattr(termination, "keep", kept.append)
    monkeypatch.setattr(termination, "notice", lambda: kept[0] if kept else None)
    leaving._look(Folder(tmp_path), "launch-1", is_main=True)
    assert kept == ["its node is taken back"]


def test_what_a_killed_driver_left_goes_with_the_next_launch_and_hides_no_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Folder(tmp_path)
    (tmp_path / ".launch").mkdir()
    (tmp_path / ".launch/launch-0-here").touch()
    (tmp_path / ".ray/launch-0").mkdir(parents=True)
    (tmp_path / ".ray/search-0").mkdir()  # of a search, which the next one removes
    launch._tidy(run)
    assert [path.name for path in tmp_path.rglob("*")] == [".ray", "search-0"]
    (tmp_path / ".ray/launch-1").mkdir()

    def refuse(self: Folder, name: str = "") -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(Folder, "remove", refuse)
    launch._tidy(run)
    assert "is still there (Input/output error)" in capsys.readouterr().out


def test_what_workers_wait_for_is_said_now_and_then(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ray.train import FailureConfig
    from ray.train.v2._internal.exceptions import WorkerGroupStartupTimeoutError
    from ray.train.v2._internal.execution.failure_handling import FailureDecision
    from ray.train.v2.api.exceptions import ControllerError

    policy = leaving.failure_policy(Folder(tmp_path), "launch-1", FailureConfig(max_failures=0))
    waits = ControllerError(WorkerGroupStartupTimeoutError(2))
    assert {policy.make_decision(waits) for _ in range(5)} == {FailureDecision.RETRY}
    line = "there is no room for the workers yet (`ray status` tells what they wait for); the workers are started again"
    assert (tmp_path / "log.txt").read_text().splitlines() == [line]
    policy.again = 0.0
    policy.make_decision(waits)
    assert (tmp_path / "log.txt").read_text().splitlines() == [line] * 2


def test_a_driver_that_is_told_to_leave_waits_for_no_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither with so many workers nor with as many as there is room for: Ray itself would try for ever."""
    from ray.train import FailureConfig, ScalingConfig
    from ray.train.v2._internal.exceptions import WorkerGroupStartupTimeoutError
    from ray.train.v2._internal.execution.failure_handling import FailureDecision
    from ray.train.v2._internal.execution.scaling_policy import ElasticScalingPolicy, NoopDecision
    from ray.train.v2.api.exceptions import ControllerError

    run, waits = Folder(tmp_path), ControllerError(WorkerGroupStartupTimeoutError(2))
    policy = leaving.failure_policy(run, "launch-1", FailureConfig(max_failures=-1))
    monkeypatch.setattr(ElasticScalingPolicy, "make_decision_for_non_running_worker_group", lambda _: NoopDecision())
    monkeypatch.setattr("clusters.scaling.LOOK_EVERY_S", 0.0)
    told = functools.partial(leaving.told_to_leave, run, "launch-1")
    sizes = scaling.scaling_policy([2, 4], ScalingConfig(num_workers=(2, 4)), told)
    assert policy.make_decision(waits) == FailureDecision.RETRY
    assert isinstance(sizes.make_decision_for_non_running_worker_group(), NoopDecision)
    leaving.notes(run).write(leaving.note("launch-1"), b"SIGTERM")
    assert policy.make_decision(waits) == FailureDecision.RAISE
    assert sizes.make_decision_for_non_running_worker_group().num_workers == 2


def test_room_on_nodes_that_are_taken_back_is_none_and_that_of_all_others_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray reserves for the most workers, on whichever nodes: here two of three."""
    import ray

    nodes = [{"NodeID": name, "Alive": name != "dead", "Resources": {"CPU": 4.0}} for name in ("a", "b", "c", "dead")]
    reserved = {"a": {"CPU": 4.0}, "b": {"CPU": 4.0}}
    monkeypatch.setattr(ray, "nodes", lambda: nodes)
    for gone, left in (({}, ["a", "b"]), ({"c": 0}, ["a", "b"]), ({"a": 0}, ["b", "c"]), ({"a": 0, "b": 0}, ["c"])):
        monkeypatch.setattr(scaling, "draining_nodes", lambda gone=gone: gone)
        assert sorted(scaling.on_nodes_that_stay(reserved)) == left
    monkeypatch.setattr(scaling, "draining_nodes", lambda: 1 / 0)
    assert scaling.on_nodes_that_stay(reserved) == reserved, "the head is out of reach for a moment"


def test_what_fails_while_a_driver_is_told_to_leave_is_said(tmp_path: Path) -> None:
    from ray.train import FailureConfig
    from ray.train.v2._internal.execution.failure_handling import FailureDecision
    from ray.train.v2.api.exceptions import WorkerGroupError

    run = Folder(tmp_path)
    policy = leaving.failure_policy(run, "launch-1", FailureConfig(max_failures=-1))
    leaving.notes(run).write(leaving.note("launch-1"), b"SIGTERM")
    assert policy.make_decision(WorkerGroupError("", {0: RuntimeError("died")})) == FailureDecision.RAISE
    assert (
        "died, while it was told to leave: the step that it was at may not be saved"
        in (tmp_path / "log.txt").read_text()
    )


def test_a_driver_whose_workers_do_not_heed_ends_at_once(tmp_path: Path) -> None:
    run = Folder(tmp_path)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # or the shell may have it ignored
    try:
        for number, error in ((signal.SIGTERM, termination.Stopped), (signal.SIGINT, KeyboardInterrupt)):
            with pytest.raises(error), leaving.passing_on(run, "launch-1", heeded=False):
                os.kill(os.getpid(), number)
            assert not leaving.told_to_leave(run, "launch-1")
            assert signal.getsignal(signal.SIGINT) == signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)


def test_ctrl_c_to_a_driver_is_passed_on_once(tmp_path: Path) -> None:
    run = Folder(tmp_path)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)

    def interrupted_twice() -> None:
        with leaving.passing_on(run, "launch-1", heeded=True):
            os.kill(os.getpid(), signal.SIGINT)
            wait_for(lambda: leaving.told_to_leave(run, "launch-1") == "Ctrl-C", "the note")
            os.kill(os.getpid(), signal.SIGINT)

    try:
        with pytest.raises(KeyboardInterrupt):
            interrupted_twice()
    finally:
        signal.signal(signal.SIGINT, before)
    assert termination.Stopped(leaving.told_to_leave(run, "launch-1")).code == 130


def test_a_second_notice_does_not_wait_for_storage_that_stalls(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run, comes_back, write = Folder(tmp_path), threading.Event(), Folder.write

    def stalled(self: Folder, name: str, content: bytes) -> None:
        comes_back.wait(60)
        write(self, name, content)

    def told_twice() -> None:
        with leaving.passing_on(run, "launch-1", heeded=True):
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(leaving, "SAME_NOTICE_S", 0.0)
    monkeypatch.setattr(Folder, "write", stalled)
    try:
        with pytest.raises(termination.Stopped):
            told_twice()
        assert not leaving.told_to_leave(run, "launch-1"), "the note was not waited for"
    finally:
        comes_back.set()
    wait_for(lambda: leaving.told_to_leave(run, "launch-1") == "SIGTERM", "the note")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Folder, "write", full)
    with leaving.passing_on(run, "launch-2", heeded=True):
        os.kill(os.getpid(), signal.SIGTERM)
    said = capsys.readouterr().err
    assert "could not be told to save their step (No space left on device); a second SIGTERM ends them at once" in said
    assert "Traceback" not in said


@pytest.mark.parametrize("processes", [0, 1])
def test_ctrl_c_saves_the_step_first(
    synthetic_dataset: Dataset, undisturbed: Path, tmp_path: Path, processes: int
) -> None:
    """As a terminal sends it: to the processes of the loader too."""
    run, total = tmp_path / "run", 40
    values = recipe(synthetic_dataset, run, num_workers=0, steps=total, checkpoint={"every_s": 1e6})
    values["loader"] = {"num_processes": processes}
    process = start(values, tmp_path)
    wait_for(lambda: (run / "1-simclr/metrics.jsonl").exists(), "the first record")
    os.killpg(process.pid, signal.SIGINT)
    said, _ = process.communicate(timeout=240)
    assert process.returncode == 130, said
    assert "the step is saved first; a second one stops at once" in said and "Traceback" not in said
    step = last_state(run).step
    assert 0 < step < total and f"told to leave (rank 0: Ctrl-C); saved at step {step} of {total}" in said
    ended(values)
    assert_same_state(run, undisturbed)


def test_a_second_ctrl_c_stops_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(termination, "_notice", None)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)

    def interrupted_twice() -> None:
        with termination.heeding():
            os.kill(os.getpid(), signal.SIGINT)
            assert termination.notice() == "Ctrl-C" and termination.Stopped().code == 130
            os.kill(os.getpid(), signal.SIGINT)

    try:
        with pytest.raises(KeyboardInterrupt):
            interrupted_twice()
        assert signal.getsignal(signal.SIGINT) == signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
