"""How notices to leave come to Ray's workers, and how these leave.

To a driver: a note in the run folder, which rank 0 finds; all ranks save, return, and the run ends with exit code 143.
To a worker, or to its node: all save together, the one that is meant ends with 143, and Ray starts the workers again
where there is room, from that very step. That is no failure, and is not counted as one.
"""

import atexit
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

from clusters import distributed, termination
from clusters.storage import Folder
from clusters.termination import Stopped

LOOK_EVERY_S = 1.0
DRAIN_EVERY_S = 5.0
"""Ray's own watcher of drained nodes looks as often."""

PATIENCE_S = 60.0
"""After this a worker ends itself that has saved and waits for Ray to end it."""


def note(launch: str) -> str:
    """The name of the note that tells the workers of a launch to leave, in the run's .ray folder."""
    return f"{launch}-leave"


@contextmanager
def passing_on(run: Folder, launch: str, heeded: bool) -> Iterator[None]:
    """Within, SIGTERM to this driver reaches the workers as a note; a second one ends the block at once.

    So does the first one where the function that they run does not heed it. Raises Stopped.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    # Not in the handler itself: the driver of an object store waits for other threads
    writing = threading.Thread(target=(run / ".ray").write, args=(note(launch), b"SIGTERM"), daemon=True)
    at_once = False

    def pass_on(number: int, frame: FrameType | None) -> None:
        nonlocal at_once
        at_once = not heeded or writing.ident is not None
        print(f"told to leave (SIGTERM): {'ends at once' if at_once else 'workers save their step'}", file=sys.stderr)
        if at_once:
            raise KeyboardInterrupt  # what Ray, which may be waiting in C++, knows to pass on
        writing.start()

    before = signal.signal(signal.SIGTERM, pass_on)
    try:
        yield
    except KeyboardInterrupt:
        if at_once:
            raise Stopped from None
        raise
    finally:
        signal.signal(signal.SIGTERM, before)
        if writing.ident is not None:
            writing.join()


def has_note(run: Folder, launch: str) -> bool:
    """Whether the driver was told to leave."""
    return (run / ".ray").exists(note(launch))


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
            (run / ".ray").remove(left(launch))
    threading.Thread(target=_look, args=(run, launch, distributed.is_main()), daemon=True).start()


def _look(run: Folder, launch: str, is_main: bool) -> None:
    looked = time.monotonic()
    while termination.notice() is None:
        time.sleep(LOOK_EVERY_S)
        with suppress(Exception):  # storage or Ray's head may be out of reach for a moment
            if is_main and has_note(run, launch):
                termination.keep("SIGTERM")
            elif time.monotonic() - looked >= DRAIN_EVERY_S:
                looked = time.monotonic()
                if _is_drained():
                    termination.keep("its node is taken back")


def _is_drained() -> bool:
    """Whether this node is to be gone soon: a spot machine, or `ray drain-node`. It takes no new workers."""
    import ray

    return ray.get_runtime_context().get_node_id() in ray._private.state.state.get_draining_nodes()  # type: ignore[attr-defined]


def left(launch: str) -> str:
    """The name of the note by which a worker that has saved and leaves tells Ray's controller, in the .ray folder."""
    return f"{launch}-left"


def failure_policy(run: Folder, launch: str, failure_config: Any) -> Any:
    """Ray Train's policy, for which a worker that was told to leave, and has saved, is no failure."""
    from ray.train.v2._internal.execution.failure_handling import FailureDecision
    from ray.train.v2._internal.execution.failure_handling.default import DefaultFailurePolicy

    class Policy(DefaultFailurePolicy):
        def __setstate__(self, state: dict[str, Any]) -> None:
            vars(self).update(state)
            # Here is Ray's controller. Its C++ can lock itself up as the process ends (seen in 2.60), which then stays
            # for ever. All is over by the time that Python ends.
            atexit.register(os._exit, 0)

        def make_decision(self, training_failed_error: Any) -> Any:
            with suppress(OSError):  # storage out of reach: then it counts
                if (run / ".ray").exists(left(launch)):
                    (run / ".ray").remove(left(launch))
                    return FailureDecision.RETRY
            return super().make_decision(training_failed_error)

    return Policy(failure_config)


def leave(run: Folder, launch: str) -> None:
    """Leave after `Stopped`: return where the whole run ends, end this process or wait for Ray to end it elsewhere."""
    if has_note(run, launch):
        return
    if termination.notice() is not None:
        with suppress(OSError):
            (run / ".ray").write(left(launch), b"")
        os._exit(termination.EXIT_CODE)
    # Ray ends this one with the other; an error of this rank could be a failure of its own
    time.sleep(PATIENCE_S)
    raise RuntimeError("another rank was told to leave and is still there")
