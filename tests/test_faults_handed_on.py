"""What a stage leaves for the next one and for others, altered or gone: found before it makes another encoder."""

import errno
import shutil
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from clusters.config import InputError
from clusters.storage import Folder
from data.dataset import Dataset
from pretrain.config import PretrainConfig
from pretrain.doctor import doctor
from pretrain.encoder_folder import read_seen
from pretrain.encoder_harm import harm_of
from pretrain.run import pretrain
from pretrain.stage_folder import finished
from tests.fault_runs import recipe

HEAD = "1-simclr/projection.safetensors"


def two_stages(dataset: Dataset, run: Path) -> dict[str, Any]:
    told = recipe(dataset, run, num_workers=0, steps=2, checkpoint={"every_steps": 1})
    return {**told, "stages": [*told["stages"], {**told["stages"][0], "method": "micle"}]}


def trained(values: dict[str, Any]) -> bytes:
    pretrain(PretrainConfig.model_validate(values))
    return (Path(values["run"]) / "encoder/model.safetensors").read_bytes()


@pytest.fixture(scope="module")
def whole(synthetic_dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("whole") / "run"
    trained(two_stages(synthetic_dataset, run))
    return run


@pytest.fixture
def between(whole: Path, tmp_path: Path) -> Path:
    """The run as it stood when its first stage had ended."""
    shutil.copytree(whole, tmp_path / "run")
    for name in ("2-micle", "encoder"):
        shutil.rmtree(tmp_path / "run" / name)
    return tmp_path / "run"


def alter(file: Path, how: str) -> None:
    content = bytearray(file.read_bytes())
    content[-3] ^= 4
    if how == "gone":
        file.unlink()
    else:
        file.write_bytes({"flipped": bytes(content), "cut": bytes(content[:40]), "emptied": b""}[how])


@pytest.mark.parametrize("how", ["flipped", "cut", "emptied", "gone"])
def test_a_head_that_the_next_stage_starts_from(synthetic_dataset: Dataset, between: Path, how: str) -> None:
    alter(between / HEAD, how)
    told = rf"projection.safetensors {'is gone' if how == 'gone' else 'was altered'}"
    with pytest.raises(InputError, match=rf"1-simclr is marked finished and {told}; restore it, or remove"):
        list(doctor([str(between)]))
    with pytest.raises(InputError, match=rf"1-simclr: {told}, from which 2-micle starts; restore it from a backup"):
        trained(two_stages(synthetic_dataset, between))


def test_a_head_is_needed_no_more_once_the_next_stage_has_a_checkpoint(
    synthetic_dataset: Dataset, whole: Path, between: Path
) -> None:
    shutil.copytree(whole / "2-micle", between / "2-micle")
    (between / "2-micle/finished.json").unlink()
    shutil.rmtree(between / "2-micle/checkpoints/step-000000002")
    alter(between / HEAD, "flipped")
    assert "2-micle: would go on from step-000000001" in "\n".join(doctor([str(between)]))
    assert trained(two_stages(synthetic_dataset, between)) == (whole / "encoder/model.safetensors").read_bytes()


def test_nobody_is_lost_from_whom_an_encoder_has_seen(synthetic_dataset: Dataset, whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole, tmp_path / "run")
    run, file = tmp_path / "run", tmp_path / "run/encoder/seen.parquet"
    table = pq.read_table(file)
    pq.write_table(table.slice(1), file)
    with pytest.raises(InputError, match=r"seen.parquet: altered, so nobody can tell whom this encoder has seen"):
        read_seen(str(run))
    trained(two_stages(synthetic_dataset, run))  # copied again from its stage
    assert read_seen(str(run)) == read_seen(str(whole))
    pq.write_table(table.slice(1), run / "2-micle/encoder/seen.parquet")
    with pytest.raises(InputError, match=r"2-micle is marked finished and encoder/seen.parquet was altered"):
        list(doctor([str(run)]))
    before = {name: value for name, value in table.schema.metadata.items() if name != b"sha256"}
    pq.write_table(table.replace_schema_metadata(before), file)  # as earlier ones are
    assert read_seen(str(Folder(run / "encoder"))) == read_seen(str(whole))


def test_whom_an_encoder_has_seen_out_of_reach_is_no_harm(whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Or a person would be told to remove a stage that is whole."""
    read, ended = Folder.read, finished(Folder(whole / "2-micle"))

    def out_of_reach(folder: Folder, name: str) -> bytes:
        if name == "seen.parquet":
            raise OSError(errno.EIO, "Input/output error")
        return read(folder, name)

    monkeypatch.setattr(Folder, "read", out_of_reach)
    assert ended is not None
    with pytest.raises(OSError, match="Input/output error"):
        harm_of(Folder(whole / "2-micle/encoder"), ended.encoder)


def test_checkpoints_that_are_gone_are_no_start_from_nothing(
    synthetic_dataset: Dataset, whole: Path, between: Path
) -> None:
    shutil.copytree(whole / "2-micle", between / "2-micle")
    (between / "2-micle/finished.json").unlink()
    shutil.rmtree(between / "2-micle/checkpoints")
    records = (between / "2-micle/metrics.jsonl").read_bytes()
    gone = r"2-micle/checkpoints: the checkpoints that were saved here are gone; restore them from a backup, or remove"
    with pytest.raises(InputError, match=gone):
        list(doctor([str(between)]))
    with pytest.raises(InputError, match=gone):
        trained(two_stages(synthetic_dataset, between))
    assert (between / "2-micle/metrics.jsonl").read_bytes() == records
    shutil.rmtree(between / "2-micle")
    assert trained(two_stages(synthetic_dataset, between)) == (whole / "encoder/model.safetensors").read_bytes()
