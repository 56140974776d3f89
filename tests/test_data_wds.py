"""Tars of others, adopted in place: read exactly, never trusted, never touched."""

import hashlib
import io
import json
import os
import pickle
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from webdataset.compat import WebDataset
from webdataset.writer import ShardWriter, TarWriter

from clusters.config import InputError, load_config
from clusters.storage import Folder
from data.__main__ import main
from data.dataset import Dataset, open_dataset
from data.images import decode, decode_stored
from data.shards import write_dataset
from data.sources import wds
from data.tars.adopt import adopt
from data.tars.scan import Tar, Wanted, scan
from data.verify import verify
from data.whois import WhoisConfig, whois
from tests.drawn_cases import Drawn, cases, config


def picture(seed: int, kind: str = "JPEG", size: tuple[int, int] = (40, 30), **options: Any) -> bytes:
    buffer = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 255, (4, 5, 3), np.uint8)
    Image.fromarray(pixels).resize(size).save(buffer, kind, **options)
    return buffer.getvalue()


def options(folder: Path, *words: str) -> wds.Options:
    given = ["source=wds", f"raw={folder}", f"out={folder}", "num_processes=1", *words]
    names = {word.partition("=")[0] for word in words}
    given += [] if "ids" in names else ["ids=source"]
    given += [] if "patient" in names else ["patient=none"]
    return load_config(wds.Options, given)


def write_cases(folder: Path, num_cases: int = 12, per_shard: int = 5) -> dict[str, list[bytes]]:
    """Grouped cases as webdataset writes them: `0.jpg`, `1.png`, … and a JSON; two cases a patient."""
    folder.mkdir(exist_ok=True)
    written = {}
    with ShardWriter(str(folder / "lesions-%04d.tar"), maxcount=per_shard, verbose=0) as writer:
        for number in range(num_cases):
            images = [
                picture(100 * number + k, "PNG" if k == 1 else "JPEG", (40 + number, 30)) for k in range(1 + number % 3)
            ]
            story = {
                "patient": f"P{number // 2}",
                "dx": ("nv", "mel", "bcc")[number % 3],
                "split": ("train", "val", "test")[number // 2 % 3],
                "about": {"sex": "female" if number % 4 < 2 else "male"},
                "age": 95 if number == 0 else 40 + number,
            }
            sample = {"__key__": f"case_{number:03d}", "json": json.dumps(story).encode()}
            sample |= {f"{k}.{'png' if k == 1 else 'jpg'}": content for k, content in enumerate(images)}
            writer.write(sample)
            written[f"case_{number:03d}"] = images
    return written


GROUPED = ("patient=json:patient", "label=json:dx", "attrs=about.sex,age", "split=json:split")


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def tar_of(path: Path, members: list[tuple[str, bytes]], form: int = tarfile.USTAR_FORMAT) -> None:
    with tarfile.open(path, "w", format=form) as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


def refusal(folder: Path, *words: str) -> str:
    """The one line with which an adoption is refused; nothing is left behind."""
    before = files(folder)
    with pytest.raises(InputError) as error:
        adopt(options(folder, *words))
    assert files(folder) == before
    assert "\n" not in str(error.value)
    return str(error.value)


def images_of(dataset: Dataset) -> dict[str, list[bytes]]:
    found: dict[str, list[bytes]] = {}
    for row, key in enumerate(dataset.column("key")):
        found.setdefault(key, []).append(dataset.read(row))
    return found


def test_grouped_cases_are_indexed_where_they_lie_and_read_byte_for_byte(tmp_path: Path) -> None:
    written = write_cases(tmp_path)
    tars = files(tmp_path)
    adopted = adopt(options(tmp_path, *GROUPED))
    assert not adopted.reused
    assert {name: content for name, content in files(tmp_path).items() if name.endswith(".tar")} == tars
    assert set(files(tmp_path)) - set(tars) == {"index.parquet", "manifest.json"}

    dataset = open_dataset(str(tmp_path))
    assert images_of(dataset) == written
    assert dataset.manifest.counts.model_dump() == {"cases": 12, "images": 24, "patients": 6}
    assert dataset.manifest.shards == dict(enumerate(sorted(tars)))
    assert dataset.label_names == ["bcc", "mel", "nv"]
    assert "metadata inside the images was not removed" in dataset.manifest.images["format"]
    assert not {"short_side_px", "jpeg_quality"} & dataset.manifest.settings.keys()
    assert verify(str(tmp_path)).startswith("OK")

    first = dict(zip(dataset.index.column_names, [column[0].as_py() for column in dataset.index.columns]))
    assert (first["key"], first["patient"], first["split"]) == ("case_000", "p0", "train")
    assert (first["attr.about.sex"], first["attr.age"], first["label.nv"]) == ("female", "90+", 1.0)
    for row, (width, height) in enumerate(zip(dataset.column("width"), dataset.column("height"))):
        assert decode_stored(dataset.read(row)).shape == (height, width, 3)
    # Any WebDataset reader still sees the tars as they were.
    urls = [str(tmp_path / name) for name in sorted(tars)]
    assert [sample["__key__"] for sample in WebDataset(urls, shardshuffle=False)] == list(written)


def test_one_or_several_processes_give_the_same_dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("data.tars.adopt.IMAGES_PER_TASK", 5)
    manifests = []
    for number in (1, 2):
        write_cases(tmp_path / str(number))
        for tar in (tmp_path / str(number)).glob("*.tar"):  # webdataset writes the time of writing into its tars
            tar.write_bytes((tmp_path / "1" / tar.name).read_bytes())
        config = options(tmp_path / str(number), *GROUPED, f"num_processes={number}")
        manifests.append(adopt(config).manifest)
    assert manifests[0].sha256 == manifests[1].sha256


def test_tars_behind_a_url(tmp_path: Path) -> None:
    written = write_cases(tmp_path)
    place = Folder(f"memory://{tmp_path.name}-adopted")
    for name, content in files(tmp_path).items():
        place.write(name, content)
    words = ["source=wds", f"raw={place}", f"out={place}", "ids=source", "num_processes=1", *GROUPED]
    manifest = adopt(load_config(wds.Options, words)).manifest
    assert images_of(open_dataset(place.location)) == written
    assert verify(place.location).startswith("OK")
    assert adopt(options(tmp_path, *GROUPED)).manifest.sha256 == manifest.sha256  # wherever the tars lie


def test_classic_samples_with_a_class_number(tmp_path: Path) -> None:
    with ShardWriter(str(tmp_path / "train-%03d.tar"), maxcount=8, verbose=0) as writer:
        for number in range(24):
            writer.write({"__key__": f"{number:05d}", "jpg": picture(number), "cls": number % 11})
    with ShardWriter(str(tmp_path / "test-%03d.tar"), maxcount=8, verbose=0) as writer:
        for number in range(24, 30):
            writer.write({"__key__": f"{number:05d}", "jpg": picture(number), "cls": number % 11})
    adopt(options(tmp_path, "label=cls", "split=shard"))
    dataset = open_dataset(str(tmp_path))
    assert dataset.task == "multiclass"
    assert sorted(dataset.label_names, key=int) == [str(number) for number in range(11)]
    for key, split, labels in zip(dataset.column("key"), dataset.column("split"), dataset.labels):
        assert dataset.label_names[int(labels.argmax())] == str(int(key) % 11)
        assert split == ("test" if int(key) >= 24 else "train")


@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_long_names_folders_and_dots(tmp_path: Path, form: int) -> None:
    """Extended headers stand between the members; a key keeps its folder; an extension may have dots."""
    path = tmp_path / "a.tar"
    deep = "./" + "/".join(["folder" * 5] * 5)
    with tarfile.open(path, "w", format=form) as tar:
        folder = tarfile.TarInfo(deep)
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
        for number in range(3):
            for name, content in (
                (f"{deep}/übergröße-{number}.left.JPG", picture(number)),
                (f"{deep}/übergröße-{number}.mask.png", picture(50 + number, "PNG")),
                (f"{deep}/übergröße-{number}.txt", b"a note"),
            ):
                info = tarfile.TarInfo(name)
                info.size, info.mtime = len(content), 1.5
                tar.addfile(info, io.BytesIO(content))
    assert "ids=keyed" in refusal(tmp_path)  # such a key cannot be one of ours
    keyring = tmp_path.parent / f"{tmp_path.name}-keyring.json"
    adopt(options(tmp_path, "ids=keyed", f"keyring={keyring}", "images=left.jpg"))
    dataset = open_dataset(str(tmp_path))
    assert sorted(map(decode_and_sum, map(dataset.read, range(3)))) == sorted(
        decode_and_sum(picture(number)) for number in range(3)
    )
    assert all(len(key) == 20 for key in dataset.column("key"))
    assert verify(str(tmp_path)).startswith("OK")


def decode_and_sum(content: bytes) -> int:
    return int(decode(content).astype(np.int64).sum())


def test_samples_of_a_lesion_make_a_case(tmp_path: Path) -> None:
    members = []
    for number in range(6):
        members += [(f"{number}.jpg", picture(number)), (f"{number}.json", json.dumps({"l": number % 2}).encode())]
    tar_of(tmp_path / "a.tar", members)
    tar_of(tmp_path / "b.tar", [("9.jpg", picture(9)), ("9.json", b'{"l": null}')])
    adopt(options(tmp_path, "case=json:l", "ids=keyed", f"keyring={tmp_path}-keys.json"))
    dataset = open_dataset(str(tmp_path))
    assert np.bincount(dataset.case_of).tolist() == [3, 3, 1]  # a case's rows are neighbours, a sample without is alone
    expected = [0, 2, 4, 1, 3, 5, 9]
    assert [dataset.read(row) for row in range(7)] == [picture(seed) for seed in expected]
    assert verify(str(tmp_path)).startswith("OK")


def test_several_findings_with_doubt(tmp_path: Path) -> None:
    stories = [{"edema": 1, "mass": -1}, {"edema": 0, "mass": None}, {"edema": 0.0, "mass": 1}]
    members = []
    for number, story in enumerate(stories):
        members += [(f"{number}.jpg", picture(number)), (f"{number}.json", json.dumps(story).encode())]
    tar_of(tmp_path / "a.tar", members)
    adopt(options(tmp_path, "label=json:edema,mass"))
    dataset = open_dataset(str(tmp_path))
    assert dataset.task == "multilabel"
    np.testing.assert_array_equal(dataset.labels, [[1, np.nan], [0, np.nan], [0, 1]])
    assert dataset.column("uncertain.mass").tolist() == [True, False, False]


def test_images_that_cannot_be_decoded_are_left_out_and_counted(tmp_path: Path) -> None:
    members = [(f"{number}.jpg", picture(number)) for number in range(8)]
    members += [("page.jpg", b"<html>not found</html>"), ("empty.jpg", b""), ("cut.jpg", picture(1)[:-200])]
    tar_of(tmp_path / "a.tar", members)
    assert "max_bad_fraction" in refusal(tmp_path)
    manifest = adopt(options(tmp_path, "max_bad_fraction=0.5")).manifest
    rest = bytearray((tmp_path / "a.tar").read_bytes())  # bad images are part of it: the index does not know them
    dataset = open_dataset(str(tmp_path))
    for row in reversed(range(8)):
        offset, size = int(dataset.column("offset")[row]), int(dataset.column("size")[row])
        del rest[offset : offset + size]
    assert manifest.files["a.tar"].rest_sha256 == hashlib.sha256(rest).hexdigest()
    assert verify(str(tmp_path)).startswith("OK")
    assert (manifest.counts.images, manifest.quarantined.count, manifest.quarantined.dropped_cases) == (8, 3, 3)
    assert manifest.quarantined.reasons == {"not an image": 1, "truncated": 1, "zero bytes": 1}
    assert manifest.quarantined.rows[0].startswith("a.tar: member 9 (page.jpg)")


def test_upright_sizes_for_an_image_that_was_turned(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    tar_of(tmp_path / "a.tar", [("a.jpg", picture(1, exif=exif))])
    adopt(options(tmp_path))
    dataset = open_dataset(str(tmp_path))
    assert (dataset.column("width")[0], dataset.column("height")[0]) == (30, 40)
    assert decode_stored(dataset.read(0)).shape == (40, 30, 3)


def test_adopting_again_is_noticed_and_so_is_every_change(tmp_path: Path) -> None:
    write_cases(tmp_path)
    manifest = adopt(options(tmp_path, *GROUPED)).manifest
    again = adopt(options(tmp_path, *GROUPED))
    assert again.reused and again.manifest == manifest
    assert "label" in refusal(tmp_path, *GROUPED[:1], *GROUPED[2:])

    tar = tmp_path / "lesions-0001.tar"
    before = tar.read_bytes()
    place = before.index(b"female")
    tar.write_bytes(before[:place] + b"fEmale" + before[place + 6 :])
    assert "lesions-0001.tar was changed since" in refusal(tmp_path, *GROUPED)
    tar.unlink()
    assert "lesions-0001.tar is gone" in refusal(tmp_path, *GROUPED)
    tar.write_bytes(before)
    tar_of(tmp_path / "new.tar", [("new.jpg", picture(1000))])
    assert "new.tar is new" in refusal(tmp_path, *GROUPED)


def test_a_flipped_byte_is_found_when_it_is_read(tmp_path: Path) -> None:
    write_cases(tmp_path)
    adopt(options(tmp_path, *GROUPED))
    offset = int(open_dataset(str(tmp_path)).column("offset")[0])
    with (tmp_path / "lesions-0000.tar").open("r+b") as file:
        file.seek(offset + 100)
        byte = file.read(1)[0]
        file.seek(offset + 100)
        file.write(bytes([byte ^ 1]))
    with pytest.raises(InputError, match=r"lesions-0000\.tar.*case_000\.0\.jpg"):
        open_dataset(str(tmp_path)).read(0)
    with pytest.raises(InputError, match=r"lesions-0000\.tar"):
        verify(str(tmp_path))


class Marker:
    """Leaves a file behind if anybody unpickles it."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (self.path,)


@pytest.mark.parametrize(
    "name", ["a.pyd", "a.pkl", "a.pickle", "a.pth", "a.npy", "a.npz", "a.py", "a.jpg.sh", "a", "a.exe"]
)
def test_what_is_not_on_the_list_is_refused_unopened(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "tars"
    folder.mkdir()
    tar_of(folder / "x.tar", [("a.jpg", picture(1)), (name, pickle.dumps(Marker(str(tmp_path / "was unpickled"))))])
    line = refusal(folder)
    assert f"x.tar: member 2 ({name})" in line and "write the tar again" in line
    assert list(tmp_path.iterdir()) == [folder]


@pytest.mark.parametrize(
    ("name", "kind", "said"),
    [
        ("/etc/a.jpg", tarfile.REGTYPE, "out of the tar"),
        ("../a.jpg", tarfile.REGTYPE, "out of the tar"),
        ("b/../../a.jpg", tarfile.REGTYPE, "out of the tar"),
        ("b\\a.jpg", tarfile.REGTYPE, "out of the tar"),
        ("a\nb.jpg", tarfile.REGTYPE, "not plain text"),
        ("a\x1b[2Jb.jpg", tarfile.REGTYPE, "not plain text"),
        ("a.jpg", tarfile.SYMTYPE, "link"),
        ("a.jpg", tarfile.LNKTYPE, "link"),
        ("a.jpg", tarfile.CHRTYPE, "device"),
        ("a.jpg", tarfile.FIFOTYPE, "device"),
        (".jpg", tarfile.REGTYPE, "no key"),
    ],
)
def test_paths_links_and_devices_are_refused(tmp_path: Path, name: str, kind: bytes, said: str) -> None:
    with tarfile.open(tmp_path / "x.tar", "w", format=tarfile.PAX_FORMAT) as tar:
        info = tarfile.TarInfo("ok.jpg")
        info.size = len(picture(1))
        tar.addfile(info, io.BytesIO(picture(1)))
        info = tarfile.TarInfo(name)
        info.type, info.linkname = kind, "/etc/passwd"
        tar.addfile(info)
    line = refusal(tmp_path)
    assert line.startswith("x.tar: member 2") and said in line
    assert line.isprintable()


def old_sparse(content: bytes, whole: int) -> bytes:
    """A member as GNU tar 1.13 writes a file with holes: header, then the part of it that is stored."""
    info = tarfile.TarInfo("hole.jpg")
    info.type, info.size = tarfile.GNUTYPE_SPARSE, len(content)
    header = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    header[386:410] = b"%011o\0%011o\0" % (0, len(content))  # the first of four places: offset and length
    header[483:495] = b"%011o\0" % whole
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header) + content + bytes(-len(content) % 512)


@pytest.mark.parametrize("form", ["old", "0.0", "0.1", "1.0"])
def test_files_with_holes_are_refused(tmp_path: Path, form: str) -> None:
    """All four forms: a few bytes of such a tar may stand for a file of any size."""
    content, whole = picture(1), 1 << 40
    with tarfile.open(tmp_path / "x.tar", "w", format=tarfile.PAX_FORMAT) as tar:
        info = tarfile.TarInfo("ok.jpg")
        info.size = len(content)
        tar.addfile(info, io.BytesIO(content))
        if form == "old":
            assert tar.fileobj is not None
            tar.fileobj.write(old_sparse(content, whole))
        else:
            told = {
                "0.0": {"GNU.sparse.size": str(whole), "GNU.sparse.numblocks": "1", "GNU.sparse.offset": "0"}
                | {"GNU.sparse.numbytes": str(len(content))},
                "0.1": {"GNU.sparse.size": str(whole), "GNU.sparse.map": f"0,{len(content)}"},
                "1.0": {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": str(whole)},
            }[form]
            stored = (f"1\n0\n{len(content)}\n".encode().ljust(512, b"\0") if form == "1.0" else b"") + content
            info = tarfile.TarInfo("hole.jpg")
            info.size, info.pax_headers = len(stored), told
            tar.addfile(info, io.BytesIO(stored))
    with tarfile.open(tmp_path / "x.tar") as tar:
        assert [member.sparse is not None for member in tar] == [False, True]
    line = refusal(tmp_path)
    assert line.startswith("x.tar: member 2") and "sparse" in line


def test_commands_in_the_place_of_files_are_refused(tmp_path: Path) -> None:
    for place in ("pipe:touch owned", " PIPE: touch owned"):
        with pytest.raises(InputError, match="run a command"):
            load_config(wds.Options, ["source=wds", f"raw={place}", f"out={place}", "patient=none"])
    tar_of(tmp_path / "pipe:touch owned;.tar", [("a.jpg", picture(1))])
    assert "rename it" in refusal(tmp_path)
    assert not Path("owned").exists()


def test_compressed_tars_are_refused_with_the_command_that_unpacks_them(tmp_path: Path) -> None:
    with TarWriter(str(tmp_path / "a.tar.gz")) as writer:
        writer.write({"__key__": "a", "jpg": picture(1)})
    assert "a.tar.gz" in refusal(tmp_path) and "unpack" in refusal(tmp_path)
    (tmp_path / "a.tar.gz").rename(tmp_path / "a.tar")
    assert "gzip -d" in refusal(tmp_path)
    (tmp_path / "a.tar").unlink()
    assert "no .tar" in refusal(tmp_path)
    (tmp_path / "a.tar").write_bytes(b"\0" * 10240)
    assert "no sample" in refusal(tmp_path)
    (tmp_path / "a.tar").write_bytes(b"this is no tar" * 100)
    assert "a.tar is no tar" in refusal(tmp_path)


def test_every_cut_of_a_tar_is_noticed(tmp_path: Path) -> None:
    """Python's own reader is silent about a tar that ends between two members, or in a header."""
    tar_of(tmp_path / "a.tar", [(f"{number}.jpg", picture(number)) for number in range(4)])
    whole = (tmp_path / "a.tar").read_bytes()
    with tarfile.open(tmp_path / "a.tar") as tar:
        last = max(member.offset_data + member.size for member in tar)
    end = -(-last // 512) * 512
    for cut in [*range(0, end + 512, 512), 100, 700, last, end + 100]:
        (tmp_path / "a.tar").write_bytes(whole[:cut])
        line = refusal(tmp_path)
        assert line.startswith("a.tar is") and "copy it again" in line, cut
    (tmp_path / "a.tar").write_bytes(whole + whole)
    assert "two tars" in refusal(tmp_path)
    damaged = bytearray(whole)
    damaged[damaged.index(b"2.jpg")] ^= 1  # a header whose sum is wrong
    (tmp_path / "a.tar").write_bytes(damaged)
    assert "a.tar is damaged after member 2" in refusal(tmp_path)


def outcome_of_scan(folder: Folder, wanted: Wanted) -> Tar | str:
    try:
        return scan(folder, "b.tar", wanted)
    except InputError as error:
        return str(error)


@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_a_damaged_tar_is_refused_or_whole_and_nothing_else_happens(tmp_path: Path, form: int) -> None:
    """Any three bytes may be anything: sizes, types, checksums, extended headers."""
    tar_of(
        tmp_path / "a.tar",
        [(f"{'long' * 40}/{number}.{kind}", b"{}") for number in range(3) for kind in ("jpg", "json")],
        form,
    )
    whole = (tmp_path / "a.tar").read_bytes()
    wanted = Wanted((), ("field",), False, False)

    @settings(max_examples=150, deadline=None)
    @given(st.lists(st.tuples(st.integers(0, len(whole) - 1), st.integers(0, 255)), min_size=1, max_size=3))
    def scans(flips: list[tuple[int, int]]) -> None:
        content = bytearray(whole)
        for place, byte in flips:
            content[place] = byte
        (tmp_path / "b.tar").write_bytes(content)
        outcome = outcome_of_scan(Folder(tmp_path), wanted)
        if isinstance(outcome, Tar):
            assert len(outcome.samples) == 3
        else:
            assert "b.tar" in outcome and outcome.isprintable()

    scans()


def test_keys_that_come_back(tmp_path: Path) -> None:
    tar_of(tmp_path / "a.tar", [("x.jpg", picture(1)), ("y.jpg", picture(2)), ("x.png", picture(3, "PNG"))])
    assert "a.tar: member 3 (x.png) has the key of an earlier sample" in refusal(tmp_path)
    tar_of(tmp_path / "a.tar", [("x.jpg", picture(1)), ("x.jpg", picture(2))])
    assert "a.tar: member 2 (x.jpg) is there twice" in refusal(tmp_path)
    tar_of(tmp_path / "a.tar", [("x.jpg", picture(1)), ("y.0.jpg", picture(2))])
    tar_of(tmp_path / "b.tar", [("y.1.jpg", picture(3)), ("z.jpg", picture(4))])
    line = refusal(tmp_path)
    assert "a.tar: member 2 (y)" in line and "b.tar: member 1 (y)" in line and "cut between two tars" in line
    tar_of(tmp_path / "b.tar", [("z.jpg", picture(3)), ("x.jpg", picture(4))])
    assert "keys must differ" in refusal(tmp_path)
    tar_of(tmp_path / "b.tar", [("z.jpg", picture(3)), ("X.jpg", picture(4))])
    assert "upper case" in refusal(tmp_path)


def test_samples_that_say_too_little_or_contradict_each_other(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"

    def stories(*told: object) -> None:
        members = []
        for number, story in enumerate(told):
            content = story if isinstance(story, bytes) else json.dumps(story).encode()
            members += [(f"{number}.jpg", picture(number)), (f"{number}.json", content)]
        tar_of(path, members)

    tar_of(path, [("x.jpg", picture(1)), ("y.json", b"{}")])
    assert "a.tar: member 2 (y) belongs to a sample without image" in refusal(tmp_path)
    stories({"patient": "a"}, {"patient": None})
    assert "a.tar: member 3 (1) has no patient in 'patient'" in refusal(tmp_path, "patient=json:patient")
    assert "no sample" in refusal(tmp_path, "label=cls") and "nearest: patient" in refusal(
        tmp_path, "patient=json:patientt"
    )
    stories({"p": "a"}, b"{not json")
    assert "a.tar: member 4 (1.json) is not readable JSON" in refusal(tmp_path, "patient=json:p")
    stories({"p": "a"}, {"p": ["b"]})
    assert "a.tar: member 4 (1.json): the field 'p' is neither text" in refusal(tmp_path, "patient=json:p")
    stories({"l": "a", "p": "1"}, {"l": "a", "p": "2"})
    assert "differ in 'p'" in refusal(tmp_path, "case=json:l", "patient=json:p")
    stories({"p": "a", "s": "train"}, {"p": "a", "s": "test"})
    assert "two splits" in refusal(tmp_path, "patient=json:p", "split=json:s")
    assert "not one of the words" in refusal(tmp_path, "split=shard")
    tar_of(tmp_path / "b.tar", [("9.jpg", picture(9)), ("9.json", b'{"p": "a", "s": "train"}')])
    assert "two tars" in refusal(tmp_path, "case=json:p")


def test_with_keyed_ids_no_line_tells_a_member_s_name(tmp_path: Path) -> None:
    keyed = ("ids=keyed", f"keyring={tmp_path}-keys.json")
    for members in (
        [("Jane-Doe.jpg", picture(1)), ("Jane-Doe.pkl", b"")],
        [("Jane-Doe.jpg", picture(1)), ("Jane-Doe.jpg", picture(2))],
        [("Jane-Doe.jpg", picture(1)), ("Jane-Doe.json", b"{")],
        [("Jane-Doe.json", b'{"a": "train"}'), ("Jane-Doe.jpg", b"")],
    ):
        tar_of(tmp_path / "x.tar", members)
        line = refusal(tmp_path, *keyed, "split=json:a")
        assert "x.tar: member 2" in line and "jane" not in line.lower()


def test_with_keyed_ids_no_member_s_name_goes_into_the_index_or_a_message(tmp_path: Path) -> None:
    members = [("Jane-Doe.front.jpg", picture(1)), ("Jane-Doe.side.png", picture(2, "PNG"))]
    tar_of(tmp_path / "x.tar", [*members, ("Jane-Doe.json", b'{"a": "train"}')])
    ring = f"{tmp_path}-keys.json"
    adopt(options(tmp_path, "ids=keyed", f"keyring={ring}"))
    dataset = open_dataset(str(tmp_path))
    assert b"jane" not in (str(dataset.index.to_pylist()) + dataset.manifest.model_dump_json()).lower().encode()
    (key,) = set(dataset.column("key"))
    assert dataset.column("member").tolist() == [f"{key}.0.jpg", f"{key}.1.png"]
    content = bytearray((tmp_path / "x.tar").read_bytes())
    content[dataset.column("offset")[1] + 50] ^= 1
    (tmp_path / "x.tar").write_bytes(content)
    with pytest.raises(InputError, match=rf"image {key}\.1\.png differs"):
        verify(str(tmp_path))
    with pytest.raises(InputError, match=rf"image {key}\.1\.png was altered"):
        open_dataset(str(tmp_path)).read(1)
    found = whois([f"{key}.1.png"], WhoisConfig(keyring=ring))
    assert "Jane-Doe.side.png" in str(found)


def test_the_folder_is_adopted_in_place_and_nothing_else_there_is_overwritten(tmp_path: Path) -> None:
    write_cases(tmp_path)
    with pytest.raises(InputError, match=f"give out={tmp_path}"):
        load_config(wds.Options, ["source=wds", f"raw={tmp_path}", "out=/elsewhere", "patient=none"])
    for word in ("short_side_px=128", "jpeg_quality=80"):
        with pytest.raises(InputError, match="does nothing here"):
            options(tmp_path, word)
    for word, said in (("patient=mrn", "json:mrn"), ("label=json:", "names no field"), ("case=lesion", "json:lesion")):
        with pytest.raises(InputError, match=said):
            options(tmp_path, word)
    (tmp_path / "index.parquet").write_bytes(b"somebody's own")
    assert "move it away" in refusal(tmp_path, *GROUPED)


def test_a_killed_adoption_is_begun_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_cases(tmp_path)

    def killed(*_: object) -> None:
        raise SystemExit

    with monkeypatch.context() as patch:
        patch.setattr("data.tars.adopt.build_manifest", killed)
        patch.setattr(Folder, "remove", lambda *_: None)  # a killed process tidies nothing up
        with pytest.raises(SystemExit):
            adopt(options(tmp_path, *GROUPED))
    assert {"index.parquet", ".import/plan.json"} < files(tmp_path).keys()
    with pytest.raises(InputError, match=r"manifest\.json"):
        open_dataset(str(tmp_path))
    assert not adopt(options(tmp_path, *GROUPED)).reused
    assert verify(str(tmp_path)).startswith("OK")
    assert ".import/plan.json" not in files(tmp_path)


def test_the_same_pixels_under_two_patients_are_refused(tmp_path: Path) -> None:
    tar_of(tmp_path / "a.tar", [(f"{number}.png", picture(number % 3, "PNG")) for number in range(4)])
    line = refusal(tmp_path)
    assert "a.tar: member 1 (0.png)" in line and "a.tar: member 4 (3.png)" in line
    assert "write the tars again" in line and "table" not in line
    assert adopt(options(tmp_path, "duplicates=keep")).manifest.duplicates["across_patients"] == 1


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_cases(tmp_path / "train", per_shard=50)  # in a sub-folder
    words = ["import", "source=wds", f"raw={tmp_path}", f"out={tmp_path}", "ids=source", "num_processes=1", *GROUPED]
    main(words)
    assert "24 images of 12 cases of 6 patients" in capsys.readouterr().out
    main(words)
    assert "reused" in capsys.readouterr().out
    main(["verify", str(tmp_path)])
    assert "OK" in capsys.readouterr().out
    assert open_dataset(str(tmp_path)).manifest.shards == {0: "train/lesions-0000.tar"}


def test_the_shards_of_an_import_that_was_killed_are_not_adopted(tmp_path: Path) -> None:
    raw = cases(9, lambda seed: Drawn(seed, "/nowhere" if seed == 40 else ""))
    with pytest.raises(RuntimeError):
        write_dataset(raw, config(tmp_path, images_per_shard=4))
    assert list(tmp_path.glob("*.tar"))
    assert "unfinished import (source=drawn)" in refusal(tmp_path)
