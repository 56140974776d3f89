"""Importers of chest radiographs on miniatures in the original layouts."""

import gzip
import re
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import DigitalXRayImageStorageForPresentation, ExplicitVRLittleEndian, generate_uid

from clusters.config import InputError
from data.cases import Case, RawDataset
from data.dataset import Dataset
from data.sources import chexpert, vindr_cxr
from tests.importers import everything, grey, imported, read


def refused(source: str, raw: Path, message: str, *words: str) -> None:
    """The import is refused in one line that holds the message."""
    with pytest.raises(InputError, match=re.escape(message)) as caught:
        read(source, raw, *words)
    assert "\n" not in str(caught.value)


def cases_of(raw: RawDataset) -> dict[str, Case]:
    return {case.key: case for case in raw.cases}


def positive(case: Case) -> set[str]:
    return {name for name, value in case.labels.items() if value == 1}


def unlabelled(case: Case) -> set[str]:
    return {name for name, value in case.labels.items() if np.isnan(value)}


def attribute(dataset: Dataset, name: str) -> Counter[str]:
    return Counter(dataset.column(f"attr.{name}"))


def swap(path: Path, old: str, new: str) -> None:
    """Change a table, packed or not."""
    packed = path.suffix == ".gz"
    text = (gzip.decompress(path.read_bytes()) if packed else path.read_bytes()).decode()
    assert old in text
    content = text.replace(old, new).encode()
    path.write_bytes(gzip.compress(content) if packed else content)


# --- CheXpert ---------------------------------------------------------------------------------------

CHEXPERT_HEADER = (
    "Path,Sex,Age,Frontal/Lateral,AP/PA,No Finding,Enlarged Cardiomediastinum,Cardiomegaly,Lung Opacity,Lung Lesion,"
    "Edema,Consolidation,Pneumonia,Atelectasis,Pneumothorax,Pleural Effusion,Pleural Other,Fracture,Support Devices"
)
CHEXPERT_TRAIN = [
    "train/patient00001/study1/view1_frontal.jpg,Female,68,Frontal,AP,1.0,,,,,,,,,0.0,,,,1.0",
    "train/patient00002/study2/view1_frontal.jpg,Female,87,Frontal,PA,,,-1.0,1.0,,-1.0,-1.0,,-1.0,,-1.0,,1.0,",
    "train/patient00002/study2/view2_lateral.jpg,Female,87,Lateral,,,,-1.0,1.0,,-1.0,-1.0,,-1.0,,-1.0,,1.0,",
    "train/patient00002/study1/view1_frontal.jpg,Female,83,Frontal,AP,,,,1.0,,,-1.0,,,,,,1.0,",
    "train/patient48289/study1/view1_frontal.jpg,Unknown,0,Frontal,LL,,,,,,,,,,,1.0,,,",
    "train/patient00031/study1/view1_frontal.jpg,Male,90,Frontal,AP,,,,,,,,,,,1.0,,,",
]
CHEXPERT_VALID = [
    "valid/patient64541/study1/view1_frontal.jpg,Male,73,Frontal,AP,"
    "0.0,1.0,0.0,0.0,0.0,0.0,0.0,0.0,0.0,0.0,0.0,0.0,0.0,0.0",
]


def chexpert_folder(folder: Path, dataset: str = "CheXpert-v1.0-small") -> Path:
    for name, rows in (("train.csv", CHEXPERT_TRAIN), ("valid.csv", CHEXPERT_VALID)):
        for row in rows:
            grey(folder / row.split(",")[0])
        (folder / name).write_text("\n".join([CHEXPERT_HEADER, *(f"{dataset}/{row}" for row in rows)]) + "\n")
    return folder


@pytest.mark.parametrize("dataset", ["CheXpert-v1.0-small", "CheXpert-v1.0"])
def test_chexpert_studies_are_imported_with_their_uncertain_labels(tmp_path: Path, dataset: str) -> None:
    found = imported("chexpert", chexpert_folder(tmp_path / "raw", dataset), tmp_path / "out")
    assert (found.num_images, found.num_cases, found.task) == (7, 6, "multilabel")
    assert found.label_names == list(chexpert.FINDINGS) == CHEXPERT_HEADER.split(",")[5:]
    assert dict(zip(found.column("key"), found.column("split")))["patient64541-study1"] == "val"
    assert Counter(found.column("split")) == {"train": 6, "val": 1}
    assert attribute(found, "view") == {"ap": 4, "pa": 1, "lateral": 1, "ll": 1}
    assert attribute(found, "sex") == {"female": 4, "male": 2, "": 1}
    assert attribute(found, "age") == {"60-69": 1, "80-89": 3, "90+": 1, "70-79": 1, "": 1}
    uncertain = [
        (key, doubt)
        for key, doubt in zip(found.column("key"), found.column("uncertain.Cardiomegaly"))
        if key == "patient00002-study2"
    ]
    assert uncertain == [("patient00002-study2", True)] * 2
    assert "the same chest at the same visit" in found.manifest.case


def test_chexpert_labels_of_a_study(tmp_path: Path) -> None:
    study = cases_of(read("chexpert", chexpert_folder(tmp_path)))["patient00002-study2"]
    assert positive(study) == {"Lung Opacity", "Fracture"}
    assert study.uncertain == unlabelled(study)
    assert study.uncertain == {"Cardiomegaly", "Edema", "Consolidation", "Atelectasis", "Pleural Effusion"}
    assert sorted(image.attributes["view"] for image in study.images) == ["lateral", "pa"]


def test_chexpert_blank_labels_may_stay_unlabelled(tmp_path: Path) -> None:
    study = cases_of(read("chexpert", chexpert_folder(tmp_path), "blank=unlabelled"))["patient00001-study1"]
    assert positive(study) == {"No Finding", "Support Devices"}
    assert len(unlabelled(study)) == 11
    assert study.labels["Pneumothorax"] == 0
    assert study.uncertain == frozenset()


def test_chexpert_valid_may_be_the_test_split(tmp_path: Path) -> None:
    raw = read("chexpert", chexpert_folder(tmp_path), "valid_as=test")
    assert Counter(case.split for case in raw.cases) == {"train_val": 5, "test": 1}


def test_chexpert_without_valid_cuts_val_from_train(tmp_path: Path) -> None:
    (chexpert_folder(tmp_path) / "valid.csv").unlink()
    assert {case.split for case in read("chexpert", tmp_path).cases} == {"train_val"}


def test_chexpert_test_labels_hold_no_more_than_the_path(tmp_path: Path) -> None:
    chexpert_folder(tmp_path)
    path = "test/patient64741/study1/view1_frontal.jpg"
    grey(tmp_path / path)
    labels = ["Path", *sorted(chexpert.FINDINGS)]
    (tmp_path / "test_labels.csv").write_text(",".join(labels) + f"\n{path}" + ",1.0" + ",0.0" * 13 + "\n")
    case = cases_of(read("chexpert", tmp_path))["patient64741-study1"]
    assert (case.split, positive(case)) == ("test", {"Atelectasis"})
    assert case.images[0].attributes == {"view": "frontal"}


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("Pleural Other", "Pleural other", "has no column 'Pleural Other' (nearest: Pleural other)"),
        ("Frontal/Lateral", "View", "has no column 'Frontal/Lateral'"),
        ("1.0,,,,,,,,,0.0,,,,1.0", "2.0,,,,,,,,,0.0,,,,1.0", "row 2: 'No Finding' is none of 1, 0, -1 and blank"),
        ("Lateral,,,,-1.0", "Lateral,,,,1.0", "row 3 and row 4 are of one case but differ in 'Cardiomegaly'"),
        ("patient00031/study1", "patient00031", "row 7: 'Path' is not of the form"),
    ],
)
def test_a_wrong_chexpert_table_is_one_line(tmp_path: Path, old: str, new: str, message: str) -> None:
    swap(chexpert_folder(tmp_path) / "train.csv", old, new)
    refused("chexpert", tmp_path, message)


def test_chexpert_says_what_is_missing(tmp_path: Path) -> None:
    refused("chexpert", tmp_path, "train.csv: no such table")
    shutil.rmtree(chexpert_folder(tmp_path / "raw") / "valid")
    refused("chexpert", tmp_path / "raw", "has no folder valid/, in which")


def test_keyed_chexpert_names_no_patient(tmp_path: Path) -> None:
    raw = chexpert_folder(tmp_path / "raw")
    (raw / "train/patient00001/study1/view1_frontal.jpg").write_bytes(b"")
    words = ["ids=keyed", f"keyring={tmp_path / 'k.json'}", "max_bad_fraction=0.5"]
    dataset = imported("chexpert", raw, tmp_path / "out", *words)
    assert dataset.manifest.quarantined.rows == ["train.csv row 2: zero bytes"]
    assert not re.search(rb"patient\d{5}|study[12]|view1", everything(dataset))


# --- NIH ChestX-ray14 -------------------------------------------------------------------------------

NIH_HEADER = (
    "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position,"
    "OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y]"
)
NIH_ROWS = [
    "00000001_000.png,Cardiomegaly,0,1,57,M,PA,2682,2749,0.14300000000000002,0.14300000000000002",
    "00000001_001.png,Cardiomegaly|Emphysema,1,1,58,M,PA,2894,2729,0.14300000000000002,0.14300000000000002",
    "00000002_000.png,No Finding,0,2,80,M,PA,2500,2048,0.171,0.171",
    "00000003_001.png,Hernia,0,3,74,F,PA,2500,2048,0.168,0.168",
    "00000003_002.png,Pleural_Thickening|Hernia,1,3,411,F,AP,2048,2500,0.168,0.168",
]


def nih_folder(folder: Path, old: bool = False, flat: bool = False) -> Path:
    """As published in 2020, or in 2017: trailing commas, ages like 058Y, another file name."""
    rows = [re.sub(r"(,\d+)(,[MF],)", lambda m: f",{int(m[1][1:]):03d}Y{m[2]}", row) for row in NIH_ROWS]
    lines = [f"{line}," for line in (NIH_HEADER, *rows)] if old else [NIH_HEADER, *NIH_ROWS]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / ("Data_Entry_2017.csv" if old else "Data_Entry_2017_v2020.csv")).write_text("\n".join(lines) + "\n")
    for number, row in enumerate(NIH_ROWS):
        grey(folder / ("images" if flat else f"images_{number % 3 + 1:03d}/images") / row.split(",")[0])
    (folder / "train_val_list.txt").write_text("00000001_000.png\n00000001_001.png\n00000002_000.png")
    (folder / "test_list.txt").write_text("00000003_001.png\r\n00000003_002.png\r\n")
    return folder


@pytest.mark.parametrize(("old", "flat"), [(False, False), (True, True)])
def test_chestxray14_is_read_in_both_editions(tmp_path: Path, old: bool, flat: bool) -> None:
    found = imported("chestxray14", nih_folder(tmp_path / "raw", old, flat), tmp_path / "out")
    assert (found.num_images, found.num_cases, found.manifest.counts.patients) == (5, 5, 3)
    assert (found.task, len(found.label_names)) == ("multilabel", 14)
    labels = dict(zip(found.column("key"), found.labels))
    told = {key: {name for name, value in zip(found.label_names, row) if value} for key, row in labels.items()}
    assert told["00000001_001"] == {"Cardiomegaly", "Emphysema"}
    assert told["00000002_000"] == set()
    assert told["00000003_002"] == {"Pleural_Thickening", "Hernia"}
    splits = dict(zip(found.column("patient"), found.column("split")))
    assert splits["3"] == "test"
    assert {splits["1"], splits["2"]} <= {"train", "val"}
    assert attribute(found, "age") == {"50-59": 2, "80-89": 1, "70-79": 1, "": 1}
    assert attribute(found, "sex") == {"male": 3, "female": 2}
    assert attribute(found, "view") == {"pa": 4, "ap": 1}


def test_the_real_header_of_chestxray14_is_read(shared_data: Path, tmp_path: Path) -> None:
    shutil.copy(shared_data / "importer_csv/Data_Entry_2017_v2020.head300.csv", tmp_path / "Data_Entry_2017_v2020.csv")
    grey(tmp_path / "images_001/images/00000001_000.png")
    raw = read("chestxray14", tmp_path)
    assert len(raw.cases) == sum(len(case.images) for case in raw.cases) == 300
    assert {case.split for case in raw.cases} == {None}
    assert cases_of(raw)["00000001_002"].patient == "1"
    assert positive(cases_of(raw)["00000001_002"]) == {"Cardiomegaly", "Effusion"}


def test_chestxray14_images_of_one_examination_are_one_case(tmp_path: Path) -> None:
    table = nih_folder(tmp_path) / "Data_Entry_2017_v2020.csv"
    swap(table, "00000001_001.png,Cardiomegaly|Emphysema,1", "00000001_001.png,Cardiomegaly,0")
    assert len(cases_of(read("chestxray14", tmp_path))["00000001_000"].images) == 2
    swap(table, "00000001_001.png,Cardiomegaly,0", "00000001_001.png,Mass,0")
    assert len(cases_of(read("chestxray14", tmp_path))["00000001_000"].images) == 1


@pytest.mark.parametrize(
    ("age", "band"),
    [("058Y", "50-59"), ("011M", "0-9"), ("013D", "0-9"), ("030M", "0-9"), ("412Y", ""), ("120", "90+"), ("x", "")],
)
def test_chestxray14_ages_of_all_spellings(tmp_path: Path, age: str, band: str) -> None:
    swap(nih_folder(tmp_path) / "Data_Entry_2017_v2020.csv", ",1,57,M", f",1,{age},M")
    assert read("chestxray14", tmp_path).cases[0].images[0].attributes["age"] == band


def test_chestxray14_patients_across_the_lists_are_refused_with_number_and_mend(tmp_path: Path) -> None:
    raw = nih_folder(tmp_path / "raw")
    swap(raw / "train_val_list.txt", "00000001_001.png\n", "00000003_002.png\n")
    swap(raw / "test_list.txt", "00000003_002.png", "00000001_001.png")
    with pytest.raises(InputError, match=r"stands in two splits, train_val .* and test .*leave the split out"):
        imported("chestxray14", raw, tmp_path / "out")
    found = imported("chestxray14", raw, tmp_path / "out", "split=hash")
    assert len(set(zip(found.column("patient"), found.column("split")))) == 3


@pytest.mark.parametrize(
    ("file", "old", "new", "message"),
    [
        ("Data_Entry_2017_v2020.csv", "Patient Gender", "Patient sex", "no column 'Patient Sex' (nearest: Patient sex"),
        ("Data_Entry_2017_v2020.csv", "Cardiomegaly|Emp", "Cardiomegaly|Enp", "row 3: 'Finding Labels' is neither"),
        ("Data_Entry_2017_v2020.csv", "No Finding", "No Finding|Mass", "row 4: 'Finding Labels' is neither"),
        ("Data_Entry_2017_v2020.csv", "00000001_001", "00000001_000", "row 2 and row 3 have the same 'Image Index'"),
        ("Data_Entry_2017_v2020.csv", "Finding,0,2", "Finding,0,", "row 4: 'Patient ID' is empty"),
        ("test_list.txt", "00000003_002.png", "", "row 6: image in neither train_val_list.txt nor test_list.txt"),
        ("test_list.txt", "3_002.png", "1_000.png", "test_list.txt, line 2: image stands in the other list too"),
    ],
)
def test_a_wrong_chestxray14_file_is_one_line(tmp_path: Path, file: str, old: str, new: str, message: str) -> None:
    swap(nih_folder(tmp_path) / file, old, new)
    refused("chestxray14", tmp_path, message)


def test_chestxray14_says_what_is_missing(tmp_path: Path) -> None:
    raw = nih_folder(tmp_path / "raw")
    refused("chestxray14", tmp_path, "Data_Entry_2017_v2020.csv: no such table")
    (raw / "test_list.txt").unlink()
    refused("chestxray14", raw, "has train_val_list.txt but no test_list.txt; add it or give split=hash")
    (raw / "train_val_list.txt").unlink()
    assert {case.split for case in read("chestxray14", raw).cases} == {None}
    for part in raw.glob("images_*"):
        shutil.rmtree(part)
    refused("chestxray14", raw, "has no images in images")


# --- MIMIC-CXR-JPG ----------------------------------------------------------------------------------

MIMIC_IMAGES = [
    "02aa804e-bde0afdd-112c0b34-7bc16630-4e381014",
    "174413ec-4ec4c1f7-34ea26b7-c5f994f8-79ef1962",
    "2a2277a9-b0ded155-c0de8eb9-c124d10e-82c5caab",
    "68b5c4b1-227d0485-9cc38c3f-7b84ab51-4b472714",
]
MIMIC_TABLES = {
    "split": [
        "dicom_id,study_id,subject_id,split",
        f"{MIMIC_IMAGES[0]},50414267,10000032,train",
        f"{MIMIC_IMAGES[1]},50414267,10000032,train",
        f"{MIMIC_IMAGES[2]},53189527,10000764,validate",
        f"{MIMIC_IMAGES[3]},53911762,10000898,test",
    ],
    "metadata": [
        "dicom_id,subject_id,study_id,PerformedProcedureStepDescription,ViewPosition,Rows,Columns,StudyDate,StudyTime,"
        "ProcedureCodeSequence_CodeMeaning,ViewCodeSequence_CodeMeaning,PatientOrientationCodeSequence_CodeMeaning",
        f"{MIMIC_IMAGES[0]},10000032,50414267,CHEST (PA AND LAT),PA,3056,2544,21800506,213014.531,"
        "CHEST (PA AND LAT),postero-anterior,Erect",
        f"{MIMIC_IMAGES[1]},10000032,50414267,CHEST (PA AND LAT),LL,3056,2544,21800506,213014.531,"
        "CHEST (PA AND LAT),left lateral,Erect",
        f"{MIMIC_IMAGES[2]},10000764,53189527,,AP,2544,3056,21321015,224208.123,CHEST (PORTABLE AP),antero-posterior,",
        f"{MIMIC_IMAGES[3]},10000898,53911762,,,2544,3056,21321015,224208.123,,,",
    ],
    "chexpert": [
        "subject_id,study_id,Atelectasis,Cardiomegaly,Consolidation,Edema,Enlarged Cardiomediastinum,Fracture,"
        "Lung Lesion,Lung Opacity,No Finding,Pleural Effusion,Pleural Other,Pneumonia,Pneumothorax,Support Devices",
        "10000032,50414267,,,,,,,,,1.0,,,,,",
        "10000764,53189527,,-1.0,0.0,,,,,1.0,,,,-1.0,,1.0",
    ],
}


def mimic_folder(folder: Path, packed: bool = True) -> Path:
    for row in MIMIC_TABLES["split"][1:]:
        image, study, subject, _ = row.split(",")
        grey(folder / f"files/p10/p{subject}/s{study}/{image}.jpg")
    for what, lines in MIMIC_TABLES.items():
        name, content = f"mimic-cxr-2.0.0-{what}.csv", "\n".join([*lines, ""]).encode()
        (folder / (f"{name}.gz" if packed else name)).write_bytes(gzip.compress(content) if packed else content)
    return folder


@pytest.mark.parametrize("packed", [True, False])
def test_mimic_studies_are_imported(tmp_path: Path, packed: bool) -> None:
    found = imported("mimic_cxr_jpg", mimic_folder(tmp_path / "raw", packed), tmp_path / "out")
    assert (found.num_images, found.num_cases, found.manifest.counts.patients) == (4, 3, 3)
    assert found.label_names == list(chexpert.FINDINGS)
    assert Counter(found.column("split")) == {"train": 2, "val": 1, "test": 1}
    assert set(found.column("patient")) == {"p10000032", "p10000764", "p10000898"}
    assert attribute(found, "view") == {"pa": 1, "lateral": 1, "ap": 1, "": 1}
    labels = dict(zip(found.column("key"), found.labels))
    assert labels["s50414267"].tolist() == [1.0] + [0.0] * 13
    assert np.isnan(labels["s53911762"]).all()
    doubtful = dict(zip(found.column("key"), found.column("uncertain.Pneumonia")))
    assert doubtful == {"s50414267": False, "s53189527": True, "s53911762": False}
    assert b"21800506" not in everything(found)  # no date of a study


def test_mimic_reads_the_other_labeller(tmp_path: Path) -> None:
    raw = mimic_folder(tmp_path)
    refused("mimic_cxr_jpg", raw, "mimic-cxr-2.0.0-negbio.csv.gz: no such table", "labeller=negbio")
    (raw / "mimic-cxr-2.0.0-chexpert.csv.gz").rename(raw / "mimic-cxr-2.0.0-negbio.csv.gz")
    assert len(read("mimic_cxr_jpg", raw, "labeller=negbio").cases) == 3


@pytest.mark.parametrize(
    ("what", "old", "new", "message"),
    [
        ("split", "study_id", "study", "has no column 'study_id' (nearest: study)"),
        ("split", "validate", "val", "row 4: 'split' is none of train, validate, test"),
        ("split", "ef1962,50414267,10000032,train", "ef1962,50414267,10000032,test", "row 2 and row 3 are of one case"),
        ("split", "53911762,10000898", "53911762,p10000898", "row 5: subject_id or study_id is not a whole number"),
        ("metadata", "ViewPosition", "View", "has no column 'ViewPosition'"),
        ("chexpert", "-1.0,0.0", "maybe,0.0", "row 3: 'Cardiomegaly' is none of 1, 0, -1 and blank"),
        ("chexpert", "10000764,53189527", "10000032,50414267", "row 2 and row 3 have the same 'study_id'"),
    ],
)
def test_a_wrong_mimic_table_is_one_line(tmp_path: Path, what: str, old: str, new: str, message: str) -> None:
    swap(mimic_folder(tmp_path) / f"mimic-cxr-2.0.0-{what}.csv.gz", old, new)
    refused("mimic_cxr_jpg", tmp_path, message)


def test_mimic_says_what_is_missing_or_broken(tmp_path: Path) -> None:
    refused("mimic_cxr_jpg", tmp_path, "mimic-cxr-2.0.0-split.csv.gz: no such table")
    raw = mimic_folder(tmp_path / "raw")
    table = raw / "mimic-cxr-2.0.0-split.csv.gz"
    whole = table.read_bytes()
    for broken in (whole[:-20], b"<html>" + whole, whole[:30] + b"\0\0\0\0" + whole[34:]):
        table.write_bytes(broken)
        refused("mimic_cxr_jpg", raw, "split.csv.gz is not a whole gzip file; fetch it again")
    table.write_bytes(whole)
    shutil.rmtree(raw / "files")
    refused("mimic_cxr_jpg", raw, "has no folder files/ with the images")


def test_a_packed_table_that_swells_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("data.tables.MAX_UNPACKED_BYTES", 100)
    refused("mimic_cxr_jpg", mimic_folder(tmp_path), "mimic-cxr-2.0.0-split.csv.gz unpacks to more than")


def test_keyed_mimic_names_no_patient_study_or_image(tmp_path: Path) -> None:
    raw = mimic_folder(tmp_path / "raw")
    next((raw / "files/p10/p10000764").rglob("*.jpg")).unlink()
    words = ["ids=keyed", f"keyring={tmp_path / 'k.json'}", "missing=skip"]
    dataset = imported("mimic_cxr_jpg", raw, tmp_path / "out", *words)
    assert dataset.manifest.quarantined.rows == ["row 4: absent"]
    for trace in (b"10000032", b"50414267", b"02aa804e", b"files/"):
        assert trace not in everything(dataset)


# --- VinDr-CXR --------------------------------------------------------------------------------------

VINDR_COLUMNS = [name for name in vindr_cxr.FINDINGS if name != "Other diseases"]
READINGS = {  # image → what each of its readers sees
    "000434271f63a053c4128a0ba6352c7f": [{"No finding"}, {"No finding"}, {"No finding"}],
    "00053190460d56c53cc3e57321387478": [{"Nodule/Mass", "Edema"}, {"Nodule/Mass"}, {"Other diseases"}],
}
CONSENSUS = {"002a34c58c5b758217ed1f584ccbcfe9": {"Other diseases", "Cardiomegaly"}}


def dicom(file: Path, value: int) -> None:
    """An uncompressed radiograph of 40 x 32 px, 12 bits in 16, as VinDr-CXR has them."""
    file.parent.mkdir(parents=True, exist_ok=True)
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = DigitalXRayImageStorageForPresentation
    meta.MediaStorageSOPInstanceUID = generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    found = FileDataset(str(file), {}, file_meta=meta, preamble=b"\0" * 128)
    found.SOPClassUID, found.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    found.Modality, found.PhotometricInterpretation = "DX", "MONOCHROME2"
    found.PatientSex, found.PatientAge = "F", "045Y"
    found.Rows, found.Columns, found.SamplesPerPixel = 32, 40, 1
    found.BitsAllocated, found.BitsStored, found.HighBit, found.PixelRepresentation = 16, 12, 11, 0
    pixels = np.linspace(0, 4095, 32 * 40).astype(np.uint16).reshape(32, 40)
    pixels[0, 0] = value
    found.PixelData = pixels.tobytes()
    pydicom.dcmwrite(file, found, enforce_file_format=True)


def vindr_folder(folder: Path) -> Path:
    def row(findings: set[str], last: str) -> str:
        return ",".join(str(int(name in findings)) for name in [*VINDR_COLUMNS[:-1], last, "No finding"])

    header = ",".join(VINDR_COLUMNS[:-1])
    train = [f"image_id,rad_id,{header},Other diseases,No finding"]
    for image, readers in READINGS.items():
        train += [f"{image},R{number + 8},{row(seen, 'Other diseases')}" for number, seen in enumerate(readers)]
    test = [f"image_id,{header},Other disease,No finding"]
    for image, seen in CONSENSUS.items():
        test.append(f"{image},{row({name.replace('diseases', 'disease') for name in seen}, 'Other disease')}")
    (folder / "annotations").mkdir(parents=True)
    (folder / "annotations/image_labels_train.csv").write_text("\n".join(train) + "\n")
    (folder / "annotations/image_labels_test.csv").write_text("\n".join(test) + "\n")
    for number, image in enumerate(READINGS):
        dicom(folder / f"train/{image}.dicom", 500 + 1000 * number)
    for image in CONSENSUS:
        dicom(folder / f"test/{image}.dicom", 4000)
    return folder


def test_vindr_dicom_files_are_imported(tmp_path: Path) -> None:
    found = imported("vindr_cxr", vindr_folder(tmp_path / "raw"), tmp_path / "out", "short_side_px=16")
    assert (found.num_images, found.num_cases, len(found.label_names)) == (3, 3, 28)
    assert found.manifest.quarantined.count == 0
    assert set(zip(found.column("width"), found.column("height"))) == {(20, 16)}
    splits = dict(zip(found.column("key"), found.column("split")))
    assert splits["002a34c58c5b758217ed1f584ccbcfe9"] == "test"
    assert Counter(splits.values())["test"] == 1
    assert attribute(found, "view") == {"pa": 3}


@pytest.mark.parametrize(
    ("vote", "seen", "doubtful"),
    [
        ("majority", {"Nodule/Mass"}, set()),
        ("any", {"Nodule/Mass", "Edema", "Other diseases"}, set()),
        ("all", set(), set()),
        ("agreed", set(), {"Nodule/Mass", "Edema", "Other diseases"}),
    ],
)
def test_vindr_readers_vote(tmp_path: Path, vote: str, seen: set[str], doubtful: set[str]) -> None:
    cases = cases_of(read("vindr_cxr", vindr_folder(tmp_path), f"vote={vote}"))
    split = cases["00053190460d56c53cc3e57321387478"]
    assert (positive(split), split.uncertain, unlabelled(split)) == (seen, doubtful, doubtful)
    assert positive(cases["000434271f63a053c4128a0ba6352c7f"]) == {"No finding"}
    # What the test table calls "Other disease" is the same label.
    assert positive(cases["002a34c58c5b758217ed1f584ccbcfe9"]) == {"Other diseases", "Cardiomegaly"}


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("Lung tumor", "Lung tumour", "has no column 'Lung tumor' (nearest: Lung tumour)"),
        ("R8,0", "R8,2", "row 2: 'Aortic enlargement' is neither 0 nor 1"),
        ("2c7f,R9", "2c7f,R8", "row 3: the same reader has read this image"),
        ("00053190460d56c53cc3e57321387478,R8", ",R8", "row 5: 'image_id' is empty"),
    ],
)
def test_a_wrong_vindr_table_is_one_line(tmp_path: Path, old: str, new: str, message: str) -> None:
    swap(vindr_folder(tmp_path) / "annotations/image_labels_train.csv", old, new)
    refused("vindr_cxr", tmp_path, message)


def test_vindr_says_what_is_missing(tmp_path: Path) -> None:
    refused("vindr_cxr", tmp_path, "annotations/image_labels_train.csv: no such table")
    raw = vindr_folder(tmp_path / "raw")
    shutil.rmtree(raw / "test")
    refused("vindr_cxr", raw, "has no folder test/ with the images of image_labels_test.csv")


def test_keyed_vindr_names_no_image(tmp_path: Path) -> None:
    raw = vindr_folder(tmp_path / "raw")
    image = next(iter(CONSENSUS))
    (raw / f"test/{image}.dicom").write_bytes(b"<html>")
    words = ["ids=keyed", f"keyring={tmp_path / 'k.json'}", "max_bad_fraction=0.5"]
    dataset = imported("vindr_cxr", raw, tmp_path / "out", *words)
    assert [row.split(":")[0] for row in dataset.manifest.quarantined.rows] == ["image_labels_test.csv row 2"]
    for trace in [*READINGS, *CONSENSUS]:
        assert trace.encode() not in everything(dataset)


# --- Kermany ----------------------------------------------------------------------------------------

KERMANY_FILES = [
    "train/NORMAL/IM-0115-0001.jpeg",
    "train/NORMAL/NORMAL2-IM-0115-0001.jpeg",
    "train/NORMAL/IM-0187-0001-0001.jpeg",
    "train/NORMAL/IM-0187-0001-0002.jpeg",
    "train/PNEUMONIA/person1_bacteria_1.jpeg",
    "train/PNEUMONIA/person1_bacteria_2.jpeg",
    "train/PNEUMONIA/person1000_virus_1681.jpeg",
    "val/NORMAL/NORMAL2-IM-1427-0001.jpeg",
    "val/PNEUMONIA/person1946_bacteria_4874.jpeg",
    "test/NORMAL/IM-0001-0001.jpeg",
    "test/PNEUMONIA/person1_virus_6.jpeg",
    "test/PNEUMONIA/person1_virus_7.jpeg",
    "test/PNEUMONIA/scan.jpeg",
]


def kermany_folder(folder: Path, files: list[str] = KERMANY_FILES) -> Path:
    for file in files:
        grey(folder / file)
    (folder / "train" / ".DS_Store").write_bytes(b"x")
    for stray in ("train/NORMAL/.DS_Store", "train/NORMAL/._IM-0115-0001.jpeg", "chest_xray/train/NORMAL/x.jpeg"):
        (folder / stray).parent.mkdir(parents=True, exist_ok=True)
        (folder / stray).write_bytes(b"x")
    return folder


def test_kermany_children_are_known_by_file_name(tmp_path: Path) -> None:
    found = imported("kermany", kermany_folder(tmp_path / "raw"), tmp_path / "out")
    assert (found.num_images, found.task, found.label_names) == (13, "binary", ["pneumonia"])
    patients = dict(zip(found.column("key"), found.column("patient")))
    assert patients == {
        "train-normal-im-0115": "im-0115",
        "train-normal-normal2-im-0115": "normal2-im-0115",
        "train-normal-im-0187": "im-0187",
        "train-pneumonia-person1_bacteria": "person1_bacteria",
        "train-pneumonia-person1000_virus": "person1000_virus",
        "val-normal-normal2-im-1427": "normal2-im-1427",
        "val-pneumonia-person1946_bacteria": "person1946_bacteria",
        "test-normal-im-0001": "im-0001",
        "test-pneumonia-person1_virus": "person1_virus",
        "test-pneumonia-scan": "scan",
    }
    assert Counter(found.labels[:, 0].tolist()) == {0.0: 6, 1.0: 7}
    assert attribute(found, "cause") == {"": 7, "bacteria": 3, "virus": 3}
    tests = {key for key, split in zip(found.column("key"), found.column("split")) if split == "test"}
    assert tests == {key for key in patients if key.startswith("test-")}


@pytest.mark.parametrize(
    ("split", "splits"),
    [
        ("official", {"train_val": 7, "test": 3}),
        ("folders", {"train": 5, "val": 2, "test": 3}),
        ("hash", {None: 10}),
    ],
)
def test_kermany_splits(tmp_path: Path, split: str, splits: dict[str | None, int]) -> None:
    raw = read("kermany", kermany_folder(tmp_path), f"split={split}")
    assert Counter(case.split for case in raw.cases) == splits


def test_kermany_first_edition_has_the_patient_in_the_middle(tmp_path: Path) -> None:
    files = ["BACTERIA-1135262-0001", "BACTERIA-1135262-0002", "VIRUS-1056329-0001"]
    raw = kermany_folder(
        tmp_path, [*(f"train/PNEUMONIA/{file}.jpeg" for file in files), "train/NORMAL/NORMAL-1049278-0001.jpeg"]
    )
    cases = cases_of(read("kermany", raw))
    assert len(cases["train-pneumonia-bacteria-1135262"].images) == 2
    assert {case.patient for case in cases.values()} == {"1135262", "1056329", "1049278"}


OCT_FILES = [
    "train/CNV/CNV-1016042-1.jpeg",
    "train/CNV/CNV-1016042-2.jpeg",
    "train/DME/DME-1072015-1.jpeg",
    "train/DRUSEN/DRUSEN-1001666-1.jpeg",
    "train/NORMAL/NORMAL-101880-1.jpeg",
    "test/CNV/CNV-103044-1.jpeg",
    "test/DME/DME-15307-1.jpeg",
    "test/DRUSEN/DRUSEN-228939-1.jpeg",
    "test/NORMAL/NORMAL-12494-1.jpeg",
]


def test_kermany_oct_scans_have_four_classes(tmp_path: Path) -> None:
    found = imported("kermany", kermany_folder(tmp_path / "raw", OCT_FILES), tmp_path / "out", "part=oct")
    assert (found.num_images, found.num_cases, found.task) == (9, 8, "multiclass")
    assert found.label_names == ["CNV", "DME", "DRUSEN", "NORMAL"]
    assert found.manifest.splits["test"].images == 4


def test_kermany_patients_across_the_folders_are_refused(tmp_path: Path) -> None:
    raw = kermany_folder(tmp_path / "raw", [*OCT_FILES, "test/CNV/CNV-1016042-7.jpeg"])
    with pytest.raises(InputError, match=r"patient 1016042 stands in two splits, train_val .* and test"):
        imported("kermany", raw, tmp_path / "out", "part=oct")
    found = imported("kermany", raw, tmp_path / "out", "part=oct", "split=hash")
    splits = {split for who, split in zip(found.column("patient"), found.column("split")) if who == "1016042"}
    assert len(splits) == 1


def test_kermany_says_which_folder_is_missing_or_unknown(tmp_path: Path) -> None:
    raw = kermany_folder(tmp_path / "raw")
    refused("kermany", tmp_path, "has no folder train/; raw= takes the folder that holds train/ and test/")
    refused("kermany", raw, "train has no folder CNV/; the classes are CNV, DME, DRUSEN, NORMAL", "part=oct")
    (raw / "test/COVID").mkdir()
    refused("kermany", raw, "test has a folder that is none of the classes; the classes are NORMAL, PNEUMONIA")


def test_keyed_kermany_names_no_child(tmp_path: Path) -> None:
    raw = kermany_folder(tmp_path / "raw")
    (raw / "test/PNEUMONIA/person1_virus_7.jpeg").write_bytes(b"")
    words = ["ids=keyed", f"keyring={tmp_path / 'k.json'}", "max_bad_fraction=0.5"]
    dataset = imported("kermany", raw, tmp_path / "out", *words)
    assert dataset.manifest.quarantined.rows == ["test/PNEUMONIA, file 2: zero bytes"]
    assert not re.search(rb"person1|im-0\d", everything(dataset))
