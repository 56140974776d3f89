import json
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
from PIL import Image

from clusters.command import run_main
from clusters.config import InputError, load_config
from data.__main__ import help_text, main
from data.cases import RawDataset, age_band
from data.dataset import Dataset, open_dataset
from data.shards import write_dataset
from data.sources import SOURCES, read_raw, source_module
from data.synthetic.lesions import CLASSES, draw_lesion
from data.synthetic.photography import photograph
from data.verify import verify

REPOSITORY = Path(__file__).resolve().parents[1]


def read(*words: str) -> RawDataset:
    source = next(word.removeprefix("source=") for word in words if word.startswith("source="))
    return read_raw(load_config(source_module(source).Options, [*words, "out=/nowhere"]))


def imported(*words: str) -> Dataset:
    source = next(word.removeprefix("source=") for word in words if word.startswith("source="))
    config = load_config(source_module(source).Options, words)
    write_dataset(read_raw(config), config)
    return open_dataset(config.out)


# --- HAM10000 ---------------------------------------------------------------------------------------

HEADER = "lesion_id,image_id,dx,dx_type,age,sex,localization"
ROWS = [
    "HAM_0000118,ISIC_0027419,bkl,histo,80.0,male,scalp",
    "HAM_0000118,ISIC_0025030,bkl,histo,80.0,male,scalp",
    "HAM_0002730,ISIC_0026769,mel,histo,,unknown,unknown",
]


def ham10000(folder: Path, header: str = HEADER, rows: list[str] = ROWS, published: bool = True) -> Path:
    """A raw folder: as published in two parts, or as mirrored."""
    folder.mkdir(parents=True)
    (folder / ("HAM10000_metadata" if published else "HAM10000_metadata.csv")).write_text("\n".join([header, *rows]))
    for number, row in enumerate(rows):
        part = folder / (f"HAM10000_images_part_{number % 2 + 1}" if published else "images")
        part.mkdir(exist_ok=True)
        Image.effect_noise((60, 45), 60).save(part / f"{row.split(',')[1]}.jpg")
    return folder


@pytest.mark.parametrize("published", [True, False])
def test_ham10000_is_read_in_both_layouts(tmp_path: Path, published: bool) -> None:
    header = f"{HEADER},dataset" if published else HEADER
    rows = [f"{row},vidir_modern" if published else row for row in ROWS]
    raw = ham10000(tmp_path / "raw", header, rows, published)
    dataset = imported("source=ham10000", f"raw={raw}", f"out={tmp_path / 'out'}")
    assert (dataset.num_images, dataset.num_cases, dataset.task) == (3, 2, "multiclass")
    assert dataset.label_names == ["akiec", "bcc", "bkl", "df", "mel", "nv", "vasc"]
    assert dataset.manifest.licence == "CC BY-NC 4.0"
    by_case = dict(zip(dataset.column("key"), dataset.labels))
    assert by_case["ham_0000118"].tolist() == [0, 0, 1, 0, 0, 0, 0]
    assert by_case["ham_0002730"].tolist() == [0, 0, 0, 0, 1, 0, 0]
    about = {name: dict(zip(dataset.column("key"), dataset.column(f"attr.{name}"))) for name in ("age", "sex", "site")}
    assert about["age"] == {"ham_0000118": "80-89", "ham_0002730": ""}
    assert about["sex"] == {"ham_0000118": "male", "ham_0002730": ""}
    assert about["site"] == {"ham_0000118": "scalp", "ham_0002730": ""}
    assert ("attr.collection" in dataset.index.column_names) == published


@pytest.mark.parametrize(
    ("header", "rows", "message"),
    [
        (HEADER.replace("lesion_id", "lesionid"), ROWS, "has no column 'lesion_id' (nearest: lesionid)"),
        (HEADER, [*ROWS[:2], ROWS[2].replace("mel", "melanoma")], "row 4: dx is none of akiec, bcc"),
        (
            HEADER,
            [ROWS[0], ROWS[1].replace("bkl", "mel")],
            "row 2 and row 3 are of one case but differ in 'dx'",
        ),
        (HEADER, [ROWS[0], ROWS[1] + ",x"], "row 3 has 8 cells, the header 7"),
    ],
)
def test_a_wrong_ham10000_table_is_one_line(tmp_path: Path, header: str, rows: list[str], message: str) -> None:
    raw = ham10000(tmp_path / "raw", header, rows)
    with pytest.raises(InputError, match=re.escape(message)) as caught:
        read("source=ham10000", f"raw={raw}")
    assert "\n" not in str(caught.value)


def test_an_empty_folder_says_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"HAM10000_metadata\.csv: no such table"):
        read("source=ham10000", f"raw={tmp_path}")
    ham10000(tmp_path / "raw")
    for part in (tmp_path / "raw").glob("HAM10000_images*"):
        shutil.rmtree(part)
    with pytest.raises(InputError, match="has no images in images, HAM10000_images_part_1"):
        read("source=ham10000", f"raw={tmp_path / 'raw'}")


def test_the_real_ham10000_has_its_known_counts(shared_data: Path) -> None:
    raw = read("source=ham10000", f"raw={shared_data / 'ham10000'}")
    assert len(raw.cases) == 5192
    assert sum(len(case.images) for case in raw.cases) == 6914
    assert sum(len(case.images) > 1 for case in raw.cases) == 1328
    diagnoses = Counter(name for case in raw.cases for name in case.labels if case.labels[name] for _ in case.images)
    assert diagnoses == {"nv": 4631, "bkl": 766, "mel": 748, "bcc": 349, "akiec": 248, "vasc": 101, "df": 71}


def test_real_ham10000_lesions_are_imported_whole(shared_data: Path, tmp_path: Path) -> None:
    lines = (shared_data / "ham10000" / "HAM10000_metadata.csv").read_text().splitlines()
    (tmp_path / "HAM10000_metadata.csv").write_text("\n".join(lines[:201]))
    (tmp_path / "images").symlink_to(shared_data / "ham10000" / "images")
    dataset = imported("source=ham10000", f"raw={tmp_path}", f"out={tmp_path / 'out'}", "num_processes=1")
    assert dataset.num_images == 200
    assert dataset.manifest.quarantined.count == 0
    assert set(zip(dataset.column("width"), dataset.column("height"))) == {(200, 150)}
    assert verify(dataset.location).startswith("OK")


# --- chest radiographs ------------------------------------------------------------------------------


def test_hannover_studies_are_one_patient_one_day_one_projection(shared_data: Path, tmp_path: Path) -> None:
    dataset = imported(
        "source=hannover_cxr", f"raw={shared_data / 'hannover_cxr'}", f"out={tmp_path}", "num_processes=1"
    )
    assert (dataset.num_images, dataset.num_cases, dataset.manifest.counts.patients) == (243, 219, 71)
    assert (dataset.task, dataset.label_names) == ("binary", ["ap"])
    assert Counter(dataset.labels[:, 0].tolist()) == {1.0: 194, 0.0: 49}
    assert Counter(dataset.column("attr.sex")) == {"male": 180, "female": 63}


def test_hannover_through_the_table_source(shared_data: Path, tmp_path: Path) -> None:
    dataset = imported(
        "source=table",
        f"raw={shared_data / 'hannover_cxr' / 'labels.csv'}",
        "image=image",
        "patient=patient_id",
        "label=label",
        "attrs=modality,in_icu",
        f"keyring={tmp_path / 'ring.json'}",
        f"out={tmp_path / 'out'}",
        "num_processes=1",
    )
    assert (dataset.num_images, dataset.num_cases, dataset.manifest.counts.patients) == (243, 243, 71)
    assert (dataset.task, dataset.label_names, dataset.manifest.ids) == ("binary", ["pa"], "keyed")
    assert Counter(dataset.labels[:, 0].tolist()) == {1.0: 49, 0.0: 194}
    assert set(dataset.column("attr.modality")) == {"CR", "DX"}
    assert verify(dataset.location).startswith("OK")


# --- tables -----------------------------------------------------------------------------------------


def table(folder: Path, text: str, images: int = 6) -> str:
    """`raw=` of a table with pictures 0.png … beside it."""
    folder.mkdir(exist_ok=True)
    (folder / "pictures").mkdir()
    for number in range(images):
        Image.effect_noise((40, 40), 60).save(folder / "pictures" / f"{number}.png")
    (folder / "table.csv").write_text(text, encoding="utf-8")
    return f"raw={folder / 'table.csv'}"


SIX = "file,who,lesion,what,site\n" + "".join(
    f"pictures/{i}.png,Anna Zzcanary {i // 2},L{i // 2},{'abc'[i // 2]},s{i}\n" for i in range(6)
)


def test_a_table_with_cases_classes_and_attributes(tmp_path: Path) -> None:
    words = [
        "image=file",
        "patient=who",
        "case=lesion",
        "label=what",
        "attrs=site",
        f"keyring={tmp_path / 'k.json'}",
    ]
    dataset = imported("source=table", table(tmp_path / "raw", SIX), f"out={tmp_path / 'out'}", *words)
    assert (dataset.num_cases, dataset.task, dataset.label_names) == (3, "multiclass", ["a", "b", "c"])
    assert (dataset.labels.sum(axis=1) == 1).all()
    assert sorted(dataset.column("attr.site")) == [f"s{i}" for i in range(6)]


def test_a_parquet_table_reads_like_its_csv(tmp_path: Path) -> None:
    raw = table(tmp_path / "raw", SIX)
    rows = [line.split(",") for line in SIX.splitlines()]
    columns = {name: [row[place] for row in rows[1:]] for place, name in enumerate(rows[0])}
    parquet.write_table(pa.table(columns), tmp_path / "raw" / "table.parquet")
    words = ["source=table", "image=file", "patient=who", "case=lesion", "label=what"]
    from_csv, from_parquet = (read(*words, raw.replace(".csv", kind)) for kind in (".csv", ".parquet"))
    assert from_csv.label_names == from_parquet.label_names
    for one, two in zip(from_csv.cases, from_parquet.cases, strict=True):
        assert (one.key, one.patient, one.labels) == (two.key, two.patient, two.labels)
        assert [image.read() for image in one.images] == [image.read() for image in two.images]


def test_keyed_ids_leave_no_name_of_a_person_or_file(tmp_path: Path) -> None:
    raw = table(tmp_path / "raw", SIX)
    broken = tmp_path / "raw" / "pictures" / "3.png"
    broken.write_bytes(broken.read_bytes()[:60])
    words = ["image=file", "patient=who", "case=lesion", "label=what", f"keyring={tmp_path / 'k.json'}"]
    dataset = imported("source=table", raw, f"out={tmp_path / 'out'}", "max_bad_fraction=0.5", *words)
    assert dataset.manifest.quarantined.rows == ["row 5: truncated"]
    assert all(re.fullmatch("[0-9a-f]{20}", patient) for patient in dataset.column("patient"))
    everything = b"".join(path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file())
    everything += "".join(map(str, dataset.index.to_pylist())).encode()
    for trace in (b"anna", b"zzcanary", b"pictures", str(tmp_path).encode()):
        assert trace not in everything.lower()


def test_keyed_rows_with_other_images_are_another_dataset(tmp_path: Path) -> None:
    raw = table(tmp_path / "raw", SIX, images=7)
    words = ["source=table", "image=file", "patient=who", "case=lesion", f"keyring={tmp_path / 'k.json'}"]
    words += [raw, f"out={tmp_path / 'out'}"]
    before = imported(*words).fingerprint
    assert imported(*words).fingerprint == before
    (tmp_path / "raw" / "table.csv").write_text(SIX.replace("pictures/5.png", "pictures/6.png"))
    with pytest.raises(InputError, match=r"another dataset \(other cases, images or ids\)"):
        imported(*words)


def test_reuse_says_how_many_images_were_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    raw = table(tmp_path / "raw", SIX)
    (tmp_path / "raw" / "pictures" / "3.png").unlink()
    words = ["import", "source=table", raw, "image=file", "patient=who", "missing=skip", "num_processes=1"]
    for _ in range(2):
        main([*words, f"keyring={tmp_path / 'k.json'}", f"out={tmp_path / 'out'}"])
    told = capsys.readouterr().out.splitlines()[-1]
    assert told.startswith("reused: ")
    assert "1 bad images were left out: another out=" in told


def test_a_patient_keeps_its_split_across_imports_with_one_keyring(tmp_path: Path) -> None:
    rows = [f"pictures/{i}.png,P{i}" for i in range(6)]
    first = table(tmp_path / "a", "\n".join(["file,who", *rows]))
    second = table(tmp_path / "b", "\n".join(["picture,person", *rows[3:]]))
    common = ["source=table", f"keyring={tmp_path / 'k.json'}"]
    one = imported(*common, first, "image=file", "patient=who", f"out={tmp_path / '1'}")
    two = imported(*common, second, "image=picture", "patient=person", f"out={tmp_path / '2'}")
    assert one.task == "unlabelled"
    splits = dict(zip(one.column("patient"), one.column("split")))
    assert all(splits[who] == split for who, split in zip(two.column("patient"), two.column("split")))


@pytest.mark.parametrize(
    ("values", "words", "names", "labels"),
    [
        ("0 1 1 0 1 0", [], ("sick",), [0, 1, 1, 0, 1, 0]),
        ("no yes yes no yes no", [], ("sick",), [0, 1, 1, 0, 1, 0]),
        ("benign malignant malignant benign benign benign", [], ("malignant",), [0, 1, 1, 0, 0, 0]),
        ("ap pa pa ap ap ap", ["positive=ap"], ("ap",), [1, 0, 0, 1, 1, 1]),
        ("nv mel bcc nv nv mel", ["positive=mel"], ("mel",), [0, 1, 0, 0, 0, 1]),
        ("0 1 - 0 1 0", [], ("sick",), [0, 1, np.nan, 0, 1, 0]),
    ],
)
def test_a_binary_label_names_its_positive_class(
    tmp_path: Path, values: str, words: list[str], names: tuple[str, ...], labels: list[float]
) -> None:
    lines = [f"pictures/{i}.png,p{i},{value.strip('-')}" for i, value in enumerate(values.split())]
    raw = table(tmp_path / "raw", "\n".join(["file,who,sick", *lines]))
    found = read("source=table", raw, "image=file", "patient=who", "label=sick", *words)
    assert (found.task, found.label_names) == ("binary", names)
    assert np.array_equal([case.labels[names[0]] for case in found.cases], labels, equal_nan=True)


def test_official_splits_are_kept_and_empty_ones_hashed(tmp_path: Path) -> None:
    splits = ["train", "Training", "valid", "TEST", "", "test"]
    lines = [f"pictures/{i}.png,p{i},{split}" for i, split in enumerate(splits)]
    raw = table(tmp_path / "raw", "\n".join(["file,who,part", *lines]))
    found = read("source=table", raw, "image=file", "patient=who", "split=part")
    assert [case.split for case in found.cases] == ["train", "train", "val", "test", None, "test"]


BAD_TABLES = {
    "no such column": (SIX, ["patient=whom"], "has no column 'whom' (nearest: who)"),
    "no such table": (SIX, ["raw=/nowhere/x.csv", "patient=who"], "/nowhere/x.csv: no such table"),
    "patient left out": (SIX, [], "'patient' is missing in the command line; add patient=…"),
    "patient blank": (SIX.replace("Anna Zzcanary 1", ""), ["patient=who"], "row 4 has no patient in 'who'"),
    "image blank": (SIX.replace("pictures/2.png", ""), ["patient=who"], "row 4 has no image in 'file'"),
    "patients differ": (
        SIX.replace("Anna Zzcanary 2,L2", "Berta,L1"),
        ["patient=who", "case=lesion"],
        "row 4 and row 6 are of one case but differ in 'who'",
    ),
    "labels differ": (
        SIX.replace(",b,s3", ",c,s3"),
        ["patient=who", "case=lesion", "label=what"],
        "differ in 'what'",
    ),
    "one class": (
        SIX,
        ["patient=who", "label=lesion", "positive=L9"],
        "positive=L9 does not occur in column",
    ),
    "no class": (re.sub(",[abc],", ",a,", SIX), ["patient=who", "label=what"], "has 1 different values"),
    "unknown split": (SIX, ["patient=who", "split=what"], "row 2: 'what' is none of train, val, test"),
    "split differs": (
        SIX.replace("s0", "train").replace("s1", "test"),
        ["patient=who", "case=lesion", "split=site"],
        "row 2 and row 3",
    ),
    "column twice": (SIX.replace("site", "who"), ["patient=who"], "the column 'who' more than once"),
    "ragged": (SIX + "pictures/5.png,x\n", ["patient=who"], "row 8 has 2 cells, the header 5"),
    "empty": ("file,who\n", ["patient=who"], "has no rows below its header"),
    "open quote": (SIX + '"x,y\n', ["patient=who"], "not a readable CSV"),
    "unknown key": (
        SIX,
        ["patient=who", "lable=what"],
        "unknown key 'lable' in the command line (nearest: label)",
    ),
}


@pytest.mark.parametrize("name", BAD_TABLES)
def test_a_bad_table_is_one_line_that_names_no_cell(tmp_path: Path, name: str) -> None:
    text, words, message = BAD_TABLES[name]
    raw = table(tmp_path / "raw", text)
    with pytest.raises(InputError, match=re.escape(message)) as caught:
        read("source=table", raw, "image=file", *words)
    assert "\n" not in str(caught.value)
    assert "Zzcanary" not in str(caught.value)


def test_a_table_that_is_not_utf8_names_the_row(tmp_path: Path) -> None:
    raw = table(tmp_path / "raw", SIX)
    (tmp_path / "raw" / "table.csv").write_bytes(SIX.replace("Anna Zzcanary 1", "Jos\xe9").encode("latin-1"))
    with pytest.raises(InputError, match="row 4: not UTF-8 text"):
        read("source=table", raw, "image=file", "patient=who")


def test_a_patient_in_two_official_splits_is_refused_by_its_keyed_id(tmp_path: Path) -> None:
    raw = table(tmp_path / "raw", SIX.replace("s0", "train").replace("s1", "test"))
    words = ["image=file", "patient=who", "split=site", f"keyring={tmp_path / 'k.json'}"]
    text = (tmp_path / "raw" / "table.csv").read_text()
    (tmp_path / "raw" / "table.csv").write_text(re.sub(",s[0-9]\n", ",\n", text))
    with pytest.raises(InputError, match=r"two splits, train \(the case of row 2\) and test \(the case of row 3\)"):
        imported("source=table", raw, *words, f"out={tmp_path / 'out'}")
    assert not (tmp_path / "out").exists()


def test_patients_nobody_knows_must_be_spelled_out(tmp_path: Path) -> None:
    found = read("source=table", table(tmp_path / "raw", SIX), "image=file", "patient=none", "ids=source")
    assert [case.patient for case in found.cases] == [case.key for case in found.cases]
    assert found.cases[0].key == "pictures-0"


@pytest.mark.parametrize(
    ("age", "band"),
    [
        ("45.0", "40-49"),
        ("0", "0-9"),
        ("89.9", "80-89"),
        ("90", "90+"),
        ("104", "90+"),
        ("", ""),
        ("nan", ""),
        ("058Y", ""),
    ],
)
def test_ages_are_given_in_bands(age: str, band: str) -> None:
    assert age_band(age) == band


# --- synthetic --------------------------------------------------------------------------------------


def test_synthetic_cases_come_from_the_seed_alone() -> None:
    first, again, other = (read("source=synthetic", "num_cases=40", f"seed={seed}") for seed in (1, 1, 2))
    assert first.cases == again.cases
    assert [c.labels for c in first.cases] != [c.labels for c in other.cases]
    assert first.cases[7].images[0].read() == again.cases[7].images[0].read()
    assert {len(case.images) for case in first.cases} == {1, 2, 3, 4}
    cases_of = Counter(case.patient for case in first.cases)
    assert max(cases_of.values()) > 1
    classes_of = {(case.patient, str(case.labels)) for case in first.cases}
    assert len(classes_of) > len(cases_of)


@pytest.mark.parametrize("kind", CLASSES)
def test_photographs_of_a_lesion_differ_and_its_drawing_stays(kind: str) -> None:
    one, two = (draw_lesion(kind, np.random.default_rng(5), 64) for _ in range(2))
    assert np.array_equal(one.layers_HWC, two.layers_HWC)
    assert not np.array_equal(one.layers_HWC, draw_lesion(kind, np.random.default_rng(6), 64).layers_HWC)
    skin = np.array([0.8, 0.6, 0.5], np.float32)
    photographs = [photograph(one, skin, 1.0, np.random.default_rng(i), 64) for i in range(2)]
    assert photographs[0].shape == (64, 64, 3)
    assert np.abs(photographs[0].astype(int) - photographs[1]).mean() > 5


# --- command line -----------------------------------------------------------------------------------


def run(*words: str) -> subprocess.CompletedProcess[str]:
    """The command as a user gives it, in a process of its own."""
    command = [sys.executable, "-m", "data", *words]
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=120)


def said(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    """Exit code, output and errors of the command in this process, which has loaded everything."""
    capsys.readouterr()
    code = 0
    try:
        run_main(main, words, help_text)
    except SystemExit as end:
        code = int(str(end.code or 0))
    output, errors = capsys.readouterr()
    return code, output, errors


def test_the_command_line_writes_verifies_reuses_and_refuses(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    raw, out = ham10000(tmp_path / "raw"), tmp_path / "out"
    words = ["import", "source=ham10000", f"raw={raw}", f"out={out}", "num_processes=1"]
    code, done, progress = said(capsys, *words)
    assert code == 0
    assert f"wrote {out}: 3 images of 2 cases of 2 patients" in done
    assert "import: 3 images in" in progress
    assert said(capsys, *words)[1].startswith(f"reused: {out} already holds this import")
    assert said(capsys, "verify", str(out))[1].startswith(f"OK: {out}: 3 images")

    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["licence"] == "CC BY-NC 4.0"
    (out / "shard-000000.tar").write_bytes(b"")
    damaged = run("verify", str(out))
    assert damaged.returncode == 2
    assert f"\nerror: {out} is damaged: 1 problem;" in damaged.stderr
    assert "Traceback" not in damaged.stderr


def test_too_many_bad_images_leave_the_command_line_with_exit_code_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    raw = ham10000(tmp_path / "raw")
    (raw / "HAM10000_images_part_1" / "ISIC_0027419.jpg").write_bytes(b"")
    words = ("import", "source=ham10000", f"raw={raw}", f"out={tmp_path / 'out'}", "num_processes=1")
    code, _, errors = said(capsys, *words)
    assert code == 2
    assert errors.startswith("error: 1 of 3 images is bad") and errors.count("\n") == 1
    assert "the first: row 2 (ISIC_0027419.jpg): zero bytes" in errors
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_a_place_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InputError, match=r"file/out.*: a file is in the place of this folder; name another one"):
        main(["import", "source=synthetic", "num_cases=2", f"out={tmp_path / 'file' / 'out'}"])


def test_help_names_every_source_field_and_licence(capsys: pytest.CaptureFixture[str]) -> None:
    code, helped, _ = said(capsys, "import", "--help")
    assert code == 0
    for source in SOURCES:
        module = source_module(source)
        assert source in helped
        assert module.LICENCE in helped
        for field in module.Options.model_fields:
            assert field in helped


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["imprt"], "no command 'imprt' (nearest: import)"),
        (["import", "source=ham1000", "raw=/x", "out=/y"], "no source 'ham1000' (nearest: ham10000)"),
        (["import", "raw=/x"], "'source' is missing in the command line"),
        (["verify"], "verify takes one dataset folder"),
        (["verify", "/nowhere"], "/nowhere has no manifest.json"),
    ],
)
def test_a_wrong_command_line_is_answered_with_the_mend(words: list[str], message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        main(words)


def test_help_and_reuse_do_not_load_torch() -> None:
    code = "import sys, data.__main__ as m; m.help_text(); import data.shards; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY).returncode == 0
