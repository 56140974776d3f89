"""Container images and packages by exact version."""

import itertools
import re
from collections.abc import Iterator

from clusters.checks.words import commands_in

PIP = re.compile(r"(?:.*/)?pip[\d.]*")
# Options of pip and uv whose value is the next word.
# fmt: off
VALUED = (
    "-r", "--requirement", "--requirements", "-p", "--python", "--cache-dir", "--target", "--prefix", "-i",
    "--index-url", "--default-index",
)
# fmt: on
# Another index in the place of PyPI may stand, since hashes hold what it serves; one beside PyPI may not.
ELSEWHERE = re.compile(
    r"--(?:no-require-hashes|no-verify-hashes|index|extra-index-url|find-links|trusted-host"
    r"|allow-insecure-host|config-file)(?:=|$)|-f"
)
OTHERS = re.compile(r"(?:.*/)?(?:uvx|pipx|conda|mamba|micromamba|easy_install|poetry)")


def is_pinned(image: str) -> bool:
    """Whether an image's name says which one: by digest, or by a tag with a full version."""
    name = image.rsplit("/", 1)[-1]
    return "@sha256:" in name or re.search(r":v?\d+\.\d+\.\d+", name) is not None


def wrong_installs(command: str) -> Iterator[tuple[str, str]]:
    """`(what, mend)` for what pip and uv install in some shell text otherwise than from a lock, by hash, and it alone.

    A version does not hold what a package brings along, nor who serves it.
    """
    for words in commands_in(command):
        for word in words:
            if re.search(r"\s", word):  # a command for another shell
                yield from wrong_installs(word)
        if _installs_otherwise(words):
            yield "this installs what requirements.lock does not hold", "install from the lock by uv pip"
        client = next((place for place, word in enumerate(words) if PIP.fullmatch(word)), len(words))
        behind = words[client + 1 :]
        start = next((place for place, word in enumerate(behind) if word in ("install", "sync")), None)
        if start is not None:
            yield from _wrong_install(behind[start], behind[:start] + behind[start + 1 :])


def _installs_otherwise(words: list[str]) -> bool:
    """Whether a command installs by what knows no lock of ours."""
    for place, word in enumerate(words):
        asked = next((after for after in words[place + 1 :] if not after.startswith("-")), "")
        if OTHERS.fullmatch(word) or (re.fullmatch(r"(?:.*/)?uv", word) and asked in ("add", "run", "sync", "tool")):
            return bool(words[place + 1 :]) and asked not in ("activate", "info", "list")
    return False


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
