"""Container images and packages by exact version."""

import itertools
import re
from collections.abc import Iterator

from clusters.checks.words import commands_in

PINNED_PACKAGE = re.compile(r"==|@ |--require-hashes")
PIP = re.compile(r"(?:.*/)?pip[\d.]*")
# Options of pip and uv whose value is the next word.
VALUED = ("-r", "--requirement", "--requirements", "-p", "--python", "--cache-dir", "--target", "--prefix")
ELSEWHERE = re.compile(
    r"--(?:no-require-hashes|no-verify-hashes|index|default-index|index-url|extra-index-url|find-links|trusted-host"
    r"|allow-insecure-host|config-file)(?:=|$)|-[if]"
)
INSTALL = re.compile(r"\bpip install\b(?P<rest>[^;&|\n]*)")


def is_pinned(image: str) -> bool:
    """Whether an image's name says which one: by digest, or by a tag with a full version."""
    name = image.rsplit("/", 1)[-1]
    return "@sha256:" in name or re.search(r":v?\d+\.\d+\.\d+", name) is not None


def unpinned_installs(command: str) -> list[str]:
    """The packages that a command's `pip install` names without a version, unless hashes are asked for."""
    found = []
    for match in INSTALL.finditer(command):
        words = [word.strip("\"'") for word in match["rest"].split()]
        if "--require-hashes" not in words:
            found += [w for w in words if re.match(r"[A-Za-z]", w) and not PINNED_PACKAGE.search(w) and w != "."]
    return found


def wrong_installs(command: str) -> Iterator[tuple[str, str]]:
    """`(what, mend)` for what pip and uv install in some shell text otherwise than from a lock, by hash, and it alone.

    A version does not hold what a package brings along, nor who serves it.
    """
    for words in commands_in(command):
        for word in words:
            if re.search(r"\s", word):  # a command for another shell
                yield from wrong_installs(word)
        client = next((place for place, word in enumerate(words) if PIP.fullmatch(word)), len(words))
        behind = words[client + 1 :]
        start = next((place for place, word in enumerate(behind) if word in ("install", "sync")), None)
        if start is not None:
            yield from _wrong_install(behind[start], behind[:start] + behind[start + 1 :])


def _wrong_install(verb: str, words: list[str]) -> Iterator[tuple[str, str]]:
    mend = "name it in a lock with hashes, and write --no-deps --require-hashes --requirement LOCK"
    if verb == "install":  # what `uv pip sync` is given are locks
        behind_options = [after for word, after in itertools.pairwise(words) if word in VALUED]
        for word in words:
            if re.match(r"[A-Za-z0-9./]", word) and word not in behind_options:
                yield f"{word} is installed beside the lock, with whatever it brings along", mend
        if "--no-deps" not in words:
            yield "without --no-deps an install moves what the lock has set", mend
    if "--require-hashes" not in words:
        yield f"`pip {verb}` without --require-hashes takes whatever is served", mend
    for word in words:
        if ELSEWHERE.match(word):
            yield f"{word.partition('=')[0]} turns hashes off or takes packages from elsewhere", "take it out"
