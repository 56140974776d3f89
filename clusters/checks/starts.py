"""Every `ray start` with token authentication: stated directly before it, exported earlier, or by its container."""

import itertools
import re
from collections.abc import Iterator

from clusters.checks.words import ends_in_quotes, separated, values_of

STARTS = ("start", "symmetric-run")
TOKEN_MODE = "RAY_AUTH_MODE=token"
# Ray's command by name or path, or as Python's module; a variable directly before a `start` may hold either.
RAY = re.compile(r"[({!`$]*(?:.*/)?ray[)`]?|.*\bray[./](?:scripts|_private)\b.*", re.DOTALL)
VARIABLE = re.compile(r"[({!`]*\$.*", re.DOTALL)
SERVICES = re.compile(r"(?:.*/)?(?:docker|podman|nerdctl|systemctl|service|supervisorctl)")
# What gives a command another environment, whatever was stated before it. Few of them can be told to keep a variable.
OTHER_USERS = re.compile(
    r"[({!`$]*(?:.*/)?(?:sudo|su|doas|runuser|ssh|rsh|pdsh|parallel-ssh|chroot|nsenter|systemd-run|machinectl|at|batch)"
)
CONTAINERS = re.compile(r"(?:.*/)?(?:docker|podman|nerdctl|kubectl|enroot|singularity|apptainer)")
# These hand their environment on, unless one of their options, up to the image, says otherwise.
HANDING_ON = re.compile(r"(?:.*/)?(?:singularity|apptainer)")
CLEANING = re.compile(r"--(?:cleanenv|containall|compat|env-file)(?:=.*)?|-\w*[eC]\w*")
ASSIGNMENT = re.compile(r"\w+\+?=.*", re.DOTALL)
LEADS = re.compile(r"[({!]+|if|then|elif|else|do|while|until|time|exec|command|nohup|setsid|nice|-.*")
ENV = re.compile(r"(?:.*/)?env")
SAYS = ("echo", "printf", "log", "logger", "warn", "die", "grep", "egrep", "pgrep")
EXPORTS = ("export", "declare", "typeset")


def wrong_starts(text: str, on: bool = False) -> Iterator[tuple[str, str]]:
    """`(what, mend)` for each `ray start` in some shell text that no token would protect.

    `on` says that the environment has RAY_AUTH_MODE=token to begin with. An assignment before another command says
    nothing of this one, nor does an export in another shell.
    """
    unclosed = ends_in_quotes(text)
    for before, words, after in separated(text):
        if words[0] in EXPORTS and TOKEN_MODE in words and "|" not in before and after not in ("|", "|&", "&"):
            on = on or words[0] == "export" or any(re.match(r"-\w*x", word) for word in words)
        place = start_in(words)
        if place is not None:
            yield from _wrong_start(words[:place], on)
        command = next((word for word in words if not (ASSIGNMENT.match(word) or LEADS.fullmatch(word))), "")
        if OTHER_USERS.fullmatch(command) and (unclosed or any(re.match(r"<<(?!<)", word) for word in words)):
            yield f"what {_name(command)} runs goes on in other lines, where no check sees it", "write it in one line"
        said_only = words[0] in SAYS and "|" not in after
        for place, word in enumerate(words):
            if re.search(r"\s", word) and not said_only:  # a command for another shell, which inherits what is set
                inherited = on if _keeps(words[:place]) else False
                if any(OTHER_USERS.fullmatch(other) for other in words[:place]) and starts_ray(word):
                    yield from _wrong_start(words[:place], on)
                else:
                    yield from wrong_starts(word, inherited or _states(words[:place]))


def start_in(words: list[str]) -> int | None:
    """The place of the `start` in the words of one `ray start`."""
    for place, word in enumerate(words):
        if word.rstrip(")`") not in STARTS:
            continue
        held = next((other for other in reversed(words[:place]) if not other.startswith("-")), "")
        perhaps = VARIABLE.fullmatch(held) is not None and not any(map(SERVICES.fullmatch, words))
        if perhaps or any(map(RAY.fullmatch, words[:place])):
            return place
    return None


def starts_ray(text: str) -> bool:
    """Whether a `ray start` stands in some shell text, or in what it gives to another shell."""
    commands = [words for _, words, _ in separated(text)]
    inner = (word for words in commands for word in words if re.search(r"\s", word) and word != text)
    return any(start_in(words) is not None for words in commands) or any(map(starts_ray, inner))


def _wrong_start(words: list[str], on: bool) -> Iterator[tuple[str, str]]:
    """What is wrong with the words before one `start`."""
    other = next((word for word in words if OTHER_USERS.fullmatch(word)), None)
    if other is not None:
        name = _name(other)
        yield f"`ray start` behind {name} gets another environment, without {TOKEN_MODE}", f"start Ray without {name}"
    elif not (_states(words) or (on and _keeps(words))):
        yield "`ray start` without token authentication", f"put {TOKEN_MODE} before it"


def _name(word: str) -> str:
    """A command's name without what a shell puts before it."""
    return word.lstrip("({!`$")


def _keeps(words: list[str]) -> bool:
    """Whether what a shell has exported reaches a command behind these words."""
    if any(CONTAINERS.fullmatch(word) and not _hands_on(words[place:]) for place, word in enumerate(words)):
        return False
    return all("ALL" in exported.upper().split(",") for exported in values_of(words, "--export")[-1:])


def _hands_on(words: list[str]) -> bool:
    """Whether a container's client, with these words, gives what it starts its own environment."""
    options = itertools.takewhile(lambda word: not re.search(r"\.sif$|://", word), words[1:])
    return HANDING_ON.fullmatch(words[0]) is not None and not any(map(CLEANING.fullmatch, options))


def _states(words: list[str]) -> bool:
    """Whether these words, which stand before a command, give it RAY_AUTH_MODE=token."""
    clients = [place for place, word in enumerate(words) if CONTAINERS.fullmatch(word)]
    if any(re.fullmatch(rf"(?:--env=|-\w*e)?{TOKEN_MODE}", word) for place in clients for word in words[place + 1 :]):
        return True
    if not all(_hands_on(words[place:]) for place in clients):  # what stands before a client is its own
        return False
    for place, word in enumerate(words):
        if word.lstrip("({") == TOKEN_MODE:
            return _keeps(words[place:])
        if TOKEN_MODE in "".join(values_of(words[place:], "--export")[-1:]).split(","):
            return True  # Slurm's srun
        if not (ASSIGNMENT.match(word) or LEADS.fullmatch(word) or any(map(ENV.fullmatch, words))):
            return False
    return False
