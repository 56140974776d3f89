"""Files of a raw folder that has no table: found, numbered, and named in messages by their number.

With keyed ids a file's name may itself name a patient, so messages say `file 12`: the twelfth of the files in
the order of their paths. `python -m data whois` tells its name, and so does ids=source.
"""

import os
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from clusters.config import InputError
from clusters.storage import Folder
from data.cases import RawFile, SourceImage
from data.config import ImportConfig

UNREAD = (".heic", ".heif", ".avif")  # photographs that are not read
TOLD = (
    *(*UNREAD, ".svg", ".svs", ".ndpi", ".mrxs", ".dng", ".cr2", ".nef", ".arw", ".raw", ".nii", ".gz", ".npy", ".h5"),
    *(".mp4", ".mov", ".avi", ".pdf", ".txt", ".md", ".csv", ".tsv", ".xlsx", ".json", ".xml", ".html", ".zip", ".db"),
)


def list_files(folder: Folder) -> list[str]:
    """Paths of all files at any depth, relative to the folder, sorted; links are followed, hidden files included.

    Raises InputError where there is no such folder.
    """
    found = sorted(folder.sizes()) if folder.path is None else sorted(_walk(str(folder.path)))
    if not found and not folder.names():
        raise InputError(f"{folder}: no such folder, or an empty one; raw= takes the folder of the images")
    return found


def is_hidden(file: str) -> bool:
    """Whether a file, or a folder on the way to it, is one that systems put there for themselves."""
    return any(part.startswith(".") or part == "__MACOSX" for part in file.split("/"))


def file_name(config: ImportConfig, number: int, file: str) -> str:
    """What messages call a file; `number` counts from 0, messages from 1."""
    return f"file {number + 1}" if config.ids == "keyed" else f"file {number + 1} ({file})"


def file_image(
    config: ImportConfig, folder: Folder, number: int, file: str, attributes: dict[str, str] | None = None
) -> SourceImage:
    """The image of a file, read when it is needed."""
    return SourceImage(file_name(config, number, file), RawFile(folder, file), attributes or {}, file)


def left_out(files: Sequence[str], num_hidden: int) -> str:
    """What of a folder is passed over, by suffix and number; empty where nothing is.

    Only well-known suffixes are told: what stands behind the dot of `Meier.Hans` may be a name.
    """
    suffixes = Counter(suffix if (suffix := Path(file).suffix.lower()) in TOLD else "" for file in files)
    known = [f"{number:,} {suffix}" for suffix, number in suffixes.most_common() if suffix]
    other = suffixes[""]
    told = [*known, *([f"{other:,} {'more' if known else 'files'} without the suffix of an image"] if other else [])]
    told += [f"{num_hidden:,} hidden files"] if num_hidden else []
    mend = f" (not read: convert {', '.join(unread)} to JPEG)" if (unread := [s for s in UNREAD if suffixes[s]]) else ""
    return " and ".join([", ".join(told[:-1]), told[-1]] if len(told) > 1 else told) + mend


def say(config: ImportConfig, told: str) -> None:
    """One line to whoever runs the import."""
    print(f"{config.source}: {told}", file=sys.stderr, flush=True)


def _walk(root: str) -> Iterator[str]:
    """Regular files below a local folder. Links to folders are followed, once: a link upwards would never end.

    Reading a pipe or a device might never end either. A link that leads nowhere is listed, to be told as absent.
    """
    seen = set()
    for place, folders, files in os.walk(root, followlinks=True):
        if os.path.realpath(place) in seen:
            folders.clear()
            continue
        seen.add(os.path.realpath(place))
        inside = os.path.relpath(place, root).replace(os.sep, "/")
        for file in files:
            path = str(Path(place, file))
            # Those of Path raise where access to a link's end is denied, which is told when the file is read.
            if os.path.isfile(path) or not os.path.exists(path):  # noqa: PTH110, PTH113
                yield file if inside == "." else f"{inside}/{file}"
