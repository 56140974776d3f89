import hashlib
import io
import pickle
import random
import shutil
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import cv2
import fsspec
import numpy as np
import pytest
from PIL import Image
from webdataset.compat import WebDataset

from clusters.config import InputError
from clusters.storage import Folder
from data.cases import Case, RawDataset, SourceImage, one_hot
from data.config import ImportConfig
from data.dataset import Dataset, open_dataset
from data.images import decode_stored, difference_hash, encode_jpeg, shrink
from data.shards import write_dataset
from data.sources import read_raw, synthetic
from data.verify import verify

CLASSES = ("bcc", "mel", "nv")


@dataclass(frozen=True)
class Drawn:
    """A small picture of its own; or fails while the file `unless` is not there."""

    seed: int
    unless: str = ""

    def __call__(self) -> bytes:
        if self.unless and not Path(self.unless).exists():
            raise RuntimeError("the machine stops here")
        buffer = io.BytesIO()
        pixels = np.random.default_rng(self.seed).integers(0, 255, (3, 4, 3), np.uint8)
        Image.fromarray(pixels).resize((40, 30)).save(buffer, "PNG")
        return buffer.getvalue()


@dataclass(frozen=True)
class Fixed:
    content: bytes

    def __call__(self) -> bytes:
        return self.content


@dataclass(frozen=True)
class Absent:
    def __call__(self) -> bytes:
        raise FileNotFoundError


def cases(number: int, read: Callable[[int], Callable[[], bytes]] = Drawn) -> RawDataset:
    """Cases of one to three images, two cases a patient."""
    found = []
    for i in range(number):
        images = tuple(
            SourceImage(f"image {i}.{k}", read(10 * i + k), {"site": "ear" if k else "nose"}) for k in range(i % 3 + 1)
        )
        label = None if i % 5 == 4 else CLASSES[i % 3]
        found.append(Case(f"case-{i}", f"p{i // 2}", images, one_hot(label, CLASSES), {"sex": "female"}))
    return RawDataset("CC0", "nobody", "multiclass", CLASSES, found, "a lesion")


def config(out: Path | str, **fields: object) -> ImportConfig:
    values = {"source": "drawn", "raw": "/raw", "out": str(out), "num_processes": 1, "images_per_shard": 16}
    return ImportConfig.model_validate({**values, **fields})


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


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


def test_the_tars_carry_no_clock_and_no_owner(written: Path) -> None:
    for shard in written.glob("*.tar"):
        assert shard.read_bytes()[257:263] == b"ustar\0"
        with tarfile.open(shard) as tar:
            for member in tar:
                assert (member.mtime, member.uid, member.uname, member.pax_headers) == (0, 0, "manyview", {})


def test_two_processes_write_the_same_bytes_as_one(tmp_path: Path) -> None:
    for number in (1, 2):
        options = synthetic.Options(
            source="synthetic",
            out=str(tmp_path / str(number)),
            num_cases=140,
            size_px=32,
            images_per_shard=99,
        ).model_copy(update={"num_processes": number})
        write_dataset(read_raw(options), options)
    assert len(files(tmp_path / "1")) > 4
    assert files(tmp_path / "1") == files(tmp_path / "2")


def test_a_copy_for_another_process_reads_the_same(written: Path) -> None:
    dataset = open_dataset(str(written))
    first = dataset.read(3)
    assert pickle.loads(pickle.dumps(dataset)).read(3) == first


def interrupted(written: Path, repaired: Path) -> RawDataset:
    """The same cases, but the machine stops at the last one until the file `repaired` is there."""
    last = int(str(open_dataset(str(written)).column("key")[-1]).removeprefix("case-"))
    return cases(30, lambda seed: Drawn(seed, str(repaired) if seed == 10 * last else ""))


def test_an_interrupted_import_goes_on_and_ends_in_the_same_bytes(written: Path, tmp_path: Path) -> None:
    out, repaired = tmp_path / "dataset", tmp_path / "repaired"
    raw = interrupted(written, repaired)
    with pytest.raises(RuntimeError, match="stops here"):
        write_dataset(raw, config(out))
    with pytest.raises(InputError, match=r"no manifest\.json"):
        open_dataset(str(out))
    finished = {shard: shard.stat().st_ino for shard in out.glob("*.tar")}
    assert 0 < len(finished) < 4
    (out / ".shard-000003.tar.0a1b2c3d.part").write_bytes(b"half")  # as SIGKILL would leave it
    repaired.touch()
    assert not write_dataset(raw, config(out)).reused
    assert all(shard.stat().st_ino == inode for shard, inode in finished.items())
    assert files(out) == files(written)


def test_a_shard_damaged_between_two_starts_is_written_again(written: Path, tmp_path: Path) -> None:
    out, repaired = tmp_path / "dataset", tmp_path / "repaired"
    raw = interrupted(written, repaired)
    with pytest.raises(RuntimeError):
        write_dataset(raw, config(out))
    first = next(out.glob("*.tar"))
    first.write_bytes(first.read_bytes()[:-1] + b"x")
    repaired.touch()
    write_dataset(raw, config(out))
    assert files(out) == files(written)


def test_the_same_import_again_is_reused_and_touches_nothing(written: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in written.iterdir()}
    assert write_dataset(cases(30), config(written, num_processes=2, max_bad_fraction=0.5)).reused
    assert {path: path.stat().st_mtime_ns for path in written.iterdir()} == before


def test_a_damaged_dataset_is_not_reused(written: Path, tmp_path: Path) -> None:
    folder = copy(written, tmp_path)
    (folder / "shard-000001.tar").unlink()
    with pytest.raises(InputError, match=r"shard-000001\.tar is missing; copy the dataset or import it again"):
        write_dataset(cases(30), config(folder))


def test_another_dataset_is_never_written_over(written: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"already holds another dataset \(short_side_px: 256 -> 64\)"):
        write_dataset(cases(30), config(written, short_side_px=64))
    with pytest.raises(InputError, match="other cases, images or ids"):
        write_dataset(cases(29), config(written))
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="is not empty"):
        write_dataset(cases(3), config(tmp_path))
    assert files(tmp_path) == {"notes.txt": b"mine"}


def test_an_unfinished_import_with_other_settings_is_not_continued(tmp_path: Path) -> None:
    raw = cases(9, lambda seed: Drawn(seed, "/nowhere" if seed == 40 else ""))
    with pytest.raises(RuntimeError):
        write_dataset(raw, config(tmp_path / "out"))
    with pytest.raises(InputError, match=r"unfinished import with other settings .jpeg_quality: 92 -> 80"):
        write_dataset(raw, config(tmp_path / "out", jpeg_quality=80))


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
    manifest = write_dataset(with_bad_images(30), config(tmp_path / "out", max_bad_fraction=0.1)).manifest
    quarantined = manifest.quarantined
    assert quarantined.reasons == {"absent": 1, "not an image": 1, "truncated": 1, "zero bytes": 1}
    assert quarantined.count == 4
    assert sorted(quarantined.rows)[0] == "image 0.0: absent"
    assert quarantined.dropped_cases == 1
    assert (manifest.counts.cases, manifest.counts.images) == (29, 56)
    assert verify(str(tmp_path / "out")).startswith("OK")


def test_too_many_bad_images_stop_the_import_until_they_are_mended(written: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"of 60 images are bad, more than max_bad_fraction=0.01; the first: image"):
        write_dataset(with_bad_images(30), config(tmp_path / "out"))
    assert not (tmp_path / "out" / "manifest.json").exists()
    write_dataset(cases(30), config(tmp_path / "out"))
    assert files(tmp_path / "out") == files(written)


def test_a_dataset_without_any_usable_image_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no usable image"):
        write_dataset(cases(3, lambda _: Fixed(b"")), config(tmp_path / "out", max_bad_fraction=1))


def test_the_same_pixels_in_two_splits_are_refused_unless_kept(tmp_path: Path) -> None:
    raw = cases(30, lambda seed: Drawn(0 if seed in (0, 10, 20, 40, 50, 60, 70, 80, 90) else seed))
    with pytest.raises(InputError, match=r"\(\w+, image \d.0\) hold the same pixels in two splits; .* duplicates=keep"):
        write_dataset(raw, config(tmp_path / "out"))
    manifest = write_dataset(raw, config(tmp_path / "out", duplicates="keep")).manifest
    assert manifest.duplicates["images"] == 8
    assert manifest.duplicates["across_splits"] > 0


def test_a_url_takes_a_dataset_too(written: Path) -> None:
    out = "memory://shards-test/dataset"
    write_dataset(cases(30), config(out))
    dataset, local = open_dataset(out), open_dataset(str(written))
    assert dataset.fingerprint == local.fingerprint
    assert [dataset.read(row) for row in range(60)] == [local.read(row) for row in range(60)]
    assert verify(out).startswith(f"OK: {out}: 60 images")
    assert write_dataset(cases(30), config(out)).reused
    assert not any(".import" in name for name in fsspec.filesystem("memory").find("/shards-test"))


def copy(written: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(written, tmp_path / "copy"))


@pytest.mark.parametrize("name", ["manifest.json", "index.parquet", "shard-000001.tar"])
def test_verify_finds_any_flipped_bit_and_any_cut(written: Path, tmp_path: Path, name: str) -> None:
    file = copy(written, tmp_path) / name
    content = file.read_bytes()
    rng = random.Random(0)
    for place in [0, len(content) - 1, *(rng.randrange(len(content)) for _ in range(25))]:
        flipped = bytearray(content)
        flipped[place] ^= 1 << rng.randrange(8)
        for damaged in (bytes(flipped), content[:place]):
            file.write_bytes(damaged)
            with pytest.raises(InputError, match=name):
                verify(str(file.parent))
    file.write_bytes(content)
    assert verify(str(file.parent)).startswith("OK")


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


def test_a_folder_that_is_no_dataset_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere has no manifest\.json: not a dataset folder"):
        open_dataset(str(tmp_path / "nowhere"))


def test_the_fixture_has_every_split_and_is_whole(synthetic_dataset: Dataset) -> None:
    assert all(counts.images for counts in synthetic_dataset.manifest.splits.values())
    assert verify(synthetic_dataset.location).startswith("OK")
    digest = hashlib.sha256(synthetic_dataset.read(0)).hexdigest()
    assert digest == synthetic_dataset.column("sha256")[0]
    assert Folder(synthetic_dataset.location).names()[0] == "index.parquet"


def _written(raw: RawDataset, out: Path) -> str:
    write_dataset(raw, config(out))
    return str(out)


def test_pixels_without_a_file_and_doubtful_labels_reach_the_index(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    image = SourceImage("patch 0", partial(np.asarray, pixels))
    labels = {"oedema": float("nan"), "fracture": 1.0}
    case = Case("c0", "p0", (image,), labels, uncertain=frozenset({"oedema"}))
    raw = RawDataset("CC0", "nobody", "multilabel", ("oedema", "fracture"), [case], "a study")
    dataset = open_dataset(_written(raw, tmp_path / "out"))
    assert dataset.column("uncertain.oedema").tolist() == [True]
    assert "uncertain.fracture" not in dataset.index.column_names
    assert np.array_equal(dataset.labels, [[np.nan, 1.0]], equal_nan=True)
    assert dataset.manifest.case == "a study"
    assert np.abs(decode_stored(dataset.read(0)).astype(int) - pixels).mean() < 12


def test_near_copies_differ_in_few_bits_of_the_perceptual_hash() -> None:
    rng = np.random.default_rng(0)
    noise = [rng.integers(0, 256, (12, 12, 3), dtype=np.uint8) for _ in range(2)]
    smooth = [np.asarray(cv2.resize(pixels, (300, 240)), np.uint8) for pixels in noise]
    copy = decode_stored(encode_jpeg(shrink(smooth[0], 100), 60))
    near, far = (difference_hash(other) ^ difference_hash(smooth[0]) for other in (copy, smooth[1]))
    assert near.bit_count() <= 4 < 12 <= far.bit_count()
