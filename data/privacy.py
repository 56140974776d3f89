"""What is said when something unforeseen happens: where in the program, never of whom.

Libraries name files, tags and cells in their warnings and errors. With keyed ids none of that is shown; with
the environment variable MANYVIEW_DEBUG=1 all of it is, on a screen where it may be seen.
"""

import logging
import os
import sys
import tempfile
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from clusters.config import InputError
from data.config import ImportConfig
from data.identities import keyring_path, whois_folder

DEBUG = "MANYVIEW_DEBUG"
WHILE = "while reading image"  # begins a note at an error, with the name of the image


def debugging() -> bool:
    """Whether the user wants to see everything."""
    return os.environ.get(DEBUG, "") not in ("", "0")


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Nothing on the screen from the libraries within: their warnings quote what they read."""
    if debugging():
        yield
        return
    last_resort = logging.lastResort  # prints the warnings that no handler takes
    assert last_resort is not None
    level = last_resort.level
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        last_resort.setLevel(logging.CRITICAL + 1)
        try:
            yield
        finally:
            last_resort.setLevel(level)


@contextmanager
def discreet(config: ImportConfig) -> Iterator[None]:
    """Run an import so that with keyed ids no error names a file below raw= or quotes a cell.

    Raises InputError for errors of the system (disk full, no permission); anything else that is unforeseen is told
    by its kind and its place in the program, with exit code 1.
    """
    if config.ids != "keyed" or debugging():
        yield
        return
    try:
        with quiet_libraries():
            yield
    except InputError:
        raise
    except OSError as error:
        what = f"{_place(error, config)}{os.strerror(error.errno) if error.errno else type(error).__name__}"
        raise InputError(f"the import stopped: {what}; mend it and give the same command again") from None
    except Exception as error:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        notes = [note for note in getattr(error, "__notes__", []) if note.startswith(WHILE)]
        where = " ".join([f"in {Path(frame.filename).name}, line {frame.lineno}", *notes])
        print(
            f"error: unforeseen {type(error).__name__} {where}; what it says may name a patient or a file and is "
            f"not shown: {DEBUG}=1 shows it",
            file=sys.stderr,
        )
        sys.exit(1)


def _place(error: OSError, config: ImportConfig) -> str:
    """The file of an error, if it is one that the user typed or that this program named."""
    file = os.fsdecode(error.filename) if isinstance(error.filename, (str, bytes)) else ""
    keyring = keyring_path(config.keyring)
    out, raw = config.out.removeprefix("file://"), config.raw.removeprefix("file://")
    if file in (raw, str(keyring.parent)) or any(
        _below(file, place) for place in (out, keyring, whois_folder(keyring))
    ):
        return f"{file}: "
    if Path(file).parent == keyring.parent and file.endswith((".part", ".probe")):
        return f"a file beside the keyring in {keyring.parent}: "
    # The images of a table lie in its folder. Temporary files are told after them: raw= may lie among these.
    is_table = os.path.isfile(raw)  # noqa: PTH113 (that of Path raises where access is denied)
    images = Path(raw).parent if is_table else raw
    if _below(file, tempfile.gettempdir()) and not _below(file, images):
        return f"a temporary file in {tempfile.gettempdir()}: "
    return "a file of raw=: " if file else ""


def _below(file: str, place: str | Path) -> bool:
    return file == str(place) or file.startswith(f"{place}/")
