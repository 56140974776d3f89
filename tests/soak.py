"""`make soak`: the synthetic recipe on two Ray workers, with a random kill every so often, and what that costs.

    python -m tests.soak FOLDER [MINUTES=30] [KILL_EVERY_S=150] [SEED=0]

A kill is SIGKILL to a worker, a loader process or the driver; the driver's command is then given again. Prints the
share of effective training time (steps kept x the time of a step without kills / all time; goal 0.75), how long it took
from each kill to the next step, and how memory, open files and disk have grown. Exit code 1 below the goal,
and where memory, open files or threads have grown by more than a fifth.
"""

import json
import os
import random
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil
import yaml

from clusters.checkpoint_files import names
from clusters.storage import Folder
from clusters.tracking import duration

ROOT = Path(__file__).parents[1]
GOAL = 0.75
UNDISTURBED_S = 60.0
WAIT_S = 600.0
MEASURES = ("memory of all processes, MB", "memory of the driver, MB", "open files", "threads", "disk, MB")
GROWTH = 1.2
"""As much as all but the disk may be at the end, of what they were at the first step."""


class Run:
    """A pretraining that is started, killed and started again."""

    def __init__(self, folder: Path, data: Path) -> None:
        self.stage = folder / "run/1-simclr"
        self._log = folder / "log.txt"
        recipe = yaml.safe_load((ROOT / "pretrain/recipes/synthetic.yaml").read_text())
        recipe["stages"] = [{**recipe["stages"][0], "epochs": None, "steps": 1_000_000, "batch_size": 64}]
        recipe |= {"data": str(data), "run": str(folder / "run"), "probe": {"every_steps": 1_000_000}}
        recipe |= {"cluster": {"num_workers": 2, "max_failures": -1}, "loader": {"num_processes": 1}}
        recipe |= {"checkpoint": {"every_s": 10}, "tracking": {"wandb": "disabled", "every_steps": 1}}
        folder.mkdir(parents=True)
        self._recipe = folder / "recipe.yaml"
        self._recipe.write_text(yaml.safe_dump(recipe))
        # Ray's sockets lie here too, and their paths may have 107 characters only
        self._sessions = Path(tempfile.mkdtemp(prefix="soak-"))
        self.start()

    def start(self) -> None:
        environment = {**os.environ, "RAY_TMPDIR": str(self._sessions), "PYTHONUNBUFFERED": "1"}
        with self._log.open("a") as log:
            words = [sys.executable, "-m", "pretrain", str(self._recipe)]
            self.driver = psutil.Popen(words, cwd=ROOT, env=environment, stdout=log, stderr=log)

    def end(self) -> int:
        """Tell the driver to leave; returns the last step that is kept."""
        self.driver.send_signal(signal.SIGTERM)
        code = self.driver.wait(WAIT_S)
        assert code == 143, f"told to leave, the driver ended with {code}: {self._log}"
        shutil.rmtree(self._sessions, ignore_errors=True)
        return names(Folder(self.stage / "checkpoints"))[-1].step

    def records(self) -> list[dict[str, Any]]:
        path = self.stage / "metrics.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        return [json.loads(line) for line in lines if '"loss"' in line and line.endswith("}")]

    def attempt(self) -> int:
        path = self.stage / "attempt.json"
        return json.loads(path.read_text())["attempt"] if path.exists() else 0

    def wait_for_step(self, attempt: int) -> float:
        """When this attempt, or a later one, had taken its first step; in seconds since 1970."""

        def taken() -> list[float]:
            began = (self.stage / "attempt.json").stat().st_mtime if self.attempt() >= attempt else None
            return [record["time"] for record in self.records() if began is not None and record["time"] > began]

        return self._wait_for(taken)

    def _replaced(self) -> list[int]:
        """The steps from which batches were loaded anew, one for each loader process that was killed."""
        path = self.stage.parent / "log.txt"
        said = path.read_text() if path.exists() else ""
        return [int(step) for step in re.findall(r"loaded anew from step (\d+)", said)]

    def _wait_for_loaded_step(self, replaced: int, when: float) -> float:
        """When, after this moment, the first step was taken of batches that were loaded anew after so many times."""

        def taken() -> list[float]:
            later = [record for record in self.records() if record["time"] > when]
            return [record["time"] for record in later if record["step"] - 1 in self._replaced()[replaced:][:1]]

        return self._wait_for(taken)

    def _wait_for(self, taken: Callable[[], list[float]]) -> float:
        until = time.monotonic() + WAIT_S
        while time.monotonic() < until:
            assert self.driver.poll() is None, f"the driver has ended: {self._log}"
            if times := taken():
                return min(times)
            time.sleep(0.2)
        raise TimeoutError(f"no step within {WAIT_S:.0f} s: {self._log}")

    def processes(self) -> dict[str, list[psutil.Process]]:
        """Those that may be killed, by kind."""
        family = self.driver.children(recursive=True)
        workers = [child for child in family if _command(child).startswith("ray::RayTrainWorker")]
        loaders = [grandchild for worker in workers for child in worker.children() for grandchild in child.children()]
        return {"driver": [self.driver], "worker": workers, "loader": loaders}

    def kill(self, rng: random.Random, kind: str | None = None) -> tuple[str, float]:
        """Kill one process, of any kind or this one; returns its kind and the seconds until a step was taken again."""
        there = {kind: found for kind, found in self.processes().items() if found}
        kind = kind or rng.choice(sorted(there))
        attempt, replaced, when = self.attempt(), len(self._replaced()), time.time()
        rng.choice(there[kind]).kill()
        if kind == "driver":
            self.driver.wait()
            self.start()
        if kind == "loader":  # it alone is replaced
            return kind, self._wait_for_loaded_step(replaced, when) - when
        return kind, self.wait_for_step(attempt + 1) - when

    def measure(self) -> tuple[float, ...]:
        """The figures named by MEASURES."""
        family = [self.driver, *self.driver.children(recursive=True)]
        memory, files, threads = [], 0, 0
        for member in family:
            try:
                memory.append(member.memory_info().rss / 1e6)
                files += member.num_fds()
                threads += member.num_threads()
            except psutil.Error:
                continue
        written = [path for top in (self.stage.parent, self._sessions) for path in top.rglob("*")]
        disk = sum(path.lstat().st_size for path in written if path.exists() and not path.is_dir()) / 1e6
        return sum(memory), memory[0], files, threads, disk


def _command(process: psutil.Process) -> str:
    try:
        return (process.cmdline() or [""])[0]
    except psutil.Error:
        return ""


def main(folder: Path, minutes: float, kill_every_s: float, seed: int) -> int:
    shutil.rmtree(folder, ignore_errors=True)
    data = folder / "data"
    make = ["-m", "data", "import", "source=synthetic", f"out={data}", "num_cases=600"]
    subprocess.run([sys.executable, *make], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)

    # An undisturbed run: from its first step on, checkpoints included
    run = Run(folder / "undisturbed", data)
    run.wait_for_step(1)
    time.sleep(UNDISTURBED_S)
    first, *_, last = run.records()
    run.end()
    step_s = (last["time"] - first["time"]) / (last["step"] - first["step"])
    print(f"undisturbed: {1000 * step_s:.0f} ms a step", flush=True)

    rng, began = random.Random(seed), time.time()
    run = Run(folder / "killed", data)
    cold_start_s = run.wait_for_step(1) - began
    print(f"cold start: {cold_start_s:.1f} s to the first step", flush=True)
    measured, recoveries = [run.measure()], []
    while time.time() - began + kill_every_s < 60 * minutes:
        time.sleep(max(0.0, began + kill_every_s * (len(recoveries) + 1) - time.time()))
        kind, recovery_s = run.kill(rng)
        recoveries.append(recovery_s)
        print(f"{duration(time.time() - began)}: killed a {kind}; {recovery_s:.1f} s to the next step", flush=True)
        measured.append(run.measure())
    time.sleep(max(0.0, began + 60 * minutes - time.time()))
    measured.append(run.measure())
    wall_s, kept = time.time() - began, run.end()
    # The faster of both: should something else have slowed the first minute down, the share would come out too good
    step_s = min(step_s, between_kills_s([record["time"] for record in run.records()]))
    print(f"{1000 * step_s:.0f} ms a step where nobody is killed", flush=True)
    return report(kept, step_s, wall_s, recoveries, measured)


def between_kills_s(times: list[float]) -> float:
    """The mean time of a step, those left out that a kill came between."""
    steps = [after - before for before, after in pairwise(times)]
    return statistics.mean(step for step in steps if step < 5 * statistics.median(steps))


def report(kept: int, step_s: float, wall_s: float, recoveries: list[float], measured: list[tuple[float, ...]]) -> int:
    share = kept * step_s / wall_s
    print(f"{len(recoveries)} kills in {duration(wall_s)}; {kept} steps kept")
    print(f"effective training time: {share:.3f} (goal {GOAL})")
    if recoveries:
        cuts = statistics.quantiles(recoveries * 2, n=20, method="inclusive")  # twice: it takes no single number
        print(f"recovery: p50 {cuts[9]:.1f} s, p95 {cuts[18]:.1f} s")
    for place, name in enumerate(MEASURES):
        print(f"{name}: {measured[0][place]:.0f} at the first step, {measured[-1][place]:.0f} at the end")
    grown = [name for name, before, after in zip(MEASURES[:-1], measured[0], measured[-1]) if after > GROWTH * before]
    if grown:
        print(f"grown by more than a fifth: {', '.join(grown)}")
    return 0 if share >= GOAL and not grown else 1


if __name__ == "__main__":
    words = [float(word) for word in sys.argv[2:]] + [30.0, 150.0, 0.0][len(sys.argv) - 2 :]
    sys.exit(main(Path(sys.argv[1]).absolute(), words[0], words[1], int(words[2])))
