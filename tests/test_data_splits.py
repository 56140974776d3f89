import json
import os
import re
import stat
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clusters.config import InputError, load_config, validate
from data.cases import Case, RawDataset, SourceImage
from data.config import ImportConfig
from data.identities import KEY_PATTERN, load_identities
from data.plan import plan_import
from data.splits import SPLITS, split_of
from data.whois import WhoisConfig

FRACTIONS = {"train": 0.7, "val": 0.1, "test": 0.2}


def config(**fields: object) -> ImportConfig:
    return ImportConfig.model_validate({"source": "none", "raw": "/raw", "out": "/out", **fields})


def raw(*cases: tuple[str, str, str | None]) -> RawDataset:
    image = SourceImage("image", bytes)
    return RawDataset("", "", "unlabelled", (), [Case(k, p, (image,), {}, {}, split) for k, p, split in cases], "")


def plan(dataset: RawDataset, **fields: object):
    return plan_import(dataset, config(**fields), load_identities(config(**fields)))


def test_the_split_of_public_data_is_the_same_for_everyone() -> None:
    assert [split_of(f"HAM_000000{i}", "salt", FRACTIONS) for i in range(8)] == [
        split_of(f"HAM_000000{i}", "salt", FRACTIONS) for i in range(8)
    ]
    shares = [split_of(str(patient), "salt", FRACTIONS) for patient in range(20000)]
    for split, fraction in FRACTIONS.items():
        assert abs(shares.count(split) / 20000 - fraction) < 0.012


@settings(deadline=None)
@given(st.text(min_size=1), st.text(min_size=1), st.tuples(*[st.integers(0, 10)] * 3).filter(any))
def test_every_patient_has_a_split_with_a_share(patient: str, salt: str, shares: tuple[int, ...]) -> None:
    fractions = {split: share / sum(shares) for split, share in zip(SPLITS, shares)}
    assert fractions[split_of(patient, salt, fractions)] > 0


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 12)), min_size=1, unique_by=lambda c: c[0]))
def test_patients_never_cross_splits_and_no_case_is_lost(cases: list[tuple[int, int]]) -> None:
    planned = plan(raw(*[(f"case-{key}", f"patient-{patient}", None) for key, patient in cases]), images_per_shard=3)
    found = [case for shard in planned.shards for case in shard]
    assert sorted(case.key for case in found) == sorted(f"case-{key}" for key, _ in cases)
    splits = {(case.patient, case.split) for case in found}
    assert len(splits) == len({case.patient for case in found})


@settings(deadline=None)
@given(st.permutations(range(20)))
def test_the_plan_does_not_depend_on_the_order_of_the_raw_table(order: list[int]) -> None:
    def keys(numbers: list[int]) -> list[list[str]]:
        planned = plan(raw(*[(f"c{i}", f"p{i}", None) for i in numbers]), images_per_shard=4)
        return [[case.key for case in shard] for shard in planned.shards]

    assert keys(order) == keys(list(range(20)))


def test_a_patient_in_two_official_splits_is_refused() -> None:
    with pytest.raises(InputError, match=r"patient p1 stands in two splits, train \(the case of image\) and test"):
        plan(raw(("a", "p1", "train"), ("b", "p1", "test")))


def test_all_patients_in_two_official_splits_are_counted_and_the_first_are_named() -> None:
    crossing = [(f"c{i}{split}", f"p{i}", split) for i in range(5) for split in ("train", "test", "val")]
    with pytest.raises(InputError, match=r"p0 .*; patient p1 .*; patient p2 .*; 5 such patients; put all") as caught:
        plan(raw(*crossing, ("d", "p9", "test")))
    assert not re.search("\n|p3|p9", str(caught.value))


def test_an_official_split_holds_for_all_cases_of_a_patient() -> None:
    planned = plan(raw(("a", "p1", None), ("b", "p1", "test"), ("c", "p1", None)))
    assert {case.split for shard in planned.shards for case in shard} == {"test"}


ODD_KEYS = ["1.2.840.113", "a b", "../x", "..", "ä", "x" * 65, "y" * 300, "a/b", "a\nb", "a\x1b[2J", "\udce9"]


@pytest.mark.parametrize("key", ODD_KEYS)
def test_a_key_that_would_break_a_tar_is_refused_in_one_line_and_keyed_without_harm(tmp_path: Path, key: str) -> None:
    for case, patient, kind in ((key, "p", "case"), ("a", key, "patient")):
        with pytest.raises(InputError, match=rf"^the case of image: {kind} id .* use ids=keyed$") as caught:
            plan(raw((case, patient, None)))
        assert str(caught.value).isprintable()
        assert len(str(caught.value)) < 250
        planned = plan(raw((case, patient, None)), ids="keyed", keyring=str(tmp_path / "k.json"))
        assert KEY_PATTERN.fullmatch(planned.shards[0][0].key)
        assert KEY_PATTERN.fullmatch(planned.shards[0][0].patient)


@pytest.mark.parametrize("ids", ["source", "keyed"])
def test_a_case_without_id_or_patient_is_refused(tmp_path: Path, ids: str) -> None:
    for cases, message in ((("", "p", None), "has no id"), (("a", "", None), "has no patient")):
        with pytest.raises(InputError, match=message):
            plan(raw(cases), ids=ids, keyring=str(tmp_path / "k.json"))


def test_ids_that_differ_only_in_case_are_refused_and_keyed_apart(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"two cases have the key 'ab': those of image and image; .*use ids=keyed"):
        plan(raw(("Ab", "p", None), ("aB", "p", None)))
    with pytest.raises(
        InputError, match=r"patients 'P' \(the case of image\) and 'p' .* make the spelling one"
    ) as caught:
        plan(raw(("a", "P", None), ("b", "p", None)))
    assert "keyed" not in str(caught.value), "keyed they would be two people"
    keyed = {"ids": "keyed", "keyring": str(tmp_path / "k.json")}
    planned = plan(raw(("Ab", "p", None), ("aB", "q", None)), **keyed)
    assert len({(case.key, case.patient) for shard in planned.shards for case in shard}) == 2
    with pytest.raises(InputError, match=r"two cases have the key '[0-9a-f]{20}': those of image and image$"):
        plan(raw(("Secret", "p", None), ("Secret", "p", None)), **keyed)


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        *(("MV-12", other, True) for other in ("mv-12", "MV 12", "mv12", "MV_12", "MV.12", "MV - 12", "M\u200aV-12")),
        *(("MV-12", f"MV-{mark}12", True) for mark in "\u200b\u00ad\ufeff\u202d\u2066\x02"),
        *(("943 476 5919", "9434765919", True), ("Stra\u00dfe", "STRASSE", True), ("u\u0308", "\u00fc", True)),
        *(
            ("1-2", "12", False),
            ("1.2", "12", False),
            ("1_2", "1-2", False),
            ("0012", "12", False),
            ("a1", "a2", False),
        ),
    ],
)
def test_with_keyed_ids_a_patient_spelt_in_two_ways_is_refused(
    tmp_path: Path, one: str, other: str, same: bool
) -> None:
    """They would be two people, in train and in test."""
    keyed = {"ids": "keyed", "keyring": str(tmp_path / "k.json")}
    dataset = raw(("a", one, None), ("b", other, None), ("c", one, None), ("d", "Zz", None))
    if not same:
        assert len({case.patient for shard in plan(dataset, **keyed).shards for case in shard}) == 3
        return
    with pytest.raises(
        InputError, match=r"^1 patient seems to be spelt .* image and image; make the spelling"
    ) as caught:
        plan(dataset, **keyed)
    assert one not in str(caught.value) and other not in str(caught.value)
    nobody_knows = replace(dataset, patient_unit="case")  # its patients are names of files, which differ as they may
    assert plan(nobody_knows, **keyed).num_images == 4


@pytest.mark.parametrize(
    "value",
    [
        "s3://bucket/kr.json",
        "file:///kr.json",
        '{"id_key": "dead01"}',
        "{id_key: dead01}",
        "dead01" * 8,
        "id_key=dead01",
    ],
)
def test_a_keyring_is_a_local_file_and_keys_are_not_told(value: str) -> None:
    for kind, words in ((ImportConfig, ["source=x", "raw=/r", "out=/o"]), (WhoisConfig, [])):
        with pytest.raises(InputError, match=r"in the command line: keyring= takes .*local file") as caught:
            load_config(kind, [*words, f"keyring={value}"])
        assert str(caught.value).isprintable() and "dead01" not in str(caught.value)
        assert "bucket" not in str(caught.value)
    with pytest.raises(InputError, match="local file") as caught:  # as a YAML file may have it
        validate(ImportConfig, {"source": "x", "raw": "/r", "out": "/o", "keyring": {"id_key": "dead01"}}, "x.yaml")
    assert "dead01" not in str(caught.value)


def test_keyed_ids_need_the_keyring_and_hide_the_source(tmp_path: Path) -> None:
    ring = tmp_path / "keys" / "ring.json"
    keyed = {"ids": "keyed", "keyring": str(ring)}
    cases = raw(("1.2.840.113/7", "Müller, Anna", None))
    first = plan(cases, **keyed).shards[0][0]
    assert KEY_PATTERN.fullmatch(first.key)
    assert KEY_PATTERN.fullmatch(first.patient)
    assert stat.S_IMODE(ring.stat().st_mode) == 0o600
    assert plan(cases, **keyed).shards[0][0] == first
    other = plan(cases, ids="keyed", keyring=str(tmp_path / "other.json")).shards[0][0]
    assert other.key != first.key
    assert other.patient != first.patient


def test_a_keyring_within_the_dataset_or_damaged_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="lies inside out="):
        load_identities(config(ids="keyed", out=str(tmp_path), keyring=str(tmp_path / "x" / "ring.json")))
    ring = tmp_path / "ring.json"
    ring.write_text(json.dumps({"id_key": "zz"}))
    ring.chmod(0o600)
    with pytest.raises(InputError, match=r"ring\.json is not a readable keyring"):
        load_identities(config(ids="keyed", keyring=str(ring)))


def test_a_keyring_that_others_may_read_or_that_can_be_guessed_is_refused(tmp_path: Path) -> None:
    ring = tmp_path / "ring.json"
    keyed = config(ids="keyed", keyring=str(ring))
    first = load_identities(keyed)
    for mode in (0o640, 0o604, 0o660):
        ring.chmod(mode)
        with pytest.raises(InputError, match=rf"can be used by others \(mode {mode:04o}\); chmod 600"):
            load_identities(keyed)
    ring.chmod(0o600)
    assert load_identities(keyed) == first
    ring.write_text(json.dumps({"id_key": "", "split_salt": "x" * 64}))
    with pytest.raises(InputError, match="is not a readable keyring"):
        load_identities(keyed)


def test_where_a_disk_keeps_no_modes_the_keyring_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ring = tmp_path / "ring.json"
    keyed = config(ids="keyed", keyring=str(ring))
    first = load_identities(keyed)
    ring.chmod(0o777)
    umask = os.umask(0)
    try:  # as on FAT: what is made has every right, whatever was asked for
        monkeypatch.setattr(os, "open", lambda path, flags, mode, make=os.open: make(path, flags, 0o777))
        assert load_identities(keyed) == first
    finally:
        os.umask(umask)
    assert [path.name for path in tmp_path.iterdir()] == ["ring.json"]


def test_fractions_must_sum_to_one() -> None:
    with pytest.raises(ValueError, match=r"must be 1, not 1\.1"):
        config(splits={"train": 0.8, "val": 0.1, "test": 0.2})


def test_an_official_split_may_leave_the_cut_between_train_and_val_to_the_hash() -> None:
    cases = [(f"c{i}", f"p{i}", "test" if i % 5 == 0 else "train_val") for i in range(400)]
    found = {case.key: case.split for shard in plan(raw(*cases)).shards for case in shard}
    assert all((found[key] == "test") == (split == "test") for key, _, split in cases)
    shares = [split for split in found.values() if split != "test"]
    assert abs(shares.count("val") / len(shares) - 0.1 / 0.8) < 0.06
