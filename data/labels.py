"""Labels from the columns of a table: classes, one yes or no, several findings, or measurements."""

import math
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from clusters.config import InputError, nearest
from data.attributes import AGE_WORDS, refuse_personal
from data.cases import one_hot
from data.class_names import Whose, refuse_classes, refuse_findings
from data.published import UNKNOWN
from data.tables import Table

MAX_CLASSES = 1000
NAN = float("nan")
YES = ("1", "1.0", "true", "yes", "positive")
# What a column of findings may hold; -1 marks doubt since CheXpert (Irvin et al., AAAI 2019).
NO = ("0", "0.0", "false", "no", "negative")
MARKS: dict[str, float] = {**dict.fromkeys(YES, 1.0), **dict.fromkeys(NO, 0.0), "": NAN}
DOUBTFUL = ("-1", "-1.0")
NUMBERS = {"0": "0", "0.0": "0", "1": "1", "1.0": "1", "-1": "-1", "-1.0": "-1"}
# What programs write where nothing is stated. `unknown` is none of them: it can be a class.
NOT_STATED = (UNKNOWN | {"null"}) - {"", "unknown", "unk", *DOUBTFUL}


@dataclass(frozen=True)
class Labels:
    """Task, label names, the labels of each case, and those that the table marks as uncertain (NaN then)."""

    task: str
    names: tuple[str, ...]
    of_case: dict[str, dict[str, float]]
    uncertain: dict[str, frozenset[str]] = field(default_factory=dict)


def read_labels(
    table: Table,
    groups: Mapping[str, Sequence[int]],
    label: str,
    classes: tuple[str, ...] = (),
    positive: str = "",
    whose: Whose | None = None,
) -> Labels:
    """The labels of each case (`groups`: its rows) from the column or the comma-separated columns `label`.

    `whose` is given where ids are keyed: then no label may tell who somebody is.

    Raises InputError naming rows and columns, never cells: rows of a case that disagree, a value outside the
    declared classes, a column with one value or too many, a finding that is none of 1, 0, -1 and empty, one column
    of 1 and -1 without 0, in which -1 could mean no or uncertain. `NA`, `nan`, `none`, `null` and `n/a` are empty
    cells unless classes or positive name them; a line on stderr counts them.
    """
    if not label:
        return Labels("unlabelled", (), {case: {} for case in groups})
    columns = (label,) if label in table.columns else tuple(word.strip() for word in label.split(",") if word.strip())
    if len(columns) > 1:
        if classes or positive:
            raise InputError(
                "classes= and positive= are for one label column; findings in several hold 1, 0, -1 or nothing"
            )
        return _findings(_stated(table, columns), groups, columns, "multilabel", whose)
    column = columns[0] if columns else label
    table = _stated(table, (column,), (*classes, positive))
    found = {case: table.agreed(column, rows) for case, rows in groups.items()}
    values = {value for value in found.values() if value}
    if not classes and values <= NUMBERS.keys() and len(values) > 1:
        numbers = {NUMBERS[value] for value in values}
        if not positive and numbers == {"1", "-1"}:
            raise InputError(
                f"column '{column}' of {table.where} holds 1 and -1 and no 0, and -1 means uncertain; give positive=1 "
                "if -1 means no, or classes=-1,1"
            )
        if not positive:
            return _findings(table, groups, (column,), "binary", whose)
        # 1 and 1.0 are one value.
        found, values = {case: NUMBERS.get(value, value) for case, value in found.items()}, numbers
        positive = NUMBERS.get(positive, positive)
    labels = _classes(table, groups, column, found, classes or tuple(sorted(values)), positive)
    if whose:
        refuse_classes(table, column, groups, found, (*labels.names, *classes), whose)
    return labels


def _classes(
    table: Table,
    groups: Mapping[str, Sequence[int]],
    column: str,
    found: dict[str, str],
    known: tuple[str, ...],
    positive: str,
) -> Labels:
    """One of the known classes a case, or none where nothing is stated; binary where there are two or one counts."""
    if not 2 <= len(known) <= MAX_CLASSES:
        raise InputError(
            f"column '{column}' of {table.where} has {len(known):,} different values; a label has 2 "
            f"to {MAX_CLASSES:,} (leave label= out for a dataset without labels)"
        )
    for case, value in found.items():
        if value and value not in known:
            raise InputError(
                f"{table.row(_filled(table, column, groups[case]))}: '{column}' is outside the declared classes "
                f"{', '.join(known)[:200]}{nearest(value, known)}; mend the cell or add it to classes="
            )
    if positive and positive not in known:
        raise InputError(f"positive={positive} does not occur in column '{column}' of {table.where}")
    if len(known) > 2 and not positive:
        return Labels("multiclass", known, {case: one_hot(value or None, known) for case, value in found.items()})
    positive = positive or list(known)[-1]
    name = column if positive.lower() in YES else positive
    return Labels("binary", (name,), {case: {name: float(v == positive) if v else NAN} for case, v in found.items()})


def read_numbers(
    table: Table, groups: Mapping[str, Sequence[int]], names: Sequence[str], identifying: Sequence[str]
) -> dict[str, dict[str, float]]:
    """The measurements of each case from these columns, NaN where a cell is empty or says that nothing is stated.

    Raises InputError naming rows and columns, never cells: rows of a case that disagree, a cell that is no finite
    number, a column without any, or one that tells who somebody is (`identifying`: image, patient, case).
    """
    found: dict[str, dict[str, float]] = {case: {} for case in groups}
    for name in names:
        if refuse_personal(name, identifying, "numbers=") & AGE_WORDS:
            raise InputError(f"'{name}' is an age, and single years above 89 tell who somebody is; keep it with attrs=")
        table = _stated(table, (name,))
        for case, rows in groups.items():
            text = table.agreed(name, rows)
            found[case][name] = _number(text) if text else NAN
            if text and not math.isfinite(found[case][name]):
                raise InputError(f"{table.row(_filled(table, name, rows))}: '{name}' {_mend_of(text)}")
        if groups and all(math.isnan(numbers[name]) for numbers in found.values()):
            raise InputError(f"column '{name}' of {table.where} holds no number; leave it out of numbers=")
    return found


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return NAN


def _mend_of(text: str) -> str:
    """What is wrong with a cell that is no number. A comma is not read: 1,234 may be 1.234 or 1234."""
    if re.fullmatch(r"[+-]?\d[\d.]*,\d+", text):
        return "has a decimal comma; write a point (9.3 for 9,3) in all cells of this column"
    return "is not a number; mend the cell"


def _stated(table: Table, columns: Sequence[str], classes: Sequence[str] = ()) -> Table:
    """The table with the words for "nothing stated" as empty cells in these columns, unless they are classes."""
    cleaned, num_emptied = dict(table.columns), 0
    for column in columns:
        cells = table.column(column)
        empty = {cell for cell in set(cells) - set(classes) if cell.lower() in NOT_STATED}
        if empty:
            num_emptied += sum(cell in empty for cell in cells)
            cleaned[column] = ["" if cell in empty else cell for cell in cells]
    if num_emptied:
        print(
            f"{table.where}: {num_emptied:,} cells of {', '.join(columns)[:100]} say {', '.join(sorted(NOT_STATED))} "
            "and count as unlabelled; classes= makes such a word a class",
            file=sys.stderr,
            flush=True,
        )
        return replace(table, columns=cleaned)
    return table


def _findings(
    table: Table, groups: Mapping[str, Sequence[int]], columns: tuple[str, ...], task: str, whose: Whose | None
) -> Labels:
    """Columns that each hold yes, no, doubt or nothing."""
    if whose:
        refuse_findings(columns, whose)
    if len(set(columns)) < len(columns):
        raise InputError(f"label= names a column twice: {', '.join(columns)}")
    of_case: dict[str, dict[str, float]] = {}
    uncertain: dict[str, frozenset[str]] = {}
    for case, rows in groups.items():
        found = {column: table.agreed(column, rows).lower() for column in columns}
        for column, value in found.items():
            if value not in MARKS and value not in DOUBTFUL:
                row = _filled(table, column, rows)
                raise InputError(f"{table.row(row)}: '{column}' is none of 1, 0, -1 (uncertain) and empty")
        of_case[case] = {column: MARKS.get(value, NAN) for column, value in found.items()}
        if doubtful := frozenset(column for column, value in found.items() if value in DOUBTFUL):
            uncertain[case] = doubtful
    return Labels(task, columns, of_case, uncertain)


def _filled(table: Table, column: str, rows: Sequence[int]) -> int:
    """The first of these rows that has a value."""
    return next(row for row in rows if table.columns[column][row])
