"""Work by numbered parts on a Ray cluster by Ray Data: each actor makes ready once what all of its parts need."""

import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from clusters.config import InputError
from clusters.tasks import RETRIES, connected

Work = Callable[[int], int]

EXECUTOR_S = 60.0
"""How long a thread of Ray Data that has been told to end may take."""


def map_parts(
    make: Callable[[], Work], parts: Sequence[int], cpus_per_actor: float = 1.0, gpus_per_actor: float = 0.0
) -> Iterator[int]:
    """What `make()(part)` gives for each part, such as how much it was, as they are ready.

    `make` is called once in each actor, to load a model say; it reaches them as it is. As many actors begin as the
    cluster has room for, and more are asked for where it can grow. Doing a part twice must do no harm. The cluster is
    as for `clusters.tasks.map_tasks`. Raises InputError where an actor raises one, where the cluster has no such
    devices, cannot be reached, or where actors keep dying.
    """
    if not parts:
        return
    with connected() as started_here:
        import ray
        from ray.exceptions import RayError, RayTaskError

        there = ray.cluster_resources()
        room = int(there.get("CPU", 0.0) // cpus_per_actor)
        if gpus_per_actor:
            if started_here and not there.get("GPU"):
                raise InputError("gpus_per_task: this machine has no GPU; set 0, or RAY_ADDRESS to a cluster that has")
            room = min(room, int(there.get("GPU", 0.0) / gpus_per_actor))
        try:
            for row in _rows(make, parts, min(len(parts), max(1, room)), cpus_per_actor, gpus_per_actor):
                if row["problem"]:
                    raise InputError(row["problem"])
                yield int(row["done"])
        except RayTaskError:  # what a part itself has raised
            raise
        except RayError as error:
            told = " ".join(str(error).split())[-300:]
            raise InputError(
                f"Ray actors died {RETRIES + 1} times, most likely for want of memory on their node ({told}); "
                "give the cluster more memory a core, then the same command again"
            ) from None


def _rows(
    make: Callable[[], Work], parts: Sequence[int], room: int, cpus: float, gpus: float
) -> Iterator[dict[str, Any]]:
    import logging

    import ray.data

    logging.getLogger("ray.data").setLevel(logging.CRITICAL)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.max_consecutive_actor_init_deaths = RETRIES
    before = threading.enumerate()
    # One block a part: each is done, told and, should its actor die, done again by itself.
    items = ray.data.from_items([{"part": part} for part in parts], override_num_blocks=len(parts))
    done = items.map_batches(
        _Actor,  # type: ignore[arg-type]
        fn_constructor_args=(make,),
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(min_size=room, max_size=len(parts), max_tasks_in_flight_per_actor=2),
        num_cpus=cpus,
        num_gpus=gpus or None,
        ray_remote_args_fn=_retries,
    )
    try:
        yield from done.iter_rows()
    finally:
        _wait_for_executors(before)


def _retries() -> dict[str, Any]:
    """What `map_batches` has no names for; of itself it would start a dying actor again without end."""
    return {"max_restarts": RETRIES, "max_task_retries": RETRIES}


def _wait_for_executors(before: Sequence[threading.Thread], timeout_s: float = EXECUTOR_S) -> None:
    """Ray Data waits 2 s for its threads and leaves them; one that still works when Ray is shut down crashes us.

    Those that were there `before` belong to others. One that stays longer than `timeout_s` is said.
    """
    for thread in threading.enumerate():
        if thread.name.startswith("StreamingExecutor") and thread not in before:
            thread.join(timeout_s)
            if thread.is_alive():
                print(
                    f"a thread of Ray Data ({thread.name}) still works after {timeout_s:g} s; this process may crash "
                    "when Ray is shut down; then the same command goes on from what is done",
                    file=sys.stderr,
                    flush=True,
                )


class _Actor:
    """Bad input is handed back as text, since an exception would come wrapped in Ray's."""

    def __init__(self, make: Callable[[], Work]) -> None:
        self._work: Work | None = None
        self._problem = ""
        try:
            self._work = make()
        except InputError as error:
            self._problem = str(error)

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[Any]]:
        (part,) = batch["part"]
        if self._work is None:
            return {"done": [0], "problem": [self._problem]}
        try:
            return {"done": [self._work(int(part))], "problem": [""]}
        except InputError as error:
            return {"done": [0], "problem": [str(error)]}
