"""Metrics are written beside the training, in order, and none is missing up to a checkpoint that is there."""

import threading
import time
from pathlib import Path

import pytest
import torch

from clusters import line_writer
from clusters.checkpoint import CheckpointConfig, Checkpoints
from clusters.storage import Folder
from clusters.tracking import METRICS, Tracker, TrackingConfig, read_metrics
from tests.faulty_storage import FaultyFolder, Script, fails


def tracked(folder: Folder) -> Tracker:
    tracker = Tracker(folder, TrackingConfig(wandb="disabled"), "test", {})
    tracker.start_section(folder, "1-simclr")
    return tracker


def test_metrics_that_a_full_disk_refuses_are_written_later(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    script = Script()
    tracker = tracked(FaultyFolder(str(tmp_path), script))
    script.at(lambda call: call in (2, 3), fails())
    for step in range(1, 6):
        tracker.log(step, {"loss": 1.0 / step})
        tracker.flush()
        if step == 2:
            with (tmp_path / METRICS).open("a") as file:
                file.write('{"step": 2, "lo')  # as far as there was room
    assert script.fired == 2
    assert [record["step"] for record in tracker.records()] == [1, 2, 3, 4, 5]
    assert capsys.readouterr().out.count("could not be written (No space left on device)") == 1


def test_a_long_file_behind_a_url_is_written_less_often(tmp_path: Path) -> None:
    """Each write reads and writes all of it: so many bytes a second at most, however long the run."""
    folder = Folder(f"memory://{tmp_path.name}")
    writer = line_writer.LineWriter(folder, METRICS, print)
    assert writer._between() == line_writer.EVERY_S
    for megabytes, seconds in ((0.1, line_writer.EVERY_S), (3, 3e6 / line_writer.BYTES_PER_S)):
        folder.write(METRICS, b"x" * int(megabytes * 1e6))
        assert writer._between() == seconds


@pytest.mark.parametrize("local", [True, False])
def test_stalled_storage_holds_up_no_metrics_and_a_checkpoint_only_with_those_of_its_steps(
    tmp_path: Path, local: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What is logged past the bound is lost, and this is said once."""
    place = str(tmp_path) if local else f"memory://{tmp_path.name}"
    monkeypatch.setattr(line_writer, "EVERY_S", 1e9)  # so that only who asks has it written at once
    monkeypatch.setattr(line_writer, "MOST_LINES", 20)
    script, goes_on = Script(), threading.Event()
    tracker = tracked(FaultyFolder(place, script))
    script.at(1, lambda: goes_on.wait(60))
    with Checkpoints(Folder(place), CheckpointConfig(), tracker.flush) as checkpoints:
        for step in range(1, 26):
            tracker.log(step, {"loss": 1.0})  # returns
            if step == 15:
                checkpoints.save(step, {"weight": torch.ones(3)})
        assert not checkpoints._writer.idle(0.3) and script.fired <= 1
        assert read_metrics(Folder(place)) == []
        goes_on.set()
        checkpoints.wait()
        assert [record["step"] for record in tracker.records()] == list(range(1, 21))
        tracker.log(26, {"loss": 1.0})
    assert [record["step"] for record in read_metrics(Folder(place))] == [*range(1, 21), 26]
    assert capsys.readouterr().out.count("20 lines wait for its storage") == 1
    restored = Checkpoints(Folder(place), CheckpointConfig()).restore()
    assert restored is not None and restored.step == 15


def test_metrics_on_a_url_are_written_in_batches_and_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(line_writer, "EVERY_S", 1e9)
    script, place = Script(), f"memory://{tmp_path.name}"
    tracker = tracked(FaultyFolder(place, script))
    for batch in range(3):
        for step in range(100):
            tracker.log(100 * batch + step, {"loss": 1.0})
            time.sleep(0.1 if step in (0, 50) else 0)  # in which more than one could be written
        assert [record["step"] for record in tracker.records()] == list(range(100 * batch + 100))
    assert script.calls == 2 * 3, "an append, and in it the writing of the whole file"


def test_a_worker_that_was_replaced_and_wakes_records_no_more(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    tracker = Tracker(folder, TrackingConfig(wandb="disabled"), "test", {})
    checkpoints = Checkpoints(folder, CheckpointConfig(), tracker.flush)
    tracker.start_section(folder, "1-simclr", permitted=checkpoints.attempt.is_newest)
    for step in (1, 2):
        tracker.log(step, {"loss": 1.0})
        tracker.flush()
        Checkpoints(folder, CheckpointConfig())  # another start
    assert [record["step"] for record in tracker.records()] == [1]
