"""Map a function over tasks on a Ray cluster, for work that needs no training: an import, an export."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from clusters import security
from clusters.config import InputError
from clusters.connection import address_of, disconnect, join, set_environment
from clusters.workers import ClusterConfig

T = TypeVar("T")
R = TypeVar("R")

TASKS_PER_CORE = 2  # in waiting: enough that no core is idle, few enough that the driver's memory stays small
RETRIES = 3  # of a task whose machine or process died; what a task raises itself is not tried again


def map_tasks(
    function: Callable[[T], R], tasks: Iterable[T], cpus_per_task: float = 1.0, gpus_per_task: float = 0.0
) -> Iterator[R]:
    """Results of `function(task)`, as they are ready, each computed by a Ray task.

    The cluster is that of RAY_ADDRESS, else a local one that ends with the iterator; a Ray that is already
    connected is used as it is. `function` stands at the top level of a module, and running it twice must do no
    harm. Raises what a task raises, and InputError where the cluster cannot be reached or tasks keep dying.
    """
    with connected():
        import ray
        from ray.exceptions import RayError, RayTaskError

        remote = ray.remote(num_cpus=cpus_per_task, num_gpus=gpus_per_task, max_retries=RETRIES)(function)
        waiting: list[Any] = []
        remaining = iter(tasks)
        try:
            while True:
                ahead = max(8, round(TASKS_PER_CORE * ray.cluster_resources().get("CPU", 0)))
                while len(waiting) < ahead and (task := next(remaining, None)) is not None:
                    waiting.append(remote.remote(task))
                if not waiting:
                    return
                ready, waiting = ray.wait(waiting, num_returns=1)
                yield ray.get(ready[0])
        except RayTaskError as error:
            raise (error.cause if isinstance(error.cause, Exception) else error) from None
        except RayError as error:
            told = " ".join(str(error).split())[:200]
            raise InputError(
                f"Ray tasks died {RETRIES + 1} times, most likely for want of memory on their node ({told}); "
                "give the cluster more memory a core, then the same command again"
            ) from None
        finally:
            for task in waiting:
                ray.cancel(task, force=True)


@contextmanager
def connected() -> Iterator[bool]:
    """A Ray to use within: one that is connected already, else that of RAY_ADDRESS, else a local one.

    Yields whether a local one was started here, which ends with it.
    """
    address = address_of(ClusterConfig())
    set_environment(address == "local")
    import ray

    before = ray.is_initialized()
    if not before:
        _connect(address)
    try:
        yield address == "local" and not before
    finally:
        if not before:
            disconnect(address == "local")


def _connect(address: str) -> None:
    security.guard(address)
    try:
        join(address, log_to_driver=False)
    except (ConnectionError, RuntimeError, ValueError) as error:
        told = " ".join(str(error).split())
        raise InputError(f"RAY_ADDRESS: the Ray at {address} cannot be reached: {told}") from None
