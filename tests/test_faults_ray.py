"""Faults under a real Ray of two workers. Each is shown to have fired, and the state that is reached in spite of it.

What they must equal, bit for bit, is the state of two plain gloo processes to which nothing happens.
"""

import json
import os
import random
import re
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from clusters.config import InputError
from clusters.launch import launch
from clusters.storage import Folder
from data.dataset import Dataset
from pretrain.config import PretrainConfig
from pretrain.run import pretrain
from tests.fault_runs import ROOT, Faults, assert_same_state, drain, faulty_train, last_state, recipe, wait_for
from tests.rays import use_own_ray

pytestmark = [pytest.mark.faults, pytest.mark.timeout(1500)]

SEED = 20
EVERY_STEPS = 5  # a checkpoint, as `recipe` has it
PREFETCHED = 3  # batches by which a loader process is ahead
LONG = 250
"""Steps of runs that are met in the middle from outside."""
GRACE_S = 30.0
"""What a spot node may have left."""

# Those that nobody notices by themselves (stopped, stuck, gone early) cost `cluster.timeout_s` each; where no thread
# of a process runs, Ray finds it.
FAULTS: list[dict[str, Any]] = [
    {"kind": "SIGKILL", "rank": 1},
    {"kind": "exit", "rank": 0, "ray_folder": "damaged"},
    {"kind": "SIGSEGV", "rank": 1, "ray_folder": "removed"},
    {"kind": "loader_error", "rank": 1},
    {"kind": "loader_SIGKILL", "rank": 0},
    {"kind": "SIGSTOP", "rank": 1},
    {"kind": "stuck", "rank": 0},
    {"kind": "return", "rank": 1},
    {"kind": "holds_lock", "rank": 1},
    {"kind": "cut_off", "rank": 0},
]
SAID = ("its process died or does not answer", "a planned loader_error")
OF_OTHERS = ("/gloo/", "Timed out", "Connection", "DistBackendError", "DistNetworkError", "Broken pipe")
"""What a rank says that misses another."""


@pytest.fixture(scope="module")
def undisturbed(synthetic_dataset: Dataset, tmp_path_factory: pytest.TempPathFactory, ranks) -> dict[int, Path]:
    """Finished runs by their number of steps."""
    runs = {}
    for steps in (60, LONG):
        runs[steps] = tmp_path_factory.mktemp("undisturbed") / "run"
        answers = ranks.run("pretrain_stage", recipe(synthetic_dataset, runs[steps], steps=steps))
        assert answers[0] == answers[1]
    return runs


def test_whatever_happens_to_workers_the_state_is_that_of_the_undisturbed_run(
    synthetic_dataset: Dataset, undisturbed: dict[int, Path], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    cluster = {"num_workers": 2, "timeout_s": 15, "max_failures": 2 * len(FAULTS)}
    values = recipe(synthetic_dataset, run, cluster=cluster, loader={"num_processes": 1})
    faults, steps = Faults(str(run)), sorted(random.Random(SEED).sample(range(2, 58), len(FAULTS)))
    faults.plan([{**fault, "step": step} for fault, step in zip(FAULTS, steps)])
    config = PretrainConfig.model_validate(values)
    answer = launch(faulty_train, config, config.cluster, Folder(run), heeds=True)
    assert None not in faults.fired()
    # Each was what it was to be, and cost no more than what followed the newest checkpoint, or the one being written
    said = [line for line in (run / "log.txt").read_text().splitlines() if line.startswith("failed on rank")]
    assert all(any(reason in line for reason in (*SAID, *OF_OTHERS)) for line in said), said
    assert all(any(reason in line for line in said) for reason in SAID), said
    # The one fault after which no worker is started again
    assert " its batches are loaded anew from step " in (run / "log.txt").read_text()
    for fault, step, again in zip(FAULTS, steps, faults.first_steps_after()):
        if fault["kind"] != "loader_SIGKILL":
            assert step - 2 * EVERY_STEPS - PREFETCHED <= again <= step, (fault, step, again)
    assert answer["encoder"]
    assert_same_state(run, undisturbed[60])
    assert json.loads((run / "1-simclr/attempt.json").read_text())["attempt"] >= len(FAULTS)
    for fault, step, recovery_s in zip(FAULTS, steps, faults.recoveries_s()):
        print(f"\n{fault} at step {step}: {recovery_s:.1f} s to the next step", end="")
    print(f"\nrecovery: median {statistics.median(faults.recoveries_s()):.1f} s")
    assert not (run / ".ray").exists()


def start(values: dict[str, Any], folder: Path) -> subprocess.Popen[str]:
    (folder / "recipe.yaml").write_text(yaml.safe_dump(values))
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    words = [sys.executable, "-m", "pretrain", str(folder / "recipe.yaml")]
    return subprocess.Popen(
        words, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def steps_of(run: Path) -> list[int]:
    metrics = run / "1-simclr/metrics.jsonl"
    return [json.loads(line)["step"] for line in metrics.read_text().splitlines()] if metrics.exists() else []


def wait_for_steps(process: subprocess.Popen[str], run: Path, after: int) -> None:
    """Until workers have gone on after a step, and after what was recorded when this was called."""
    after = max([after, *steps_of(run)])

    def there() -> bool:
        assert process.poll() is None, process.communicate()[0]
        return max(steps_of(run), default=0) > after

    wait_for(there, f"a step after {after}")


def workers_of(process: subprocess.Popen[str]) -> list[psutil.Process]:
    family = psutil.Process(process.pid).children(recursive=True)
    return [child for child in family if any("RayTrainWorker" in word for word in child.cmdline()[:1])]


def said_step(said: str) -> int:
    found = re.search(r"told to leave \((.*)\); saved at step (\d+)", said)
    assert found, said
    return int(found[2])


def test_drivers_and_workers_that_are_killed_or_told_to_leave(
    synthetic_dataset: Dataset, undisturbed: dict[int, Path], tmp_path: Path
) -> None:
    """One run: its driver is killed, told to leave and interrupted, a worker is told to leave; then it ends."""
    run = tmp_path / "run"
    values = recipe(synthetic_dataset, run, steps=LONG)
    values["tracking"]["every_steps"] = 5

    # Driver killed: nothing lives on, and meanwhile nobody else may run here
    driver = start(values, tmp_path)
    wait_for_steps(driver, run, 0)
    with pytest.raises(InputError, match=f"another run is at work in this folder .process {driver.pid}, host"):
        pretrain(PretrainConfig.model_validate(values))
    family = psutil.Process(driver.pid).children(recursive=True)
    assert len(workers_of(driver)) == 2
    driver.kill()
    driver.communicate()
    _, alive = psutil.wait_procs(family, timeout=200)  # Ray's own agents look for their parent only now and then
    assert not [member for member in alive if member.status() != psutil.STATUS_ZOMBIE]
    at = last_state(run).step
    assert at < LONG, "it was killed too late"

    # Driver told to leave: the step that it is at is saved
    driver = start(values, tmp_path)
    wait_for_steps(driver, run, at)
    told = time.monotonic()
    driver.send_signal(signal.SIGTERM)
    said, _ = driver.communicate(timeout=120)
    print(f"\ndriver told to leave: {time.monotonic() - told:.1f} s to its end")
    assert driver.returncode == 143, said
    assert f"1-simclr: resumed at step {at}" in said and "Traceback" not in said
    left = said_step(said)
    assert last_state(run).step == left and at < left < LONG, "it was told too late"

    # Driver interrupted by Ctrl-C: as without Ray, it saves first
    driver = start(values, tmp_path)
    wait_for_steps(driver, run, left)
    driver.send_signal(signal.SIGINT)
    said, _ = driver.communicate(timeout=120)
    assert driver.returncode == 130, said
    assert f"1-simclr: resumed at step {left}" in said and "Traceback" not in said
    at = said_step(said)
    assert last_state(run).step == at and left < at < LONG, "it was interrupted too late"

    # A worker told to leave: it goes, and others go on from that very step, though no failure is allowed
    values["cluster"]["max_failures"] = 0
    driver = start(values, tmp_path)
    wait_for_steps(driver, run, at)
    leaver = workers_of(driver)[1]
    leaver.send_signal(signal.SIGTERM)
    said, _ = driver.communicate(timeout=300)
    assert driver.returncode == 0, said
    assert not leaver.is_running() or leaver.status() == psutil.STATUS_ZOMBIE
    assert f"1-simclr: resumed at step {said_step(said)} of {LONG}" in said
    assert_same_state(run, undisturbed[LONG])


@pytest.fixture
def spare_node(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A Ray cluster with one node more than two workers need, connected to."""
    use_own_ray(monkeypatch)
    import ray
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    try:
        for _ in range(2):
            cluster.add_node(num_cpus=2)
        ray.init(address=cluster.address, log_to_driver=False)
        yield ray
    finally:
        ray.shutdown()
        cluster.shutdown()


def drain_the_busy_node(ray: Any) -> str:
    """Tell the node whose cores are in use that it will be gone after GRACE_S; returns its id."""
    from ray._private.state import available_resources_per_node

    used = [node for node, free in available_resources_per_node().items() if free.get("CPU", 0) == 0]
    nodes = {node["NodeID"] for node in ray.nodes() if node["Resources"].get("CPU") == 2}
    (busy,) = nodes & set(used)
    drain(ray, busy, GRACE_S)
    return busy


def test_a_node_that_is_taken_back_costs_no_step(
    synthetic_dataset: Dataset,
    undisturbed: dict[int, Path],
    tmp_path: Path,
    spare_node: Any,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Nor is it one of the failures, of which none is allowed here."""
    import threading

    run = tmp_path / "run"
    values = recipe(synthetic_dataset, run, steps=LONG, cluster={"num_workers": 2, "max_failures": 0})
    drained: list[str] = []
    saved_after_s: list[float] = []

    def drain_later() -> None:
        wait_for(lambda: max(steps_of(run), default=0) > 0, "a step")
        drained.append(drain_the_busy_node(spare_node))
        told = time.monotonic()
        wait_for(lambda: "saved at step" in (run / "log.txt").read_text(), "the save", GRACE_S)
        saved_after_s.append(time.monotonic() - told)

    beside = threading.Thread(target=drain_later)
    beside.start()
    pretrain(PretrainConfig.model_validate(values))
    beside.join()
    said = capfd.readouterr().out
    assert drained and saved_after_s, "not saved within the grace"
    print(f"\nnode taken back: saved after {saved_after_s[0]:.1f} s")
    assert "its node is taken back" in said
    assert f"1-simclr: resumed at step {said_step(said)} of {LONG}" in said
    assert_same_state(run, undisturbed[LONG])
