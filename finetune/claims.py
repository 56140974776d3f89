"""Whose results a folder holds: what they are made with is written before anything is computed."""

from typing import Any

from clusters.config import InputError, differences
from clusters.storage import Folder

CONFIG, SWEEP = "config.json", "sweep.json"
"""What one model of a folder was made with, and what all models of one that holds many have in common."""
TRAINED, SWEPT = ("results.json",), ("points", "efficiency.json", "search.json")
"""What they leave beside that."""


def is_begun(out: Folder, identity: dict[str, Any]) -> bool:
    """Whether a model was begun here with this identity; False in a new folder. Raises InputError for another's."""
    if not out.exists(CONFIG):
        _refuse_unknown(out, CONFIG, TRAINED)
        return False
    _refuse_others(out, out.read_json(CONFIG)["identity"], identity)
    return True


def begin(out: Folder, identity: dict[str, Any], config: dict[str, Any]) -> None:
    """Make the folder that of this model."""
    out.write_json(CONFIG, {"identity": identity, "config": config})


def claim(out: Folder, identity: dict[str, Any]) -> None:
    """Make the folder that of these models. Raises InputError where it is that of others."""
    if out.exists(SWEEP):
        _refuse_others(out, out.read_json(SWEEP), identity)
    elif out.exists(CONFIG):
        raise InputError(f"{out}: holds the results of another command; give another out=")
    else:
        _refuse_unknown(out, SWEEP, SWEPT)
    out.write_json(SWEEP, identity)


def _refuse_unknown(out: Folder, made_with: str, left: tuple[str, ...]) -> None:
    """What was begun is gone on with only where it is known what it was made with."""
    there = next((name for name in left if out.exists(name)), None)
    if there is not None:
        raise InputError(
            f"{out}: {there} stands there and {made_with}, which tells what it was made with, is gone; restore it from "
            "a backup, give another out=, or remove this folder"
        )


def _refuse_others(out: Folder, before: dict[str, Any], identity: dict[str, Any]) -> None:
    changed = differences(before, identity)
    if changed:
        raise InputError(
            f"{out}: made with another config ({'; '.join(changed[:3])}); give another out=, or remove this folder"
        )
