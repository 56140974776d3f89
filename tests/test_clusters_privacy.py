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
USER = "someuserofthismachine"


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


RECIPE = {
    "encoder": {"name": "resnet18"},
    "views": {"size_px": 32},
    "stages": [{"method": "simclr", "batch_size": 8, "steps": 2, "projection_hidden": 16, "projection_dim": 8}],
    "precision": "fp32",
    "probe": {"every_steps": 9},
}


def in_view(command: list[str], trap: Trap) -> tuple[str, set[str]]:
    """Run a command to its good end with keys in its environment; what it prints, and all command lines meanwhile."""
    named = dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"), trap.url)
    keys = {"WANDB_API_KEY": CANARY, "AWS_SECRET_ACCESS_KEY": CANARY, "NO_PROXY": "", "no_proxy": ""}
    keys |= {"LOGNAME": USER, "USER": USER}
    # A process of W&B's that is another's would be told, and not seen here.
    apart = {name: value for name, value in os.environ.items() if name != "WANDB_SERVICE"}
    process = subprocess.Popen(
        [sys.executable, *command],
        cwd=ROOT,
        env={**apart, **named, **keys, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    argvs: set[str] = set()
    watcher = threading.Thread(target=_collect_argvs, args=(process, argvs))
    watcher.start()
    output, _ = process.communicate(timeout=540)
    watcher.join()
    assert process.returncode == 0, output
    return output, argvs


def check_no_key(folder: Path, output: str, argvs: set[str]) -> None:
    assert not any(CANARY in argv for argv in argvs)
    assert CANARY not in output
    for path in folder.rglob("*"):
        assert not path.is_file() or CANARY.encode() not in path.read_bytes(), path


@pytest.mark.timeout(600)
def test_a_strict_run_sends_nothing_and_keeps_no_key_path_host_or_user(
    synthetic_dataset: Dataset, tmp_path: Path, trap: Trap
) -> None:
    """Pretraining, then fine-tuning."""
    folder, log, recipe = tmp_path / "mrs-example", tmp_path / "attempts.txt", tmp_path / "recipe.yaml"
    log.touch()
    recipe.write_text(yaml.safe_dump(RECIPE))
    run, out, data = folder / "run", folder / "out", f"data={synthetic_dataset.location}"
    words = {
        "pretrain": [str(recipe), data, f"run={run}", "tracking.every_steps=1"],
        "finetune": [
            str(ROOT / "finetune/recipes/synthetic.yaml"),
            data,
            f"encoder={run}",
            f"out={out}",
            "bootstrap.resamples=20",
        ],
    }
    for room, made, curve in (("pretrain", run, b"1-simclr/loss"), ("finetune", out, b"fine-tuning")):
        command = [str(ROOT / "tests/guarded_run.py"), str(log), room, *words[room], "tracking.privacy=strict"]
        output, argvs = in_view(command, trap)
        assert log.read_text() == ""
        assert trap.asked == []
        (kept,) = made.glob("wandb/offline-run-*/*.wandb")
        assert curve in kept.read_bytes()  # so that what is not in it could have been
        private = [str(tmp_path), "mrs-example", str(ROOT), "guarded_run.py", "recipe.yaml", USER]
        private.append(synthetic_dataset.location)
        # Shorter names stand somewhere in any file
        private += [name for name in (socket.gethostname(), getpass.getuser()) if len(name) > 4]
        for word in private:
            for path in made.glob("wandb/**/*"):
                assert not path.is_file() or word.encode() not in path.read_bytes(), (word, path)
        assert any("wandb-core" in argv for argv in argvs)  # so that it was looked at, too
        check_no_key(made, output, argvs)
        for path in made.rglob("*"):
            assert path.is_symlink() or not path.stat().st_mode & 0o077, path
        assert stat.S_IMODE(made.stat().st_mode) == 0o700


@pytest.mark.faults
@pytest.mark.timeout(600)
def test_a_strict_run_under_ray_calls_nobody(synthetic_dataset: Dataset, tmp_path: Path, trap: Trap) -> None:
    """The guard stands in every Python process: driver, Ray's own and workers, each of which writes down that it is."""
    log, guarded, recipe = tmp_path / "attempts.txt", tmp_path / "guarded.txt", tmp_path / "recipe.yaml"
    site = tmp_path / "site"
    site.mkdir()
    log.touch()
    recipe.write_text(yaml.safe_dump(RECIPE))
    (site / "sitecustomize.py").write_text(
        f"import os, runpy, sys\nrunpy.run_path({str(ROOT / 'tests/guarded_run.py')!r}, run_name='guard')\n"
        f"open({str(guarded)!r}, 'a').write(' '.join(sys.orig_argv) + chr(10))\n"
    )
    words = [f"data={synthetic_dataset.location}", f"run={tmp_path / 'run'}", "cluster.num_workers=2"]
    more = {
        "GUARD_LOG": str(log),
        "PYTHONPATH": f"{site}:{ROOT}",
        **dict.fromkeys(
            ("HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy"), trap.url
        ),  # of W&B's own process, too
    }
    apart = {name: value for name, value in os.environ.items() if name not in ("WANDB_SERVICE", "RAY_ADDRESS")}
    command = [sys.executable, "-m", "pretrain", str(recipe), *words, "tracking.privacy=strict"]
    done = subprocess.run(command, cwd=ROOT, env=apart | more, timeout=540, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    started = guarded.read_text()
    assert started.count("default_worker.py") >= 2 and "-m pretrain" in started
    assert log.read_text() == ""
    assert trap.asked == []


def _collect_argvs(process: subprocess.Popen, argvs: set[str]) -> None:
    """The command lines of a process and of all that it starts, until it ends."""
    while process.poll() is None:
        family: list[psutil.Process] = []
        with suppress(psutil.Error):
            family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
        for member in family:
            with suppress(psutil.Error):  # one that has just ended
                argvs.add(" ".join(member.cmdline()))
        time.sleep(0.05)


def test_the_guard_and_the_trap_would_have_noticed(tmp_path: Path, trap: Trap) -> None:
    log = tmp_path / "attempts.txt"
    script = (
        "import runpy, sys, socket, urllib.request\n"
        f"sys.argv = ['x', {str(log)!r}]\n"
        f"runpy.run_path({str(ROOT / 'tests/guarded_run.py')!r})\n"
        "udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n"
        "for call in (lambda: socket.create_connection(('203.0.113.1', 80), 1),"
        " lambda: udp.sendto(b'x', ('203.0.113.1', 53)), lambda: udp.connect_ex(('203.0.113.1', 53)),"
        " lambda: urllib.request.urlopen('http://example.org')):\n"
        "    try:\n        call()\n    except OSError:\n        pass\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, env={"PATH": os.environ["PATH"]}, timeout=60)
    udp = [f"{name} ('203.0.113.1', 53)" for name in ("sendto", "connect_ex")]
    assert log.read_text().splitlines() == ["look up 203.0.113.1", *udp, "look up example.org"]
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
    clusters = [{"cluster": {"address": address}} for address in ("gpu.hospital.example:6379", None)]
    assert without_places(clusters) == [{"cluster": {"address": "(a place)"}}, clusters[1]]
