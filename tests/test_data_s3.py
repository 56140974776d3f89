"""A dataset on S3: the real boto stack against a local server."""

import importlib
import subprocess
import sys
from pathlib import Path

import boto3
import pytest

from clusters import retries
from clusters.config import InputError
from clusters.storage import Folder
from data.dataset import open_dataset
from data.shards import write_dataset
from data.verify import verify
from tests.drawn_cases import Drawn, cases, config, files, interrupted

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("written") / "dataset"
    write_dataset(cases(30), config(out))
    return out


def objects(location: str) -> dict[str, bytes]:
    folder = Folder(location)
    return {name: folder.read(name) for name in folder.sizes()}


def test_an_interrupted_import_to_a_bucket_goes_on_and_ends_in_the_same_bytes(
    bucket: str, written: Path, tmp_path: Path
) -> None:
    out, repaired = f"{bucket}/interrupted", tmp_path / "repaired"
    raw = interrupted(written, repaired)
    with pytest.raises(RuntimeError, match="stops here"):
        write_dataset(raw, config(out))
    with pytest.raises(InputError, match=r"no manifest\.json"):
        open_dataset(out)
    client = boto3.client("s3")

    def tars() -> dict[str, object]:
        listed = client.list_objects_v2(Bucket="lab", Prefix="interrupted/")["Contents"]
        return {entry["Key"]: entry["LastModified"] for entry in listed if entry["Key"].endswith(".tar")}

    finished = tars()
    assert 0 < len(finished) < 4
    repaired.touch()
    assert not write_dataset(raw, config(out)).reused
    assert {name: tars()[name] for name in finished} == finished, "no finished shard is written again"
    assert objects(out) == files(written)
    assert write_dataset(raw, config(out)).reused


def test_a_dataset_in_a_bucket_is_read_and_verified(bucket: str, written: Path) -> None:
    out = f"{bucket}/copy"
    for name, content in files(written).items():
        Folder(out).write(name, content)
    dataset, local = open_dataset(out), open_dataset(str(written))
    assert [dataset.read(row) for row in range(0, 60, 7)] == [local.read(row) for row in range(0, 60, 7)]
    assert verify(out).startswith(f"OK: {out}: 60 images")
    shard = Folder(out).read("shard-000001.tar")
    Folder(out).write("shard-000001.tar", shard[:-1] + b"x")
    Folder(out).remove("shard-000002.tar")
    with pytest.raises(InputError, match=r"2 problems(.|\n)*000001\.tar was altered(.|\n)*000002\.tar is missing"):
        verify(out)
    with pytest.raises(InputError, match=r"shard-000002\.tar is missing"):
        open_dataset(out)


def test_a_folder_in_a_bucket_that_is_not_empty_is_refused(bucket: str) -> None:
    out = f"{bucket}/taken"
    Folder(out).write("notes.txt", b"mine")
    with pytest.raises(InputError, match="is not empty"):
        write_dataset(cases(3), config(out))
    assert objects(out) == {"notes.txt": b"mine"}


def run(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "data", *words], cwd=ROOT, capture_output=True, text=True, timeout=200, check=False
    )


def test_the_command_line_imports_from_a_bucket_into_a_bucket(bucket: str) -> None:
    raw = Folder(f"{bucket}/raw")
    for number in range(4):
        raw.write(f"pictures/{number}.png", Drawn(number)())
    raw.write("table.csv", b"image,who\n" + b"".join(b"pictures/%d.png,p%d\n" % (n, n) for n in range(4)))
    words = ["source=table", f"raw={bucket}/raw/table.csv", "image=image", "patient=who", "ids=source"]
    ended = run("import", *words, f"out={bucket}/from-raw")
    assert ended.returncode == 0, ended.stderr
    assert f"wrote {bucket}/from-raw: 4 images" in ended.stdout
    assert sorted(objects(f"{bucket}/from-raw")) == ["index.parquet", "manifest.json", "shard-000000.tar"]
    assert verify(f"{bucket}/from-raw").startswith("OK")


def test_a_bucket_that_is_not_there_or_not_ours_is_one_line(
    bucket: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import s3fs

    with pytest.raises(InputError, match=r"s3://nobody/x has no manifest"):
        verify("s3://nobody/x")
    with pytest.raises(InputError, match=r"^s3://nobody/x.*bucket does not exist"):
        write_dataset(cases(3), config("s3://nobody/x"))
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    s3fs.S3FileSystem.clear_instance_cache()
    monkeypatch.setattr(s3fs.S3FileSystem, "retries", 1)
    try:
        monkeypatch.setattr(retries, "RETRY_AFTER_S", (0.0,))
        with pytest.raises(ConnectionError, match=r"s3://lab/x: .*127\.0\.0\.1:9"):
            Folder("s3://lab/x").names()
        assert "s3://lab/x could not be listed" in capsys.readouterr().out, "what may pass is tried again"
    finally:
        s3fs.S3FileSystem.clear_instance_cache()


def test_without_the_driver_its_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "s3fs", None)
    monkeypatch.delitem(importlib.import_module("fsspec.registry")._registry, "s3", raising=False)
    with pytest.raises(InputError, match=r"pip install 's3fs>=2025\.3'$"):
        Folder("s3://lab/x")
