"""privacy=strict: nothing of the person, the machine or the keys is kept, and nothing is sent."""

import getpass
import json
import os
import socket
import stat
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
import yaml

from clusters.config import InputError, validate
from clusters.privacy import without_places
from clusters.tracking import TrackingConfig
from data.dataset import Dataset

ROOT = Path(__file__).parents[1]
CANARY = "zz" + "canary" * 5 + "0123456789"
"""As long as a W&B key."""


class Trap:
    """A proxy on this machine that counts who comes and lets nobody through."""

    def __init__(self) -> None:
        self.asked: list[bytes] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                caller, _ = self._listener.accept()
            except OSError:
                return
            with caller:
                self.asked.append(caller.recv(200))

    def close(self) -> None:
        self._listener.close()


@pytest.fixture
def trap() -> Iterator[Trap]:
    one = Trap()
    yield one
    one.close()


def test_a_strict_run_sends_nothing_and_keeps_no_key_path_host_or_user(
    synthetic_dataset: Dataset, tmp_path: Path, trap: Trap
) -> None:
    run, log = tmp_path / "mrs-example" / "run", tmp_path / "attempts.txt"
    log.touch()
    stage = {"method": "simclr", "batch_size": 8, "steps": 2, "projection_hidden": 16, "projection_dim": 8}
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        yaml.safe_dump(
            {
                "encoder": {"name": "resnet18"},
                "views": {"size_px": 32},
                "stages": [stage],
                "precision": "fp32",
                "probe": {"every_steps": 9},
            }
        )
    )
    words = [str(recipe), f"data={synthetic_dataset.location}", f"run={run}", "tracking.privacy=strict"]
    environment = {
        **os.environ,
        **dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"), trap.url),
        **{"WANDB_API_KEY": CANARY, "NO_PROXY": "", "no_proxy": "", "PYTHONPATH": str(ROOT)},
    }
    command = [sys.executable, str(ROOT / "tests/guarded_run.py"), str(log), *words, "tracking.every_steps=1"]
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    argvs: set[str] = set()
    watcher = threading.Thread(target=_collect_argvs, args=(process, argvs))
    watcher.start()
    output, _ = process.communicate(timeout=280)
    watcher.join()

    assert process.returncode == 0, output
    assert log.read_text() == ""
    assert trap.asked == []
    (kept,) = run.glob("wandb/offline-run-*/*.wandb")
    curves = kept.read_bytes()
    assert b"1-simclr/loss" in curves  # so that what is not in it could have been
    private = [str(tmp_path), "mrs-example", str(ROOT), socket.gethostname(), "guarded_run.py", "recipe.yaml"]
    private += [getpass.getuser()] if len(getpass.getuser()) > 4 else []
    for word in private:
        for path in run.glob("wandb/**/*"):
            assert not path.is_file() or word.encode() not in path.read_bytes(), (word, path)
    assert any("wandb-core" in argv for argv in argvs)  # so that it was looked at, too
    assert not any(CANARY in argv for argv in argvs)
    assert CANARY not in output
    for path in run.rglob("*"):
        assert not path.is_file() or CANARY.encode() not in path.read_bytes(), path
        assert path.is_symlink() or not path.stat().st_mode & 0o077, path
    assert stat.S_IMODE(run.stat().st_mode) == 0o700


def _collect_argvs(process: subprocess.Popen, argvs: set[str]) -> None:
    """The command lines of a process and of all that it starts, until it ends."""
    while process.poll() is None:
        with suppress(psutil.Error):
            family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
            argvs |= {" ".join(member.cmdline()) for member in family}
        time.sleep(0.05)


def test_the_guard_and_the_trap_would_have_noticed(tmp_path: Path, trap: Trap) -> None:
    log = tmp_path / "attempts.txt"
    script = (
        "import runpy, sys, socket, urllib.request\n"
        f"sys.argv = ['x', {str(log)!r}]\n"
        f"runpy.run_path({str(ROOT / 'tests/guarded_run.py')!r})\n"
        "for call in (lambda: socket.create_connection(('203.0.113.1', 80), 1),"
        " lambda: urllib.request.urlopen('http://example.org')):\n"
        "    try:\n        call()\n    except OSError:\n        pass\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, env={"PATH": os.environ["PATH"]}, timeout=60)
    assert log.read_text().splitlines() == ["look up 203.0.113.1", "look up example.org"]
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({"http": trap.url}))
    with pytest.raises(OSError, match=r".*"):
        opener.open("http://example.org", timeout=5)
    assert trap.asked[0].startswith(b"GET http://example.org")


def test_strict_is_never_online() -> None:
    with pytest.raises(InputError, match="privacy=strict sends nothing"):
        validate(TrackingConfig, {"wandb": "online", "privacy": "strict"}, "test")


def test_places_are_taken_out_of_a_config_and_the_rest_stays() -> None:
    config = {
        "data": ["/hospital/mrs-example", "s3://bucket/x"],
        "stages": [{"method": "simclr", "lr": 0.1}],
        "n": None,
    }
    assert json.dumps(without_places(config)) == json.dumps(
        {"data": ["(a place)", "(a place)"], "stages": [{"method": "simclr", "lr": 0.1}], "n": None}
    )
