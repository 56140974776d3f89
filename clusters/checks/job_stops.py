"""`ray job stop`: where a head starts, a driver is to be given the time to save its step. Ray itself leaves it 3 s."""

import re
from collections.abc import Iterator, Sequence
from typing import Any

NAME = "RAY_JOB_STOP_WAIT_TIME_S"
RAY_S = 3
STATED = re.compile(rf"\b{NAME}=[\"']?(\w*)")


def too_short(values: Sequence[str]) -> Iterator[tuple[str, str]]:
    """`(what, mend)` where the last of the values that the head is given is none, or no more than Ray's own."""
    value = values[-1] if values else ""
    if not value.isdecimal() or int(value) <= RAY_S:
        yield "`ray job stop` would kill a run before its step is saved", f"give the head {NAME}=180"


def stated_in(text: str) -> list[str]:
    """The seconds that assignments in some shell text, or options of `docker run`, give."""
    return STATED.findall(text)


def stated_by(containers: Sequence[dict[str, Any]]) -> list[str]:
    """The seconds that variables of Kubernetes' containers give."""
    variables = [variable for container in containers for variable in container.get("env") or []]
    return [str(variable.get("value")) for variable in variables if variable["name"] == NAME]
