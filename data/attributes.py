"""Columns of a raw table that become attributes: ages in bands, and nothing by which a person could be told.

Attributes are for subgroups (sex, site, skin type), so a column qualifies that puts people into few groups.
"""

import re
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Sequence

from clusters.config import InputError
from data.cases import age_band
from data.manifest import STEERS
from data.tables import Table

MAX_VALUES = 100
# In a short table no column has many values; one in which most rows differ names people all the same.
FEW_VALUES = 20
MAX_OF_FEW_PATIENTS = 10
MAX_CHARACTERS = 64
PERSONAL = {
    *("name", "surname", "forename", "firstname", "lastname", "initials", "birth", "birthday", "birthdate", "dob"),
    *("address", "street", "phone", "email", "zip", "zipcode", "postcode", "mrn", "ssn", "id", "uid", "accession"),
    *("insurance", "geburt", "geboren", "adresse", "strasse", "telefon", "plz", "versicherung", "imie", "nazwisko"),
    *("nom", "prenom", "apellido", "apellidos", "cognome", "nome", "naam", "voornaam", "achternaam", "namn", "navn"),
    *("naissance", "nacimiento", "nascita", "nascimento", "geboortedatum", "domicilio", "indirizzo", "adres"),
}
# Headers without a gap between their words (patientname, PATIENTAGE). Left out are endings and beginnings that other
# words have too: thyroid, fluid, mrna, dobutamine; so an id counts where the word before says of what.
OF_A_PERSON = re.compile(
    r"(?!microphone)(.*(name|dob|mrn|ssn|accession)|(name|accession).*)"
    r"|(.*(patient|pat|person|subject|case|study|series|instance|visit|exam|user|record|participant))s?_?u?(id|nr|no)"
    r"|(.*{0}|{0}.*)".format(
        "(birth|surname|forename|initials|address|street|phone|email|zip|postcode|insurance|geburt|geboren|adresse"
        "|strasse|telefon|plz|versicherung)"
    )
)
AGES = re.compile(r"(age|alter).*|.*(age|alter)")
AGES_ELSEWHERE = {"edad", "edat", "idade", "leeftijd", "wiek", "alder"}
AGE_WORDS = {"age", "alter", *AGES_ELSEWHERE}
NOT_AGES = re.compile(
    r"agent.*|agenes.*|agenc.*|alter(ation|ed|nat).*|.*(stage|image|usage|dosage|percentage|rrhage|damage|language"
    r"|lineage|coverage|drainage|cartilage|page|voltage|storage|passage|package|average|triage|lavage|marriage)"
)
MONTHS = "jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec"
DATE = (
    r"\d{4}\s*[-/.]\s*\d{1,2}\s*[-/.]\s*\d{1,2}"  # 2019-05-30
    r"|\b\d{1,2}\s*[-/.]\s*\d{1,2}\s*[-/.]\s*\d{2,4}\b"  # 30.5.2019, 5/30/19
    r"|\b(19|20)\d{2}(0[1-9]|1[0-2])(0[1-9]|[12]\d|3[01])"  # 20190530, 20190530121314
)
DATE_OR_TIME = re.compile(
    rf"{DATE}|\b\d{{1,2}}[\s.-]*({MONTHS})|\b({MONTHS})[a-z]*[\s.-]*\d{{1,4}}\b"  # 30 May 2019, May 2019
    r"|\b\d{1,2}:\d{2}\b",
    re.IGNORECASE,
)
LIKE_AN_ID = re.compile(r"(?<![\d.])\d{6}")
# Where ids are keyed, groups are told in a word or two; what is longer is somebody's own text.
MAX_WORDS = 3
# Some only with a dot or spelt as titles are, for DR, MR, MS, SR, FR and M mean something else in a clinic.
TITLE = re.compile(
    r"(?:(?:prof|professora?|doctora?|doktor|mrs|miss|sir|herrn?|frau|fr[äa]ulein|mme|mlle|monsieur|madame|sra"
    r"|se[nñ]h?ora?|signora?|dottor|dottoressa|meneer|mevrouw)\b\.?|(?:dra?|mr|m|ms|mx|fr|hr|sr|sig|dott|dhr|mevr)\."
    r"|(?-i:Dra?|Mr|Ms|Mx|Sr)\b)\s*[^\W\d_]",
    re.IGNORECASE,
)
# Alone or with its month (2019, 2019.0, 5/2019, 05.2019, 2019-05), but 1.2000 is a number.
YEAR = re.compile(r"(?:(?:0?[1-9]|1[0-2])[-/]|0[1-9]\.)?(?:19\d{2}|20[0-3]\d)(?:\.0*|[-/](?:0?[1-9]|1[0-2]))?")
AGE = re.compile(
    r"(\d{1,3}(?:[.,]\d+)?)\s*(?:y|yrs?|years?|j|jahre?|ans?|a[nñ]os?|anni|anys|jaar|lat|år)?", re.IGNORECASE
)
BAND = re.compile(r"(\d{1,3})\s*(?:(?:-|–|to)\s*\d{1,3}|\+)", re.IGNORECASE)


def attribute(table: Table, name: str, identifying: Sequence[str], patients: Sequence[str], keyed: bool) -> list[str]:
    """The values of an attribute, row by row: an age as a ten-year band, all else as it is.

    `patients` is the patient of each row; `keyed` says that who they are is nobody's to know.

    Raises InputError for a column that stands in `identifying` (image, patient, case), whose header means a name
    or an id, in which nearly every row or patient differs, or that holds a date, a time, an id or free text; where
    `keyed`, also a year, a title, more than three words, or values most of which are of one patient each.
    A message names the row, never the cell.
    """
    values = table.column(name)
    words = refuse_personal(name, identifying, "attrs=")
    if is_age(words, values):
        return [_age(table, name, row, value) for row, value in enumerate(values)]
    _refuse_cells(table, name, lambda value: _tells(value, keyed))
    _refuse_many(table, name, values, patients)
    if keyed and (told := of_one_patient_each(values, patients)):
        raise InputError(f"'{name}' of {table.where} {told}; give groups (numbers as bands), or leave it out of attrs=")
    _refuse_cells(table, name, _like_an_id)
    return values


def check_kept(table: Table, name: str, patients: Sequence[str], all_there: bool) -> None:
    """Hold an attribute that a dataset with keyed ids has to what an import refuses. Raises InputError as one does.

    A row of `table` is a value and the patient who has it, once however many images show them. So nothing is said of
    how many rows differ, nor, unless the images are `all_there`, of how many patients have a value: both would
    refuse what an import has let through.
    """
    values = table.column(name)
    words = refuse_personal(name, (), "attrs=")
    if _may_be_age(words) and all(BAND.fullmatch(value) for value in values if value):
        return
    if is_age(words, values):
        bands = [_age(table, name, row, value) for row, value in enumerate(values)]
        if bands != values:
            raise InputError(f"{table.where}: '{name}' holds ages that are in no bands; import it again")
        return
    _refuse_cells(table, name, lambda value: _tells(value, keyed=True) or _like_an_id(value))
    if len(set(values) - {""}) > MAX_VALUES:
        raise InputError(f"{table.where}: '{name}' has more than {MAX_VALUES} different values; give groups")
    if all_there and (told := of_one_patient_each(values, patients)):
        raise InputError(f"{table.where}: '{name}' {told}; give groups (numbers as bands)")


def of_one_patient_each(values: Sequence[str], patients: Sequence[str]) -> str:
    """Says so where most values are of one patient each: a name in some cells, beside a common word. Else empty.

    Of few values it says nothing, for patients may be few.
    """
    patients_of = defaultdict(set)
    for value, patient in zip(values, patients, strict=True):
        patients_of[value].add(patient)
    patients_of.pop("", None)
    alone = sum(len(those) == 1 for those in patients_of.values())
    if len(patients_of) > MAX_OF_FEW_PATIENTS and alone > len(patients_of) / 2:
        return (
            f"has {len(patients_of):,} different values, {alone:,} of them of one patient each, so it tells who "
            "somebody is"
        )
    return ""


def is_age(words: set[str], values: Sequence[str]) -> bool:
    """Whether a column holds ages. Of a word that only begins or ends so, the cells tell."""
    return bool(words & {"age", "alter"}) or (_may_be_age(words) and any(map(AGE.fullmatch, values)))


def _may_be_age(words: set[str]) -> bool:
    return any(AGES.fullmatch(word) and not NOT_AGES.fullmatch(word) for word in words) or bool(words & AGES_ELSEWHERE)


def _refuse_cells(table: Table, name: str, telling: Callable[[str], str]) -> None:
    """Refuse a column by its first cell of which something is told."""
    values = table.columns[name]
    told = {value: what for value in set(values) if (what := telling(value))}
    for row, value in enumerate(values if told else ()):
        if value in told:
            raise InputError(f"{table.row(row)}: '{name}' {told[value]}; leave '{name}' out of attrs=")


def _like_an_id(value: str) -> str:
    return "looks like an id" if LIKE_AN_ID.search(value) else ""


def _tells(value: str, keyed: bool) -> str:
    """What a cell may tell of a person, as the end of a sentence; empty where nothing is seen."""
    if DATE_OR_TIME.search(value):
        return "looks like a date or time, which tells patients apart"
    if len(value) > MAX_CHARACTERS or STEERS.search(value):
        return "is free text, which may name somebody"
    if not keyed:
        return ""
    if YEAR.fullmatch(value.strip()):
        return "looks like a year, which tells patients apart: give several in one (2000-2009)"
    if TITLE.match(value.strip()):
        return "begins like the name of a person"
    # Numbers are no words: 10 to 20 mm is a group.
    words = [word for word in re.split(r"[\s,;^]+", value) if any(map(str.isalpha, word))]
    return f"has more than {MAX_WORDS} words, which may name somebody" if len(words) > MAX_WORDS else ""


def _refuse_many(table: Table, name: str, values: Sequence[str], patients: Sequence[str]) -> None:
    """Refuse a column in which nearly every row or patient differs."""
    different, num_patients = len(set(values) - {""}), len(set(patients))
    filled = sum(value != "" for value in values)
    if different > MAX_VALUES or (different > FEW_VALUES and different > filled / 2):
        raise InputError(
            f"'{name}' of {table.where} has {different:,} different values in {filled:,} rows, which tell patients "
            f"apart; an attribute has at most {MAX_VALUES}: give groups (numbers as bands), or leave it out of attrs="
        )
    if different > MAX_OF_FEW_PATIENTS and different >= num_patients / 2:
        raise InputError(
            f"'{name}' of {table.where} has {different:,} different values for {num_patients:,} patients, so it nearly "
            "tells who somebody is; give groups (numbers as bands), or leave it out of attrs="
        )


def refuse_personal(name: str, identifying: Sequence[str], option: str) -> set[str]:
    """The words of a header. Raises InputError where the column tells who somebody is."""
    plain = unicodedata.normalize("NFKD", name)  # of an accented letter the letter, and its accent behind it
    plain = "".join(letter for letter in plain if not unicodedata.combining(letter))
    words = set(re.split(r"[^a-z]+", re.sub(r"([a-z])([A-Z])", r"\1 \2", plain).lower()))
    if re.search(r"\betà\b", unicodedata.normalize("NFC", name).lower()):  # without its accent a Greek letter
        words.add("age")
    leave_out = f"; leave '{name}' out of {option}"
    if STEERS.search(name):
        raise InputError(f"{option} names a column whose header holds what is no character; give it another header")
    if name in identifying:
        raise InputError(f"{option} keeps cells as they are, and '{name}' tells the patient, case or image{leave_out}")
    if words & PERSONAL or any(map(OF_A_PERSON.fullmatch, words)):
        raise InputError(
            f"the header '{name}' means that it tells who somebody is{leave_out}, or rename it if it does not"
        )
    return words


def _age(table: Table, name: str, row: int, value: str) -> str:
    """A band for an age in years (45, 45.5, 045Y) or a band (45-49, 90+); a word without a number means unknown."""
    if not re.search(r"\d", value):
        return ""
    if match := AGE.fullmatch(value):
        return age_band(match[1].replace(",", "."))
    if match := BAND.fullmatch(value):
        return "90+" if int(match[1]) >= 90 else value
    raise InputError(f"{table.row(row)}: '{name}' is neither an age in years nor a band such as 40-49 or 90+")
