import os
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from clusters.config import InputError, load_config
from data.__main__ import main
from data.cases import RawDataset
from data.dataset import Dataset, open_dataset
from data.shards import write_dataset
from data.sources import read_raw, source_module

CANARY = "ZZPHICANARY"


def read(*words: str) -> RawDataset:
    return read_raw(load_config(source_module("folder").Options, ["source=folder", *words, "out=/nowhere"]))


def imported(*words: str) -> Dataset:
    config = load_config(source_module("folder").Options, ["source=folder", *words])
    write_dataset(read_raw(config), config)
    return open_dataset(config.out)


def folder(root: Path, *files: str) -> str:
    """Different noise under each name."""
    for number, name in enumerate(files):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 256, (24, 30, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(path, "PNG")
    return f"raw={root}"


LESIONS = ("nv/P1_a.png", "nv/P1_b.PNG", "nv/clinic 2/P2_a.tif", "mel/P3_a.jpg", "mel/P3_b.jpg", "bcc/P4_a.webp")


def test_sub_folders_are_classes_and_the_path_tells_the_patient(tmp_path: Path) -> None:
    raw = read(folder(tmp_path, *LESIONS), r"patient=(P\d+)_")
    assert (raw.task, raw.label_names) == ("multiclass", ("bcc", "mel", "nv"))
    assert [case.patient for case in raw.cases] == ["P4", "P3", "P3", "P1", "P1", "P2"]
    of_class = {next(name for name, value in case.labels.items() if value): case for case in raw.cases}
    assert of_class["nv"].images[0].file == "nv/clinic 2/P2_a.tif"
    assert all(case.split is None and len(case.images) == 1 for case in raw.cases)


def test_a_case_is_counted_within_its_patient(tmp_path: Path) -> None:
    files = [f"{kind}/{who}/lesion{lesion}/{photo}.png" for kind, who, lesion, photo in
             (("a", "X", 1, 1), ("a", "X", 1, 2), ("b", "X", 2, 1), ("b", "Y", 1, 1), ("a", "Z", 1, 1))]  # fmt: skip
    raw = read(folder(tmp_path, *files), "patient=/([XYZ])/", r"case=/(lesion\d)/")
    assert {case.key: len(case.images) for case in raw.cases} == {
        "X_lesion1": 2,
        "X_lesion2": 1,
        "Y_lesion1": 1,
        "Z_lesion1": 1,
    }
    assert (raw.task, raw.label_names) == ("binary", ("b",))
    assert [case.labels["b"] for case in sorted(raw.cases, key=lambda case: case.key)] == [0, 1, 1, 0]
    assert read(f"raw={tmp_path}", "patient=/([XYZ])/", "positive=a").label_names == ("a",)


@pytest.mark.parametrize(
    ("parts", "splits"),
    [
        (("train", "val", "test"), {"train": "train", "val": "val", "test": "test"}),
        (("Training", "Validation"), {"Training": "train", "Validation": "val"}),
        (("train", "test"), {"train": "train_val", "test": "test"}),
    ],
)
def test_folders_of_official_splits_are_kept(tmp_path: Path, parts: tuple[str, ...], splits: dict[str, str]) -> None:
    files = [f"{part}/{kind}/{part}{number}.png" for part in parts for kind in ("a", "b") for number in (1, 2)]
    raw = read(folder(tmp_path, *files), "patient=none")
    assert raw.label_names == ("b",)
    assert {case.images[0].file.split("/")[0]: case.split for case in raw.cases} == splits
    unlabelled = [f"{part}/{number}.png" for part in parts for number in (1, 2)]
    raw = read(folder(tmp_path / "flat", *unlabelled), "patient=none")
    assert (raw.task, {case.split for case in raw.cases}) == ("unlabelled", set(splits.values()))


def test_without_test_the_mend_is_told_and_works(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """val/ renamed to test/: its patients are the test split, and validation comes out of train by the hash."""
    raw = tmp_path / "raw"
    files = [
        f"{part}/{kind}/{part}{n}_{kind}.png" for part in ("train", "val") for kind in ("a", "b") for n in range(9)
    ]
    words = ["import", "source=folder", folder(raw, *files), r"patient=(\w+\d)_", f"keyring={tmp_path / 'k.json'}"]
    words += ["num_processes=1", "splits.train=0.5", "splits.val=0.4", "splits.test=0.1"]
    main([*words, f"out={tmp_path / 'before'}"])
    (told,) = [line for line in capsys.readouterr().out.splitlines() if "is empty" in line]
    assert told.startswith("the split test is empty: 18 patients in all; fine-tuning needs it: where raw= has train/")
    assert "rename val/ to test/ and import into a new out=" in told

    (raw / "val").rename(raw / "test")
    main([*words, f"out={tmp_path / 'after'}"])
    assert "is empty" not in capsys.readouterr().out
    before, after = (open_dataset(str(tmp_path / name)) for name in ("before", "after"))
    patients = {
        (name, split): set(dataset.column("patient")[dataset.column("split") == split])
        for name, dataset in (("before", before), ("after", after))
        for split in ("train", "val", "test")
    }
    assert patients["after", "test"] == patients["before", "val"]
    assert patients["after", "val"] and patients["after", "val"] < patients["before", "train"]
    assert patients["after", "val"] | patients["after", "train"] == patients["before", "train"]


def test_images_without_folders_have_no_labels(tmp_path: Path) -> None:
    raw = read(folder(tmp_path, "a.png", "b.png"), "patient=none")
    assert (raw.task, raw.label_names, len(raw.cases)) == ("unlabelled", (), 2)
    assert read(folder(tmp_path / "more", *LESIONS), "patient=none", "labels=none").task == "unlabelled"


def test_what_is_no_image_is_left_out_and_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    raw = folder(tmp_path, "a/1.png", "b/2.png", "b/._2.png", ".trash/3.png", "__MACOSX/a/1.png")
    (tmp_path / "a" / f"{CANARY}.{CANARY}").write_text("notes")
    (tmp_path / "Thumbs.db").write_bytes(b"x")
    assert len(read(raw, "patient=none").cases) == 2
    told = capsys.readouterr().err
    assert told == "folder: 2 images; left out 1 .db, 1 more without the suffix of an image and 3 hidden files\n"


def test_photographs_of_a_phone_are_not_left_out_in_silence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    raw = folder(tmp_path, "a/1.png", "b/2.png")
    for name in ("a/3.HEIC", "a/4.heic", "b/5.avif"):
        (tmp_path / name).write_bytes(b"x")
    assert len(read(raw, "patient=none").cases) == 2
    told = capsys.readouterr().err
    assert told == "folder: 2 images; left out 2 .heic and 1 .avif (not read: convert .heic, .avif to JPEG)\n"
    for image in ("a/1.png", "b/2.png"):
        (tmp_path / image).unlink()
    with pytest.raises(InputError, match=r"has no images .*; there are 2 \.heic and 1 \.avif \(not read: convert"):
        read(raw, "patient=none")
    (tmp_path / "empty" / "inside").mkdir(parents=True)
    with pytest.raises(InputError, match=r"has no images .*; there are no files$"):
        read(f"raw={tmp_path / 'empty'}", "patient=none")


def test_a_class_folder_without_an_image_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    raw = folder(tmp_path / "flat", *LESIONS)
    (tmp_path / "flat" / CANARY).mkdir()
    assert read(raw, "patient=none").label_names == ("bcc", "mel", "nv")
    assert capsys.readouterr().err == "folder: 1 sub-folder holds no image and makes no class\n"
    raw = folder(tmp_path / "split", "train/a/1.png", "train/b/2.png", "val/a/3.png", "val/b/4.png")
    for name in ("train/c", "val/c", "val/d", "test/a", ".hidden"):
        (tmp_path / "split" / name).mkdir(parents=True)
    assert read(raw, "patient=none").label_names == ("b",)
    assert capsys.readouterr().err == "folder: 2 sub-folders hold no image and make no class\n"
    read(raw, "patient=none", "labels=none")
    assert capsys.readouterr().err == ""


def test_links_are_followed_and_circles_end(tmp_path: Path) -> None:
    folder(tmp_path / "elsewhere", "1.png", "2.png")
    raw = folder(tmp_path / "raw", "b/3.png")
    (tmp_path / "raw" / "a").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "raw" / "b" / "up").symlink_to(tmp_path / "raw")
    assert [case.images[0].file for case in read(raw, "patient=none").cases] == ["a/1.png", "a/2.png", "b/3.png"]


def test_a_pipe_is_no_file_and_a_dead_link_is_told(tmp_path: Path) -> None:
    raw = folder(tmp_path, "a/1.png", "b/2.png")
    os.mkfifo(tmp_path / "a" / "3.png")
    (tmp_path / "b" / "4.png").symlink_to(tmp_path / "gone.png")
    assert [case.images[0].file for case in read(raw, "patient=none").cases] == ["a/1.png", "b/2.png", "b/4.png"]


def test_a_short_patient_may_stand_in_the_name_of_a_class(tmp_path: Path) -> None:
    files = [f"grade{grade}/{patient}_x.png" for grade in (1, 2) for patient in range(3)]
    assert read(folder(tmp_path, *files), r"patient=/(\d)_").label_names == ("grade2",)


def test_a_url_is_read_like_a_folder(tmp_path: Path) -> None:
    import fsspec

    folder(tmp_path, *LESIONS)
    memory = fsspec.filesystem("memory")
    memory.put(f"{tmp_path}/", "/folder-source/", recursive=True)
    words = [r"patient=(P\d+)_", f"keyring={tmp_path / 'k.json'}"]
    local = imported(*words, f"raw={tmp_path}", f"out={tmp_path / 'local'}")
    remote = imported(*words, "raw=memory://folder-source", f"out={tmp_path / 'remote'}")
    assert remote.fingerprint == local.fingerprint
    memory.rm("/folder-source", recursive=True)


@pytest.mark.parametrize(
    ("files", "words", "message"),
    [
        (LESIONS, [], "'patient' is missing in the command line; add patient=…"),
        (LESIONS, ["patient=P"], r"needs exactly one group in ( ), such as '(P\d+)_'"),
        (LESIONS, ["patient=(P"], "not a regular expression"),
        (LESIONS, [r"patient=(P[123])_"], "patient= finds nothing in the path of file 1 (in the order of the paths)"),
        (LESIONS, ["patient=none", "case=(X)"], "case= finds nothing in the path of file 1"),
        ((*LESIONS, f"{CANARY}.png"), ["patient=none"], "file 1 and 0 more lie beside the class folders"),
        (
            ("a/1.png", "a/2.png"),
            ["patient=none"],
            "has one sub-folder, which tells no classes apart; give labels=none",
        ),
        (
            ("a/1_x.png", "b/1_y.png"),
            ["patient=none", r"case=(\d)_"],
            "file 1 and file 2 are of one case and lie in two",
        ),
        ((f"{CANARY}/1.png", "Q/2.png"), ["patient=([A-Z]+)/"], "each of the 2 sub-folders of"),
        (
            ("P1x/1.png", "P2x/1.png", "P3x/1.png", "nv/P5_1.png", "nv/P6_1.png"),
            [r"patient=(P\d)", "ids=source"],
            "3 of the 4 sub-folders of",
        ),
        (
            (f"{CANARY}/1.png", "b/Q1_1.png", f"{CANARY}/R1_2.png", "b/R2_2.png"),
            [rf"patient=({CANARY}|[QR]\d)"],
            "patient= finds the patient of file 1 (in the order of the paths) in the name of its sub-folder",
        ),
        (
            (f"Dr {CANARY}/{CANARY}_1.png", f"Dr {CANARY}/Q_1.png", "b/Q_1.png", "b/R_2.png"),
            [r"patient=/([^/]+)_\d"],
            "patient= finds the patient of file 2 (in the order of the paths) in the name of its sub-folder",
        ),
        (("train/a/1.png", "test/a/2.png", "more/3.png"), ["patient=none"], "has test, train and 1 other folders"),
        (("val/a/1.png", "valid/a/2.png", "train/b/3.png"), ["patient=none"], "one split under two names (val, valid)"),
        (("notes.txt",), ["patient=none"], "has no images (.jpg, "),
        ((), ["patient=none"], "no such folder, or an empty one"),
        (LESIONS, ["patient=none", "positive=nevus"], "positive=nevus does not occur"),
    ],
)
def test_a_bad_folder_is_one_line_that_names_no_file(
    tmp_path: Path, files: tuple[str, ...], words: list[str], message: str
) -> None:
    with pytest.raises(InputError, match=re.escape(message)) as caught:
        read(folder(tmp_path / "raw", *files), *words)
    assert "\n" not in str(caught.value)
    assert CANARY not in str(caught.value)
    assert "P4" not in str(caught.value)


def test_a_patient_in_two_official_splits_is_refused(tmp_path: Path) -> None:
    raw = folder(tmp_path / "raw", "train/a/P1_1.png", "train/b/P2_1.png", "test/a/P1_2.png", "test/b/P3_1.png")
    words = [raw, r"patient=(P\d)", f"keyring={tmp_path / 'k.json'}", f"out={tmp_path / 'out'}"]
    with pytest.raises(InputError, match="two splits"):
        imported(*words)


def test_published_ids_are_those_of_the_paths(tmp_path: Path) -> None:
    dataset = imported(folder(tmp_path / "raw", *LESIONS), r"patient=(P\d+)_", "ids=source", f"out={tmp_path / 'out'}")
    assert set(dataset.column("patient")) == {"p1", "p2", "p3", "p4"}
    assert "nv-clinic-2-p2_a" in dataset.column("key")
    with pytest.raises(InputError, match=r"file 1 \(bcc/P4_a\.webp\)"):
        read(f"raw={tmp_path / 'raw'}", "patient=(P[123])_", "ids=source")


def test_with_keyed_ids_no_name_of_a_file_comes_through(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    files = [f"{kind}/{CANARY}{number}/{CANARY}.png" for kind in ("a", "b") for number in range(4)]
    raw = folder(tmp_path / "raw", *files)
    broken = tmp_path / "raw" / files[2]
    broken.write_bytes(broken.read_bytes()[:100])
    words = ["import", "source=folder", raw, r"patient=/([^/]+)/", f"keyring={tmp_path / 'k.json'}"]
    words += [f"out={tmp_path / 'out'}", "num_processes=1"]
    with pytest.raises(InputError) as caught:
        main(words)
    main([*words, "max_bad_fraction=0.5"])
    told = capfd.readouterr()
    everything = b"".join(path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()).decode(
        "latin-1"
    )
    index = str(open_dataset(str(tmp_path / "out")).index.to_pylist())
    for text in (str(caught.value), told.out, told.err, everything, index):
        assert CANARY.lower() not in text.lower()
