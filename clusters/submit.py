"""`python -m clusters submit ADDRESS …`: `ray job submit`, to a cluster that asks strangers for a token and no other.

By itself Ray would send this folder to whatever answers there, and start it.
"""

import os
import sys
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Sequence

from clusters.config import InputError
from clusters.listeners import check_owner, is_loopback
from clusters.tokens import check_token, own_token, token_place
from clusters.upload import check_job

ANSWER_S = 30.0
OPEN, GUARDED = 200, (401, 403)


def usage() -> str:
    """What `submit` is for."""
    return """  python -m clusters submit ADDRESS [options of ray job submit] -- COMMAND …
      `ray job submit` with token authentication, once ADDRESS, such as http://127.0.0.1:8265 (the head's dashboard, or
      the near end of a tunnel to it), is known to ask for the token: --working-dir . -- python -m pretrain RECIPE …"""


def run(argv: Sequence[str]) -> None:
    """Look who answers, then become `ray job submit`. Raises InputError where nothing should be sent there."""
    if len(argv) < 2 or not argv[0].startswith(("http://", "https://")) or "--" not in argv:
        raise InputError(
            "submit: give the dashboard's address and the command, such as python -m clusters submit "
            "http://127.0.0.1:8265 --working-dir . -- python -m pretrain RECIPE.yaml data=/shared/ham run=/shared/run"
        )
    address, *words = argv
    check_job(words)
    os.environ.setdefault("RAY_AUTH_MODE", "token")
    _go_straight_to(address)
    guard(address)
    for name in ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS"):  # to which Ray would send the job in place of --address
        os.environ.pop(name, None)
    sys.stdout.flush()
    ray = [sys.executable, "-m", "ray.scripts.scripts"]
    os.execv(sys.executable, [*ray, "job", "submit", "--address", address, *words])


def guard(address: str) -> None:
    """Raise InputError unless the Ray at this address refuses strangers and takes this side's token."""
    check_token(address)
    host, port = _place(address)
    check_owner(host, port)
    found = _status(address)
    if found == OPEN:
        raise InputError(
            f"the Ray at {address} runs whatever anybody sends it: it answers without a token; restart every node of "
            "it with RAY_AUTH_MODE=token (see clusters/*.yaml, clusters/slurm.sh)"
        )
    if found not in GUARDED:
        raise InputError(
            f"{address} does not tell whether it asks for a token (HTTP {found}); give the address of Ray's dashboard, "
            "port 8265 of the head where nothing else was chosen"
        )
    if address.startswith("http://") and not is_loopback(host):
        told = f"the token goes to {host} in the clear, and what stands between could read it; a tunnel keeps it"
        print(f"{told} (ssh -L {port}:127.0.0.1:{port} {host})", file=sys.stderr, flush=True)
    if _status(address, own_token()) in GUARDED:
        raise InputError(f"{token_place()}: not the token of the Ray at {address}; copy that of its head there")


def _place(address: str) -> tuple[str, int]:
    try:
        found = urllib.parse.urlsplit(address)
        return found.hostname or "", found.port or (443 if found.scheme == "https" else 80)
    except ValueError as error:
        raise InputError(f"{address}: no address of a dashboard ({error}); give http://HOST:8265") from None


def _go_straight_to(address: str) -> None:
    """To this machine's own ports without a proxy, which would be shown the token; `ray job submit` likewise."""
    host, _ = _place(address)
    if is_loopback(host):
        for name in ("no_proxy", "NO_PROXY"):
            os.environ[name] = ",".join(filter(None, [os.environ.get(name), host, f"[{host}]"]))


def _status(address: str, token: str = "") -> int:
    """HTTP's status of the list of jobs there, as a stranger sees it or with a token."""
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    try:
        asked = urllib.request.Request(f"{address.rstrip('/')}/api/jobs/", headers=headers)
        with urllib.request.urlopen(asked, timeout=ANSWER_S) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code
    except (OSError, ValueError) as error:
        told = getattr(error, "reason", error)
        raise InputError(
            f"{address}: no dashboard of Ray answers there ({told}); give that of the head, port 8265 where nothing "
            "else was chosen, or the near end of a tunnel to it"
        ) from None
