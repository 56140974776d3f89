"""What commands that train many models share."""

from typing import Any

from clusters.config import InputError, differences
from clusters.storage import Folder

SWEEP = "sweep.json"
"""What all models of a folder have in common."""


def claim(out: Folder, identity: dict[str, Any]) -> None:
    """Make the folder that of these models. Raises InputError where it is that of others."""
    if out.exists(SWEEP):
        changed = differences(out.read_json(SWEEP), identity)
        if changed:
            raise InputError(
                f"{out}: made with another config ({'; '.join(changed[:3])}); give another out=, or remove this folder"
            )
    elif out.exists("config.json"):
        raise InputError(f"{out}: holds the results of another command; give another out=")
    out.write_json(SWEEP, identity)
