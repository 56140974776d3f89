"""Dockerfiles: everything pinned, nothing fetched unseen, not as root, and no more copied than is meant."""

import json
import posixpath
import re
from collections.abc import Iterator

from clusters.checks.downloads import RUN_UNSEEN, runs_downloads
from clusters.checks.images import is_pinned, wrong_installs
from clusters.checks.mistakes import Mistake
from clusters.checks.python_commands import wrong_python
from clusters.checks.tokens import opens_the_token, turns_tokens_off
from clusters.checks.words import commands_in
from clusters.config import nearest

# fmt: off
INSTRUCTIONS = [
    "ADD", "ARG", "CMD", "COPY", "ENTRYPOINT", "ENV", "EXPOSE", "FROM", "HEALTHCHECK", "LABEL", "ONBUILD", "RUN",
    "SHELL", "STOPSIGNAL", "USER", "VOLUME", "WORKDIR",
]
# fmt: on

# Variables by which pip and uv are told the same as by their options. Another index in the place of PyPI, a hospital's
# own, may stand: what it serves is held by hashes.
INSTALLERS = re.compile(
    r"\b(?!(?:PIP_INDEX_URL|UV_INDEX_URL|UV_DEFAULT_INDEX)\b)(?:PIP|UV)_"
    r"(?:\w*INDEX\w*|FIND_LINKS|TRUSTED_HOST|INSECURE_HOST|CONFIG_FILE|\w*_HASHES|CONSTRAINT)\b"
)
STAGE = re.compile(r"\sAS\s+(\S+)", re.IGNORECASE)
HEREDOC = re.compile(r"(?:^|\s)\d*<<(?P<indented>-?)(?P<quote>[\"']?)(?P<end>\w+)(?P=quote)(?=[\s;&|>)]|$)")
ARGUMENT = re.compile(r"\$(?:(\w+)|\{(\w+)(?::?-([^}]*))?\})")
Instruction = tuple[int, str, str]


def check_dockerfile(text: str) -> Iterator[Mistake]:
    """What is wrong with a Dockerfile."""
    instructions, loaded = _filled(list(_instructions(text))), set[str]()
    for line, word, rest in instructions:
        if word not in INSTRUCTIONS:
            yield Mistake(line, f"Docker knows no {word}{nearest(word, INSTRUCTIONS)}", "mend it")
        if word == "ADD":
            yield Mistake(line, "ADD fetches URLs and unpacks archives unseen", "COPY files that are in the project")
        for source in _whole_folders(rest) if word == "COPY" else ():
            mend = f"name what is meant: `{source}` takes .git, tokens and data along"
            yield Mistake(line, f"COPY {source} takes whatever lies in the folder", mend)
        commands = rest if word == "RUN" else rest.partition("\n")[2]  # a COPY's heredoc may be a script
        yield from _check_run(line, commands, loaded)
        for what, mend in wrong_python(rest) if word in ("RUN", "CMD", "ENTRYPOINT") else ():
            yield Mistake(line, what, mend)
        if word in ("ARG", "ENV", "RUN") and (setting := INSTALLERS.search(rest)):
            what = f"{setting[0]} turns hashes off or takes packages from elsewhere"
            yield Mistake(line, what, "take it out: the lock says which files are right")
        if opens_the_token(commands):
            yield Mistake(line, "others on the machine could read the token", "leave the file 0600")
        if turns_tokens_off(rest) or (word == "ENV" and rest.startswith("RAY_AUTH_MODE ")):
            yield Mistake(line, "token authentication is turned off", "write `ENV RAY_AUTH_MODE=token`")
    if not any(re.search(r"--require-hashes [^&;\n]*requirements\.lock", rest) for _, _, rest in instructions):
        yield Mistake(1, "packages do not come from requirements.lock by hash", "`uv pip sync --require-hashes` it")
    yield from _check_bases(instructions)
    yield from _check_image(_last_image(instructions))


def _whole_folders(rest: str) -> Iterator[str]:
    """Each source of a COPY that is the whole folder, or whatever lies in it."""
    words = rest.partition("\n")[0].split()
    of_folder = not any(word.startswith("--from=") for word in words)
    for source in [word.strip("\"'") for word in words if not word.startswith("--")][:-1]:
        plain = posixpath.normpath(source)
        if re.match(r"\.$|\.?\*", plain) or (of_folder and plain == "/"):
            yield source


def _check_image(instructions: list[Instruction]) -> Iterator[Mistake]:
    """What is wrong with what the image itself says: as whom it runs, and with which variables."""
    users = [(line, rest.strip("\"'")) for line, word, rest in instructions if word == "USER"]
    mend = "end with `USER` and a user of its own"
    if not users or re.fullmatch(r"(?:root|0+)?(?::.*)?", users[-1][1]):
        yield Mistake(users[-1][0] if users else 1, "the container runs as root", mend)
    elif "$" in users[-1][1]:
        yield Mistake(users[-1][0], "the container runs as whom a variable says, as root too", mend)
    stated = [rest for _, word, rest in instructions if word == "ENV"]
    if not any("RAY_AUTH_MODE=token" in words for rest in stated for words in commands_in(rest)):
        yield Mistake(1, "token authentication is not on", "add `ENV RAY_AUTH_MODE=token`")


def _check_bases(instructions: list[Instruction]) -> Iterator[Mistake]:
    """Whether each image that files are taken from is pinned, or a stage before."""
    stages: list[str] = []
    for line, word, rest in instructions:
        known = [*stages, *map(str, range(len(stages)))] if word != "FROM" else stages
        for base in _bases(word, rest):
            if not is_pinned(base) and base.lower() not in known:
                mend = "give a tag with a full version (python:3.11.14-slim-bookworm) or a digest"
                yield Mistake(line, f"the base {base} is not pinned", mend)
        if word == "FROM":
            named = STAGE.search(rest)
            stages.append(named[1].lower() if named else "")


def _last_image(instructions: list[Instruction]) -> list[Instruction]:
    """The instructions from the last FROM on: what the stages before it say is lost, unless it builds on one."""
    froms = [place for place, (_, word, _) in enumerate(instructions) if word == "FROM"]
    if not froms:
        return instructions
    base = next(_bases(*instructions[froms[-1]][1:]))
    for place, following in zip(froms[-2::-1], froms[:0:-1], strict=True):
        named = STAGE.search(instructions[place][2])
        if named is not None and named[1].lower() == base.lower():
            return _last_image(instructions[:following]) + instructions[froms[-1] :]
    return instructions[froms[-1] :]


def _bases(word: str, rest: str) -> Iterator[str]:
    """The images that an instruction takes files from."""
    if word == "FROM":
        yield next((part for part in rest.split() if not part.startswith("--")), "")
    elif word in ("COPY", "RUN"):
        yield from re.findall(r"(?:^|\s)--(?:mount=\S*?,)?from=([^\s,]+)", rest.partition("\n")[0])


def _check_run(line: int, command: str, loaded: set[str]) -> Iterator[Mistake]:
    if runs_downloads(command, loaded):
        yield Mistake(line, RUN_UNSEEN, "install from the lock or from the distribution")
    if "sudo " in command:
        yield Mistake(line, "sudo has no place in an image", "do it before USER")
    for what, mend in wrong_installs(command):
        yield Mistake(line, what, mend)


def _instructions(text: str) -> Iterator[Instruction]:
    """Each instruction with its first line's number: its word and the rest, continued lines joined.

    What a heredoc holds (RUN <<EOF) follows in lines of its own.
    """
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
            held: list[str] = []
            for heredoc in HEREDOC.finditer(rest) if word.upper() in ("RUN", "COPY", "ADD") else ():
                ends = [place for place in range(number, len(lines)) if _ends(heredoc, lines[place])]
                if ends:
                    held += lines[number : ends[0]]
                    number = ends[0] + 1
            body = re.sub(r"\\\n\s*", " ", "\n".join(held))
            yield first + 1, word.upper(), "\n".join([_joined(rest.strip()), *([body] if held else [])])


def _ends(heredoc: re.Match[str], line: str) -> bool:
    """Whether a line is the last of a heredoc."""
    return (line.lstrip("\t") if heredoc["indented"] else line) == heredoc["end"]


def _filled(instructions: list[Instruction]) -> list[Instruction]:
    """The instructions with the defaults of ARG in each FROM, where those that stand before the first FROM count."""
    defaults: dict[str, str] = {}

    def fill(text: str) -> str:
        return ARGUMENT.sub(lambda found: defaults.get(found[1] or found[2], found[3] or found[0]), text)

    filled: list[Instruction] = []
    for line, word, rest in instructions:
        if word == "ARG" and not any(other == "FROM" for _, other, _ in filled):
            words = [stated for words in commands_in(rest) for stated in words if "=" in stated]
            defaults |= {name: fill(value) for name, _, value in (stated.partition("=") for stated in words)}
        filled.append((line, word, fill(rest) if word == "FROM" else rest))
    return filled


def _joined(rest: str) -> str:
    """What an instruction says, its words joined where it lists them: RUN ["pip", "install", "x"]."""
    try:
        words = json.loads(rest)
    except ValueError:
        return rest
    return " ".join(map(str, words)) if isinstance(words, list) else rest
