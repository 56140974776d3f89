"""Joining a Ray that others can reach: refused without a token, and where the cluster itself asks for none."""

import os
import shutil
import socket
import socketserver
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest

from clusters import security
from clusters.config import InputError
from clusters.connection import LEAN_RAY, QUIET_RAY
from clusters.tokens import prepare_token
from tests.fault_runs import wait_for

ROOT = Path(__file__).parents[1]
OPEN, GUARDED, SLOW, OTHER = "open", "guarded", "slow", "other"
TOKEN = "0" * 64


class ControlStore(grpc.GenericRpcHandler):
    """What of Ray's control store a stranger meets first; it wants a token, or does not."""

    def __init__(self, kind: str) -> None:
        self._kind = kind

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:
        def answer(_: bytes, context: grpc.ServicerContext) -> bytes:
            assert handler_call_details.method == "/ray.rpc.NodeInfoGcsService/CheckAlive"
            if self._kind == SLOW:
                time.sleep(3)
            elif self._kind == OTHER:
                context.abort(grpc.StatusCode.UNIMPLEMENTED, "Method not found!")
            elif self._kind == GUARDED and ("authorization", f"Bearer {TOKEN}") not in context.invocation_metadata():
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


@contextmanager
def serving(kind: str, host: str) -> Iterator[int]:
    """Something that answers as Ray does; its port."""
    server = grpc.server(ThreadPoolExecutor(1), handlers=[ControlStore(kind)])
    port = server.add_insecure_port(f"{host}:0")
    server.start()
    yield port
    server.stop(None)


@pytest.fixture
def cluster(request: pytest.FixtureRequest) -> Iterator[int]:
    """It on every address of this machine; its port."""
    with serving(request.param, "0.0.0.0") as port:
        yield port


@pytest.fixture
def token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Token mode, with a token file as it should be."""
    path = tmp_path / "auth_token"
    path.write_text(TOKEN + "\n")
    path.chmod(0o600)
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(path))
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    return path


@pytest.mark.parametrize("cluster", [GUARDED], indirect=True)
def test_a_cluster_that_wants_a_token_is_joined_with_one(
    cluster: int, token: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    security.guard(f"{own_address()}:{cluster}")
    security.guard(f"127.0.0.1:{cluster}")
    assert capsys.readouterr().err == "", "nor is it said to be open"


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
    monkeypatch.setenv("RAY_AUTH_TOKEN", TOKEN)  # as KubeRay gives it to containers
    security.guard(address)


@pytest.mark.parametrize("cluster", [GUARDED], indirect=True)
def test_another_cluster_s_token_is_told_and_not_tried_for_ever(
    cluster: int, token: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    token.write_text("1" * 64)
    for address in (f"{own_address()}:{cluster}", f"127.0.0.1:{cluster}"):
        with pytest.raises(InputError, match=rf"^{token}: not the token of the Ray at {address}; copy"):
            security.guard(address)
    monkeypatch.setenv("RAY_AUTH_TOKEN", "1" * 64)
    with pytest.raises(InputError, match=r"^RAY_AUTH_TOKEN: not the token"):
        security.guard(f"127.0.0.1:{cluster}")


@pytest.mark.parametrize("cluster", [GUARDED], indirect=True)
def test_what_is_no_token_is_told(cluster: int, token: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    addresses = [f"{own_address()}:{cluster}", f"127.0.0.1:{cluster}"]
    for written in (b"two\nlines", "schl\u00fcssel".encode(), b"\x00\xff"):
        token.write_bytes(written)
        for address in addresses:
            with pytest.raises(InputError, match=f"^{token}: no token, which is a line"):
                security.guard(address)
    token.write_text("\n")
    with pytest.raises(InputError, match=f"^{token}: empty; copy the token of the Ray at {addresses[0]} there"):
        security.guard(addresses[0])
    monkeypatch.setenv("RAY_AUTH_TOKEN", f"{TOKEN}\n")
    for address in addresses:
        with pytest.raises(InputError, match=r"^RAY_AUTH_TOKEN: no token"):
            security.guard(address)


def test_where_nothing_listens_a_head_has_time_to_start(token: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(security, "STARTS_S", 0.1)
    with pytest.raises(InputError, match=r"nothing listens at 127\.0\.0\.1:9; start the Ray there, or give its head's"):
        security.guard("127.0.0.1:9")
    monkeypatch.setattr(security, "STARTS_S", 30.0)
    answers = iter([security.NOBODY, security.NOBODY, security.GUARDED, "fine"])
    monkeypatch.setattr(security, "_answer", lambda *_: next(answers))
    security.guard("127.0.0.1:9")
    assert next(answers, None) is None


def test_a_head_that_comes_late_is_looked_at_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before it came nobody could reach it; then it answered on every address."""
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    reached = iter([False, True, True])
    monkeypatch.setattr(security, "_others_reach", lambda _: next(reached))
    monkeypatch.setattr(security, "_answer", lambda *_: security.OPEN)
    with pytest.raises(InputError, match="can be reached by others and RAY_AUTH_MODE is ''"):
        security.guard("127.0.0.1:9")


@pytest.mark.parametrize(("host", "stays"), [("127.0.0.1", "0"), ("0.0.0.0", None)])
def test_a_ray_that_names_itself_by_the_loopback_address_is_joined_by_it(
    host: str, stays: str | None, token: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray would put the machine's own address in its place, at which it does not listen."""
    monkeypatch.delenv(security.REACHABLE, raising=False)
    with serving(GUARDED, host) as port:
        security.guard(f"127.0.0.1:{port}")
        assert os.environ.get(security.REACHABLE) == stays
        security.guard("nowhere")
    assert security.REACHABLE not in os.environ


@pytest.mark.parametrize("cluster", [OPEN], indirect=True)
def test_a_cluster_that_answers_strangers_is_refused_whatever_we_have(cluster: int, token: Path) -> None:
    with pytest.raises(InputError, match="it answers without a token; restart every node"):
        security.guard(f"{own_address()}:{cluster}")


@pytest.mark.parametrize("cluster", [OPEN], indirect=True)
def test_a_proxy_hides_no_open_cluster(cluster: int, token: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """gRPC would ask the proxy for any address, this machine's too."""
    for name in ("no_proxy", "NO_PROXY", "no_grpc_proxy"):
        monkeypatch.delenv(name, raising=False)
    for name in ("http_proxy", "https_proxy", "grpc_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    with pytest.raises(InputError, match="it answers without a token"):
        security.guard(f"{own_address()}:{cluster}")


@pytest.mark.parametrize(
    ("cluster", "told"), [(SLOW, "deadline exceeded"), (OTHER, "unimplemented")], indirect=["cluster"]
)
def test_what_does_not_tell_whether_it_wants_a_token_is_not_joined(
    cluster: int, told: str, token: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(security, "ANSWER_S", 1.0)
    with pytest.raises(InputError, match=rf"does not tell whether it asks for a token \({told}\); give the address"):
        security.guard(f"{own_address()}:{cluster}")
    monkeypatch.setattr(security, "STARTS_S", 0.1)
    with pytest.raises(InputError, match="nothing listens at"):
        security.guard(f"{own_address()}:9")


def test_what_listens_and_hangs_up_is_not_taken_for_nobody(token: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_USE_TLS", raising=False)
    with socketserver.TCPServer(("", 0), socketserver.BaseRequestHandler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"{own_address()}:{server.server_address[1]}"
        told = r"does not tell whether it asks for a token \(unavailable\); .* not the dashboard's \(8265, .*=1$"
        with pytest.raises(InputError, match=told):
            security.guard(address)
        monkeypatch.setenv("RAY_USE_TLS", "1")  # as a Ray does then to whoever shows no certificate
        security.guard(address)
        server.shutdown()


@contextmanager
def real_ray(mode: str, log: Path) -> Iterator[int]:
    """A head on every address of this machine; its port. Ray gives up after half a minute, and is started anew then."""
    environment = {**os.environ, **QUIET_RAY, **LEAN_RAY, "RAY_AUTH_MODE": mode}
    environment.pop(security.REACHABLE, None)
    options = ["--head", "--block", "--num-cpus=0", "--include-dashboard=false", "--object-store-memory=100000000"]
    for _ in range(3):
        with socket.create_server(("", 0)) as free:
            port = free.getsockname()[1]
        with tempfile.TemporaryDirectory(prefix="mv-", dir="/tmp", ignore_cleanup_errors=True) as folder:  # short
            command = [str(Path(sys.executable).parent / "ray"), "start", *options]
            command += [f"--port={port}", f"--temp-dir={folder}"]
            with log.open("w") as file:
                ray = subprocess.Popen(command, env=environment, stdout=file, stderr=file, start_new_session=True)
            try:
                wait_for(lambda ray=ray: "runtime started" in log.read_text() or ray.poll() is not None, "Ray", 120)
                if ray.poll() is None:
                    yield port
                    return
            finally:
                ray.terminate()
                ray.wait(60)
    pytest.fail(log.read_text())


@pytest.mark.timeout(600)
@pytest.mark.parametrize("mode", ["disabled", "token"])
def test_a_real_ray_tells_a_stranger_what_is_asked_for(mode: str, token: Path, tmp_path: Path) -> None:
    """On an address that others can reach: an open one is refused, one with a token is joined."""
    with real_ray(mode, tmp_path / "log") as port:
        if mode == "token":
            security.guard(f"{own_address()}:{port}")
        else:
            with pytest.raises(InputError, match="it answers without a token"):
                security.guard(f"{own_address()}:{port}")


def test_another_user_s_token_that_others_can_read_is_not_used(token: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    token.chmod(0o644)
    monkeypatch.setattr(os, "getuid", lambda: 12345)
    with pytest.raises(InputError, match="another user's, and others on this machine can read the token; have it made"):
        prepare_token()
    token.chmod(0o600)
    prepare_token()


def test_what_only_this_machine_reaches_may_be_open_which_is_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    with serving(OPEN, "127.0.0.1") as port:
        security.guard(f"127.0.0.1:{port}")
    told = capsys.readouterr().err
    assert f"127.0.0.1:{port} asks for no token: every user of this machine, and of another where it is" in told
    security.guard("local")
    assert "started here asks for no token: every user of this machine can run code" in capsys.readouterr().err
    security.guard("nowhere")  # and what is started next may be reached by its own address again


def test_a_loopback_address_may_be_the_near_end_of_a_tunnel(token: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """To Ray's client port, say, which does not tell whether a token is asked for."""
    with serving(OTHER, "127.0.0.1") as port:
        security.guard(f"127.0.0.1:{port}")
        monkeypatch.delenv("RAY_AUTH_MODE")
        with pytest.raises(InputError, match="does not tell whether it asks for a token"):
            security.guard(f"127.0.0.1:{port}")
        for address in (f"ray://127.0.0.1:{port}", "ray://127.0.0.1"):
            with pytest.raises(InputError, match="RAY_AUTH_MODE is ''"):
                security.guard(address)


def test_a_local_ray_stays_on_this_machine_whatever_was_set(token: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(security.REACHABLE, "1")
    for _ in range(2):
        security.guard("local")
        assert os.environ[security.REACHABLE] == "0"
    security.guard("nowhere")
    assert os.environ[security.REACHABLE] == "1"


def test_a_token_is_its_owner_s_alone_also_where_only_this_machine_reaches_the_ray(
    token: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with serving(GUARDED, "127.0.0.1") as port:
        security.guard(f"127.0.0.1:{port}")
        token.chmod(0o644)
        with pytest.raises(InputError, match=r"others on this machine can read the token; chmod 600"):
            security.guard(f"127.0.0.1:{port}")
    assert capsys.readouterr().err == ""


def isolated(script: str, tmp_path: Path) -> str:
    """What a script prints on a machine with a network of its own: its name is 10.9.8.7, which is also 10.9.8.8."""
    (tmp_path / "hosts").write_text(f"127.0.0.1 localhost\n10.9.8.7 {socket.gethostname()}\n")
    network = """ip link set lo up && ip link add v0 type veth peer name v1 && ip addr add 10.9.8.7/24 dev v0 &&
        ip addr add 10.9.8.8/24 dev v0 && ip link set v0 up && ip link set v1 up && mount --bind "$0" /etc/hosts"""
    enter = ["unshare", "--map-root-user", "--net", "--mount", "sh", "-c", f'{network} && exec "$@"']
    enter.append(str(tmp_path / "hosts"))
    if not shutil.which("unshare") or subprocess.run([*enter, "true"], capture_output=True).returncode:
        pytest.skip("no namespaces here")
    done = subprocess.run([*enter, sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_machine_on_a_network_without_a_way_out_is_reached_all_the_same(tmp_path: Path) -> None:
    script = """
import os, socket
from clusters import security
from clusters.config import InputError
os.environ.pop("RAY_AUTH_MODE", None)
with socket.create_server(("127.0.0.1", 0)) as listener:
    port = listener.getsockname()[1]
    try:
        with socket.create_server(("10.9.8.8", port)):
            security.guard(f"127.0.0.1:{port}")
    except InputError as error:
        print(error)
"""
    assert "can be reached by others" in isolated(script, tmp_path)


@pytest.mark.skipif(sys.platform != "linux", reason="the loopback interface has that name on Linux")
def test_collectives_beside_a_local_ray_listen_on_this_machine_alone(tmp_path: Path) -> None:
    """Two processes: a group as gloo makes it by itself, and one in the environment of a local Ray."""
    script = f"""
import os, psutil
import torch.distributed as dist
from clusters.connection import set_environment
def addresses():
    return {{one.laddr.ip for one in psutil.Process().net_connections() if one.status == "LISTEN"}}
os.environ.pop("GLOO_SOCKET_IFNAME", None)
rank = 0 if os.fork() else 1
dist.init_process_group("gloo", "file://{tmp_path}/store", rank=rank, world_size=2)
by_itself = addresses()
set_environment(local=True)
dist.barrier(dist.new_group([0, 1]))
if rank == 0:
    print(by_itself, addresses() - by_itself)
dist.barrier()
"""
    assert isolated(script, tmp_path) == "{'10.9.8.7'} {'127.0.0.1'}\n"


@pytest.mark.parametrize("cluster", [OPEN], indirect=True)
@pytest.mark.parametrize("words", ["data verify /nowhere", "pretrain x.yaml", "finetune x.yaml", "clusters runs ."])
def test_no_command_runs_as_a_job_on_a_cluster_that_strangers_can_use(cluster: int, words: str) -> None:
    """As a job's environment is, with no word of Ray in the command."""
    address = f"{own_address()}:{cluster}"
    job = {name: value for name, value in os.environ.items() if name != "RAY_AUTH_MODE"}
    job |= {"RAY_ADDRESS": address, "RAY_JOB_CONFIG_JSON_ENV_VAR": "{}"}
    command = [sys.executable, "-m", *words.split()]
    done = subprocess.run(command, env=job, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: the Ray at {address} can be reached by others and RAY_AUTH_MODE is ''")
    assert done.stdout == "" and len(done.stderr.splitlines()) == 1


def test_a_local_ray_gets_a_token_that_others_cannot_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", security.REACHABLE):
        monkeypatch.delenv(name, raising=False)
    path = tmp_path / ".ray/auth_token"
    security.guard("local")
    first = path.read_text()
    assert len(first) == 64
    assert path.stat().st_mode & 0o777 == 0o600
    path.chmod(0o644)  # as Ray itself leaves it
    monkeypatch.setenv("RAY_AUTH_MODE", "")
    security.guard("local")
    assert "RAY_AUTH_MODE" not in os.environ  # where it is not set, Ray turns tokens on
    assert path.read_text() == first, "it may be a cluster's"
    assert path.stat().st_mode & 0o777 == 0o600
    assert f"{path}: others on this machine could read this token until now; unless" in capsys.readouterr().err
    security.guard("local")
    assert capsys.readouterr().err == ""
    # A local Ray names itself by 127.0.0.1, and one that others reach, joined afterwards, does not.
    assert os.environ[security.REACHABLE] == "0"
    path.write_text(TOKEN)
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    with serving(GUARDED, "0.0.0.0") as port:
        security.guard(f"127.0.0.1:{port}")
    assert security.REACHABLE not in os.environ


@pytest.mark.parametrize("mode", ["off", "0", "tokn", " token"])
def test_a_mode_by_which_ray_asks_for_no_token_is_not_taken_for_one(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", mode)
    with pytest.raises(InputError, match=f"RAY_AUTH_MODE is '{mode}', by which Ray asks for no token"):
        security.guard("local")


@pytest.mark.parametrize("cluster", [OPEN], indirect=True)
@pytest.mark.parametrize("spoilt", ["{} ", "{}\n", " {}", "{}:+{}", "{}: {}"])
def test_an_address_that_ray_alone_would_take_is_refused(
    cluster: int, spoilt: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    whole = f"{own_address()}:{cluster}"
    address = spoilt.format(*([own_address(), cluster] if spoilt.count("{") == 2 else [whole]))
    with pytest.raises(InputError, match="is no address of a Ray; give HOST:PORT"):
        security.guard(address)


@pytest.mark.parametrize(("mode", "tls"), [("", "0"), ("disabled", "0"), ("token", "1")])
def test_the_token_is_shown_to_nobody_to_whom_ray_would_not_show_it(
    mode: str, tls: str, token: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", mode)
    monkeypatch.setenv("RAY_USE_TLS", tls)
    shown: list[str] = []
    answer = security._answer
    monkeypatch.setattr(
        security, "_answer", lambda host, port, token="": shown.append(token) or answer(host, port, token)
    )
    with serving(GUARDED, "127.0.0.1") as port:
        security.guard(f"127.0.0.1:{port}")
    assert shown == [""]


def test_what_a_local_ray_keeps_is_its_user_s_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    folder = tmp_path / f"manyview-ray-{os.getuid()}"
    for _ in range(2):
        assert security.session_folder() == str(folder / "ray")
        assert folder.stat().st_mode & 0o777 == 0o700
        folder.chmod(0o777)
    folder.rename(tmp_path / "elsewhere")
    folder.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InputError, match="not a folder of yours, and Ray's sockets would lie there; set RAY_TMPDIR"):
        security.session_folder()
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    assert security.session_folder() is None


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
    assert split("head:²")[1] == 0
    assert split("::1") == split("[::1]") == ("::1", 0)
