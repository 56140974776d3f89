"""Nothing is sent to a Ray that takes whatever comes, or that this side's token is not for."""

import ipaddress
import os
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
import requests

from clusters import listeners, security, submit
from clusters.config import InputError

COMMAND = ["--working-dir", ".", "--", "python", "-m", "pretrain", "recipe.yaml"]
TOKEN = "a" * 64


@contextmanager
def dashboard(token: str | None, of_ray: bool = True) -> Iterator[str]:
    """What of Ray's dashboard a stranger meets first; None: it asks for no token. Or what is no Ray."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            shown = self.headers["Authorization"]
            right = token is None or shown == f"Bearer {token}"
            self.send_response((200 if right else 403 if shown else 401) if of_ray else 404)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture(autouse=True)
def started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """What this process would have become."""
    commands: list[list[str]] = []
    monkeypatch.setattr(os, "execv", lambda _, words: commands.append(words))
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_MODE", "HTTP_PROXY", "http_proxy"):
        monkeypatch.delenv(name, raising=False)
    for name in ("no_proxy", "NO_PROXY"):  # undone at the end, whatever `submit` sets
        monkeypatch.setenv(name, "")
    path = tmp_path / "token"
    path.touch(0o600)
    path.write_text(TOKEN)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(path))
    monkeypatch.setenv("RAY_AUTH_MODE", "")  # undone at the end, whatever `submit` sets
    monkeypatch.delenv("RAY_AUTH_MODE")
    return commands


def test_a_guarded_ray_gets_the_job_and_the_token_by_no_argument(started: list[list[str]]) -> None:
    with dashboard(TOKEN) as address:
        submit.run([address, *COMMAND])
    assert started[0][1:] == ["-m", "ray.scripts.scripts", "job", "submit", "--address", address, *COMMAND]
    assert os.environ["RAY_AUTH_MODE"] == "token"  # or Ray would not send it
    assert TOKEN not in " ".join(started[0])


def test_the_job_goes_where_was_looked(started: list[list[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray itself would send it to the address of its variables, whatever `--address` says."""
    from ray.dashboard.utils import get_address_for_submission_client

    with dashboard(TOKEN) as address:
        for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):
            monkeypatch.setenv(name, "http://10.0.0.9:8265")
            assert get_address_for_submission_client(address) == "http://10.0.0.9:8265"
        submit.run([address, *COMMAND])
        assert get_address_for_submission_client(address) == address
    assert len(started) == 1


def test_an_open_ray_gets_nothing(started: list[list[str]]) -> None:
    with dashboard(None) as address, pytest.raises(InputError, match="answers without a token"):
        submit.run([address, *COMMAND])
    assert started == []


def test_another_s_token_an_open_one_and_none_are_told(started: list[list[str]], tmp_path: Path) -> None:
    with dashboard("b" * 64) as address:
        with pytest.raises(InputError, match="token: not the token of the Ray"):
            submit.run([address, *COMMAND])
        (tmp_path / "token").chmod(0o644)
        with pytest.raises(InputError, match="others on this machine can read the token"):
            submit.run([address, *COMMAND])
        (tmp_path / "token").unlink()
        with pytest.raises(InputError, match="no token for the Ray"):
            submit.run([address, *COMMAND])
    assert started == []


def test_where_nothing_answers_and_what_is_no_address(started: list[list[str]]) -> None:
    with dashboard(TOKEN) as address:
        pass
    with dashboard(None, of_ray=False) as other, pytest.raises(InputError, match=r"does not tell .* \(HTTP 404\)"):
        submit.run([other, *COMMAND])
    with pytest.raises(InputError, match="no dashboard of Ray answers there"):
        submit.run([address, *COMMAND])
    for words in ([], ["127.0.0.1:8265", *COMMAND], [address, "python"]):
        with pytest.raises(InputError, match="give the dashboard's address and the command"):
            submit.run(words)
    assert started == []


def test_a_proxy_is_not_shown_the_token(started: list[list[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    """`ray job submit` goes by the same variables."""
    with dashboard(TOKEN) as address, dashboard(None) as proxy:  # which answers everything, so as an open Ray would
        monkeypatch.setenv("http_proxy", proxy)
        submit.run([address, *COMMAND])
        assert requests.get(f"{address}/api/jobs/").status_code == 401, "Ray's own library, by the same variables"
    assert len(started) == 1


LISTEN = "import socket, time; s = socket.create_server(('127.0.0.1', 0)); print(s.getsockname()[1], flush=True)"


@pytest.mark.skipif(os.getuid() != 0, reason="only root can be two users")
def test_another_user_in_the_place_of_a_tunnel_is_shown_nothing(started: list[list[str]]) -> None:
    line = ["/usr/bin/env", "python3", "-c", f"{LISTEN}; time.sleep(60)"]
    with subprocess.Popen(line, user=65534, stdout=subprocess.PIPE, text=True, cwd="/") as other:
        try:
            assert other.stdout is not None
            port = int(other.stdout.readline())
            for address in (f"http://127.0.0.1:{port}", f"http://localhost:{port}", f"http://127.1:{port}"):
                with pytest.raises(InputError, match=rf"{port}: what listens there is nobody's, .* another port"):
                    submit.run([address, *COMMAND])
            with pytest.raises(InputError, match="nobody's"):
                security.check_owner("127.0.0.1", port)
        finally:
            other.kill()
    assert started == []
    for address in ("127.0.0.1", "::1"):
        assert listeners.listeners(ipaddress.ip_address(address), port) == set()


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "127.1", "2130706433", "localhost", "::1", "0.0.0.0", "::ffff:127.0.0.1"]
)
def test_every_spelling_of_this_machine_is_one(host: str) -> None:
    assert listeners.is_loopback(host)


@pytest.mark.parametrize("host", ["10.0.0.3", "::ffff:10.0.0.3", "fe80::1", "no.such.host.invalid", "", "a" * 300])
def test_other_machines_are_none(host: str) -> None:
    assert not listeners.is_loopback(host)


def test_a_name_that_stands_for_another_machine_too_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    found = [(0, 0, 0, "", (address, 0)) for address in ("127.0.0.1", "203.0.113.5")]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
    assert not listeners.is_loopback("head")


def test_who_listens_on_another_address_answers_nobody_here() -> None:
    def found(at: str, port: int) -> bool:
        return listeners.listeners(ipaddress.ip_address(at), port) == {os.getuid()}

    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert found("127.0.0.1", port) and not found("127.0.0.2", port) and not found("::1", port)
    with socket.create_server(("0.0.0.0", 0)) as server:
        port = server.getsockname()[1]
        assert found("127.0.0.1", port) and found("127.0.0.2", port) and not found("::1", port)
    with socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True) as server:
        port = server.getsockname()[1]
        assert found("127.0.0.1", port) and found("::1", port)


def test_a_machine_elsewhere_is_told_that_the_token_goes_in_the_clear(
    started: list[list[str]], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(submit, "_status", lambda _, token="": 200 if token else 401)
    submit.run(["https://gpu.example:8265", *COMMAND])
    assert "in the clear" not in capsys.readouterr().err
    submit.run(["http://gpu.example:8265", *COMMAND])
    assert "in the clear" in (said := capsys.readouterr().err) and "ssh -L 8265:127.0.0.1:8265 gpu.example" in said
    assert len(started) == 2
    with pytest.raises(InputError, match="no address of a dashboard"):
        submit.run(["http://gpu.example:eight", *COMMAND])


def test_what_would_give_something_away_is_sent_nowhere(started: list[list[str]], tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/keyring.json").write_text("{}")
    with dashboard(TOKEN) as address:
        with pytest.raises(InputError, match=r"mine/keyring.json is a keyring and would be sent along"):
            submit.run([address, f"--working-dir={tmp_path / 'mine'}", *COMMAND[2:]])
        with pytest.raises(InputError, match="a value for WANDB_API_KEY"):
            submit.run([address, "--", "env", "WANDB_API_KEY=abcdefgh", *COMMAND[3:]])
    assert started == []
