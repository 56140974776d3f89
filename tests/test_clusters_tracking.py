"""What a run says: metrics.jsonl, a W&B offline run read back from its file, and lines for a person."""

import json
import os
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import psutil
import pytest
import torch
import wandb
from wandb.proto import wandb_internal_pb2

from clusters.privacy import OFFLINE as OFFLINE_VARIABLES
from clusters.storage import Folder
from clusters.tracking import (
    LogFollower,
    Progress,
    Tracker,
    TrackingConfig,
    duration,
    read_metrics,
    recipe_name,
    say,
    say_into,
)
from clusters.wandb_run import Made
from pretrain.config import PretrainConfig
from pretrain.nonfinite import NotFinite

OFFLINE = TrackingConfig(wandb="offline", project="manyview-tests")
OFF = TrackingConfig(wandb="disabled", every_s=0.001)


def wandb_records(path: Path) -> Iterator[Any]:
    """The records of a .wandb file: a LevelDB log of 32 KiB blocks behind a header of 7 bytes."""
    content = path.read_bytes()
    position, parts = 7, b""
    while position + 7 <= len(content):
        left = 32768 - position % 32768
        if left < 7:
            position += left
            continue
        length, kind = struct.unpack("<HB", content[position + 4 : position + 7])
        parts += content[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # a whole record, or the last part of one
            record = wandb_internal_pb2.Record()  # type: ignore[attr-defined]
            record.ParseFromString(parts)
            yield record
            parts = b""


def records(run: Path, kind: str) -> Iterator[Any]:
    for path in sorted(run.glob("wandb/offline-run-*/*.wandb")):
        for record in wandb_records(path):
            if record.HasField(kind):
                yield getattr(record, kind)


def wait_until_written(run: Path) -> None:
    """W&B's own process may still write when `finish` has returned; its last record says that the run has ended."""
    deadline = time.monotonic() + 60
    while not any(True for _ in records(run, "exit")):
        assert time.monotonic() < deadline, "W&B did not write the end of the run"
        time.sleep(0.1)


def numbers(items: Any) -> dict[str, Any]:
    return {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items}


def histories(run: Path) -> list[dict[str, float]]:
    return [numbers(history.item) for history in records(run, "history")]


def run_ids(run: Path) -> set[str]:
    paths = run.glob("wandb/offline-run-*/*.wandb")
    return {record.run.run_id for path in paths for record in wandb_records(path) if record.HasField("run")}


def test_a_wandb_offline_run_reads_back_and_goes_on_under_the_same_id(tmp_path: Path) -> None:
    run = Folder(tmp_path)
    for start in (0, 2):
        tracker = Tracker(run, OFFLINE, "demo", {"seed": 3})
        tracker.start_section(run / "1-simclr", "1-simclr")
        for step in (start + 1, start + 2):
            tracker.log(step, {"loss": 1 / step})
        tracker.close()
        time.sleep(1.1)  # the folders of W&B are named by the second
    logged = [(line["training/1-simclr/step"], line["training/1-simclr/loss"]) for line in histories(tmp_path)]
    assert logged == [(step, pytest.approx(1 / step)) for step in (1, 2, 3, 4)]
    assert run_ids(tmp_path) == {run.read_json("wandb.json")["id"]}
    lines = (tmp_path / "1-simclr/metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 3, 4]


def test_wandb_has_three_sections_shows_the_best_score_and_is_told_of_alarms(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tracker = Tracker(Folder(tmp_path), OFFLINE, "demo", {}, "pretraining", "simclr-0123")
    tracker.start_section(Folder(tmp_path / "1-simclr"), "1-simclr", ["probe/knn_auroc"])
    for step, score in ((1, 0.8), (2, 0.7)):
        tracker.log(step, {"loss": 2.0, "health/std_projection": 0.3, "time/data_wait": 0.1, "samples_per_s": 9.0})
        tracker.log(step, {"probe/knn_auroc": score})
    tracker.alarm(2, "collapse", "nothing is learned")
    tracker.close()
    assert capsys.readouterr().out.splitlines() == ["1-simclr  step 2  collapse: nothing is learned"]
    wait_until_written(tmp_path)

    names = {name for line in histories(tmp_path) for name in line if not name.startswith("_")}
    learned = {f"pretraining/1-simclr/{name}" for name in ("step", "loss", "health/std_projection", "probe/knn_auroc")}
    assert names == learned | {"system/1-simclr/time/data_wait", "system/1-simclr/samples_per_s"}
    steps = {metric.name or metric.glob_name: metric.step_metric for metric in records(tmp_path, "metric")}
    for curve in ("pretraining/1-simclr/*", "pretraining/1-simclr/probe/knn_auroc", "system/1-simclr/*"):
        assert steps[curve] == "pretraining/1-simclr/step"
    summary: dict[str, Any] = {}
    for update in records(tmp_path, "summary"):
        summary |= numbers(update.update)
    assert summary["pretraining/1-simclr/probe/knn_auroc"] == {"max": 0.8}
    (alert,) = records(tmp_path, "alert")
    assert (alert.title, alert.text) == ("1-simclr: collapse", "step 2: nothing is learned")
    run = next(records(tmp_path, "run"))
    assert (run.run_group, run.job_type, run.display_name) == ("simclr-0123", "pretraining", "demo")

    *_, last = read_metrics(Folder(tmp_path / "1-simclr"))
    assert (last["step"], last["alarm"], last["reason"]) == (2, "collapse", "nothing is learned")
    tracker.rewind(1)
    assert [record["step"] for record in tracker.records()] == [1, 1]


@pytest.mark.parametrize("privacy", ["normal", "strict"])
def test_lineage_is_told_by_references_of_which_nothing_is_copied(
    tmp_path: Path, privacy: Any, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    for name, value in OFFLINE_VARIABLES.items():  # which strict sets, and this test takes back
        monkeypatch.setenv(name, value)
    (tmp_path / "images").write_bytes(b"pixels of a patient" * 1000)
    config = TrackingConfig(wandb="offline", privacy=privacy)
    made_from = [Made("dataset", "d" * 64, str(tmp_path))]
    umask = os.umask(0o022)
    try:
        tracker = Tracker(Folder(tmp_path / "run"), config, "demo", {}, "pretraining")
        tracker.made(Made("encoder", "e" * 64, str(tmp_path / "run/encoder")), made_from)
        tracker.close()
    finally:
        os.umask(umask)
    wait_until_written(tmp_path / "run")
    told = {record.name: record for record in records(tmp_path / "run", "artifact")}
    assert set(told) == {"dataset-" + "d" * 16, "encoder-" + "e" * 16}
    encoder = told["encoder-" + "e" * 16]
    assert encoder.type == "encoder"
    references = {entry.path: entry.ref for entry in encoder.manifest.contents}
    assert references == {
        "encoder-" + "e" * 16: "manyview://encoder/" + "e" * 64,
        "dataset-" + "d" * 16: "manyview://dataset/" + "d" * 64,
    }
    metadata = json.loads(encoder.metadata)
    assert metadata["made_from"] == ["dataset-" + "d" * 16]
    assert metadata.get("location") == (None if privacy == "strict" else str(tmp_path / "run/encoder"))
    (kept,) = (tmp_path / "run").glob("wandb/offline-run-*/*.wandb")
    assert kept.stat().st_size < 19_000
    assert (str(tmp_path).encode() in kept.read_bytes()) == (privacy == "normal")
    assert "WARNING" not in capfd.readouterr().err, "W&B speaks of what it cannot open, and nobody asked"


@pytest.mark.parametrize("privacy", ["normal", "strict"])
def test_wandb_is_told_of_a_broken_step_and_of_no_case_and_no_place(
    tmp_path: Path, privacy: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in OFFLINE_VARIABLES.items():  # which strict sets, and this test takes back
        monkeypatch.setenv(name, value)
    umask, run = os.umask(0o022), Folder(tmp_path / "mrs-example")
    try:
        tracker = Tracker(run, TrackingConfig(wandb="offline", privacy=privacy), "demo", {}, "pretraining")
        tracker.start_section(run / "1-simclr", "1-simclr")
        watch = NotFinite("1-simclr", "skip", run / "1-simclr", tracker, lambda _: ["case-of-jane", "case-of-john"])
        watch.add(0, torch.tensor(0.0))
        watch.check()
        tracker.close()
    finally:
        os.umask(umask)
    wait_until_written(tmp_path / "mrs-example")
    (alert,) = records(tmp_path / "mrs-example", "alert")
    assert alert.title == "1-simclr: not finite"
    assert alert.text == "step 1" if privacy == "strict" else alert.text.startswith("step 1: the loss or its gradient")
    (kept,) = (tmp_path / "mrs-example").glob("wandb/offline-run-*/*.wandb")
    for private in ("case-of", "mrs-example"):
        assert private not in alert.text
        assert privacy == "normal" or private.encode() not in kept.read_bytes()
    assert b"case-of" not in kept.read_bytes()
    assert "(case-of-jane, case-of-john, …)" in capsys.readouterr().out
    assert "case-of" not in (tmp_path / "mrs-example/1-simclr/metrics.jsonl").read_text()
    assert run.read_json("1-simclr/not-finite.json") == {"1": ["case-of-jane", "case-of-john"]}


LOGGED_IN = f"machine api.wandb.ai\n  login user\n  password {'a' * 40}\n"
ONCE = "W&B records offline, in {} ({}); `wandb sync` brings it online, or from the next start on WANDB_API_KEY or"


@pytest.mark.parametrize(
    ("environment", "netrc", "why_offline"),
    [
        ({"WANDB_API_KEY": "a" * 40}, "", None),
        ({}, LOGGED_IN, None),
        ({}, "", "no key was found"),
        ({}, LOGGED_IN.replace("wandb.ai", "example.org"), "no key was found"),
        ({}, LOGGED_IN.replace("aaa", ""), "API key must have 40+ characters, has 1."),
        ({"WANDB_API_KEY": "a" * 40, "WANDB_MODE": "offline"}, LOGGED_IN, "WANDB_MODE=offline"),
    ],
)
def test_wandb_goes_online_where_it_has_a_key_and_says_where_not(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    environment: dict[str, str],
    netrc: str,
    why_offline: str | None,
) -> None:
    (tmp_path / "netrc").write_text(netrc)
    (tmp_path / "netrc").chmod(0o600)
    for name, value in {"NETRC": str(tmp_path / "netrc"), **environment}.items():
        monkeypatch.setenv(name, value)
    wandb.teardown()  # which remembers what it has found
    before = psutil.Process().children()
    try:
        with mock.patch("wandb.init") as init:
            Tracker(Folder(tmp_path / "run"), TrackingConfig(), "demo", {}).close()
        assert psutil.Process().children() == before, "its process is the one that would ask a server"
    finally:
        wandb.teardown()
    assert init.call_args.kwargs["mode"] == ("offline" if why_offline else "online")
    said = capsys.readouterr().out.splitlines()
    if why_offline is None:
        assert said == []
    else:
        (line,) = said
        assert line.startswith(ONCE.format(tmp_path / "run/wandb", why_offline))


def test_a_strict_run_looks_for_no_key_and_says_nothing_of_wandb(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in {**OFFLINE_VARIABLES, "WANDB_API_KEY": "a" * 40}.items():  # the first strict sets itself
        monkeypatch.setenv(name, value)
    umask = os.umask(0o022)
    try:
        with mock.patch("wandb.init") as init, mock.patch("wandb.login") as login:
            Tracker(Folder(tmp_path / "run"), TrackingConfig(privacy="strict"), "demo", {}).close()
    finally:
        os.umask(umask)
    assert init.call_args.kwargs["mode"] == "offline"
    assert not login.called
    assert capsys.readouterr().out == ""


def test_no_test_has_a_login() -> None:
    assert not wandb.login(prompt=False, verify=False)


def test_runs_that_differ_in_data_and_seed_alone_are_of_one_recipe() -> None:
    def name(**changed: Any) -> str:
        config = PretrainConfig.model_validate({"data": "/a", "run": "/b", **changed})
        return recipe_name(config.words(), config.recipe())

    assert name().startswith("simclr-resnet50-")
    assert name() == name(data="/c", run="/d", seed=3, cluster={"num_workers": 2}, tracking={"every_steps": 3})
    others = [name(views={"size_px": 64}), name(stages=[{"method": "simclr", "epochs": 9}]), name(precision="fp32")]
    assert len({name(), *others}) == 4


def test_wandb_that_fails_is_left_out_and_training_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    blocked = tmp_path / "run"
    blocked.mkdir()
    (blocked / "wandb.json").write_text('{"id": "not/an/id\\u0000"}')
    tracker = Tracker(Folder(blocked), OFFLINE, "demo", {})
    tracker.log(1, {"loss": 2.0})
    tracker.close()
    assert "W&B is left out" in capsys.readouterr().out
    assert json.loads((blocked / "metrics.jsonl").read_text())["loss"] == 2.0


@pytest.mark.parametrize("location", ["local", "memory://tracking"])
def test_metrics_are_cut_back_to_the_restored_step(tmp_path: Path, location: str) -> None:
    folder = Folder(tmp_path if location == "local" else location)
    tracker = Tracker(folder, OFF, "demo", {})
    for step in range(1, 6):
        tracker.log(step, {"loss": float("nan") if step == 2 else 1.0})
    folder.append("metrics.jsonl", '{"step": 6, "lo')
    tracker.rewind(3)
    kept = [json.loads(line) for line in folder.read("metrics.jsonl").decode().splitlines()]
    assert [line["step"] for line in kept] == [1, 2, 3]
    assert kept[1]["loss"] is None


def test_progress_says_where_it_is_and_when_it_is_done(capsys: pytest.CaptureFixture[str]) -> None:
    progress = Progress("1-simclr", 10, OFF)
    time.sleep(0.05)
    progress.line(5, {"loss": 1.23456})
    progress.line(10, {"loss": 1.0})
    first, last = capsys.readouterr().out.splitlines()
    assert first.startswith("1-simclr  step 5/10 (50 %)  loss 1.235  ETA 0 s")
    assert "step 10/10 (100 %)" in last
    slow = Progress("1-simclr", 10, TrackingConfig(every_s=1000))
    for step in range(1, 11):
        slow.line(step, {})
    said = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[1] for line in said] == ["step 1/10 (10 %)", "step 10/10 (100 %)"]


def test_durations_read_as_people_say_them() -> None:
    assert [duration(s) for s in (0, 89, 600, 5400, 11_100)] == ["0 s", "89 s", "10 min", "1 h 30 min", "3 h 05 min"]


def test_the_driver_follows_what_workers_say(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = Folder(tmp_path)
    folder.append("log.txt", "said in an earlier run")
    follower = LogFollower(folder)
    try:
        say_into(folder)
        say("one")
        say("two")
    finally:
        say_into(None)
    follower.close()
    assert capsys.readouterr().out.splitlines() == ["one", "two"]
