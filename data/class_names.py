"""Names of classes and findings, which a dataset publishes: none by which a person could be told.

A diagnosis is often told in many words, and many a class has one patient; so less is asked of a label than of an
attribute.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from clusters.config import InputError
from data.attributes import AGE, DATE, LIKE_AN_ID, MONTHS, TITLE, YEAR, is_age, of_one_patient_each, refuse_personal
from data.manifest import STEERS
from data.tables import Table

MAX_CHARACTERS = 100
MAX_AGE = 89  # of one who is told apart by no single year (HIPAA Safe Harbor, 45 CFR 164.514(b)(2))
FEW_PATIENTS = 20  # of whom each may well have a class of their own
# Of a month only with its year: Mayo 3, Marsh 2 and stage 3 decubitus are classes.
DATED = re.compile(
    rf"{DATE}|\b\d{{1,2}}[\s.-]*({MONTHS})[a-z]*[\s.,-]*\d{{2,4}}\b"
    rf"|\b({MONTHS})[a-z]*[\s.,-]*(\d{{1,2}}[\s.,-]+)?(19|20)\d{{2}}\b",
    re.IGNORECASE,
)
MEASURES = re.compile(r"\d+[.,]\d+\s*[-–]\s*\d+[.,]\d+")  # 0.76-1.50 mm
OF_A_CLASS = re.compile(
    r"(?i)((?:class|label|diagnos[ie]s|dx|condition|disease|finding|category)s?)[ _-]?(?:name|id|code)\b"
)
"""The header of a column of classes, whose name or id is no person's."""
NO_TITLE = re.compile(r"(?i:m|fr)\.\s*[a-z]")  # M. tuberculosis, fr. radius
MEND = "give the class another name"


@dataclass(frozen=True)
class Whose:
    """The patient of each case, who is nobody's to know, and the columns that tell (image, patient, case)."""

    patients: Mapping[str, str]
    identifying: tuple[str, ...] = ()


def refuse_findings(columns: Sequence[str], whose: Whose) -> None:
    """Raise InputError where the header of a finding, which is its name, tells who somebody is."""
    for column in columns:
        _refuse_header(column, whose)
        if told := _tells(column):
            raise InputError(f"a header in label= {told}; give the column another one")


def refuse_classes(
    table: Table,
    column: str,
    groups: Mapping[str, Sequence[int]],
    found: Mapping[str, str],
    published: Sequence[str],
    whose: Whose,
) -> None:
    """Raise InputError where the column, or one of the classes that get `published`, tells of a person.

    `found` is the class of each case. Refused are dates, years, ids, titles, free text, ages above 89, and classes
    most of which are of one patient each. A message names the row, never the cell.
    """
    ages = is_age(_refuse_header(column, whose), list(found.values()))
    first: dict[str, str] = {}
    for case, value in found.items():
        first.setdefault(value, case)
    for name in published:
        if told := _tells(name) or (ages and _old(name)):
            row = next((row for row in groups.get(first.get(name, ""), ()) if table.columns[column][row]), None)
            place = "a name in classes=" if row is None else f"{table.row(row)}: '{column}'"
            raise InputError(f"{place} {told}; {MEND}")
    kept = {case: value for case, value in found.items() if value in published}
    if told := _of_one_patient_each(list(kept.values()), [whose.patients[case] for case in kept]):
        raise InputError(f"'{column}' of {table.where} {told}")


def check_names(where: str, names: Sequence[str], task: str, pairs: Sequence[tuple[str, str]]) -> None:
    """Hold the labels of a dataset with keyed ids to what an import refuses. Raises InputError as one does.

    `pairs` are the classes and patients that occur together; none unless all images are there, for of a class with
    two patients an image that could not be read may leave one.
    """
    for number, name in enumerate(names, 1):
        if task == "multilabel":  # other names are classes, of which Id reaction and Birthmark may be two
            refuse_personal(name, (), "the labels")
        if told := _tells(name):
            raise InputError(f"{where}: label {number} {told}; {MEND} and import again")
    if told := _of_one_patient_each([name for name, _ in pairs], [patient for _, patient in pairs]):
        raise InputError(f"{where}: the label {told}")


def _refuse_header(column: str, whose: Whose) -> set[str]:
    """The words of a label column's header. Raises InputError where it tells who somebody is."""
    header = column if column in whose.identifying else OF_A_CLASS.sub(r"\1", column)
    return refuse_personal(header, whose.identifying, "label=")


def _of_one_patient_each(values: Sequence[str], patients: Sequence[str]) -> str:
    if len(set(patients)) <= FEW_PATIENTS or not (told := of_one_patient_each(values, patients)):
        return ""
    return f"{told}; a label names classes: join those of one patient in one, or leave it out of label="


def _old(name: str) -> str:
    match = AGE.fullmatch(name)
    return "is an age above 89" if match and float(match[1].replace(",", ".")) > MAX_AGE else ""


def _tells(name: str) -> str:
    """What the name of a class may tell of a person, as the end of a sentence; empty where nothing is seen."""
    if DATED.search(MEASURES.sub("", name)):
        return "looks like a date, which tells patients apart"
    if len(name) > MAX_CHARACTERS or STEERS.search(name):
        return "is free text, which may name somebody"
    if YEAR.fullmatch(name.strip()):
        return "looks like a year, which tells patients apart"
    if TITLE.match(name.strip()) and not NO_TITLE.match(name.strip()):
        return "begins like the name of a person"
    return "looks like an id" if LIKE_AN_ID.search(name) else ""
