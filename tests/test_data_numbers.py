"""Measurements from a table: into the index and back, and what is refused."""

import json
import tarfile
from pathlib import Path

import numpy as np
import pytest

from clusters.config import InputError
from data.verify import verify
from tests.importers import grey, imported, read

ROWS = ["a.png,p1,s1,1,55.5,120", "b.png,p1,s1,1,55.5,", "c.png,p2,s2,0,n/a,90", "d.png,p3,s3,0,1e1,80"]
LOW = "z.png,p9,s9,0,50,1"
WORDS = ("image=file", "patient=who", "case=study", "label=reduced", "ids=source")


def echo(folder: Path, rows: list[str] = ROWS, header: str = "file,who,study,reduced,EF,EDV") -> Path:
    for row in rows:
        grey(folder / row.split(",")[0])
    (folder / "echo.csv").write_text("\n".join([header, *rows]) + "\n")
    return folder / "echo.csv"


def test_numbers_of_a_case_stand_in_the_index_and_in_its_story(tmp_path: Path) -> None:
    dataset = imported("table", echo(tmp_path / "raw"), tmp_path / "out", *WORDS, "numbers=EF,EDV")
    assert dataset.number_names == ["EF", "EDV"] and dataset.label_names == ["reduced"]
    found = dict(zip(dataset.column("member"), zip(dataset.column("number.EF"), dataset.column("number.EDV"))))
    assert found["s1.0.jpg"] == found["s1.1.jpg"] == (55.5, 120.0)  # an empty cell is filled by the case's other row
    assert np.isnan(found["s2.0.jpg"][0]) and found["s2.0.jpg"][1] == 90
    assert found["s3.0.jpg"][0] == 10.0
    with tarfile.open(tmp_path / "out" / "shard-000000.tar") as tar:
        story = json.loads(tar.extractfile("s2.json").read())  # type: ignore[union-attr]
    assert story["numbers"] == {"EF": None, "EDV": 90.0}
    assert "4" in verify(dataset.location)


def test_a_dataset_without_numbers_is_what_it_was(tmp_path: Path) -> None:
    dataset = imported("table", echo(tmp_path / "raw"), tmp_path / "out", *WORDS)
    assert dataset.number_names == [] and "numbers" not in dataset.manifest.settings
    with tarfile.open(tmp_path / "out" / "shard-000000.tar") as tar:
        assert "numbers" not in json.loads(tar.extractfile("s2.json").read())  # type: ignore[union-attr]


def test_other_numbers_are_another_import(tmp_path: Path) -> None:
    imported("table", echo(tmp_path / "raw"), tmp_path / "out", *WORDS, "numbers=EF")
    with pytest.raises(InputError):
        imported("table", echo(tmp_path / "raw"), tmp_path / "out", *WORDS, "numbers=EF,EDV")


@pytest.mark.parametrize(
    ("rows", "header", "numbers", "told"),
    [
        (["a.png,p1,s1,1,high,1", LOW], "", "EF", r"echo\.csv, row 2: 'EF' is not a number; mend the cell"),
        *(
            (
                [f'a.png,p1,s1,1,"{comma}",1', LOW],
                "",
                "EF",
                r"row 2: 'EF' has a decimal comma; write a point \(9\.3 for 9,3\) in all cells of this column$",
            )
            for comma in ("7,25", "-0,5", "1.234,5")
        ),
        (['a.png,p1,s1,1,"7,2,5",1', LOW], "", "EF", r"row 2: 'EF' is not a number; mend the cell"),
        (["a.png,p1,s1,1,inf,1", LOW], "", "EF", r"row 2: 'EF' is not a number"),
        (
            ["a.png,p1,s1,1,50,1", "b.png,p1,s1,1,51,1", LOW],
            "",
            "EF",
            r"row 2 and row 3 are of one case but differ in 'EF'",
        ),
        (["a.png,p1,s1,1,,1", "b.png,p2,s2,0,,1"], "", "EF", r"column 'EF' of .*echo\.csv holds no number"),
        (ROWS, "", "ESV", r"no column 'ESV' \(nearest: EDV\)"),
        (ROWS, "", "who", r"numbers= keeps cells as they are, and 'who' tells the patient"),
        (ROWS, "file,who,study,reduced,mrn,EDV", "mrn", r"the header 'mrn' means that it tells who somebody is"),
        (ROWS, "file,who,study,reduced,age,EDV", "age", r"'age' is an age, and single years above 89 .* with attrs="),
    ],
)
def test_what_is_no_number_or_tells_a_person_is_refused(
    tmp_path: Path, rows: list[str], header: str, numbers: str, told: str
) -> None:
    raw = echo(tmp_path, rows, header or "file,who,study,reduced,EF,EDV")
    with pytest.raises(InputError, match=told) as caught:
        read("table", raw, *WORDS, f"numbers={numbers}")
    assert "\n" not in str(caught.value) and "high" not in str(caught.value)
