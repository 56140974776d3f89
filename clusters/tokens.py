"""The token by which Ray knows its users: where it lies, that only its owner can read it, and whether it is one."""

import os
import re
import secrets
import stat
import sys
from contextlib import suppress
from pathlib import Path

from clusters.config import InputError, nearest


def token_path() -> Path:
    """Where Ray reads the token from, unless RAY_AUTH_TOKEN holds it."""
    return Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")


def prepare_token() -> None:
    """Make the token file of a local Ray readable by its owner alone; Ray itself would leave it to the umask.

    One that others could read stays, and that is said: it may be a cluster's.
    """
    if auth_mode() not in ("", "token") or os.environ.get("RAY_AUTH_TOKEN"):
        return
    path = token_path()
    path.parent.mkdir(parents=True, exist_ok=True)
    with suppress(FileExistsError):
        descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(secrets.token_hex(32))
    if not _readable_by_others(path):
        return
    if path.stat().st_uid != os.getuid():
        raise InputError(
            f"{path}: another user's, and others on this machine can read the token; have it made 0600, or name a file "
            "of your own by RAY_AUTH_TOKEN_PATH"
        )
    path.chmod(0o600)
    if _readable_by_others(path):
        raise InputError(
            f"{path}: others can read the token, and this file system keeps it so; name a file elsewhere by "
            "RAY_AUTH_TOKEN_PATH"
        )
    print(
        f"{path}: others on this machine could read this token until now; unless it is a cluster's, remove the file, "
        "and the next Ray gets a new one",
        file=sys.stderr,
        flush=True,
    )


def own_token() -> str:
    """What this process would show; empty where it has none. Raises InputError where no request could hold it."""
    token = os.environ.get("RAY_AUTH_TOKEN", "")
    if not token:
        with suppress(OSError):
            token = token_path().read_text(errors="replace").strip()
    if not re.fullmatch("[!-~]*", token):
        raise InputError(f"{token_place()}: no token, which is a line of letters and digits; copy the cluster's there")
    return token


def token_place() -> str:
    """What holds this process's token, as a message names it: the variable, or the file."""
    return "RAY_AUTH_TOKEN" if os.environ.get("RAY_AUTH_TOKEN") else str(token_path())


def auth_mode() -> str:
    """What this process asks of Ray: `token`, `disabled`, or nothing."""
    return os.environ.get("RAY_AUTH_MODE", "").lower()


def check_token(address: str) -> None:
    """Raise InputError unless this side shows a token to the Ray at this address, and only its owner can read it."""
    mode = os.environ.get("RAY_AUTH_MODE", "")
    if auth_mode() != "token":
        hint = nearest(mode, ["token"]) if mode else ""
        raise InputError(
            f"the Ray at {address} can be reached by others and RAY_AUTH_MODE is '{mode}'{hint}; set "
            "RAY_AUTH_MODE=token here and on every node of the cluster"
        )
    path = token_path()
    if not os.environ.get("RAY_AUTH_TOKEN") and not path.is_file():  # the former is the scheduler's secret
        raise InputError(f"{path}: no token for the Ray at {address}; copy the cluster's there and chmod 600 it")
    if not own_token():
        raise InputError(f"{path}: empty; copy the token of the Ray at {address} there")
    if not os.environ.get("RAY_AUTH_TOKEN") and _readable_by_others(path):
        raise InputError(f"{path}: others on this machine can read the token; chmod 600 it, or make a new one")


def _readable_by_others(path: Path) -> bool:
    return bool(stat.S_IMODE(path.stat().st_mode) & 0o077)
