"""Options of `docker run`: those that open no port, and not the machine, to others; any other is refused.

Ray itself adds `--net=host`, so that host networking opens nothing more; `--gpus` lends a device alone.
"""

import re
from collections.abc import Iterator
from typing import NamedTuple

from clusters.checks.machine_folders import is_machine_s, mounted
from clusters.checks.words import commands_in

LOOPBACK = re.compile(r"(?:127\.\d+\.\d+\.\d+|\[::1\]):")
# Docker's short names; those in capitals or of the second line take no value.
# fmt: off
SHORT = {
    "e": "--env", "v": "--volume", "p": "--publish", "u": "--user", "m": "--memory", "w": "--workdir", "l": "--label",
    "h": "--hostname", "c": "--cpu-shares", "a": "--attach",
    "i": "--interactive", "t": "--tty", "d": "--detach", "P": "--publish-all", "q": "--quiet",
}
FLAGS = [
    "--interactive", "--tty", "--detach", "--rm", "--init", "--read-only", "--quiet", "--no-healthcheck",
    "--privileged", "--publish-all",
]
# What is harmless whatever its value is: a name, a share of the machine, a folder of the container's own.
HARMLESS = {
    "--attach", "--cap-drop", "--cpu-shares", "--cpus", "--cpuset-cpus", "--cpuset-mems", "--gpus", "--hostname",
    "--interactive", "--tty", "--detach", "--rm", "--init", "--read-only", "--quiet", "--no-healthcheck", "--label",
    "--log-driver", "--log-opt", "--memory", "--memory-reservation", "--memory-swap", "--name", "--pids-limit",
    "--platform", "--pull", "--restart", "--shm-size", "--stop-signal", "--stop-timeout", "--tmpfs", "--ulimit",
    "--workdir",
}
# fmt: on
# And what is harmless with these values alone.
HARMLESS_IF = {
    "--net": re.compile(r"(?!container:).*"),
    "--network": re.compile(r"(?!container:).*"),
    "--ipc": re.compile(r"private|none|shareable"),
    "--runtime": re.compile(r"nvidia|runc"),
    "--security-opt": re.compile(r"no-new-privileges(?:[=:]true)?"),
    "--device": re.compile(r"/dev/(?:nvidia|infiniband/)[\w/.-]*"),
    "--user": re.compile(r"(?!(?:root|0+)(?::|$))[\w.-]+(?::(?!(?:root|0+)$)[\w.-]+)?"),
    "--env": re.compile(r"\w+=.*|(?!RAY_AUTH_MODE$)\w+", re.DOTALL),
}
# What a container is kept from: rights of the kernel, the machine's processes and users, calls, files and devices.
RIGHTS = (
    "--cap-add", "--pid", "--userns", "--cgroupns", "--uts", "--ipc", "--security-opt", "--device", "--volumes-from"
)  # fmt: skip
CLIENTS = re.compile(r"(?:.*/)?(?:docker|podman|nerdctl)")
NO_CONTAINERS = {"network", "volume", "context", "config", "secret", "buildx", "manifest"}


class Option(NamedTuple):
    """One option: where it stands, as it was written, Docker's long name, and its value (a flag's is true)."""

    place: int
    written: str
    name: str
    value: str


def wrong_docker_options(words: list[str]) -> Iterator[tuple[int, str, str]]:
    """`(place of the word, what, mend)` for what the words behind one `docker run` open, or may open."""
    options = options_in(words)
    last = {option.name: option for option in options}
    for option in options:
        if option.name in FLAGS and (option.value == "false" or last[option.name].value == "false"):
            continue  # of a flag the last one counts
        if (wrong := _wrong(option)) is not None:
            yield option.place, *wrong


def _wrong(option: Option) -> tuple[str, str] | None:
    """What is wrong with one option, and its mend."""
    written, name, value = option.written, option.name, option.value
    if name == "--publish-all" or (name == "--publish" and not LOOPBACK.match(value)):
        mend = "publish on 127.0.0.1 or not at all, and come through SSH (`ray dashboard`)"
        return f"{written} opens a port of the container to others", mend
    if name == "--privileged":
        return "a privileged container owns its machine", "take `--privileged` out"
    if name in ("--volume", "--mount"):
        source = mounted(name, value)
        mend = "mount a folder of the data's own"
        return (f"the container reaches into its machine's own {source}", mend) if is_machine_s(source) else None
    if name in HARMLESS or name == "--publish":
        return None
    if name in HARMLESS_IF and HARMLESS_IF[name].fullmatch(value):
        return None
    if name == "--env" and value == "RAY_AUTH_MODE":  # its value is whatever the machine happens to have
        return "RAY_AUTH_MODE comes from where no check sees it", "write --env RAY_AUTH_MODE=token"
    if name == "--user":
        return f"{written} lets the container run as root", "name a user of its own, or leave the image's"
    if name in RIGHTS:
        return f"{written} gives the container rights over its machine", "take it out"
    return f"option {written} is not one that the check knows to be harmless", "take it out"


def options_in(words: list[str]) -> list[Option]:
    """The options among the words behind `docker run`, up to the image; short ones taken apart (-itv /:/x)."""
    found: list[Option] = []
    place = 0
    while place < len(words):
        word = words[place]
        following = words[place + 1] if place + 1 < len(words) else ""
        if not word.startswith("-") or word in ("-", "--"):
            break
        if word.startswith("--"):
            written, given, value = word.partition("=")
            if written in FLAGS:
                found.append(Option(place, written, written, value if given else "true"))
                place += 1
                continue
            found.append(Option(place, written, written, value if given else following))
            unknown = written not in HARMLESS | {*HARMLESS_IF, *RIGHTS, "--publish", "--volume", "--mount"}
            place += 1 if given or (unknown and following.startswith("-")) else 2
            continue
        takes_next = _take_apart(place, word, following, found)
        place += 2 if takes_next else 1
    return found


def _take_apart(place: int, word: str, following: str, found: list[Option]) -> bool:
    """Adds the options of a word such as -itv; whether the last of them takes the next word as its value."""
    for position, letter in enumerate(word[1:], start=1):
        written = word[: position + 1]
        name = SHORT.get(letter)
        if name is None or name in FLAGS:
            found.append(Option(place, written, name or written, "false" if word.endswith("=false") else "true"))
            if name is None or word[position + 1 : position + 2] == "=":
                return False
            continue
        value = word[position + 1 :].removeprefix("=")
        found.append(Option(place, written, name, value or following))
        return not value
    return False


def values_of_variable(words: list[str], name: str) -> list[str]:
    """What a container's options say that a variable is, in their order: the last one counts."""
    stated = (option.value.partition("=") for option in options_in(words) if option.name == "--env")
    return [value for variable, _, value in stated if variable == name]


def wrong_docker_runs(text: str) -> Iterator[tuple[str, str]]:
    """`(what, mend)` for what the `docker run` and `docker create` in some shell text open."""
    for words in commands_in(text):
        for word in words:
            if re.search(r"\s", word):  # a command for another shell
                yield from wrong_docker_runs(word)
        client = next((place for place, word in enumerate(words) if CLIENTS.fullmatch(word)), len(words))
        behind = words[client + 1 :]
        run = next((place for place, word in enumerate(behind) if word in ("run", "create")), len(behind))
        if NO_CONTAINERS.isdisjoint(behind[:run]):
            for _, what, mend in wrong_docker_options(behind[run + 1 :]):
                yield what, mend
