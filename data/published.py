"""What published datasets share: words for "unknown", spellings of sex and skin type, images in several folders.

Sources of one field give their attributes the same names and values through these, so that subgroups of
different datasets can be compared.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from clusters.config import InputError
from clusters.storage import Folder
from data.tables import Table

UNKNOWN = frozenset(("", "unknown", "unk", "nan", "na", "n/a", "none", "-1", "-1.0"))
SEXES = {"female": "female", "f": "female", "male": "male", "m": "male"}
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")


def known(value: str) -> str:
    """A cell as it is, or empty where it says in one of many ways that nobody knows."""
    return "" if value.lower() in UNKNOWN else value


def sex(value: str) -> str:
    """`female`, `male` or empty."""
    return SEXES.get(value.lower(), "")


def skin_type(value: str) -> str:
    """A Fitzpatrick skin type, `1` to `6`, of spellings like `3`, `3.0` and `FST3`; else empty."""
    digits = value.upper().removeprefix("FST").removesuffix(".0")
    return digits if digits in ("1", "2", "3", "4", "5", "6") else ""


def rows_by(table: Table, name: str) -> dict[str, int]:
    """Row of each value of a column that names images or cases.

    Raises InputError naming the row where a cell is empty, both rows where a value stands twice.
    """
    rows: dict[str, int] = {}
    for row, value in enumerate(table.column(name)):
        if not value:
            raise InputError(f"{table.row(row)}: '{name}' is empty; fill it in or delete the row")
        if rows.setdefault(value, row) != row:
            raise InputError(f"{table.row(rows[value])} and row {row + 2} have the same '{name}'; delete one of them")
    return rows


@dataclass(frozen=True)
class ImageFolders:
    """The images of a dataset that lie in one or several folders, by file name."""

    default: Folder
    places: dict[str, Folder]

    def __contains__(self, file: str) -> bool:
        return file in self.places

    def of(self, file: str) -> Folder:
        """The folder of a file; for one that is in none, a folder in which reading it will miss it."""
        return self.places.get(file, self.default)


def find_images(folder: Folder, parts: Sequence[str]) -> ImageFolders:
    """Look for images in those of the sub-folders that are there; `.` is the folder itself.

    Raises InputError naming all of them where none holds an image.
    """
    places: dict[str, Folder] = {}
    for part in parts:
        place = folder if part == "." else folder / part
        for name in place.names():
            if name.lower().endswith(IMAGE_SUFFIXES):
                places.setdefault(name, place)
    if not places:
        named = [part for part in parts if part != "."]
        raise InputError(f"{folder} has no images in {', '.join(named)}; unpack them there")
    return ImageFolders(next(iter(places.values())), places)


def with_left_out(case_meaning: str, num_left_out: int, what: str) -> str:
    """The sentence of the manifest on cases, followed by what an import left out, if anything."""
    return f"{case_meaning}; left out: {num_left_out:,} {what}" if num_left_out else case_meaning
