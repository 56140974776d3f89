"""Nothing is sent to a Ray that takes whatever comes, or that this side's token is not for."""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from clusters import submit
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
