"""Folders of others: no command begins in one; what a killed start leaves is its own."""

import shutil
from pathlib import Path

import pytest

from clusters.config import InputError
from clusters.occupied import refuse_occupied
from clusters.storage import Folder
from data.dataset import Dataset
from finetune import claims
from finetune.run import finetune
from pretrain.config import PretrainConfig
from pretrain.run import pretrain
from tests.finetune_runs import recipe, write_encoder

STAGE = {"method": "simclr", "steps": 1, "batch_size": 4, "projection_hidden": 8, "projection_dim": 8}
STARTED = (
    ".lock",
    ".lease.json",
    ".launch/launch-1-here",
    ".ray/launch-1/x",
    "wandb.json",
    "wandb/run/a",
    "log.txt",
    "metrics.jsonl",
)


def pretraining(dataset: Dataset, run: Path) -> PretrainConfig:
    values = {"data": dataset.location, "run": str(run), "precision": "fp32", "encoder": {"name": "test_resnet"},
              "views": {"size_px": 32}, "stages": [STAGE], "tracking": {"wandb": "disabled"}}  # fmt: skip
    return PretrainConfig.model_validate(values)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def folders(synthetic_dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run, results, a dataset, a folder of Hugging Face and one of notes."""
    folder = tmp_path_factory.mktemp("folders")
    pretrain(pretraining(synthetic_dataset, folder / "run"))
    encoder = write_encoder(folder / "pretrained", synthetic_dataset)
    finetune(recipe(synthetic_dataset, encoder, folder / "results", head="linear"))
    shutil.copytree(synthetic_dataset.location, folder / "dataset")
    for name, file in (("huggingface", "config.json"), ("notes", "notes.txt")):
        Folder(folder / name).write(file, b'{"architecture": "resnet18"}')
    return folder


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("run", r"holds a pretraining run \(1-simclr\); give another out="),
        ("run/1-simclr", "holds a stage of a pretraining run; give another out="),
        ("run/encoder", "config.json there is not one of python -m finetune; give another out="),
        ("dataset", r"holds a dataset \(manifest.json\); give another out="),
        ("huggingface", "config.json there is not one of python -m finetune; give another out="),
        ("notes", "holds other things, notes.txt among them; give another out="),
    ],
)
def test_fine_tuning_leaves_folders_of_others_alone(
    synthetic_dataset: Dataset, folders: Path, name: str, told: str
) -> None:
    before = contents(folders / name)
    with pytest.raises(InputError, match=told):
        finetune(recipe(synthetic_dataset, str(folders / "pretrained"), folders / name, head="linear"))
    with pytest.raises(InputError, match="; give another out="):  # as a search and an efficiency sweep do
        claims.claim(Folder(folders / name), {"seed": 0})
    assert contents(folders / name) == before


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("results", r"holds results of python -m finetune \(results.json\); give another run="),
        ("run/1-simclr", r"holds a stage of a pretraining run \(config.json\); give another run="),
        ("run/encoder", r"holds an encoder \(config.json\); give another run="),
        ("dataset", r"holds a dataset \(manifest.json\); give another run="),
        ("huggingface", "holds other things, config.json among them; give another run="),
        ("notes", "holds other things, notes.txt among them; give another run="),
    ],
)
def test_pretraining_leaves_folders_of_others_alone(
    synthetic_dataset: Dataset, folders: Path, name: str, told: str
) -> None:
    before = contents(folders / name)
    with pytest.raises(InputError, match=told):
        pretrain(pretraining(synthetic_dataset, folders / name))
    assert contents(folders / name) == before


def test_what_a_killed_start_leaves_is_gone_on_from(synthetic_dataset: Dataset, tmp_path: Path) -> None:
    """Also from a stage's folder whose config.json was being written, and beside a log and a recipe."""
    run = Folder(tmp_path / "run")
    for name in (*STARTED, "1-simclr/.config.json.0.part", "nohup.out", "recipe.yaml"):
        run.write(name, b"")
    run.remove("wandb.json")
    pretrain(pretraining(synthetic_dataset, tmp_path / "run"))
    assert run.exists("encoder/model.safetensors")
    run.remove("1-simclr")  # whoever makes room, and wants it again
    pretrain(pretraining(synthetic_dataset, tmp_path / "run"))
    assert run.exists("1-simclr/finished.json")


def test_at_a_url_too() -> None:
    out = Folder("memory://occupied")
    for name in STARTED:
        out.write(name, b"")
    refuse_occupied(out, "out")
    assert not claims.is_begun(out, {"seed": 0})
    out.write("features/a/part-0", b"")
    out.write("trial.json", b"{}")
    assert not claims.is_begun(out, {"seed": 0})
    with pytest.raises(InputError, match=r"memory://occupied: holds other things, trial.json among them"):
        claims.claim(out, {"seed": 0})
    out.write("manifest.json", b"{}")
    with pytest.raises(InputError, match=r"holds a dataset \(manifest.json\); give another out="):
        claims.is_begun(out, {"seed": 0})
