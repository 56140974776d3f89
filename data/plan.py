"""What is written where, decided before anything is: ids, splits, the order of the cases, the shards.

Cases are laid out by the hash of their key, so that every shard mixes classes and patients, and cut
into shards of equal numbers of images. The plan depends on nothing but the cases and the settings,
so shards can be written in any number of processes, byte-identical, and continued.
"""

import hashlib
import json
import math
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from clusters.config import InputError
from data.cases import Case, RawDataset
from data.config import ImportConfig, settings
from data.identities import Identities
from data.splits import SPLITS, salt_id, split_of

SCHEMA_VERSION = 2
TRAIN_VAL = "train_val"
SHOWN = 3  # patients that a message names
INVISIBLE = ("Cf", "Cc")  # Unicode categories: zero-width spaces, soft hyphens, byte order and direction marks
WORK = ".import"  # what an unfinished import keeps in its folder


@dataclass(frozen=True)
class Plan:
    """Cases with their final ids and splits, in the order of the dataset, cut into shards."""

    shards: tuple[tuple[Case, ...], ...]
    num_images: int
    settings: dict[str, Any]
    split: dict[str, Any]
    fingerprint: str


def plan_import(raw: RawDataset, config: ImportConfig, identities: Identities) -> Plan:
    """Plan an import. Raises InputError for no cases, ids that clash, a patient spelt in two ways or in two splits."""
    if not raw.cases:
        raise InputError(f"no cases in {config.raw}; is it the folder of source={config.source}?")
    if identities.keyed and raw.patient_unit == "patient":
        _refuse_spellings(raw.cases)
    cases = _with_splits(_with_final_ids(raw.cases, identities), identities.salt, config)
    cases = sorted(cases, key=lambda case: hashlib.sha256(case.key.encode()).digest())
    chosen = settings(config)
    return Plan(
        shards=_cut(cases, config.shard_images),
        num_images=sum(len(case.images) for case in cases),
        settings=chosen,
        split={
            "salt_id": salt_id(identities.salt),
            "fractions": config.splits.model_dump(),
            **({} if raw.patient_unit == "patient" else {"unit": raw.patient_unit}),
        },
        fingerprint=_fingerprint(cases, chosen, raw, identities),
    )


def shard_name(shard: int) -> str:
    """File name of a shard."""
    return f"shard-{shard:06d}.tar"


def _with_final_ids(cases: Sequence[Case], identities: Identities) -> list[Case]:
    """Source ids replaced; two that become the same are refused, for they would merge in silence."""
    known: dict[str, Case] = {}
    patients: dict[str, Case] = {}
    found = []
    for case in cases:
        if not case.key or not case.patient:
            raise InputError(f"the case of {_first(case)} has no {'patient' if case.key else 'id'}; fill it in")
        try:
            key, patient = identities.case(case.key), identities.patient(case.patient)
        except InputError as error:
            raise InputError(f"the case of {_first(case)}: {error}") from None
        if known.setdefault(key, case) is not case:
            mend = "" if identities.keyed else "; keys must differ by more than upper case, or use ids=keyed"
            raise InputError(f"two cases have the key '{key}': those of {_first(known[key])} and {_first(case)}{mend}")
        if patients.setdefault(patient, case).patient != case.patient:
            raise InputError(
                f"patients '{patients[patient].patient}' (the case of {_first(patients[patient])}) and "
                f"'{case.patient}' (that of {_first(case)}) differ only in upper case; make the spelling one, for a "
                "patient must not stand in two splits, or give two people ids that differ in more"
            )
        found.append(replace(case, key=key, patient=patient))
    return found


def _refuse_spellings(cases: Sequence[Case]) -> None:
    """Refuse ids of patients that are one but for their spelling: keyed, they would be two people in two splits."""
    by_id: dict[str, Case] = {}
    for case in cases:
        by_id.setdefault(case.patient, case)
    alike: dict[str, list[Case]] = {}
    for patient, case in by_id.items():
        alike.setdefault(_folded(patient), []).append(case)
    twice = [spelt for spelt in alike.values() if len(spelt) > 1]
    if twice:
        number = "1 patient seems" if len(twice) == 1 else f"{len(twice):,} patients seem"
        told = ", ".join(f"{_first(one)} and {_first(other)}" for one, other, *_ in twice[:SHOWN])
        raise InputError(
            f"{number} to be spelt in several ways (ids differ only in upper case, blanks, invisible characters, "
            f"hyphens, underscores, dots): {told}; make the spelling one, for a patient must not stand in two splits, "
            "or give two people ids that differ in more"
        )


def _folded(patient: str) -> str:
    """An id without what people write in one way or another. Between digits a hyphen parts numbers: 1-2 is not 12."""
    plain = re.sub(r"\s+", "", unicodedata.normalize("NFKC", patient).casefold())
    plain = "".join(letter for letter in plain if unicodedata.category(letter) not in INVISIBLE)
    return re.sub(r"(?<=[^\W\d_])[-_.]+|[-_.]+(?=[^\W\d_])", "", plain)


def _with_splits(cases: Sequence[Case], salt: str, config: ImportConfig) -> list[Case]:
    """Official splits where a source has them, the keyed hash elsewhere; one split a patient."""
    official: dict[str, Case] = {}
    crossing: dict[str, Case] = {}
    for case in cases:
        if case.split is not None:
            if case.split not in (*SPLITS, TRAIN_VAL):
                raise InputError(f"the split of the case of {_first(case)} is none of {', '.join(SPLITS)}, {TRAIN_VAL}")
            if official.setdefault(case.patient, case).split != case.split:
                crossing.setdefault(case.patient, case)
    if crossing:
        raise InputError(_crossing(official, crossing))
    fractions = config.splits.model_dump()
    return [
        replace(
            case,
            split=_split(
                official[case.patient].split if case.patient in official else None, case.patient, salt, fractions
            ),
        )
        for case in cases
    ]


def _crossing(official: Mapping[str, Case], crossing: Mapping[str, Case]) -> str:
    """Patients that stand in two official splits, the first few with their places."""
    told = [
        f"patient {patient} stands in two splits, {_where(official[patient])} and {_where(case)}"
        for patient, case in list(crossing.items())[:SHOWN]
    ]
    number = f"{len(crossing):,} such patients; " if len(crossing) > 1 else ""
    return f"{'; '.join(told)}; {number}put all images of a patient in one, or leave the split out"


def _split(official: str | None, patient: str, salt: str, fractions: dict[str, float]) -> str:
    """The official split, with what it leaves open (all, or the cut between train and val) cut by the hash."""
    if official in SPLITS:
        return official
    if official == TRAIN_VAL:
        known = fractions["train"] + fractions["val"]
        fractions = {name: fractions[name] / known if known else float(name == "train") for name in ("train", "val")}
    return split_of(patient, salt, fractions)


def _where(case: Case) -> str:
    """Split and place of a case, for messages: keyed ids cannot be looked up in a table, rows can."""
    return f"{case.split} (the case of {_first(case)})"


def _first(case: Case) -> str:
    """What messages call a case: by its first image, whose name tells a file only where ids are published."""
    return case.images[0].name if case.images else "no image"


def _cut(cases: Sequence[Case], images_per_shard: int) -> tuple[tuple[Case, ...], ...]:
    """Consecutive cases with about the same number of images in each shard; a case is never divided."""
    total = sum(len(case.images) for case in cases)
    num_shards = max(1, math.ceil(total / images_per_shard))
    shards: dict[int, list[Case]] = {}
    before = 0
    for case in cases:
        shards.setdefault(min(before * num_shards // total, num_shards - 1) if total else 0, []).append(case)
        before += len(case.images)
    return tuple(tuple(shards[number]) for number in sorted(shards))


def _fingerprint(cases: Sequence[Case], chosen: dict[str, Any], raw: RawDataset, identities: Identities) -> str:
    """Stands for everything that determines the dataset, but the bytes of the raw images.

    Keyed images stand for themselves by the id of their file, not by their name: that may be a number, which
    another file in the raw folder shifts.
    """
    digest = hashlib.sha256()
    head = [SCHEMA_VERSION, chosen, raw.task, raw.label_names, raw.case_meaning]
    digest.update(json.dumps(head, sort_keys=True).encode())
    for case in cases:
        images = [
            [identities.image("" if image.file else image.name, image.file), image.attributes] for image in case.images
        ]
        labels = [repr(value) for value in case.labels.values()]
        row = [case.key, case.patient, case.split, labels, sorted(case.uncertain), case.attributes, images]
        if case.numbers:
            row.append({name: repr(value) for name, value in case.numbers.items()})
        digest.update(json.dumps(row, sort_keys=True).encode())
    return digest.hexdigest()
