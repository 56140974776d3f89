"""Run one function on N Ray Train workers, or right here.

    launch(train, config, config.cluster, run_folder)

With `num_workers=0` the function runs in this process, without Ray: the path for one GPU and for
debugging. With more, Ray Train starts, restarts and resizes the workers; it is never given a checkpoint
and never decides what is valid: the function finds its own state in the run folder at every start.
"""

import gc
import math
import os
import sys
import time
import uuid
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from clusters import distributed, leaving, preflight, scaling, security, tracking
from clusters.config import Config, InputError, Transient
from clusters.preflight import NOTHING, Needs
from clusters.storage import Folder
from clusters.termination import Stopped
from clusters.workers import ClusterConfig

C = TypeVar("C", bound=Config)

REPORT_EVERY_S = 10.0
"""`ray.train.report` waits for the controller's poll: closer together it would stall the training."""

QUIET_RAY = {
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",  # it prints every line twice
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "1",  # how soon a dead worker is noticed
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_TRAIN_COLLECTIVE_TIMEOUT_S": "600",  # without it, ranks that report unequally often wait for ever
}

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

_last_report = time.monotonic()


def launch(
    function: Callable[[C], dict[str, Any]],
    config: C,
    cluster: ClusterConfig,
    run: Folder,
    sizes: Sequence[int] | None = None,
    needs: Needs = NOTHING,
    heeds: bool = False,
) -> dict[str, Any]:
    """Run `function(config)` on every worker and return what rank 0 returns.

    `function` stands at the top level of a module; it and the config reach the workers as they are. `sizes`: of the
    numbers of workers that the cluster's config allows, those among which the work can be divided; none: all.
    `heeds`: the function saves and raises Stopped where it is told to leave (`clusters.termination`).
    Raises InputError where the cluster is too small or a node lacks what the run `needs`, and what a worker raises;
    Stopped after SIGTERM.
    """
    if cluster.num_workers == 0:
        return function(config)
    set_environment(local=address_of(cluster) == "local")
    import ray

    started_here = not ray.is_initialized()
    if started_here:
        connect(cluster, follow_log=run.path is not None)
    follower = tracking.LogFollower(run) if run.path is not None else None
    try:
        sizes = sizes or cluster.sizes
        use_gpu = check_resources(cluster, sizes)
        worker = {"CPU": cluster.cpus_per_worker, "GPU": float(use_gpu)}
        preflight.check_nodes(run.location, needs, worker, sizes[0])
        return _train(function, config, cluster, run, use_gpu, sizes, heeds)
    finally:
        if follower is not None:
            follower.close()
        if started_here:
            disconnect()


def address_of(cluster: ClusterConfig) -> str:
    """Where the Ray is that a run uses; `local`: one that is started here.

    Without that word Ray would go looking for whatever cluster was started last on this machine.
    """
    return cluster.address or os.environ.get("RAY_ADDRESS") or "local"


def set_environment(local: bool) -> None:
    """Set what a Ray that is used, and one that is started here, reads; what a person has set stays as it is."""
    # A worker's gloo would listen on whatever address this machine's name stands for.
    loopback = {"GLOO_SOCKET_IFNAME": "lo"} if sys.platform == "linux" else {}
    for name, value in {**QUIET_RAY, **({**LEAN_RAY, **loopback} if local else {})}.items():
        os.environ.setdefault(name, value)


def report(metrics: dict[str, float]) -> None:
    """Show metrics to Ray where there is one. Every rank must call this at the same steps."""
    global _last_report
    due = distributed.broadcast_object(time.monotonic() - _last_report >= REPORT_EVERY_S)
    if due and "MANYVIEW_RAY_WORKER" in os.environ:
        import ray.train

        ray.train.report(metrics)
        _last_report = time.monotonic()


def connect(cluster: ClusterConfig, follow_log: bool) -> None:
    """Connect to the cluster, or start a local Ray. Raises InputError where it cannot be reached."""
    import logging

    import ray

    address = address_of(cluster)
    where = "a local Ray" if address == "local" else f"the Ray cluster at {address}"
    security.guard(address)
    print(f"starting on {where} with {cluster.said} workers …", flush=True)
    try:
        ray.init(
            address=address,
            logging_level=logging.ERROR,
            include_dashboard=False if address == "local" else None,
            log_to_driver=not follow_log,
        )
    except Exception as error:  # a bare one where Ray's daemons do not come up in time on a busy machine
        raise InputError(f"cluster.address: {where} cannot be reached: {' '.join(str(error).split())}") from None


def disconnect() -> None:
    """Shut down what was connected or started here, with nothing left of it in this process.

    Ray numbers actors alike in each of its sessions: a handle of this one that were freed in the next one would end
    an actor there.
    """
    import ray

    gc.collect()
    ray.shutdown()


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
    use_gpu = gpus >= fewest if cluster.use_gpu is None else cluster.use_gpu
    if cluster.elastic:
        room = min(cpus / cluster.cpus_per_worker, gpus if use_gpu else math.inf)
        print(f"there is room for {scaling.largest(sizes, int(room))} workers now", flush=True)
    return use_gpu


def _train(
    function: Callable[[C], dict[str, Any]],
    config: C,
    cluster: ClusterConfig,
    run: Folder,
    use_gpu: bool,
    sizes: Sequence[int],
    heeds: bool,
) -> dict[str, Any]:
    from ray.train import TrainingFailedError

    # A fresh name each time: what an earlier Ray run left behind must not decide anything.
    name = f"launch-{uuid.uuid4().hex[:8]}"
    settings = {"function": function, "config": config, "run": run.location, "launch": name}
    told = False
    try:
        with leaving.passing_on(run, name, heeds):
            result = _trainer(settings, cluster, use_gpu, sizes).fit()
    except TrainingFailedError as error:
        problem = _input_error(run, name)
        raise (InputError(problem) if problem else _plain(error)) from error
    else:
        problem, told = _input_error(run, name), leaving.has_note(run, name)
    finally:
        _tidy(run, name)
    if problem:
        raise InputError(problem)
    if told and not result.return_value:
        raise Stopped
    assert result.return_value is not None
    return result.return_value


def _trainer(settings: dict[str, Any], cluster: ClusterConfig, use_gpu: bool, sizes: Sequence[int]) -> Any:
    from ray.train import FailureConfig, LoggingConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    trainer = (scaling.elastic_trainer(sizes) if cluster.elastic else TorchTrainer)(
        _worker,
        train_loop_config=settings,
        torch_config=leaving.hearing_torch("nccl" if use_gpu else "gloo", cluster.timeout_s),
        scaling_config=ScalingConfig(
            num_workers=(sizes[0], sizes[-1]) if cluster.elastic else sizes[0],
            elastic_resize_monitor_interval_s=cluster.resize_every_s,
            use_gpu=use_gpu,
            resources_per_worker={"CPU": cluster.cpus_per_worker, **({"GPU": 1} if use_gpu else {})},
        ),
        run_config=RunConfig(
            name=settings["launch"],
            storage_path=f"{settings['run']}/.ray",
            failure_config=FailureConfig(max_failures=cluster.max_failures),
            worker_runtime_env={"env_vars": {"MANYVIEW_RAY_WORKER": "1"}},
            logging_config=LoggingConfig(log_level="ERROR"),
        ),
    )
    # Ctrl-C stays KeyboardInterrupt: after Ray's own handler a run would end as if all were well
    trainer._register_sigint_handler = lambda controller: None
    return trainer


def _tidy(run: Folder, launch_name: str) -> None:
    """Remove what this launch left in the run folder, and nothing of another's."""
    for name in (launch_name, f"{launch_name}-input-error", leaving.note(launch_name)):
        (run / ".ray").remove(name)
    if not (run / ".ray").names():
        run.remove(".ray")


def _worker(settings: dict[str, Any]) -> dict[str, Any]:
    """What Ray Train runs on each worker."""
    import ray.train.torch

    run = Folder(settings["run"])
    if run.path is not None:
        tracking.say_into(run)
    distributed.use_device(ray.train.torch.get_device())
    if _input_error(run, settings["launch"]) or leaving.has_note(run, settings["launch"]):
        return {}
    leaving.look_for_notices(run, settings["launch"])
    try:
        return settings["function"](settings["config"])
    except Transient as error:
        raise RuntimeError(str(error)) from None
    except Stopped:
        leaving.leave(run, settings["launch"])
        return {}
    except InputError as error:
        # Bad input stays bad, and perhaps one rank alone has met it: raising ends the others, which wait
        # for this one, and the note makes the restart that follows end at once.
        (run / ".ray").write(f"{settings['launch']}-input-error", str(error).encode())
        raise


def _input_error(run: Folder, launch_name: str) -> str | None:
    name = f"{launch_name}-input-error"
    return (run / ".ray").read(name).decode() if (run / ".ray").exists(name) else None


def _plain(error: Exception) -> Exception:
    """The workers' own errors, out of Ray's wrapping."""
    failures = getattr(error, "worker_failures", None) or {}
    ranks = ", ".join(f"rank {rank}: {str(failure).strip().splitlines()[-1]}" for rank, failure in failures.items())
    return RuntimeError(f"training failed on {ranks}" if ranks else str(error))
