"""Who may reach the Ray that a run uses: this machine alone, or whoever has the token.

Ray runs any code that reaches it. Its token authentication is off wherever RAY_AUTH_MODE is not `token`, and even a
local Ray listens on every address of the machine unless it is told otherwise.
"""

import os
import re
import socket
import stat
import sys
import time
from contextlib import suppress
from pathlib import Path

from clusters.config import InputError
from clusters.listeners import check_owner, is_loopback
from clusters.tokens import auth_mode, check_token, own_token, prepare_token, token_place

PROBE_S = 5.0
ANSWER_S = 15.0  # of a control store on a busy machine
STARTS_S = 30.0  # a head that was started a moment ago
# Ray leaves 127.0.0.1 as it is only where this is 0; elsewhere it takes an address that others can reach.
REACHABLE = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
OPEN, GUARDED, NOBODY = "open", "guarded", "nobody"
_replaced: list[str | None] = []
"""What REACHABLE was before this process set it, if it has."""


def guard(address: str) -> None:
    """Call before Ray is started (`local`) or joined at an address.

    A Ray that is started here listens on 127.0.0.1 alone, and asks for a token unless RAY_AUTH_MODE=disabled says
    otherwise. One that others can reach must ask for a token: raises InputError where this side has none, or where the
    cluster answers without one or does not tell; and, wherever there is one, where others can read it or it is not the
    cluster's. A loopback address may be the near end of a tunnel: there, too, one is joined without a token only where
    it tells that it asks for none, which is said. Where nothing listens, InputError once a head would have started.
    """
    if address == "local":
        _stay_on_this_machine(True)
        if auth_mode() not in ("", "token", "disabled"):  # all else turns tokens off
            raise InputError(
                f"RAY_AUTH_MODE is '{os.environ['RAY_AUTH_MODE']}', by which Ray asks for no token; unset it, or set "
                "it to token (or to disabled, where every user of this machine may run code as you)"
            )
        if not auth_mode():  # set to nothing, it would keep Ray from turning tokens on
            os.environ.pop("RAY_AUTH_MODE", None)
        prepare_token()
        if auth_mode() == "disabled":
            _tell_of_users("the Ray that is started here")
        return
    _stay_on_this_machine(False)
    host, port = split_address(address)
    if re.search(r"\s|:[^\]:/]*[^\]:/0-9][^\]:/]*$", address):  # which Ray would take, and nothing here look at
        raise InputError(f"{address!r} is no address of a Ray; give HOST:PORT, the port in digits, without spaces")
    if not port and address != "auto" and "://" not in address:
        return  # no address that Ray takes, as it will say
    here = bool(port) and is_loopback(host) and not _others_reach(port) and not address.startswith("ray://")
    _stay_on_this_machine(here)
    if not here or auth_mode() == "token":
        check_token(address)
    found = _found(host, port) if port else GUARDED
    if here and _others_reach(port):  # it has come only now, and on addresses of others too
        return guard(address)
    if found == OPEN and here:
        return _tell_of_users(f"the Ray at {address}", ", and of another where it is tunnelled here,")
    _refuse(address, found, slow_is_fine=here and auth_mode() == "token")
    # The token is shown where Ray itself would show it, and not in the clear under TLS.
    shows = found == GUARDED and port and auth_mode() == "token" and not _under_tls()
    if auth_mode() == "token":
        check_owner(host, port)
    if shows and (token := own_token()) and _answer(host, port, token) == GUARDED:
        raise InputError(f"{token_place()}: not the token of the Ray at {address}; copy that of its head there")


def _refuse(address: str, found: str, slow_is_fine: bool) -> None:
    """Raise InputError where what a stranger was answered there is not that a token is asked for."""
    if found == OPEN:
        raise InputError(
            f"the Ray at {address} runs whatever anybody sends it: it answers without a token; restart every node of "
            "it with RAY_AUTH_MODE=token (see clusters/*.yaml, clusters/slurm.sh)"
        )
    if found == NOBODY and not _under_tls():
        raise InputError(
            f"nothing listens at {address}; start the Ray there, or give its head's address and port, HOST:6379 where "
            "nothing else was chosen"
        )
    if found not in (GUARDED, NOBODY, *(("unimplemented", "deadline exceeded") if slow_is_fine else ())):
        raise InputError(
            f"the Ray at {address} does not tell whether it asks for a token ({found}); give the address of its "
            "control store, HOST:6379 where nothing else was chosen, not the dashboard's (8265, for `ray job submit`); "
            + ("where it is only slow, try again" if found == "deadline exceeded" else "under TLS set RAY_USE_TLS=1")
        )


def guard_job() -> None:
    """Call at the start of a command: within a job that was submitted to a Ray, `guard` against that Ray.

    Also where the work itself asks for no Ray: whoever reaches its head can read and change what the job does.
    """
    address = os.environ.get("RAY_ADDRESS")
    if address and "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ:
        guard(address)


def session_folder() -> str | None:
    """Where a Ray that is started here keeps its sockets and logs: this user's alone. None where RAY_TMPDIR tells.

    Ray itself opens its folder to everybody, for writing too, so it is given one inside of ours. Raises InputError
    where another user was first.
    """
    if "RAY_TMPDIR" in os.environ:
        return None
    folder = Path(os.environ.get("TMPDIR") or "/tmp") / f"manyview-ray-{os.getuid()}"
    with suppress(FileExistsError):
        folder.mkdir(mode=0o700, parents=True)
    found = folder.lstat()
    if found.st_uid != os.getuid() or not stat.S_ISDIR(found.st_mode):
        raise InputError(f"{folder}: not a folder of yours, and Ray's sockets would lie there; set RAY_TMPDIR")
    folder.chmod(0o700)
    return str(folder / "ray")


def split_address(address: str) -> tuple[str, int]:
    """Host and port of `10.0.0.3:6379`, `ray://head:10001` or `[::1]:6379`; port 0 where none is given."""
    bare = address.rpartition("://")[2]
    if bare.count(":") > 1 and not bare.startswith("["):  # an IPv6 address by itself
        return bare, 0
    host, _, port = bare.rpartition(":")
    return (host.strip("[]"), int(port)) if host and re.fullmatch("[0-9]+", port) else (bare.strip("[]"), 0)


def _under_tls() -> bool:
    return os.environ.get("RAY_USE_TLS", "").lower() in ("1", "true")


def _tell_of_users(what: str, others: str = "") -> None:
    print(
        f"{what} asks for no token: every user of this machine{others} can run code as you; set "
        "RAY_AUTH_MODE=token, unless you are the only one",
        file=sys.stderr,
        flush=True,
    )


def _others_reach(port: int) -> bool:
    """Whether what listens on a port of this machine does so on an address of it that others can reach, too.

    Every address of every interface is tried: a machine on a network of its own has no route to anywhere else.
    """
    import psutil

    internet = (socket.AF_INET, socket.AF_INET6)
    addresses = [one.address for found in psutil.net_if_addrs().values() for one in found if one.family in internet]
    return any(not is_loopback(address) and _listens(address, port) for address in addresses)


def _listens(host: str, port: int) -> bool:
    with suppress(OSError), socket.create_connection((host, port), timeout=PROBE_S):
        return True
    return False


def _found(host: str, port: int) -> str:
    """What answers a stranger there, NOBODY once a head that is starting would have come."""
    until = time.monotonic() + STARTS_S
    while (found := _answer(host, port)) == NOBODY and not _under_tls() and time.monotonic() < until:
        time.sleep(0.5)
    return found


def _answer(host: str, port: int, token: str = "") -> str:
    """Ask the cluster's control store, as a stranger would or with a token, whether it is alive: what it says to that.

    NOBODY where nothing listens. Not by a proxy, to which gRPC would go even for 127.0.0.1. A Ray under TLS ends the
    connection of whoever shows no certificate, and with RAY_USE_TLS no other can be joined.
    """
    import grpc

    target = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    with grpc.insecure_channel(target, options=[("grpc.enable_http_proxy", 0)]) as channel:
        ask = channel.unary_unary(
            "/ray.rpc.NodeInfoGcsService/CheckAlive", request_serializer=bytes, response_deserializer=bytes
        )
        try:
            ask(b"", timeout=ANSWER_S, metadata=(("authorization", f"Bearer {token}"),) if token else None)
        except grpc.RpcError as error:
            code = error.code()
            if code == grpc.StatusCode.UNAUTHENTICATED:
                return GUARDED
            if code == grpc.StatusCode.UNAVAILABLE and (_under_tls() or not _listens(host, port)):
                return NOBODY
            return code.name.lower().replace("_", " ")
    return OPEN


def _stay_on_this_machine(stay: bool) -> None:
    """Whether the Ray started or joined next by this process names itself by 127.0.0.1."""
    if stay and os.environ.get(REACHABLE) != "0":
        _replaced[:] = [os.environ.get(REACHABLE)]
        os.environ[REACHABLE] = "0"
    elif not stay and _replaced:  # what was set by somebody else (clusters/local.sh) stands
        before = _replaced.pop()
        os.environ.pop(REACHABLE, None)
        if before is not None:
            os.environ[REACHABLE] = before
    constants = sys.modules.get("ray._private.ray_constants")
    if constants is not None:  # it has read the variable already
        constants.ENABLE_RAY_CLUSTER = os.environ.get(REACHABLE, "1") != "0"  # type: ignore[attr-defined]
