"""Options of `ray start` and `ray symmetric-run`, held against the installed Ray's own."""

import functools
import re
from collections.abc import Iterator
from typing import Any

from clusters.config import nearest

TOKENS_OFF = re.compile(
    r"""
      \bRAY_AUTH_MODE (?: = | \\?["']\s*: | :[ \t] ) (?!\s*[\\"']*token(?![\w-])) \S*
    | \bRAY_AUTH_MODE=\s
    | \b(?:unset|export\ -n|env\ -u) (?:\b[^\n;&|]*\b)? RAY_AUTH_MODE\b
    """,
    re.VERBOSE,
)
"""What turns token authentication off in a command, or in the JSON or YAML of a runtime environment."""
STARTS = re.compile(r"\b(?:start|symmetric-run)\b(?=.*\s--)")


def wrong_options(command: str) -> Iterator[tuple[str, str]]:
    """`(what, mend)` for what one command (its lines joined) asks of `ray start` and should not."""
    started = STARTS.search(command)
    if started is None:
        return
    asked = re.split(r"\s--\s", command[started.end() :])[0]
    options = re.findall(r"(?<=\s)--[a-z][a-z-]*", asked)
    for option in options:
        if option not in _known():
            yield f"ray start has no {option}{nearest(option, sorted(_known()))}", "see `ray start --help`"
    host = re.search(r"--dashboard-host[= ](\S+)", asked)
    if host is not None and host[1] not in ("127.0.0.1", "localhost", "::1"):
        yield (
            f"--dashboard-host={host[1]} opens the dashboard, which runs jobs, to others",
            "set 127.0.0.1 and come through SSH (`ray dashboard`) or a port-forward",
        )


def tokens_off(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where in a YAML file token authentication is turned off: in any command, and as a variable of any container."""
    if isinstance(value, str) and TOKENS_OFF.search(value):
        yield path
    if isinstance(value, list):
        for place, item in enumerate(value):
            yield from tokens_off(item, (*path, place))
    if isinstance(value, dict):
        stated = value.get("RAY_AUTH_MODE", "token")
        if value.get("name") == "RAY_AUTH_MODE":
            stated = value.get("value")  # without one it is empty, or comes from where nobody sees it here
        if stated != "token":
            yield path
        for key, item in value.items():
            yield from tokens_off(item, (*path, key))


@functools.cache
def _known() -> set[str]:
    from ray.scripts.scripts import start
    from ray.scripts.symmetric_run import symmetric_run

    return {name for command in (start, symmetric_run) for option in command.params for name in option.opts}
