"""What turns token authentication off: in shell text, a runtime environment, a container's variables and words."""

import re
import shlex
from collections.abc import Iterator
from typing import Any

from clusters.checks.words import commands_in

# In a command, or in the JSON or YAML of a runtime environment.
STATED = re.compile(
    r"""
      (?: \b | (?<!\w)-\w*e | \b(?:APPTAINER|SINGULARITY)ENV_ )
      RAY_AUTH_MODE (?: = | \\?["']\s*: | :[ \t] ) (?!\s*[\\"']*token(?![\w-])) \S*
    | \bRAY_AUTH_MODE (?: =\s | (?:\[\w*\])? \+= | \[\w*\]= | :=(?!token\b) )
    | \b(?: printf\s+-v | read | mapfile | readarray | for ) \b [^\n;&|]* \bRAY_AUTH_MODE\b
    | \b(?: unset | export\s+-n | (?:declare|typeset)\s+\+x ) (?:\b[^\n;&|]*\b)? RAY_AUTH_MODE\b
    """,
    re.VERBOSE,
)
TOKEN_FILE = re.compile(r"auth_token|RAY_AUTH_TOKEN_PATH|\.ray(?:/\*?)?$")
# Numbers that do not end in 00, and letters that give something to others than the owner.
OPEN_MODE = re.compile(r"[0-7]*(?:[1-7][0-7]|0[1-7])|(?:[ugoa]*[-+=]\w*,)*(?:u*[goa][ugoa]*)?[+=][rwxX]+(?:,.*)?")


def turns_tokens_off(text: str) -> bool:
    """Whether some shell text, JSON or YAML turns token authentication off for anything that it starts."""
    if STATED.search(text.replace("\\\n", " ")):
        return True
    for words in commands_in(text):
        if any(map(STATED.search, words)):  # the name itself may stand in quotes
            return True
        if any(turns_tokens_off(word) for word in words if re.search(r"\s", word)):  # a command for another shell
            return True
        if words[0] == "exec" and re.fullmatch(r"-[al]*c[acl]*", "".join(words[1:2])):
            words = ["env", "-", *words[2:]]  # the same by another name
        for place, word in enumerate(words):
            if re.fullmatch(r"(?:.*/)?env", word) and _env_drops(words[place + 1 :]):
                return True
    return False


def opens_the_token(text: str) -> bool:
    """Whether some shell text lets others than its owner read the file with the token."""
    for words in commands_in(text):
        if any(opens_the_token(word) for word in words if re.search(r"\s", word)):
            return True
        place = next((place for place, word in enumerate(words) if word in ("chmod", "install")), len(words))
        modes = [re.sub(r"^(?:-m|--mode=)", "", word) for word in words[place + 1 :]]
        if any(map(OPEN_MODE.fullmatch, modes)) and any(map(TOKEN_FILE.search, modes)):
            return True
    return False


def _env_drops(words: list[str]) -> bool:
    """Whether `env`, with these words behind it, takes RAY_AUTH_MODE from the command that it starts."""
    dropped, words = False, list(words)
    while words:
        word = words.pop(0)
        valued = re.match(r"-[0v]*([uS])|--([us])[a-z-]*=?", word)
        if valued is not None:
            value = word[valued.end() :] or (words.pop(0) if words else "")
            if "u" in valued.groups():  # --unset
                dropped = dropped or value == "RAY_AUTH_MODE"
            else:  # --split-string
                words = value.split() + words
        elif re.fullmatch(r"-|-[a-zA-Z0]*i[a-zA-Z0]*|--i[a-z-]*", word):
            dropped = True
        elif word in ("-C", "--chdir", "-a", "--argv0"):
            words = words[1:]
        elif word == "RAY_AUTH_MODE=token":
            dropped = False
        elif not word.startswith("-") and "=" not in word:
            break
    return dropped


def tokens_off(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where in a YAML file token authentication is turned off: in any command, and as a variable of any container."""
    if isinstance(value, str) and turns_tokens_off(value):
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
        yield from _command_off(value, path)
        for key, item in value.items():
            yield from tokens_off(item, (*path, key))


def _command_off(container: dict[str, Any], path: tuple[Any, ...]) -> Iterator[tuple[Any, ...]]:
    """A container's command whose words do it together and none alone: [env, -u, RAY_AUTH_MODE, …]."""
    parts = [container[key] for key in ("command", "args") if isinstance(container.get(key), list)]
    words = [str(word) for part in parts for word in part]
    if turns_tokens_off(shlex.join(words)) and not any(map(turns_tokens_off, words)):
        yield (*path, "command" if "command" in container else "args")
