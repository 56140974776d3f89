"""One run at a time where no kernel holds a lock, as in an object store: a lease that its holder keeps renewing.

Whoever finds a lease watches whether it changes, for longer than a holder takes to renew it: no clock is compared with
another's. A holder that lost it anyhow (two began at once, or storage was out of its reach for so long) is stopped by
the attempt numbers of checkpoints, and takes no new number: `check_held`.
"""

import json
import os
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from clusters.config import InputError
from clusters.storage import Folder

LEASE = ".lease.json"
RENEW_S = 5.0
STALE_S = 60.0
"""More than RENEW_S and the waits of a read and of a write that are tried again (21 s each)."""
SETTLE_S = 1.0
LOOK_S = 0.5
HELD = "MANYVIEW_LEASE"
"""Environment variable with the folder and the token of the lease that this process, or its driver, works under."""


@contextmanager
def lease(run: Folder, holder: dict[str, Any]) -> Iterator[None]:
    """Hold a folder for the block, as `holder`, words about this process.

    Raises InputError where another holds it, and OSError where it cannot be written.
    """
    found = _read(run)
    if found is not None:
        _wait_until_stale(run, found)
    mine = {**holder, "token": uuid.uuid4().hex, "renewed": 0}
    run.write_json(LEASE, mine)
    time.sleep(SETTLE_S)  # of two that begin at once, the one that wrote last stays
    if not _is_mine(run, mine):
        raise InputError(_refusal(run, _read(run) or {}))
    ends = threading.Event()
    renewing = threading.Thread(target=_renew, args=(run, mine, ends), daemon=True, name="lease")
    renewing.start()
    outer = os.environ.get(HELD)
    os.environ[HELD] = json.dumps([run.location, mine["token"]])
    try:
        yield
    finally:
        ends.set()
        os.environ.pop(HELD, None)
        if outer is not None:
            os.environ[HELD] = outer
        renewing.join()
        with suppress(OSError):
            if _is_mine(run, mine):
                run.remove(LEASE)


def held() -> dict[str, str]:
    """What workers of this process need in their environment to know the lease."""
    return {HELD: os.environ[HELD]} if HELD in os.environ else {}


def check_held() -> None:
    """Raises InputError where the lease that this process works under is another's by now.

    It may have stood still for so long that the run goes on elsewhere, and must not fence off who took over.
    """
    if HELD not in os.environ:
        return
    location, token = json.loads(os.environ[HELD])
    found = _read(Folder(location))
    if found is None or found.get("token") != token:
        raise InputError(f"{location}: another run has taken it over ({named(found or {})}); leave the run to it")


def _wait_until_stale(run: Folder, found: dict[str, Any]) -> None:
    print(f"{run}: a run left a lease there ({named(found)}); looking for {STALE_S:g} s whether it lives", flush=True)
    began = time.monotonic()
    while time.monotonic() - began < STALE_S:
        time.sleep(LOOK_S)
        now = _read(run)
        if now is None:
            return
        if now != found:
            raise InputError(_refusal(run, now))


def _renew(run: Folder, mine: dict[str, Any], ends: threading.Event) -> None:
    """Until the end, or until another has taken over; storage that fails is tried again the next time."""
    while not ends.wait(RENEW_S):
        with suppress(OSError):
            if not _is_mine(run, mine):
                print(f"{run}: another run has taken it over; this one stops at its next checkpoint", flush=True)
                return
            mine["renewed"] += 1
            run.write_json(LEASE, mine)


def _is_mine(run: Folder, mine: dict[str, Any]) -> bool:
    found = _read(run)
    return found is not None and found.get("token") == mine["token"]


def _read(run: Folder) -> dict[str, Any] | None:
    """The lease that is there; one that cannot be read as such is somebody's too."""
    try:
        value = run.read_json(LEASE)
    except FileNotFoundError:
        return None
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _refusal(run: Folder, holder: dict[str, Any]) -> str:
    return f"{run}: another run is at work in this folder ({named(holder)}); wait for its end, or stop it first"


def named(holder: dict[str, Any]) -> str:
    """`process 12, host lab3`; a holder that is just about to write itself down is not known yet."""
    return ", ".join(f"{key} {holder[key]}" for key in ("process", "host") if key in holder) or "it has just begun"
