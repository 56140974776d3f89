"""Folders of a machine by which its users, keys and Docker's socket are reached."""

import posixpath
import re

# The system's own, and of a home all that is hidden or the whole of it; /dev/shm is memory alone.
SYSTEM = re.compile(
    r"/(?:(?:bin|boot|dev(?!/shm)|etc|lib\w*|proc|root|run|sbin|snap|sys|usr)(?:/.*)?"
    r"|var(?:/(?:lib|log|run|spool|cache)(?:/.*)?)?|home(?:/[^/]+(?:/\..*)?)?)?"
)
HOME = re.compile(r"(?:~\w*|\$HOME|\$\{HOME\})(?:/(?:\..*)?)?")
# A variable may hold any folder; the one in which a person stands is theirs to lend.
VARIABLE = re.compile(r"(?!\$(?:PWD|\{PWD\}|\(pwd\))/\w)(?!\$HOME|\$\{HOME\}).*[$`].*", re.DOTALL)
ABOVE = re.compile(r"\.\.(?:/.*)?")
# Where clients keep keys and logins in a home.
KEYS = re.compile(
    r"(?:~\w*|\$HOME|\$\{HOME\}|/root|/home/[^/]+)/\.(?:aws|azure|boto|config|docker|git-credentials|gnupg|huggingface"
    r"|kube|netrc|oci|pypirc|s3cfg|ssh)(?:/.*)?"
)


def is_machine_s(source: str | None) -> bool:
    """Whether a folder that is mounted is the machine's own, or none knows whose."""
    if source is None:
        return False
    return any(pattern.fullmatch(source) for pattern in (SYSTEM, HOME, VARIABLE, ABOVE))


def holds_keys(source: str) -> bool:
    """Whether a file or folder that is sent to other machines holds keys of a person's, or a whole home."""
    source = _plain(source)
    return (
        KEYS.fullmatch(source) is not None or re.fullmatch(r"/|/root|/home(?:/[^/]+)?|~\w*|\$HOME", source) is not None
    )


def mounted(name: str, value: str) -> str | None:
    """The machine's folder that --volume or --mount names; none where it names none, or a volume of Docker's own."""
    if name == "--mount":
        if "volume-opt" in value:  # a volume whose driver binds whatever folder it is told to
            return "$volume-opt"
        named = re.search(r"(?:^|,)[\"']?(?:source|src)=([^,\"']*)", value)
        value = named[1] if named else ""
    source = value.partition(":")[0]
    return _plain(source) if re.match(r"[/.~]|.*[$`]", source) else None


def _plain(source: str) -> str:
    """A path without what is doubled or at its end."""
    return posixpath.normpath(source).replace("//", "/")
