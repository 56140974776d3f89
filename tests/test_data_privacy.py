"""Nothing that identifies a person leaves an import: canaries in every place where people are named."""

import io
import json
import logging
import re
import shutil
import stat
import subprocess
import sys
import tarfile
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
from PIL import ExifTags, Image, PngImagePlugin, TiffImagePlugin

from clusters.command import run_main
from clusters.config import InputError, load_config
from data import whois
from data.__main__ import help_text, main
from data.cases import RawFile
from data.config import ImportConfig
from data.dataset import open_dataset
from data.identities import load_identities
from data.privacy import discreet

REPOSITORY = Path(__file__).resolve().parents[1]
CANARY = "Zqvogel"  # no other text has it
SPELLINGS = [CANARY.lower().encode(code) for code in ("utf-8", "utf-16-le", "utf-16-be", "utf-32-le")]
# Enough cases that they go through worker processes.
NUM_PLAIN = 128


class Canaries:
    """Hands out canaries, each with its own number, and counts them."""

    def __init__(self) -> None:
        self.places: list[str] = []

    def __call__(self, place: str) -> str:
        self.places.append(place)
        return f"{CANARY}{len(self.places):02d}"


def pixels(seed: int, size: int = 24) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size, size, 3), np.uint8))


def saved(image: Image.Image, kind: str, **fields: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **fields)
    return buffer.getvalue()


def exif(canary: Canaries, kind: str) -> Image.Exif:
    tags = Image.Exif()
    tags[ExifTags.Base.ImageDescription] = canary(f"{kind} EXIF ImageDescription")
    tags[ExifTags.Base.Artist] = canary(f"{kind} EXIF Artist")
    tags[ExifTags.Base.XPAuthor] = canary(f"{kind} EXIF XPAuthor").encode("utf-16-le")
    inner = tags.get_ifd(ExifTags.IFD.Exif)
    inner[ExifTags.Base.UserComment] = b"ASCII\0\0\0" + canary(f"{kind} EXIF UserComment").encode()
    inner[ExifTags.Base.MakerNote] = canary(f"{kind} EXIF MakerNote").encode()
    tags.get_ifd(ExifTags.IFD.GPSInfo)[ExifTags.GPS.GPSAreaInformation] = canary(f"{kind} EXIF GPS").encode()
    return tags


def segment(marker: int, content: bytes) -> bytes:
    return bytes([0xFF, marker]) + (len(content) + 2).to_bytes(2, "big") + content


def photographs(canary: Canaries) -> dict[str, bytes]:
    """Image files by ending, with a canary in every place that the formats have for text."""
    jpeg = saved(
        pixels(1),
        "JPEG",
        exif=exif(canary, "JPEG"),
        comment=canary("JPEG comment"),
        icc_profile=canary("ICC profile").encode(),
    )
    xmp = b"http://ns.adobe.com/xap/1.0/\0<x:xmpmeta>" + canary("JPEG XMP").encode()
    iptc = b"Photoshop 3.0\x008BIM\x04\x04\0\0\0\x09" + canary("JPEG IPTC").encode()
    jpeg = jpeg[:2] + segment(0xE1, xmp) + segment(0xED, iptc) + jpeg[2:] + canary("after the JPEG").encode()

    chunks = PngImagePlugin.PngInfo()
    chunks.add_text("Patient", canary("PNG tEXt"))
    chunks.add_text(canary("PNG keyword"), "x")
    chunks.add_text("Comment", canary("PNG zTXt"), zip=True)
    chunks.add_itxt("Title", canary("PNG iTXt"), "de", canary("PNG translated keyword"))
    chunks.add(b"prVt", canary("PNG private chunk").encode())
    png = saved(pixels(2), "PNG", pnginfo=chunks, exif=exif(canary, "PNG")) + canary("after the PNG").encode()

    tags = TiffImagePlugin.ImageFileDirectory_v2()
    for tag, name in ((270, "ImageDescription"), (305, "Software"), (316, "HostComputer"), (65000, "private")):
        tags[tag] = canary(f"TIFF {name}")
    tiff = saved(pixels(3), "TIFF", tiffinfo=tags)
    gif = saved(pixels(4).convert("P"), "GIF", comment=canary("GIF comment").encode())
    webp = saved(pixels(5), "WEBP", exif=exif(canary, "WebP"), xmp=canary("WebP XMP").encode())
    bmp = saved(pixels(6), "BMP") + canary("after the BMP").encode()
    broken = saved(pixels(7, 64), "PNG", pnginfo=chunks)
    return {
        "jpg": jpeg,
        "png": png,
        "tif": tiff,
        "gif": gif,
        "webp": webp,
        "bmp": bmp,
        "html.jpg": f"<html>{canary('a web page')}".encode(),
        "cut.png": broken[: len(broken) // 2],
    }


def dicom(canary: Canaries, number: int = 1, **tags: object) -> bytes:
    """A radiograph with canaries in its preamble, file meta, tags, private tags and nested sequences."""
    import pydicom
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import UID, DigitalXRayImageStorageForPresentation, ExplicitVRLittleEndian

    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = DigitalXRayImageStorageForPresentation
    meta.MediaStorageSOPInstanceUID = UID(f"1.2.826.0.1.{number}")
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.SourceApplicationEntityTitle = canary("DICOM file meta")
    data = Dataset()
    data.SOPClassUID, data.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    data.StudyInstanceUID, data.SeriesInstanceUID, data.Modality = f"1.2.826.0.2.{number}", "1.2.826.0.3", "DX"
    data.PatientName, data.PatientID = canary("DICOM PatientName"), canary("DICOM PatientID")
    data.OtherPatientNames = canary("DICOM OtherPatientNames")
    data.InstitutionName, data.StudyDescription = canary("DICOM InstitutionName"), canary("DICOM StudyDescription")
    data.AccessionNumber, data.StationName = canary("DICOM AccessionNumber"), canary("DICOM StationName")
    data.ImageComments, data.PatientComments = canary("DICOM ImageComments"), canary("DICOM PatientComments")
    data.RequestAttributesSequence = [Dataset()]
    data.RequestAttributesSequence[0].RequestedProcedureDescription = canary("DICOM sequence")
    inner = Dataset()
    inner.CodeMeaning = canary("DICOM nested sequence")
    data.RequestAttributesSequence[0].ScheduledProtocolCodeSequence = [inner]
    private = data.private_block(0x0011, "MAKER", create=True)
    private.add_new(0x01, "LO", canary("DICOM private tag"))
    private.add_new(0x02, "OB", canary("DICOM private bytes").encode() + b"\0")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # readers warn of such values, and quote them
        data.add_new(0x00081030, "LO", canary("DICOM text that is too long") * 9)
        data.add_new(0x00080050, "SH", canary("DICOM short text that is too long") * 3)
    data.Rows = data.Columns = 24
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.BitsAllocated = data.BitsStored = 8
    data.HighBit, data.PixelRepresentation, data.BurnedInAnnotation = 7, 0, "NO"
    data.PixelData = np.random.default_rng(80 + number).integers(0, 256, (24, 24), np.uint8).tobytes()
    data.file_meta, data.preamble = meta, canary("DICOM preamble").encode().ljust(128, b"\0")
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name, value in tags.items():
            setattr(data, name, value)
        pydicom.dcmwrite(buffer, data)
    return buffer.getvalue()


@dataclass(frozen=True)
class Raw:
    """A raw dataset full of canaries, as its CSV's header and rows of cells."""

    folder: Path
    header: list[str]
    rows: list[list[str]]
    places: list[str]

    def table(self, name: str = "table.csv", change: Callable[[list[list[str]]], object] = lambda rows: None) -> str:
        """Write the table, altered, and say where it lies."""
        rows = [list(row) for row in self.rows]
        change(rows)
        (self.folder / name).write_text("\n".join(",".join(row) for row in [self.header, *rows]), encoding="utf-8")
        return f"raw={self.folder / name}"


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Raw:
    canary = Canaries()
    folder = tmp_path_factory.mktemp("raw")
    below = f"{canary('folder name')}/{canary('folder in a folder')}"
    (folder / below).mkdir(parents=True)
    patient, case, unused, file = (canary(f"CSV cell: {name}") for name in ("patient", "case", "unused", "image"))
    header = ["file", "who", "lesion", "what", "sex", "part", canary("CSV header")]
    files = {**photographs(canary), "dcm": dicom(canary)}
    files |= {f"{seed}.bmp": saved(pixels(1000 + seed, 16), "BMP") for seed in range(NUM_PLAIN)}
    rows = []
    for number, (ending, content) in enumerate({**files, "gone.png": b""}.items()):
        path = f"{below}/{file}-{number}.{ending}"
        if content:
            (folder / path).write_bytes(content)
        rows.append([path, f"{patient} {number}", f"{case}/{number}", "ab"[number % 2], "fm"[number % 2], "", unused])
    canary("absent image")
    return Raw(folder, header, rows, canary.places)


WORDS = ["import", "source=table", "image=file", "patient=who", "case=lesion", "label=what", "attrs=sex"]


def everything_in(folder: Path) -> Iterator[tuple[str, bytes]]:
    """Every name and file of a folder, and what is packed inside of them."""
    for path in sorted(folder.rglob("*")):
        yield str(path.relative_to(folder)), str(path.relative_to(folder)).encode()
        if not path.is_file():
            continue
        yield path.name, path.read_bytes()
        if path.suffix == ".parquet":
            table = parquet.read_table(path)
            yield path.name, f"{table.schema.metadata} {table.column_names} {table.to_pylist()}".encode()
        if path.suffix == ".tar":
            with tarfile.open(path) as tar:
                for member in tar:
                    content = tar.extractfile(member)
                    assert content is not None
                    yield member.name, f"{member.name} {member.pax_headers} {member.uname}".encode() + content.read()


def assert_no_canary(where: str, content: bytes) -> None:
    low = content.lower()
    for spelling in SPELLINGS:
        found = low.find(spelling)
        assert found < 0, f"{where}: {content[max(0, found - 60) : found + 60]!r}"


@pytest.fixture(scope="module")
def imported(raw: Raw, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `out`, `ring.json` and what was said, from the command line with two worker processes."""
    place = tmp_path_factory.mktemp("imported")
    words = [*WORDS, raw.table(), f"out={place / 'out'}", f"keyring={place / 'ring.json'}", "num_processes=2"]
    command = [sys.executable, "-m", "data", *words, "missing=skip", "max_bad_fraction=0.1", "images_per_shard=64"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, timeout=300)
    assert done.returncode == 0, done.stderr.decode()
    (place / "said").write_bytes(done.stdout + done.stderr)
    return place


def test_no_canary_goes_through_an_import(raw: Raw, imported: Path) -> None:
    assert len(set(raw.places)) > 45
    assert_no_canary("the screen", (imported / "said").read_bytes())
    for where, content in everything_in(imported / "out"):
        assert_no_canary(where, content)
    dataset = open_dataset(str(imported / "out"))
    gone = f"row {len(raw.rows) + 1}: absent"
    assert sorted(dataset.manifest.quarantined.rows) == sorted(["row 8: not an image", "row 9: truncated", gone])
    for name in ("key", "patient"):
        assert all(re.fullmatch("[0-9a-f]{20}", value) for value in dataset.column(name))


def test_the_way_back_lies_beside_the_keyring_for_its_owner_alone(
    raw: Raw, imported: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (table,) = (imported / "ring-whois").iterdir()
    assert stat.S_IMODE(table.stat().st_mode) == 0o600
    assert stat.S_IMODE(table.parent.stat().st_mode) == 0o700
    dataset = open_dataset(str(imported / "out"))
    assert table.name == f"{dataset.manifest.plan[:12]}.parquet"
    row = dict(zip(dataset.column("key"), zip(dataset.column("patient"), dataset.column("member"))))
    ring = f"keyring={imported / 'ring.json'}"
    for key in list(row)[:3]:
        patient, member = row[key]
        assert main(["whois", key, ring]) is None
        case, image = capfd.readouterr().out.splitlines()
        number = re.findall(r"/(\d+) \(table, source=table", case)[0]
        place, who, lesion, *_ = raw.rows[int(number)]
        about = f"(table, source=table, {raw.folder / 'table.csv'})"
        assert case == f"{key}: case {lesion} {about}"
        assert image == f"{key}: image {place}, row {int(number) + 2} {about}"
        assert main(["whois", patient, member, ring]) is None
        assert capfd.readouterr().out.splitlines() == [f"{patient}: patient {who} {about}", case, image]
    assert main(["whois", "row 8", ring, f"data={imported / 'out'}"]) is None
    assert raw.rows[6][0] in capfd.readouterr().out


def test_a_way_back_that_others_could_read_is_closed_again(tmp_path: Path) -> None:
    table = tmp_path / "ring-whois/table.parquet"
    for _ in range(2):
        whois._write_whole(table, iter([("patient", "0123", "", "Erika")]), {})
        assert [stat.S_IMODE(path.stat().st_mode) for path in (table, table.parent)] == [0o600, 0o700]
        table.chmod(0o644)
        table.parent.chmod(0o755)


def run(words: list[str], capfd: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """Exit code of a command and all that it said."""
    capfd.readouterr()
    try:
        run_main(main, words, help_text)
    except SystemExit as end:
        return int(str(end.code or 0)), "".join(capfd.readouterr())
    return 0, "".join(capfd.readouterr())


def change(row: int, column: int, text: str) -> Callable[[list[list[str]]], None]:
    def alter(rows: list[list[str]]) -> None:
        rows[row][column] = text

    return alter


def same_pixels(rows: list[list[str]]) -> None:
    rows[10][0] = rows[11][0]


def one_case(rows: list[list[str]]) -> None:
    rows[3][2] = rows[4][2] = CANARY


def split_patient(rows: list[list[str]]) -> None:
    rows[3][1], rows[3][5], rows[4][1], rows[4][5] = CANARY, "train", CANARY, "test"


FAILURES = {
    "absent image": (["max_bad_fraction=1"], None, r"1 of 138 images is not there; the first: row 139; fetch"),
    "bad images": (["missing=skip"], None, r"\d of 138 images (?:is|are) bad.*the first: row \d+: "),
    "two splits": (["split=part"], split_patient, r"train \(the case of row 5\) and test \(the case of row 6\)"),
    "same pixels": (
        ["missing=skip", "max_bad_fraction=0.1"],
        same_pixels,
        r"row 1[23] .*row 1[23] .*hold the same pixels in ",
    ),
    "misspelt column": (["label=wat"], None, "has no column 'wat'"),
    "ragged": ([], change(4, 6, f"{CANARY},{CANARY}"), "row 6 has 8 cells"),
    "no patient": ([], change(4, 1, ""), "row 6 has no patient"),
    "case disagrees": ([], one_case, "row 5 and row 6 are of one case but differ in 'who'"),
    "class": (["classes=a,b"], change(4, 3, CANARY), "row 6: 'what' is outside the declared classes a, b"),
    "attribute with free text": (["attrs=part"], change(4, 5, CANARY * 10), "row 6: 'part' is free text"),
    "attribute of the patient": (["attrs=who"], None, "'who' tells the patient"),
    "quote": ([], change(4, 6, f'"{CANARY}'), "not a readable CSV"),
    "NUL": ([], change(4, 6, f"{CANARY}\0"), "row 6: a NUL byte"),
    "long name": (
        ["missing=skip", "max_bad_fraction=1"],
        change(4, 0, CANARY * 60),
        "cannot read image row 6: File name too long",
    ),
    "odd split": (["split=part"], change(4, 5, CANARY), "row 6: 'part' is none of"),
}


@pytest.mark.parametrize("failure", FAILURES)
def test_no_canary_is_in_an_error(raw: Raw, tmp_path: Path, capfd: pytest.CaptureFixture[str], failure: str) -> None:
    words, alter, message = FAILURES[failure]
    table = raw.table(f"{failure}.csv".replace(" ", "-"), alter or (lambda rows: None))
    places = [f"out={tmp_path / 'out'}", f"keyring={tmp_path / 'ring.json'}"]
    code, said = run([*WORDS, *places, "num_processes=1", table, *words], capfd)
    assert (code, said.count("error: ")) == (2, 1), said
    assert re.search(message, said), said
    assert_no_canary("the screen", said.encode())
    assert not (tmp_path / "out" / "manifest.json").exists()
    for where, content in everything_in(tmp_path / "out"):
        assert_no_canary(where, content)


def test_a_row_of_a_failed_import_can_be_looked_up(raw: Raw, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    places = [f"out={tmp_path / 'out'}", f"keyring={tmp_path / 'ring.json'}"]
    code, said = run([*WORDS, *places, "num_processes=1", raw.table("failed.csv")], capfd)
    assert code == 2
    row = re.findall(r"the first: (row \d+)", said)[0]
    code, said = run(["whois", row, f"data={tmp_path / 'out'}", places[1]], capfd)
    assert code == 0
    assert raw.rows[int(row.split()[1]) - 2][0] in said


class Misbehaving(RawFile):
    """A file whose library quotes it wherever it can."""

    def __call__(self) -> bytes:
        warnings.warn(f"value {CANARY} is odd", stacklevel=1)
        logging.getLogger("library").error("%s is odd", CANARY)
        if "x.png" in self.name:
            raise KeyError(f"{CANARY} in {self.name}")
        if "listed" in self.name:
            raise PermissionError(13, "Permission denied", f"/raw/{CANARY}")
        return super().__call__()


@pytest.mark.filterwarnings("ignore:value Zqvogel")
def test_what_a_library_says_is_not_shown_unless_asked_for(
    raw: Raw, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("data.tables.RawFile", Misbehaving)
    places = [
        f"out={tmp_path / 'out'}",
        f"keyring={tmp_path / 'ring.json'}",
        "num_processes=1",
        "missing=skip",
        "max_bad_fraction=1",
    ]
    table = raw.table("odd.csv", change(4, 0, f"{CANARY}x.png"))
    code, said = run([*WORDS, *places, table], capfd)
    assert code == 1
    assert re.search(
        r"^error: unforeseen KeyError in test_data_privacy.py, line \d+ while reading image row 6;", said, re.M
    )
    assert "MANYVIEW_DEBUG=1 shows it" in said
    assert_no_canary("the screen", said.encode())
    monkeypatch.setenv("MANYVIEW_DEBUG", "1")
    with pytest.raises(KeyError, match=CANARY):
        main([*WORDS, *places, table])


def test_an_error_of_the_system_names_no_file_of_the_raw_data(
    raw: Raw, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def denied(*_: object) -> None:
        raise PermissionError(13, "Permission denied", f"{raw.folder}/{CANARY}/listed")

    monkeypatch.setattr("data.sources.table.read_table", denied)
    places = [f"out={tmp_path / 'out'}", f"keyring={tmp_path / 'ring.json'}"]
    code, said = run([*WORDS, *places, raw.table()], capfd)
    assert code == 2
    assert said.startswith("error: the import stopped: a file of raw=: Permission denied; mend it")
    assert_no_canary("the screen", said.encode())


def test_parquet_metadata_and_unused_columns_stay_behind(
    raw: Raw, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    columns = {name: [row[place] for row in raw.rows[:6]] for place, name in enumerate(raw.header)}
    parquet.write_table(pa.table(columns).replace_schema_metadata({CANARY: CANARY}), raw.folder / "table.parquet")
    places = [f"out={tmp_path / 'out'}", f"keyring={tmp_path / 'ring.json'}", f"raw={raw.folder / 'table.parquet'}"]
    code, said = run([*WORDS, *places], capfd)
    assert code == 0, said
    for where, content in [("the screen", said.encode()), *everything_in(tmp_path / "out")]:
        assert_no_canary(where, content)


def test_no_canary_goes_through_a_folder_of_dicom_files(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    canary = Canaries()
    folder = tmp_path / "raw" / canary("folder name") / canary("folder in a folder")
    folder.mkdir(parents=True)
    files = {str(number): dicom(canary, number, BodyPartExamined=canary("body part")) for number in range(6)}
    whole = dicom(canary, 7)
    files |= {"cut.dcm": whole[: len(whole) // 3], "bad.dcm": canary("no DICOM").encode(), "DICOMDIR": b"x"}
    files["short"] = whole[: len(whole) - 100]
    for name, content in files.items():
        (folder / f"{canary('file name')}-{name}").write_bytes(content)
    tables = tmp_path / canary("folder of the table")
    tables.mkdir()
    rows = [f"1.2.826.0.2.{number},{'ab'[number % 2]},{canary('cell')}" for number in range(6)]
    (tables / "t.csv").write_text("\n".join([f"StudyInstanceUID,what,{canary('header')}", *rows]))
    out, ring = f"out={tmp_path / 'out'}", f"keyring={tmp_path / 'ring.json'}"
    words = ["import", "source=dicom", f"raw={tmp_path / 'raw'}", ring, "num_processes=1", "max_bad_fraction=0.5"]
    labels = [f"labels={tables / 't.csv'}", "join=StudyInstanceUID", "label=what"]

    code, said = run([*words, out, *labels], capfd)
    assert code == 0, said
    assert open_dataset(str(tmp_path / "out")).num_images == 6
    for where, content in [("the screen", said.encode()), *everything_in(tmp_path / "out")]:
        assert_no_canary(where, content)
        assert b"1.2.826.0" not in content, where
    whose = open_dataset(str(tmp_path / "out")).column("patient")[0]
    code, said = run(["whois", whose, ring], capfd)
    assert (code, CANARY in said) == (0, True)

    out = f"out={tmp_path / 'other'}"
    for extra, tags, message in (
        ([], {"BurnedInAnnotation": "YES"}, "burned into"),
        ([], {"PatientID": ""}, "has no PatientID"),
        ([], {"StudyInstanceUID": "1.2.826.0.2.1"}, "two patients"),
        (["max_bad_fraction=0"], {}, "bad, more than"),
        ([*labels[:2], "label=wat"], {}, "has no column 'wat'"),
    ):
        (folder / "last").write_bytes(dicom(canary, 9, **tags))
        code, said = run([*words, out, *extra], capfd)
        assert (code, message in said) == (2, True), said
        for where, content in [("the screen", said.replace(labels[0][7:], "").encode())]:
            assert_no_canary(where, content)
        shutil.rmtree(tmp_path / "other", ignore_errors=True)


def test_no_canary_goes_through_a_folder_of_photographs(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    canary = Canaries()
    for number, (ending, content) in enumerate(photographs(canary).items()):
        folder = tmp_path / "raw" / "ab"[number % 2] / canary("folder name")
        folder.mkdir(parents=True)
        (folder / f"{canary('file name')}-{number}.{ending}").write_bytes(content)
    places = [f"raw={tmp_path / 'raw'}", f"out={tmp_path / 'out'}", f"keyring={tmp_path / 'ring.json'}"]
    words = ["import", "source=folder", *places, "num_processes=1"]
    for extra, message in ((["patient=(X)"], "finds nothing"), (["patient=none"], "bad, more than")):
        code, said = run([*words, *extra], capfd)
        assert (code, message in said) == (2, True), said
        assert_no_canary("the screen", said.encode())
    code, said = run([*words, "patient=none", "max_bad_fraction=0.5"], capfd)
    assert code == 0, said
    for where, content in [("the screen", said.encode()), *everything_in(tmp_path / "out")]:
        assert_no_canary(where, content)


# --- whois and link ---------------------------------------------------------------------------------


def test_an_error_of_the_system_names_what_is_ours(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    ring = tmp_path / "keys" / "ring.json"
    temporary = tmp_path_factory.mktemp("temporary")
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    (temporary / "raw").mkdir()
    words = [f"raw={temporary / 'raw'}", f"out=file://{tmp_path}/out", f"keyring={ring}", "source=folder", "ids=keyed"]
    config = load_config(ImportConfig, words)
    for file, told in (
        (ring.parent, f"{ring.parent}: No space"),
        (ring.parent / ".ring.json.12.part", f"a file beside the keyring in {ring.parent}: No space"),
        (ring.parent / f"{CANARY}.png", "a file of raw=: No space"),
        (tmp_path / "out" / "shard-000000.tar", f"{tmp_path}/out/shard-000000.tar: No space"),
        (temporary / "x" / CANARY, f"a temporary file in {temporary}: No space"),
        (temporary / "raw" / CANARY, "a file of raw=: No space"),
    ):
        with pytest.raises(InputError) as caught, discreet(config):
            raise OSError(28, "No space left on device", str(file))
        assert f"the import stopped: {told}" in str(caught.value)
        assert CANARY not in str(caught.value)


# --- keyring ----------------------------------------------------------------------------------------


def test_a_new_keyring_is_said_once_and_a_folder_is_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [f"raw={tmp_path}", f"out={tmp_path / 'out'}", "source=table", "ids=keyed"]
    config = load_config(ImportConfig, [*words, f"keyring={tmp_path / 'ring.json'}"])
    load_identities(config)
    assert f"made the keyring {tmp_path / 'ring.json'}; keep a copy" in capsys.readouterr().err
    load_identities(config)
    assert capsys.readouterr().err == ""
    with pytest.raises(InputError, match=f"keyring={tmp_path} is a folder; give a file in it, such as"):
        load_identities(load_config(ImportConfig, [*words, f"keyring={tmp_path}"]))


@pytest.mark.parametrize("scheme", ["", "file://", "local://"])
def test_a_keyring_in_the_dataset_folder_is_refused_however_that_is_spelt(tmp_path: Path, scheme: str) -> None:
    words = [f"raw={tmp_path}", f"out={scheme}{tmp_path}/out", f"keyring={tmp_path}/out/ring.json"]
    with pytest.raises(InputError, match=r"keyring .*ring.json lies inside out="):
        load_identities(load_config(ImportConfig, [*words, "source=table", "ids=keyed"]))
    assert not (tmp_path / "out").exists()


def test_the_name_of_an_image_is_looked_up_in_one_import(
    raw: Raw, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out, ring = small(raw, tmp_path), f"keyring={tmp_path / 'ring.json'}"
    code, said = run(["whois", "row 3", ring], capfd)
    assert (code, "'row 3' is in every import; give data=DIR" in said) == (2, True)
    assert run(["whois", "row 3", ring, f"data={out}"], capfd)[0] == 0
    code, said = run(["whois", "file 3", ring, f"data={tmp_path / 'never'}"], capfd)
    assert (code, f"no import into {tmp_path}/never got so far" in said) == (2, True)


def small(raw: Raw, place: Path, *words: str) -> Path:
    """A dataset of a few images with one class each; returns its folder."""
    places = [f"out={place / 'out'}", f"raw={raw.folder / 'small.csv'}"]
    raw.table("small.csv", lambda rows: rows.__setitem__(slice(None), rows[:6]))
    main([*WORDS, *places, "num_processes=1", f"keyring={place / 'ring.json'}", *words])
    return place / "out"


def test_whois_says_what_it_does_not_know(raw: Raw, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    ring = f"keyring={tmp_path / 'ring.json'}"
    assert run(["whois", "0" * 20, ring], capfd) == (
        2,
        f"error: {tmp_path}/ring-whois has no table of source ids (an import with ids=keyed writes it); "
        "give keyring= of the import\n",
    )
    out = small(raw, tmp_path)
    key = open_dataset(str(out)).column("key")[0]
    code, said = run(["whois", "0" * 20, key, ring], capfd)
    assert code == 2
    assert said.splitlines()[0].startswith(f"{key}: case {CANARY}")
    assert "error: no table of source ids knows 00000000000000000000; give a patient or case id" in said
    assert run(["whois", ring], capfd)[1].startswith("error: whois takes ids: python -m data whois ID")
    (next((tmp_path / "ring-whois").iterdir())).write_bytes(b"PAR1")
    code, said = run(["whois", key, ring], capfd)
    assert (code, "is damaged; remove it and repeat the import's command" in said) == (2, True)


def test_a_repeated_import_leaves_the_way_back_alone_and_mends_it(raw: Raw, tmp_path: Path) -> None:
    small(raw, tmp_path)
    (table,) = (tmp_path / "ring-whois").iterdir()
    before = table.stat().st_mtime_ns, table.read_bytes()
    small(raw, tmp_path)
    assert (table.stat().st_mtime_ns, table.read_bytes()) == before
    table.unlink()
    small(raw, tmp_path)
    assert table.read_bytes() == before[1]


def test_published_ids_need_no_way_back(raw: Raw, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    words = [f"raw={raw.folder / 'public.csv'}", "image=file", "patient=none", "ids=source", "num_processes=1"]
    ring = f"keyring={tmp_path / 'ring.json'}"
    shutil.copy(raw.folder / raw.rows[0][0], raw.folder / "one.jpg")
    shutil.copy(raw.folder / raw.rows[1][0], raw.folder / "two.png")
    (raw.folder / "public.csv").write_text("file\none.jpg\ntwo.png\n")
    assert run(["import", "source=table", *words, f"out={tmp_path / 'out'}", ring], capfd)[0] == 0
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    (tmp_path / "ring-whois").mkdir()
    code, said = run(["whois", "one", f"data={tmp_path / 'out'}", ring], capfd)
    assert (code, said.strip()) == (
        2,
        f"error: {tmp_path}/out carries the ids as published; there is nothing to look up",
    )


def test_a_linked_import_needs_the_same_keyring(raw: Raw, tmp_path: Path) -> None:
    first = small(raw, tmp_path / "1")
    theirs = json.loads((first / "manifest.json").read_text())["split"]["salt_id"]
    with pytest.raises(InputError, match=rf"ring.json is not there, but link={first} was made with keyring {theirs};"):
        small(raw, tmp_path / "2", f"link={first}")
    assert not (tmp_path / "2").exists()
    ours = json.loads((small(raw, tmp_path / "2") / "manifest.json").read_text())["split"]["salt_id"]
    with pytest.raises(
        InputError, match=rf"made with keyring {theirs}, keyring .*ring.json is {ours}: .*give keyring="
    ):
        small(raw, tmp_path / "2", f"link={first}", f"out={tmp_path / '3'}")
    with pytest.raises(InputError, match="has ids=keyed, this import source; give ids=keyed"):
        small(raw, tmp_path / "2", f"link={first}", f"out={tmp_path / '3'}", "ids=source")
    linked = [f"link={first}", f"keyring={tmp_path / '1' / 'ring.json'}"]
    assert small(raw, tmp_path / "4", *linked).exists()
    one, four = (open_dataset(str(tmp_path / name / "out")).column("patient") for name in "14")
    assert sorted(one) == sorted(four)


def test_the_way_back_may_not_lie_in_the_dataset_folder(raw: Raw, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"the table of source ids beside the keyring, .*ring-whois lies inside out="):
        small(raw, tmp_path, f"out={tmp_path / 'ring-whois'}")
