"""Files of a run folder that are damaged or gone: said with the mend, never gone on with as if they were not needed."""

import errno
import os
import shutil
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest
import ray.cloudpickle
import ray.train.torch
import torch

from clusters import checkpoint as checkpoints_module
from clusters import checkpoint_writer, joining, launch, leaving, notice, runs
from clusters.attempt import Replaced, Superseded
from clusters.checkpoint import CheckpointConfig, Checkpoints
from clusters.config import InputError, Transient
from clusters.preflight import Needs
from clusters.storage import Folder
from clusters.tracking import METRICS, read_metrics
from clusters.workers import ClusterConfig
from data.dataset import Dataset
from finetune import claims
from tests.faulty_storage import FaultyFolder, Script, fails
from tests.killed_runs import killed_after_saves
from tests.test_pretrain_run import run


@pytest.fixture
def begun(synthetic_dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run that was killed after its first checkpoint."""
    with killed_after_saves(monkeypatch, 1), pytest.raises(KeyboardInterrupt):
        run(synthetic_dataset, tmp_path / "run")
    assert (tmp_path / "run/1-simclr/checkpoints").is_dir()
    return tmp_path / "run"


@pytest.mark.parametrize("content", [None, b'{"identity": {"seed": \xb0}', b"{}"])
def test_a_stage_of_which_nothing_tells_what_it_was_made_with_is_not_gone_on_with(
    begun: Path, synthetic_dataset: Dataset, content: bytes | None
) -> None:
    told = begun / "1-simclr/config.json"
    told.unlink() if content is None else told.write_bytes(content)
    for _ in range(2):
        with pytest.raises(InputError, match=r"1-simclr: made with .*config.json is gone or damaged\); set "):
            run(synthetic_dataset, begun, seed=1)
    run(synthetic_dataset, begun, seed=1, on_change="redo")
    assert Folder(begun / "1-simclr").read_json("config.json")["identity"]["seed"] == 1


def test_a_config_that_is_out_of_reach_is_not_taken_for_missing(
    begun: Path, synthetic_dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = Folder.read

    def reading(folder: Folder, name: str) -> bytes:
        if name == "config.json":
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        return read(folder, name)

    monkeypatch.setattr(Folder, "read", reading)
    with pytest.raises(OSError, match="Stale"):
        run(synthetic_dataset, begun, seed=1)


def test_a_flipped_bit_in_the_metrics_costs_a_line_and_no_run(begun: Path, synthetic_dataset: Dataset) -> None:
    metrics = begun / "1-simclr" / METRICS
    content = bytearray(metrics.read_bytes())
    content[5] ^= 0x80
    metrics.write_bytes(content)
    lines = len(content.splitlines())
    assert len(read_metrics(Folder(begun / "1-simclr"))) == lines - 1
    run(synthetic_dataset, begun)
    assert (begun / "encoder/model.safetensors").exists()


@pytest.mark.parametrize("line", ['"a step"', '{"step": null}', '{"step": "7"}', '["step"]', "7"])
def test_a_line_of_the_metrics_that_is_no_record_ends_no_run(
    begun: Path, synthetic_dataset: Dataset, line: str
) -> None:
    with (begun / "1-simclr" / METRICS).open("a") as file:
        file.write(line + "\n")
    run(synthetic_dataset, begun)
    assert (begun / "encoder/model.safetensors").exists()


def test_a_damaged_end_of_a_stage_is_named_and_hides_no_other_run(
    begun: Path, synthetic_dataset: Dataset, tmp_path: Path
) -> None:
    shutil.copytree(begun, tmp_path / "another")
    (begun / "1-simclr/finished.json").write_bytes(b'{"steps": 5, "encoder"\xba "a"}')
    with pytest.raises(InputError, match=r"finished\.json: damaged; restore it from a backup, or remove"):
        run(synthetic_dataset, begun)
    health = {one.name: one.health for one in runs.list_runs(Folder(tmp_path), 0.0)}
    assert health == {"another": "stopped", "run": "stopped, finished.json is damaged or out of reach"}


def test_results_of_which_nothing_tells_what_they_were_made_with_are_left_alone(tmp_path: Path) -> None:
    out = Folder(tmp_path)
    claims.begin(out, {"seed": 0}, {})
    out.write("results.json", b"{}")
    assert claims.is_begun(out, {"seed": 0})
    out.remove("config.json")
    with pytest.raises(InputError, match=r"results\.json stands there and config\.json, .* is gone; restore it"):
        claims.is_begun(out, {"seed": 0})
    out.remove("results.json")
    assert not claims.is_begun(out, {"seed": 0})
    claims.claim(out, {"seed": 0})
    out.write("points/a.json", b"{}")
    claims.claim(out, {"seed": 0})
    out.write("sweep.json", b"{")
    with pytest.raises(InputError, match=r"sweep\.json: damaged, for it holds no JSON"):
        claims.claim(out, {"seed": 0})
    out.remove("sweep.json")
    with pytest.raises(InputError, match=r"points stands there and sweep\.json"):
        claims.claim(out, {"seed": 0})


def save_beside_another(config: ClusterConfig) -> dict[str, Any]:
    """What a stalled worker does that wakes: another start has begun, of the launch that `LATER` names."""
    location = Folder(os.environ["LOCATION"])
    stalled = Checkpoints(location, CheckpointConfig())
    mine = os.environ["MANYVIEW_RAY_WORKER"]
    os.environ["MANYVIEW_RAY_WORKER"] = os.environ["LATER"]
    Checkpoints(location, CheckpointConfig())
    os.environ["MANYVIEW_RAY_WORKER"] = mine
    stalled.save(1, {"step": 1})
    stalled.wait()
    return {}


@pytest.mark.parametrize(("later", "error"), [("launch-1", RuntimeError), ("launch-2", Superseded)])
def test_a_worker_that_was_replaced_does_not_end_its_replacement(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, later: str, error: type[Exception]
) -> None:
    """Of the same launch: a note would end the run at its next start. One of another launch ends its own run."""
    monkeypatch.setattr(ray.train.torch, "get_device", lambda: torch.device("cpu"))
    for name, value in {"MANYVIEW_RAY_WORKER": "launch-1", "LATER": later, "LOCATION": str(tmp_path)}.items():
        monkeypatch.setenv(name, value)
    work = ray.cloudpickle.dumps((save_beside_another, None))
    settings = {"work": work, "run": f"memory://{tmp_path.name}", "datasets": [], "versions": {}, "host": "head"}
    leaving.notes(Folder(settings["run"])).write("launch-1-here", b"")
    with pytest.raises(error, match="has taken over") as caught:
        launch._worker({**settings, "launch": "launch-1"})
    assert isinstance(caught.value, Superseded) == (later == "launch-2")
    assert not isinstance(caught.value, Replaced)
    noted = joining.input_error(Folder(settings["run"]), "launch-1")
    assert (noted is None) == (later == "launch-1")


def fail_to_save(_: Any) -> dict[str, Any]:
    """A training whose last save fails; told to leave before it, where TOLD says so."""
    run = Folder(os.environ["LOCATION"])
    if os.environ["TOLD"]:
        leaving.notes(run).write(leaving.note("launch-1"), b"SIGTERM")
    raise Transient("the checkpoint of step 7 could not be written")


@pytest.mark.parametrize("told", ["", "yes"])
def test_a_last_save_that_fails_is_tried_by_workers_that_are_started_again_unless_all_are_told_to_leave(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, told: str
) -> None:
    monkeypatch.setattr(ray.train.torch, "get_device", lambda: torch.device("cpu"))
    monkeypatch.setattr(leaving, "start", lambda *_: None)  # its thread would tell this process to leave, for good
    run = f"memory://{tmp_path.name}"
    for name, value in {"MANYVIEW_RAY_WORKER": "launch-1", "TOLD": told, "LOCATION": run}.items():
        monkeypatch.setenv(name, value)
    work = ray.cloudpickle.dumps((fail_to_save, None))
    leaving.notes(Folder(run)).write("launch-1-here", b"")
    with pytest.raises(joining.Passing, match="step 7 could not be written"):
        launch._worker({"work": work, "run": run, "datasets": [], "versions": {}, "host": "head", "launch": "launch-1"})
    noted = joining.input_error(Folder(run), "launch-1")
    assert noted == ("the checkpoint of step 7 could not be written" if told else None)


def test_an_announced_change_of_workers_outlives_a_disk_that_is_full_for_a_moment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It asks for a save after each step until there is one; few that fail in a row end the run."""
    monkeypatch.setattr(checkpoints_module, "AGAIN_S", 0.5)
    script = Script()
    checkpoints = Checkpoints(FaultyFolder(str(tmp_path), script), CheckpointConfig(every_s=1e6))
    script.at(lambda _: True, fails())
    notice.give()
    try:
        for step in range(1, 4 * checkpoint_writer.MOST_FAILURES):
            if checkpoints.due(step):
                checkpoints.save(step, {"step": step})
                checkpoints._writer.idle(10)
        assert script.fired >= 1 and checkpoints.problem() is None
        script.at(0, fails())
        assert not checkpoints.due(step)
        monkeypatch.setattr(checkpoints_module, "AGAIN_S", 0.0)
        assert checkpoints.due(step)
        checkpoints.save(step, {"step": step})
        checkpoints.wait()
        assert not notice.is_given()
    finally:
        notice.heeded()


def test_a_run_without_ray_is_refused_too_where_the_disk_is_too_small(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**9, 0, 5 * 10**8))
    cluster = ClusterConfig(num_workers=0)
    with pytest.raises(InputError, match=r"disk has 0.5 GB free and checkpoints take 0.8 GB; free some"):
        launch.launch(dict, cluster, cluster, Folder(tmp_path), needs=Needs(states=[2 * 10**8], num_kept=3))
    assert launch.launch(dict, cluster, cluster, Folder(tmp_path), needs=Needs(states=[10**8], num_kept=3))
