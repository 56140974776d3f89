"""The images that predictions are asked for: a folder, a table of paths, one file, or a dataset folder.

Their pixels are those that an import would store and the loader would give: predictions of a raw folder are those of
the dataset that is imported from it. Imports no torch. Shapes: S the side of the network's input, px.
"""

import hashlib
import json
import re
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clusters.config import InputError
from clusters.storage import Folder
from data.dataset import Dataset, open_dataset
from data.images import BadImage, decode, decode_stored, shrink
from data.jpeg import encode_jpeg
from data.listing import is_hidden, left_out, list_files
from data.manifest import MANIFEST
from data.segments import ABSENT
from data.sources.folder import SUFFIXES
from data.tables import read_table

Read = Callable[[], bytes]
IMAGE, CASE = "image", "case"
STAMP_THREADS = 16
"""A look at a file waits for its place, not for a core."""
TABLES = (".csv", ".csv.gz", ".parquet", ".pq")
WITHOUT_SUFFIX = re.compile(r"(^|/)[^./]+$|\.\d+$")
"""Names as archives of DICOM give them: IM000012, or a UID's digits."""


@dataclass(frozen=True)
class ImageList:
    """Images by name. `columns` is what the user gave of each, the name (`image`) first; cases where they are known.

    `rows`: of a dataset, their rows; of files, their places in the whole list. Small enough to be sent to a task.
    `passed_over` says what else lies in the folder.
    """

    location: str
    dataset: str
    columns: dict[str, tuple[str, ...]]
    rows: tuple[int, ...]
    passed_over: str = ""

    def __len__(self) -> int:
        return len(self.rows)

    def part(self, start: int, stop: int) -> "ImageList":
        """The images from `start` to `stop` - 1."""
        columns = {name: values[start:stop] for name, values in self.columns.items()}
        return replace(self, columns=columns, rows=self.rows[start:stop])

    def fingerprint(self) -> str:
        """What tells this list from another: of a dataset its own, wherever it lies.

        Of files where they lie, and the size and time of each, so that one that was replaced is another; each is
        looked at once.
        """
        told: list[object] = [self.dataset, self.columns]
        if not self.dataset:
            with ThreadPoolExecutor(STAMP_THREADS) as pool:
                told += [self.location, list(pool.map(partial(_stamp, Folder(self.location)), self.columns[IMAGE]))]
        return hashlib.sha256(json.dumps(told).encode()).hexdigest()

    def readers(self, opened: Dataset | None) -> list[Read]:
        """A function for each image that gives its bytes, or raises BadImage with the reason.

        Files are read when they are asked for, images of a dataset (`opened`) now.
        """
        if opened is None:
            folder = Folder(self.location)
            return [partial(_read_file, folder, name) for name in self.columns[IMAGE]]
        return [partial(_given, content) for content in _read_rows(opened, self.rows)]


def list_images(location: str, image: str = IMAGE, case: str = CASE) -> ImageList:
    """The images at a location, sorted by name; of a table in its order, of a dataset in that of its rows.

    `image` and `case` are columns of a table. Raises InputError where there are none, for a table without them (only
    `case` may be left at its default then), and as `read_table`.
    """
    parent, _, name = location.rstrip("/").rpartition("/")
    folder = Folder(location)
    if folder.exists(MANIFEST):
        return _of_dataset(open_dataset(location))
    if name.lower().endswith(TABLES):
        return _of_table(Folder(parent or "/"), name, image, case)
    if folder.path is not None and folder.path.is_file():
        return _of_files(parent or "/", [name], {})
    if not folder.exists():
        raise InputError(f"{location}: no such folder, table or image; give one that is there")
    there = list_files(folder) if folder.names() else []
    seen = [file for file in there if not is_hidden(file)]
    files = [file for file in seen if file.lower().endswith(SUFFIXES) or WITHOUT_SUFFIX.search(file)]
    passed_over = left_out(sorted(set(seen) - set(files)), len(there) - len(seen))
    if not files:
        raise InputError(f"{location} has no images; there are {passed_over or 'no files'}; give a folder of them")
    return replace(_of_files(location, files, {}), passed_over=passed_over)


def input_pixels(
    content: bytes, stored: bool, processing: dict[str, Any], size_px: int, max_pixels: int
) -> NDArray[np.uint8]:
    """The network's input, uint8 (S, S, 3), from a raw file or, with `stored`, from an image of a dataset.

    A raw file goes through what `processing` tells of the import. Raises BadImage.
    """
    from data.loader import centre_square

    if not stored:
        # Nobody sees these pixels, so text burned into them is no reason to refuse.
        pixels = decode(content, max_pixels, burned_in="keep")
        if "short_side_px" in processing:
            pixels = shrink(pixels, processing["short_side_px"])
            content = encode_jpeg(pixels, processing["jpeg_quality"])
        else:
            return centre_square(np.repeat(pixels, 3, axis=2) if pixels.shape[2] == 1 else pixels, size_px)
    return centre_square(decode_stored(content), size_px)


def _of_files(location: str, files: Sequence[str], columns: dict[str, tuple[str, ...]]) -> ImageList:
    return ImageList(location, "", {IMAGE: tuple(files), **columns}, tuple(range(len(files))))


def _of_dataset(dataset: Dataset) -> ImageList:
    columns = {IMAGE: "member", CASE: "key", "split": "split"}
    told = {name: tuple(dataset.column(column).astype(str).tolist()) for name, column in columns.items()}
    return ImageList(dataset.location, dataset.fingerprint, told, tuple(range(dataset.num_images)))


def _of_table(folder: Folder, name: str, image: str, case: str) -> ImageList:
    """Paths in the column `image`, from the table's folder on, and cases in the column `case` where there is one."""
    if not folder.exists(name):
        raise InputError(f"{folder.file(name)}: no such file")
    table = read_table(folder, name)
    try:
        images = tuple(table.column(image))
    except InputError as error:
        raise InputError(f"{error}; image= takes the column in which the paths of the images stand") from None
    has_cases = case in table.columns if case == CASE else bool(case)
    columns = {CASE: tuple(table.column(case))} if has_cases else {}
    if "" in columns.get(CASE, ()):
        place = table.row(columns[CASE].index(""))
        raise InputError(f"{place} names no case; name one for each image, or take the column out")
    return _of_files(folder.location, images, columns)


def _read_file(folder: Folder, name: str) -> bytes:
    if not name:
        raise BadImage("the row names no image")
    if folder.path is not None and (folder.path / name).exists() and not (folder.path / name).is_file():
        raise BadImage("not a file")
    try:
        return folder.read(name)
    except FileNotFoundError:
        raise BadImage(ABSENT) from None
    except OSError as error:
        raise BadImage(f"cannot be read ({error.strerror or type(error).__name__})") from None


def _stamp(folder: Folder, name: str) -> tuple[int | None, object] | None:
    """None of a file that is not there or out of reach: its row will say so."""
    try:
        return folder.stamp(name) if name else None
    except OSError:
        return None


def _given(content: bytes | None) -> bytes:
    if content is None:
        raise BadImage("altered in its shard")
    return content


def _read_rows(dataset: Dataset, rows: Sequence[int]) -> list[bytes | None]:
    """The stored files, in one go or, where one of them is damaged, each by itself."""
    try:
        return list(dataset.read_many(np.array(rows)))
    except InputError:
        if len(rows) == 1:
            return [None]
    return [content for row in rows for content in _read_rows(dataset, [row])]
