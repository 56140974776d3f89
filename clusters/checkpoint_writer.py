"""The thread in which rank 0 writes its checkpoints, and what becomes of a write that fails or never ends."""

import threading
import time
from collections.abc import Callable

from clusters import tracking
from clusters.config import InputError, Transient

MOST_FAILURES = 3
"""So many saves that fail one after another end the run: it would only do work that is lost with it."""
PATIENCE_S = 60.0
"""A write that takes longer is said, and training waits for it no more before its end."""


class Writer:
    """Writes one checkpoint at a time. `place` is where, for messages.

    `problem`: what must end the run. The thread is a daemon: where storage never answers, Python must still be able to
    end, and what is then cut off has no commit.
    """

    def __init__(self, place: str) -> None:
        self.problem: Exception | None = None
        self._place = place
        self._thread: threading.Thread | None = None
        self._step, self._began, self._said = 0, 0.0, False
        self._failures, self._failure = 0, ""

    def start(self, step: int, write: Callable[[], None]) -> None:
        """Write a step's checkpoint from now on. The one before must have ended."""
        assert self.idle(), "one write at a time"
        self._step, self._began, self._said = step, time.monotonic(), False
        self._thread = threading.Thread(target=self._run, args=(step, write), name="checkpoint", daemon=True)
        self._thread.start()

    def idle(self, timeout_s: float = 0.0) -> bool:
        """Whether nothing is being written, after waiting for so long at most."""
        if self._thread is None:
            return True
        self._thread.join(timeout_s)
        if not self._thread.is_alive():
            self._thread = None
        elif not self._said and time.monotonic() - self._began >= PATIENCE_S:
            self._said = True
            tracking.say(f"{self._being_written()} after {PATIENCE_S:g} s; the training goes on beside it")
        return self._thread is None

    def bear(self, most_s: float) -> bool:
        """`idle`, after waiting until the write has taken as long as training has patience for; `most_s` at most."""
        return self.idle(max(0.0, self._began + min(PATIENCE_S, most_s) - time.monotonic()))

    def give_up(self, after_s: float) -> None:
        """Leave the write that goes on, after having waited for so long."""
        self.problem = InputError(
            f"{self._being_written()}, for which {after_s:g} s were waited; see to that storage, or raise "
            "checkpoint.timeout_s, and cluster.timeout_s to twice as much, and run the command again: it goes on from "
            "the newest checkpoint that is whole"
        )

    def last_failure(self) -> Transient | None:
        """Why what was written last is not there, if it is not. Workers that are started again may save it."""
        return Transient(f"{self._failure}; {MEND}") if self._failures else None

    def _being_written(self) -> str:
        return f"the checkpoint of step {self._step} is still being written to {self._place}"

    def _run(self, step: int, write: Callable[[], None]) -> None:
        try:
            write()
            self._failures = 0
        except OSError as error:
            self._fail(step, error)
        except Exception as error:  # taken over by a newer start, or a mistake of ours: all ranks raise it together
            self.problem = error

    def _fail(self, step: int, error: OSError) -> None:
        self._failures += 1
        where = error.filename or self._place
        self._failure = f"the checkpoint of step {step} could not be written ({where}: {error.strerror or error})"
        if self._failures < MOST_FAILURES:
            tracking.say(f"{self._failure}; the training goes on, those before it are kept, and the next is tried")
        else:
            self.problem = InputError(f"{self._failure}, nor could the {MOST_FAILURES - 1} before it; {MEND}")


MEND = "make room or mend the storage, and run the command again: it goes on from the newest checkpoint that is whole"
