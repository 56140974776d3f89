"""What a job takes along to a cluster: no secret in its words, no patient's data and no secret in its folders.

Ray keeps a job's command and environment as information for every user of the cluster, and unpacks its folders below
the session folder of each node, which every user of a node can read.
"""

import fnmatch
import itertools
import json
import logging
import lzma
import os
import shlex
import tarfile
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from clusters.checks.secrets import marked_secret_in, secrets_in
from clusters.config import InputError

MOST_BYTES = 20_000_000
"""Of a folder before it is packed: this checkout has a quarter of it."""
PRIVATE = {
    "shard-*.tar": "a dataset",
    "index.parquet": "a dataset",
    "seen.parquet": "the patients of a pretraining",
    "predictions.parquet": "what was predicted",
    "predictions.csv": "what was predicted",
    "cases.parquet": "what was predicted",
    "cases.csv": "what was predicted",
    "part-[0-9]*.parquet": "what was predicted",
    "*.dcm": "a DICOM image",
    "*.dicom": "a DICOM image",
    "dicomdir": "a DICOM image",
    "keyring*.json": "a keyring",
    ".env": "a file of secrets",
    ".env.*": "a file of secrets",
    ".envrc": "a file of secrets",
    ".netrc": "a file of secrets",
    "credentials": "a file of secrets",
    "credentials.json": "a file of secrets",
    "token": "a token",
    "*[_.-]token": "a token",
    "id_rsa": "a private key",
    "id_ecdsa": "a private key",
    "id_ed25519": "a private key",
}
"""By names, in small letters."""
TEMPLATES = (".example", ".sample", ".template")
ARCHIVES = (".zip", ".whl", ".tar", ".tar.gz", ".tgz", ".tar.xz")
KEY_BYTES = 100_000
"""Of a *.pem or *.key that are searched for a private key."""
NAMING = ("--secret",)
"""Options whose value names a secret."""


def check_job(words: Sequence[str]) -> None:
    """Raise InputError for what these words of a `ray job submit` would show to others.

    A secret in the command, its metadata or its environment; what should not travel, or too much of anything, in the
    folders and archives of this machine that are sent along.
    """
    job = _as_ray_reads(words)
    if job is None:
        return  # Ray says what is wrong with them
    if job["address"] is not None:
        raise InputError("submit: --address stands once, as the first word; take it out of the options")
    told = "and Ray keeps it where others read it"
    kept = [value for name, value in job.items() if isinstance(value, str) and name not in ("headers", "runtime_env")]
    for text in (*kept, " ".join(job["entrypoint"]), *_given(job["entrypoint"])):
        for mistake in marked_secret_in(text):
            raise InputError(f"submit: {mistake.what}, {told}; {mistake.mend}")
    for mistake in secrets_in(job["headers"] or ""):
        raise InputError(f"submit: {mistake.what}, in words that others see here; give it as RAY_JOB_HEADERS")
    environment = _environment(job)
    for path in _files(job, environment):
        for mistake in marked_secret_in(Path(path).read_text(errors="replace")):
            raise InputError(f"{path}:{mistake.line}: {mistake.what}, {told}; {mistake.mend}")
    excludes = [word for word in _list(environment, "excludes") if isinstance(word, str)]
    _check_sent(environment.get("working_dir"), [*_default_excludes(), *excludes])
    for module in _list(environment, "py_modules"):
        _check_sent(module, excludes)


def _as_ray_reads(words: Sequence[str]) -> dict[str, Any] | None:
    """The options and the `entrypoint` of a `ray job submit`, by Ray's own reading; None where it would refuse them."""
    import click
    from ray.dashboard.modules.job.cli import submit

    try:
        return submit.make_context("submit", list(words)).params
    except click.exceptions.Exit as asked:  # for --help, which is shown now
        raise SystemExit(asked.exit_code) from None
    except click.ClickException:
        return None


def _environment(job: dict[str, Any]) -> dict[str, Any]:
    """Ray's runtime environment, as far as it can be read."""
    try:
        if job["runtime_env"] is not None:
            found = yaml.safe_load(Path(job["runtime_env"]).read_text())
        else:
            found = json.loads(job["runtime_env_json"] or "{}")
    except (OSError, ValueError, yaml.YAMLError):
        found = None  # Ray refuses it
    environment = dict(found) if isinstance(found, dict) else {}
    return environment if job["working_dir"] is None else {**environment, "working_dir": job["working_dir"]}


def _given(entrypoint: Sequence[str]) -> Iterator[str]:
    """`option=value` where a command, or one that it has in quotes, has `option value`."""
    for words in (list(entrypoint), *(_split(word) for word in entrypoint if " " in word)):
        for option, value in itertools.pairwise(words):
            if option.startswith("-") and not value.startswith("-") and option not in NAMING:
                yield f"{option}={value}"


def _split(text: str) -> list[str]:
    try:
        return shlex.split(text)
    except ValueError:
        return text.split()


def _files(job: dict[str, Any], environment: dict[str, Any]) -> Iterator[str]:
    """The files of an environment that Ray reads and keeps; lists of packages are some."""
    lists = [environment.get(name) for name in ("pip", "uv", "conda")]
    lists = [found.get("packages") if isinstance(found, dict) else found for found in lists]
    for path in (job["runtime_env"], *lists):
        if isinstance(path, str) and Path(path).is_file():
            yield path


def _list(environment: dict[str, Any], name: str) -> list[Any]:
    found = environment.get(name)
    return found if isinstance(found, list) else []


def _check_sent(path: Any, excludes: Sequence[str]) -> None:
    """Raise InputError where a folder or an archive of this machine holds what should not be sent, or too much."""
    if not isinstance(path, str) or not Path(path).exists():
        return  # a URI, from which each node fetches it
    found, is_folder = Path(path), Path(path).is_dir()
    mend = "move it out of the folder, or name it in a .rayignore there" if is_folder else "take it out"
    try:
        sizes = packed(found, excludes) if is_folder else _in_archive(found)
        private = next(_private(found, sizes), None)
    except (OSError, ValueError, EOFError, zlib.error, lzma.LZMAError, tarfile.TarError, zipfile.BadZipFile) as error:
        raise InputError(f"submit: {path} cannot be read ({error})") from None
    if private:
        raise InputError(f"submit: {private[0]} is {private[1]} and would be sent along; {mend}")
    if sum(sizes.values()) > MOST_BYTES:
        largest = sorted(sizes, key=lambda name: -sizes[name])[:3]
        told = ", ".join(f"{name} ({sizes[name] / 1e6:.3g} MB)" for name in largest)
        raise InputError(
            f"submit: {path} would send {sum(sizes.values()) / 1e6:.3g} MB to every node, most of it {told}; jobs read "
            f"data from shared storage: {mend.replace('it', 'them', 1)}"
        )


def _private(root: Path, names: Iterable[str]) -> Iterator[tuple[Path, str]]:
    """Which of the files below a folder, or in an archive, should not travel, and what they are."""
    for name in names:
        path = root / name
        if what := _by_name(name):
            yield path, what
        elif root.is_dir() and _is_key(path):
            yield path, "a private key"
        elif root.is_dir() and name.lower().endswith(ARCHIVES):
            yield from _private(path, _in_archive(path))


def _by_name(name: str) -> str | None:
    *folders, last = Path(name.lower()).parts
    if any(folder.endswith("-whois") for folder in folders):
        return "the source ids beside a keyring"
    found = (what for pattern, what in PRIVATE.items() if fnmatch.fnmatchcase(last, pattern))
    return None if last.endswith(TEMPLATES) else next(found, None)


def _is_key(path: Path) -> bool:
    """By how it begins; in a *.pem or *.key other things may stand before the key."""
    named = path.suffix.lower() in (".pem", ".key")
    with path.open("rb") as file:
        start = file.read(KEY_BYTES if named else 400)
    return b"PRIVATE KEY-----" in start and (named or start.startswith(b"-----BEGIN "))


def packed(folder: Path, excludes: Sequence[str]) -> dict[str, int]:
    """The files that Ray sends of a folder, by its own rules (.gitignore, .rayignore), with their sizes in bytes."""
    from ray._private.ray_constants import RAY_RUNTIME_ENV_IGNORE_GITIGNORE
    from ray._private.runtime_env import packaging

    sizes: dict[str, int] = {}

    def note(path: Path) -> None:
        if path.is_file():
            sizes[str(path.relative_to(root))] = path.stat().st_size

    root = folder.resolve()
    quiet = logging.Logger("manyview.upload", logging.WARNING)  # or each ignore file would be named, here and again
    heeded = os.environ.get(RAY_RUNTIME_ENV_IGNORE_GITIGNORE, "0") != "1"
    excluded = [packaging._get_excludes(root, list(excludes))]
    packaging._dir_travel(root, excluded, note, include_gitignore=heeded, logger=quiet)
    return sizes


def _default_excludes() -> list[str]:
    """What Ray leaves out of a working folder, but of no module."""
    from ray._private.ray_constants import get_runtime_env_default_excludes

    return list(get_runtime_env_default_excludes())


def _in_archive(path: Path) -> dict[str, int]:
    """The files of an archive or a wheel, or a file itself, with their sizes in bytes."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            return {entry.filename: entry.file_size for entry in archive.infolist() if not entry.is_dir()}
    if path.suffix != ".py" and tarfile.is_tarfile(path):
        with tarfile.open(path) as archive:
            return {entry.name: entry.size for entry in archive if not entry.isdir()}
    return {path.name: path.stat().st_size}
