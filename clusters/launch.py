"""Run one function on N Ray Train workers, or right here.

    launch(train, config, config.cluster, run_folder)

With `num_workers=0` the function runs in this process, without Ray: the path for one GPU and for
debugging. With more, Ray Train starts, restarts and resizes the workers; it is never given a checkpoint
and never decides what is valid: the function finds its own state in the run folder at every start.
"""

import functools
import os
import socket
import time
import uuid
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, TypeVar

import torch

from clusters import distributed, joining, lease, leaving, preflight, scaling, tracking
from clusters.attempt import Replaced
from clusters.config import Config, InputError, Transient
from clusters.connection import address_of, check_resources, connect, disconnect, set_environment
from clusters.joining import Passing
from clusters.preflight import NOTHING, Needs
from clusters.storage import Folder
from clusters.termination import Stopped
from clusters.versions import versions_here
from clusters.workers import ClusterConfig

C = TypeVar("C", bound=Config)

REPORT_EVERY_S = 10.0
"""`ray.train.report` waits for the controller's poll: closer together it would stall the training."""

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
    Stopped after SIGTERM or Ctrl-C.
    """
    if cluster.num_workers == 0:
        preflight.check_here(run.location, needs)
        num_gpus = torch.cuda.device_count()
        if heeds and num_gpus > 1:  # a training: what is shorter need not use them all
            tracking.say(f"{num_gpus} GPUs here and 1 is used; cluster.num_workers={num_gpus} uses all")
        return function(config)
    set_environment(address_of(cluster) == "local", cluster.timeout_s)
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
        return _train(function, config, cluster, run, use_gpu, sizes, heeds, needs.datasets)
    finally:
        if follower is not None:
            follower.close()
        if started_here:
            disconnect(local=address_of(cluster) == "local")


def report(metrics: dict[str, float]) -> None:
    """Show metrics to Ray where there is one. Every rank must call this at the same steps."""
    global _last_report
    due = distributed.broadcast_object(time.monotonic() - _last_report >= REPORT_EVERY_S)
    if due and "MANYVIEW_RAY_WORKER" in os.environ:
        import ray.train

        ray.train.report(metrics)
        _last_report = time.monotonic()


def _train(
    function: Callable[[C], dict[str, Any]],
    config: C,
    cluster: ClusterConfig,
    run: Folder,
    use_gpu: bool,
    sizes: Sequence[int],
    heeds: bool,
    datasets: Sequence[str],
) -> dict[str, Any]:
    import ray.cloudpickle
    from ray.train import TrainingFailedError

    # A fresh name each time: what an earlier Ray run left behind must not decide anything.
    name = f"launch-{uuid.uuid4().hex[:8]}"
    # As bytes: Ray's controller looks at these settings too, and would import all that the function needs
    work = ray.cloudpickle.dumps((function, config))
    settings = {"work": work, "run": run.location, "launch": name, "datasets": list(datasets)}
    settings |= {"versions": versions_here(), "host": socket.gethostname(), "node": joining.node_here()}
    leaving.notes(run).write(f"{name}-here", b"")
    told: str | None = None
    try:
        with leaving.passing_on(run, name, heeds):
            result = _trainer(settings, cluster, use_gpu, sizes).fit()
    except TrainingFailedError as error:
        problem = joining.input_error(run, name)
        if problem:
            raise InputError(problem) from None
        if told := leaving.told_to_leave(run, name):
            raise Stopped(told) from None
        found = plain(error)
        raise found from (None if isinstance(found, InputError) else error)
    else:
        problem, told = joining.input_error(run, name), leaving.told_to_leave(run, name)
    finally:
        _tidy(run)
    if problem:
        raise InputError(problem)
    if told and not result.return_value:
        raise Stopped(told)
    assert result.return_value is not None
    return result.return_value


def _trainer(settings: dict[str, Any], cluster: ClusterConfig, use_gpu: bool, sizes: Sequence[int]) -> Any:
    from ray.train import FailureConfig, LoggingConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    run = Folder(settings["run"])
    told = functools.partial(leaving.told_to_leave, run, settings["launch"])

    class Trainer(TorchTrainer):
        def _initialize_and_run_controller(self, **policies: Any) -> Any:
            policies["failure_policy"] = leaving.failure_policy(run, settings["launch"], self.run_config.failure_config)
            if cluster.elastic:
                policies["scaling_policy"] = scaling.scaling_policy(sizes, self.scaling_config, told)
            return super()._initialize_and_run_controller(**policies)

    trainer = Trainer(
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
            **(run / ".ray").for_ray(),
            failure_config=FailureConfig(max_failures=cluster.max_failures),
            worker_runtime_env={"env_vars": {"MANYVIEW_RAY_WORKER": settings["launch"], **lease.held()}},
            logging_config=LoggingConfig(log_level="ERROR"),
        ),
    )
    # Ctrl-C is heard by `leaving.passing_on`: after Ray's own handler a run would end as if all were well
    trainer._register_sigint_handler = lambda controller: None
    return trainer


def _tidy(run: Folder) -> None:
    """Remove what this launch left in the run folder, and earlier ones whose driver was killed; one alone works there.

    What storage does not let go of stays for the next one: it must not hide how the run ended.
    """
    try:
        for folder in (leaving.notes(run), run / ".ray"):
            for name in folder.names():
                if name.startswith("launch-"):
                    folder.remove(name)
            if not folder.names():
                folder.remove()
    except OSError as error:
        print(f"{run}: what Ray and the workers left is still there ({error.strerror or error})", flush=True)


def _worker(settings: dict[str, Any]) -> dict[str, Any]:
    """What Ray Train runs on each worker."""
    import ray.cloudpickle
    import ray.train.torch

    run = Folder(settings["run"])
    if joining.input_error(run, settings["launch"]) or leaving.told_to_leave(run, settings["launch"]):
        return {}
    joining.refuse_other_node(run, settings)
    if run.path is not None:
        tracking.say_into(run)
    distributed.use_device(ray.train.torch.get_device())
    leaving.start(run, settings["launch"])
    try:
        function, config = ray.cloudpickle.loads(settings["work"])
        return function(config)
    except (Transient, Replaced) as error:  # no note: workers that are started again, or have been, go on
        with suppress(OSError):  # of storage that still fails
            if isinstance(error, Transient) and leaving.told_to_leave(run, settings["launch"]):
                joining.note_input_error(run, settings["launch"], str(error))  # none is, where all are told to leave
        raise Passing(str(error)) from None
    except Stopped:
        leaving.leave(run, settings["launch"])
        return {}
    except InputError as error:
        # Bad input stays bad, and perhaps one rank alone has met it: raising ends the others, which wait
        # for this one, and the note makes the restart that follows end at once.
        joining.note_input_error(run, settings["launch"], str(error))
        raise


def plain(error: Exception) -> Exception:
    """The workers' own errors, out of Ray's wrapping: one line where it is the storage's, or what may pass."""
    failures = getattr(error, "worker_failures", None) or {}
    causes = [getattr(failure, "_base_exc", failure) for failure in failures.values()]
    told = f"training {leaving.what_failed(error)}"
    if any(isinstance(cause, (OSError, Passing)) for cause in causes):  # others may have failed with that one
        return InputError(f"{told}; no restart is left (cluster.max_failures). The same command goes on")
    return RuntimeError(told)
