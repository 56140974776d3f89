"""What a node can do for a run, looked at before anything waits for it: `look` on each node, `judge` once.

`look` takes and returns what can be sent between processes; it needs no Ray, and whoever has nodes maps it over them.
"""

import platform
import shutil
import socket
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path

from clusters.config import InputError
from clusters.storage import Folder

PACKAGES = ("torch", "torchvision", "timm", "ray", "numpy", "safetensors", "pyarrow")
"""Whose versions decide what a step computes, or whether processes understand each other."""


@dataclass(frozen=True)
class NodeReport:
    """What one node found: problems as sentences, versions by package, free bytes where the run folder is local."""

    host: str
    problems: list[str] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=dict)
    free_bytes: int | None = None


def look(run: str, datasets: Sequence[str]) -> NodeReport:
    """Write to, read from and tidy the run folder, read each dataset's manifest, and tell versions and free space."""
    problems = [problem for problem in [_unwritable(run), *map(_unreadable, datasets)] if problem]
    versions = {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}}
    return NodeReport(socket.gethostname(), problems, versions, _free_bytes(Folder(run)))


def judge(here: NodeReport, nodes: Sequence[NodeReport], needed_bytes: int) -> None:
    """Raise InputError for the first node on which the run would fail, or would compute something else.

    `needed_bytes`: what checkpoints take at most, as the function of that name has it.
    """
    for node in [here, *nodes]:
        if node.problems:
            raise InputError(f"on {node.host}: {node.problems[0]}")
        if node.free_bytes is not None and node.free_bytes < needed_bytes:
            raise InputError(
                f"on {node.host}: the run folder's disk has {node.free_bytes / 1e9:.3g} GB free and checkpoints take "
                f"{needed_bytes / 1e9:.3g} GB; free some, lower checkpoint.keep or give another run="
            )
        for name, version in here.versions.items():
            if node.versions.get(name) != version:
                raise InputError(
                    f"on {node.host}: {name} is {node.versions.get(name)} and {version} on {here.host}; install the "
                    "same requirements.lock, or the same image, on every node"
                )


def needed_bytes(state_bytes: int, keep: int) -> int:
    """Free space that checkpoints of a state ask for: those kept and the one that is written before the oldest goes."""
    return state_bytes * (keep + 1)


def _unwritable(location: str) -> str | None:
    name, content = f".preflight-{uuid.uuid4().hex}", uuid.uuid4().bytes
    try:
        folder = Folder(location)
        folder.write(name, content)
        if folder.read(name) != content:
            return f"{location} does not give back what was written to it; choose another storage"
        folder.remove(name)
    except OSError as error:
        return (
            f"{location} cannot be written ({error.strerror or error}); it must be on storage that every node may write"
        )
    return None


def _unreadable(location: str) -> str | None:
    try:
        Folder(location).read_json("manifest.json")
    except (OSError, ValueError) as error:
        told = error.strerror if isinstance(error, OSError) and error.strerror else error
        return f"the dataset {location} cannot be read ({told}); it must be on storage that every node may read"
    return None


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "missing"


def _free_bytes(run: Folder) -> int | None:
    if run.path is None:
        return None
    there = next(path for path in [run.path, *run.path.parents, Path("/")] if path.exists())
    return shutil.disk_usage(there).free
