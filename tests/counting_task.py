"""What elastic workers of a real Ray run: it learns nothing, but counts each position of its batches, and resumes."""

import time
from collections.abc import Callable

import torch

from clusters import distributed, notice
from clusters.checkpoint import CheckpointConfig, Checkpoints
from clusters.config import Config
from clusters.storage import Folder
from clusters.workers import ClusterConfig

NUM_STEPS, BATCH_SIZE, EVERY_STEPS = 24, 4, 5
LOST_BEFORE, ANNOUNCED_BEFORE = 8, 14
"""The first two workers wait at a step to lose one of them, the one that is left to be told of a second."""


class CountConfig(Config):
    """Where to count, and by whom."""

    run: str
    cluster: ClusterConfig


def count(config: CountConfig) -> dict[str, float]:
    """The sum of all positions; leaves a line a step in notes.txt: the step, the number of workers, its positions."""
    run, world_size = Folder(config.run), distributed.world_size()
    checkpoints = Checkpoints(run, CheckpointConfig(every_steps=EVERY_STEPS))
    restored = checkpoints.restore()
    total = restored.state["total"] if restored else torch.zeros(())
    alone_before = distributed.broadcast_object(any(note[1] == 1 for note in notes(run)))
    for step in range(restored.step if restored else 0, NUM_STEPS):
        if world_size == 2 and step == LOST_BEFORE and not alone_before:
            _wait_for(lambda: False)
        if world_size == 1 and step == ANNOUNCED_BEFORE - 1:
            _wait_for(notice.is_given)
        if world_size == 1 and step == ANNOUNCED_BEFORE:
            _wait_for(lambda: False)
        share = BATCH_SIZE // world_size
        positions = distributed.gather(torch.arange(share) + step * BATCH_SIZE + distributed.rank() * share)
        total += positions.sum()
        if distributed.is_main():
            with run.path.joinpath("notes.txt").open("a") as file:  # type: ignore[union-attr]
                file.write(" ".join(map(str, [step, world_size, *positions.tolist()])) + "\n")
            if checkpoints.due(step + 1):
                checkpoints.save(step + 1, {"total": total})
    return {"total": float(total)}


def notes(run: Folder) -> list[list[int]]:
    """The steps that were taken, in the order in which they were."""
    if not run.exists("notes.txt"):
        return []
    return [[int(word) for word in line.split()] for line in run.read("notes.txt").decode().splitlines()]


def _wait_for(condition: Callable[[], bool]) -> None:
    """Until then, or until Ray ends this process."""
    while not condition():
        time.sleep(0.1)
