"""The Ray that work runs on: where it is, what it reads from the environment, joined or started, and large enough."""

import logging
import math
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

from clusters import scaling, security
from clusters.config import InputError
from clusters.workers import ClusterConfig

QUIET_RAY = {
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",  # it prints every line twice
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_USAGE_STATS_REPORT_URL": "http://127.0.0.1:9",  # that nothing is reported is reported too
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "1",  # how soon a dead worker is noticed
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}
GIVEN_UP_AFTER = (
    "RAY_TRAIN_COLLECTIVE_TIMEOUT_S",  # without it, ranks that report unequally often wait for ever
    "RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S",  # the only way in which a single worker that stalls is found
)
BUSY_S = 60
"""For so long a worker that imports on a busy machine may leave Ray without an answer."""

ENDS_S = 10.0
"""For so long the workers of a Ray that was started here may take to end by themselves."""

LEAN_RAY = {
    "RAY_worker_niceness": "0",  # at Ray's own 15 everything else on the machine goes before the training
    "RAY_prestart_worker_first_driver": "0",  # processes that nobody asks for import while the first steps run
    "RAY_enable_metrics_collection": "0",
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "RAY_task_events_report_interval_ms": "0",  # of tasks that its dashboard, which is off, would show
    "REPORTER_UPDATE_INTERVAL_MS": "60000",
    "RAY_LOG_MONITOR_MANY_FILES_THRESHOLD": "0",  # or it lists all log files ten times a second
}
"""For a Ray that is started here, whose daemons would take the cores of the training."""


def address_of(cluster: ClusterConfig) -> str:
    """Where the Ray is that a run uses; `local`: one that is started here.

    Without that word Ray would go looking for whatever cluster was started last on this machine.
    """
    return cluster.address or os.environ.get("RAY_ADDRESS") or "local"


def set_environment(local: bool, timeout_s: int = 600) -> None:
    """Set what a Ray that is used, and one that is started here, reads; what a person has set stays as it is.

    `timeout_s`: after which workers that do not answer are given up.
    """
    # A worker's gloo would listen on whatever address this machine's name stands for.
    loopback = {"GLOO_SOCKET_IFNAME": "lo"} if sys.platform == "linux" else {}
    given_up = dict.fromkeys(GIVEN_UP_AFTER, str(max(timeout_s, BUSY_S)))
    for name, value in {**QUIET_RAY, **given_up, **({**LEAN_RAY, **loopback} if local else {})}.items():
        os.environ.setdefault(name, value)


def connect(cluster: ClusterConfig, follow_log: bool) -> None:
    """Connect to the cluster, or start a local Ray. Raises InputError where it cannot be reached."""
    address = address_of(cluster)
    where = "a local Ray" if address == "local" else f"the Ray cluster at {address}"
    security.guard(address)
    print(f"starting on {where} with {cluster.said} workers …", flush=True)
    try:
        join(address, log_to_driver=not follow_log)
    except Exception as error:  # a bare one where Ray's daemons do not come up in time on a busy machine
        raise InputError(f"cluster.address: {where} cannot be reached: {' '.join(str(error).split())}") from None


def join(address: str, log_to_driver: bool) -> None:
    """Connect to the Ray at an address, or start a local one. Raises whatever Ray does."""
    import ray

    if address != "local":
        ray.init(address=address, logging_level=logging.ERROR, log_to_driver=log_to_driver)
        return
    with _without_api_server():
        ray.init(
            address="local",
            logging_level=logging.ERROR,
            include_dashboard=False,
            log_to_driver=log_to_driver,
            _temp_dir=security.session_folder(),
        )


@contextmanager
def _without_api_server() -> Iterator[None]:
    """Start a Ray without the process of its dashboard, which comes with the dashboard off too.

    All that it does then is to ask the metadata servers of three clouds where it is, over the network.
    """
    from ray._private import services

    start = services.start_api_server
    services.start_api_server = lambda *words, **named: ("", None)
    try:
        yield
    finally:
        services.start_api_server = start


def disconnect(local: bool) -> None:
    """Leave Ray; of one that was started here no worker stays, also none that has locked itself up at its end."""
    import psutil
    import ray

    workers: list[psutil.Process] = []
    if local:
        for one in psutil.Process().children(recursive=True):
            with suppress(psutil.Error):
                workers += [one] if one.name().startswith("ray::") else []
    ray.shutdown()
    for one in psutil.wait_procs(workers, timeout=ENDS_S)[1]:
        with suppress(psutil.Error):
            one.kill()


def check_resources(cluster: ClusterConfig, sizes: Sequence[int] | None = None) -> bool:
    """Say at once what is missing, also for the fewest workers; Ray itself would wait for ever.

    Returns whether to use GPUs.
    """
    import ray

    sizes, there = sizes or cluster.sizes, ray.cluster_resources()
    cpus, gpus, fewest = there.get("CPU", 0.0), there.get("GPU", 0.0), sizes[0]
    asked = fewest * cluster.cpus_per_worker
    if asked > cpus:
        raise InputError(
            f"cluster.num_workers: {fewest} workers ask for {asked:g} CPU cores and the cluster "
            f"has {cpus:g}; lower cluster.num_workers or cluster.cpus_per_worker"
        )
    if cluster.use_gpu and gpus < fewest:
        raise InputError(
            f"cluster.use_gpu: {fewest} workers ask for a GPU each and the cluster has "
            f"{gpus:g}; lower cluster.num_workers or set cluster.use_gpu=false"
        )
    if 0 < gpus < fewest and cluster.use_gpu is None:
        raise InputError(
            f"cluster.use_gpu: there is no GPU for each of {fewest} workers, the cluster has {gpus:g}; wait for its "
            f"nodes, or set cluster.num_workers={int(gpus)}, or cluster.use_gpu=false to train on CPUs"
        )
    use_gpu = gpus > 0 if cluster.use_gpu is None else cluster.use_gpu
    if cluster.elastic:
        room = min(cpus / cluster.cpus_per_worker, gpus if use_gpu else math.inf)
        print(f"there is room for {scaling.largest(sizes, int(room))} workers now", flush=True)
    return use_gpu
