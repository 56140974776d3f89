"""What a cluster can do for a run, found out before anything waits for it: `look` on each node, `judge` once.

`look` and `judge` need no Ray; `check_nodes` maps them over the nodes of the Ray that is connected.
"""

import math
import shutil
import socket
import tempfile
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from clusters.config import InputError
from clusters.storage import Folder
from clusters.versions import MANYVIEW, versions_here

TAR_BLOCK = 512
T = TypeVar("T")

TIMEOUT_S = 180.0
"""For a node to start a process there and look; a busy one takes tens of seconds."""


@dataclass(frozen=True)
class Needs:
    """What a run asks of every node: datasets to read, and room for its checkpoints.

    `states`: bytes of a state of each part that is trained (a stage, a trial), of which `num_kept` checkpoints stay;
    `every_h`: one more, of those that stay for every so many hours, since nobody knows how long a run will take;
    `at_once`: how many are written at the same time, before the oldest go.
    """

    datasets: Sequence[str] = ()
    states: Sequence[int] = ()
    num_kept: int = 0
    every_h: float | None = None
    at_once: int = 1

    @property
    def written_bytes(self) -> int:
        """What is written at the same time: for a URL it is collected in the temporary folder first."""
        return self.at_once * max(self.states, default=0)

    @property
    def kept_bytes(self) -> int:
        """What stays, on the run folder's disk."""
        return (self.num_kept + (self.every_h is not None)) * sum(self.states)


NOTHING = Needs()


@dataclass(frozen=True)
class NodeReport:
    """What one node found: problems as sentences, versions by package, free bytes.

    Of the run folder's disk and what its checkpoints take there already, None for a URL; for a URL, of the temporary
    folder's.
    """

    host: str
    problems: list[str] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=dict)
    free_bytes: int | None = None
    checkpoint_bytes: int = 0
    temporary_bytes: int | None = None


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
    own = ray.get_runtime_context().get_node_id()
    others = {title: node["NodeID"] for title, (node, count) in places.items() if count and node["NodeID"] != own}
    # Nodes of one machine share the folder into which each of them unpacks a job's sources, after removing it: nothing
    # is looked at before all have. A lambda is carried whole, and so needs none of those sources.
    _answers(others, lambda: None, timeout_s)
    here = look(run, needs.datasets)
    judge(here, [], needs)
    found_there = _answers(others, look, timeout_s, run, list(needs.datasets))
    judge(here, [replace(report, host=title) for title, report in found_there.items()], needs)
    if needs.every_h and here.free_bytes is not None:
        each = max(needs.states) / 1e9
        print(
            f"checkpoint.keep_every_h: there is room for one such checkpoint of {each:.3g} GB; whether for those that "
            f"follow, one every {needs.every_h:g} h, was not looked at",
            flush=True,
        )
    free = ray.available_resources()
    if _places(free, worker) < num_workers:
        there = ", ".join(f"{free.get(name, 0):g} {name}" for name, amount in worker.items() if amount)
        print(f"{num_workers} workers ask for {asked} each; free now: {there}. The run waits for its turn", flush=True)


def check_here(run: str, needs: Needs) -> None:
    """Raise InputError where the checkpoints of a run in this process would not fit on the disk."""
    if needs.states:
        _judge_disk(look(run, []), needs)


def _answers(nodes: Mapping[str, str], task: Callable[..., T], timeout_s: float, *given: Any) -> dict[str, T]:
    """What each node answers to a task, by its title and Ray's id of it; all are asked at once."""
    import ray
    from ray.exceptions import RayError, RayTaskError
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    remote = ray.remote(num_cpus=0, max_retries=0)(task)
    asked = {}
    for title, node_id in nodes.items():
        there = remote.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node_id, soft=False))
        asked[there.remote(*given)] = title
    ready = ray.wait(list(asked), num_returns=len(asked), timeout=timeout_s)[0] if asked else []
    answers = {}
    for answer, title in asked.items():
        if answer not in ready:
            ray.cancel(answer, force=True)
            raise InputError(
                f"on {title}: no answer within {timeout_s:g} s; its Ray or its storage hangs. Mend it, or take the "
                "node out of the cluster"
            )
        try:
            answers[title] = ray.get(answer)
        except RayError as error:
            told = error.cause if isinstance(error, RayTaskError) else error
            raise InputError(
                f"on {title}: {' '.join(str(told).split())[:300]}; submit with --working-dir ., and have the same "
                "environment on every node"
            ) from None
    return answers


def _title(node: Mapping[str, Any]) -> str:
    """How a node is named to a person; the port tells nodes of one machine apart."""
    return f"{node['NodeManagerHostname']} ({node['NodeManagerAddress']}:{node['NodeManagerPort']})"


def _places(resources: Mapping[str, float], worker: Mapping[str, float]) -> int:
    """How many workers can stand where there is so much of each resource."""
    return min(math.floor(resources.get(name, 0.0) / amount + 1e-6) for name, amount in worker.items() if amount)


def look(run: str, datasets: Sequence[str]) -> NodeReport:
    """Write to, read from and tidy the run folder, read of each dataset, and tell versions and free space."""
    problems = [problem for problem in [_unwritable(run), *map(unreadable, datasets)] if problem]
    path = Folder(run).path
    if path is None:
        temporary = shutil.disk_usage(tempfile.gettempdir()).free
        return NodeReport(socket.gethostname(), problems, versions_here(), temporary_bytes=temporary)
    return NodeReport(socket.gethostname(), problems, versions_here(), _free_bytes(path), _checkpoint_bytes(path))


def judge(here: NodeReport, nodes: Sequence[NodeReport], needs: Needs) -> None:
    """Raise InputError for the first node on which the run would fail, or would compute something else."""
    for node in [here, *nodes]:
        if node.problems:
            raise InputError(f"on {node.host}: {node.problems[0]}")
        _judge_disk(node, needs)
        if told := unequal(node.versions, here.versions, here.host):
            raise InputError(f"on {node.host}: {told}")


def unequal(there: Mapping[str, str], here: Mapping[str, str], host: str) -> str | None:
    """What of the versions there differs from those here, on the driver's host, and the mend."""
    for name, version in here.items():
        if there.get(name) != version:
            ours = "submit with --working-dir ., or have the same sources on every node"
            theirs = "install the same requirements.lock, or the same image, on every node"
            return f"{name} is {there.get(name)} and {version} on {host}; {ours if name == MANYVIEW else theirs}"
    return None


def _judge_disk(node: NodeReport, needs: Needs) -> None:
    """What a run has left when it was stopped counts as room, as far as it is part of what the run keeps."""
    there, needed = min(node.checkpoint_bytes, needs.kept_bytes), needs.kept_bytes + needs.written_bytes
    if node.free_bytes is not None and node.free_bytes + there < needed:
        beside = f" beside {there / 1e9:.3g} GB of checkpoints" if there else ""
        raise InputError(
            f"on {node.host}: the run folder's disk has {node.free_bytes / 1e9:.3g} GB free{beside} and checkpoints "
            f"take {needed / 1e9:.3g} GB; free some, lower checkpoint.keep or give another run="
        )
    if node.temporary_bytes is not None and node.temporary_bytes < needs.written_bytes:
        raise InputError(
            f"on {node.host}: the temporary folder's disk has {node.temporary_bytes / 1e9:.3g} GB free, and what goes "
            f"to a URL is collected there, {needs.written_bytes / 1e9:.3g} GB for a checkpoint; free some, or set "
            "TMPDIR to a larger disk"
        )


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


def unreadable(location: str) -> str | None:
    """Why a dataset cannot be read: its manifest, or the first bytes of its first shard."""
    place = location
    try:
        folder = Folder(location)
        shards = sorted(name for name in folder.read_json("manifest.json").get("files", {}) if name.endswith(".tar"))
        for name in shards[:1]:
            place = folder.file(name)
            if len(folder.read_range(name, 0, TAR_BLOCK)) < TAR_BLOCK:
                raise ValueError("cut off")
    except (OSError, ValueError, AttributeError) as error:
        told = error.strerror if isinstance(error, OSError) and error.strerror else error
        return f"the dataset {place} cannot be read ({told}); it must be on storage that every node may read"
    return None


def _free_bytes(run: Path) -> int:
    there = next(path for path in [run, *run.parents, Path("/")] if path.exists())
    return shutil.disk_usage(there).free


def _checkpoint_bytes(run: Path) -> int:
    total = 0
    for path in run.glob("**/checkpoints/step-*/*"):
        with suppress(OSError):  # an old run may still be tidying
            total += path.stat().st_size
    return total
