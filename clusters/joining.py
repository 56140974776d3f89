"""What a worker sees to before it takes part: nodes may come, and sources may change, long after the run began."""

import socket
import time
from typing import Any

from clusters import leaving, preflight
from clusters.config import InputError
from clusters.storage import Folder
from clusters.versions import MANYVIEW, versions_here

UNPACKED_S = (0.0, 2.0, 5.0, 10.0)
"""Pauses before it is believed that a worker's versions differ: a job's sources may just be unpacked for its node."""


class Passing(RuntimeError):
    """What may be over, or be otherwise elsewhere, when Ray starts the workers again."""


def refuse_other_node(run: Folder, settings: dict[str, Any]) -> None:
    """Raise Passing where a node is not as the driver's: without a mount a run would begin anew there, for itself.

    Ray may find another node, or this one again with all that it lacks. But where sources were changed beside the
    driver, they are the same at every start: InputError, noted for those that Ray starts all the same.
    """
    here = f"on {socket.gethostname()}"
    if not leaving.notes(run).exists(f"{settings['launch']}-here"):
        raise Passing(f"{here}: {run} is not the run folder that the driver sees; mount its storage there")
    for dataset in settings["datasets"]:
        if problem := preflight.unreadable(dataset):
            raise Passing(f"{here}: {problem}")
    ours, found, told = settings["versions"], {}, None
    for pause_s in UNPACKED_S:
        time.sleep(pause_s)
        found = versions_here()
        told = preflight.unequal(found, ours, settings["host"])
        if told is None:
            return
    if {**found, MANYVIEW: ""} == {**ours, MANYVIEW: ""} and settings["node"] == node_here():
        changed = "Manyview's sources here were changed since this run was started; the same command goes on with them"
        note_input_error(run, settings["launch"], changed)
        raise InputError(changed)
    raise Passing(f"{here}: {told}")


def node_here() -> str:
    """Ray's id of the node that this process runs on."""
    import ray

    return str(ray.get_runtime_context().get_node_id())


def note_input_error(run: Folder, launch_name: str, told: str) -> None:
    """Leave word of what no restart mends."""
    leaving.notes(run).write(f"{launch_name}-input-error", told.encode())


def input_error(run: Folder, launch_name: str) -> str | None:
    """What one of a launch's workers has left word of."""
    name = f"{launch_name}-input-error"
    return leaving.notes(run).read(name).decode() if leaving.notes(run).exists(name) else None
