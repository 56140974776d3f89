"""Whose program listens on a port of this machine: on a shared one another user can take a tunnel's place."""

import ipaddress
import os
import pwd
import socket
import sys
from contextlib import suppress
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path

from clusters.config import InputError

LISTENS = "0A"


def is_loopback(host: str) -> bool:
    """Whether this names this machine alone, as `localhost`, `127.1` and `0.0.0.0` do."""
    found = _addresses(host)
    return bool(found) and all(address.is_loopback for address in found)


def _addresses(host: str) -> set[IPv4Address | IPv6Address]:
    """What a name or number stands for; `0.0.0.0`, by which a machine is connected with itself, as its loopback."""
    found = set()
    with suppress(OSError, UnicodeError):
        for *_, place in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM):
            address = _plain(ipaddress.ip_address(place[0]))
            if address.is_unspecified:
                address = ipaddress.ip_address("127.0.0.1" if address.version == 4 else "::1")
            found.add(address)
    return found


def check_owner(host: str, port: int) -> None:
    """Raise InputError where another user listens on a loopback port, to whom the token would be shown.

    Linux alone tells. root may listen for anybody (a container's ports, a tunnel of the system).
    """
    here = [address for address in _addresses(host) if address.is_loopback]
    for user in {user for address in here for user in listeners(address, port)} - {0, os.getuid()}:
        name = str(user)
        with suppress(KeyError):
            name = pwd.getpwuid(user).pw_name
        raise InputError(
            f"{host}:{port}: what listens there is {name}'s, who would see the token and could use it; take another "
            "port for your tunnel. A Ray of that user which is meant is reached by an address of this machine on its "
            "network, where it listens there"
        )


def listeners(address: IPv4Address | IPv6Address, port: int) -> set[int]:
    """The user ids of what may answer at a port of an address of this machine: there, or on all of its addresses."""
    found = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        with suppress(OSError):
            for line in Path(table).read_text().splitlines()[1:]:
                columns = line.split()
                place, _, number = columns[1].rpartition(":")
                there = _address(place)
                answers = there == address or (there.is_unspecified and there.version >= address.version)
                if columns[3] == LISTENS and int(number, 16) == port and answers:
                    found.add(int(columns[7]))
    return found


def _address(digits: str) -> IPv4Address | IPv6Address:
    """An address as Linux's tables write it: words of four bytes in the machine's own order."""
    words = [bytes.fromhex(digits[start : start + 8]) for start in range(0, len(digits), 8)]
    packed = b"".join(word[::-1] if sys.byteorder == "little" else word for word in words)
    return _plain(ipaddress.ip_address(packed))


def _plain(address: IPv4Address | IPv6Address) -> IPv4Address | IPv6Address:
    """An IPv4 address that is written as an IPv6 one (`::ffff:127.0.0.1`) as itself."""
    return (address.ipv4_mapped or address) if isinstance(address, IPv6Address) else address
