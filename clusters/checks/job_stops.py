"""`ray job stop`: where a head starts, a driver is to be given the time to save its step. Ray itself leaves it 3 s."""

import re
from collections.abc import Iterator, Sequence
from typing import Any

NAME = "RAY_JOB_STOP_WAIT_TIME_S"
RAY_S = 3
STATED = re.compile(rf"\b{NAME}:?=[\"']?([\w$]*)")
ELSEWHERE = "$"
"""What a value begins with that is not known here."""
HEAD = re.compile(r"(?:^|[\s(\"'])--head\b")
OTHERS = re.compile(r"\b(?:curl|wget)\b")  # which have an option of this name


def too_short(values: Sequence[str]) -> Iterator[tuple[str, str]]:
    """`(what, mend)` where the last of the values that the head is given is none, or no more than Ray's own."""
    value = values[-1] if values else ""
    if not value.startswith(ELSEWHERE) and (not value.isdecimal() or int(value) <= RAY_S):
        yield "`ray job stop` would kill a run before its step is saved", f"give the head {NAME}=180"


def stated_in(text: str) -> list[str]:
    """The seconds that assignments in some shell text, or options of `docker run`, give."""
    return STATED.findall(text)


def stated_by(container: dict[str, Any]) -> list[str]:
    """The seconds that the variables of a container of Kubernetes give."""
    variables = [variable for variable in container.get("env") or [] if variable["name"] == NAME]
    if not variables and container.get("envFrom"):
        return [ELSEWHERE]
    return [ELSEWHERE if "valueFrom" in variable else str(variable.get("value")) for variable in variables]


def names_a_head(command: str) -> bool:
    """Whether a command has the option of `ray start` that makes a head, for a function or in an array perhaps."""
    return HEAD.search(command) is not None and OTHERS.search(command) is None
