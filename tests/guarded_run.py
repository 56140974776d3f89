"""Run `python -m ROOM …` where no socket may leave this machine: `python tests/guarded_run.py LOG ROOM words…`.

Every attempt is written to LOG and refused. What starts processes in other languages (W&B's core) is caught by the
proxy that the environment names.
"""

import runpy
import socket
import sys
from pathlib import Path

log = Path(sys.argv[1])
connect, getaddrinfo = socket.socket.connect, socket.getaddrinfo


def only_here(self: socket.socket, address: object) -> None:
    if self.family != socket.AF_UNIX and isinstance(address, tuple) and address[0] not in ("127.0.0.1", "::1"):
        with log.open("a") as file:
            file.write(f"connect {address}\n")
        raise OSError("the guard lets nothing out")
    connect(self, address)  # type: ignore[arg-type]


def no_names(host: object, *others: object, **named: object) -> object:
    if host not in ("127.0.0.1", "::1", "localhost", None, ""):
        with log.open("a") as file:
            file.write(f"look up {host}\n")
        raise OSError("the guard lets nothing out")
    return getaddrinfo(host, *others, **named)  # type: ignore[arg-type]


socket.socket.connect = only_here  # type: ignore[method-assign]
socket.getaddrinfo = no_names  # type: ignore[assignment]
if __name__ == "__main__":
    room = sys.argv[2]
    sys.argv = [room, *sys.argv[3:]]
    runpy.run_module(room, run_name="__main__", alter_sys=True)
