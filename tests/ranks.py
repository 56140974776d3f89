"""Real gloo processes, started once for a test session or module, that run the tasks of a module by name."""

import importlib
import multiprocessing
import os
import tempfile
import traceback
from multiprocessing.connection import Connection
from pathlib import Path
from types import ModuleType
from typing import Any


class Ranks:
    """`ranks.run("task", value)` runs task(value) of a module on every rank and returns the ranks' answers."""

    def __init__(self, world_size: int = 2, tasks: str = "tests.rank_tasks") -> None:
        context = multiprocessing.get_context("spawn")
        store = Path(tempfile.mkdtemp()) / "store"
        pipes = [context.Pipe() for _ in range(world_size)]
        self._pipes = [ours for ours, _ in pipes]
        self._process = context.Process(
            target=serve_all, args=(str(store), tasks, [theirs for _, theirs in pipes]), daemon=True
        )
        self._process.start()

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
        for pipe in self._pipes:
            pipe.close()
        self._process.join(10)
        self._process.kill()


def serve_all(store: str, tasks: str, pipes: list[Connection]) -> None:
    """Import what all need once, and fork: the last rank is this process."""
    module = importlib.import_module(tasks)
    for rank, pipe in enumerate(pipes):
        if rank == len(pipes) - 1:
            serve(rank, len(pipes), store, module, pipe)
        elif os.fork() == 0:
            serve(rank, len(pipes), store, module, pipe)
            os._exit(0)


def serve(rank: int, world_size: int, store: str, tasks: ModuleType, pipe: Connection) -> None:
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{store}", rank=rank, world_size=world_size)
    while True:
        try:
            task, value = pipe.recv()
        except EOFError:  # whoever asked has gone
            return
        try:
            answer = (None, getattr(tasks, task)(value))
        except Exception:
            answer = (traceback.format_exc(), None)
        pipe.send(answer)
