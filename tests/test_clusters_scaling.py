"""A real Ray cluster that loses a node and gets another, and a run that goes on with the workers that there are."""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest

from clusters.launch import LEAN_RAY, QUIET_RAY, launch
from clusters.scaling import largest
from clusters.storage import Folder
from clusters.workers import ClusterConfig
from tests.counting_task import (
    ANNOUNCED_BEFORE,
    BATCH_SIZE,
    EVERY_STEPS,
    LOST_BEFORE,
    NUM_STEPS,
    CountConfig,
    count,
    notes,
)


def test_as_many_workers_as_there_is_room_for() -> None:
    assert [largest([1, 2, 4], room) for room in range(7)] == [0, 1, 2, 2, 4, 4, 4]


def change_nodes(cluster: Any, second: Any, run: Folder) -> None:
    """Take the second node away once two workers have counted, and bring a larger one once the first has gone on."""
    _wait_for(lambda: any(note[:2] == [LOST_BEFORE - 1, 2] for note in notes(run)))
    cluster.remove_node(second, allow_graceful=False)
    _wait_for(lambda: any(note[:2] == [ANNOUNCED_BEFORE - 2, 1] for note in notes(run)))
    cluster.add_node(num_cpus=2)


def _wait_for(condition: Callable[[], bool]) -> None:
    until = time.monotonic() + 500
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.1)


@pytest.mark.faults
@pytest.mark.timeout(600)  # three times Ray has to start workers, which takes most of a minute on a busy machine
def test_two_workers_then_one_then_two_count_each_position(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {**QUIET_RAY, **LEAN_RAY, "RAY_AUTH_MODE": "disabled", "OMP_NUM_THREADS": "1"}.items():
        monkeypatch.setenv(name, value)
    import ray
    from ray.cluster_utils import Cluster

    run = Folder(tmp_path / "run")
    config = CountConfig(run=run.location, cluster=ClusterConfig(num_workers=(1, 4), resize_every_s=1))
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        second = cluster.add_node(num_cpus=1)
        ray.init(address=cluster.address, log_to_driver=False)
        with ThreadPoolExecutor(1) as pool:
            # Not the other way round: Ray adds nodes in a main thread only
            counted_by = pool.submit(launch, count, config, config.cluster, run, sizes=[1, 2, 4])
            change_nodes(cluster, second, run)
            # Now there is room for three, of whom two can share batches of four
            answer = counted_by.result()
    finally:
        ray.shutdown()
        cluster.shutdown()

    parts = [list(part) for _, part in groupby(notes(run), key=lambda note: note[1])]
    assert [(part[0][1], part[0][0], part[-1][0]) for part in parts] == [
        (2, 0, LOST_BEFORE - 1),
        (1, EVERY_STEPS, ANNOUNCED_BEFORE - 1),  # without notice: from the last checkpoint on, repeating what followed
        (2, ANNOUNCED_BEFORE, NUM_STEPS - 1),  # announced: from the very step on
    ]
    counted = {note[0]: note[2:] for part in parts for note in part}
    positions = range(NUM_STEPS * BATCH_SIZE)
    assert [position for step in sorted(counted) for position in counted[step]] == list(positions)
    assert answer == {"total": sum(positions)}
    assert not (tmp_path / "run/.ray").exists()
