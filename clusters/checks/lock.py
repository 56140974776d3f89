"""A lock of packages: each at one version, by hash, from no place of its own, and without a known advisory."""

import functools
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from clusters.checks.mistakes import Mistake, line_at

ADVISORIES = Path(__file__).with_name("advisories.yaml")
HASH = re.compile(r"\s+--hash=sha256:[0-9a-f]+\s*\\?$")
PACKAGE = re.compile(r"(?m)^(?P<name>[A-Za-z0-9][\w.-]*)(?P<rest>(?:[^\n]*\\\n)*[^\n]*)")


def check_lock(text: str, needed: Sequence[str] = ()) -> Iterator[Mistake]:
    """What is wrong with a lock; asks nobody, so that it knows only the advisories that are listed.

    `needed`: packages without which it is not whole.
    """
    from packaging.specifiers import SpecifierSet

    text = "\n".join(text.splitlines())  # as pip takes it apart, form feeds and the like too
    yield from _check_lines(text)
    names = {match["name"].lower() for match in PACKAGE.finditer(text)}
    for name in needed if names else ["any package"]:
        if name not in names:
            yield Mistake(1, f"the lock is without {name}", "make the lock again: make lock")
    for match in PACKAGE.finditer(text):
        name, line = match["name"], line_at(text, match.start())
        version = re.match(r"(?:\[[^\]]*\])?==([\w.!+-]+)(?=[\s;]|$)", match["rest"])
        if version is None:
            yield Mistake(line, f"{name} is at no one version", "make the lock again: make lock")
            continue
        if "--hash=sha256:" not in match["rest"]:
            yield Mistake(line, f"{name} has no hash", "make the lock again: make lock")
        for advisory in _advisories().get(name.lower().replace("_", "-"), []):
            if SpecifierSet(advisory["versions"], prereleases=True).contains(version[1]):
                what = f"{name} {version[1]} has {advisory['id']}: {advisory['what']}"
                yield Mistake(line, what, f"take one that is not {advisory['versions']}, and make lock")


def _check_lines(text: str) -> Iterator[Mistake]:
    """Each line begins a package or is a hash of the one before. Options, which pip takes too, could say from where."""
    continued = False
    for number, line in enumerate(text.splitlines(), start=1):
        hashed = continued and HASH.match(line)
        begins = not continued and re.match(r"[A-Za-z0-9]|\s*(?:#|$)", line)
        option = re.search(r"(?:^|\s)(?!--hash=sha256:)(-[\w-]+)", line.partition("#")[0])
        if not (hashed or begins) or option is not None:
            shown = option[1] if option is not None else line.split()[0] if line.split() else "an empty line"
            what = f"{shown} is neither a package nor a hash of one; it could bring packages from elsewhere"
            yield Mistake(number, what, "take it out, or make the lock again: make lock")
        continued = line.endswith("\\") and not line.lstrip().startswith("#")


@functools.cache
def _advisories() -> dict[str, list[dict[str, Any]]]:
    listed: dict[str, list[dict[str, Any]]] = {}
    for advisory in yaml.safe_load(ADVISORIES.read_text(encoding="utf-8")):
        listed.setdefault(advisory["package"], []).append(advisory)
    return listed
