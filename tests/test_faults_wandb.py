"""W&B that cannot be reached, or whose folder cannot be written, costs a line; the metrics go on."""

import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from clusters.storage import Folder
from clusters.tracking import Tracker, TrackingConfig, read_metrics
from data.dataset import Dataset
from pretrain.config import PretrainConfig
from pretrain.run import train
from tests.fault_runs import ROOT, assert_same_state, recipe


@pytest.fixture(params=["refuses", "says nothing"])
def server(request: pytest.FixtureRequest) -> Iterator[str]:
    """The address of a server that takes no connection, or takes it and never answers."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        if request.param == "says nothing":
            listening.listen(50)
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"


def track(run: Path, mode: str) -> None:
    tracker = Tracker(Folder(run), TrackingConfig.model_validate({"wandb": mode}), "a run", {})
    tracker.start_section(Folder(run), "1-simclr")
    for step in range(1, 4):
        tracker.log(step, {"loss": 1 / step})
    tracker.alarm(3, "collapse", "as planned")
    tracker.close()


def assert_unaffected(run: Path, said: str) -> None:
    assert [record["loss"] for record in read_metrics(Folder(run)) if "loss" in record] == [1, 1 / 2, 1 / 3]
    assert said.count("W&B is left out from here on") == 1


def test_a_server_that_cannot_be_reached(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in {"BASE_URL": server, "API_KEY": "a" * 40}.items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    monkeypatch.setattr("clusters.wandb_run.INIT_TIMEOUT_S", 2.0)
    track(tmp_path / "run", "online")
    assert_unaffected(tmp_path / "run", capsys.readouterr().out)


def test_nobody_waits_for_a_server_that_does_not_answer_at_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The other ranks would wait too, and perhaps give rank 0 up."""
    import wandb

    answers, asked = threading.Event(), threading.Event()

    def init(**_: object) -> None:
        asked.set()
        assert answers.wait(60)
        raise OSError("no route")

    monkeypatch.setattr(wandb, "init", init)
    tracker = Tracker(Folder(tmp_path / "run"), TrackingConfig(wandb="offline"), "a run", {})
    assert asked.wait(60)
    for step in range(1, 4):
        tracker.log(step, {"loss": 1 / step})
    answers.set()
    tracker.close()
    assert_unaffected(tmp_path / "run", capsys.readouterr().out)


LIMITED = """
import resource, signal, sys
from clusters.storage import Folder
from clusters.tracking import Tracker, TrackingConfig

resource.setrlimit(resource.RLIMIT_FSIZE, (24_000, 24_000))
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # a write error, as of a full disk
tracker = Tracker(Folder(sys.argv[1]), TrackingConfig(wandb="offline"), "a run", {"much": "x" * 100_000})
for step in range(100):
    tracker.log(step, {"loss": 1.0})
tracker.close()
"""


def test_a_disk_that_takes_nothing_more(tmp_path: Path) -> None:
    """No file may grow beyond 24 kB, W&B's service and its own included."""
    run = tmp_path / "run"
    apart = {
        name: value for name, value in os.environ.items() if name != "WANDB_SERVICE"
    }  # another's has no such limit
    subprocess.run([sys.executable, "-c", LIMITED, str(run)], cwd=ROOT, env=apart, check=True, timeout=240)
    assert 0 < max(path.stat().st_size for path in (run / "wandb").rglob("*.wandb")) <= 24_000
    assert len(read_metrics(Folder(run))) == 100


STALLED = """
import os, signal, sys, time
import wandb
import clusters.wandb_run
from clusters.storage import Folder
from clusters.tracking import Tracker, TrackingConfig

clusters.wandb_run.STALLED_S = clusters.wandb_run.FINISH_TIMEOUT_S = 1.0
tracker = Tracker(Folder(sys.argv[1]), TrackingConfig(wandb="offline"), "a run", {})
while tracker._wandb._run is None:
    time.sleep(0.1)
service = wandb.setup()._connection._proc._process
os.kill(service.pid, signal.SIGSTOP)  # as if the disk of its folder did not answer
for step in range(2_000):
    tracker.log(step, {f"figure/{number}": 1.0 for number in range(30)})
assert service.poll() is None, "W&B's process was gone before it could stall anything"
print("service", service.pid)
if sys.argv[2] == "an error":
    sys.exit(3)
tracker.close()
again = Tracker(Folder(sys.argv[1] + "-2"), TrackingConfig(wandb="offline"), "another", {})
again.log(1, {"loss": 1.0})
again.close()
"""


@pytest.mark.parametrize("end", ["close", "an error"])
def test_a_process_of_wandb_that_stalls_holds_up_neither_training_nor_end(tmp_path: Path, end: str) -> None:
    """Its pipe is full after about a hundred records; Python itself would wait for it at its end.

    A later run of the same process has a W&B again.
    """
    run = tmp_path / "run"
    apart = {name: value for name, value in os.environ.items() if name != "WANDB_SERVICE"}
    command = [sys.executable, "-c", STALLED, str(run), end]
    done = subprocess.run(command, cwd=ROOT, env=apart, check=False, timeout=120, capture_output=True, text=True)
    assert done.returncode == (3 if end == "an error" else 0), done.stderr
    assert done.stdout.count("W&B is left out from here on (its process takes nothing more") == 1
    assert not psutil.pid_exists(int(done.stdout.split("service ")[1].split()[0]))
    if end == "close":
        assert list((tmp_path / "run-2/wandb").glob("*/*.wandb"))
    assert len(read_metrics(Folder(run))) == 2_000


TRAINED = """
import os, signal, sys, time
from unittest import mock
import wandb
import clusters.wandb_run
from pretrain.config import PretrainConfig
from pretrain.run import train
from pretrain.training import Training

clusters.wandb_run.STALLED_S = clusters.wandb_run.FINISH_TIMEOUT_S = 1.0
clusters.wandb_run.INIT_TIMEOUT_S = 5.0
take = Training.step

def step(training, number, *batch):
    if number == 5 and sys.argv[2] == "stalls":
        while wandb.run is None:
            time.sleep(0.1)
        os.kill(wandb.setup()._connection._proc._process.pid, signal.SIGSTOP)
        print("stopped")
    return take(training, number, *batch)

with mock.patch.object(Training, "step", step):
    train(PretrainConfig.model_validate_json(sys.argv[1]))
"""


@pytest.mark.parametrize("server", ["says nothing"], indirect=True)
@pytest.mark.parametrize("fault", ["stalls", "cannot be reached"])
def test_a_whole_training_beside_a_wandb_that_is_of_no_use(
    synthetic_dataset: Dataset, server: str, tmp_path: Path, fault: str
) -> None:
    """It ends by itself, with the weights, the metrics and the encoder of one without W&B."""
    steps = 120
    alone = recipe(synthetic_dataset, tmp_path / "alone", num_workers=0, steps=steps)
    train(PretrainConfig.model_validate(alone))
    mode = "offline" if fault == "stalls" else "online"
    tracked = {**alone, "run": str(tmp_path / "run"), "tracking": {**alone["tracking"], "wandb": mode}}
    command = [sys.executable, "-c", TRAINED, json.dumps(tracked), fault]
    apart = {name: value for name, value in os.environ.items() if name != "WANDB_SERVICE"}
    apart |= {"WANDB_BASE_URL": server, "WANDB_API_KEY": "a" * 40}
    done = subprocess.run(command, cwd=ROOT, env=apart, check=False, timeout=240, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("stopped") == (fault == "stalls")
    assert done.stdout.count("W&B is left out from here on (") == 1
    assert_same_state(tmp_path / "run", tmp_path / "alone")
    losses = [record["step"] for record in read_metrics(Folder(tmp_path / "run/1-simclr")) if "loss" in record]
    assert losses == list(range(1, steps + 1))
