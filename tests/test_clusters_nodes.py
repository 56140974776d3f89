"""A real Ray of several nodes on this machine: the one that differs is named, and metrics stand at Ray's endpoint."""

import itertools
import os
import shlex
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from clusters import preflight
from clusters.config import InputError
from clusters.connection import QUIET_RAY
from clusters.launch import ClusterConfig, launch
from clusters.preflight import Needs
from clusters.security import REACHABLE
from clusters.storage import Folder
from clusters.tokens import prepare_token
from clusters.tracking import Tracker, TrackingConfig
from data.dataset import Dataset

pytestmark = pytest.mark.timeout(600)  # Ray takes most of a minute to start workers, on a busy machine several

ONE_CORE = {"CPU": 1.0, "GPU": 0.0}
READ_ONLY = "mount --bind {0} {0} && mount -o remount,ro,bind {0}"
"""For the processes of one mount namespace, as a share that one node has mounted without the right to write."""


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """A head that this process is on, a node like it, and `other`, whose processes find another timm."""
    packages = tmp_path_factory.mktemp("packages")
    (packages / "timm-0.0.1.dist-info").mkdir()
    (packages / "timm-0.0.1.dist-info/METADATA").write_text("Metadata-Version: 2.1\nName: timm\nVersion: 0.0.1\n")
    with pytest.MonkeyPatch.context() as environment:
        told = {"RAY_AUTH_MODE": "token", "OMP_NUM_THREADS": "1", "RAY_metrics_report_interval_ms": "500"}
        for name, value in {**QUIET_RAY, **told}.items():
            environment.setenv(name, value)
        environment.delenv(REACHABLE, raising=False)  # a local Ray, if one was in this process before, has left both
        prepare_token()
        import ray
        from ray._private import ray_constants
        from ray.cluster_utils import Cluster

        environment.setattr(ray_constants, "ENABLE_RAY_CLUSTER", True)

        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
        try:
            ray.init(address=cluster.address, log_to_driver=False)
            yield {"cluster": cluster, "packages": packages}
        finally:
            ray.shutdown()
            cluster.shutdown()


def test_one_node_is_looked_at_from_here_without_a_task(
    nodes: dict[str, Any], synthetic_dataset: Dataset, tmp_path: Path
) -> None:
    run, cluster = str(tmp_path / "run"), ClusterConfig(num_workers=1, address=nodes["cluster"].address)
    preflight.check_nodes(run, Needs([synthetic_dataset.location], [1000]), ONE_CORE, 1)
    with pytest.raises(InputError, match=r"on \S+: the dataset /nothing cannot be read"):
        preflight.check_nodes(run, Needs(["/nothing"]), ONE_CORE, 1)
    with pytest.raises(InputError, match=r"on \S+: the dataset /nothing cannot be read"):
        launch(dict, cluster, cluster, Folder(run), needs=Needs(["/nothing"]))
    with pytest.raises(InputError, match=r"GB free and checkpoints take 1e\+09 GB"):
        preflight.check_nodes(run, Needs([], [10**18]), ONE_CORE, 1)


def test_a_run_that_has_to_wait_for_others_says_so(
    nodes: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import ray

    class Other:
        def there(self) -> bool:
            return True

    preflight.check_nodes(str(tmp_path), Needs([], [1], every_h=1.0), ONE_CORE, 1)
    said = capsys.readouterr().out
    assert "whether for those that follow, one every 1 h, was not looked at" in said
    assert "waits" not in said
    cores = ray.cluster_resources()["CPU"]
    others: list[Any] = [ray.remote(num_cpus=1)(Other).remote() for _ in range(int(cores))]
    assert all(ray.get([other.there.remote() for other in others]))
    until = time.monotonic() + 60
    while ray.available_resources().get("CPU"):
        assert time.monotonic() < until
        time.sleep(0.2)
    preflight.check_nodes(str(tmp_path), Needs(), ONE_CORE, 1)
    assert "1 workers ask for 1 CPU each; free now: 0 CPU. The run waits for its turn" in capsys.readouterr().out
    for other in others:
        ray.kill(other)


def test_workers_that_find_no_place_on_any_node_are_refused(nodes: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"1 workers ask for 2 CPU each, and the nodes have places for 0"):
        preflight.check_nodes(str(tmp_path), Needs(), {"CPU": 2.0, "GPU": 0.0}, 1)


def read_after_logging(location: str) -> list[list[str]]:
    """In a process of Ray: log two steps, and read after each what Ray's endpoint says once it says it."""
    import ray

    tracker = Tracker(Folder(location), TrackingConfig(wandb="disabled"), "ham", {}, "pretraining")
    tracker.start_section(Folder(location) / "1-simclr", "1-simclr")
    here = ray.get_runtime_context().get_node_id()
    (node,) = [node for node in ray.nodes() if node["NodeID"] == here]
    endpoint = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    found = []
    for step in (3, 4):
        tracker.log(step, {"loss": 0.5 * step, "samples_per_s": 7.0, "lr": 0.1})
        told = {"ray_manyview_step": step, "ray_manyview_loss": 0.5 * step, "ray_manyview_samples_per_s": 7.0}
        shown: list[str] = []
        deadline = time.monotonic() + 120
        while {line.split("{")[0]: float(line.split()[-1]) for line in shown} != told:
            assert time.monotonic() < deadline, shown
            time.sleep(0.2)
            with urllib.request.urlopen(endpoint, timeout=60) as answer:
                shown = [line for line in answer.read().decode().splitlines() if line.startswith("ray_manyview_")]
        found.append(shown)
    return found


def test_metrics_of_training_stand_at_ray_s_own_endpoint(nodes: dict[str, Any], tmp_path: Path) -> None:
    import ray

    worker = ray.remote(num_cpus=0, runtime_env={"env_vars": {"MANYVIEW_RAY_WORKER": "1"}})(read_after_logging)
    for line in itertools.chain(*ray.get(worker.remote(str(tmp_path)))):
        for tag in ('run="ham"', 'part="pretraining"', 'stage="1-simclr"'):
            assert tag in line


def test_the_node_that_differs_is_named(nodes: dict[str, Any], synthetic_dataset: Dataset, tmp_path: Path) -> None:
    run, cluster = str(tmp_path / "run"), nodes["cluster"]
    alike = cluster.add_node(num_cpus=1)
    preflight.check_nodes(run, Needs([synthetic_dataset.location]), ONE_CORE, 2)
    # What lies in this process's memory no process of another node can read.
    Folder("memory://only-here").write_json("manifest.json", {})
    with pytest.raises(InputError, match=rf"on \S+ \(\S+:{alike.node_manager_port}\): .* memory://only-here cannot be"):
        preflight.check_nodes(run, Needs(["memory://only-here"]), ONE_CORE, 2)
    other = cluster.add_node(num_cpus=1, env_vars={"PYTHONPATH": str(nodes["packages"])})
    with pytest.raises(InputError, match=rf"on \S+ \(\S+:{other.node_manager_port}\): timm is 0.0.1 and"):
        preflight.check_nodes(run, Needs(), ONE_CORE, 2)
    cluster.remove_node(other)
    raylet = psutil.Process(alike.all_processes["raylet"][0].process.pid)
    raylet.send_signal(signal.SIGSTOP)
    try:
        with pytest.raises(InputError, match=rf"on \S+ \(\S+:{alike.node_manager_port}\): no answer within 2 s"):
            preflight.check_nodes(run, Needs(), ONE_CORE, 1, timeout_s=2)
    finally:
        raylet.send_signal(signal.SIGCONT)


def start_node_that_cannot_write(address: str, folder: Path) -> subprocess.Popen[bytes]:
    """A node whose processes see this folder read-only; skips where no namespace of mounts can be made."""
    closed = READ_ONLY.format(shlex.quote(str(folder)))
    apart = ["unshare", *(["--map-root-user"] if os.getuid() else []), "-m", "sh", "-c"]
    if subprocess.run([*apart, closed], check=False, capture_output=True).returncode:
        pytest.skip("this test mounts a folder read-only for one node, which this machine does not let it")
    start = f"exec {sys.executable} -m ray.scripts.scripts start --address={address} --num-cpus=1 --block"
    return subprocess.Popen([*apart, f"{closed} && {start}"], stdout=subprocess.DEVNULL)


def test_the_node_that_cannot_write_the_run_folder_is_named(nodes: dict[str, Any], tmp_path: Path) -> None:
    import ray

    run, known = tmp_path / "run", {node["NodeID"] for node in ray.nodes()}
    run.mkdir()
    process = start_node_that_cannot_write(nodes["cluster"].address, run)
    try:
        until = time.monotonic() + 200
        while not (new := [node for node in ray.nodes() if node["NodeID"] not in known and node["Alive"]]):
            assert process.poll() is None and time.monotonic() < until
            time.sleep(0.2)
        with pytest.raises(
            InputError, match=rf"on \S+ \(\S+:{new[0]['NodeManagerPort']}\): {run} cannot be written \(Read-only"
        ):
            preflight.check_nodes(str(run), Needs(), ONE_CORE, 2)
        assert not list(run.iterdir())
    finally:
        process.terminate()
        process.wait(timeout=60)
