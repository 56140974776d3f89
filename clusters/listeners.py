"""Whose program listens on a port of this machine: on a shared one another user can take a tunnel's place."""

import ipaddress
import os
import pwd
from contextlib import suppress
from pathlib import Path

from clusters.config import InputError

LISTENS = "0A"
LOCALHOST = "localhost"


def is_loopback(host: str) -> bool:
    """Whether this names this machine alone."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == LOCALHOST


def check_owner(host: str, port: int) -> None:
    """Raise InputError where another user listens on a loopback port, to whom the token would be shown.

    Linux alone tells. root may listen for anybody (a container's ports, a tunnel of the system).
    """
    if not is_loopback(host):
        return
    for user in listeners(port) - {0, os.getuid()}:
        name = str(user)
        with suppress(KeyError):
            name = pwd.getpwuid(user).pw_name
        raise InputError(
            f"{host}:{port}: what listens there is {name}'s, who would see the token and could use it; take another "
            "port for your tunnel, or name the machine in place of its loopback address if that user's Ray is meant"
        )


def listeners(port: int) -> set[int]:
    """The user ids of what listens on a port of this machine, on any of its addresses."""
    found = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        with suppress(OSError):
            for line in Path(table).read_text().splitlines()[1:]:
                columns = line.split()
                if columns[3] == LISTENS and int(columns[1].rpartition(":")[2], 16) == port:
                    found.add(int(columns[7]))
    return found
