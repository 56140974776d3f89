"""The real Ray: a worker killed, a cluster of two nodes, and a submitted job, all ending with the same encoder.

The undisturbed run that they must equal, bit for bit, is two plain gloo processes without Ray.
"""

import json
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import yaml

from clusters import distributed, leaving
from clusters.config import Config, InputError
from clusters.joining import Passing, input_error, refuse_other_node
from clusters.launch import ClusterConfig, launch, plain
from clusters.storage import Folder
from clusters.versions import versions_here
from data.dataset import Dataset
from pretrain.config import PretrainConfig
from pretrain.run import pretrain
from tests.rays import use_own_ray
from tests.test_pickles import trap

ROOT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent
# As in an activated environment: a job's `python` is found on the head's PATH.
RAY_ENVIRONMENT = {
    **os.environ,
    "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
    "RAY_AUTH_MODE": "token",
    "RAY_AUTH_TOKEN": secrets.token_hex(16),
    "OMP_NUM_THREADS": "1",
}

CANARY = "zz" + "canary" * 5 + "0123456789"
"""As long as a W&B key."""

pytestmark = pytest.mark.timeout(600)  # Ray takes most of a minute to start workers, on a busy machine several


def values(dataset: Dataset, run: Path) -> dict[str, Any]:
    stage = {"batch_size": 16, "projection_hidden": 16, "projection_dim": 8, "steps": 30}
    return {
        "data": dataset.location,
        "run": str(run),
        "precision": "fp32",
        "encoder": {"name": "resnet18"},
        "views": {"size_px": 32},
        "stages": [{"method": "simclr", **stage}, {"method": "micle", **stage, "steps": 4}],
        "probe": {"every_steps": 100},
        "tracking": {"wandb": "disabled", "every_steps": 2, "every_s": 1},
        "checkpoint": {"every_steps": 5},
        "cluster": {"num_workers": 2},
    }


def command(dataset: Dataset, folder: Path) -> list[str]:
    folder.mkdir(parents=True, exist_ok=True)
    recipe = folder / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(values(dataset, folder / "run")))
    return ["-m", "pretrain", str(recipe)]


def fingerprint(run: Path) -> str:
    return json.loads((run / "2-micle/finished.json").read_text())["encoder"]


@pytest.fixture(scope="module")
def undisturbed(synthetic_dataset: Dataset, tmp_path_factory: pytest.TempPathFactory, ranks) -> str:
    run = tmp_path_factory.mktemp("undisturbed") / "run"
    answers = ranks.run("pretrain_stage", values(synthetic_dataset, run))
    assert answers[0] == answers[1]
    return answers[0]


def ray_workers(process: subprocess.Popen, kind: str = "TrainWorker") -> list[psutil.Process]:
    found = []
    for child in psutil.Process(process.pid).children(recursive=True):
        try:
            if child.cmdline() and child.cmdline()[0].startswith("ray::") and kind in child.cmdline()[0]:
                found.append(child)
        except psutil.Error:
            continue
    return found


def wait_for(condition: Any, timeout_s: float, what: str) -> None:
    until = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < until, f"waited {timeout_s} s for {what}"
        time.sleep(0.1)


@dataclass(frozen=True)
class Killed:
    """A run of which a worker was killed, once it has ended well."""

    run: Path
    session: Path
    said: str
    argvs: list[str]
    libraries: dict[str, str]
    """What a process of each kind has loaded."""


@pytest.fixture(scope="module")
def killed(synthetic_dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Killed]:
    """With keys in its environment, and a folder of its own for what Ray leaves."""
    folder = tmp_path_factory.mktemp("killed")
    run, session = folder / "run", Path(tempfile.mkdtemp(prefix="rs-", dir="/tmp"))  # short, for Ray's sockets
    words = [sys.executable, *command(synthetic_dataset, folder), "tracking.wandb=offline"]
    keys = {"WANDB_API_KEY": CANARY, "AWS_SECRET_ACCESS_KEY": CANARY, "RAY_TMPDIR": str(session)}
    with (folder / "output.txt").open("w") as output:
        driver = subprocess.Popen(
            words, cwd=ROOT, env={**RAY_ENVIRONMENT, **keys}, stdout=output, stderr=subprocess.STDOUT
        )
        try:
            wait_for(lambda: (run / "1-simclr/checkpoints/step-000000005/MANIFEST.json").exists(), 300, "a checkpoint")
            argvs = []
            for child in psutil.Process(driver.pid).children(recursive=True):
                with suppress(psutil.Error):
                    argvs.append(" ".join(child.cmdline()))
            one_of_each = {kind: ray_workers(driver, kind)[0] for kind in ("TrainWorker", "TrainController")}
            libraries = {kind: Path(f"/proc/{one.pid}/maps").read_text() for kind, one in one_of_each.items()}
            victims = ray_workers(driver)
            assert len(victims) == 2
            assert {victim.nice() for victim in victims} == {psutil.Process().nice()}, "Ray would put training last"
            victims[1].send_signal(signal.SIGKILL)
            assert driver.wait(270) == 0, (folder / "output.txt").read_text()[-3000:]
        finally:
            driver.kill()
    assert not victims[1].is_running()
    yield Killed(run, session, (folder / "output.txt").read_text(), argvs, libraries)
    shutil.rmtree(session, ignore_errors=True)


def test_a_worker_killed_by_sigkill_costs_nothing(killed: Killed, undisturbed: str) -> None:
    attempt = json.loads((killed.run / "1-simclr/attempt.json").read_text())["attempt"]
    assert attempt == 2, "the fault did not fire"
    assert re.search("failed on rank [01]: its process died or does not answer", killed.said), killed.said
    assert "; the workers are started again" in killed.said
    assert "1-simclr: resumed at step" in killed.said
    assert "ETA" in killed.said
    assert fingerprint(killed.run) == undisturbed
    assert not (killed.run / ".ray").exists() and not (killed.run / ".launch").exists()


def test_ray_s_controller_imports_nothing_of_the_work(killed: Killed) -> None:
    """Or every start and every restart of a driver takes some seconds longer."""
    assert {kind: "torchvision" in loaded for kind, loaded in killed.libraries.items()} == {
        "TrainWorker": True, "TrainController": False,
    }  # fmt: skip


def test_a_key_is_in_no_file_of_ray_s_session_and_in_no_command_line(killed: Killed) -> None:
    assert any("raylet" in argv for argv in killed.argvs)  # so that Ray's own were looked at, too
    assert not any(CANARY in argv for argv in killed.argvs)
    assert CANARY not in killed.said
    assert list(killed.session.rglob("raylet.out"))
    for path in (*killed.session.rglob("*"), *killed.run.rglob("*")):
        assert not path.is_file() or CANARY.encode() not in path.read_bytes(), path


def test_a_worker_that_sees_another_storage_than_the_driver_does_nothing_there(
    synthetic_dataset: Dataset, tmp_path: Path
) -> None:
    """A node that has come later, without a mount: a run would begin there anew, for itself."""
    run, settings = Folder(tmp_path), {"launch": "launch-1", "datasets": [synthetic_dataset.location]}
    settings |= {"versions": versions_here(), "host": "head", "node": "of the head"}
    with pytest.raises(Passing, match=rf"on \S+: {tmp_path} is not the run folder that the driver sees; mount its"):
        refuse_other_node(run, settings)
    assert not list(tmp_path.iterdir())
    leaving.notes(run).write("launch-1-here", b"")
    refuse_other_node(run, settings)
    with pytest.raises(Passing, match=r"on \S+: the dataset /nothing cannot be read"):
        refuse_other_node(run, {**settings, "datasets": ["/nothing"]})


def test_a_worker_of_other_versions_does_nothing_but_waits_for_sources_that_are_being_unpacked(
    synthetic_dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A node that has come later, from another image; preflight has not seen it."""
    run, versions = Folder(tmp_path), versions_here()
    settings = {"launch": "launch-1", "datasets": [synthetic_dataset.location], "versions": versions}
    settings |= {"host": "head", "node": "of the head"}
    leaving.notes(run).write("launch-1-here", b"")
    pauses: list[float] = []
    monkeypatch.setattr("clusters.joining.time.sleep", pauses.append)
    monkeypatch.setattr("clusters.joining.versions_here", lambda: {**versions, "pillow": "1.0"})
    with pytest.raises(Passing, match=rf"on \S+: pillow is 1.0 and {versions['pillow']} on head; install the same"):
        refuse_other_node(run, settings)
    assert sum(pauses) <= 30
    found = iter([{**versions, "manyview": "half"}, versions])
    monkeypatch.setattr("clusters.joining.versions_here", lambda: next(found))
    refuse_other_node(run, settings)


@pytest.mark.parametrize(("node", "kind"), [("this", InputError), ("of the head", Passing)])
def test_sources_that_are_changed_beside_the_driver_end_the_run_and_those_of_another_node_may_be_mended(
    node: str, kind: type, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, versions = Folder(tmp_path), versions_here()
    settings = {"launch": "launch-1", "datasets": [], "versions": versions, "host": "head", "node": node}
    leaving.notes(run).write("launch-1-here", b"")
    monkeypatch.setattr("clusters.joining.time.sleep", lambda _: None)
    monkeypatch.setattr("clusters.joining.node_here", lambda: "this")
    monkeypatch.setattr("clusters.joining.versions_here", lambda: {**versions, "manyview": "edited"})
    with pytest.raises(kind, match="sources") as refused:
        refuse_other_node(run, settings)
    assert input_error(run, "launch-1") == (str(refused.value) if kind is InputError else None)
    monkeypatch.setattr("clusters.joining.versions_here", lambda: {**versions, "manyview": "edited", "torch": "1"})
    with pytest.raises(Passing, match="torch is 1"):
        refuse_other_node(run, settings)


@pytest.mark.parametrize(("cause", "kind"), [(OSError(28, "No space left"), InputError), (KeyError(1), RuntimeError)])
def test_a_failure_of_storage_is_one_line_in_the_end_and_one_of_code_is_not(cause: Exception, kind: type) -> None:
    from ray.train.v2._internal.exceptions import UserExceptionWithTraceback
    from ray.train.v2.api.exceptions import WorkerGroupError

    traceback = f"Traceback (most recent call last):\n  …\n{type(cause).__name__}: {cause}"
    failures: dict[int, Exception] = {0: UserExceptionWithTraceback(cause, traceback), 1: RuntimeError("peer is gone")}
    found = plain(WorkerGroupError("failed", failures))
    assert type(found) is kind
    assert str(found).startswith(f"training failed on rank 0: {type(cause).__name__}: {cause}, rank 1: peer is gone")


def meet_a_bad_image(_: PretrainConfig) -> dict[str, Any]:
    """Rank 1 alone meets bad input, while rank 0 waits for it in a collective."""
    if distributed.rank() == 1:
        raise InputError("rank 1 met a bad image")
    distributed.barrier()
    return {}


def count_ranks(_: Config) -> dict[str, int]:
    return {"ranks": distributed.world_size()}


@pytest.fixture
def two_nodes(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A Ray cluster of two nodes with one core each, connected to."""
    use_own_ray(monkeypatch)
    import ray
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        cluster.add_node(num_cpus=1)
        ray.init(address=cluster.address, log_to_driver=False)
        yield str(cluster.address)
    finally:
        ray.shutdown()
        cluster.shutdown()


def test_two_nodes_learn_what_two_processes_learn(
    synthetic_dataset: Dataset, undisturbed: str, tmp_path: Path, two_nodes: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray

    assert len([node for node in ray.nodes() if node["Alive"]]) == 2
    config = PretrainConfig.model_validate(values(synthetic_dataset, tmp_path / "run"))
    # What an earlier Ray would have left, by the names that Ray has for its snapshots, where this one works
    mark, before = tmp_path / "was unpickled", tmp_path / "run/.ray/launch-00000000"
    before.mkdir(parents=True)
    for name in ("trainer.pkl", "tuner.pkl", "searcher-state.pkl"):
        (before / name).write_bytes(trap(mark, "bare"))
    with monkeypatch.context() as patch:
        patch.setattr("clusters.launch.uuid", SimpleNamespace(uuid4=lambda: SimpleNamespace(hex="0" * 32)))
        pretrain(config)
    assert fingerprint(tmp_path / "run") == undisturbed
    assert not mark.exists()
    with pytest.raises(InputError, match=r"5 workers ask for 5 CPU cores and the cluster\s+has 2"):
        launch(lambda _: {}, config, ClusterConfig(num_workers=5), Folder(tmp_path / "run"))
    with pytest.raises(InputError, match="rank 1 met a bad image"):
        launch(meet_a_bad_image, config, ClusterConfig(num_workers=2), Folder(tmp_path / "run"))
    assert not (tmp_path / "run/.ray").exists()
    with pytest.raises(InputError, match="ask for a GPU each"):
        launch(lambda _: {}, config, ClusterConfig(num_workers=1, use_gpu=True), Folder(tmp_path / "run"))


def test_a_run_folder_in_a_bucket(bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of another S3 than Amazon's, told where Arrow, which Ray would ask, does not look."""
    (tmp_path / "config").write_text(f"[default]\nendpoint_url = {os.environ['AWS_ENDPOINT_URL']}\n")
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    use_own_ray(monkeypatch)
    run = Folder(f"{bucket}/runs/a")
    assert launch(count_ranks, Config(), ClusterConfig(num_workers=2), run) == {"ranks": 2}
    assert run.names() == []


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


@pytest.fixture
def head(tmp_path: Path) -> Iterator[str]:
    """A local Ray head with a dashboard, as `ray start` makes it; its address for jobs."""
    ray = str(BIN / "ray")
    names = ["port", "dashboard-port", "dashboard-agent-listen-port", "ray-client-server-port"]
    ports = dict(zip(names, free_ports(len(names))))
    start = [ray, "start", "--head", "--block", "--num-cpus=2", "--disable-usage-stats", "--node-ip-address=127.0.0.1"]
    start += [f"--{name}={port}" for name, port in ports.items()]
    address = f"http://127.0.0.1:{ports['dashboard-port']}"
    with (tmp_path / "head.txt").open("w") as output:
        process = subprocess.Popen(start, env=RAY_ENVIRONMENT, stdout=output, stderr=subprocess.STDOUT, cwd=tmp_path)
        listed = [ray, "job", "list", "--address", address]
        try:
            wait_for(
                lambda: subprocess.run(listed, env=RAY_ENVIRONMENT, capture_output=True, check=False).returncode == 0,
                120,
                "the head's dashboard",
            )
            yield address
        finally:
            # Only what this head started: `ray stop` would end every Ray on the machine.
            family = [process, *psutil.Process(process.pid).children(recursive=True)]
            for member in family:
                member.kill()
            process.wait()


def test_a_submitted_job_learns_the_same(
    synthetic_dataset: Dataset, undisturbed: str, tmp_path: Path, head: str
) -> None:
    """The README's `submit … --working-dir . -- python -m pretrain …`, the project not installed."""
    words = command(synthetic_dataset, tmp_path)
    submit = [sys.executable, "-m", "clusters", "submit", head, "--working-dir", "."]
    ended = subprocess.run(
        [*submit, "--", "python", *words], cwd=ROOT, env=RAY_ENVIRONMENT, capture_output=True, text=True, timeout=400
    )
    assert ended.returncode == 0, ended.stdout[-3000:] + ended.stderr[-2000:]
    assert "2-micle  step 4/4" in ended.stdout
    assert fingerprint(tmp_path / "run") == undisturbed
