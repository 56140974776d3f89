"""Which rank the others wait for, and why: said once, with its number, its machine, the cause and the mend.

In synchronous training all ranks step together, and the slow one is the one that waits least in collectives: its own
work tells it, the wait for data or computing. A slow link tells nothing by rank, since all wait for it alike: there
nobody is named, and the least communication of any rank is what the exchange itself takes. On GPUs the exchange of
SyncBatchNorm counts as computing, also of those who wait in it, so that computing seems alike on all: there a fixed
piece of work that waits for nobody tells a slow device.

Shapes: R ranks, C kinds of time.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from clusters.stopwatch import Stopwatch
from pretrain.alarms import Alarm
from pretrain.meter import TIMES

DEVICE = "device"
LOOK = "look for other work, heat or a lower clock there, or take the node out of the cluster"
CAUSES = {
    "data_wait": ("data wait", "give it more loader processes or cores, or faster storage"),
    "compute": ("compute", LOOK),
    DEVICE: ("compute, of a piece of work that is the same on all,", LOOK),
}
FloatArray = NDArray[np.float64]
FACTOR = 1.5
"""Of the median of the other ranks."""
MIN_SHARE = 0.1
"""Of a step, that the difference must be worth."""
FIXED_FACTOR, FIXED_SIDE, FIXED_TIMES = 1.25, 2048, 3
"""Of the median of the others' fixed work, which varies less; the side of its square matrices; how often it is done."""
WINDOWS = 3
"""In a row, that must agree: one window may hold a garbage collection or somebody else's burst."""


class Stragglers:
    """Judges the times of all ranks, window by window, on rank 0. `hosts`: the machine of each rank; none: untold."""

    def __init__(self, hosts: Sequence[str | None]) -> None:
        self._hosts = hosts
        self._in_a_row: dict[tuple[int, str], int] = {}
        self._said: set[tuple[int, str]] = set()

    def see(self, seconds_RC: FloatArray, fixed_R: FloatArray | None = None) -> list[Alarm]:
        """Seconds a step of each rank, by `TIMES`, in the last window, and of its fixed work where that was timed.

        Returns what is to be said now.
        """
        found = [*_slow(seconds_RC), *(_slow_devices(fixed_R) if fixed_R is not None else [])]
        self._in_a_row = {one: self._in_a_row.get(one, 0) + 1 for one in found}
        due = [one for one, count in self._in_a_row.items() if count >= WINDOWS and one not in self._said]
        self._said.update(due)
        return [Alarm("straggler", self._sentence(rank, cause, seconds_RC, fixed_R)) for rank, cause in due]

    def _sentence(self, rank: int, cause: str, seconds_RC: FloatArray, fixed_R: FloatArray | None) -> str:
        (words, mend), host = CAUSES[cause], self._hosts[rank]
        if cause == DEVICE:
            assert fixed_R is not None
            column, told = 1000 * fixed_R, "ms"
        else:
            column, told = seconds_RC[:, TIMES.index(cause)], "s a step"
        return (
            f"rank {rank}{f' on {host}' if host else ''} is slow and the others wait for it: {words} "
            f"{column[rank]:.2g} {told} against {_median_of_others(column)[rank]:.2g} {told[:2].strip()}; {mend}"
        )


def waiting_share(seconds_RC: FloatArray) -> float:
    """The share of its time in which the middle rank waits for the slowest one: its communication above the least."""
    communication = seconds_RC[:, TIMES.index("communication")]
    return float((np.median(communication) - communication.min()) / max(1e-9, np.median(seconds_RC.sum(axis=1))))


def _slow(seconds_RC: FloatArray) -> list[tuple[int, str]]:
    """The ranks whose own work takes much longer than that of the others, each with its causes."""
    step = float(np.median(seconds_RC.sum(axis=1)))
    slow = []
    for cause in filter(TIMES.__contains__, CAUSES):
        column = seconds_RC[:, TIMES.index(cause)]
        others = _median_of_others(column)
        far = (column > FACTOR * others) & (column - others > MIN_SHARE * step)
        slow += [(int(rank), cause) for rank in np.flatnonzero(far)]
    return slow


def _slow_devices(fixed_R: FloatArray) -> list[tuple[int, str]]:
    return [(int(rank), DEVICE) for rank in np.flatnonzero(fixed_R > FIXED_FACTOR * _median_of_others(fixed_R))]


def fixed_work_s(device: torch.device) -> float:
    """Seconds that a device takes for the same work on every rank, at its best of a few times; waits for it."""
    matrix, found = torch.full((FIXED_SIDE, FIXED_SIDE), 0.5, device=device), []
    for _ in range(1 + FIXED_TIMES):
        stopwatch = Stopwatch(device)
        with stopwatch.timing("work"):
            torch.mm(matrix, matrix)
        found.append(stopwatch.read()["work"])
    return min(found[1:])


def _median_of_others(column_R: FloatArray) -> FloatArray:
    return np.array([np.median(np.delete(column_R, rank)) for rank in range(len(column_R))])
