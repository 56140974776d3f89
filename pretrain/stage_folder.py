"""What a stage has left in its folder. Nothing that is out of reach or damaged is taken for missing."""

import hashlib
import re
from dataclasses import dataclass, field
from typing import Any

from clusters.attempt import ATTEMPT
from clusters.config import InputError, differences
from clusters.storage import Folder

CONFIG, FINISHED = "config.json", "finished.json"
MARKS = (ATTEMPT, FINISHED)
"""What a stage leaves beside its config.json, and after it."""


@dataclass(frozen=True)
class Finished:
    """A stage that came to its end: how many steps it took, the fingerprint of its encoder, and its heads' SHA-256."""

    steps: int
    encoder: str
    heads: dict[str, str] = field(default_factory=dict)


def stages_on_disk(run: Folder) -> dict[int, str]:
    """The stage folders that Manyview wrote, by their place. Raises OSError where storage does not say."""
    named = {name: re.fullmatch(r"([1-9]\d*)-[a-z0-9_]+", name) for name in run.names()}
    return {int(found[1]): name for name, found in named.items() if found and _is_stage(run / name)}


def _is_stage(folder: Folder) -> bool:
    """By its config.json or, where that is gone or damaged, by what a stage leaves beside it."""
    stored = _read(folder, CONFIG)
    return "identity" in (stored or {}) or any(map(folder.exists, MARKS))


def stored_config(folder: Folder) -> dict[str, Any] | None:
    """What a stage was made with: its `identity` and `config`; None where config.json is gone or damaged."""
    stored = _read(folder, CONFIG)
    return stored if stored is not None and isinstance(stored.get("identity"), dict) else None


def other_code(folder: Folder, here: dict[str, str]) -> str:
    """What differs in the code here from that with which a stage was last at work; empty where nothing is known to.

    No reason to refuse: the same steps differ in their last bits at most, or the notes of a release say so.
    """
    before = (_read(folder, CONFIG) or {}).get("versions")
    changed = differences(before, here) if isinstance(before, dict) else []
    return f"goes on with other code than before, so that last bits may differ: {'; '.join(changed)}" if changed else ""


def finished(folder: Folder) -> Finished | None:
    """What a stage ended with; None where it has not ended. Raises InputError where that is damaged."""
    if not folder.exists(FINISHED):
        return None
    told = _read(folder, FINISHED) or {}
    try:
        return Finished(int(told["steps"]), str(told["encoder"]), dict(told.get("heads", {})))
    except (KeyError, TypeError, ValueError):
        raise InputError(
            f"{folder.file(FINISHED)}: damaged; restore it from a backup, or remove {folder} and the stages after it "
            "to do them again"
        ) from None


def harm_of_heads(folder: Folder) -> str | None:
    """What is wrong with the heads that a finished stage leaves for the next one; old stages do not tell."""
    ended = finished(folder)
    for name, sha256 in ended.heads.items() if ended is not None else ():
        if not folder.exists(name):
            return f"{name} is gone"
        if hashlib.sha256(folder.read(name)).hexdigest() != sha256:
            return f"{name} was altered"
    return None


def _read(folder: Folder, name: str) -> dict[str, Any] | None:
    try:
        value = folder.read_json(name)
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None
    return value if isinstance(value, dict) else None
