"""Writing a dataset: what comes back is what went in, and the bytes depend on nothing else."""

import hashlib
import io
import pickle
import tarfile
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import fsspec
import numpy as np
import pytest
from PIL import Image
from webdataset.compat import WebDataset
from webdataset.writer import TarWriter

from clusters.config import InputError
from clusters.storage import Folder
from data.cases import Case, RawDataset, RawFile, SourceImage
from data.config import settings
from data.dataset import Dataset, open_dataset
from data.images import decode_stored
from data.segments import tar_end, tar_member
from data.shards import write_dataset
from data.verify import verify
from tests.drawn_cases import Absent, Drawn, Fixed, cases, config, files


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("written") / "dataset"
    write_dataset(cases(30), config(out))
    return out


def test_labels_attributes_and_pixels_come_back(written: Path) -> None:
    raw = {case.key: case for case in cases(30).cases}
    dataset = open_dataset(str(written))
    assert (dataset.num_cases, dataset.num_images) == (30, 60)
    assert len(np.unique(dataset.shard_of)) == 4
    columns = {name: dataset.column(name) for name in ("key", "patient", "attr.sex", "attr.site", "member")}
    seen: dict[str, int] = {}
    for row in range(dataset.num_images):
        case = raw[columns["key"][row]]
        number = seen.setdefault(case.key, 0)
        seen[case.key] += 1
        assert columns["member"][row] == f"{case.key}.{number}.jpg"
        assert columns["patient"][row] == case.patient
        assert np.array_equal(dataset.labels[row], [*case.labels.values()], equal_nan=True)
        assert columns["attr.sex"][row] == "female"
        assert columns["attr.site"][row] == ("ear" if number else "nose")
        content = case.images[number].read()
        assert isinstance(content, bytes)
        original = np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))
        assert np.abs(decode_stored(dataset.read(row)).astype(int) - original).mean() < 3
    assert (np.diff(dataset.case_of) >= 0).all()
    assert dataset.case_of[-1] == 29
    assert len({(key, case) for key, case in zip(columns["key"], dataset.case_of)}) == 30


def test_splits_are_by_patient_and_counted(written: Path) -> None:
    dataset = open_dataset(str(written))
    pairs = set(zip(dataset.column("patient"), dataset.column("split")))
    assert len(pairs) == len({patient for patient, _ in pairs}) == dataset.manifest.counts.patients
    for split, counts in dataset.manifest.splits.items():
        assert counts.images == (dataset.column("split") == split).sum()
    everything = dataset.rows([split for split, counts in dataset.manifest.splits.items() if counts.images])
    assert np.array_equal(everything, np.arange(60))
    with pytest.raises(InputError, match=r"no split 'tset'.* there are .*test"):
        dataset.rows(["tset"])
    with pytest.raises(InputError, match=r"no column 'attr\.age'"):
        dataset.column("attr.age")


def test_plain_webdataset_reads_the_same_bytes(written: Path) -> None:
    dataset = open_dataset(str(written))
    shards = [str(written / name) for name in dataset.manifest.shards.values()]
    samples = {s["__key__"]: s for s in WebDataset(shards, shardshuffle=False, empty_check=False)}
    assert len(samples) == 30
    for row, (key, member) in enumerate(zip(dataset.column("key"), dataset.column("member"))):
        assert samples[key][member.removeprefix(f"{key}.")] == dataset.read(row)


def test_the_tars_carry_no_clock_no_owner_and_no_extended_header(written: Path) -> None:
    for shard in written.glob("*.tar"):
        with tarfile.open(shard) as tar:
            members = tar.getmembers()
        headers = [shard.read_bytes()[member.offset_data - 512 : member.offset_data] for member in members]
        assert {header[156:157] + header[257:263] for header in headers} == {b"0ustar\0"}
        assert len(shard.read_bytes()) % 10240 == 0
        blocks = sum(1 + -(-member.size // 512) for member in members)
        assert blocks * 512 <= len(shard.read_bytes()) - 1024, "nothing stands between the members"
        assert not shard.read_bytes()[blocks * 512 :].strip(b"\0")
        for member in members:
            assert (member.mtime, member.uid, member.uname, member.pax_headers) == (0, 0, "manyview", {})


@pytest.mark.parametrize("key", ["a", "k" * 64, "case-7"])
def test_a_tar_is_the_one_that_webdataset_writes(key: str) -> None:
    members = {f"{key}.{number}.jpg": bytes(range(256)) * number for number in range(12)}
    theirs = io.BytesIO()
    writer = TarWriter(theirs, user="manyview", group="manyview", mode=0o444, encoder=False, mtime=0)
    writer.write({"__key__": key, **{name.removeprefix(f"{key}."): content for name, content in members.items()}})
    writer.close()
    ours = b"".join(tar_member(name, content) for name, content in sorted(members.items()))
    assert ours + tar_end(len(ours)) == theirs.getvalue()


def test_any_number_of_processes_writes_the_same_bytes(tmp_path: Path) -> None:
    for number in (1, 3):  # two are those of an import that is killed, in test_data_interrupted.py
        write_dataset(cases(180), config(tmp_path / str(number), images_per_shard=99, num_processes=number))
    one = files(tmp_path / "1")
    assert len(one) > 4
    assert files(tmp_path / "3") == one


def test_shards_have_about_256_mb_whatever_the_size_of_the_images() -> None:
    def images(short_side_px: int, **fields: int) -> int:
        chosen = config("out", **{"images_per_shard": 0, "short_side_px": short_side_px, **fields})
        assert settings(chosen)["images_per_shard"] == chosen.shard_images
        return chosen.shard_images

    assert [images(side) for side in (256, 512, 128, 16, 4096)] == [8192, 2048, 32768, 100_000, 1000]
    assert images(512, images_per_shard=7) == 7


def test_a_copy_for_another_process_reads_the_same(written: Path) -> None:
    dataset = open_dataset(str(written))
    first = dataset.read(3)
    assert pickle.loads(pickle.dumps(dataset)).read(3) == first


def test_the_same_import_again_is_reused_and_touches_nothing(written: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in written.iterdir()}
    assert write_dataset(cases(30), config(written, num_processes=2, max_bad_fraction=0.5)).reused
    assert {path: path.stat().st_mtime_ns for path in written.iterdir()} == before


def test_another_dataset_is_never_written_over(written: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"already holds another dataset \(short_side_px: 256 -> 64\)"):
        write_dataset(cases(30), config(written, short_side_px=64))
    with pytest.raises(InputError, match="other cases, images or ids"):
        write_dataset(cases(29), config(written))
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="is not empty"):
        write_dataset(cases(3), config(tmp_path))
    assert files(tmp_path) == {"notes.txt": b"mine"}


def with_bad_images(number: int) -> RawDataset:
    jpeg = io.BytesIO()
    Image.effect_noise((64, 64), 50).save(jpeg, "JPEG")
    bad: dict[int, Callable[[], bytes]] = {
        0: Absent(),
        10: Fixed(b""),
        20: Fixed(b"<html>"),
        21: Fixed(jpeg.getvalue()[:900]),
    }
    return cases(number, lambda seed: bad.get(seed, Drawn(seed)))


def test_bad_images_are_left_out_and_counted(tmp_path: Path) -> None:
    manifest = write_dataset(
        with_bad_images(30), config(tmp_path / "out", max_bad_fraction=0.05, missing="skip")
    ).manifest
    quarantined = manifest.quarantined
    assert quarantined.reasons == {"absent": 1, "not an image": 1, "truncated": 1, "zero bytes": 1}
    assert quarantined.count == 4
    assert sorted(quarantined.rows)[0] == "image 0.0: absent"
    assert quarantined.dropped_cases == 1
    assert (manifest.counts.cases, manifest.counts.images) == (29, 56)
    assert verify(str(tmp_path / "out")).startswith("OK")


def test_too_many_bad_images_stop_the_import_until_they_are_mended(written: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"of 60 images are bad, more than max_bad_fraction=0.01; the first: image"):
        write_dataset(with_bad_images(30), config(tmp_path / "out", missing="skip"))
    assert not (tmp_path / "out" / "manifest.json").exists()
    write_dataset(cases(30), config(tmp_path / "out"))
    assert files(tmp_path / "out") == files(written)


def test_an_absent_image_is_refused_with_its_row_unless_it_may_be_skipped(written: Path, tmp_path: Path) -> None:
    def raw(folder: Path) -> RawDataset:
        found = cases(30)
        images = [replace(image, read=RawFile(Folder(folder), image.name)) for c in found.cases for image in c.images]
        left = iter(images)
        return replace(found, cases=[replace(c, images=tuple(next(left) for _ in c.images)) for c in found.cases])

    folder = tmp_path / "raw"
    folder.mkdir()
    for case in cases(30).cases:
        for image in case.images:
            (folder / image.name).write_bytes(image.read())  # pyright: ignore[reportArgumentType]
    for name in ("image 4.1", "image 7.0"):
        (folder / name).rename(tmp_path / name)
    with pytest.raises(InputError, match=r"^2 of 60 images are not there; the first: image 4\.1; .* missing=skip$"):
        write_dataset(raw(folder), config(tmp_path / "out", max_bad_fraction=1))
    assert [*files(tmp_path / "out")] == [".import/plan.json"]
    (tmp_path / "image 7.0").rename(folder / "image 7.0")
    (tmp_path / "image 4.1").rename(folder / "image 4.1")
    assert not write_dataset(raw(folder), config(tmp_path / "out")).reused
    assert files(tmp_path / "out") == files(written)


def test_an_image_that_is_missed_only_when_it_is_read_stops_the_import_too(tmp_path: Path) -> None:
    raw = cases(30, lambda seed: Absent() if seed == 41 else Drawn(seed))
    with pytest.raises(InputError, match=r"^image image 4\.1 is not there; fetch .* missing=skip$"):
        write_dataset(raw, config(tmp_path / "out"))
    assert not (tmp_path / "out" / "manifest.json").exists()
    manifest = write_dataset(raw, config(tmp_path / "out", missing="skip", max_bad_fraction=0)).manifest
    assert (manifest.quarantined.reasons, manifest.counts.images) == ({"absent": 1}, 59)


def test_a_dataset_without_any_usable_image_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no usable image"):
        write_dataset(cases(3, lambda _: Fixed(b"")), config(tmp_path / "out", max_bad_fraction=1))


def test_a_url_takes_a_dataset_too(written: Path) -> None:
    out = "memory://shards-test/dataset"
    write_dataset(cases(30), config(out))
    dataset, local = open_dataset(out), open_dataset(str(written))
    assert dataset.fingerprint == local.fingerprint
    assert [dataset.read(row) for row in range(60)] == [local.read(row) for row in range(60)]
    assert verify(out).startswith(f"OK: {out}: 60 images")
    assert write_dataset(cases(30), config(out)).reused
    assert not any(".import" in name for name in fsspec.filesystem("memory").find("/shards-test"))


def test_the_fixture_has_every_split_and_is_whole(synthetic_dataset: Dataset) -> None:
    assert all(counts.images for counts in synthetic_dataset.manifest.splits.values())
    assert verify(synthetic_dataset.location).startswith("OK")
    digest = hashlib.sha256(synthetic_dataset.read(0)).hexdigest()
    assert digest == synthetic_dataset.column("sha256")[0]
    assert Folder(synthetic_dataset.location).names()[0] == "index.parquet"


def _write(raw: RawDataset, out: Path) -> str:
    write_dataset(raw, config(out))
    return str(out)


def test_pixels_without_a_file_and_doubtful_labels_reach_the_index(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    image = SourceImage("patch 0", partial(np.asarray, pixels))
    labels = {"oedema": float("nan"), "fracture": 1.0}
    case = Case("c0", "p0", (image,), labels, uncertain=frozenset({"oedema"}))
    raw = RawDataset("CC0", "nobody", "multilabel", ("oedema", "fracture"), [case], "a study")
    dataset = open_dataset(_write(raw, tmp_path / "out"))
    assert dataset.column("uncertain.oedema").tolist() == [True]
    assert "uncertain.fracture" not in dataset.index.column_names
    assert np.array_equal(dataset.labels, [[np.nan, 1.0]], equal_nan=True)
    assert dataset.manifest.case == "a study"
    assert np.abs(decode_stored(dataset.read(0)).astype(int) - pixels).mean() < 12
