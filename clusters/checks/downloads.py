"""What is downloaded and then run, with nobody having looked at it and no hash that would hold it."""

import posixpath
import re
from collections.abc import Iterator

from clusters.checks.words import separated

LOADERS = re.compile(r"(?:.*/)?(?:curl|wget|aria2c)")
RUNNERS = re.compile(
    r"(?:.*/)?(?:(?:ba|da|z|k)?sh|python[\d.]*|perl|ruby|node|source|\.|eval|exec|dpkg|rpm|apt|apt-get)"
)
# These take code from where their first argument says; with one that is no option, what is piped in is only data.
LANGUAGES = re.compile(r"(?:.*/)?(?:python[\d.]*|perl|ruby|node)")
CHECKSUMS = re.compile(r"sha(?:256|384|512)sum|shasum")
# A download in the place of a word: <(curl …), $(wget …).
IN_PLACE = re.compile(r"(?:<\(|\$\(|`)\s*(?:\S*/)?(?:curl|wget|aria2c)\b")
NAMED = re.compile(r"(?:--output(?:-document)?=?|>+|-\w*[oO])(?P<name>[^\s-].*)?")
RUN_UNSEEN = "what is downloaded is run unseen"


def runs_downloads(text: str, loaded: set[str]) -> bool:
    """Whether some shell text runs what it downloads, or what was downloaded before it.

    `loaded` has the names of files that were downloaded so far, and is added to: they may be run by a later command.
    """
    piped = False  # whether a download comes in through the pipe
    for before, words, after in separated(text):
        piped = piped and before in ("|", "|&")
        runner = next((place for place, word in enumerate(words) if RUNNERS.fullmatch(word.lstrip("({"))), None)
        if runner is not None and (
            (piped and _reads_code(words[runner:])) or any(IN_PLACE.search(word) for word in words[runner + 1 :])
        ):
            return True
        if (
            CHECKSUMS.fullmatch(words[0])
            and re.search(r" (?:-\w*c|--check)\b", " ".join(words))
            and after in ("&&", "")
        ):
            loaded.clear()  # what a hash holds; where it does not, nothing more is run
        if any(_runs(words, runner, name) for name in loaded):
            return True
        if any(runs_downloads(word, loaded) for word in words if re.search(r"\s", word)):
            return True
        loader = next((place for place, word in enumerate(words) if LOADERS.fullmatch(word.lstrip("({"))), None)
        if loader is not None:
            loaded.update(_names(posixpath.basename(words[loader].lstrip("({")), words[loader + 1 :]))
        if piped and words[0] == "tee":
            loaded.update(map(posixpath.basename, words[1:]))
        piped = (piped or loader is not None) and after in ("|", "|&")
    return False


def _reads_code(words: list[str]) -> bool:
    """Whether a shell or a language, with these words, runs what is piped in."""
    arguments = [word for word in words[1:] if word == "-" or word in ("-c", "-m", "-e") or not word.startswith("-")]
    return LANGUAGES.fullmatch(words[0]) is None or arguments[:1] in ([], ["-"], ["/dev/stdin"])


def _runs(words: list[str], runner: int | None, name: str) -> bool:
    """Whether a command runs a file of this name: by itself, by what runs files, or after making it a program."""
    for place, word in enumerate(words):
        if posixpath.basename(word) == name:
            by_itself = all("=" in other or other in ("sudo", "then", "do", "nohup") for other in words[:place])
            given = runner is not None and runner < place
            if given and LANGUAGES.fullmatch(words[runner or 0]):
                given = all(other.startswith("-") for other in words[(runner or 0) + 1 : place])
            return by_itself or given or (words[0] == "chmod" and "x" in words[1])
    return False


def _names(loader: str, words: list[str]) -> Iterator[str]:
    """Under which names a download with these words lays its files: those that it is told, and those of its URLs.

    Without -O curl lays down none of the latter.
    """
    of_urls = loader != "curl" or any(re.match(r"-\w*O|--remote-name", word) for word in words)
    for place, word in enumerate(words):
        option = NAMED.fullmatch(word)
        following = "".join(words[place + 1 : place + 2])
        name = (option["name"] or following) if option is not None else word if "/" in word and of_urls else ""
        name = posixpath.basename(re.sub(r"[?#].*", "", name))
        if name and not name.startswith("-"):
            yield name
