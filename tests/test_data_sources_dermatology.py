"""The dermatology importers on miniatures in the published layouts, odd values included."""

import csv
import io
import re
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from clusters.config import InputError, load_config
from data.cases import Case, RawDataset
from data.dataset import Dataset, open_dataset
from data.published import known, sex, skin_type
from data.shards import write_dataset
from data.sources import read_raw, scin, source_module
from finetune.patients import unknown_patients

NAN = float("nan")


def photograph(path: Path, content: str = "") -> None:
    """A picture whose pixels depend on its name alone (or on `content`), in the format of its suffix."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draw = np.random.default_rng(zlib.crc32((content or path.name).encode()))
    Image.fromarray(draw.integers(0, 256, (24, 32, 3), dtype=np.uint8)).save(path)


def table(path: Path, header: str, rows: Iterable[Iterable[object]]) -> None:
    """A CSV as published: quotes only where they are needed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    path.write_text(f"{header}\n{text.getvalue()}", encoding="utf-8")


def options(source: str, raw: Path, *words: str) -> Any:
    out = f"out={raw.parent / 'out'}"
    config = [f"source={source}", f"raw={raw}", out, f"keyring={raw.parent / 'ring.json'}", "num_processes=1", *words]
    return load_config(source_module(source).Options, config)


def read(source: str, raw: Path, *words: str) -> RawDataset:
    return read_raw(options(source, raw, *words))


def imported(source: str, raw: Path, *words: str) -> Dataset:
    config = options(source, raw, *words)
    write_dataset(read_raw(config), config)
    return open_dataset(config.out)


def cases_of(found: RawDataset) -> dict[str, Case]:
    return {case.key: case for case in found.cases}


def column(dataset: Dataset, name: str) -> dict[str, Any]:
    """A column of the index by case key (images of a case agree, or the last one stands)."""
    return dict(zip(dataset.column("key"), dataset.column(name)))


def image_attributes(case: Case) -> list[dict[str, str]]:
    return [case.attributes | image.attributes for image in case.images]


# --- ISIC 2019 --------------------------------------------------------------------------------------

TRUTH_2019 = "image,MEL,NV,BCC,AK,BKL,DF,VASC,SCC,UNK"
ABOUT_2019 = "image,age_approx,anatom_site_general,lesion_id,sex"
ROWS_2019 = [
    ("ISIC_0000000", "NV", "55", "anterior torso", "", "female"),
    ("ISIC_0000017_downsampled", "NV", "50", "posterior torso", "", "female"),
    ("ISIC_0000080_downsampled", "NV", "", "", "", ""),
    ("ISIC_0025906", "BKL", "0", "posterior torso", "HAM_0007179", "female"),
    ("ISIC_0025908", "MEL", "65.0", "posterior torso", "HAM_0003785", "male"),
    ("ISIC_0025776", "MEL", "65.0", "posterior torso", "HAM_0003785", "male"),
    ("ISIC_0059839", "SCC", "85", "", "BCN_0005442", "male"),
]


def one_hot_2019(diagnosis: str) -> list[str]:
    return ["1.0" if name == diagnosis else "0.0" for name in TRUTH_2019.split(",")[1:]]


def isic2019(raw: Path, rows: list[tuple[str, ...]] = ROWS_2019) -> Path:
    table(raw / "ISIC_2019_Training_GroundTruth.csv", TRUTH_2019, [(row[0], *one_hot_2019(row[1])) for row in rows])
    table(raw / "ISIC_2019_Training_Metadata.csv", ABOUT_2019, [(row[0], *row[2:]) for row in reversed(rows)])
    for row in rows:
        photograph(raw / "ISIC_2019_Training_Input" / f"{row[0]}.jpg")
    return raw


def test_isic2019_lesions_are_cases_and_images_without_one_their_own(tmp_path: Path) -> None:
    dataset = imported("isic2019", isic2019(tmp_path / "raw"))
    assert (dataset.num_images, dataset.num_cases, dataset.task) == (7, 6, "multiclass")
    assert dataset.label_names == ["MEL", "NV", "BCC", "AK", "BKL", "DF", "VASC", "SCC"]
    labels = dict(zip(dataset.column("key"), dataset.labels.tolist()))
    assert labels["ham_0003785"] == [1, 0, 0, 0, 0, 0, 0, 0]
    assert labels["isic_0000017_downsampled"] == [0, 1, 0, 0, 0, 0, 0, 0]
    assert list(dataset.column("key")).count("ham_0003785") == 2
    assert column(dataset, "patient") == {key: key for key in labels}
    assert column(dataset, "attr.age")["ham_0003785"] == "60-69"
    assert column(dataset, "attr.age")["ham_0007179"] == "0-9"
    assert column(dataset, "attr.sex")["isic_0000080_downsampled"] == ""
    assert column(dataset, "attr.site")["bcn_0005442"] == ""
    assert dataset.manifest.quarantined.count == 0


def test_isic2019_ham_lesions_stand_where_ham10000_puts_them(tmp_path: Path) -> None:
    theirs = imported("isic2019", isic2019(tmp_path / "one" / "raw"), "ids=keyed", f"keyring={tmp_path / 'k'}")
    ham = tmp_path / "two" / "raw"
    rows = [("HAM_0003785", "ISIC_0025908", "mel", "histo", "65.0", "male", "back")]
    table(ham / "HAM10000_metadata.csv", "lesion_id,image_id,dx,dx_type,age,sex,localization", rows)
    photograph(ham / "HAM10000_images_part_1" / "ISIC_0025908.jpg")
    ours = imported("ham10000", ham, "ids=keyed", f"keyring={tmp_path / 'k'}")
    patient = ours.column("patient")[0]
    assert list(theirs.column("patient")).count(patient) == 2
    assert dict(zip(theirs.column("patient"), theirs.column("split")))[patient] == ours.column("split")[0]


def test_isic2019_a_lesion_with_two_diagnoses_is_two_cases_of_one_patient(tmp_path: Path) -> None:
    rows = [*ROWS_2019, ("ISIC_0059840", "AK", "85", "", "BCN_0005442", "male")]
    found = cases_of(read("isic2019", isic2019(tmp_path / "raw", rows)))
    assert {"BCN_0005442_SCC", "BCN_0005442_AK"} <= found.keys()
    assert {found[f"BCN_0005442_{name}"].patient for name in ("SCC", "AK")} == {"BCN_0005442"}


@pytest.mark.parametrize("split", ["official", "hash"])
def test_isic2019_the_published_test_set_is_the_test_split(tmp_path: Path, split: str) -> None:
    raw = isic2019(tmp_path / "raw")
    header = f"{TRUTH_2019},score_weight,validation_weight"
    truth = [(f"ISIC_003432{n}", *one_hot_2019(name), "1.0", "0.0") for n, name in enumerate(("UNK", "MEL", "NV"))]
    table(raw / "ISIC_2019_Test_GroundTruth.csv", header, truth)
    about = [(row[0], "70.0", "lower extremity", "male") for row in truth]
    table(raw / "ISIC_2019_Test_Metadata.csv", "image,age_approx,anatom_site_general,sex", about)
    for row in truth:
        photograph(raw / "ISIC_2019_Test_Input" / f"{row[0]}.jpg")
    found = read("isic2019", raw, f"split={split}", "ids=keyed")
    assert found.label_names[-1] == "UNK"
    splits = {key: case.split for key, case in cases_of(found).items()}
    assert splits["ISIC_0034321"] == ("test" if split == "official" else None)
    assert splits["HAM_0003785"] == ("train_val" if split == "official" else None)
    names = [image.name for case in found.cases for image in case.images]
    assert len(set(names)) == len(names), "rows of two tables must not be called the same"
    if split == "official":
        dataset = imported("isic2019", raw)
        assert dataset.manifest.splits["test"].images == 3


# --- ISIC 2020 --------------------------------------------------------------------------------------

ABOUT_2020 = "sex,age_approx,anatom_site_general_challenge,diagnosis,benign_malignant,target"
V1 = f"image_name,patient_id,{ABOUT_2020}"
V2 = f"image_name,patient_id,lesion_id,{ABOUT_2020}"
ROWS_2020 = [
    ("ISIC_2637011", "IP_7279968", "IL_7972535", "male", "45.0", "head/neck", "unknown", "benign", "0"),
    ("ISIC_0079038", "IP_5295861", "IL_1642984", "male", "70.0", "torso", "unknown", "benign", "0"),
    ("ISIC_8521950", "IP_5295861", "IL_1642984", "male", "70.0", "torso", "unknown", "benign", "0"),
    ("ISIC_0088137", "IP_5205991", "IL_1260589", "", "", "lower extremity", "unknown", "benign", "0"),
    ("ISIC_0149568", "IP_7279968", "IL_6540984", "male", "45.0", "", "melanoma", "malignant", "1"),
    ("ISIC_8527737", "IP_4713174", "IL_6298160", "female", "90.0", "upper extremity", "nevus", "benign", "0"),
]


def isic2020(raw: Path, version: int = 2, rows: list[tuple[str, ...]] = ROWS_2020) -> Path:
    if version == 2:
        table(raw / "ISIC_2020_Training_GroundTruth_v2.csv", V2, rows)
    else:
        table(raw / "ISIC_2020_Training_GroundTruth.csv", V1, [(*row[:2], *row[3:]) for row in rows])
    table(raw / "ISIC_2020_Training_Duplicates.csv", "image_name_1,image_name_2", [("ISIC_0079038", "ISIC_8521950")])
    for row in rows:
        photograph(raw / "train" / f"{row[0]}.jpg", content="".join(row[2:3]))
    return raw


@pytest.mark.parametrize(("version", "key"), [(2, "il_1642984"), (1, "isic_0079038")])
def test_isic2020_drops_listed_copies_and_never_pairs_lesions_of_a_patient(
    tmp_path: Path, version: int, key: str
) -> None:
    dataset = imported("isic2020", isic2020(tmp_path / "raw", version))
    assert (dataset.num_images, dataset.num_cases, dataset.manifest.counts.patients) == (5, 5, 4)
    assert (dataset.task, dataset.label_names) == ("binary", ["melanoma"])
    assert key in dataset.column("key")
    patients = column(dataset, "patient")
    of_one = [case for case, patient in patients.items() if patient == "ip_7279968"]
    assert len(of_one) == 2, "one patient, two lesions, two cases"
    assert sorted(column(dataset, "label.melanoma")[case] for case in of_one) == [0, 1]
    assert len({column(dataset, "split")[case] for case in of_one}) == 1
    assert set(column(dataset, "attr.age").values()) == {"40-49", "70-79", "", "90+"}
    assert set(column(dataset, "attr.diagnosis").values()) == {"", "melanoma", "nevus"}
    assert dataset.manifest.case.endswith("left out: 1 images that ISIC_2020_Training_Duplicates.csv lists as copies")


def test_isic2020_copies_may_be_kept_and_stay_in_one_split(tmp_path: Path) -> None:
    raw = isic2020(tmp_path / "raw", 1)
    (raw / "ISIC_2020_Training_Duplicates.csv").unlink()
    with pytest.raises(InputError, match=r"has no ISIC_2020_Training_Duplicates\.csv; .* drop_duplicates=false"):
        read("isic2020", raw)
    dataset = imported("isic2020", raw, "drop_duplicates=false")
    assert (dataset.num_images, dataset.manifest.duplicates["across_splits"]) == (6, 0)
    assert dataset.manifest.duplicates["images"] == 1


def test_isic2020_as_on_kaggle(tmp_path: Path) -> None:
    raw = isic2020(tmp_path / "raw", 1)
    (raw / "ISIC_2020_Training_GroundTruth.csv").rename(raw / "train.csv")
    (raw / "jpeg").mkdir()
    (raw / "train").rename(raw / "jpeg" / "train")
    found = read("isic2020", raw)
    assert all(image.read() for case in found.cases for image in case.images)


# --- PAD-UFES-20 ------------------------------------------------------------------------------------

PAD = (
    "patient_id,lesion_id,smoke,drink,background_father,background_mother,age,pesticide,gender,skin_cancer_history,"
    "cancer_history,has_piped_water,has_sewage_system,fitspatrick,region,diameter_1,diameter_2,diagnostic,itch,grew,"
    "hurt,changed,bleed,elevation,img_id,biopsed"
)
ROWS_PAD = [
    "PAT_1516,1765,,,,,8,,,,,,,,ARM,,,NEV,FALSE,FALSE,FALSE,FALSE,FALSE,FALSE,PAT_1516_1765_530.png,FALSE",
    "PAT_46,881,False,False,POMERANIA,POMERANIA,55,False,FEMALE,True,True,True,True,3.0,NECK,6.0,5.0,BCC,True,True,"
    "False,True,True,True,PAT_46_881_939.png,True",
    "PAT_46,881,False,False,POMERANIA,POMERANIA,55,False,FEMALE,True,True,True,True,3.0,NECK,6.0,5.0,BCC,True,True,"
    "False,True,True,True,PAT_46_881_14.png,True",
    "PAT_46,882,False,False,POMERANIA,POMERANIA,55,False,FEMALE,True,True,True,True,3.0,FACE,6.0,5.0,ACK,UNK,True,"
    "False,True,True,True,PAT_46_882_90.png,False",
    "PAT_1545,1867,,,,,94,,MALE,,,,,6.0,FACE,,,SEK,TRUE,FALSE,FALSE,FALSE,FALSE,FALSE,PAT_1545_1867_547.png,FALSE",
]


def pad_ufes20(raw: Path, rows: list[str] = ROWS_PAD, parts: str = "images/imgs_part_{}") -> Path:
    table(raw / "metadata.csv", PAD, [row.split(",") for row in rows])
    for number, row in enumerate(rows):
        photograph(raw / parts.format(number % 3 + 1) / row.split(",")[24])
    return raw


@pytest.mark.parametrize("parts", ["images/imgs_part_{}", "imgs_part_{0}/imgs_part_{0}", "images"])
def test_pad_ufes20_lesions_within_patients(tmp_path: Path, parts: str) -> None:
    dataset = imported("pad_ufes20", pad_ufes20(tmp_path / "raw", parts=parts))
    assert (dataset.num_images, dataset.num_cases, dataset.manifest.counts.patients) == (5, 4, 3)
    assert dataset.label_names == ["ACK", "BCC", "MEL", "NEV", "SCC", "SEK"]
    assert column(dataset, "label.BCC")["pat_46_881"] == 1
    assert column(dataset, "patient")["pat_46_882"] == "pat_46"
    told = {name: column(dataset, f"attr.{name}") for name in ("age", "sex", "skin_type", "site", "confirmed_by")}
    assert [told[name]["pat_46_881"] for name in told] == ["50-59", "female", "3", "neck", "histo"]
    assert [told[name]["pat_1516_1765"] for name in told] == ["0-9", "", "", "arm", "consensus"]
    assert [told[name]["pat_1545_1867"] for name in told] == ["90+", "male", "6", "face", "consensus"]
    assert {name for name in dataset.index.column_names if name.startswith("attr.")} == {
        f"attr.{name}" for name in told
    }
    assert b"pomerania" not in b"".join(path.read_bytes() for path in (tmp_path / "out").iterdir()).lower()


# --- SCIN -------------------------------------------------------------------------------------------

SCIN_CASES = (
    "case_id,source,release,year,age_group,sex_at_birth,fitzpatrick_skin_type,"
    "race_ethnicity_american_indian_or_alaska_native,race_ethnicity_asian,race_ethnicity_black_or_african_american,"
    "race_ethnicity_hispanic_latino_or_spanish_origin,race_ethnicity_middle_eastern_or_north_african,"
    "race_ethnicity_native_hawaiian_or_pacific_islander,race_ethnicity_white,race_ethnicity_other_race,"
    "race_ethnicity_prefer_not_to_answer,textures_raised_or_bumpy,textures_flat,textures_rough_or_flaky,"
    "textures_fluid_filled,body_parts_head_or_neck,body_parts_arm,body_parts_palm,body_parts_back_of_hand,"
    "body_parts_torso_front,body_parts_torso_back,body_parts_genitalia_or_groin,body_parts_buttocks,body_parts_leg,"
    "body_parts_foot_top_or_side,body_parts_foot_sole,body_parts_other,condition_symptoms_bothersome_appearance,"
    "condition_symptoms_bleeding,condition_symptoms_increasing_size,condition_symptoms_darkening,"
    "condition_symptoms_itching,condition_symptoms_burning,condition_symptoms_pain,"
    "condition_symptoms_no_relevant_experience,other_symptoms_fever,other_symptoms_chills,other_symptoms_fatigue,"
    "other_symptoms_joint_pain,other_symptoms_mouth_sores,other_symptoms_shortness_of_breath,"
    "other_symptoms_no_relevant_symptoms,related_category,condition_duration,image_1_path,image_2_path,image_3_path,"
    "image_1_shot_type,image_2_shot_type,image_3_shot_type,combined_race,race_ethnicity_two_or_more_after_mitigation"
)
SCIN_LABELS = (
    "case_id,dermatologist_gradable_for_skin_condition_1,dermatologist_gradable_for_skin_condition_2,"
    "dermatologist_gradable_for_skin_condition_3,dermatologist_skin_condition_on_label_name,"
    "dermatologist_skin_condition_confidence,weighted_skin_condition_label,"
    "dermatologist_gradable_for_fitzpatrick_skin_type_1,dermatologist_gradable_for_fitzpatrick_skin_type_2,"
    "dermatologist_gradable_for_fitzpatrick_skin_type_3,dermatologist_fitzpatrick_skin_type_label_1,"
    "dermatologist_fitzpatrick_skin_type_label_2,dermatologist_fitzpatrick_skin_type_label_3,"
    "gradable_for_monk_skin_tone_india,gradable_for_monk_skin_tone_us,monk_skin_tone_label_india,"
    "monk_skin_tone_label_us"
)
SHOTS = ("CLOSE_UP", "AT_AN_ANGLE", "AT_DISTANCE")
# case id → images, differential, further cells of either table
CONTRIBUTIONS: dict[str, tuple[list[str], str, dict[str, str]]] = {
    "-5156441036700827606": (
        ["-7000000000000000001", "-8000000000000000001", "9000000000000000001"],
        "{'Eczema': 0.69, 'Acute dermatitis, NOS': 0.11, 'O/E - ecchymoses present': 0.11, 'Tinea': 0.08}",
        {
            "age_group": "AGE_18_TO_29",
            "sex_at_birth": "FEMALE",
            "fitzpatrick_skin_type": "FST2",
            "body_parts_arm": "YES",
            "dermatologist_fitzpatrick_skin_type_label_1": "FST3",
            "dermatologist_fitzpatrick_skin_type_label_2": "FST4",
            "monk_skin_tone_label_india": "3.0",
            "monk_skin_tone_label_us": "4.0",
        },
    ),
    "1834609919572055750": (
        ["-2243186711511406658"],
        "{'Tinea': 1.0}",
        {
            "age_group": "AGE_UNKNOWN",
            "sex_at_birth": "OTHER_OR_UNSPECIFIED",
            "fitzpatrick_skin_type": "NONE_SELECTED",
            "body_parts_arm": "YES",
            "body_parts_leg": "YES",
        },
    ),
    "-3": (
        ["-2100000000000000001", "2200000000000000001"],
        "",
        {"age_group": "AGE_80_OR_ABOVE", "sex_at_birth": "MALE"},
    ),
    "-4": (["3100000000000000001", "3200000000000000001"], "{}", {}),
    "5": (["-4100000000000000001"], "{'Eczema': 0.5, \"Grover's disease\": 0.5}", {}),
    "6": ([], "{'Eczema': 1.0}", {}),
}


def scin_folder(raw: Path, contributions: dict[str, Any] = CONTRIBUTIONS) -> Path:
    cases, labels = [], []
    for key, (files, differential, cells) in contributions.items():
        known_cells = {"case_id": key, "source": "SCIN", "release": "1.0.0", "year": "2023", **cells}
        known_cells["weighted_skin_condition_label"] = differential
        for number, file in enumerate(files, start=1):
            known_cells[f"image_{number}_path"] = f"dataset/images/{file}.png"
            known_cells[f"image_{number}_shot_type"] = SHOTS[number - 1]
            photograph(raw / "dataset" / "images" / f"{file}.png")
        cases.append([known_cells.get(name, "") for name in SCIN_CASES.split(",")])
        labels.append([known_cells.get(name, "") for name in SCIN_LABELS.split(",")])
    table(raw / "dataset" / "scin_cases.csv", SCIN_CASES, cases)
    table(raw / "dataset" / "scin_labels.csv", SCIN_LABELS, labels)
    return raw


def test_scin_contributions_with_soft_labels(tmp_path: Path) -> None:
    raw = scin_folder(tmp_path / "raw")
    dataset = imported("scin", raw / "dataset", f"out={tmp_path / 'out'}", "min_cases=2")
    assert (dataset.num_images, dataset.num_cases, dataset.task) == (9, 5, "multiclass")
    assert dataset.label_names == ["Eczema", "other"]
    labels = dict(zip(dataset.column("key"), dataset.labels))
    assert labels["-5156441036700827606"] == pytest.approx([0.69 / 0.99, 0.30 / 0.99])
    assert labels["5"].tolist() == [0.5, 0.5]
    assert np.isnan(labels["-3"]).all()
    assert np.isnan(labels["-4"]).all(), "an empty dictionary is no label"
    views = dataset.column("attr.view")[dataset.column("key") == "-5156441036700827606"]
    assert list(views) == ["close_up", "at_an_angle", "at_distance"]
    about = {name.removeprefix("attr."): column(dataset, name) for name in dataset.index.column_names if "attr" in name}
    first = {name: values["-5156441036700827606"] for name, values in about.items() if name != "view"}
    assert first == {
        "age": "18-29",
        "sex": "female",
        "site": "arm",
        "skin_type": "3",
        "skin_type_reported": "2",
        "skin_tone_india": "3",
        "skin_tone_us": "4",
    }
    second = {name: values["1834609919572055750"] for name, values in about.items() if values["1834609919572055750"]}
    assert second == {"site": "several", "view": "close_up"}
    assert about["age"]["-3"] == "80+"
    assert dataset.manifest.case.endswith("left out: 1 cases without an image")


def test_scin_all_conditions_are_classes_where_one_case_is_enough(tmp_path: Path) -> None:
    raw = scin_folder(tmp_path / "raw")
    # What leads in no case at all is no class even then.
    assert read("scin", raw, "min_cases=1").label_names == ("Eczema", "Grover's disease", "Tinea", "other")
    with pytest.raises(InputError, match=r"lead 20 cases or more; lower min_cases"):
        read("scin", scin_folder(tmp_path / "few", {"1": (["1"], "{}", {}), "2": (["2"], "", {})}))


def test_scin_cases_that_share_a_photograph_are_one_patient(tmp_path: Path) -> None:
    cases = {str(-n): ([str(100 + n), str(200 + n)], "{'Eczema': 1}", {}) for n in range(1, 7)}
    cases["-2"] = (["101", "202"], "{'Tinea': 1.0}", {})  # the path of an image of -1
    raw = scin_folder(tmp_path / "raw", cases)
    images = raw / "dataset" / "images"
    (images / "103.png").write_bytes((images / "202.png").read_bytes())  # the bytes of an image of -2
    (images / "204.png").write_bytes((images / "104.png").read_bytes())  # twice in -4
    found = cases_of(read("scin", raw, "min_cases=1"))
    patients = {key: case.patient for key, case in found.items()}
    assert patients == {key: "-1" if key in ("-1", "-2", "-3") else key for key in patients}
    assert [len(found[key].images) for key in ("-1", "-3", "-4")] == [2, 2, 1]
    dataset = imported("scin", raw, "min_cases=1", "splits.train=0.34", "splits.val=0.33", "splits.test=0.33")
    duplicates = dataset.manifest.duplicates
    assert [duplicates[name] for name in ("images", "across_patients", "across_splits")] == [2, 0, 0]


@given(
    st.dictionaries(st.sampled_from("ABCDEFG"), st.integers(1, 100), min_size=1),
    st.sets(st.sampled_from("ABCDEFG"), min_size=1),
)
def test_scin_soft_labels_sum_to_one_whatever_is_folded(weights: dict[str, int], kept: set[str]) -> None:
    total = sum(weights.values())
    differential = {name: weight / total for name, weight in weights.items()}
    labels = scin._soft(differential, (*sorted(kept), "other"))
    assert sum(labels.values()) == pytest.approx(1)
    assert all(labels[name] == pytest.approx(differential.get(name, 0)) for name in kept)


@pytest.mark.parametrize(
    "text",
    [
        "{'Zzcanary': 0.5",
        "['Zzcanary']",
        "{'Zzcanary': '1'}",
        "{'Zzcanary': -1}",
        "{'Zzcanary': 1e999}",
        "{'Zzcanary': True}",
        "{'Zzcanary': 0}",
        "{1: 1.0}",
        "__import__('os').mkdir('zzcanary')",
        "{'Zzcanary': __import__('os').mkdir('zzcanary')}",
        "(" * 500,
        "Zzcanary",
    ],
)
def test_scin_a_malformed_differential_names_its_row_and_is_never_run(
    tmp_path: Path, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    raw = scin_folder(tmp_path / "raw", CONTRIBUTIONS | {"5": (["41"], text, {})})
    with pytest.raises(InputError, match=r"scin_labels\.csv, row 6: .* is not a dictionary of conditions") as caught:
        read("scin", raw, "min_cases=1", "ids=keyed")
    assert "\n" not in str(caught.value)
    assert "anary" not in str(caught.value)
    assert not (tmp_path / "zzcanary").exists()


# --- Fitzpatrick17k ---------------------------------------------------------------------------------

FITZPATRICK = (
    "md5hash,fitzpatrick_scale,fitzpatrick_centaur,label,nine_partition_label,three_partition_label,qc,url,url_alphanum"
)
ROWS_FITZPATRICK = [
    "5e82a45bc5d78bd24ae9202d194423f8,3,3,drug induced pigmentary changes,inflammatory,non-neoplastic,,"
    "https://www.dermaamin.com/site/images/clinical-pic/m/m1.jpg,httpwwwdermaamincomm1jpg.jpg",
    "b87804452f60aa162a6d29c0f66a2466,2,1,melanoma,malignant melanoma,malignant,,"
    "https://www.dermaamin.com/site/images/clinical-pic/L/lmm/lmm6.jpg,httpwwwdermaamincomlmm6jpg.jpg",
    "9bc21ae9502b720f604907ff56dbc4c7,-1,-1,necrobiosis lipoidica,inflammatory,non-neoplastic,3 Wrongly labelled,"
    "http://atlasdermatologico.com.br/img?imageId=1,httpatlas1.jpg",
    "d2bac3c9e4499032ca8e9b07c7d3bc40,6,5,dermatofibroma,benign dermal,benign,1 Diagnostic,,",
]


def fitzpatrick17k(raw: Path, rows: list[str] = ROWS_FITZPATRICK, images: str = "images") -> Path:
    table(raw / "fitzpatrick17k.csv", FITZPATRICK, [row.split(",") for row in rows])
    for row in rows:
        photograph(raw / images / f"{row.split(',')[0]}.jpg")
    return raw


@pytest.mark.parametrize(
    ("level", "num_classes", "melanoma"), [("conditions", 4, "melanoma"), ("nine", 9, "malignant melanoma")]
)
def test_fitzpatrick17k_photographs_are_their_own_cases(
    tmp_path: Path, level: str, num_classes: int, melanoma: str
) -> None:
    raw = fitzpatrick17k(tmp_path / "raw", images="data/finalfitz17k" if level == "nine" else "images")
    dataset = imported("fitzpatrick17k", raw, f"label_level={level}")
    assert (dataset.num_images, dataset.num_cases, len(dataset.label_names)) == (4, 4, num_classes)
    assert column(dataset, f"label.{melanoma}")["b87804452f60aa162a6d29c0f66a2466"] == 1
    wrong = "9bc21ae9502b720f604907ff56dbc4c7"
    assert np.isnan(dict(zip(dataset.column("key"), dataset.labels))[wrong]).all()
    assert sorted(dataset.column("attr.skin_type")) == ["", "2", "3", "6"]
    assert column(dataset, "attr.skin_type_second")[wrong] == ""
    assert column(dataset, "attr.collection")[wrong] == "atlasdermatologico"
    assert column(dataset, "attr.quality")[wrong] == "3 Wrongly labelled"
    assert "http" not in str(dataset.index.to_pylist())


def test_fitzpatrick17k_rows_without_an_image_are_left_out_on_request_only(tmp_path: Path) -> None:
    raw = fitzpatrick17k(tmp_path / "raw")
    for key in ("b87804452f60aa162a6d29c0f66a2466", "d2bac3c9e4499032ca8e9b07c7d3bc40"):
        (raw / "images" / f"{key}.jpg").unlink()
    with pytest.raises(InputError, match=r"2 of 4 images are not there; the first: row 3;.*missing=skip") as caught:
        imported("fitzpatrick17k", raw, "ids=keyed", f"keyring={tmp_path / 'k.json'}", "max_bad_fraction=1")
    assert "b87804452f" not in str(caught.value)
    dataset = imported("fitzpatrick17k", raw, "missing=skip", f"out={tmp_path / 'skipped'}")
    assert dataset.num_images == 2
    assert dataset.manifest.quarantined.reasons == {"absent": 2}
    assert len(dataset.label_names) == 4, "classes are those of the table, not of the links that live"


# --- DDI --------------------------------------------------------------------------------------------

DDI = ",DDI_ID,DDI_file,skin_tone,malignant,disease"
ROWS_DDI = [
    "0,1,000001.png,56,True,melanoma-in-situ",
    "35,36,000036.png,34,False,melanocytic-nevi",
    "41,42,000042.png,12,FALSE,melanocytic-nevi",
]


def ddi(raw: Path, rows: list[str] = ROWS_DDI) -> Path:
    folder = raw / "ddidiversedermatologyimages"
    table(folder / "ddi_metadata.csv", DDI, [row.split(",") for row in rows])
    for row in rows:
        photograph(folder / row.split(",")[2])
    return raw


@pytest.mark.parametrize("inside", [False, True])
def test_ddi_is_for_evaluation(tmp_path: Path, inside: bool) -> None:
    raw = ddi(tmp_path / "raw")
    raw = raw / "ddidiversedermatologyimages" if inside else raw
    dataset = imported("ddi", raw, f"out={tmp_path / 'out'}")
    assert (dataset.num_images, dataset.task, dataset.label_names) == (3, "binary", ["malignant"])
    assert column(dataset, "label.malignant") == {"000001": 1, "000036": 0, "000042": 0}
    assert column(dataset, "attr.skin_type") == {"000001": "56", "000036": "34", "000042": "12"}
    assert set(dataset.column("attr.confirmed_by")) == {"histo"}
    assert column(dataset, "attr.diagnosis")["000001"] == "melanoma-in-situ"
    assert set(dataset.column("split")) == {"test"}
    assert {case.split for case in read("ddi", raw, "split=hash").cases} == {None}


def test_ddi_with_its_table_beside_the_folder(tmp_path: Path) -> None:
    raw = ddi(tmp_path / "raw")
    (raw / "ddidiversedermatologyimages" / "ddi_metadata.csv").rename(raw / "ddi_metadata.csv")
    assert all(image.read() for case in read("ddi", raw).cases for image in case.images)


# --- all of them ------------------------------------------------------------------------------------

MINIATURES = {
    "isic2019": (isic2019, "ISIC_2019_Training_GroundTruth.csv", "MEL", "ISIC_2019_Training_Input"),
    "isic2020": (isic2020, "ISIC_2020_Training_GroundTruth_v2.csv", "target", "train"),
    "pad_ufes20": (pad_ufes20, "metadata.csv", "diagnostic", "images"),
    "scin": (scin_folder, "dataset/scin_labels.csv", "weighted_skin_condition_label", "dataset/images"),
    "fitzpatrick17k": (fitzpatrick17k, "fitzpatrick17k.csv", "label", "images"),
    "ddi": (ddi, "ddidiversedermatologyimages/ddi_metadata.csv", "malignant", "ddidiversedermatologyimages"),
}
# What makes a source read its miniature, small as it is.
WORDS = {"scin": ["min_cases=1"]}


def edited(path: Path, name: str, value: str | None) -> None:
    """Set the cell of the second row of a column, or rename the column where value is None."""
    rows = list(csv.reader(path.open(newline="", encoding="utf-8")))
    if value is None:
        rows[0][rows[0].index(name)] = f"{name}x"
    else:
        rows[2][rows[0].index(name)] = value
    table(path, ",".join(rows[0]), rows[1:])


@pytest.mark.parametrize("source", MINIATURES)
def test_a_missing_column_is_one_line_with_the_nearest(tmp_path: Path, source: str) -> None:
    make, file, label, _ = MINIATURES[source]
    raw = make(tmp_path / "raw")
    edited(raw / file, label, None)
    with pytest.raises(InputError, match=re.escape(f"{file} has no column '{label}' (nearest: {label}x)")) as caught:
        read(source, raw, *WORDS.get(source, []))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("source", "words", "column_name", "value", "message"),
    [
        ("isic2019", [], "MEL", "1.0", "row 3: not one 1 and eight 0 in MEL, NV"),
        ("isic2019", [], "NV", "Zzcanary", "row 3: not one 1 and eight 0 in MEL, NV"),
        ("isic2019", [], "image", "ISIC_0000000", "row 2 and row 3 have the same 'image'; delete one"),
        ("isic2019", [], "image", "Zzcanary", "row 3: its image has no row in"),
        ("isic2020", [], "target", "Zzcanary", "row 3: target is neither 0 nor 1"),
        ("isic2020", [], "patient_id", "", "row 3: patient_id is empty"),
        ("isic2020", [], "image_name", "", "row 3: 'image_name' is empty; fill it in"),
        (
            "isic2020",
            ["drop_duplicates=false"],
            "target",
            "1",
            "row 3 and row 4 are of one case but differ in 'target'",
        ),
        ("isic2020", ["drop_duplicates=false"], "patient_id", "IP_1", "are of one case but differ in 'patient_id'"),
        ("pad_ufes20", [], "diagnostic", "Zzcanary", "row 3 and row 4 are of one case but differ in 'diagnostic'"),
        ("pad_ufes20", [], "patient_id", "", "row 3: patient_id is empty"),
        ("scin", [], "case_id", "Zzcanary", "scin_cases.csv, row 3: its case has no row in"),
        ("fitzpatrick17k", [], "label", "", "row 3: 'label' is empty; download the table again"),
        (
            "fitzpatrick17k",
            ["label_level=three"],
            "three_partition_label",
            "Zzcanary",
            "row 3: 'three_partition_label'",
        ),
        ("fitzpatrick17k", ["label_level=nine"], "nine_partition_label", "", "'nine_partition_label' is empty"),
        ("ddi", [], "malignant", "Zzcanary", "row 3: malignant is neither True nor False"),
        ("ddi", [], "skin_tone", "99", "row 3: skin_tone is none of 12, 34, 56"),
    ],
)
def test_a_wrong_cell_is_one_line_that_names_the_row_and_not_the_cell(
    tmp_path: Path, source: str, words: list[str], column_name: str, value: str, message: str
) -> None:
    make, file, _, _ = MINIATURES[source]
    raw = make(tmp_path / "raw")
    edited(raw / file, column_name, value)
    words = [*WORDS.get(source, []), *words, "ids=keyed"]
    with pytest.raises(InputError, match=re.escape(message)) as caught:
        read(source, raw, *words)
    assert "\n" not in str(caught.value)
    assert "zzcanary" not in str(caught.value).lower()


def test_pad_ufes20_a_photograph_without_a_lesion_is_its_own_case(tmp_path: Path) -> None:
    raw = pad_ufes20(tmp_path / "raw")
    edited(raw / "metadata.csv", "lesion_id", "")
    assert {"PAT_46_881", "PAT_46_881_939"} <= cases_of(read("pad_ufes20", raw)).keys()


def test_pad_ufes20_an_unknown_diagnosis_names_the_row(tmp_path: Path) -> None:
    raw = pad_ufes20(tmp_path / "raw", [*ROWS_PAD[:3], ROWS_PAD[3].replace(",ACK,", ",BOD,")])
    with pytest.raises(InputError, match="row 5: diagnostic is none of ACK, BCC, MEL, NEV, SCC, SEK"):
        read("pad_ufes20", raw)


@pytest.mark.parametrize("source", MINIATURES)
def test_an_absent_folder_or_table_says_where_it_belongs(tmp_path: Path, source: str) -> None:
    make, _, _, images = MINIATURES[source]
    with pytest.raises(InputError, match="no such table; raw= takes the place where it lies"):
        read(source, tmp_path / "nowhere")
    raw = make(tmp_path / "raw")
    for path in (raw / images).rglob("*"):
        if path.suffix in (".jpg", ".png"):
            path.unlink()
    with pytest.raises(InputError, match=r"has no images in .*; unpack them there") as caught:
        read(source, raw, *WORDS.get(source, []))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("source", MINIATURES)
def test_keyed_imports_name_no_file_and_no_published_id(
    tmp_path: Path, source: str, capfd: pytest.CaptureFixture[str]
) -> None:
    make, _, _, images = MINIATURES[source]
    raw = make(tmp_path / "raw")
    first = sorted(path for path in (raw / images).rglob("*") if path.suffix in (".jpg", ".png"))[0]
    first.write_bytes(first.read_bytes()[:150])
    words = [*WORDS.get(source, []), "ids=keyed", "max_bad_fraction=0.5", "duplicates=keep"]
    dataset = imported(source, raw, *words)
    assert dataset.manifest.quarantined.count == 1
    assert re.search(r"\brow \d+(, image \d)?: ", dataset.manifest.quarantined.rows[0])
    published = {name for case in read(source, raw, *words).cases for name in (case.key, case.patient) if len(name) > 3}
    published |= {Path(image.file).stem for case in read(source, raw, *words).cases for image in case.images}
    everything = "".join(map(str, dataset.index.to_pylist())) + str(dataset.manifest) + "".join(capfd.readouterr())
    assert not [name for name in published if len(name) > 5 and name.lower() in everything.lower()]
    with pytest.raises(InputError) as caught:
        imported(source, raw, *words, f"out={tmp_path / 'again'}", "max_bad_fraction=0")
    assert re.search(r"the first: .*row \d+", str(caught.value))
    assert not [name for name in published if len(name) > 5 and name.lower() in str(caught.value).lower()]


@pytest.mark.parametrize(
    ("source", "unit"),
    [("isic2019", "lesion"), ("isic2020", "patient"), ("scin", "case"), ("fitzpatrick17k", "image"), ("ddi", "image")],
)
def test_what_counts_as_a_patient_is_told(source: str, unit: str, tmp_path: Path) -> None:
    """So that no page speaks of patients where nobody knows which images are of one."""
    dataset = imported(source, MINIATURES[source][0](tmp_path / "raw"), *WORDS.get(source, []))
    assert dataset.manifest.patient_unit == unit
    said = " ".join(unknown_patients(dataset.manifest))
    assert (f"each {unit} counts as one" in said) == (unit != "patient")


@pytest.mark.parametrize("source", MINIATURES)
def test_every_source_says_what_it_is(source: str) -> None:
    module = source_module(source)
    assert all(
        isinstance(getattr(module, name), str) and getattr(module, name) for name in ("TITLE", "CASE", "LICENCE")
    )
    assert re.search(r"doi:|arXiv:", module.CITATION)


@pytest.mark.parametrize(
    ("function", "values"),
    [
        (
            known,
            {"unknown": "", "NaN": "", "-1": "", "": "", "UNK": "", "torso": "torso", "none of these": "none of these"},
        ),
        (sex, {"FEMALE": "female", "male": "male", "f": "female", "OTHER_OR_UNSPECIFIED": "", "": ""}),
        (skin_type, {"3.0": "3", "FST6": "6", "1": "1", "-1": "", "0": "", "7": "", "NONE_SELECTED": "", "": ""}),
    ],
)
def test_values_of_published_tables(function: Any, values: dict[str, str]) -> None:
    assert {value: function(value) for value in values} == values
