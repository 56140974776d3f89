"""Results that carry the hash of themselves, so that a figure that was changed later is not printed as measured."""

import hashlib
import json
from typing import Any

from clusters.config import InputError
from clusters.storage import Folder

SEAL = "sha256"
"""Of all else in the file, as JSON with sorted keys."""


def sealed(told: dict[str, Any]) -> dict[str, Any]:
    """What is to be written, with its hash; whoever writes a changed one must seal it again."""
    return {**told, SEAL: _sha256_of(told)}


def is_altered(told: Any) -> bool:
    """Whether something was changed since it was sealed; what carries no seal passes."""
    return not isinstance(told, dict) or (SEAL in told and told[SEAL] != _sha256_of(told))


def read_sealed(folder: Folder, name: str) -> dict[str, Any]:
    """A JSON file of results.

    Raises FileNotFoundError, and InputError where it is damaged or was changed since it was written.
    """
    told = folder.read_json(name)
    if not isinstance(told, dict):
        raise InputError(f"{folder.file(name)}: holds no results; run the command that made it again")
    if is_altered(told):
        raise InputError(f"{folder.file(name)} was altered (its own hash differs); run the command that made it again")
    return told


def _sha256_of(told: dict[str, Any]) -> str:
    as_read = json.loads(json.dumps({key: value for key, value in told.items() if key != SEAL}))  # keys are texts there
    return hashlib.sha256(json.dumps(as_read, sort_keys=True).encode()).hexdigest()
