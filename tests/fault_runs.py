"""Runs to which faults happen, each once, where and when `faults.json` beside the run folder says.

The product knows nothing of this: what is launched here is its training function with steps and loaders that can fail.
"""

import ctypes
import json
import os
import shutil
import signal
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest import mock

import psutil
import torch

from clusters import distributed
from clusters.checkpoint import CheckpointConfig, Checkpoints, Restored
from clusters.storage import Folder
from data.dataset import Dataset
from data.loader import LoaderConfig
from data.prefetch import training_batches
from pretrain import feeding
from pretrain.config import PretrainConfig
from pretrain.run import train
from pretrain.training import Training

ROOT = Path(__file__).parents[1]
WAIT_S = 300.0


def recipe(dataset: Dataset, run: Path, num_workers: int = 2, steps: int = 60, **changed: Any) -> dict[str, Any]:
    """A stage with every kind of state: weights, buffers, moving average, optimiser, position."""
    stage = {"method": "simclr", "batch_size": 8, "projection_hidden": 16, "projection_dim": 8, "steps": steps}
    return {
        "data": dataset.location,
        "run": str(run),
        "precision": "fp32",
        "encoder": {"name": "test_resnet"},
        "views": {"size_px": 32},
        "stages": [{**stage, "ema": 0.9}],
        "probe": {"every_steps": 1000},
        "tracking": {"wandb": "disabled", "every_steps": 1, "every_s": 1},
        "checkpoint": {"every_steps": 5},
        "cluster": {"num_workers": num_workers},
        **changed,
    }


def wait_for(condition: Callable[[], bool], what: str, timeout_s: float = WAIT_S) -> None:
    """Until it holds."""
    until = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < until, f"waited {timeout_s} s for {what}"
        time.sleep(0.05)


def drain(ray: Any, node: str, grace_s: float) -> None:
    """Tell a node of a Ray, by its id, that it will be gone after so long, as a cloud tells its spot machines."""
    from ray.core.generated import autoscaler_pb2

    reason = autoscaler_pb2.DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")  # type: ignore[attr-defined]
    deadline_ms = int(1000 * (time.time() + grace_s))
    accepted, why = ray._private.worker.global_worker.gcs_client.drain_node(node, reason, "spot", deadline_ms)
    assert accepted, why


def last_state(run: Path) -> Restored:
    """The newest training state of the first stage."""
    restored = Checkpoints(Folder(run / "1-simclr"), CheckpointConfig()).restore()
    assert restored is not None
    return restored


def assert_same_state(run: Path, other: Path) -> None:
    """Weights, buffers, averages, optimiser and position to the bit, and the encoder that is handed on."""
    ours, theirs = last_state(run), last_state(other)
    assert ours.step == theirs.step
    _assert_same(ours.state, theirs.state, "state")
    name = "encoder/model.safetensors"
    assert (run / name).read_bytes() == (other / name).read_bytes()


def _assert_same(ours: Any, theirs: Any, place: str) -> None:
    assert type(ours) is type(theirs), place
    if isinstance(ours, torch.Tensor):
        assert ours.dtype == theirs.dtype and torch.equal(ours, theirs), place
    elif isinstance(ours, dict):
        assert ours.keys() == theirs.keys(), place
        for key, value in ours.items():
            _assert_same(value, theirs[key], f"{place}/{key}")
    elif isinstance(ours, list):
        assert len(ours) == len(theirs), place
        for number, value in enumerate(ours):
            _assert_same(value, theirs[number], f"{place}/{number}")
    else:
        assert ours == theirs, place


class Faults:
    """`faults.json`: a list of {kind, rank, step}, each of which happens the first time that rank comes to the step.

    With `ray_folder` (removed, damaged) Ray's own folder of the run is spoilt just before, and then it is marked.
    """

    def __init__(self, run: str) -> None:
        self.folder, self.run = Path(run).parent, Path(run)

    def plan(self, faults: list[dict[str, Any]]) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "faults.json").write_text(json.dumps(faults))

    def fired(self) -> list[float | None]:
        """When each happened, in seconds since 1970; None where it did not."""
        marks = [self._mark(number) for number in range(len(self._planned()))]
        return [float(mark.read_text()) if mark.exists() else None for mark in marks]

    def log_step(self, step: int) -> None:
        with (self.folder / "steps.txt").open("a") as file:
            file.write(f"{time.time()} {os.getpid()} {step}\n")

    def recoveries_s(self) -> list[float]:
        """From each fault until the first step that is taken by workers that were started after it.

        After a loader process alone was killed, until the step that takes the batch that was in work.
        """
        taken = [line.split() for line in (self.folder / "steps.txt").read_text().splitlines()]
        again = [float(now[0]) for before, now in pairwise(taken) if before[1] != now[1]]
        found = []
        for fault, when in zip(self._planned(), self.fired()):
            in_work = [float(now[0]) for now in taken if int(now[2]) >= fault["step"]]
            after = in_work if fault["kind"] == "loader_SIGKILL" else again
            if when is not None:
                found.append(min(now for now in after if now > when) - when)
        return found

    def first_steps_after(self) -> list[int]:
        """The step at which workers that were started after each fault went on."""
        taken = [line.split() for line in (self.folder / "steps.txt").read_text().splitlines()]
        again = [(float(now[0]), int(now[2])) for before, now in pairwise(taken) if before[1] != now[1]]
        return [min(one for one in again if one[0] > when)[1] for when in self.fired() if when is not None]

    def meet(self, step: int, rank: int, inside: str) -> None:
        """Let happen what is planned for this step (from 0) on this rank, `inside` a step or a loader."""
        for number, fault in enumerate(self._planned()):
            due = (fault["step"], fault["rank"], fault["kind"].startswith("loader")) == (step, rank, inside == "loader")
            if due and not self._mark(number).exists():
                if "ray_folder" in fault:
                    self._spoil_ray_folder(fault["ray_folder"])
                self._mark(number).write_text(str(time.time()))
                self._happen(fault["kind"])

    def _planned(self) -> list[dict[str, Any]]:
        return json.loads((self.folder / "faults.json").read_text())

    def _mark(self, number: int) -> Path:
        return self.folder / f"fault-{number}"

    def _happen(self, kind: str) -> None:
        if kind in ("SIGKILL", "SIGSEGV", "SIGSTOP", "loader_SIGKILL"):
            os.kill(os.getpid(), signal.Signals[kind.removeprefix("loader_")])
            time.sleep(60)  # a signal to oneself may arrive a moment later
        elif kind == "exit":
            os._exit(0)
        elif kind == "return":
            raise ReturnEarly
        elif kind == "stuck":
            time.sleep(3600)
        elif kind == "holds_lock":  # no other thread of the process runs either
            ctypes.PyDLL(None).sleep(3600)
        elif kind == "cut_off":
            _cut_off()
        else:
            raise RuntimeError(f"a planned {kind}")

    def _spoil_ray_folder(self, how: str) -> None:
        files = [file for file in (self.run / ".ray").rglob("*") if file.is_file()]
        assert files, "Ray keeps nothing there"
        if how == "removed":
            shutil.rmtree(self.run / ".ray")
        else:
            for file in files:
                file.write_bytes(b"\0" * (file.stat().st_size // 2))


def _cut_off() -> None:
    """End the connections of this worker with the others, as a network does that falls apart; those with Ray stay."""
    others = {
        getattr(connection.laddr, "port", None)
        for connection in psutil.net_connections("tcp")
        if connection.pid not in (None, os.getpid()) and "RayTrainWorker" in psutil.Process(connection.pid).cmdline()[0]
    }
    cut = 0
    for descriptor in [int(path.name) for path in Path("/proc/self/fd").iterdir()]:
        with suppress(OSError), socket.socket(fileno=os.dup(descriptor)) as connection:
            if connection.getpeername()[1] in others:
                connection.shutdown(socket.SHUT_RDWR)
                cut += 1
    assert cut, "it has no connection with another worker"


class ReturnEarly(Exception):
    """This rank is to return at once."""


class FaultyMake:
    """Makes batches in a loader process, where faults may happen too."""

    def __init__(self, make: Callable[[int], Any], run: str, rank: int) -> None:
        self.make, self.run, self.rank = make, run, rank

    def __call__(self, step: int) -> Any:
        Faults(self.run).meet(step, self.rank, "loader")
        return self.make(step)


def faulty_train(config: PretrainConfig) -> dict[str, Any]:
    """`train`, in which what is planned happens."""
    faults, take = Faults(config.run), Training.step

    def step(training: Training, number: int, *batch: Any) -> Any:
        faults.meet(number, distributed.rank(), "step")
        output = take(training, number, *batch)
        if distributed.is_main():
            faults.log_step(number)
        return output

    def batches(make: Callable[[int], Any], first: int, last: int, loader: LoaderConfig, _: int) -> Any:
        return training_batches(FaultyMake(make, config.run, distributed.rank()), first, last, loader)

    with mock.patch.object(Training, "step", step), mock.patch.object(feeding, "training_batches", batches):
        try:
            return train(config)
        except ReturnEarly:
            return {}
