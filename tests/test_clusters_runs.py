"""Runs listed from their folders, here and at a URL, as the tracker and the checkpoints write them."""

import os
import signal
import time
from pathlib import Path
from socket import gethostname
from typing import Any, Literal

import pytest

from clusters import runs
from clusters.checkpoint import CheckpointConfig, Checkpoints
from clusters.checkpoint_listing import list_checkpoints
from clusters.config import InputError
from clusters.run_lock import LOCK, run_lock
from clusters.storage import Folder
from clusters.tracking import Tracker, TrackingConfig


def stage(run: Folder, name: str, records: list[tuple[int, dict[str, float]]]) -> tuple[Tracker, Checkpoints]:
    tracker = Tracker(run, TrackingConfig(wandb="disabled"), "test", {})
    tracker.start_section(run / name, name)
    for step, metrics in records:
        tracker.log(step, metrics)
    checkpoints = Checkpoints(run / name, CheckpointConfig(), tracker.flush)
    checkpoints.save(records[-1][0], {"step": records[-1][0]})
    checkpoints.wait()
    return tracker, checkpoints


@pytest.fixture(params=["local", "url"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> Folder:
    return Folder(tmp_path / "runs" if request.param == "local" else f"memory://{tmp_path.name}/runs")


def test_each_run_stands_in_a_line(root: Folder) -> None:
    ended = root / "ham/pretrain"
    stage(ended, "1-simclr", [(10, {"loss": 5.0, "probe/knn_auroc": 0.7}), (20, {"loss": 4.0})])
    (ended / "1-simclr").write_json("finished.json", {"steps": 20, "encoder": "x"})
    ended.write_json("encoder/config.json", {})
    going = root / "chest"
    stage(going, "1-simclr", [(5, {"loss": 6.0})])
    (going / "1-simclr").write_json("finished.json", {"steps": 5, "encoder": "x"})
    tracker, _ = stage(going, "2-micle", [(7, {"loss": 3.25}), (8, {"loss": float("nan")})])
    (going / "2-micle").write_json("config.json", {"identity": {"stage": {"steps": 90}}})
    tracker.alarm(8, "divergence", "the loss is not finite")
    tracker.flush()
    (ended / "1-simclr/checkpoints").write("damaged-step-000000009-attempt-1/state.json", b"{}")
    (going / "2-micle/checkpoints").write("damaged-step-000000007-attempt-1/state.json", b"{}")
    root.write_json("ham/finetune/results.json", {})
    root.write_json("ham/finetune/config.json", {"identity": {}})
    root.write_json("ham/finetune/wandb/run/files/results.json", {})  # nothing that W&B keeps is a run

    with run_lock(going):
        found = runs.list_runs(root, time.time())

    chest, finetune, pretrain = found
    assert (chest.name, chest.stage, chest.step, chest.loss, chest.knn) == ("chest", "2-micle", "8/90", 3.25, None)
    assert chest.health == "active, divergence at step 8, 1 damaged checkpoint set aside"
    assert (finetune.name, finetune.health) == ("ham/finetune", "finished")
    assert (pretrain.stage, pretrain.step, pretrain.loss, pretrain.knn) == ("1-simclr", "20/20", 4.0, 0.7)
    assert pretrain.health == "finished, 1 damaged checkpoint set aside"
    assert pretrain.size_bytes == sum(ended.sizes().values())
    assert chest.age_s is not None and 0 <= chest.age_s < 60
    later = runs.list_runs(root, time.time() + 7200)[0]
    assert later.health.startswith("stopped")
    assert later.age_s is not None and later.age_s > 7000


def test_a_clock_that_was_put_back_does_not_hide_the_stage_that_a_run_is_in(
    root: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = time.time
    stage(root, "1-simclr", [(5, {"loss": 6.0})])
    monkeypatch.setattr(time, "time", lambda: now() - 3600)
    stage(root, "2-micle", [(1, {"loss": 3.0})])
    (found,) = runs.list_runs(root, time.time())
    assert (found.stage, found.loss) == ("2-micle", 3.0)
    assert found.age_s is not None and 0 <= found.age_s < 60


def test_the_table_has_plain_columns(root: Folder, capsys: pytest.CaptureFixture[str]) -> None:
    stage(root / "ham", "1-simclr", [(1, {"loss": 5.0})])
    runs.run([root.location])
    head, line = capsys.readouterr().out.splitlines()
    assert head.split() == ["RUN", "STAGE", "STEP", "LOSS", "KNN", "AGE", "SIZE", "HEALTH"]
    assert line.split()[:5] == ["ham", "1-simclr", "1", "5", "-"]
    assert line.index("1-simclr") == head.index("STAGE")


def test_of_long_metrics_only_the_end_is_read(root: Folder) -> None:
    folder = root / "1-simclr"
    folder.write_json("attempt.json", {"attempt": 1})
    wide = '{{"step": {}, "time": 1.0, "loss": 2.0{}}}\n'
    lines = [
        wide.format(n, ', "probe/knn_auroc": 0.6' if n == 4000 else ', "x": "' + "-" * 60 + '"') for n in range(9000)
    ]
    folder.write("metrics.jsonl", "".join([*lines, '{"step": 9001, "ti']).encode())  # torn by a kill
    found = runs.list_runs(root, 2.0)[0]
    assert (found.name, found.step, found.knn) == ("", "8999", 0.6)


def test_what_other_programs_leave_is_no_run(root: Folder) -> None:
    stage(root / "ham", "1-simclr", [(1, {"loss": 5.0})])
    (root / "ham/1-simclr/checkpoints").write("damaged-step-000000001-attempt-1/state.json", b"{}")
    root.write("other/metrics.jsonl", b'{"step": 3, "loss": 1.0}\n')
    root.write("nested/other/metrics.jsonl", b'{"step": 3, "loss": 1.0}\n')
    root.write_json("nested/other/config.json", {"lr": 0.1})
    root.write_json("theirs/finished.json", {"steps": 3})
    root.write_json("hf/results.json", {"accuracy": 0.9})
    root.write_json("hf/config.json", {"model_type": "vit"})
    root.write("torn/results.json", b"{}")
    root.write("torn/config.json", b"{")
    found = runs.list_runs(root, time.time())
    assert [one.name for one in found] == ["ham"]


@pytest.mark.parametrize("name", ["ham", "mytraining", "training", "deep/training"])
def test_a_run_keeps_its_name(root: Folder, name: str) -> None:
    stage(root / name, "1-simclr", [(1, {"loss": 5.0})])
    stage(root / name, "training/pretrained", [(1, {"loss": 5.0})])
    assert [(one.name, one.stage) for one in runs.list_runs(root, time.time())] == [(name, "1-simclr")]


@pytest.mark.parametrize(
    ("lock", "told"),
    [
        (None, "stopped"),  # an end that was orderly takes the lock away
        ({"process": 1 << 30, "host": gethostname()}, "stopped"),  # killed here
        ({"process": os.getpid(), "host": gethostname()}, "active"),  # somebody's number by now, or not to be seen
        ({"process": 1 << 30, "host": "node7"}, "active"),
        ({"process": 1 << 30}, "active"),  # strict privacy names no host
    ],
)
def test_a_lock_tells_whether_a_run_is_at_work(tmp_path: Path, lock: dict[str, Any] | None, told: str) -> None:
    """`active` for a quarter of an hour where nobody can tell."""
    root, run = Folder(tmp_path), Folder(tmp_path / "ham")
    stage(run, "1-simclr", [(1, {"loss": 5.0})])
    if lock is not None:
        run.write_json(LOCK, lock)
    before = sorted((path, path.stat().st_mtime_ns) for path in tmp_path.rglob("*"))
    assert runs.list_runs(root, time.time())[0].health == told
    assert runs.list_runs(root, time.time() + 7200)[0].health == "stopped"
    assert sorted((path, path.stat().st_mtime_ns) for path in tmp_path.rglob("*")) == before


@pytest.mark.parametrize("privacy", ["normal", "strict"])
def test_a_process_at_work_is_seen_until_it_is_killed(tmp_path: Path, privacy: Literal["normal", "strict"]) -> None:
    run, (reader, writer) = Folder(tmp_path / "ham"), os.pipe()
    stage(run, "1-simclr", [(1, {"loss": 5.0})])
    holder = os.fork()
    if holder == 0:
        with run_lock(run, privacy):
            os.write(writer, b"held")
            signal.pause()
    assert os.read(reader, 4) == b"held"
    try:
        found = runs.holder_of(run)
        silent = runs.list_runs(Folder(tmp_path), time.time() + 7200)
    finally:
        os.kill(holder, signal.SIGKILL)
        os.waitpid(holder, 0)
    assert found is not None and found.is_certain
    assert f"process {holder}" in found.name
    assert silent[0].health == "active"
    later = runs.holder_of(run)
    assert later is None if privacy == "normal" else later is not None and not later.is_certain


def test_without_a_list_of_locks_the_time_of_the_last_record_decides(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runs, "LOCKS", tmp_path / "no-such-list")
    run = Folder(tmp_path / "ham")
    stage(run, "1-simclr", [(1, {"loss": 5.0})])
    with run_lock(run):
        found = [runs.list_runs(Folder(tmp_path), time.time() + later_s)[0].health for later_s in (0, 7200)]
    assert found == ["active", "stopped"]


def test_a_trial_of_a_search_holds_no_lock_of_its_own(root: Folder) -> None:
    stage(root / "search/runs/lr-1", "training/pretrained", [(1, {"loss": 5.0})])
    assert [one.health for one in runs.list_runs(root, time.time())] == ["active"]


def test_where_there_is_nothing_it_says_so(root: Folder) -> None:
    with pytest.raises(InputError, match="is not there"):
        runs.run([(root / "gone").location])
    root.write("note.txt", b"x")
    with pytest.raises(InputError, match="holds no run"):
        runs.run([root.location])


def test_checkpoints_are_listed_with_what_is_wrong_and_left_as_they_are(tmp_path: Path) -> None:
    checkpoints = Checkpoints(Folder(tmp_path), CheckpointConfig(keep=9))
    for step in (1, 2, 3, 4, 5):
        checkpoints.save(step, {"numbers": list(range(step))})
    checkpoints.wait()
    at = tmp_path / "checkpoints"
    flipped = at / "step-000000002/state.json"
    flipped.write_bytes(flipped.read_bytes().replace(b"1", b"7", 1))
    (at / "step-000000003/state.safetensors").unlink()
    (at / "step-000000004/MANIFEST.json").write_bytes(b'{"step"')
    (at / "step-000000005/MANIFEST.json").unlink()
    before = sorted((path, path.stat().st_mtime_ns) for path in tmp_path.rglob("*"))

    said = {one.step: one.problem for one in list_checkpoints(Folder(tmp_path))}

    assert list(said) == [5, 4, 3, 2, 1]
    assert said[1] is None
    assert said[2] == "state.json does not match its hash"
    assert said[3] == "state.safetensors is missing"
    assert said[4] == "MANIFEST.json cannot be read"
    assert said[5] == "has no MANIFEST.json: it is being written, or its saving was cut off"
    assert sorted((path, path.stat().st_mtime_ns) for path in tmp_path.rglob("*")) == before
