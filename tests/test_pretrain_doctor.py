"""What doctor says of a run is what the run would do."""

import hashlib
from pathlib import Path

import pytest
import yaml

from clusters.checkpoint import CheckpointConfig, Checkpoints
from clusters.command import run_main
from clusters.config import InputError, validate
from clusters.storage import Folder
from data.dataset import Dataset
from pretrain.__main__ import _help, _run
from pretrain.config import PretrainConfig
from pretrain.doctor import doctor
from pretrain.monitor import SCORES
from pretrain.run import dataset_identity, pretraining_rows
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
    for manifest in begun.rglob("MANIFEST.json"):
        manifest.unlink()
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
    folder.write_json("encoder/config.json", {})
    with pytest.raises(InputError, match=r"marked finished and encoder/model\.safetensors was altered; remove"):
        said(str(begun))
    folder.write("encoder/model.safetensors", b"weights")
    assert "1-simclr: finished at step 20; would be reused as it is\n2-micle: not begun" in said(str(begun))
    run_main(_run, ["doctor", str(begun)], _help)  # exit code 0
    assert "2-micle: not begun" in capsys.readouterr().out


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no stage that Manyview wrote"):
        said(str(tmp_path))
    with pytest.raises(InputError, match="name the run folder first"):
        said("run=/x")


@pytest.mark.parametrize("name", ["finished.json", "config.json"])
def test_a_damaged_file_of_a_stage_is_named_with_its_mend(begun: Path, name: str) -> None:
    (begun / "1-simclr" / name).write_bytes(b'{"\xe9')
    with pytest.raises(InputError, match=rf"{name}.* damaged.*; restore it from a backup, or remove") as told:
        said(str(begun))
    assert "\n" not in str(told.value)
