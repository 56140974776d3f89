"""What goes wrong with raw data, as a user meets it at the command line: one line that says where and the mend.

Exit code 2, and nothing that could be taken for a dataset. A full disk is in test_data_interrupted.py, labels of two
datasets that collide in test_pretrain_combined.py, damaged tars in test_data_wds.py.
"""

import io
import os
import pickle
import re
import tarfile
from pathlib import Path

import h5py
import numpy as np
import pytest
from PIL import Image

from clusters.command import run_main
from data.__main__ import help_text, main
from tests.importers import grey
from tests.test_data_dicom import dicom
from tests.test_data_dicom import phantom as frame

TABLE = "file,who,dx,lesion,part\na.png,p1,nv,l1,train\nb.png,p2,mel,l2,test\nc.png,p1,nv,l3,train\n"
IMPORT = ["image=file", "patient=who", "label=dx", "num_processes=1", "ids=source"]


def refusal(capsys: pytest.CaptureFixture[str], out: Path, *words: str) -> str:
    """The one line with which an import is refused; no dataset is there."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        run_main(main, ["import", *words], help_text)
    said = capsys.readouterr()
    assert ended.value.code == 2
    assert not said.out
    assert not (out / "manifest.json").exists()
    (line,) = [line for line in said.err.splitlines() if not line.startswith(("import: ", "look through tars: "))]
    assert line.startswith("error: ") and line.isprintable()
    return line


def key(text: str) -> tuple[str, list[str]]:
    return TABLE.replace("l1", text), ["case=lesion"]


NO_KEY = r"the case of row 2 \(a\.png\): case id .* does not match \[a-z0-9_-\], 1 to 64 characters; use ids=keyed"
TABLES: dict[str, tuple[str | bytes, list[str], str]] = {
    "missing column": (TABLE, ["label=stage"], r"t\.csv has no column 'stage'"),
    "misspelt column": (TABLE, ["patient=whom"], r"t\.csv has no column 'whom' \(nearest: who\)"),
    "label outside": (TABLE, ["classes=nv,bcc"], r"row 3: 'dx' is outside .*; mend the cell or add it to classes="),
    "not UTF-8": (
        TABLE.replace("mel", "m\xe9l").encode("latin-1"),
        [],
        r"row 3: not UTF-8 text; save the table as CSV",
    ),
    "the same image twice": (
        f"{TABLE}a.png,p1,nv,,\n",
        [],
        r"row 2 and row 5 have the same file in 'file'.*delete one",
    ),
    "patient in two official splits": (
        TABLE.replace("p2", "p1"),
        ["split=part"],
        r"patient p1 stands in two splits, .*row 2 .*row 3.*; put all images of a patient in one, or leave",
    ),
    "key with a dot": (*key("1.2.840"), NO_KEY),
    "key with a slash": (*key("a/b"), NO_KEY),
    "key that leads upwards": (*key(".."), NO_KEY),
    "key with a newline": (*key('"a\nb"'), NO_KEY),
    "key of 300 characters": (*key("k" * 300), NO_KEY),
    "keys that differ in case": (
        *key("L2"),
        r"two cases have the key 'l2': those of row 2 .* and row 3 .*use ids=keyed",
    ),
}


def pictures(folder: Path) -> None:
    for name in ("a.png", "b.png", "c.png"):
        grey(folder / name)


@pytest.mark.parametrize("name", TABLES)
def test_a_table_that_cannot_be_imported(tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    content, words, message = TABLES[name]
    pictures(tmp_path)
    (tmp_path / "t.csv").write_bytes(content if isinstance(content, bytes) else content.encode())
    given = ["source=table", f"raw={tmp_path / 't.csv'}", f"out={tmp_path / 'out'}", *IMPORT, *words]
    assert re.search(message, refusal(capsys, tmp_path / "out", *given))


# What stands in the place of an image, None for nothing.
IMAGES = {
    "absent": (None, r"1 of 3 images is not there; the first: row 3 \(b\.png\); fetch .* missing=skip"),
    "zero bytes": (
        b"",
        r"1 of 3 images is bad, .*the first: row 3 \(b\.png\): zero bytes; mend them or raise max_bad",
    ),
    "HTML": (b"<!DOCTYPE html><html>404</html>", r"row 3 \(b\.png\): not an image; mend"),
    "corrupt DICOM": (dicom(frame())[:-100], r"row 3 \(b\.png\): truncated; mend"),
}


@pytest.mark.parametrize("name", IMAGES)
def test_an_image_that_is_none(tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    content, message = IMAGES[name]
    pictures(tmp_path)
    (tmp_path / "b.png").unlink()
    if content is not None:
        (tmp_path / "b.png").write_bytes(content)
    (tmp_path / "t.csv").write_text(TABLE)
    given = ["source=table", f"raw={tmp_path / 't.csv'}", f"out={tmp_path / 'out'}", *IMPORT]
    assert re.search(message, refusal(capsys, tmp_path / "out", *given))


def test_a_truncated_hdf5_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for part in ("train", "valid", "test"):
        for kind, shape in (("x", (2, 96, 96, 3)), ("y", (2, 1, 1, 1))):
            with h5py.File(tmp_path / f"camelyonpatch_level_2_split_{part}_{kind}.h5", "w") as file:
                file.create_dataset(kind, data=np.zeros(shape, np.uint8))
    cut = tmp_path / "camelyonpatch_level_2_split_test_x.h5"
    cut.write_bytes(cut.read_bytes()[:-100])
    line = refusal(capsys, tmp_path / "out", "source=pcam", f"raw={tmp_path}", f"out={tmp_path / 'out'}")
    assert line.endswith(f"{cut} is not a whole HDF5 file; fetch it again")


def test_a_folder_that_is_not_empty(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    line = refusal(capsys, tmp_path, "source=synthetic", "num_cases=2", f"out={tmp_path}")
    assert line.endswith(f"{tmp_path} is not empty and not an unfinished import; give another out=")
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


@pytest.mark.parametrize("ending", ["pkl", "pickle", "pth", "pyd", "npy", "py", "so"])
def test_code_of_any_kind_in_a_tar(tmp_path: Path, capsys: pytest.CaptureFixture[str], ending: str) -> None:
    picture = io.BytesIO()
    Image.effect_noise((40, 30), 50).save(picture, "PNG")
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for member, content in ((f"x.{ending}", pickle.dumps(Trap())), ("x.png", picture.getvalue())):
            info = tarfile.TarInfo(member)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    words = ["source=wds", f"raw={tmp_path}", f"out={tmp_path}", "patient=key", "ids=source"]
    line = refusal(capsys, tmp_path, *words)
    assert re.search(rf"a\.tar: member 1 \(x\.{ending}\) .*could be code .*; write the tar again without them$", line)
    assert [path.name for path in tmp_path.iterdir()] == ["a.tar"]


class Trap:
    """Its pickle would end the tests."""

    def __reduce__(self) -> tuple[object, tuple[int]]:
        return os._exit, (3,)


def test_a_command_in_the_place_of_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = f"pipe:touch {tmp_path / 'ran'}"
    line = refusal(capsys, tmp_path, "source=wds", f"raw={command}", f"out={command}", "patient=key")
    assert "pipe: would run a command; give a folder or the URL of one" in line
    assert not list(tmp_path.iterdir())
