"""Run one function on many configs, several at a time, as trials of Ray Tune; or one after another, without Ray.

What a trial has found it writes itself, where its config says: Ray is never asked what is done. So the same call after
a kill, with the configs that have left no result, goes on where it was.
"""

import functools
import socket
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from clusters import distributed, preflight, tracking
from clusters.config import Config, InputError, Transient
from clusters.connection import address_of, check_resources, connect, disconnect, set_environment
from clusters.preflight import NOTHING, Needs
from clusters.storage import Folder
from clusters.workers import ClusterConfig

C = TypeVar("C", bound=Config)


@contextmanager
def one_ray(cluster: ClusterConfig, run: Folder) -> Iterator[None]:
    """One connection to Ray for several launches and searches; nothing with `num_workers=0`."""
    if cluster.num_workers == 0:
        yield
        return
    local = address_of(cluster) == "local"
    set_environment(local, cluster.timeout_s)
    import ray

    if ray.is_initialized():
        yield
        return
    connect(cluster, follow_log=run.path is not None)
    try:
        yield
    finally:
        disconnect(local)


def run_trials(
    function: Callable[[C], Any], configs: Sequence[C], cluster: ClusterConfig, run: Folder, needs: Needs = NOTHING
) -> None:
    """`function(config)` for each config, `cluster.num_workers` at a time, each in a process of its own.

    `function` stands at the top level of a module. A process that dies is started again `cluster.max_failures` times.
    Raises InputError where a node lacks what all of them `need`, and that of a trial; RuntimeError with the last line
    of what else a trial has raised; once the others are done.
    """
    if cluster.num_workers == 0:
        for config in configs:
            function(config)
        return
    if not configs:
        return
    with one_ray(cluster, run):
        use_gpu = check_resources(cluster)
        worker = {"CPU": cluster.cpus_per_worker, "GPU": float(use_gpu)}
        preflight.check_nodes(run.location, needs, worker, cluster.sizes[0])
        follower = tracking.LogFollower(run) if run.path is not None else None
        try:
            _tune(function, configs, cluster, run, use_gpu, needs.datasets)
        finally:
            if follower is not None:
                follower.close()


def _tune(
    function: Callable[[C], Any],
    configs: Sequence[C],
    cluster: ClusterConfig,
    run: Folder,
    use_gpu: bool,
    datasets: Sequence[str],
) -> None:
    from ray import tune

    name = f"search-{uuid.uuid4().hex[:8]}"
    given = {"configs": list(configs), "run": run.location, "use_gpu": use_gpu, "datasets": list(datasets)}
    trial = functools.partial(_trial, function=function, **given)
    resources = {"cpu": cluster.cpus_per_worker, "gpu": float(use_gpu)}
    tuner = tune.Tuner(
        tune.with_resources(trial, resources),
        param_space={"number": tune.grid_search(list(range(len(configs))))},
        tune_config=tune.TuneConfig(max_concurrent_trials=cluster.sizes[-1]),
        run_config=tune.RunConfig(
            name=name,
            **(run / ".ray").for_ray(),
            failure_config=tune.FailureConfig(max_failures=cluster.max_failures),
            verbose=0,
        ),
    )
    try:
        results = tuner.fit()
    finally:
        for left in (run / ".ray").names():  # of earlier ones too, whose driver was killed: one alone works there
            if left.startswith("search-"):
                (run / ".ray").remove(left)
        if not (run / ".ray").names():
            run.remove(".ray")
    problems = [found.metrics["problem"] for found in results if found.metrics and found.metrics.get("problem")]
    if problems:
        raise InputError(f"{problems[0]} (in {len(problems)} of {len(configs)} trials)")
    if results.errors:
        last = str(results.errors[0]).strip().splitlines()[-1]
        raise RuntimeError(f"{len(results.errors)} of {len(configs)} trials failed; the first: {last}")
    if results.num_terminated < len(configs):
        raise InputError(
            f"{run}: the search was stopped before all trials were done; the same command goes on from what is done"
        )


def _trial(
    settings: dict[str, Any], function: Any, configs: list[Any], run: str, use_gpu: bool, datasets: list[str]
) -> dict[str, Any]:
    """What Ray Tune runs for each number."""
    import torch

    folder = Folder(run)
    if folder.path is not None:
        tracking.say_into(folder)
    if not use_gpu:  # Ray hides no GPU from a trial that has asked for none
        distributed.use_device(torch.device("cpu"))
    for dataset in datasets:
        if problem := preflight.unreadable(dataset):  # on a node that has come later: others may have its mount
            raise Transient(f"on {socket.gethostname()}: {problem}")
    try:
        function(configs[settings["number"]])
    except Transient:
        raise
    except InputError as error:  # stays bad: not to be tried again
        return {"done": 0, "problem": str(error)}
    return {"done": 1, "problem": ""}
