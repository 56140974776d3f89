"""fsspec's drivers of the places where folders lie: what they are told, what goes wrong with them, in our words."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import unquote

import fsspec
from fsspec.spec import AbstractFileSystem

from clusters.config import InputError

# What `pip install` needs for the places whose drivers do not come along by themselves: the packages of the extra s3.
# Not this project's name with the extra: it is on no index, and there the name would be a stranger's.
PACKAGES = {"s3": "s3fs>=2025.3", "s3a": "s3fs>=2025.3"}

KEYS = re.compile(
    r"""
      (?<=://) [^/?\#]* : [^/?\#]* (?=@[^/@?\#]*(?:[/?\#]|$))
    | (?<=://) (?<=http://|ttps://) [^/?\#]+ (?=@[^/@?\#]*(?:[/?\#]|$))
    | (?<=[?&;\#]) [\w%-]* (?:token|key|secret|pass\w*|pwd|sig|signature|credential) (?:id)? = [^&;]*
    """,
    re.IGNORECASE | re.VERBOSE,
)
"""What a location may not hold, since it is written down and shown: `user:password@`, a token, a signature."""

CHANGE_KEYS = ("ETag", "etag", "mtime", "LastModified", "last_modified", "updated", "created")
"""What drivers call what changes with a file: S3, HTTP; GCS, Azure; SFTP; S3; Azure; GCS; memory."""


def open_driver(location: str) -> tuple[Any, str]:
    """The driver for a location, and the path that it knows it by. Raises InputError."""
    # As it stands, and as it reads: a name may be encoded to be overlooked, a password has to be.
    shown = location if KEYS.search(location) else unquote(location)
    if "://" in location and KEYS.search(shown):
        raise InputError(
            f"{KEYS.sub('***', shown)}: a key stands in this location, and locations are written down; give it by "
            "the environment, or by the file that the driver of such places reads"
        )
    try:
        # No listing is kept: other processes write here too.
        return fsspec.core.url_to_fs(location, use_listings_cache=False)
    except ImportError as error:
        package = PACKAGES.get(location.split("://")[0])
        mend = f"pip install '{package}'" if package else str(error)
        raise InputError(f"{location}: the driver for such places is not installed; {mend}") from None
    except ValueError as error:
        raise InputError(f"{location}: not a place that can be opened ({error})") from None


@contextmanager
def told(location: str) -> Iterator[None]:
    """Drivers of object stores have errors of their own kinds (no credentials, no such endpoint); here an OSError.

    Of those of a connection it is a ConnectionError, which may pass.
    """
    try:
        yield
    except (OSError, InputError):
        raise
    except Exception as error:
        kinds = " ".join(kind.__name__ for kind in type(error).__mro__)
        passes = "Connection" in kinds or "Timeout" in kinds
        text = f"{location}: {' '.join(str(error).split()) or type(error).__name__}"
        raise (ConnectionError(text) if passes else OSError(text)) from error


def move(driver: Any, source: str, target: str) -> None:
    """Rename a file or folder; an object store, which has no folders, copies every file before the first is removed."""
    if type(driver).mv is not AbstractFileSystem.mv:
        driver.mv(source, target, recursive=True)
        return
    for path in driver.find(source):
        driver.cp_file(path, target + path.removeprefix(source))
    driver.rm(source, recursive=True)
