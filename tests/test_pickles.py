"""Pickles that would run code, offered in the place of files that are read: none is opened, and one line says so."""

import hashlib
import io
import json
import os
import pickle
import shutil
import tarfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
import torch
from PIL import Image

from clusters.checkpoint import CheckpointConfig, Checkpoints
from clusters.checkpoint_files import MANIFEST, STRUCTURE, TENSORS
from clusters.config import InputError
from clusters.storage import Folder
from data.dataset import Dataset, open_dataset
from data.images import BadImage, decode_stored
from data.manifest import INDEX, FileRecord, manifest_bytes, read_manifest, seal
from data.sources import wds
from pretrain.encoder import EncoderConfig
from pretrain.encoder_folder import CONFIG, WEIGHTS, load_encoder
from pretrain.initial_weights import start
from pretrain.views import ViewConfig
from tests.finetune_runs import NAME, write_encoder
from tests.test_clusters_checkpoint import rewrite


class Marker:
    """Makes a folder if anybody unpickles it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def trap(path: Path, form: str) -> bytes:
    """A pickle, bare or as `torch.save` writes one."""
    file = io.BytesIO()
    torch.save(Marker(path), file) if form == "torch" else file.write(pickle.dumps(Marker(path)))
    return file.getvalue()


@pytest.fixture(params=["bare", "torch"])
def sprung(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    """A pickle, after showing that it would have run; at the end that it has not."""
    mark = tmp_path / "was unpickled"
    content = trap(mark, request.param)
    pickle.loads(content) if request.param == "bare" else torch.load(io.BytesIO(content), weights_only=False)
    assert mark.is_dir()
    mark.rmdir()
    yield content
    assert not mark.exists()


def record(content: bytes) -> dict[str, Any]:
    return {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def refused(error: pytest.ExceptionInfo[InputError], name: str) -> None:
    assert name in str(error.value)
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize("name", [TENSORS, STRUCTURE])
def test_a_pickle_as_a_checkpoint_s_state(tmp_path: Path, sprung: bytes, name: str) -> None:
    checkpoints = Checkpoints(Folder(tmp_path), CheckpointConfig())
    checkpoints.save(1, {"weight": torch.ones(3)})
    checkpoints.wait()
    folder = tmp_path / "checkpoints/step-000000001"
    (folder / name).write_bytes(sprung)
    files = json.loads((folder / MANIFEST).read_text())["files"]
    rewrite(folder, files={**files, name: record(sprung)})
    with pytest.raises(InputError) as error:
        Checkpoints(Folder(tmp_path), CheckpointConfig()).restore()
    refused(error, "step-000000001")


def test_a_pickle_as_an_encoder_s_weights(synthetic_dataset: Dataset, tmp_path: Path, sprung: bytes) -> None:
    folder = Path(write_encoder(tmp_path / "run", synthetic_dataset)) / "encoder"
    (folder / WEIGHTS).write_bytes(sprung)
    card = json.loads((folder / CONFIG).read_text())
    card["manyview"]["fingerprint"] = record(sprung)["sha256"]
    (folder / CONFIG).write_text(json.dumps(card))
    with pytest.raises(InputError) as error:
        load_encoder(str(folder))
    refused(error, WEIGHTS)
    for name in ("theirs.safetensors", "theirs.pth"):
        (tmp_path / name).write_bytes(sprung)
    for weights in (folder, tmp_path / "theirs.safetensors", tmp_path / "theirs.pth"):
        with pytest.raises(InputError) as error:
            start(EncoderConfig(name=NAME, weights=str(weights)), ViewConfig(size_px=32))
        refused(error, weights.name)


@pytest.mark.parametrize(
    ("member", "asked"),
    [("a.jpg", {}), ("a.json", {"patient": "json:patient"}), ("a.cls", {"label": "cls"}), ("a.pkl", {})],
)
def test_a_pickle_as_a_member_of_a_tar(tmp_path: Path, sprung: bytes, member: str, asked: dict[str, str]) -> None:
    folder = tmp_path / "tars"
    folder.mkdir()
    picture = io.BytesIO()
    Image.effect_noise((40, 30), 50).save(picture, "PNG")
    with tarfile.open(folder / "x.tar", "w") as tar:
        for name, content in (("a.png", picture.getvalue()), (member, sprung)):
            if name != "a.png" or member != "a.jpg":  # a sample has one image
                info = tarfile.TarInfo(name)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    words = {"source": "wds", "raw": str(folder), "out": str(folder), "patient": "key", "ids": "source", **asked}
    with pytest.raises(InputError) as error:
        wds.write(wds.Options.model_validate({**words, "num_processes": 1}))
    refused(error, "x.tar: member")
    assert [path.name for path in folder.iterdir()] == ["x.tar"]


def test_a_pickle_as_an_image_of_a_dataset(synthetic_dataset: Dataset, tmp_path: Path) -> None:
    content, folder = trap(tmp_path / "was unpickled", "bare"), tmp_path / "dataset"
    shutil.copytree(synthetic_dataset.location, folder)
    index = parquet.read_table(folder / INDEX)
    offset, size = (index.column(name)[0].as_py() for name in ("offset", "size"))
    content += bytes(size - len(content))  # what comes after a pickle's end is not looked at
    shard = folder / synthetic_dataset.manifest.shards[int(synthetic_dataset.shard_of[0])]
    whole = bytearray(shard.read_bytes())
    whole[offset : offset + size] = content
    shard.write_bytes(whole)
    hashes = [record(content)["sha256"], *index.column("sha256").to_pylist()[1:]]
    place = index.schema.get_field_index("sha256")
    parquet.write_table(index.set_column(place, index.schema.field(place), pa.array(hashes)), folder / INDEX)
    manifest = read_manifest(Folder(folder))
    files = {**manifest.files}
    for path in (shard, folder / INDEX):
        files[path.name] = FileRecord(**record(path.read_bytes()))
    (folder / "manifest.json").write_bytes(manifest_bytes(seal(manifest.model_copy(update={"files": files}))))
    with pytest.raises(BadImage, match="not an image"):
        decode_stored(open_dataset(str(folder)).read(0))
    assert not (tmp_path / "was unpickled").exists()
