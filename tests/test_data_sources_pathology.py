"""PatchCamelyon on miniatures of its HDF5 files."""

import gzip
import multiprocessing
import pickle
import re
from collections import Counter
from pathlib import Path

import h5py
import numpy as np
import pytest

from clusters.config import InputError
from data.images import decode_stored
from data.sources import pcam
from tests.importers import everything, imported, read

NUM_PATCHES = {"train": 12, "valid": 4, "test": 5}
SLIDES = {"train": "camelyon16_train_tumor_", "valid": "camelyon16_train_normal_", "test": "camelyon16_test_"}


def name(part: str, kind: str) -> str:
    return f"camelyonpatch_level_2_split_{part}_{kind}"


def patches(part: str) -> np.ndarray:
    """Smooth patches, as tissue is, another one each: uint8 `(N, 96, 96, 3)`."""
    rng = np.random.default_rng(list(part.encode()))
    coarse = rng.integers(60, 220, (NUM_PATCHES[part], 6, 6, 3), np.uint8)
    return coarse.repeat(16, axis=1).repeat(16, axis=2)


def pcam_folder(folder: Path, meta: tuple[str, ...] = ("train", "valid", "test")) -> Path:
    """The files as published, unpacked; two patches a slide."""
    folder.mkdir(parents=True, exist_ok=True)
    for part, number in NUM_PATCHES.items():
        with h5py.File(folder / f"{name(part, 'x')}.h5", "w") as file:
            file.create_dataset("x", data=patches(part), chunks=(1, 96, 96, 3))
        with h5py.File(folder / f"{name(part, 'y')}.h5", "w") as file:
            file.create_dataset("y", data=(np.arange(number) % 2).astype(np.uint8).reshape(-1, 1, 1, 1))
        if part in meta:
            rows = [f"{i},{i},7,{i % 2 == 1},{i % 2 == 1},{SLIDES[part]}{i // 2:03d}" for i in range(number)]
            lines = [",coord_y,coord_x,tumor_patch,center_tumor_patch,wsi", *rows]
            (folder / f"{name(part, 'meta')}.csv").write_text("\n".join(lines) + "\n")
    return folder


def test_patches_are_imported_with_their_official_splits_and_slides(tmp_path: Path) -> None:
    found = imported("pcam", pcam_folder(tmp_path / "raw"), tmp_path / "out", "jpeg_quality=100")
    assert (found.num_images, found.num_cases, found.task, found.label_names) == (21, 21, "binary", ["tumour"])
    assert Counter(found.column("split")) == {"train": 12, "val": 4, "test": 5}
    assert found.manifest.counts.patients == 6 + 2 + 3
    assert set(zip(found.column("width"), found.column("height"))) == {(96, 96)}
    patients = dict(zip(found.column("key"), found.column("patient")))
    assert patients["train-000003"] == "camelyon16_train_tumor_001"
    labels = dict(zip(found.column("key"), found.labels[:, 0].tolist()))
    assert all(value == int(key[-6:]) % 2 for key, value in labels.items())
    assert "not show the same condition" in found.manifest.case
    for key, part in (("test-000004", "test"), ("train-000011", "train")):
        pixels = decode_stored(found.read(list(found.column("key")).index(key)))
        assert np.abs(pixels.astype(int) - patches(part)[int(key[-6:])]).mean() < 1


def test_a_case_reads_its_own_pixels_and_pickles(tmp_path: Path) -> None:
    raw = read("pcam", pcam_folder(tmp_path))
    assert [case.key for case in raw.cases[:2]] == ["train-000000", "train-000001"]
    for case in (raw.cases[3], raw.cases[-1]):
        part, number = case.key.split("-")
        pixels = pickle.loads(pickle.dumps(case.images[0])).read()
        assert (pixels.dtype, pixels.shape) == (np.uint8, (96, 96, 3))
        assert np.array_equal(pixels, patches(part)[int(number)])


def _mean_after_fork(patch: pcam.Patch, results: "multiprocessing.Queue[float]") -> None:
    results.put(float(patch().mean()))


def test_a_forked_process_opens_the_file_anew(tmp_path: Path) -> None:
    patch = read("pcam", pcam_folder(tmp_path)).cases[2].images[0].read
    here = np.asarray(patch()).mean()  # the file is open here when the process forks
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    process = context.Process(target=_mean_after_fork, args=(patch, results))
    process.start()
    assert results.get(timeout=60) == here
    process.join()


def test_without_the_meta_files_each_patch_is_its_own_patient(tmp_path: Path) -> None:
    raw = read("pcam", pcam_folder(tmp_path, meta=("test",)))
    patients = {case.key: case.patient for case in raw.cases}
    assert patients["train-000003"] == "train-000003"
    assert patients["test-000003"] == "camelyon16_test_001"


def test_a_part_may_be_imported_alone(tmp_path: Path) -> None:
    for file in pcam_folder(tmp_path).glob("*_t*_*"):
        file.unlink()
    assert {case.split for case in read("pcam", tmp_path).cases} == {"val"}


def test_a_slide_in_two_official_splits_is_refused(tmp_path: Path) -> None:
    table = pcam_folder(tmp_path / "raw") / f"{name('test', 'meta')}.csv"
    table.write_text(table.read_text().replace("camelyon16_test_000", "camelyon16_train_tumor_000"))
    with pytest.raises(InputError, match="patient camelyon16_train_tumor_000 stands in two splits, train"):
        imported("pcam", tmp_path / "raw", tmp_path / "out")


def test_keyed_patches_name_no_slide(tmp_path: Path) -> None:
    raw = pcam_folder(tmp_path / "raw")
    dataset = imported("pcam", raw, tmp_path / "out", "ids=keyed", f"keyring={tmp_path / 'k.json'}")
    assert dataset.num_images == 21
    for trace in (b"camelyon16_t", b"camelyonpatch_level", str(tmp_path).encode()):
        assert trace not in everything(dataset)


def packed(raw: Path) -> None:
    file = raw / f"{name('valid', 'x')}.h5"
    (raw / f"{file.name}.gz").write_bytes(gzip.compress(file.read_bytes()))
    file.unlink()


def truncated(raw: Path) -> None:
    file = raw / f"{name('valid', 'x')}.h5"
    file.write_bytes(file.read_bytes()[:-5000])


def page(raw: Path) -> None:
    (raw / f"{name('valid', 'y')}.h5").write_bytes(b"<html>quota exceeded</html>")


def labels(raw: Path, values: np.ndarray, key: str = "y") -> None:
    with h5py.File(raw / f"{name('valid', 'y')}.h5", "w") as file:
        file.create_dataset(key, data=values)


def swapped(raw: Path) -> None:
    x, y = (raw / f"{name('valid', kind)}.h5" for kind in "xy")
    content = x.read_bytes()
    x.write_bytes(y.read_bytes())
    y.write_bytes(content)


def meta(raw: Path, old: str, new: str) -> None:
    file = raw / f"{name('valid', 'meta')}.csv"
    file.write_text(file.read_text().replace(old, new))


BAD_FOLDERS = {
    "packed": (packed, "valid_x.h5.gz is packed; unpack it: gunzip camelyonpatch_level_2_split_valid_x.h5.gz"),
    "truncated": (truncated, "valid_x.h5 is not a whole HDF5 file; fetch it again"),
    "a web page": (page, "valid_y.h5 is not a whole HDF5 file"),
    "y is missing": (
        lambda raw: (raw / f"{name('valid', 'y')}.h5").unlink(),
        "has no file camelyonpatch_level_2_split",
    ),
    "wrong key": (lambda raw: labels(raw, np.zeros((4, 1, 1, 1), np.uint8), "labels"), "valid_y.h5 has no array 'y'"),
    "swapped": (swapped, "valid_x.h5 has no array 'x'"),
    "wrong shape": (
        lambda raw: labels(raw, np.zeros((4, 1), np.uint8)),
        "'y' is uint8 (4, 1), not uint8 N x 1 x 1 x 1",
    ),
    "wrong type": (lambda raw: labels(raw, np.zeros((4, 1, 1, 1), np.float32)), "'y' is float32"),
    "other length": (lambda raw: labels(raw, np.zeros((3, 1, 1, 1), np.uint8)), "has 4 patches but"),
    "unknown label": (lambda raw: labels(raw, np.full((4, 1, 1, 1), 2, np.uint8)), "patch 0: the label is neither 0"),
    "no wsi": (lambda raw: meta(raw, "wsi", "slide"), "has no column 'wsi'"),
    "blank wsi": (lambda raw: meta(raw, "camelyon16_train_normal_001", ""), "row 4: 'wsi' is empty"),
    "short meta": (
        lambda raw: meta(raw, "3,3,7,True,True,camelyon16_train_normal_001\n", ""),
        "has 3 rows for 4 patches",
    ),
}


@pytest.mark.parametrize("kind", BAD_FOLDERS)
def test_a_bad_pcam_folder_is_one_line(tmp_path: Path, kind: str) -> None:
    spoil, message = BAD_FOLDERS[kind]
    spoil(pcam_folder(tmp_path))
    with pytest.raises(InputError, match=re.escape(message)) as caught:
        read("pcam", tmp_path)
    assert "\n" not in str(caught.value)
    assert str(tmp_path) in str(caught.value)


def test_an_empty_folder_and_a_url_are_answered_with_the_mend(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"has no file camelyonpatch_level_2_split_train_x\.h5; raw= takes the folder"):
        read("pcam", tmp_path)
    with pytest.raises(InputError, match="is not a local folder; copy the HDF5 files to a disk"):
        read("pcam", "memory://pcam")


def test_damage_inside_a_whole_file_stops_the_import_by_name(tmp_path: Path) -> None:
    """HDF5 notices a damaged chunk only when it is read."""
    raw = pcam_folder(tmp_path / "raw")
    with h5py.File(raw / f"{name('valid', 'x')}.h5", "w") as file:
        file.create_dataset("x", data=patches("valid"), chunks=(1, 96, 96, 3), fletcher32=True)
        place = file["x"].id.get_chunk_info(1).byte_offset
    content = bytearray((raw / f"{name('valid', 'x')}.h5").read_bytes())
    content[place] ^= 0xFF
    (raw / f"{name('valid', 'x')}.h5").write_bytes(content)
    with pytest.raises(InputError, match="cannot read image valid-000001"):
        imported("pcam", raw, tmp_path / "out")
    assert not (tmp_path / "out" / "manifest.json").exists()
