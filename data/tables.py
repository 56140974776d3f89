"""Tables of raw datasets: CSV or parquet as columns of text, and rows grouped into cases.

Messages name columns and row numbers, never what a cell holds: cells may identify people. Rows are
numbered as a spreadsheet shows them, the header being row 1.
"""

import csv
import gzip
import io
import re
import zlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from clusters.config import InputError, nearest
from clusters.storage import Folder
from data.cases import RawFile, SourceImage
from data.config import ImportConfig

MAX_UNPACKED_BYTES = 2 << 30
ROWS_PER_BATCH, REFERENCE_BYTES = 1 << 7, 8


@dataclass(frozen=True)
class Table:
    """Named columns of stripped text; an empty cell is an empty string."""

    where: str
    columns: dict[str, list[str]]
    num_rows: int
    repeated: frozenset[str] = frozenset()

    def column(self, name: str) -> list[str]:
        """A column. Raises InputError with the nearest header where there is none, or more than one, of that name."""
        if name not in self.columns:
            num_known = sum(column != "" for column in self.columns)
            hint = self._nearest_header(name) or f": none of the {num_known} headers in its first line is close to it"
            raise InputError(f"{self.where} has no column '{name}'{hint}")
        if name in self.repeated:
            raise InputError(f"{self.where} has the column '{name}' more than once; rename one")
        return self.columns[name]

    def _nearest_header(self, name: str) -> str:
        """A hint at one header, where that says nothing of a person.

        Where a table has no header, its first row stands in its place, so a header is told only if (1) it is what was
        asked for, but for case, spaces, underscores, hyphens and one character more or less, or (2) the first row
        looks like a header: no cell of it holds a digit, a dot or a path separator, as ids, dates, numbers and the
        files of images do.
        """
        known = [column for column in self.columns if column]
        if same := [column for column in known if _nearly_same(_bare(column), _bare(name))]:
            return f" (nearest: {same[0]})"
        return nearest(name, known) if not any(re.search(r"[\d./\\]", column) for column in known) else ""

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
    """Read a CSV (UTF-8, comma, semicolon or tab; also gzipped, `.gz`) or parquet table.

    Raises InputError naming the file, and the row where there is one: absent, a folder, empty, not UTF-8, a NUL byte, a
    cell of more than 128 KiB, a row with more or fewer cells than the header.
    """
    where = folder.file(name)
    try:
        content = folder.read(name)
    except IsADirectoryError:
        raise InputError(f"{where} is a folder; give the .csv or .parquet in it") from None
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(f"{where}: no such table; raw= takes the place where it lies") from None
    if name.lower().endswith((".parquet", ".pq")):
        return _read_parquet(content, where)
    if name.lower().endswith(".gz"):
        content = _unpacked(content, where)
    return _read_csv(content, where)


def row_image(
    config: ImportConfig, folder: Folder, row: int, file: str, attributes: dict[str, str], table: str = ""
) -> SourceImage:
    """The image of a row. Messages and the manifest call it by row and file, where ids are keyed by row alone.

    `table` stands before the row where a source has several tables: the name of a published file.
    """
    place = f"{table} row {row + 2}".lstrip()
    name = place if config.ids == "keyed" else f"{place} ({file})"
    return SourceImage(name, RawFile(folder, file), attributes, file)


def _bare(header: str) -> str:
    return re.sub(r"[\s_-]", "", header).lower()


def _nearly_same(one: str, other: str) -> bool:
    short, long = sorted((one, other), key=len)
    if one == other:
        return True
    return len(short) >= 4 and any(long[:place] + long[place + 1 :] == short for place in range(len(long)))


def _unpacked(content: bytes, where: str) -> bytes:
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(content)) as file:
            unpacked = file.read(MAX_UNPACKED_BYTES + 1)
    except (OSError, EOFError, zlib.error):
        raise InputError(f"{where} is not a whole gzip file; fetch it again") from None
    if len(unpacked) > MAX_UNPACKED_BYTES:
        raise InputError(f"{where} unpacks to more than {MAX_UNPACKED_BYTES >> 30} GiB; is it a table?")
    return unpacked


def _read_csv(content: bytes, where: str) -> Table:
    if b"\0" in content:
        row = content[: content.index(b"\0")].count(b"\n") + 1
        raise InputError(f"{where}, row {row}: a NUL byte, so not UTF-8 text; save the table as CSV in UTF-8")
    delimiter = max(",;\t", key=content[: 1 << 16].split(b"\n", 1)[0].decode("utf-8", "replace").count)
    reader = csv.reader(
        io.TextIOWrapper(io.BytesIO(content), "utf-8-sig", newline=""), delimiter=delimiter, strict=True
    )
    row = 1
    names: list[str] = []
    columns: list[list[str]] = []
    # Most cells of a large table repeat (labels, patients): each different text is kept once.
    texts: dict[str, str] = {}
    empty = 0
    try:
        names = [name.strip() for name in next(reader, [])]
        columns = [[] for _ in names]
        for row, cells in enumerate(reader, 2):
            if not any(cell.strip() for cell in cells):
                empty = empty or row
                continue
            if empty:
                raise InputError(f"{where}, row {empty} is empty; delete it")
            while len(cells) > len(names) and not cells[-1].strip():
                cells.pop()
            if len(cells) != len(names):
                raise InputError(
                    f"{where}, row {row} has {len(cells)} cells, the header {len(names)}; "
                    "put quotes around cells that hold the separator"
                )
            for column, cell in zip(columns, cells):
                text = cell.strip()
                column.append(texts.setdefault(text, text))
    except csv.Error as error:
        raise InputError(f"{where}, after row {row}: not a readable CSV ({error}); check its quotes") from None
    except UnicodeDecodeError:
        raise InputError(f"{where}, row {_not_utf8(content)}: not UTF-8 text; save the table as CSV in UTF-8") from None
    return _table(where, names, columns)


def _not_utf8(content: bytes) -> int:
    """The row of the first byte that is not UTF-8."""
    try:
        content.decode("utf-8")
    except UnicodeDecodeError as error:
        return content[: error.start].count(b"\n") + 1
    return 1


def _read_parquet(content: bytes, where: str) -> Table:
    import pyarrow as pa
    import pyarrow.parquet as parquet

    try:
        file = parquet.ParquetFile(io.BytesIO(content))
        names = [name.strip() for name in file.schema_arrow.names]
        columns: list[list[str]] = [[] for _ in names]
        texts: dict[str, str] = {}
        size = 0
        for batch in file.iter_batches(ROWS_PER_BATCH):  # a few bytes may stand for any number of long cells
            size += batch.nbytes + REFERENCE_BYTES * batch.num_rows * batch.num_columns
            if size > MAX_UNPACKED_BYTES:
                raise InputError(f"{where} unpacks to more than {MAX_UNPACKED_BYTES >> 30} GiB; is it a table?")
            for column, values in zip(columns, batch.columns):
                column += [texts.setdefault(text, text) for text in map(_cell, values.to_pylist())]
    except InputError:
        raise
    except (pa.ArrowException, OSError, ValueError, OverflowError):
        raise InputError(f"{where} is not a readable parquet file") from None
    for column in columns:
        for row, text in enumerate(column):
            if "\0" in text:
                raise InputError(f"{where}, row {row + 2}: a NUL byte; write the table without")
    return _table(where, names, columns)


def _cell(value: object) -> str:
    """A value of a parquet table as its CSV would spell it."""
    if value is None or value != value:  # NaN is how pandas leaves a number out
        return ""
    # And with a number left out, it makes the whole numbers of the column real ones: 12.0 for 12.
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        return str(int(value))
    return value.decode("utf-8") if isinstance(value, bytes) else str(value).strip()


def _table(where: str, names: list[str], columns: list[list[str]]) -> Table:
    """Named columns. Raises InputError where there are no rows."""
    if not columns or not columns[0]:
        raise InputError(f"{where} has no rows below its header")
    repeated = frozenset(name for name, number in Counter(names).items() if name and number > 1)
    return Table(where, dict(zip(names, columns)), len(columns[0]), repeated)
