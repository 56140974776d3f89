"""With which code figures, features and models were made, and what of it is other here."""

from collections.abc import Sequence
from importlib import metadata
from typing import Any

from clusters.config import differences
from clusters.storage import Folder
from clusters.versions import versions_here

VERSIONS = "versions.json"
"""In a folder of features: with what its first part was computed."""

Part = tuple[str, Any]
"""What was made, and the versions with which; None where nobody noted them."""


def versions() -> dict[str, str]:
    """Of the packages that figures depend on, torch with its build, and of our own sources by a short hash."""
    import torch

    of_figures = {name: metadata.version(name) for name in ("scikit-learn", "scipy")}
    return {**versions_here(), **of_figures, "torch": str(torch.__version__)}


def note_versions(folder: Folder) -> None:
    """Write down with what a folder of features is begun."""
    folder.write_json(VERSIONS, versions())


def changed(before: Any) -> list[str]:
    """What of versions noted before is other here, `name: before -> here`; empty where they were not noted."""
    if not isinstance(before, dict):
        return []
    here = versions()
    return differences(before, {name: here.get(name) for name in before})  # earlier versions noted fewer packages


def made_with_other_code(parts: Sequence[Part]) -> list[str]:
    """Sentences for the warnings of results: which parts were made with other code than is here, and what differs."""
    found: dict[str, list[str]] = {}
    for what, before in parts:
        if told := "; ".join(changed(before)):
            found.setdefault(told, []).append(what)
    return [
        f"made earlier, with other code than the rest, so that the same command may give other figures: "
        f"{', '.join(whats)} ({told})"
        for told, whats in found.items()
    ]
