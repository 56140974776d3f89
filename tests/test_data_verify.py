"""verify: nothing is cut, flipped, added, swapped or missing in silence."""

import hashlib
import json
import random
import shutil
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest

from clusters.config import InputError, load_config
from clusters.storage import Folder
from data.config import ImportConfig
from data.dataset import open_dataset
from data.manifest import INDEX, FileRecord, manifest_bytes, read_manifest, seal
from data.progress import Progress
from data.shards import write_dataset
from data.verify import verify
from tests.drawn_cases import cases, config

NUM_FLIPS = 500


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("written") / "dataset"
    write_dataset(cases(30), config(out))
    return out


@pytest.fixture(scope="module")
def scratch(written: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copy(written, tmp_path_factory.mktemp("scratch"))


def damaged(scratch: Path, name: str, content: bytes) -> str:
    """What verify says when a file has this content; the file is mended again."""
    file = scratch / name
    whole = file.read_bytes()
    file.write_bytes(content)
    try:
        with pytest.raises(InputError) as caught:
            verify(str(scratch))
    finally:
        file.write_bytes(whole)
    return str(caught.value)


def copy(written: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(written, tmp_path / "copy"))


def test_verify_names_the_image_that_differs_and_reading_it_is_refused(written: Path, tmp_path: Path) -> None:
    folder = copy(written, tmp_path)
    dataset = open_dataset(str(folder))
    row = 17
    member, shard = dataset.column("member")[row], dataset.manifest.shards[int(dataset.shard_of[row])]
    content = bytearray((folder / shard).read_bytes())
    content[dataset.column("offset")[row] + 300] ^= 4
    (folder / shard).write_bytes(bytes(content))
    with pytest.raises(InputError, match=rf"1 problem; .*\n.*{shard} was altered .*image {member} differs"):
        verify(str(folder))
    with pytest.raises(InputError, match=rf"{shard}: image {member} was altered"):
        open_dataset(str(folder)).read(row)


@pytest.mark.parametrize("block_bytes", [100, 512, 5000])
def test_images_that_reach_over_the_pieces_in_which_a_shard_is_read(
    scratch: Path, monkeypatch: pytest.MonkeyPatch, block_bytes: int
) -> None:
    monkeypatch.setattr("data.verify.BLOCK_BYTES", block_bytes)
    assert verify(str(scratch)).startswith("OK")
    dataset = open_dataset(str(scratch))
    members, offsets, sizes = (dataset.column(name) for name in ("member", "offset", "size"))
    for row in np.flatnonzero(dataset.shard_of == 1).tolist():
        for place in (offsets[row], offsets[row] + sizes[row] - 1):
            content = bytearray((scratch / "shard-000001.tar").read_bytes())
            content[place] ^= 1
            said = damaged(scratch, "shard-000001.tar", bytes(content))
            assert said.endswith(f"shard-000001.tar was altered (its hash differs); image {members[row]} differs")


def test_a_missing_cut_or_added_shard_is_named(written: Path, tmp_path: Path) -> None:
    folder = copy(written, tmp_path)
    shard = folder / "shard-000002.tar"
    content = shard.read_bytes()
    shard.unlink()
    for read in (open_dataset, verify):
        with pytest.raises(InputError, match=r"shard-000002\.tar is missing"):
            read(str(folder))
    shard.write_bytes(content[:-512])
    for read in (open_dataset, verify):
        with pytest.raises(InputError, match=r"shard-000002\.tar has [\d,]+ bytes, the manifest says"):
            read(str(folder))
    shard.write_bytes(content)
    (folder / "shard-000009.tar").write_bytes(content)
    with pytest.raises(InputError, match=r"shard-000009\.tar is not in the manifest"):
        verify(str(folder))


def test_two_problems_are_two_lines(written: Path, tmp_path: Path) -> None:
    folder = copy(written, tmp_path)
    (folder / "shard-000000.tar").unlink()
    (folder / "shard-000003.tar").write_bytes(b"")
    with pytest.raises(InputError) as caught:
        verify(str(folder))
    summary, *problems = str(caught.value).splitlines()
    assert "2 problems" in summary
    assert len(problems) == 2


def test_an_altered_manifest_or_index_is_refused_on_opening(written: Path, tmp_path: Path) -> None:
    folder = copy(written, tmp_path)
    manifest = folder / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"multiclass"', '"multilabel"'))
    with pytest.raises(InputError, match=r"manifest\.json was altered"):
        open_dataset(str(folder))
    shutil.copy(written / "manifest.json", manifest)
    index = bytearray((folder / "index.parquet").read_bytes())
    index[100] ^= 1
    (folder / "index.parquet").write_bytes(bytes(index))
    with pytest.raises(InputError, match=r"index\.parquet was altered"):
        open_dataset(str(folder))


@pytest.mark.parametrize(
    "changed",
    [{"name": "../../escaped/x"}, {"name": "a\\b"}, {"name": ".x"}, {"name": "x\x1b[2J"}, {"name": "x" * 101},
     {"labels": ["melanoma\x1b[2J"]}],
)  # fmt: skip
def test_names_that_lead_elsewhere_are_refused(written: Path, tmp_path: Path, changed: dict[str, Any]) -> None:
    """Folders are called by them, and terminals show them."""
    folder = copy(written, tmp_path)
    manifest = read_manifest(Folder(folder))
    sealed = seal(manifest.model_copy(update={**changed, "sha256": ""}))
    (folder / "manifest.json").write_bytes(manifest_bytes(sealed))
    with pytest.raises(InputError, match="is no name of a dataset or label; ask") as caught:
        read_manifest(Folder(folder))
    assert str(caught.value).isprintable()
    if "name" in changed:
        with pytest.raises(InputError, match="'name' in the command line: no / or"):
            load_config(ImportConfig, ["source=folder", "raw=x", "out=y", f"name={changed['name']}"])


def with_column(folder: Path, name: str, values: list[str], **changed: Any) -> None:
    """The dataset with one more column in its index, and a manifest that agrees."""
    index = folder / INDEX
    parquet.write_table(parquet.read_table(index).append_column(name, pa.array(values)), index)
    manifest = read_manifest(Folder(folder))
    record = FileRecord(size=index.stat().st_size, sha256=Folder(folder).sha256(INDEX))
    update = {**changed, "files": {**manifest.files, INDEX: record}, "sha256": ""}
    (folder / "manifest.json").write_bytes(manifest_bytes(seal(manifest.model_copy(update=update))))


def test_columns_that_steer_a_terminal_are_refused(written: Path, tmp_path: Path) -> None:
    folder = copy(written, tmp_path)
    with_column(folder, "attr.si\x1b[2Jte", ["a"] * parquet.read_table(folder / INDEX).num_rows)
    with pytest.raises(InputError, match="is no name of a column; ask") as caught:
        open_dataset(str(folder))
    assert str(caught.value).isprintable()
    with pytest.raises(
        InputError, match=r"1 problem; .*\n  index\.parquet: 'attr\.si\\x1b\[2Jte' is no name of a"
    ) as caught:
        verify(str(folder))
    assert "\x1b" not in str(caught.value)


TELLING: dict[str, tuple[str, list[str], str]] = {
    "year": ("group", ["1931"], "'group' looks like a year"),
    "date": ("group", ["1931-05-30"], "'group' looks like a date"),
    "title": ("group", ["Dr. Zzcanary"], "'group' begins like the name"),
    "words": ("group", ["saw Zzcanary in May"], "'group' has more than 3 words"),
    "id": ("group", ["Zzcanary 943476"], "'group' looks like an id"),
    "age": ("age", ["47"], "'age' holds ages that are in no bands"),
    "age elsewhere": ("edad", ["47 años"], "'edad' holds ages that are in no bands"),
    "header": ("nom", ["x"], "the header 'nom' means that it tells who somebody is"),
    "many values": ("group", [f"Zzcanary{row:x}" for row in range(101)], "more than 100 different values"),
    "of one patient each": ("group", [f"Zzcanary{row}" for row in range(13)], "13 of them of one patient each"),
}


@pytest.mark.parametrize("told", TELLING)
def test_an_attribute_that_no_import_with_keyed_ids_lets_through_is_a_problem(told: str, tmp_path: Path) -> None:
    name, some, message = TELLING[told]
    write_dataset(cases(120), config(tmp_path / "out"))
    patients = parquet.read_table(tmp_path / "out" / INDEX, columns=["patient"]).column("patient").to_pylist()
    number = {patient: place for place, patient in enumerate(dict.fromkeys(patients))}
    if told == "many values":
        values = [some[row % len(some)] for row in range(len(patients))]
    else:
        values = [some[number[patient]] if number[patient] < len(some) else "" for patient in patients]
    with_column(tmp_path / "out", f"attr.{name}", values, ids="keyed", source="table")
    with pytest.raises(InputError, match="1 problem; ") as caught:
        verify(str(tmp_path / "out"))
    assert message in str(caught.value).splitlines()[1]
    assert "Zzcanary" not in str(caught.value)


@pytest.mark.parametrize("changed", [{"ids": "source", "source": "table"}, {"ids": "keyed", "source": "ham10000"}])
def test_what_is_published_is_held_to_no_such_thing(written: Path, tmp_path: Path, changed: dict[str, Any]) -> None:
    folder = copy(written, tmp_path)
    with_column(folder, "attr.group", ["1931"] * parquet.read_table(folder / INDEX).num_rows, **changed)
    assert verify(str(folder)).startswith("OK")


def test_attributes_with_bands_and_groups_are_no_problem(written: Path, tmp_path: Path) -> None:
    folder = copy(written, tmp_path)
    num_images = parquet.read_table(folder / INDEX).num_rows
    bands = [f"{5 * (row % 20)}-{5 * (row % 20) + 4}" for row in range(num_images)]
    for name, values in (("age", bands), ("ageyears", bands), ("site", ["lower extremity"] * num_images)):
        with_column(folder, f"attr.about.{name}", values, ids="keyed", source="table")
    assert verify(str(folder)).startswith("OK")


def test_a_folder_that_is_no_dataset_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere has no manifest\.json: not a dataset folder"):
        open_dataset(str(tmp_path / "nowhere"))


def test_every_cut_at_a_block_is_found_and_named(scratch: Path) -> None:
    for name in ("shard-000000.tar", "index.parquet", "manifest.json"):
        content = (scratch / name).read_bytes()
        for end in range(0, len(content), 512):
            said = damaged(scratch, name, content[:end])
            assert name in said
            assert name == "manifest.json" or f"{name} has {end:,} bytes, the manifest says {len(content):,}" in said
    assert verify(str(scratch)).startswith("OK")


def test_every_flipped_bit_is_found_and_named(scratch: Path) -> None:
    rng = random.Random(0)
    names = sorted(path.name for path in scratch.iterdir())
    contents = {name: (scratch / name).read_bytes() for name in names}
    for number in range(NUM_FLIPS):
        name = names[number % len(names)]
        flipped = bytearray(contents[name])
        place = {0: 0, 1: len(flipped) - 1}.get(number // len(names), rng.randrange(len(flipped)))
        flipped[place] ^= 1 << rng.randrange(8)
        said = damaged(scratch, name, bytes(flipped))
        assert name in said
        assert all(other not in said for other in names if other != name), said
    assert verify(str(scratch)).startswith("OK")


def test_added_bytes_and_swapped_shards_are_found(scratch: Path) -> None:
    one, two = "shard-000000.tar", "shard-000001.tar"
    contents = {name: (scratch / name).read_bytes() for name in (one, two, "index.parquet", "manifest.json")}
    for name, content in contents.items():
        assert name in damaged(scratch, name, content + b"\0" * 512)
        assert name in damaged(scratch, name, content + b"\n")
    (scratch / two).write_bytes(contents[one])
    try:
        said = damaged(scratch, one, contents[two])
    finally:
        (scratch / two).write_bytes(contents[two])
    assert "2 problems" in said
    assert one in said and two in said


def test_a_tar_that_was_added_in_a_folder_below_is_named(scratch: Path) -> None:
    below = scratch / "more"
    below.mkdir()
    shutil.copy(scratch / "shard-000000.tar", below / "extra.tar")
    with pytest.raises(InputError, match=r"more/extra\.tar is not in the manifest"):
        verify(str(scratch))
    shutil.rmtree(below)


def before_hashes_of_the_rest(folder: Path) -> None:
    """The manifest as it was written before shards had a hash of what is no image."""
    manifest = read_manifest(Folder(folder))
    files = {name: record.model_copy(update={"rest_sha256": None}) for name, record in manifest.files.items()}
    sealed = seal(manifest.model_copy(update={"files": files, "sha256": ""}))
    (folder / "manifest.json").write_bytes(manifest_bytes(sealed))
    assert "rest_sha256" not in (folder / "manifest.json").read_text()


def test_a_whole_dataset_is_hashed_once_and_one_from_before_there_was_a_hash_of_the_rest_twice(
    written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = copy(written, tmp_path)
    hashed = Counter()

    class Counting:
        def __init__(self, content: bytes = b"") -> None:
            self.digest = hashlib.sha256()
            self.update(content)

        def update(self, content: bytes | memoryview) -> None:
            hashed["bytes"] += len(content)
            self.digest.update(content)

        def hexdigest(self) -> str:
            return self.digest.hexdigest()

    monkeypatch.setattr("data.verify.hashlib", SimpleNamespace(sha256=Counting))
    size = sum(record.size for record in read_manifest(Folder(folder)).files.values())
    verify(str(folder))
    assert hashed["bytes"] == size
    before_hashes_of_the_rest(folder)
    verify(str(folder))
    images = sum(parquet.read_table(folder / "index.parquet").column("size").to_pylist())
    assert hashed["bytes"] == 2 * size + images


def test_every_flipped_bit_is_found_without_a_hash_of_the_rest(written: Path, tmp_path: Path) -> None:
    folder = copy(written, tmp_path)
    before_hashes_of_the_rest(folder)
    content = (folder / "shard-000000.tar").read_bytes()
    rng = random.Random(1)
    for _ in range(40):
        flipped = bytearray(content)
        flipped[rng.randrange(len(flipped))] ^= 1 << rng.randrange(8)
        assert "shard-000000.tar was altered (its hash differs)" in damaged(folder, "shard-000000.tar", bytes(flipped))


def with_index(folder: Path, name: str, values: list) -> None:
    """Another column in the index, and a manifest whose hashes hold: only the shards can tell."""
    table = parquet.read_table(folder / "index.parquet")
    place = table.column_names.index(name)
    parquet.write_table(table.set_column(place, table.schema.field(name), [values]), folder / "index.parquet")
    manifest, files = read_manifest(Folder(folder)), Folder(folder)
    record = FileRecord(size=files.size("index.parquet"), sha256=files.sha256("index.parquet"))
    sealed = seal(manifest.model_copy(update={"files": {**manifest.files, "index.parquet": record}, "sha256": ""}))
    (folder / "manifest.json").write_bytes(manifest_bytes(sealed))


@pytest.mark.parametrize("column", ["sha256", "offset", "size", "shard", "patient"])
def test_an_index_that_tells_of_other_images_is_found_although_every_hash_holds(
    written: Path, tmp_path: Path, column: str
) -> None:
    folder = copy(written, tmp_path)
    values = parquet.read_table(folder / "index.parquet").column(column).to_pylist()
    where = next(place for place in range(len(values) - 1) if values[place] != values[place + 1])
    values[where], values[where + 1] = values[where + 1], values[where]
    with_index(folder, column, values)
    with pytest.raises(
        InputError, match=r"stands in two splits" if column == "patient" else r"image case-\d+\.\d\.jpg"
    ):
        verify(str(folder))


def test_progress_tells_how_long_it_will_take(written: Path, capsys: pytest.CaptureFixture[str]) -> None:
    progress = Progress("verify", 4, "MB", interval_s=0)
    progress.advance(1)
    progress.advance(1.5)
    progress.close()
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("verify: 1 of 4 MB, ") and lines[0].endswith(" left")
    verify(str(written), quiet=False)
    assert capsys.readouterr().err.startswith("verify: ")
    verify(str(written))
    assert not capsys.readouterr().err


def test_sizes_are_told_by_one_listing(written: Path) -> None:
    stated = json.loads((written / "manifest.json").read_text())["files"]
    sizes = Folder(written).sizes()
    assert {name: sizes[name] for name in stated} == {name: record["size"] for name, record in stated.items()}
    assert Folder(written / "nowhere").sizes() == {}
