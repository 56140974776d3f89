"""How notices to leave come to Ray's workers, and how these leave.

To a driver: a note in the run folder, which rank 0 finds; all ranks save, return, and the run ends with exit code 143
(130 after Ctrl-C).
To a worker, or to its node: all save together, the one that is meant ends with 143, and Ray starts the workers again
where there is room, from that very step. That is no failure, and is not counted as one.
"""

import atexit
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

from clusters import distributed, scaling, termination
from clusters.checkpoint_files import CHECKPOINTS, MANIFEST, parse_name
from clusters.storage import Folder
from clusters.termination import Stopped
from clusters.tracking import LOG

LOOK_EVERY_S = 1.0
DRAIN_EVERY_S = 5.0
"""Ray's own watcher of drained nodes looks as often."""

MOST_SAID = 200
"""Characters of one error in a line."""
GONE = "its process died or does not answer"
SAID_AGAIN_S = 600.0
"""Between two lines that say the same, of a run that waits for room for days."""

SAME_NOTICE_S = 2.0
"""A SIGTERM within it after another is the same one: `ray job stop` tells every process of a job, and `uv run` passes
on what it is told itself."""

PATIENCE_S = 60.0
"""After this a worker ends itself that has saved and waits for Ray to end it."""


def notes(run: Folder) -> Folder:
    """Where a launch and its workers leave notes for each other: not with Ray's own files, on which nothing depends."""
    return run / ".launch"


def note(launch: str) -> str:
    """The name of the note that tells the workers of a launch to leave."""
    return f"{launch}-leave"


@contextmanager
def passing_on(run: Folder, launch: str, heeded: bool) -> Iterator[None]:
    """Within, SIGTERM or Ctrl-C to this driver reaches the workers as a note; a second one ends the block at once.

    So does the first one where the function that they run does not heed it. Raises Stopped, or KeyboardInterrupt.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    writing: threading.Thread | None = None
    at_once, told_at = "", 0.0

    def pass_on(number: int, frame: FrameType | None) -> None:
        nonlocal at_once, told_at, writing
        told_already = writing is not None or at_once
        if told_already and number == signal.SIGTERM and time.monotonic() < told_at + SAME_NOTICE_S:
            return
        told_at = time.monotonic()
        told = "SIGTERM" if number == signal.SIGTERM else termination.INTERRUPTED
        at_once = told if not heeded or writing is not None else ""
        print(f"told to leave ({told}): {'ends at once' if at_once else 'workers save their step'}", file=sys.stderr)
        if at_once:
            raise KeyboardInterrupt  # what Ray, which may be waiting in C++, knows to pass on
        # Not in the handler itself: the driver of an object store waits for other threads
        writing = threading.Thread(target=_tell, args=(run, launch, told), daemon=True)
        writing.start()

    interrupts = signal.getsignal(signal.SIGINT) == signal.default_int_handler
    heard = [signal.SIGTERM, *([signal.SIGINT] if interrupts else [])]
    before = {number: signal.signal(number, pass_on) for number in heard}
    try:
        yield
    except KeyboardInterrupt:
        if at_once == "SIGTERM":
            raise Stopped from None
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if writing is not None:  # storage that stalls does not keep whoever has asked twice
            writing.join(0.0 if at_once else PATIENCE_S)


def _tell(run: Folder, launch: str, told: str) -> None:
    try:
        notes(run).write(note(launch), told.encode())
    except OSError as error:
        said = f"{run}: workers could not be told to save their step ({error.strerror or error})"
        print(f"{said}; a second {told} ends them at once", file=sys.stderr)


def told_to_leave(run: Folder, launch: str) -> str | None:
    """By what the driver was told to leave, if it was."""
    return notes(run).read(note(launch)).decode() if notes(run).exists(note(launch)) else None


def hearing_torch(backend: str, timeout_s: int) -> Any:
    """Ray's TorchConfig, with workers that listen for SIGTERM: the function runs outside of their main thread."""
    from ray.train.torch import TorchConfig

    class Backend(TorchConfig().backend_cls):
        def on_start(self, worker_group: Any, backend_config: Any) -> None:
            super().on_start(worker_group, backend_config)
            worker_group.execute(termination.listen)

    class HearingTorchConfig(TorchConfig):
        @property
        def backend_cls(self) -> Any:
            return Backend

    return HearingTorchConfig(backend=backend, timeout_s=timeout_s)


def start(run: Folder, launch: str) -> None:
    """Begin to look, beside the training, for the driver's note and for a node that is taken back."""
    if distributed.is_main():
        with suppress(OSError):  # of a second worker that left with the first: it must not excuse a failure to come
            notes(run).remove(left(launch))
    threading.Thread(target=_look, args=(run, launch, distributed.is_main()), daemon=True).start()


def _look(run: Folder, launch: str, is_main: bool) -> None:
    looked = time.monotonic()
    while termination.notice() is None:
        time.sleep(LOOK_EVERY_S)
        # Ray's head or the storage may be out of reach for a moment; the storage may take long to say so
        if time.monotonic() - looked >= DRAIN_EVERY_S:
            looked = time.monotonic()
            with suppress(Exception):
                if _is_drained():
                    termination.keep("its node is taken back")
        with suppress(Exception):
            if is_main and (told := told_to_leave(run, launch)):
                termination.keep(told)


def _is_drained() -> bool:
    import ray

    return ray.get_runtime_context().get_node_id() in scaling.draining_nodes()


def left(launch: str) -> str:
    """The name of the note by which a worker that has saved and leaves tells Ray's controller."""
    return f"{launch}-left"


def failure_policy(run: Folder, launch: str, failure_config: Any) -> Any:
    """Ray Train's policy, for which a worker that was told to leave, and has saved, is no failure.

    Of failures it counts those since the newest checkpoint: a long run meets many, a broken one the same again.
    """
    from ray.train.v2._internal.execution.failure_handling import FailureDecision
    from ray.train.v2._internal.execution.failure_handling.default import DefaultFailurePolicy

    class Policy(DefaultFailurePolicy):
        said, again = "", 0.0
        saved: frozenset[tuple[str, int]] | None = None

        def __setstate__(self, state: dict[str, Any]) -> None:
            vars(self).update(state)
            # Here is Ray's controller. Its C++ can lock itself up as the process ends (seen in 2.60), which then stays
            # for ever. All is over by the time that Python ends.
            atexit.register(os._exit, 0)

        def make_decision(self, training_failed_error: Any) -> Any:
            with suppress(OSError):  # storage out of reach: then it counts
                if told_to_leave(run, launch):  # workers that wait for room would wait on
                    if getattr(training_failed_error, "worker_failures", None):
                        line = f"{what_failed(training_failed_error)}, while it was told to leave"
                        _say_from_controller(run, f"{line}: the step that it was at may not be saved")
                    return FailureDecision.RAISE
                if notes(run).exists(left(launch)):
                    notes(run).remove(left(launch))
                    return FailureDecision.RETRY
            self._forget_failures_before(run)
            decision = super().make_decision(training_failed_error)
            again, most = self._worker_group_failures, self.failure_config.max_failures
            counted = f" (restart {again} of {most} without a newer checkpoint)" if again and most > 0 else ""
            line = f"{what_failed(training_failed_error)}; the workers are started again{counted}"
            if decision == FailureDecision.RETRY and (line != self.said or time.monotonic() > self.again):
                self.said, self.again = line, time.monotonic() + SAID_AGAIN_S
                _say_from_controller(run, line)
            return decision

        def _forget_failures_before(self, run: Folder) -> None:
            with suppress(OSError):  # storage out of reach: then all count
                found = saved_steps(run)
                if self.saved is not None and found - self.saved:
                    self._worker_group_failures = 0
                self.saved = found | (self.saved or frozenset())

    return Policy(failure_config)


def saved_steps(run: Folder) -> frozenset[tuple[str, int]]:
    """Stage and step of each checkpoint below a run folder; one that a later start wrote again is none more."""
    found = (re.fullmatch(f"(.*/)?{CHECKPOINTS}/([^/]+)/{MANIFEST}", name) for name in run.sizes())
    named = [(one[1], parse_name(one[2])) for one in found if one]
    return frozenset((stage, name.step) for stage, name in named if name is not None)


def what_failed(error: Any) -> str:
    """A failure of Ray Train as one line: which ranks, and what their errors say last."""
    failures = getattr(error, "worker_failures", None) or {}
    if failures:
        # Those that are gone first: what the others say is often only that they miss them
        told = {rank: _last_words(failure) for rank, failure in failures.items()}
        ordered = sorted(told, key=lambda rank: (told[rank] != GONE, rank))
        return "failed on " + ", ".join(f"rank {rank}: {told[rank]}" for rank in ordered)
    inner = getattr(error, "controller_failure", error)
    if type(inner).__name__ == "WorkerGroupStartupTimeoutError":
        return "there is no room for the workers yet (`ray status` tells what they wait for)"
    return " ".join(str(inner).split())[:MOST_SAID]


def _last_words(failure: Exception) -> str:
    """Of one rank: what its traceback says last, or that there is none, since its process is gone."""
    if type(failure).__name__.startswith("WorkerHealthCheck"):
        return GONE
    lines = str(failure).strip().splitlines() or [type(failure).__name__]
    return lines[-1 if "Traceback" in str(failure) else 0].strip()[:MOST_SAID]


def _say_from_controller(run: Folder, line: str) -> None:
    """Where the driver shows it: the run's log, or what this process prints."""
    with suppress(OSError):
        if run.path is None:
            print(line, flush=True)
        else:
            run.append(LOG, line)


def leave(run: Folder, launch: str) -> None:
    """Leave after `Stopped`: return where the whole run ends, end this process or wait for Ray to end it elsewhere."""
    if told_to_leave(run, launch):
        return
    if termination.notice() is not None:
        with suppress(OSError):
            notes(run).write(left(launch), b"")
        os._exit(termination.EXIT_CODE)
    # Ray ends this one with the other; an error of this rank could be a failure of its own
    time.sleep(PATIENCE_S)
    raise RuntimeError("another rank was told to leave and is still there")
