"""Labels with keyed ids: any diagnosis is a class, and nothing by which a person could be told."""

from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clusters.config import InputError
from data.cases import Case, RawDataset, SourceImage, one_hot
from data.class_names import Whose, check_names
from data.labels import Labels, read_labels
from data.shards import write_dataset
from data.tables import Table
from data.verify import verify
from tests.drawn_cases import Drawn, config
from tests.importers import grey, read

KINDS = (
    "Basal cell carcinoma (BCC), nodular",
    "melanoma in situ, lentigo maligna type",
    "BI-RADS 4a",
    "T2N0",
    "grade 3",
)
KINDS += ("pneumonia, unspecified", "Mayo 3", "Marsh 2", "stage 3 decubitus ulcer", "M. tuberculosis", "Fr. radius")
KINDS += ("0.76-1.50 mm", "C43.59", "8720/3", "Id reaction", "Birthmark", "MS lesion", "COVID-19", "ANA 1:80", "2-5 mm")
KINDS += ("squamous cell carcinoma, keratoacanthoma type, well differentiated",)
TELLING = {
    **dict.fromkeys(("2019-05-30", "30.5.2019", "20190530", "seen 30 May 2019", "May 2019"), "a date"),
    **dict.fromkeys(("1931", "5/2019"), "a year"),
    **dict.fromkeys(("Dr. Adler", "Frau Adler", "M. Adler", "Ms Adler"), "begins like the name"),
    **dict.fromkeys(("MV-943476", "9434765919"), "looks like an id"),
    **dict.fromkeys(("Adler " * 20, "Adler \x1b[2J"), "is free text"),
}


def labels_of(values: Sequence[str], patients: Sequence[str] = (), header: str = "dx", **words: object) -> Labels:
    """The labels of a table with a case a row; without patients each row is one's own."""
    table = Table("t.csv", {header: list(values)}, len(values))
    groups = {f"c{row}": [row] for row in range(len(values))}
    whose = Whose(dict(zip(groups, patients or groups)), ("file", "who"))
    return read_labels(table, groups, header, whose=whose, **words)  # pyright: ignore[reportArgumentType]


def test_diagnoses_are_classes_however_many_words_they_have() -> None:
    values = [*KINDS, *KINDS]
    assert set(labels_of(values, [f"p{row}" for row in range(len(values))]).names) == set(KINDS)
    check_names(
        "index", KINDS, "multiclass", [(kind, f"p{row}") for row, kind in enumerate(KINDS) for _ in range(2)][:20]
    )


@pytest.mark.parametrize("name", TELLING)
def test_a_class_that_tells_of_a_person_is_refused_by_its_row(name: str) -> None:
    for values, words in ((["nv", name, "mel"], {}), (["nv", name, "mel"], {"positive": name})):
        with pytest.raises(InputError, match=f"t.csv, row 3: 'dx' .*{TELLING[name]}.*; give the class") as caught:
            labels_of(values, **words)
        assert name.strip() not in str(caught.value)
    with pytest.raises(InputError, match=f"a name in classes= .*{TELLING[name]}"):
        labels_of(["nv", "mel"], classes=("nv", "mel", name))
    with pytest.raises(InputError, match=f"index: label 2 .*{TELLING[name]}"):
        check_names("index", ["nv", name], "multiclass", [])
    assert labels_of(["nv", name, "mel"], positive="mel").names == ("mel",), "what is not published may be anything"


@pytest.mark.parametrize("header", ["PatientName", "patient_id", "birth", "who", "file"])
def test_a_label_column_that_tells_who_somebody_is_is_refused(tmp_path: Path, header: str) -> None:
    said = f"'{header}' (means that it tells who|tells the patient).*; leave '{header}' out of label="
    for values in (["a", "b", "c"], ["0", "1", "1"], ["1", "-1", "0"]):
        with pytest.raises(InputError, match=said):
            labels_of(values, header=header)
    other = "file" if header == "who" else "who"
    (tmp_path / "t.csv").write_text(f"{header},{other},edema\na.png,p,1\nb.png,q,0\n")
    words = [f"image={'file' if 'file' in (header, other) else header}", "patient=who", f"label=edema,{header}"]
    with pytest.raises(InputError, match=said):
        read("table", tmp_path / "t.csv", *words)


@pytest.mark.parametrize("header", ["diagnosis_name", "class_id", "LabelName", "dx code", "finding-name"])
def test_the_name_of_a_class_is_no_person_s(header: str) -> None:
    assert labels_of(["nv", "mel", "bcc"], header=header).names == ("bcc", "mel", "nv")
    with pytest.raises(InputError, match="means that it tells who somebody is"):
        labels_of(["nv", "mel", "nv"], header=f"PatientName {header}")


def test_the_column_of_the_patient_is_no_label_unless_ids_are_public(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("file,whose\na.png,p\nb.png,q\nc.png,r\n")
    words = ["image=file", "patient=whose", "label=whose"]
    with pytest.raises(InputError, match="'whose' tells the patient, case or image; leave 'whose' out of label="):
        read("table", tmp_path / "t.csv", *words)
    assert read("table", tmp_path / "t.csv", *words, "ids=source").label_names == ("p", "q", "r")


def test_an_age_above_89_is_no_class() -> None:
    with pytest.raises(InputError, match="row 3: 'age' is an age above 89"):
        labels_of(["40", "93", "50"], header="age")
    assert labels_of(["40-49", "90+", "child"], header="age").task == "multiclass"


def test_classes_most_of_which_are_of_one_patient_each_are_refused() -> None:
    names = [f"word{row}x" for row in range(12)]
    values = [*names, *["common"] * 10]
    with pytest.raises(
        InputError, match=r"'dx' of t\.csv has 13 different values, 12 of them of one patient each"
    ) as caught:
        labels_of(values)
    assert "word" not in str(caught.value)
    assert labels_of(values[:20]).task == "multiclass", "of few patients each may have another disease"
    assert labels_of(values * 2, [*(f"p{row}" for row in range(44))]).task == "multiclass"
    rare = [*(f"kind{row % 8}" for row in range(40)), *names[:7]]  # 7 of 15
    assert labels_of(rare).task == "multiclass"


@given(st.lists(st.tuples(st.text("ab1", min_size=1, max_size=3), st.integers(0, 40)), min_size=1, max_size=120))
def test_what_an_import_lets_through_verify_lets_through(cells: list[tuple[str, int]]) -> None:
    values, patients = [value for value, _ in cells], [f"p{patient}" for _, patient in cells]
    try:
        labels = labels_of(values, patients)
    except InputError:
        return
    pairs = sorted(set(zip(values, patients))) if labels.task == "multiclass" else []
    check_names("index", labels.names, labels.task, pairs)


def written(
    out: Path, names: tuple[str, ...], classes: Sequence[str], task: str = "multiclass", **fields: object
) -> str:
    """A dataset with a patient for each of the classes, as one from before there was a check."""
    found = [
        Case(f"c{row}", f"p{row}", (SourceImage(f"row {row}", Drawn(row)),), one_hot(name, names))
        for row, name in enumerate(classes)
    ]
    keyed = {"ids": "keyed", "keyring": str(out.parent / "k.json"), **fields}
    write_dataset(RawDataset("", "", task, names, found, ""), config(out, **keyed))
    return str(out)


def test_verify_finds_labels_by_which_somebody_could_be_known(tmp_path: Path) -> None:
    common = ["nv"] * 20
    alone = tuple(f"Zzcanary{row}" for row in range(12))
    for number, (names, task, said) in enumerate(
        (
            (("1931-05-30 Zzcanary", "nv"), "multiclass", "label 1 looks like a date"),
            (("patient name Zzcanary", "nv"), "multilabel", "leave .* out of the labels"),
            ((*alone, "nv"), "multiclass", "the label has 13 different values, 12 of them of one patient each"),
        )
    ):
        folder = written(tmp_path / str(number), names, [*names, *common], task)
        with pytest.raises(InputError, match=f"1 problem; .*\n  .*{said}"):
            verify(folder)
    public = written(tmp_path / "public", ("1931", "nv"), ["1931", "nv"], ids="source")
    assert verify(public).startswith("OK")
    kept = written(tmp_path / "kept", KINDS[:3], [*KINDS[:3], *[KINDS[0]] * 20])
    assert verify(kept).startswith("OK")


def test_a_folder_named_by_a_date_is_no_class(tmp_path: Path) -> None:
    for file in ("2019-05-30/P1_a.png", "2019-05-30/P2_b.png", "nv/P3_c.png", "nv/P4_d.png"):
        grey(tmp_path / file)
    with pytest.raises(InputError, match=r"^file 1: 'class' looks like a date.*; give the class another name$"):
        read("folder", tmp_path, r"patient=(P\d)_")
    assert len(read("folder", tmp_path, r"patient=(P\d)_", "ids=source").label_names) == 1
