"""Options of `docker run` that would open a port, or the whole machine, to others.

Ray itself adds `--net=host`, so that host networking opens nothing more.
"""

import re
from collections.abc import Iterator

from clusters.checks.words import commands_in

PUBLISHES = re.compile(r"--publish(?:-all)?(?==|$)|-[dit]*[pP]")
LOOPBACK = re.compile(r"(?:127\.\d+\.\d+\.\d+|\[::1\]):")
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
    for place, word in enumerate(words):
        if word in ("--env=RAY_AUTH_MODE", "RAY_AUTH_MODE"):  # its value is whatever the machine happens to have
            yield place, "RAY_AUTH_MODE comes from where no check sees it", "write --env RAY_AUTH_MODE=token"


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
