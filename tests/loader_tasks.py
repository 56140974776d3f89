"""Batches that loader processes make in tests: in a file of their own, since each process loads it for itself."""

import os
import signal
from pathlib import Path

import cv2
import torch

from clusters.config import InputError
from data.images import decode_stored


def pids(step: int) -> torch.Tensor:
    return torch.tensor([step, os.getpid()])


def refuse(step: int) -> torch.Tensor:
    if step == 3:
        raise InputError("shard-000001.tar: image a.0.jpg was altered; copy the dataset again")
    return torch.tensor([step])


def die_once(step: int, marks: str) -> torch.Tensor:
    """At the steps for which there is a mark, each of them once."""
    mark = Path(marks) / str(step)
    if mark.exists():
        mark.unlink()
        os.kill(os.getpid(), signal.SIGKILL)
    return torch.tensor([step])


def die(step: int) -> torch.Tensor:
    if step == 4:
        os.kill(os.getpid(), signal.SIGKILL)
    return torch.tensor([step])


def fail(step: int) -> torch.Tensor:
    """An error of the code, one of the file system, one of a driver and one of a file, each of another kind."""
    if step == 0:
        return torch.tensor([step])
    if step == 1:
        raise RuntimeError("shapes do not fit")
    if step == 2:
        raise OSError(5, "Input/output error", "/data/shard-000001.tar")
    if step == 3:
        raise TimeoutError("no answer\nfrom the store")
    return torch.from_numpy(decode_stored(b"bytes of no image"))


def threads(_: int) -> torch.Tensor:
    return torch.tensor([torch.get_num_threads(), cv2.getNumThreads()])
