"""Run `python -m ROOM …` where no socket may leave this machine: `python tests/guarded_run.py LOG ROOM words…`.

Every attempt is written to LOG and refused. What starts processes in other languages (W&B's core) is caught by the
proxy that the environment names. As a file that is run, with GUARD_LOG as the log, it guards any Python process.
"""

import os
import runpy
import socket
import sys
from collections.abc import Callable
from pathlib import Path

log = Path(os.environ.get("GUARD_LOG") or sys.argv[1])
getaddrinfo = socket.getaddrinfo


def guarded(name: str) -> Callable[..., object]:
    """A socket's method of this name, whose last argument is an address."""
    method = getattr(socket.socket, name)

    def only_here(self: socket.socket, *words: object) -> object:
        address = words[-1]
        if self.family != socket.AF_UNIX and isinstance(address, tuple) and address[0] not in ("127.0.0.1", "::1"):
            with log.open("a") as file:
                file.write(f"{name} {address}\n")
            raise OSError("the guard lets nothing out")
        return method(self, *words)

    return only_here


def no_names(host: object, *others: object, **named: object) -> object:
    if host not in ("127.0.0.1", "::1", "localhost", None, ""):
        with log.open("a") as file:
            file.write(f"look up {host}\n")
        raise OSError("the guard lets nothing out")
    return getaddrinfo(host, *others, **named)  # type: ignore[arg-type]


for name in ("connect", "connect_ex", "sendto"):
    setattr(socket.socket, name, guarded(name))
socket.getaddrinfo = no_names  # type: ignore[assignment]
if __name__ == "__main__":
    room = sys.argv[2]
    sys.argv = [room, *sys.argv[3:]]
    runpy.run_module(room, run_name="__main__", alter_sys=True)
