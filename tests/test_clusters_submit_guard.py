"""Nothing is sent to a Ray that takes whatever comes, or that this side's token is not for."""

import os
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
import requests

from clusters import listeners, security, submit, upload
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
            for address in (f"http://127.0.0.1:{port}", f"http://localhost:{port}"):
                with pytest.raises(InputError, match=rf"{port}: what listens there is nobody's, .* another port"):
                    submit.run([address, *COMMAND])
            with pytest.raises(InputError, match="nobody's"):
                security.check_owner("127.0.0.1", port)
        finally:
            other.kill()
    assert started == []
    assert listeners.listeners(port) == set()


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


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--runtime-env-json", '{"env_vars": {"WANDB_API_KEY": "0123456789abcdef"}}'], "a value for WANDB_API_KEY"),
        (["--", "env", "AWS_SECRET_ACCESS_KEY=abcdefghij", "python", "-m", "pretrain"], "a value for AWS_SECRET"),
        (["--runtime-env", "{folder}/env.yaml"], r"env.yaml:2: a value for HF_TOKEN stands here \(hf_m…\)"),
    ],
)
def test_a_secret_in_words_or_environment_stays_here(
    started: list[list[str]], tmp_path: Path, words: list[str], told: str
) -> None:
    (tmp_path / "env.yaml").write_text("env_vars:\n  HF_TOKEN: hf_mine\n")
    with dashboard(TOKEN) as address, pytest.raises(InputError, match=told) as refused:
        submit.run([address, *[word.replace("{folder}", str(tmp_path)) for word in words], *COMMAND])
    assert "0123456789abcdef" not in str(refused.value) and "scheduler's secret" in str(refused.value)
    assert started == []


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("DATA/shard-000000.tar", "a dataset"),
        ("scans/a/1.dcm", "a DICOM image"),
        ("keyring.json", "a keyring"),
        ("keyring-whois/1.parquet", "the source ids"),
        (".env", "a file of secrets"),
    ],
)
def test_data_of_patients_and_secrets_are_not_sent_along(
    started: list[list[str]], tmp_path: Path, name: str, what: str
) -> None:
    folder = tmp_path / "mine"
    (folder / name).parent.mkdir(parents=True)
    (folder / name).write_bytes(b"x")
    (folder / "train.py").write_text("")
    words = [f"--working-dir={folder}", *COMMAND[2:]]
    with dashboard(TOKEN) as address:
        with pytest.raises(InputError, match=f"{name} is {what}.* would be sent along; .* .rayignore"):
            submit.run([address, *words])
        assert started == []
        (folder / ".rayignore").write_text(f"{name}\n")
        submit.run([address, *words])
    assert len(started) == 1


def test_a_folder_that_is_too_large_names_what_is_large(started: list[list[str]], tmp_path: Path) -> None:
    for number, size in enumerate((1_000, 15_000_000, 9_000_000, 10)):
        (tmp_path / f"{number}.bin").write_bytes(bytes(size))
    with dashboard(TOKEN) as address, pytest.raises(InputError, match=r"24 MB .*1.bin \(15 MB\), 2.bin \(9 MB\)"):
        submit.run([address, "--working-dir", str(tmp_path), *COMMAND[2:]])
    assert started == []


def test_what_is_looked_at_is_what_ray_packs(tmp_path: Path) -> None:
    from tests.test_clusters_upload import sent

    folder = tmp_path / "mine"
    for name in ("a.py", "b/c.py", "b/big.bin", "runs/x", ".git/y", "kept.bin", "__pycache__/z.pyc"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"12345")
    (folder / ".gitignore").write_text("/runs/\n")
    (folder / "b" / ".rayignore").write_text("*.bin\n")
    assert upload.packed(folder) == sent(folder, tmp_path / "package.zip")
    assert set(upload.packed(folder)) >= {"a.py", "b/c.py", "kept.bin"} and "runs/x" not in upload.packed(folder)
