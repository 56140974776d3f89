"""What doctor says of a run is what the run would do."""

import hashlib
import json
import os
import shutil
import socket
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import yaml

from clusters.checkpoint import CheckpointConfig, Checkpoints
from clusters.command import run_main
from clusters.config import InputError, validate
from clusters.lease import LEASE, lease, named
from clusters.run_lock import LOCK, run_lock
from clusters.storage import Folder
from clusters.versions import versions_here
from data.dataset import Dataset
from pretrain.__main__ import _help, _run
from pretrain.config import PretrainConfig
from pretrain.doctor import doctor
from pretrain.encoder_folder import Seen
from pretrain.export import seen_table
from pretrain.monitor import SCORES
from pretrain.run import dataset_identity, pretrain, pretraining_rows
from tests.test_clusters_checkpoint import rewrite

VALUES = {
    "encoder": {"name": "resnet18"},
    "views": {"size_px": 32},
    "stages": [{"method": "simclr", "batch_size": 8, "steps": 20}, {"method": "micle", "batch_size": 8, "steps": 4}],
    "tracking": {"wandb": "disabled"},
}


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(VALUES))
    return path


@pytest.fixture
def begun(synthetic_dataset: Dataset, tmp_path: Path) -> Path:
    """A run with checkpoints at steps 5 and 10 of its first stage, as `train` writes it."""
    run = tmp_path / "run"
    config = validate(PretrainConfig, {**VALUES, "data": synthetic_dataset.location, "run": str(run)}, "test")
    rows = pretraining_rows(synthetic_dataset, config)
    identity = config.stage_identity(0, dataset_identity(synthetic_dataset, rows, config), None)
    folder = Folder(run / "1-simclr")
    folder.write_json("config.json", {"identity": identity, "config": config.model_dump(mode="json")})
    checkpoints = Checkpoints(folder, CheckpointConfig())
    for step in (5, 10):
        checkpoints.save(step, {"step": step})
    checkpoints.wait()
    return run


def said(*argv: str) -> str:
    return "\n".join(doctor(argv))


def test_the_newest_intact_checkpoint_is_what_would_be_continued(begun: Path) -> None:
    text = said(str(begun))
    assert "1-simclr: would go on from step-000000010" in text
    assert "2-micle: not begun" in text
    assert "refused with another: batch_norm_group, compile, dataset, encoder" in text
    damaged = begun / "1-simclr/checkpoints/step-000000010/state.json"
    damaged.write_bytes(damaged.read_bytes()[:-1])
    text = said(str(begun))
    assert "1-simclr: would go on from step-000000005, passing over step-000000010" in text
    # and so it is
    restored = Checkpoints(Folder(begun / "1-simclr"), CheckpointConfig()).restore()
    assert restored is not None and restored.step == 5
    assert "damaged-step-000000010-attempt-2" in said(str(begun))


def test_other_code_than_the_stage_was_last_at_work_with_is_told(begun: Path) -> None:
    config = begun / "1-simclr/config.json"
    told = json.loads(config.read_text())
    assert "other code" not in said(str(begun)), "what earlier versions wrote does not tell"
    config.write_text(json.dumps({**told, "versions": versions_here()}))
    assert "other code" not in said(str(begun))
    config.write_text(json.dumps({**told, "versions": {**versions_here(), "torch": "2.11.0"}}))
    expected = f"with other code than before, so that last bits may differ: torch: 2.11.0 -> {version('torch')}"
    assert expected in said(str(begun))


def test_a_run_without_an_intact_checkpoint_cannot_go_on(begun: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for manifest in begun.rglob("MANIFEST.json"):
        manifest.write_text("{}")
    with pytest.raises(SystemExit) as ended:
        run_main(_run, ["doctor", str(begun)], _help)
    assert ended.value.code == 2
    shown = capsys.readouterr()
    assert "step-000000010" in shown.out
    assert "none of the checkpoints of 1-simclr is intact; restore one from a backup" in shown.err
    with pytest.raises(InputError, match="none of its checkpoints is intact"):  # and so it is
        Checkpoints(Folder(begun / "1-simclr"), CheckpointConfig()).restore()
    with pytest.raises(
        InputError, match="none of the checkpoints of 1-simclr is intact"
    ):  # once they are set aside too
        said(str(begun))


def test_a_saving_that_was_cut_off_does_not_count(begun: Path) -> None:
    manifests = sorted(begun.rglob("MANIFEST.json"))
    assert len(manifests) > 1
    for manifest in manifests:
        manifest.unlink()
    with pytest.raises(InputError, match=f"{len(manifests)} checkpoints without their MANIFEST.json, and none with it"):
        said(str(begun))
    for manifest in manifests[1:]:
        shutil.rmtree(manifest.parent)
    assert "1-simclr: would start from step 0, since nothing was saved yet" in said(str(begun))
    assert Checkpoints(Folder(begun / "1-simclr"), CheckpointConfig()).restore() is None


def test_what_a_checkpoint_is_kept_for_is_said_and_one_that_is_being_written(begun: Path) -> None:
    folder = Folder(begun / "1-simclr")
    told = folder.read_json("config.json")
    told["config"]["checkpoint"] |= {"keep": 2, "keep_best": 1}
    folder.write_json("config.json", told)
    checkpoints = Checkpoints(folder, CheckpointConfig(keep=2, keep_best=1))
    for step, score in ((15, 0.8), (20, 0.7), (25, 0.6)):
        checkpoints.save(step, {"step": step}, {SCORES[0]: score})
    checkpoints.wait()
    (folder / "checkpoints/step-000000030-attempt-2").write("state.safetensors", b"half of i")
    lines = said(str(begun)).splitlines()
    assert lines[0] == "1-simclr: not finished, 4 checkpoints"
    names = ["step-000000030-attempt-2", *(f"step-0000000{step}-attempt-2" for step in (25, 20, 15))]
    assert [line.split()[0] for line in lines[1:5]] == names
    assert lines[1].endswith("9 bytes  has no MANIFEST.json: it is being written, or its saving was cut off")
    assert lines[2].endswith("intact: every hash holds; kept as newest")
    assert lines[4].endswith(f"intact: every hash holds; kept as best, {SCORES[0]} 0.8000")
    would = "1-simclr: would go on from step-000000025-attempt-2, passing over step-000000030-attempt-2"
    assert lines[5] == would
    restored = Checkpoints(folder, CheckpointConfig()).restore()  # and so it is
    assert restored is not None and restored.state == {"step": 25}


def test_a_checkpoint_of_a_later_format_is_said(begun: Path) -> None:
    rewrite(begun / "1-simclr/checkpoints/step-000000010", format=9)
    with pytest.raises(InputError, match="step-000000010: a checkpoint of format 9"):
        said(str(begun))


def test_a_recipe_is_compared_with_what_was_begun(begun: Path, recipe: Path) -> None:
    assert "1-simclr: this recipe changes nothing" in said(str(begun), str(recipe), "cluster.num_workers=2")
    with pytest.raises(InputError, match=r"1-simclr: refused: seed: 0 -> 3; set on_change=redo"):
        said(str(begun), str(recipe), "seed=3")
    with pytest.raises(InputError, match=r"stage.batch_size: 8 -> 4"):
        said(str(begun), str(recipe), "stages.0.batch_size=4")
    with pytest.raises(InputError, match=r"refused: stage 1: 1-simclr -> 1-byol"):
        said(str(begun), str(recipe), "stages=[{method: byol, steps: 3}]")


def test_finished_stages_are_reused(begun: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = Folder(begun / "1-simclr")
    folder.write_json("finished.json", {"steps": 20, "encoder": hashlib.sha256(b"weights").hexdigest()})
    with pytest.raises(InputError, match="marked finished and encoder/model"):
        said(str(begun))
    folder.write("encoder/model.safetensors", b"weighty")
    folder.write_json("encoder/config.json", {"manyview": {}})
    with pytest.raises(InputError, match=r"marked finished and encoder/seen\.parquet is gone; remove"):
        said(str(begun))
    folder.write("encoder/seen.parquet", b"")
    with pytest.raises(InputError, match=r"marked finished and encoder/model\.safetensors was altered; remove"):
        said(str(begun))
    folder.write("encoder/model.safetensors", b"weights")
    with pytest.raises(InputError, match=r"marked finished and encoder/seen\.parquet was altered; remove"):
        said(str(begun))
    folder.write("encoder/seen.parquet", seen_table(Seen({"source:a": frozenset({1})}, frozenset({2}))))
    assert "1-simclr: finished at step 20; would be reused as it is\n2-micle: not begun" in said(str(begun))
    run_main(_run, ["doctor", str(begun)], _help)  # exit code 0
    assert "2-micle: not begun" in capsys.readouterr().out


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no stage that Manyview wrote"):
        said(str(tmp_path))
    with pytest.raises(InputError, match="name the run folder first"):
        said("run=/x")


def test_a_folder_with_an_equals_sign_is_a_folder(begun: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(begun.parent)
    moved = begun.rename(begun.parent / "lr=0.1")
    for word in (str(moved), "./lr=0.1", "lr=0.1"):
        assert "1-simclr: would go on from step-000000010" in said(word)
    with pytest.raises(InputError, match="name the run folder first"):
        said("lr=0.2")


def all_of(folder: Path) -> list[tuple[Path, int, bytes]]:
    return [(one, one.stat().st_mtime_ns, one.read_bytes()) for one in sorted(folder.rglob("*")) if one.is_file()]


def test_a_run_at_work_is_named_and_left_alone(begun: Path, recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with run_lock(Folder(begun)):
        before = all_of(begun)
        for words in ([], [str(recipe)]):
            with pytest.raises(SystemExit) as ended:
                run_main(_run, ["doctor", str(begun), *words], _help)
            assert ended.value.code == 2
            shown = capsys.readouterr()
            holder = f"({named({'process': os.getpid(), 'host': socket.gethostname()})})"
            assert shown.out.startswith(f"{begun}: another run is at work in this folder {holder}")
            assert "1-simclr: would go on from step-000000010" in shown.out
            assert f"a start would be refused, for another run is at work in this folder {holder}" in shown.err
            assert ("this recipe changes nothing" in shown.out) == bool(words)
        assert all_of(begun) == before
    assert "at work" not in said(str(begun))


def test_a_run_that_has_only_just_begun_is_at_work_too(tmp_path: Path) -> None:
    with run_lock(Folder(tmp_path)), pytest.raises(InputError, match="a start would be refused, for another run"):
        said(str(tmp_path))


@pytest.mark.parametrize(
    ("lock", "told"), [('{"process": 7, "host": "node7"}', "process 7, host node7"), ('{"process": 7}', "process 7")]
)
def test_a_lock_of_which_nobody_here_knows_is_said_and_no_more(begun: Path, lock: str, told: str) -> None:
    (begun / LOCK).write_text(lock)
    assert f"another run may be at work in this folder ({told}), which cannot be told from here" in said(str(begun))


@pytest.mark.parametrize("lives", [True, False])
def test_a_lease_is_watched_as_a_start_does(begun: Path, monkeypatch: pytest.MonkeyPatch, lives: bool) -> None:
    """Of a place without locks."""
    monkeypatch.setattr("clusters.lease.RENEW_S", 0.05)
    monkeypatch.setattr("clusters.lease.SETTLE_S", 0)
    monkeypatch.setattr("clusters.runs.LOOK_S", 0.1)
    for module in ("clusters.runs", "pretrain.doctor"):
        monkeypatch.setattr(f"{module}.STALE_S", 30.0 if lives else 0.5)
    if not lives:
        (begun / LEASE).write_text('{"process": 7, "host": "node7", "renewed": 3}')
        text = said(str(begun))
        assert "a run left a lease there; looking for 0.5 s at most" in text
        assert "at work" not in text
        return
    with lease(Folder(begun), {"process": 7}), pytest.raises(InputError, match=r"another run is at work .*process 7\)"):
        said(str(begun))


@pytest.mark.parametrize("name", ["finished.json", "config.json"])
def test_a_damaged_file_of_a_stage_is_named_with_its_mend(begun: Path, name: str) -> None:
    (begun / "1-simclr" / name).write_bytes(b'{"\xe9')
    with pytest.raises(InputError, match=rf"{name}.* damaged.*; restore it from a backup, or remove") as told:
        said(str(begun))
    assert "\n" not in str(told.value)


def small(dataset: Dataset, folder: Path, **changed: Any) -> dict[str, Any]:
    """A recipe of one stage that is over in a second."""
    stage = {"method": "simclr", "batch_size": 8, "steps": 1, "projection_hidden": 8, "projection_dim": 8}
    told = {"encoder": {"name": "test_resnet"}, "stages": [{**stage, "keep_projection_layers": 1}]}
    return {**VALUES, **told, "data": dataset.location, "run": str(folder), **changed}


def run(values: dict[str, Any]) -> None:
    pretrain(validate(PretrainConfig, values, "test"))


@pytest.fixture(scope="module")
def small_run(synthetic_dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished one; not to be altered."""
    folder = tmp_path_factory.mktemp("small") / "run"
    run(small(synthetic_dataset, folder))
    return folder


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def test_where_views_are_finished_decides_too(begun: Path, recipe: Path) -> None:
    folder = Folder(begun / "1-simclr")
    told = folder.read_json("config.json")
    told["config"]["augment"] = "loader"
    folder.write_json("config.json", told)
    for allowed in ("auto", "loader"):
        assert "changes nothing" in said(str(begun), str(recipe), f"augment={allowed}")
    with pytest.raises(InputError, match=r"1-simclr: begun with augment=loader, which differs from augment=device"):
        said(str(begun), str(recipe), "augment=device")


def test_where_views_were_finished_decides_nothing_of_a_finished_stage(
    small_run: Path, synthetic_dataset: Dataset, tmp_path: Path
) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(small(synthetic_dataset, small_run, augment="device")))
    assert "1-simclr: this recipe changes nothing" in said(str(small_run), str(recipe))
    run(small(synthetic_dataset, small_run, augment="device"))  # and so it is


def test_weights_that_are_gone_are_needed_no_more_once_the_first_stage_is_finished(
    small_run: Path, synthetic_dataset: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(small_run / "encoder", tmp_path / "first")
    encoder = {"name": "test_resnet", "weights": str(tmp_path / "first")}
    values = small(synthetic_dataset, tmp_path / "run", encoder=encoder)
    run(values)
    shutil.rmtree(tmp_path / "first")
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(values))
    argv = [str(tmp_path / "run"), str(tmp_path / "recipe.yaml")]
    capsys.readouterr()
    assert "1-simclr: this recipe changes nothing" in said(*argv)
    assert "first cannot be found" in capsys.readouterr().out
    run(values)  # and so it is
    (tmp_path / "run/1-simclr/finished.json").unlink()
    for refuses in (lambda: said(*argv), lambda: run(values)):
        with pytest.raises(InputError, match=r"encoder\.weights: .*first"):
            refuses()


@pytest.mark.parametrize(
    ("harm", "told"),
    [
        (lambda top: flip(top / "model.safetensors"), "encoder/model.safetensors was altered"),
        (lambda top: flip(top / "projection.safetensors"), "encoder/model.safetensors was altered"),
        (lambda top: (top / "projection.safetensors").unlink(), "encoder/projection.safetensors is gone"),
        (lambda top: (top / "model.safetensors").unlink(), "encoder/model.safetensors is gone"),
        (lambda top: (top / "seen.parquet").unlink(), "encoder/seen.parquet is gone"),
        (lambda top: (top / "config.json").unlink(), "encoder/config.json is gone"),
        (lambda top: (top / "config.json").write_bytes(b"{"), "encoder/config.json is damaged"),
        (lambda top: shutil.rmtree(top), "encoder/ is not there yet"),
        (
            lambda top: (top / "config.json").write_text(json.dumps({"manyview": {"fingerprint": "another"}})),
            "encoder/ is that of another stage",
        ),
    ],
)
def test_a_damaged_encoder_at_the_top_is_said_and_copied_again(
    small_run: Path,
    synthetic_dataset: Dataset,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    harm: Any,
    told: str,
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(small_run, folder)
    assert "all stages are finished; nothing is left to do" in said(str(folder))
    harm(folder / "encoder")
    assert f"all stages are finished; {told}: it would be copied from 1-simclr" in said(str(folder))
    run(small(synthetic_dataset, folder))
    assert f"{told}; copied from 1-simclr" in capsys.readouterr().out
    for path in (folder / "1-simclr/encoder").iterdir():
        assert (folder / "encoder" / path.name).read_bytes() == path.read_bytes()
    assert "nothing is left to do" in said(str(folder))


def test_layers_of_another_recipe_beside_the_encoder_at_the_top_are_no_harm(
    synthetic_dataset: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    values = small(synthetic_dataset, tmp_path / "run")
    values["stages"][0]["keep_projection_layers"] = 0
    run(values)
    (tmp_path / "run/encoder/projection.safetensors").write_bytes(b"of before")
    capsys.readouterr()
    run(values)
    assert "copied" not in capsys.readouterr().out
    assert "nothing is left to do" in said(str(tmp_path / "run"))


def test_an_encoder_is_not_copied_from_a_damaged_stage(
    small_run: Path, synthetic_dataset: Dataset, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(small_run, folder)
    for place in (folder, folder / "1-simclr"):
        flip(place / "encoder/model.safetensors")
    for refuses in (lambda: said(str(folder)), lambda: run(small(synthetic_dataset, folder))):
        with pytest.raises(InputError, match=r"1-simclr is marked finished and encoder/model\.safetensors was altered"):
            refuses()


def test_an_encoder_of_others_at_the_top_is_said_and_left(
    small_run: Path, synthetic_dataset: Dataset, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(small_run, folder)
    shutil.rmtree(folder / "encoder")
    (folder / "encoder").mkdir()
    (folder / "encoder/config.json").write_text("{}")
    for refuses in (lambda: said(str(folder)), lambda: run(small(synthetic_dataset, folder))):
        with pytest.raises(InputError, match=r"not an encoder that Manyview wrote; give another run="):
            refuses()
