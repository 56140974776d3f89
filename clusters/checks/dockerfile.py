"""Dockerfiles: everything pinned, nothing fetched unseen, not as root, and no more copied than is meant."""

import json
import re
from collections.abc import Iterator

from clusters.checks.images import is_pinned, wrong_installs
from clusters.checks.mistakes import Mistake
from clusters.checks.tokens import turns_tokens_off
from clusters.config import nearest

# fmt: off
INSTRUCTIONS = [
    "ADD", "ARG", "CMD", "COPY", "ENTRYPOINT", "ENV", "EXPOSE", "FROM", "HEALTHCHECK", "LABEL", "ONBUILD", "RUN",
    "SHELL", "STOPSIGNAL", "USER", "VOLUME", "WORKDIR",
]
# fmt: on

# Variables by which pip and uv are told the same as by their options.
INSTALLERS = re.compile(
    r"\b(?:PIP|UV)_(?:\w*INDEX\w*|FIND_LINKS|TRUSTED_HOST|INSECURE_HOST|CONFIG_FILE|\w*_HASHES|CONSTRAINT)\b"
)


def check_dockerfile(text: str) -> Iterator[Mistake]:
    """What is wrong with a Dockerfile."""
    instructions = list(_instructions(text))
    for line, word, rest in instructions:
        if word not in INSTRUCTIONS:
            yield Mistake(line, f"Docker knows no {word}{nearest(word, INSTRUCTIONS)}", "mend it")
        if word == "FROM" and not is_pinned(rest.split()[0]):
            mend = "give a tag with a full version (python:3.11.14-slim-bookworm) or a digest"
            yield Mistake(line, f"the base {rest.split()[0]} is not pinned", mend)
        if word == "ADD":
            yield Mistake(line, "ADD fetches URLs and unpacks archives unseen", "COPY files that are in the project")
        if word == "COPY" and re.match(r"(?:--\S+\s+)*\.\s", rest):
            mend = "name what is meant: `.` takes .git, tokens and data along"
            yield Mistake(line, "COPY . takes whatever lies in the folder", mend)
        if word == "RUN":
            yield from _check_run(line, rest)
        if word in ("ARG", "ENV", "RUN") and (setting := INSTALLERS.search(rest)):
            what = f"{setting[0]} turns hashes off or takes packages from elsewhere"
            yield Mistake(line, what, "take it out: the lock says which files are right")
        if turns_tokens_off(rest) or (word == "ENV" and rest.startswith("RAY_AUTH_MODE ")):
            yield Mistake(line, "token authentication is turned off", "write `ENV RAY_AUTH_MODE=token`")
    if not any(re.search(r"--require-hashes [^&;]*requirements\.lock", rest) for _, _, rest in instructions):
        yield Mistake(1, "packages do not come from requirements.lock by hash", "`uv pip sync --require-hashes` it")
    users = [(line, rest) for line, word, rest in instructions if word == "USER"]
    if not users or users[-1][1].split(":")[0] in ("root", "0"):
        yield Mistake(
            users[-1][0] if users else 1, "the container runs as root", "end with `USER` and a user of its own"
        )
    if not any(word == "ENV" and "RAY_AUTH_MODE=token" in rest for _, word, rest in instructions):
        yield Mistake(1, "token authentication is not on", "add `ENV RAY_AUTH_MODE=token`")


def _check_run(line: int, command: str) -> Iterator[Mistake]:
    if re.search(r"\b(?:curl|wget)\b\s+\S*[^|]*\|\s*(?:ba)?sh\b", command):
        yield Mistake(line, "what is downloaded is run unseen", "install from the lock or from the distribution")
    if "sudo " in command:
        yield Mistake(line, "sudo has no place in an image", "do it before USER")
    if re.search(r"\buv\s+(?:add|run|sync|tool)\b|\b(?:uvx|pipx|conda|mamba|micromamba|easy_install)\s", command):
        yield Mistake(line, "this installs what requirements.lock does not hold", "install from the lock by uv pip")
    for what, mend in wrong_installs(command):
        yield Mistake(line, what, mend)


def _instructions(text: str) -> Iterator[tuple[int, str, str]]:
    """Each instruction with its first line's number: its word and the rest, continued lines joined."""
    lines = text.splitlines()
    number = 0
    while number < len(lines):
        first, joined = number, lines[number].strip()
        while joined.endswith("\\") and number + 1 < len(lines):
            number += 1
            following = lines[number].strip()
            joined = joined[:-1] + ("\\" if following.startswith("#") else " " + following)
        number += 1
        if joined and not joined.startswith("#"):
            word, _, rest = joined.partition(" ")
            yield first + 1, word.upper(), _joined(rest.strip())


def _joined(rest: str) -> str:
    """What an instruction says, its words joined where it lists them: RUN ["pip", "install", "x"]."""
    try:
        words = json.loads(rest)
    except ValueError:
        return rest
    return " ".join(map(str, words)) if isinstance(words, list) else rest
