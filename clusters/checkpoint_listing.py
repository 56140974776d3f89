"""What checkpoints a stage has and which of them are whole. Reads only: no attempt is begun, nothing is set aside."""

import json
from dataclasses import dataclass

from clusters.checkpoint import MANIFEST
from clusters.storage import Folder

DAMAGED = "damaged-"


@dataclass(frozen=True)
class Listed:
    """One checkpoint: the step of its name, its size, and what is wrong with it, if anything is.

    `committed`: its saving came to an end, so that it counts, and damage to it is damage.
    """

    name: str
    step: int
    size_bytes: int
    committed: bool
    problem: str | None


def list_checkpoints(folder: Folder) -> list[Listed]:
    """The checkpoints of a stage, newest first, each verified by size and SHA-256; those set aside come last."""
    at = folder / "checkpoints"
    sizes: dict[str, dict[str, int]] = {}
    for path, size in at.sizes().items() if at.exists() else ():
        name, _, file = path.partition("/")
        if file:
            sizes.setdefault(name, {})[file] = size
    listed = [
        Listed(
            name,
            _step(name),
            sum(files.values()),
            MANIFEST in files or name.startswith(DAMAGED),
            _problem(at / name, name, files),
        )
        for name, files in sizes.items()
    ]
    return sorted(listed, key=lambda one: (not one.name.startswith(DAMAGED), one.step), reverse=True)


def _problem(folder: Folder, name: str, sizes: dict[str, int]) -> str | None:
    if name.startswith(DAMAGED):
        return "was found damaged and set aside"
    if MANIFEST not in sizes:
        return f"has no {MANIFEST}, as if its saving had been cut off"
    try:
        manifest = folder.read_json(MANIFEST)
        if manifest["step"] != _step(name):
            return f"says that it stands at step {manifest['step']}"
        for file, expected in manifest["files"].items():
            if file not in sizes:
                return f"{file} is missing"
            if sizes[file] != expected["size"]:
                return f"{file} has {sizes[file]} bytes instead of {expected['size']}"
            if folder.sha256(file) != expected["sha256"]:
                return f"{file} does not match its hash"
    except (OSError, json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, AttributeError) as error:
        return f"{MANIFEST} cannot be read ({type(error).__name__})"
    return None


def _step(name: str) -> int:
    digits = name.removeprefix(DAMAGED).removeprefix("step-").split("-")[0]
    return int(digits) if digits.isdigit() else -1
