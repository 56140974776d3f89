"""Tables of raw data: what is read, what is refused in one line, and what becomes a label or an attribute."""

import math
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clusters.config import InputError, load_config
from clusters.storage import Folder
from data.attributes import attribute, check_kept
from data.cases import RawDataset, RawFile
from data.labels import read_labels, read_numbers
from data.sources import table as source
from data.tables import Table, read_table
from tests.importers import everything, grey, imported

SECRET = "Zzcanary"


def read_bytes(folder: Path, content: bytes, name: str = "t.csv") -> Table:
    (folder / name).write_bytes(content)
    return read_table(Folder(str(folder)), name)


def refusal(folder: Path, content: bytes, name: str = "t.csv") -> str:
    """The one line with which a table is refused; it names no cell."""
    with pytest.raises(InputError) as caught:
        read_bytes(folder, content, name)
    assert str(caught.value).isprintable()
    assert SECRET not in str(caught.value)
    return str(caught.value).removeprefix(f"{folder}/")


@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_a_csv_is_read_as_spreadsheets_write_it(tmp_path: Path, separator: str, newline: str, mark: bytes) -> None:
    rows = [["a", "b"], [" 1 ", f'"x{separator}y"'], ['"two""\nlines"', "ä"], ["", ""], ["", ""]]
    text = newline.join(separator.join(row) for row in rows)
    table = read_bytes(tmp_path, mark + text.encode())
    assert table.columns == {"a": ["1", 'two"\nlines'], "b": [f"x{separator}y", "ä"]}
    assert table.num_rows == 2


LINES = ["a,b", "1,2", f"{SECRET},4", "5,6"]
BAD = {
    "NUL": ("\n".join(LINES).replace("2", "2\0").encode(), "row 2: a NUL byte, so not UTF-8 text; save the table as"),
    "UTF-16 without mark": ("\n".join(LINES).encode("utf-16-le"), "row 1: a NUL byte, so not UTF-8 text"),
    "UTF-16": ("\n".join(LINES).encode("utf-16"), "row 1: "),
    "Latin-1": ("\n".join(LINES).replace("4", "é").encode("latin-1"), "row 3: not UTF-8 text; save the table as CSV"),
    "huge cell": (f"a,b\n1,2\n3,{SECRET * 20000}\n".encode(), "after row 2: not a readable CSV (field larger than"),
    "ragged": ("\n".join([*LINES, f"{SECRET},2,3"]).encode(), "row 5 has 3 cells, the header 2; put quotes around"),
    "empty row": ("\n".join([*LINES[:2], ",", *LINES[2:]]).encode(), "row 3 is empty; delete it"),
    "header alone": (b"a,b\n", "has no rows below its header"),
    "nothing": (b"", "has no rows below its header"),
    "quote": (f'a,b\n1,2\n3,"{SECRET}\n'.encode(), "after row 2: not a readable CSV (unexpected end of data)"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_csv_is_one_line_with_the_row(tmp_path: Path, name: str) -> None:
    content, message = BAD[name]
    assert message in refusal(tmp_path, content)


@settings(deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_are_a_table_or_one_line(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    folder = tmp_path_factory.getbasetemp()
    for name in ("any.csv", "any.parquet"):
        try:
            table = read_bytes(folder, content, name)
        except InputError as error:
            told = str(error)
        else:
            told = "" if all(len(column) == table.num_rows for column in table.columns.values()) else "\n"
        assert "\n" not in told


def test_a_header_that_stands_twice_matters_only_where_it_is_asked_for(tmp_path: Path) -> None:
    table = read_bytes(tmp_path, b"a,b,b\n1,2,3\n")
    assert table.column("a") == ["1"]
    with pytest.raises(InputError, match="has the column 'b' more than once; rename one"):
        table.column("b")


def test_headers_are_not_listed_for_they_may_be_the_first_row(tmp_path: Path) -> None:
    table = read_bytes(tmp_path, f"{SECRET} Anna,17\n{SECRET} Berta,18\n".encode())
    with pytest.raises(InputError, match="has no column 'patient': none of the 2 headers") as caught:
        table.column("patient")
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize("asked", ["patientid", "PATIENT ID", "patient-id", "patients_id"])
def test_a_header_is_told_where_it_is_the_same_but_for_its_spelling(asked: str) -> None:
    with pytest.raises(InputError, match=r"nearest: Patient_ID"):
        table_of(Patient_ID=["x"], **{"1.png": ["y"]}).column(asked)


@pytest.mark.parametrize("beside", ["17", "a/b", "a.png", "a\\b"])
def test_a_first_row_that_may_be_no_header_is_not_told(beside: str) -> None:
    with pytest.raises(InputError, match=r"nearest: patient"):
        table_of(patient=["x"], site=["y"]).column("patent")
    with pytest.raises(InputError, match="none of the 2 headers") as caught:
        table_of(**{f"{SECRET}a": ["x"], beside: ["y"]}).column(f"{SECRET}bc")
    assert f"{SECRET}a" not in str(caught.value)


def test_whole_numbers_with_gaps_are_spelt_as_whole_numbers(tmp_path: Path) -> None:
    parquet.write_table(pa.table({"n": [12.0, None, -1.0, 0.5]}), tmp_path / "t.parquet")
    assert read_table(Folder(str(tmp_path)), "t.parquet").columns == {"n": ["12", "", "-1", "0.5"]}


def test_a_parquet_table_spells_cells_as_a_csv_would(tmp_path: Path) -> None:
    columns = {"text": [" x ", None], "number": [1, 2], "real": [0.5, float("nan")], "bytes": [b"y", None]}
    parquet.write_table(pa.table(columns), tmp_path / "t.parquet")
    table = read_table(Folder(str(tmp_path)), "t.parquet")
    assert table.columns == {"text": ["x", ""], "number": ["1", "2"], "real": ["0.5", ""], "bytes": ["y", ""]}
    parquet.write_table(pa.table({"a": ["x", f"{SECRET}\0"]}), tmp_path / "t.parquet")
    assert "row 3: a NUL byte" in refusal(tmp_path, (tmp_path / "t.parquet").read_bytes(), "t.parquet")
    assert "is not a readable parquet file" in refusal(tmp_path, b"PAR1", "t.parquet")


# --- labels -----------------------------------------------------------------------------------------


def table_of(**columns: list[str]) -> Table:
    return Table("t.csv", columns, len(next(iter(columns.values()))))


def singly(table: Table) -> dict[str, list[int]]:
    return {f"c{row}": [row] for row in range(table.num_rows)}


def test_several_columns_are_findings_with_doubt_and_gaps() -> None:
    table = table_of(edema=["1", "0.0", "-1", "", "yes"], mass=["0", "-1.0", "1.0", "", "No"])
    labels = read_labels(table, singly(table), "edema, mass")
    assert (labels.task, labels.names) == ("multilabel", ("edema", "mass"))
    found = [[labels.of_case[f"c{row}"][name] for name in labels.names] for row in range(5)]
    assert repr(found) == repr([[1.0, 0.0], [0.0, math.nan], [math.nan, 1.0], [math.nan, math.nan], [1.0, 0.0]])
    assert labels.uncertain == {"c1": {"mass"}, "c2": {"edema"}}


def test_one_column_with_minus_one_is_binary_with_doubt() -> None:
    table = table_of(edema=["1", "0", "-1", ""])
    labels = read_labels(table, singly(table), "edema")
    assert (labels.task, labels.names, labels.uncertain) == ("binary", ("edema",), {"c2": {"edema"}})


def test_one_column_of_one_and_minus_one_needs_a_word() -> None:
    table = table_of(sick=["1", "-1", "-1.0", "1.0", ""])
    with pytest.raises(InputError, match=r"'sick' of t.csv holds 1 and -1 and no 0, .*give positive=1 if -1 means no"):
        read_labels(table, singly(table), "sick")
    labels = read_labels(table, singly(table), "sick", (), "1")
    assert (labels.task, labels.names, labels.uncertain) == ("binary", ("sick",), {})
    assert repr([case["sick"] for case in labels.of_case.values()]) == repr([1.0, 0.0, 0.0, 1.0, math.nan])


@pytest.mark.parametrize("word", ["NA", "NaN", "none", "NULL", "N/A"])
def test_a_word_for_nothing_is_no_class_unless_it_is_declared(word: str, capsys: pytest.CaptureFixture[str]) -> None:
    table = table_of(dx=["mel", "nv", word], who=["a", "a", "b"])
    labels = read_labels(table, {"a": [0], "b": [1], "c": [2], "d": [0, 2]}, "dx")
    assert (labels.task, labels.names) == ("binary", ("nv",))
    assert repr([case["nv"] for case in labels.of_case.values()]) == repr([0.0, 1.0, math.nan, 0.0])
    assert "t.csv: 1 cells of dx say" in capsys.readouterr().err
    assert read_labels(table, singly(table), "dx", ("mel", "nv", word)).of_case["c2"][word] == 1
    table = table_of(a=["1", word], b=["0", "1"])
    assert math.isnan(read_labels(table, singly(table), "a,b").of_case["c1"]["a"])
    assert capsys.readouterr().err.count("\n") == 1


def test_a_column_whose_header_has_a_comma_is_one_column() -> None:
    table = table_of(**{"edema,mass": ["x", "y", "z"]})
    assert read_labels(table, singly(table), "edema,mass").names == ("x", "y", "z")


def test_declared_classes_keep_their_order_and_refuse_others() -> None:
    table = table_of(dx=["mel", "nv", "", "mel"])
    labels = read_labels(table, singly(table), "dx", ("nv", "mel", "bcc"))
    assert (labels.task, labels.names) == ("multiclass", ("nv", "mel", "bcc"))
    assert list(labels.of_case["c0"].values()) == [0, 1, 0]
    assert all(math.isnan(value) for value in labels.of_case["c2"].values())
    assert read_labels(table, singly(table), "dx", ("mel", "nv")).names == ("nv",)
    table = table_of(dx=["mel", "nv", f"bcc{SECRET}"])
    with pytest.raises(InputError, match="row 4: 'dx' is outside the declared classes nv, mel, bcc") as caught:
        read_labels(table, singly(table), "dx", ("nv", "mel", "bcc"))
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    ("label", "words", "message"),
    [
        ("a,b", {"classes": ("0", "1")}, "classes= and positive= are for one label column"),
        ("a,b", {"positive": ("1",)}, "classes= and positive= are for one label column"),
        ("a,a", {}, "names a column twice"),
        ("a,c", {}, "has no column 'c'"),
        ("a,b", {}, "row 3: 'b' is none of 1, 0, -1 (uncertain) and empty"),
        ("a", {"classes": ("0",)}, "has 1 different values"),
    ],
)
def test_findings_that_cannot_be_read_are_refused(label: str, words: dict[str, tuple[str, ...]], message: str) -> None:
    table = table_of(a=["1", "0"], b=["1", SECRET])
    with pytest.raises(InputError) as caught:
        read_labels(table, singly(table), label, words.get("classes", ()), "".join(words.get("positive", ())))
    assert message in str(caught.value)
    assert SECRET not in str(caught.value)


def test_findings_go_through_the_source(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("file,who,edema,mass,sex\na.png,p,1,-1,f\nb.png,q,0,,m\n")
    found = read_source(tmp_path, "label=edema,mass", "attrs=sex", "patient=who")
    assert (found.task, found.label_names) == ("multilabel", ("edema", "mass"))
    assert [case.uncertain for case in found.cases] == [{"mass"}, frozenset()]
    assert [case.images[0].attributes for case in found.cases] == [{"sex": "f"}, {"sex": "m"}]


@pytest.mark.parametrize("word", ["NA", "nan", "None", "null", "n/a", "Unknown", ""])
def test_a_word_for_nothing_is_no_patient(tmp_path: Path, word: str) -> None:
    (tmp_path / "t.csv").write_text(f"file,who\na.png,p\nb.png,{word}\n")
    with pytest.raises(InputError, match="row 3 has no patient in 'who'"):
        read_source(tmp_path, "patient=who")


@pytest.mark.parametrize(
    ("rows", "words", "message"),
    [
        (["a/b.png,", "a-b.png,"], ["ids=source"], "row 2 and row 3 would be one case"),
        (["x.png,", "x.jpg,"], ["ids=source"], "row 2 and row 3 would be one case"),
        (["x.png,", "X.png,"], ["ids=source"], "row 2 and row 3 would be one case"),
        (["a.png,", "x.png,", "a.png,"], [], "row 2 and row 4 have the same file in 'file'"),
        (["a.png,l1", "x.png,", "a.png,"], ["case=lesion"], "row 2 and row 4 have the same file in 'file'"),
        (["x.png,", "b.png,x"], ["case=lesion", "ids=source"], "row 3 and row 2 would be one case"),
        (["x.png,", "b.png,x.png", "c.png,x"], ["case=lesion"], "row 3 and row 2 would be one case"),
    ],
)
def test_rows_do_not_become_one_case_by_their_names(
    tmp_path: Path, rows: list[str], words: list[str], message: str
) -> None:
    (tmp_path / "t.csv").write_text("\n".join(["file,lesion", *rows]))
    with pytest.raises(InputError, match=message):
        read_source(tmp_path, "patient=none", *words)


@pytest.mark.parametrize("rows", [["x.png,", "x.jpg,"], ["x.png,", "b.png,x"], ["a.png,l1", "a.png,l1", "b.png,b"]])
def test_with_keyed_ids_names_are_kept_apart(tmp_path: Path, rows: list[str]) -> None:
    (tmp_path / "t.csv").write_text("\n".join(["file,lesion", *rows]))
    found = read_source(tmp_path, "patient=none", "case=lesion")
    assert (len(found.cases), found.patient_unit) == (2, "case")


def read_source(folder: Path, *words: str) -> RawDataset:
    places = ["source=table", f"raw={folder / 't.csv'}", "out=/nowhere", "image=file"]
    return source.read(load_config(source.Options, [*places, *words]))


# --- attributes -------------------------------------------------------------------------------------


def of_table(table: Table, name: str, patients: Sequence[str] = (), keyed: bool = True) -> list[str]:
    """The attribute of a table; without patients each row is one's own."""
    return attribute(table, name, (), patients or [f"p{row}" for row in range(table.num_rows)], keyed)


@pytest.mark.parametrize(
    "header",
    [
        "age",
        "Age",
        "age_approx",
        "patient age",
        "PatientAge",
        "age at visit",
        "PATIENTAGE",
        "Alter",
        "ageyears",
        "Patientenalter",
        *("Âge", "edad", "Età", "idade", "leeftijd", "wiek", "ålder"),
    ],
)
def test_an_age_becomes_a_band(header: str) -> None:
    ages = {"45": "40-49", "89.9": "80-89", "90": "90+", "104": "90+", "058Y": "50-59", "7 years": "0-9"}
    ages |= {"40-49": "40-49", "85-89": "85-89", "91-95": "90+", "90+": "90+", "95+": "90+", "": "", "unknown": ""}
    table = table_of(**{header: list(ages)})
    assert of_table(table, header) == list(ages.values())


@pytest.mark.parametrize("header", ["edad", "Alter des Patienten", "Età", "leeftijd"])
def test_an_age_is_known_by_its_cells_as_other_languages_write_them(header: str) -> None:
    ages = {"45 años": "40-49", "45,5": "40-49", "91 Jahre": "90+", "7 anni": "0-9", "60 ans": "60-69", "3 jaar": "0-9"}
    assert of_table(table_of(**{header: list(ages)}), header) == list(ages.values())


@pytest.mark.parametrize("header", ["edad", "leeftijd", "Ålder"])
def test_an_age_is_no_measurement_in_any_language(header: str) -> None:
    table = table_of(**{header: ["93"]})
    with pytest.raises(InputError, match=f"'{header}' is an age, and single years above 89"):
        read_numbers(table, singly(table), [header], ())


@pytest.mark.parametrize("cell", ["45 11/12", "1931", "born 1931", "12 months", "-1"])
def test_an_age_that_is_none_is_refused_by_its_row(cell: str) -> None:
    with pytest.raises(InputError, match="row 3: 'age' is neither an age in years nor a band"):
        of_table(table_of(age=["50", cell]), "age")


@pytest.mark.parametrize(
    "cell",
    ["2019-05-30", "30.5.2019", "5/30/19", "20190530", "20190530121314", "seen 30 May 2019", "May 2019", "12:45"],
)
def test_an_attribute_with_a_date_or_time_is_refused(cell: str) -> None:
    with pytest.raises(InputError, match=r"row 3: 'visit' looks like a date or time.*leave 'visit' out") as e:
        of_table(table_of(visit=["first", cell]), "visit")
    assert cell not in str(e.value)


@pytest.mark.parametrize(
    "cell",
    [
        *(
            "first",
            "2010-2019",
            "upper arm",
            "Dresden",
            "MS lesion",
            "MR T1",
            "DR chest",
            "2048",
            "mrna +",
            "left",
            "III-IV",
            "0.5",
            "T1N0M0",
        ),
        *("10-20", "L2/L3", "1.5 T", "left upper arm", "10 to 20 mm", "1.2000", "MR", "SR report"),
    ],
)
def test_an_attribute_with_groups_is_kept(cell: str) -> None:
    assert of_table(table_of(group=["", cell]), "group") == ["", cell]


@pytest.mark.parametrize(
    "header",
    [
        "name",
        "PatientName",
        "patient_id",
        "date of birth",
        "MRN",
        "zip",
        "StudyUID",
        "patientname",
        "PATIENTID",
        "Nachname",
        "casenr",
        "Geburtsdatum",
        *("Prénom", "nom", "voornaam", "fecha de nacimiento"),
    ],
)
def test_an_attribute_that_names_people_by_its_header_is_refused(header: str) -> None:
    with pytest.raises(InputError, match=f"the header '{header}' means that it tells who somebody is"):
        of_table(table_of(**{header: ["x"]}), header)


def test_an_attribute_in_which_rows_differ_is_refused() -> None:
    for values in ([str(row / 7) for row in range(2000)], [f"Anna {row}" for row in range(30)]):
        with pytest.raises(InputError, match=r"different values in [\d,]+ rows, which tell patients apart"):
            of_table(table_of(x=values), "x")
    assert of_table(table_of(x=[str(row % 50) for row in range(2000)]), "x")[51] == "1"


@pytest.mark.parametrize("cell", ["9434765919", "MV-943476", "x 943476"])
def test_a_few_long_numbers_are_no_groups(cell: str) -> None:
    with pytest.raises(InputError, match="row 3: 'nhs' looks like an id; leave 'nhs' out of attrs=") as caught:
        of_table(table_of(nhs=["a", cell]), "nhs")
    assert cell not in str(caught.value)
    assert of_table(table_of(dose=["0.3333333", "1"]), "dose") == ["0.3333333", "1"]


@pytest.mark.parametrize("header", ["stage", "TUMORSTAGE", "agent", "thyroid", "fluid", "covid", "mrna", "percentage"])
def test_a_header_that_only_sounds_like_an_age_or_id_is_kept(header: str) -> None:
    assert of_table(table_of(**{header: ["12", "3"]}), header) == ["12", "3"]


def test_an_attribute_that_nearly_tells_the_patient_is_refused() -> None:
    table = table_of(site=[str(row % 12) for row in range(100)])
    assert of_table(table, "site", [f"p{row % 25}" for row in range(100)])[13] == "1"
    with pytest.raises(InputError, match="12 different values for 24 patients, so it nearly tells who"):
        of_table(table, "site", [f"p{row % 24}" for row in range(100)])


@pytest.mark.parametrize(
    ("cell", "said"),
    [
        *((year, "looks like a year") for year in ("1931", "2019", " 2019", "2019.0")),
        *((month, "looks like a year") for month in ("2019-05", "5/2019", "05.2019")),
        *(
            (name, "begins like the name")
            for name in ("Dr. Adler", "dr. adler", "Dr Adler", "Frau Adler", "M. Adler", "Prof.Adler")
        ),
        *(
            (f"{title} Adler", "begins like the name")
            for title in ("Ms", "Sr", "Dra.", "Professor", "Señora", "Mevrouw")
        ),
        ("see Anna Adler again", "has more than 3 words"),
        ("Adler^Anna^Maria^Luise", "has more than 3 words"),
        ("arm \x1b[2J", "is free text"),
    ],
)
def test_what_may_name_somebody_is_refused_where_ids_are_keyed(cell: str, said: str) -> None:
    with pytest.raises(InputError, match=f"row 3: 'group' {said}.*; leave 'group' out of attrs=") as caught:
        of_table(table_of(group=["a", cell]), "group")
    assert cell.strip() not in str(caught.value)
    if said != "is free text":  # elsewhere ids are public, and so is what stands beside them
        assert of_table(table_of(group=["a", cell]), "group", keyed=False) == ["a", cell]


@given(
    names=st.lists(st.text("qvwxyz", min_size=3, max_size=8), min_size=11, max_size=40, unique=True),
    others=st.integers(100, 300),
)
def test_values_of_one_patient_each_are_refused_where_ids_are_keyed(names: list[str], others: int) -> None:
    """One cell of a patient says who it is, in all others stands the same word."""
    cells = [*names, *["none"] * others]
    table = table_of(who=cells)
    with pytest.raises(InputError, match=f"{len(names):,} of them of one patient each") as caught:
        of_table(table, "who")
    assert not any(name in str(caught.value).split() for name in names)
    assert of_table(table, "who", keyed=False) == cells
    twice = table_of(who=cells * 2)  # a second patient for each: groups
    assert of_table(twice, "who") == cells * 2


@given(st.lists(st.tuples(st.text("ab", max_size=4), st.integers(0, 6)), max_size=80))
def test_what_an_import_lets_through_stays_let_through_pair_by_pair(cells: list[tuple[str, int]]) -> None:
    """verify sees each value once with each of its patients, and must not refuse what was imported."""
    values, patients = [value for value, _ in cells], [f"p{patient}" for _, patient in cells]
    table = table_of(group=values) if cells else Table("t.csv", {"group": []}, 0)
    pairs = sorted(set(zip(values, patients)))
    kept = Table("t.csv", {"group": [value for value, _ in pairs]}, len(pairs))
    try:
        of_table(table, "group", patients)
    except InputError:
        return
    problem = None
    try:
        check_kept(kept, "group", [patient for _, patient in pairs], all_there=True)
    except InputError as error:
        problem = str(error)
    assert problem is None


def test_of_one_patient_each_asks_the_patient_column(tmp_path: Path) -> None:
    """A patient's images count once, and public ids let all of it through."""
    rows = [f"{row}.png,p{row // 4},{f'word{row // 4}' if row < 48 else 'common'}" for row in range(400)]
    (tmp_path / "t.csv").write_text("\n".join(["file,who,ward", *rows]))
    with pytest.raises(InputError, match=r"'ward' .* has 13 different values, 12 of them of one patient each"):
        read_source(tmp_path, "patient=who", "attrs=ward")
    found = read_source(tmp_path, "patient=who", "attrs=ward", "ids=source")
    assert found.cases[-1].images[0].attributes == {"ward": "common"}


def test_a_header_that_steers_a_terminal_is_refused() -> None:
    with pytest.raises(InputError, match="holds what is no character; give it another header"):
        of_table(table_of(**{"si\x1b[2Jte": ["a"]}), "si\x1b[2Jte")


def test_the_patient_and_free_text_are_no_attributes() -> None:
    with pytest.raises(InputError, match="'who' tells the patient, case or image; leave 'who' out of attrs="):
        attribute(table_of(who=["x"]), "who", ("file", "who"), ["p"], True)
    with pytest.raises(InputError, match="row 2: 'note' is free text"):
        of_table(table_of(note=["word " * 20]), "note")


def test_a_pipe_among_the_images_is_absent_and_does_not_hang(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(FileNotFoundError):
        RawFile(Folder(tmp_path), "pipe.png")()


def test_paths_may_be_absolute_and_with_keyed_ids_none_is_told(tmp_path: Path) -> None:
    photos, table = tmp_path / "Elsewhere", tmp_path / "tables" / "t.csv"
    rows = [(f"{photos}/{SECRET}{number}.png", f"p{number}") for number in range(6)]
    table.parent.mkdir()
    table.write_text("\n".join(["file,who", *(f"{file},{who}" for file, who in rows)]))
    words = ("image=file", "patient=who", f"keyring={tmp_path / 'k.json'}")
    for file, _ in rows[1:]:
        grey(Path(file))
    with pytest.raises(InputError, match=r"^1 of 6 images is not there; the first: row 2; fetch"):
        imported("table", table, tmp_path / "out", *words)
    grey(Path(rows[0][0]))
    dataset = imported("table", table, tmp_path / "out", *words)
    assert dataset.num_images == 6
    assert not [told for told in (SECRET, photos.name) if told.lower().encode() in everything(dataset)]


def test_a_folder_in_the_place_of_a_table_is_said_to_be_one(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=rf"^{tmp_path} is a folder; give the \.csv or \.parquet in it$"):
        read_table(Folder(tmp_path.parent), tmp_path.name)


@pytest.mark.parametrize(("rows", "length"), [(1_000_000, 200), (4_000, 100_000)])
def test_a_small_parquet_file_of_many_rows_is_refused_before_they_are_all_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows: int, length: int
) -> None:
    monkeypatch.setattr("data.tables.MAX_UNPACKED_BYTES", 20 << 20)
    cells = pa.DictionaryArray.from_arrays(pa.array(np.zeros(rows, dtype=np.int32)), ["x" * length])
    parquet.write_table(pa.table({"label": cells}), tmp_path / "t.parquet", compression="zstd", store_schema=False)
    assert (tmp_path / "t.parquet").stat().st_size < 50_000
    taken: list[object] = []
    monkeypatch.setattr("data.tables._cell", lambda value: taken.append(value) or value)
    content = (tmp_path / "t.parquet").read_bytes()
    assert "t.parquet unpacks to more than" in refusal(tmp_path, content, "t.parquet")
    assert sum(len(str(value)) for value in taken) <= 20 << 20
