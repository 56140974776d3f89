"""Two real gloo processes, started once for a test session, that run named tasks of rank_tasks.py."""

import importlib
import multiprocessing
import tempfile
import traceback
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

WORLD_SIZE = 2


class Ranks:
    """`ranks.run("task", value)` runs rank_tasks.task(value) on every rank and returns the ranks' answers."""

    def __init__(self) -> None:
        context = multiprocessing.get_context("spawn")
        store = Path(tempfile.mkdtemp()) / "store"
        self._pipes: list[Connection] = []
        self._processes = []
        for rank in range(WORLD_SIZE):
            ours, theirs = context.Pipe()
            process = context.Process(target=serve, args=(rank, str(store), theirs), daemon=True)
            process.start()
            self._pipes.append(ours)
            self._processes.append(process)

    def run(self, task: str, value: Any) -> list[Any]:
        for pipe in self._pipes:
            pipe.send((task, value))
        answers = []
        for rank, pipe in enumerate(self._pipes):
            assert pipe.poll(240), f"rank {rank} did not answer {task}"
            problem, answer = pipe.recv()
            assert problem is None, f"rank {rank}:\n{problem}"
            answers.append(answer)
        return answers

    def close(self) -> None:
        for process in self._processes:
            process.kill()


def serve(rank: int, store: str, pipe: Connection) -> None:
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{store}", rank=rank, world_size=WORLD_SIZE)
    tasks = importlib.import_module("tests.rank_tasks")
    while True:
        task, value = pipe.recv()
        try:
            answer = (None, getattr(tasks, task)(value))
        except Exception:
            answer = (traceback.format_exc(), None)
        pipe.send(answer)
