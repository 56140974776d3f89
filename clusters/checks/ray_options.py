"""Options of `ray start` and `ray symmetric-run`, held against the installed Ray's own."""

import functools
import re
from collections.abc import Iterator

from clusters.config import nearest

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


@functools.cache
def _known() -> set[str]:
    from ray.scripts.scripts import start
    from ray.scripts.symmetric_run import symmetric_run

    return {name for command in (start, symmetric_run) for option in command.params for name in option.opts}
