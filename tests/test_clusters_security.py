"""Joining a Ray that others can reach: refused without a token, and where the cluster itself asks for none."""

import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest

from clusters import security
from clusters.config import InputError

OPEN, GUARDED = "open", "guarded"


class ControlStore(grpc.GenericRpcHandler):
    """What of Ray's control store a stranger meets first; it wants a token, or does not."""

    def __init__(self, kind: str) -> None:
        self._kind = kind

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:
        def answer(_: bytes, context: grpc.ServicerContext) -> bytes:
            assert handler_call_details.method == "/ray.rpc.NodeInfoGcsService/CheckAlive"
            if self._kind == GUARDED:
                context.abort(grpc.StatusCode.UNAUTHENTICATED, "InvalidAuthToken")
            return b""

        return grpc.unary_unary_rpc_method_handler(answer)


def own_address() -> str:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
        except OSError:
            pytest.skip("this machine has no network")
        return probe.getsockname()[0]


@pytest.fixture
def cluster(request: pytest.FixtureRequest) -> Iterator[int]:
    """Something that answers as Ray does, on every address of this machine; its port."""
    server = grpc.server(ThreadPoolExecutor(1), handlers=[ControlStore(request.param)])
    port = server.add_insecure_port("0.0.0.0:0")
    server.start()
    yield port
    server.stop(None)


@pytest.fixture
def token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Token mode, with a token file as it should be."""
    path = tmp_path / "auth_token"
    path.write_text("0" * 64)
    path.chmod(0o600)
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(path))
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    return path


@pytest.mark.parametrize("cluster", [GUARDED], indirect=True)
def test_a_cluster_that_wants_a_token_is_joined_with_one(cluster: int, token: Path) -> None:
    security.guard(f"{own_address()}:{cluster}")
    security.guard(f"127.0.0.1:{cluster}")


@pytest.mark.parametrize("cluster", [GUARDED], indirect=True)
@pytest.mark.parametrize("host", ["own", "127.0.0.1"])  # by its loopback address too, since others reach it as well
def test_without_token_authentication_nothing_is_joined(
    cluster: int, host: str, token: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = f"{own_address() if host == 'own' else host}:{cluster}"
    for mode in ("", "disabled", "tokn"):
        monkeypatch.setenv("RAY_AUTH_MODE", mode)
        with pytest.raises(InputError, match=f"RAY_AUTH_MODE is '{mode}'.*set RAY_AUTH_MODE=token"):
            security.guard(address)


@pytest.mark.parametrize("cluster", [GUARDED], indirect=True)
def test_the_token_is_there_and_its_owner_s_alone(cluster: int, token: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    address = f"{own_address()}:{cluster}"
    token.chmod(0o640)
    with pytest.raises(InputError, match=r"others on this machine can read the token; chmod 600"):
        security.guard(address)
    token.unlink()
    with pytest.raises(InputError, match=r"no token for the Ray at .*; copy the cluster's there"):
        security.guard(address)
    monkeypatch.setenv("RAY_AUTH_TOKEN", "x" * 40)  # as KubeRay gives it to containers
    security.guard(address)


@pytest.mark.parametrize("cluster", [OPEN], indirect=True)
def test_a_cluster_that_answers_strangers_is_refused_whatever_we_have(cluster: int, token: Path) -> None:
    with pytest.raises(InputError, match="it answers without a token; restart every node"):
        security.guard(f"{own_address()}:{cluster}")


def test_what_only_this_machine_reaches_needs_no_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        security.guard(f"127.0.0.1:{listener.getsockname()[1]}")


def test_a_local_ray_gets_a_token_that_others_cannot_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", security.REACHABLE):
        monkeypatch.delenv(name, raising=False)
    path = tmp_path / ".ray/auth_token"
    security.guard("local")
    first = path.read_text()
    assert len(first) == 64
    assert path.stat().st_mode & 0o777 == 0o600
    path.chmod(0o644)  # as Ray itself leaves it
    security.guard("local")
    assert path.read_text() == first
    assert path.stat().st_mode & 0o777 == 0o600
    # A local Ray names itself by 127.0.0.1, and one that is joined afterwards does not.
    assert security.os.environ[security.REACHABLE] == "0"
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        security.guard(f"127.0.0.1:{listener.getsockname()[1]}")
    assert security.REACHABLE not in security.os.environ


def test_what_is_no_address_is_left_to_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    security.guard("nowhere")
    with pytest.raises(InputError, match="the Ray at auto can be reached by others"):
        security.guard("auto")


def test_addresses_are_taken_apart() -> None:
    split = security.split_address
    assert split("10.0.0.3:6379") == ("10.0.0.3", 6379)
    assert split("ray://head:10001") == ("head", 10001)
    assert split("[::1]:6379") == ("::1", 6379)
    assert split("auto") == ("auto", 0)
