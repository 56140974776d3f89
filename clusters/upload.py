"""What a job takes along to a cluster: no secret in its words, no patient's data and no secret in its folder.

Ray keeps a job's command and environment as information for every user of the cluster, and unpacks its folder below
the session folder of each node, which every user of a node can read.
"""

import fnmatch
import logging
from collections.abc import Sequence
from pathlib import Path

from clusters.checks.secrets import secrets_in
from clusters.config import InputError

MOST_BYTES = 20_000_000
"""Of a folder before it is packed: this checkout has a quarter of it."""
PRIVATE = {
    "shard-*.tar": "a dataset",
    "index.parquet": "a dataset",
    "seen.parquet": "the patients of a pretraining",
    "*.dcm": "a DICOM image",
    "keyring*.json": "a keyring",
    "*-whois": "the source ids beside a keyring",
    ".env": "a file of secrets",
}


def check_words(words: Sequence[str]) -> None:
    """Raise InputError for a secret in the words of a `ray job submit`, or in the environment that they name."""
    for word in words:
        for mistake in secrets_in(word):
            raise InputError(f"submit: {mistake.what}, and Ray keeps it where others read it; {mistake.mend}")
    if file := option(words, "--runtime-env"):
        try:
            text = Path(file).read_text()
        except (OSError, ValueError):
            return  # Ray says what is wrong with it
        for mistake in secrets_in(text):
            raise InputError(f"{file}:{mistake.line}: {mistake.what}, and Ray keeps it; {mistake.mend}")


def check_folder(words: Sequence[str]) -> None:
    """Raise InputError where the folder that these words send holds what should not travel, or too much of anything."""
    folder = option(words, "--working-dir")
    if folder is None or "://" in folder or not Path(folder).is_dir():
        return
    sizes = packed(Path(folder))
    mend = "move it out of the folder, or name it in a .rayignore there"
    for name in sizes:
        for pattern, what in PRIVATE.items():
            if any(fnmatch.fnmatch(part, pattern) for part in Path(name).parts):
                raise InputError(f"submit: {Path(folder) / name} is {what} and would be sent along; {mend}")
    if sum(sizes.values()) > MOST_BYTES:
        largest = sorted(sizes, key=lambda name: -sizes[name])[:3]
        told = ", ".join(f"{name} ({sizes[name] / 1e6:.3g} MB)" for name in largest)
        raise InputError(
            f"submit: --working-dir {folder} would send {sum(sizes.values()) / 1e6:.3g} MB to every node, most of it "
            f"{told}; jobs read data from shared storage: {mend.replace('it', 'them', 1)}"
        )


def packed(folder: Path) -> dict[str, int]:
    """The files that Ray sends of a folder, by its own rules (.gitignore, .rayignore), with their sizes in bytes."""
    from ray._private.ray_constants import get_runtime_env_default_excludes
    from ray._private.runtime_env import packaging

    sizes: dict[str, int] = {}

    def note(path: Path) -> None:
        if path.is_file():
            sizes[str(path.relative_to(root))] = path.stat().st_size

    root = folder.resolve()
    excludes = [packaging._get_excludes(root, get_runtime_env_default_excludes())]
    quiet = logging.Logger("manyview.upload", logging.WARNING)  # or each ignore file would be named, here and again
    packaging._dir_travel(root, excludes, note, include_gitignore=True, logger=quiet)
    return sizes


def option(words: Sequence[str], name: str) -> str | None:
    """The last value of an option of `ray job submit`, whose own words end at `--`."""
    found, own = None, list(words[: words.index("--")] if "--" in words else words)
    for number, word in enumerate(own):
        if word.startswith(f"{name}="):
            found = word.partition("=")[2]
        elif word == name and number + 1 < len(own):
            found = own[number + 1]
    return found
