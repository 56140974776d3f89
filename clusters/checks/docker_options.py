"""Options of `docker run` that would open a port, or the whole machine, to others.

Ray itself adds `--net=host`, so that host networking opens nothing more; `--gpus` and `--device` lend a device alone.
"""

import posixpath
import re
from collections.abc import Iterator

from clusters.checks.words import commands_in

PUBLISHES = re.compile(r"--publish(?:-all)?(?==|$)|-[dit]*[pP]")
LOOPBACK = re.compile(r"(?:127\.\d+\.\d+\.\d+|\[::1\]):")
# What a container is kept from: rights of the kernel, the machine's processes and users, calls and files.
OWNS = re.compile(
    r"--cap-add|--(?:pid|userns|cgroupns)=host|--security-opt=(?:\w+[=:](?:unconfined|disable)|no-new-\w+[=:]false)"
)
MOUNTS = re.compile(r"(?:--volume|-v|--mount)=?")
# The machine's own folders, from which its users, keys and Docker's socket are reached; /dev/shm is memory alone.
MACHINE = re.compile(
    r"/(?:(?:bin|boot|dev(?!/shm)|etc|lib\w*|proc|root|run|sbin|sys|usr|var/run|var/lib/docker)(?:/.*)?)?"
)
CLIENTS = re.compile(r"(?:.*/)?(?:docker|podman|nerdctl)")


def wrong_docker_options(words: list[str]) -> Iterator[tuple[int, str, str]]:
    """`(place of the word, what, mend)` for what the words behind one `docker run` open."""
    for place, word in enumerate(words):
        published = PUBLISHES.match(word)
        if published is None or word == "--publish-all=false":
            continue
        value = word[published.end() :].removeprefix("=") or "".join(words[place + 1 : place + 2])
        if published[0].endswith(("P", "-all")) or not LOOPBACK.match(value):
            mend = "publish on 127.0.0.1 or not at all, and come through SSH (`ray dashboard`)"
            yield place, f"{published[0]} opens a port of the container to others", mend
    privileged = [place for place, word in enumerate(words) if word.partition("=")[0] == "--privileged"]
    if privileged and words[privileged[-1]] != "--privileged=false":
        yield privileged[-1], "a privileged container owns its machine", "take `--privileged` out"
    for place, asked in _with_values(words):
        if OWNS.match(asked):
            yield place, f"{asked.partition('=')[0]} gives the container rights over its machine", "take it out"
        source = _mounted(asked)
        if source is not None and MACHINE.fullmatch(source):
            mend = "mount a folder of the data's own"
            yield place, f"the container reaches into its machine's own {source}", mend
    for place, word in enumerate(words):
        if word in ("--env=RAY_AUTH_MODE", "RAY_AUTH_MODE"):  # its value is whatever the machine happens to have
            yield place, "RAY_AUTH_MODE comes from where no check sees it", "write --env RAY_AUTH_MODE=token"


def _with_values(words: list[str]) -> Iterator[tuple[int, str]]:
    """`(place, word)` of each option, with its value behind an equals sign however it is given."""
    for place, word in enumerate(words):
        stands_alone = re.fullmatch(r"--[a-z-]+|-v", word) is not None
        yield place, f"{word}={''.join(words[place + 1 : place + 2])}" if stands_alone else word


def _mounted(option: str) -> str | None:
    """The machine's folder that an option mounts, without what is doubled or at its end; none where it mounts none."""
    kind = MOUNTS.match(option)
    if kind is None:
        return None
    value = option[kind.end() :]
    if kind[0].startswith("--mount"):
        named = re.search(r"(?:^|,)(?:source|src)=([^,]*)", value)
        value = named[1] if named else ""
    source = value.partition(":")[0]
    return posixpath.normpath(source).replace("//", "/") if source.startswith("/") else None


def wrong_docker_runs(text: str) -> Iterator[tuple[str, str]]:
    """`(what, mend)` for what the `docker run` and `docker create` in some shell text open."""
    for words in commands_in(text):
        for word in words:
            if re.search(r"\s", word):  # a command for another shell
                yield from wrong_docker_runs(word)
        client = next((place for place, word in enumerate(words) if CLIENTS.fullmatch(word)), len(words))
        behind = words[client + 1 :]
        run = next((place for place, word in enumerate(behind) if word in ("run", "create")), len(behind))
        for _, what, mend in wrong_docker_options(behind[run + 1 :]):
            yield what, mend
