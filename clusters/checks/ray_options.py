"""Options of `ray start` and `ray symmetric-run`, held against the installed Ray's own."""

import functools
import re
from collections.abc import Iterator

from clusters.checks.starts import SERVICES, STARTS, start_in
from clusters.checks.words import commands_in, values_of
from clusters.config import nearest

LOOPBACK = ("127.0.0.1", "localhost", "::1")


def wrong_options(text: str) -> Iterator[tuple[str, str]]:
    """`(what, mend)` for what the commands in some shell text ask of `ray start` and should not."""
    for words in commands_in(text):
        for word in words:
            if re.search(r"\s", word):  # a command for another shell, such as bash -c '…'
                yield from wrong_options(word)
        started = next((place for place, word in enumerate(words) if word in STARTS), None)
        if started is not None and (start_in(words) is not None or not any(map(SERVICES.fullmatch, words))):
            yield from _wrong_start([word.rstrip(")`") for word in words[started + 1 :]])


def _wrong_start(words: list[str]) -> Iterator[tuple[str, str]]:
    """What is wrong among the words behind one `start`; those behind `--` are another program's."""
    asked = words[: words.index("--")] if "--" in words else words
    for word in asked:
        option = re.match(r"--[a-z][a-z-]*", word)
        if option is not None and option[0] not in _known():
            yield f"ray start has no {option[0]}{nearest(option[0], sorted(_known()))}", "see `ray start --help`"
    hosts = values_of(asked, "--dashboard-host")
    if hosts and hosts[-1] not in LOOPBACK:
        yield (
            f"--dashboard-host={hosts[-1]} opens the dashboard, which runs jobs, to others",
            "set 127.0.0.1 and come through SSH (`ray dashboard`) or a port-forward",
        )


@functools.cache
def start_options() -> set[str]:
    """The options of `ray start`."""
    from ray.scripts.scripts import start

    return {name for option in start.params for name in (*option.opts, *option.secondary_opts)}


@functools.cache
def _known() -> set[str]:
    from ray.scripts.symmetric_run import symmetric_run

    return start_options() | {name for option in symmetric_run.params for name in option.opts}
