"""Which rank the others wait for, and why: said once, with its number, its machine, the cause and the mend.

In synchronous training all ranks step together, and the slow one is the one that waits least in collectives: its own
work tells it, the wait for data or computing. A slow link tells nothing by rank, since all wait for it alike: there
nobody is named, and the least communication of any rank is what the exchange itself takes. On GPUs the exchange of
SyncBatchNorm counts as computing, also of those who wait in it, so that a rank that computes slowly may go unseen.

Shapes: R ranks, C kinds of time.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pretrain.alarms import Alarm
from pretrain.meter import TIMES

CAUSES = {
    "data_wait": ("data wait", "give it more loader processes or cores, or faster storage"),
    "compute": ("compute", "look for other work, heat or a lower clock there, or take the node out of the cluster"),
}
FloatArray = NDArray[np.float64]
FACTOR = 1.5
"""Of the median of the other ranks."""
MIN_SHARE = 0.1
"""Of a step, that the difference must be worth."""
WINDOWS = 3
"""In a row, that must agree: one window may hold a garbage collection or somebody else's burst."""


class Stragglers:
    """Judges the times of all ranks, window by window, on rank 0. `hosts`: the machine of each rank; none: untold."""

    def __init__(self, hosts: Sequence[str | None]) -> None:
        self._hosts = hosts
        self._in_a_row: dict[tuple[int, str], int] = {}
        self._said: set[tuple[int, str]] = set()

    def see(self, seconds_RC: FloatArray) -> list[Alarm]:
        """Seconds a step of each rank, by `TIMES`, in the last window; returns what is to be said now."""
        found = _slow(seconds_RC)
        self._in_a_row = {one: self._in_a_row.get(one, 0) + 1 for one in found}
        due = [one for one, count in self._in_a_row.items() if count >= WINDOWS and one not in self._said]
        self._said.update(due)
        return [Alarm("straggler", self._sentence(rank, cause, seconds_RC)) for rank, cause in due]

    def _sentence(self, rank: int, cause: str, seconds_RC: FloatArray) -> str:
        column, (words, mend), host = seconds_RC[:, TIMES.index(cause)], CAUSES[cause], self._hosts[rank]
        return (
            f"rank {rank}{f' on {host}' if host else ''} is slow and the others wait for it: {words} "
            f"{column[rank]:.2g} s a step against {_median_of_others(column)[rank]:.2g} s; {mend}"
        )


def waiting_share(seconds_RC: FloatArray) -> float:
    """The share of its time in which the middle rank waits for the slowest one: its communication above the least."""
    communication = seconds_RC[:, TIMES.index("communication")]
    return float((np.median(communication) - communication.min()) / max(1e-9, np.median(seconds_RC.sum(axis=1))))


def _slow(seconds_RC: FloatArray) -> list[tuple[int, str]]:
    """The ranks whose own work takes much longer than that of the others, each with its causes."""
    step = float(np.median(seconds_RC.sum(axis=1)))
    slow = []
    for cause in CAUSES:
        column = seconds_RC[:, TIMES.index(cause)]
        others = _median_of_others(column)
        far = (column > FACTOR * others) & (column - others > MIN_SHARE * step)
        slow += [(int(rank), cause) for rank in np.flatnonzero(far)]
    return slow


def _median_of_others(column_R: FloatArray) -> FloatArray:
    return np.array([np.median(np.delete(column_R, rank)) for rank in range(len(column_R))])
