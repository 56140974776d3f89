"""Tables of raw datasets: CSV or parquet as columns of text, and rows grouped into cases.

Messages name columns and row numbers, never what a cell holds: cells may identify people. Rows are
numbered as a spreadsheet shows them, the header being row 1.
"""

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from clusters.config import InputError, nearest
from clusters.storage import Folder
from data.cases import RawFile, SourceImage
from data.config import ImportConfig


@dataclass(frozen=True)
class Table:
    """Named columns of stripped text; an empty cell is an empty string."""

    where: str
    columns: dict[str, list[str]]
    num_rows: int

    def column(self, name: str) -> list[str]:
        """A column. Raises InputError with the nearest header where there is none of that name."""
        if name not in self.columns:
            known = [column for column in self.columns if column]
            hint = nearest(name, known) or f"; there are {', '.join(known)[:300]}"
            raise InputError(f"{self.where} has no column '{name}'{hint}")
        return self.columns[name]

    def row(self, index: int) -> str:
        """How messages call a row."""
        return f"{self.where}, row {index + 2}"

    def group(self, case_ids: Iterable[str]) -> dict[str, list[int]]:
        """Row indices by case id, in the order of first appearance."""
        groups: dict[str, list[int]] = {}
        for index, case_id in enumerate(case_ids):
            groups.setdefault(case_id, []).append(index)
        return groups

    def agreed(self, name: str, rows: Sequence[int]) -> str:
        """The one value of a column in the rows of a case; empty if all are.

        Raises InputError naming both rows where they differ.
        """
        values = self.column(name)
        filled = [index for index in rows if values[index]]
        for index in filled[1:]:
            if values[index] != values[filled[0]]:
                raise InputError(
                    f"{self.row(filled[0])} and row {index + 2} are of one case but differ in "
                    f"'{name}'; write one value or make them two cases"
                )
        return values[filled[0]] if filled else ""


def read_table(folder: Folder, name: str) -> Table:
    """Read a CSV (UTF-8, comma, semicolon or tab) or parquet table.

    Raises InputError naming the file, and the row where there is one: absent, empty, not UTF-8, a row
    with more or fewer cells than the header, a header that occurs twice.
    """
    where = folder.file(name)
    try:
        content = folder.read(name)
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        raise InputError(f"{where}: no such table; raw= takes the place where it lies") from None
    if name.lower().endswith((".parquet", ".pq")):
        return _read_parquet(content, where)
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        row = content[: error.start].count(b"\n") + 1
        raise InputError(f"{where}, row {row}: not UTF-8 text; save the table as CSV in UTF-8") from None
    return _read_csv(text, where)


def row_image(config: ImportConfig, folder: Folder, row: int, file: str, attributes: dict[str, str]) -> SourceImage:
    """The image of a row. Messages and the manifest call it by row and file, where ids are keyed by row alone."""
    name = f"row {row + 2}" if config.ids == "keyed" else f"row {row + 2} ({file})"
    return SourceImage(name, RawFile(folder, file), attributes, file)


def _read_csv(text: str, where: str) -> Table:
    header = text.split("\n", 1)[0]
    delimiter = max(",;\t", key=header.count)
    try:
        rows = list(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True))
    except csv.Error as error:
        raise InputError(f"{where}: not a readable CSV ({error}); check its quotes") from None
    if len(rows) < 2:
        raise InputError(f"{where} has no rows below its header")
    names = [name.strip() for name in rows[0]]
    twice = sorted({name for name in names if name and names.count(name) > 1})
    if twice:
        raise InputError(f"{where} has the column '{twice[0]}' more than once; rename one")
    body = []
    for index, row in enumerate(rows[1:]):
        if not any(cell.strip() for cell in row):
            if any(any(later) for later in rows[index + 2 :]):
                raise InputError(f"{where}, row {index + 2} is empty; delete it")
            break
        while len(row) > len(names) and not row[-1].strip():
            row = row[:-1]
        if len(row) != len(names):
            raise InputError(
                f"{where}, row {index + 2} has {len(row)} cells, the header {len(names)}; "
                "put quotes around cells that hold the separator"
            )
        body.append(row)
    columns = {name: [row[place].strip() for row in body] for place, name in enumerate(names)}
    return Table(where, columns, len(body))


def _read_parquet(content: bytes, where: str) -> Table:
    import pyarrow as pa
    import pyarrow.parquet as parquet

    try:
        table = parquet.read_table(io.BytesIO(content))
    except (pa.ArrowInvalid, OSError):
        raise InputError(f"{where} is not a readable parquet file") from None
    columns = {
        name: ["" if value is None else str(value).strip() for value in table.column(name).to_pylist()]
        for name in table.column_names
    }
    return Table(where, columns, table.num_rows)
