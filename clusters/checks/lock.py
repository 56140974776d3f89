"""A lock of packages: each at one version, by hash, from no place of its own, and without a known advisory."""

import functools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from clusters.checks.mistakes import Mistake, line_at

ADVISORIES = Path(__file__).with_name("advisories.yaml")
PACKAGE = re.compile(r"(?m)^(?P<name>[A-Za-z0-9][\w.-]*)(?P<rest>(?:[^\n]*\\\n)*[^\n]*)")


def check_lock(text: str) -> Iterator[Mistake]:
    """What is wrong with a requirements.lock; asks nobody, so that it knows only the advisories that are listed."""
    from packaging.specifiers import SpecifierSet

    for match in PACKAGE.finditer(text):
        name, line = match["name"], line_at(text, match.start())
        version = re.match(r"(?:\[[^\]]*\])?==([\w.!+-]+)", match["rest"])
        if version is None:
            yield Mistake(line, f"{name} is at no one version", "make the lock again: make lock")
            continue
        if "--hash=sha256:" not in match["rest"]:
            yield Mistake(line, f"{name} has no hash", "make the lock again: make lock")
        for advisory in _advisories().get(name.lower().replace("_", "-"), []):
            if SpecifierSet(advisory["versions"], prereleases=True).contains(version[1]):
                what = f"{name} {version[1]} has {advisory['id']}: {advisory['what']}"
                yield Mistake(line, what, f"take one that is not {advisory['versions']}, and make lock")


@functools.cache
def _advisories() -> dict[str, list[dict[str, Any]]]:
    listed: dict[str, list[dict[str, Any]]] = {}
    for advisory in yaml.safe_load(ADVISORIES.read_text(encoding="utf-8")):
        listed.setdefault(advisory["package"], []).append(advisory)
    return listed
