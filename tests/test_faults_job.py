"""A run that is a job of Ray's: stopped, it loses no step; its driver killed, nothing lives on; the command goes on.

On a head and a node that `clusters/local.sh` brings up. Slow: `make test-faults`.
"""

import json
import re
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
import yaml

from clusters.connection import LEAN_RAY
from data.dataset import Dataset
from tests.fault_runs import assert_same_state, last_state, recipe, wait_for
from tests.test_clusters_launch import BIN
from tests.test_clusters_submit import cluster
from tests.test_clusters_upload import copy_of_the_checkout

pytestmark = [pytest.mark.faults, pytest.mark.timeout(900)]

STEPS = 200
GONE_S = 30.0
"""For so long workers may outlive their driver."""
CANARY = "-".join(["canary", "of", "a", "key"])  # the sources travel along, and hold no such word


class Jobs:
    """Jobs of one recipe on one cluster, as their user has them."""

    def __init__(self, environment: dict[str, str], checkout: Path, recipe_file: Path) -> None:
        self.environment, self.checkout, self.recipe_file = environment, checkout, recipe_file
        self.state = Path(environment["MANYVIEW_LOCAL"])

    def ray(self, *words: str) -> str:
        done = subprocess.run(
            ["ray", "job", *words], env=self.environment, cwd=self.checkout, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout[-5000:]
        return done.stdout

    def submit(self, name: str, *options: str, words: Sequence[str] = ()) -> str:
        command = ["python", "-m", "pretrain", str(self.recipe_file), *words]
        return self.ray("submit", "--submission-id", name, *options, "--working-dir", ".", "--", *command)

    def log(self, name: str, of: str = "job-driver") -> str:
        (file,) = self.state.glob(f"ray/session_2*/logs/{of}-{name}.log")
        return file.read_text()

    def driver(self) -> psutil.Process:
        """The Python that the one job runs, which names the recipe; neither a shell around it nor who submitted it."""
        (found,) = self._processes(lambda words: words[1:3] == ["-m", "pretrain"] and str(self.recipe_file) in words)
        return found

    def workers(self) -> list[psutil.Process]:
        """The workers of this cluster, whoever is their parent by now: they inherit its mark."""
        return self._processes(lambda words: "RayTrainWorker" in words[0], marked=True)

    def _processes(self, fits: Callable[[list[str]], bool], marked: bool = False) -> list[psutil.Process]:
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                words = process.cmdline()
                ours = not marked or process.environ().get("MANYVIEW_LOCAL_CLUSTER") == str(self.state)
                if words and fits(words) and ours and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return found


def recorded(run: Path) -> list[int]:
    metrics = run / "1-simclr/metrics.jsonl"
    return [json.loads(line)["step"] for line in metrics.read_text().splitlines()] if metrics.exists() else []


def wait_for_step(run: Path, step: int) -> None:
    wait_for(lambda: max(recorded(run), default=0) >= step, f"step {step}")


def checkpoints(run: Path) -> list[int]:
    return sorted(int(path.parent.name[5:14]) for path in (run / "1-simclr/checkpoints").glob("step-*/MANIFEST.json"))


def until_gone(jobs: Jobs, since: float) -> float:
    """Seconds until no worker of the cluster is left."""
    wait_for(lambda: not jobs.workers(), "the end of the workers", GONE_S)
    return time.monotonic() - since


@pytest.fixture
def stranger() -> Iterator[subprocess.Popen[bytes]]:
    """A process of this user by a name of Ray's, as another cluster of theirs has."""
    process = subprocess.Popen(["bash", "-c", "exec -a raylet sleep 900"])
    yield process
    process.kill()
    process.wait()


def no_key_is_shown(jobs: Jobs) -> None:
    """Neither a key in the environment of nodes and jobs nor the cluster's own token, in Ray's files or a command."""
    keys = [CANARY.encode(), (jobs.state / "token").read_bytes()]
    files = [path for path in jobs.state.rglob("*") if path.is_file() and path.name != "token"]
    assert any("job-driver" in path.name for path in files) and any("runtime_env" in path.name for path in files)
    assert [path for path in files if any(key in path.read_bytes() for key in keys)] == []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            assert not any(key.decode() in word for word in process.cmdline() for key in keys)


@pytest.fixture(scope="module")
def undisturbed(synthetic_dataset: Dataset, tmp_path_factory: pytest.TempPathFactory, ranks) -> Path:
    run = tmp_path_factory.mktemp("undisturbed") / "run"
    answers = ranks.run("pretrain_stage", recipe(synthetic_dataset, run, steps=STEPS))
    assert answers[0] == answers[1]
    return run


def test_a_job_that_is_stopped_saves_its_step_and_one_whose_driver_is_killed_leaves_nobody(
    synthetic_dataset: Dataset, undisturbed: Path, tmp_path: Path, stranger: subprocess.Popen[bytes]
) -> None:
    run, recipe_file = tmp_path / "run", tmp_path / "recipe.yaml"
    values = recipe(synthetic_dataset, run, steps=STEPS, checkpoint={"every_s": 1e6})  # only a notice saves
    values["tracking"]["every_steps"] = 5
    recipe_file.write_text(yaml.safe_dump(values))
    told_nodes = {**LEAN_RAY, "MANYVIEW_WORKERS": "1", "MANYVIEW_WORKER_CPUS": "2", "SOME_API_KEY": CANARY}
    with cluster(BIN, **told_nodes) as environment:
        jobs = Jobs(environment, copy_of_the_checkout(tmp_path / "checkout"), recipe_file)

        # Stopped
        jobs.submit("stopped", "--no-wait")
        wait_for_step(run, 10)
        assert len(jobs.workers()) == 2 and not checkpoints(run)
        told = time.monotonic()
        assert "was stopped" in jobs.ray("stop", "stopped")
        stopped_s, gone_s = time.monotonic() - told, until_gone(jobs, told)
        print(f"\nray job stop: {stopped_s:.1f} s to its end, {gone_s:.1f} s to that of the workers")
        assert "terminated gracefully" in jobs.log("stopped", of="jobs/supervisor"), "Ray did not wait for it"
        (left,) = checkpoints(run)
        assert f"1-simclr: told to leave (rank 0: SIGTERM); saved at step {left} of {STEPS}" in jobs.log("stopped")
        assert last_state(run).step == left == max(recorded(run)) < STEPS, "a step was lost, or it was told too late"

        # Its driver killed
        jobs.submit("killed", "--no-wait")
        wait_for_step(run, left + 5)
        assert len(jobs.workers()) == 2
        jobs.driver().kill()
        print(f"driver killed: {until_gone(jobs, time.monotonic()):.1f} s to the end of the workers")
        at = checkpoints(run)[-1]  # Ray tells workers before it kills them: those that are quick enough save
        assert left <= at < STEPS and max(recorded(run)) < STEPS, "it was killed too late"

        # The same command goes on, from the step that was saved
        jobs.submit("ended")
        # By the run's own log: a driver may be killed before it has shown the line
        log = (run / "log.txt").read_text()
        assert re.findall(r"1-simclr: resumed at step (\d+) of", log) == [str(left), str(at)]
        no_key_is_shown(jobs)

        # Stopped while it waits for a node
        waiting = tmp_path / "waiting"
        jobs.submit("waiting", "--no-wait", words=[f"run={waiting}", "cluster.num_workers=[1,2]"])
        wait_for_step(waiting, 5)
        psutil.Process(int((jobs.state / "ids").read_text().split()[-1])).kill()
        wait_for(lambda: "the workers are started again" in (waiting / "log.txt").read_text(), "the loss", 120)
        told = time.monotonic()
        jobs.ray("stop", "waiting")
        print(f"ray job stop of one that waits for a node: {time.monotonic() - told:.1f} s to its end")
        assert "terminated gracefully" in jobs.log("waiting", of="jobs/supervisor")
        assert "told to leave" in (said := jobs.log("waiting")) and "Traceback" not in said and "error:" not in said
    assert stranger.poll() is None, "what is not of the cluster was taken down with it"
    assert_same_state(run, undisturbed)
