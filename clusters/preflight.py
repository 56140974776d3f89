"""What a cluster can do for a run, found out before anything waits for it: `look` on each node, `judge` once.

`look` and `judge` need no Ray; `check_nodes` maps them over the nodes of the Ray that is connected.
"""

import math
import platform
import shutil
import socket
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import metadata
from pathlib import Path
from typing import Any

from clusters.config import InputError
from clusters.storage import Folder

PACKAGES = ("torch", "torchvision", "timm", "ray", "numpy", "safetensors", "pyarrow")
"""Whose versions decide what a step computes, or whether processes understand each other."""

TIMEOUT_S = 180.0
"""For a node to start a process there and look; a busy one takes tens of seconds."""


@dataclass(frozen=True)
class Needs:
    """What a run asks of every node: datasets to read, and bytes of room for checkpoints beside the run folder."""

    datasets: Sequence[str] = ()
    checkpoint_bytes: int = 0


NOTHING = Needs()


@dataclass(frozen=True)
class NodeReport:
    """What one node found: problems as sentences, versions by package, free bytes where the run folder is local."""

    host: str
    problems: list[str] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=dict)
    free_bytes: int | None = None


def check_nodes(
    run: str, needs: Needs, worker: Mapping[str, float], num_workers: int, timeout_s: float = TIMEOUT_S
) -> None:
    """Look from here and from every node that can take a worker; nodes that come later are not looked at.

    `worker` is what one worker reserves, by Ray's names for it. Raises InputError where the workers find no places,
    and for the first node that does not answer within `timeout_s`, or on which the run would fail.
    """
    import ray

    places = {_title(node): (node, _places(node["Resources"], worker)) for node in ray.nodes() if node["Alive"]}
    found = sum(count for _, count in places.values())
    asked = " and ".join(f"{amount:g} {name}" for name, amount in worker.items() if amount)
    if found < num_workers:
        raise InputError(
            f"cluster.num_workers: {num_workers} workers ask for {asked} each, and the nodes have places for {found} "
            "of them; lower cluster.num_workers or cluster.cpus_per_worker"
        )
    here = look(run, needs.datasets)
    own = ray.get_runtime_context().get_node_id()
    others = {title: node["NodeID"] for title, (node, count) in places.items() if count and node["NodeID"] != own}
    judge(here, list(_reports(others, run, needs.datasets, timeout_s)), needs.checkpoint_bytes)
    free = ray.available_resources()
    if _places(free, worker) < num_workers:
        there = ", ".join(f"{free.get(name, 0):g} {name}" for name, amount in worker.items() if amount)
        print(f"{num_workers} workers ask for {asked} each; free now: {there}. The run waits for its turn", flush=True)


def _reports(nodes: Mapping[str, str], run: str, datasets: Sequence[str], timeout_s: float) -> Iterator[NodeReport]:
    """What each node finds, by its title and Ray's id of it; all look at once."""
    import ray
    from ray.exceptions import RayError, RayTaskError
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    task = ray.remote(num_cpus=0, max_retries=0)(look)
    asked = {}
    for title, node_id in nodes.items():
        there = task.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node_id, soft=False))
        asked[there.remote(run, list(datasets))] = title
    ready = ray.wait(list(asked), num_returns=len(asked), timeout=timeout_s)[0] if asked else []
    for answer, title in asked.items():
        if answer not in ready:
            ray.cancel(answer, force=True)
            raise InputError(
                f"on {title}: no answer within {timeout_s:g} s; its Ray or its storage hangs. Mend it, or take the "
                "node out of the cluster"
            )
        try:
            report: NodeReport = ray.get(answer)
            yield replace(report, host=title)
        except RayError as error:
            told = error.cause if isinstance(error, RayTaskError) else error
            raise InputError(
                f"on {title}: {' '.join(str(told).split())[:300]}; submit with --working-dir ., and have the same "
                "environment on every node"
            ) from None


def _title(node: Mapping[str, Any]) -> str:
    """How a node is named to a person; the port tells nodes of one machine apart."""
    return f"{node['NodeManagerHostname']} ({node['NodeManagerAddress']}:{node['NodeManagerPort']})"


def _places(resources: Mapping[str, float], worker: Mapping[str, float]) -> int:
    """How many workers can stand where there is so much of each resource."""
    return min(math.floor(resources.get(name, 0.0) / amount + 1e-6) for name, amount in worker.items() if amount)


def look(run: str, datasets: Sequence[str]) -> NodeReport:
    """Write to, read from and tidy the run folder, read each dataset's manifest, and tell versions and free space."""
    problems = [problem for problem in [_unwritable(run), *map(_unreadable, datasets)] if problem]
    versions = {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}}
    return NodeReport(socket.gethostname(), problems, versions, _free_bytes(Folder(run)))


def judge(here: NodeReport, nodes: Sequence[NodeReport], needed_bytes: int) -> None:
    """Raise InputError for the first node on which the run would fail, or would compute something else.

    `needed_bytes`: what checkpoints take at most, as the function of that name has it.
    """
    for node in [here, *nodes]:
        if node.problems:
            raise InputError(f"on {node.host}: {node.problems[0]}")
        if node.free_bytes is not None and node.free_bytes < needed_bytes:
            raise InputError(
                f"on {node.host}: the run folder's disk has {node.free_bytes / 1e9:.3g} GB free and checkpoints take "
                f"{needed_bytes / 1e9:.3g} GB; free some, lower checkpoint.keep or give another run="
            )
        for name, version in here.versions.items():
            if node.versions.get(name) != version:
                raise InputError(
                    f"on {node.host}: {name} is {node.versions.get(name)} and {version} on {here.host}; install the "
                    "same requirements.lock, or the same image, on every node"
                )


def needed_bytes(state_bytes: int, keep: int) -> int:
    """Free space that checkpoints of a state ask for: those kept and the one that is written before the oldest goes."""
    return state_bytes * (keep + 1)


def _unwritable(location: str) -> str | None:
    name, content = f".preflight-{uuid.uuid4().hex}", uuid.uuid4().bytes
    try:
        folder = Folder(location)
        folder.write(name, content)
        if folder.read(name) != content:
            return f"{location} does not give back what was written to it; choose another storage"
        folder.remove(name)
    except OSError as error:
        return (
            f"{location} cannot be written ({error.strerror or error}); it must be on storage that every node may write"
        )
    return None


def _unreadable(location: str) -> str | None:
    try:
        Folder(location).read_json("manifest.json")
    except (OSError, ValueError) as error:
        told = error.strerror if isinstance(error, OSError) and error.strerror else error
        return f"the dataset {location} cannot be read ({told}); it must be on storage that every node may read"
    return None


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "missing"


def _free_bytes(run: Folder) -> int | None:
    if run.path is None:
        return None
    there = next(path for path in [run.path, *run.path.parents, Path("/")] if path.exists())
    return shutil.disk_usage(there).free
