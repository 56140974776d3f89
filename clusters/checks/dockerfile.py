"""Dockerfiles: everything pinned, nothing fetched unseen, not as root, and no more copied than is meant."""

import re
from collections.abc import Iterator

from clusters.checks.images import is_pinned, unpinned_installs
from clusters.checks.mistakes import Mistake
from clusters.checks.ray_options import TOKENS_OFF
from clusters.config import nearest

# fmt: off
INSTRUCTIONS = [
    "ADD", "ARG", "CMD", "COPY", "ENTRYPOINT", "ENV", "EXPOSE", "FROM", "HEALTHCHECK", "LABEL", "ONBUILD", "RUN",
    "SHELL", "STOPSIGNAL", "USER", "VOLUME", "WORKDIR",
]
# fmt: on


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
        if TOKENS_OFF.search(rest) or (word == "ENV" and rest.startswith("RAY_AUTH_MODE ")):
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
    for package in unpinned_installs(command):
        yield Mistake(line, f"{package} is installed in whatever version there is", f"write {package}==VERSION")


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
            yield first + 1, word.upper(), rest.strip()
